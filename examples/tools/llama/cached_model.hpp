#pragma once

// A model whose attention runs on a per-head cache. The engine's own memory is emptied before every read, so a context
// of 256 cells suffices however long the text gets.

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/engine.hpp"
#include "tools/llama/head_cache.hpp"
#include "tools/llama/row_scoring.hpp"

#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

struct CachedModelOptions {
  std::int32_t chunk = 256;                      ///< most tokens of a read
  bool all_logits = false;                       ///< of every token of a read; else of the last one
  std::int32_t threads = 1;                      ///< of the engine
  headaware::RowScorer const* scorer = nullptr;  ///< of tables whose heads keep tokens by scores; borrowed
};

/// @tparam T  of the kept keys and values: float, or headaware::float16 as engines hold them
template <class T>
class CachedModel {
 public:
  /// @param model       borrowed
  /// @param table       policies, each a sink and a window, and tokens of high scores
  /// @param formats     of the same heads; empty: all rows are of `T`
  /// @param max_tokens  room of heads that keep everything
  /// @throws ArgumentError if heads keep tokens by scores and there are none; Error as `require_served`, and for
  /// recurrent layers beside sliding ones
  CachedModel(Model const& model, headaware::PolicyTable const& table, headaware::FormatTable const& formats,
              std::int64_t max_tokens, CachedModelOptions const& options)
      : cache_(table, formats, served(model), max_tokens, RowScoring::of(model, table, options.scorer)),
        tap_(
            model, [this](TappedAttention const& attention) { cache_.run(attention); }, TapMode::replace),
        context_(model, context_options(options)) {}
  CachedModel(CachedModel const&) = delete;
  CachedModel& operator=(CachedModel const&) = delete;

  /// Reads tokens after those read before, at most a chunk of them: each sees what the policies had kept until then.
  void read(std::span<std::int32_t const> tokens) {
    context_.evaluate_on_states(tokens, static_cast<std::int32_t>(cache_.length()));
    cache_.advance();
  }
  /// Logits [vocabulary] after a token of the last read. @return borrowed; valid until the next one
  [[nodiscard]] std::span<float const> logits(std::size_t index) const {
    return context_.logits(static_cast<std::int32_t>(index));
  }
  [[nodiscard]] HeadCache<T> const& cache() const { return cache_; }

 private:
  /// The shape of a model whose memory can be emptied but for states of recurrent layers.
  static headaware::ModelShape const& served(Model const& model) {
    require_served(model.info(), model.shape());
    for (std::int32_t layer = 0; model.info().recurrent && layer < model.shape().num_layers(); ++layer) {
      if (model.shape().layer(layer).kind != headaware::LayerKind::sliding) continue;
      throw headaware::Error({"kind of layer " + std::to_string(layer),
                              "attention or none beside recurrent layers, whose states llama.cpp does not hand out "
                              "without the rows of sliding ones (policies as masks are measured: benchmark --masked)",
                              "sliding", "architecture '" + model.info().architecture + "'"});
    }
    return model.shape();
  }

  ContextOptions context_options(CachedModelOptions const& options) {
    ContextOptions result;
    result.tokens = options.chunk;
    result.cells = 256;
    result.all_logits = options.all_logits;
    result.threads = options.threads;
    result.observer = &tap_;
    return result;
  }

  HeadCache<T> cache_;
  AttentionTap tap_;
  Context context_;
};

/// @brief −log p of every token but the first of a text that is read chunk by chunk.
/// @param reader    `read(tokens)`, and `logits(index)` of each token of the last read
/// @param advanced  (tokens read so far), after each chunk
template <class Reader, class Advanced>
[[nodiscard]] std::vector<double> losses_of(Reader& reader, std::span<std::int32_t const> tokens, std::size_t chunk,
                                            Advanced const& advanced) {
  std::vector<double> losses;
  for (std::size_t at = 0; at < tokens.size();) {
    std::size_t const count = std::min(chunk, tokens.size() - at);
    reader.read(tokens.subspan(at, count));
    for (std::size_t i = 0; i < count && at + i + 1 < tokens.size(); ++i) {
      losses.push_back(loss_of(reader.logits(i), tokens[at + i + 1]));
    }
    at += count;
    advanced(static_cast<std::int64_t>(at));
  }
  return losses;
}

}  // namespace llama_adapter
