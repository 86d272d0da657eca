#include "tools/llama/model_source.hpp"

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/engine.hpp"
#include "tools/llama/exact_copy.hpp"
#include "tools/llama/output_projection.hpp"
#include "tools/llama/tapped_qkv.hpp"
#include "tools/llama/text_chunks.hpp"

#include <headaware/io/content_hash.hpp>
#include <headaware/io/file.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Beyond it the scores of all heads would fill the memory.
constexpr std::int32_t longest_unfused = 2048;

class ModelSource : public analysis::AttentionSource {
 public:
  explicit ModelSource(ModelSourceOptions const& options)
      : model_(options.exact ? exact_copy(options.model, options.cache_dir) : options.model),
        projections_(model_.path(), model_.info(), model_.shape()),
        chunks_(chunks_of(model_, ha::read_text_file(options.text), options.chunk_size, options.max_tokens,
                          options.text.string())),
        tap_(model_, [this](TappedAttention const& attention) { hand_over(attention); }),
        context_(model_, {.tokens = longest(),
                          .flash_attention = longest() > longest_unfused,
                          .all_logits = false,
                          .threads = options.threads,
                          .observer = &tap_}) {
    ha::ContentHash print;
    for (auto const& chunk : chunks_) print.add(std::span<std::int32_t const>(chunk));
    description_ = options.model.filename().string() + (options.exact ? " in single precision, " : ", ") +
                   std::to_string(std::filesystem::file_size(options.model)) + " bytes; " +
                   options.text.filename().string() + " in pieces of " + std::to_string(options.chunk_size) +
                   " tokens, at most " + std::to_string(options.max_tokens) + ", tokens " + print.text();
    if (longest() > longest_unfused) {
      description_ += "; fused attention in half precision";
      std::fprintf(stderr,
                   "note: pieces of more than %d tokens run with llama.cpp's fused attention, which rounds queries, "
                   "keys and values to half precision on their way to the next layer\n",
                   longest_unfused);
    }
    if (longest() > model_.info().trained_tokens && model_.info().trained_tokens > 0) {
      std::fprintf(stderr, "note: the model was trained for %d tokens; the longest piece has %d\n",
                   model_.info().trained_tokens, longest());
    }
  }

  [[nodiscard]] std::string name() const override {
    return model_.info().name.empty() ? model_.path().stem().string() : model_.info().name;
  }
  [[nodiscard]] std::string description() const override { return description_; }
  [[nodiscard]] ha::ModelShape model() const override { return model_.shape(); }
  [[nodiscard]] std::vector<std::int64_t> texts() const override {
    std::vector<std::int64_t> result;
    for (auto const& chunk : chunks_) result.push_back(static_cast<std::int64_t>(chunk.size()));
    return result;
  }
  void run(std::size_t text, Handler const& handler) override {
    handler_ = &handler;
    context_.evaluate(chunks_.at(text));
  }
  [[nodiscard]] std::vector<float> output_projection(std::int32_t layer) const override {
    return projections_.layer(layer);
  }

 private:
  [[nodiscard]] std::int32_t longest() const {
    std::size_t most = 0;
    for (auto const& chunk : chunks_) most = std::max(most, chunk.size());
    return static_cast<std::int32_t>(most);
  }

  void hand_over(TappedAttention const& attention) {
    (*handler_)({attention.layer, qkv_of(attention), score_of(attention)});
  }

  Model model_;
  OutputProjections projections_;
  std::vector<std::vector<std::int32_t>> chunks_;
  Handler const* handler_ = nullptr;  ///< of the text that runs
  AttentionTap tap_;
  Context context_;
  std::string description_;
};

}  // namespace

std::unique_ptr<analysis::AttentionSource> model_source(ModelSourceOptions const& options) {
  return std::make_unique<ModelSource>(options);
}

}  // namespace llama_adapter
