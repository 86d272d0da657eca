#include "tools/llama/residual_norms.hpp"

#include "tools/llama/graph_nodes.hpp"
#include "tools/llama/tensor_data.hpp"
#include "tools/support/interrupt.hpp"
#include "tools/support/progress.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// The first sum of two whole streams after a layer's attention is the residual with the attention's output.
class ResidualObserver : public NodeObserver {
 public:
  ResidualObserver(Model const& model, std::int64_t first_query)
      : model_(&model), first_query_(first_query), squares_(static_cast<std::size_t>(model.shape().num_layers())) {}

  void begin(std::span<std::int32_t const> positions) override {
    tokens_ = std::ssize(positions);
    layer_ = -1;
    seen_ = 0;
  }

  bool on_node(ggml_tensor* node, bool asking) override {
    if (asking && node->op == GGML_OP_SET_ROWS) {
      if (auto const layer = cache_layer(node, key_cache); layer >= 0) layer_ = layer;
    }
    bool const wanted = layer_ >= 0 && layer_ < model_->shape().num_layers() && node->op == GGML_OP_ADD &&
                        is_stream(node->src[0]) && is_stream(node->src[1]);
    if (asking || !wanted) return wanted;
    add(floats_of(node));
    layer_ = -1;
    ++seen_;
    return true;
  }

  void finish() override {
    ha::require(seen_ == model_->shape().num_layers(), "sums of residual and attention", model_->shape().num_layers(),
                seen_, {"residual_norms, architecture '", model_->info().architecture, "'"});
  }

  [[nodiscard]] std::vector<double> medians() {
    std::vector<double> result;
    for (auto& squares : squares_) {
      auto const middle = squares.begin() + std::ssize(squares) / 2;
      std::nth_element(squares.begin(), middle, squares.end());
      result.push_back(*middle);
    }
    return result;
  }

 private:
  [[nodiscard]] bool is_stream(ggml_tensor const* tensor) const {
    return tensor != nullptr && tensor->ne[0] == model_->info().hidden_size && tensor->ne[1] == tokens_ &&
           ggml_nelements(tensor) == model_->info().hidden_size * tokens_;
  }

  void add(std::vector<float> const& rows) {
    std::int64_t const width = model_->info().hidden_size;
    for (std::int64_t row = first_query_; row < tokens_; ++row) {
      double square = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        double const x = rows[static_cast<std::size_t>(row * width + i)];
        square += x * x;
      }
      squares_[static_cast<std::size_t>(layer_)].push_back(square);
    }
  }

  Model const* model_;
  std::int64_t first_query_;
  std::int64_t tokens_ = 0;
  std::int32_t layer_ = -1;
  std::int32_t seen_ = 0;
  std::vector<std::vector<double>> squares_;  ///< [layers][rows]
};

}  // namespace

std::vector<double> residual_norms(Model const& model, CalibrationText::Pieces const& pieces, std::int64_t first_query,
                                   std::int32_t threads) {
  constexpr auto where = "residual_norms";
  ha::require(!pieces.empty(), "pieces", "at least one", "none", where);
  std::int64_t longest = 0;
  for (auto const& piece : pieces) longest = std::max(longest, std::ssize(piece));
  ha::require(first_query >= 0 && first_query < longest, "first_query", {"in [0, ", longest, ")"}, first_query, where);
  ResidualObserver observer(model, first_query);
  Context context(model, {.tokens = static_cast<std::int32_t>(longest), .threads = threads, .observer = &observer});
  support::Interrupt const interrupt;
  support::Progress progress("residual norms", "pieces", std::ssize(pieces));
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    interrupt.check();
    context.evaluate(pieces[i]);
    progress.show(static_cast<double>(i + 1));
  }
  progress.finish(static_cast<double>(pieces.size()));
  return observer.medians();
}

}  // namespace llama_adapter
