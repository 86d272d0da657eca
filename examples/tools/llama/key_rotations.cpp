#include "tools/llama/key_rotations.hpp"

#include "tools/llama/graph_nodes.hpp"
#include "tools/llama/tensor_data.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Looks at the rotation before each layer's keys are stored.
class RotationObserver : public NodeObserver {
 public:
  explicit RotationObserver(Model const& model) : model_(&model) {}

  void begin(std::span<std::int32_t const>) override {
    rotations_.assign(static_cast<std::size_t>(model_->shape().num_layers()), {});
    seen_ = 0;
  }

  bool on_node(ggml_tensor* node, bool asking) override {
    if (!asking) return true;
    if (node->op == GGML_OP_ROPE) last_ = node;
    std::int32_t const layer = node->op == GGML_OP_SET_ROWS ? cache_layer(node, key_cache) : -1;
    if (layer >= 0) {
      if (last_ == nullptr) fail("rotation of keys", "a ROPE node", "none", node);
      rotations_.at(static_cast<std::size_t>(layer)) = rotation_of(last_);
      ++seen_;
      last_ = nullptr;
    }
    return false;
  }

  void finish() override {
    auto const layers = model_->shape().layers();
    auto const caches =
        std::count_if(layers.begin(), layers.end(), [](auto const& layer) { return layer.has_cache(); });
    if (seen_ != caches) fail("layers with rotated keys", std::to_string(caches), std::to_string(seen_), nullptr);
  }

  [[nodiscard]] std::vector<ha::KeyRotation> const& rotations() const { return rotations_; }

 private:
  [[nodiscard]] ha::KeyRotation rotation_of(ggml_tensor const* node) const {
    // As ggml_rope_ext stores them: n_dims, mode, …; base, scale, extrapolation and magnitude from 5 on.
    std::int32_t const channels = node->op_params[1];
    std::int32_t const mode = node->op_params[2];
    bool const known = mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX;
    if (!known) fail("rotation", "neox or interleaved pairs", "mode " + std::to_string(mode), node);
    double const base = parameter(node, 5);
    double const scale = parameter(node, 6);
    if (parameter(node, 7) != 0) fail("rotation", "one frequency a pair", "YaRN", node);
    std::vector<double> frequencies;
    for (std::int32_t i = 0; i < channels / 2; ++i) frequencies.push_back(scale * std::pow(base, -2.0 * i / channels));
    if (node->src[2] != nullptr) {
      std::vector<float> const factors = floats_of(node->src[2]);
      for (std::size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= factors.at(i);
    }
    auto const pairing = mode == GGML_ROPE_TYPE_NEOX ? ha::RotaryPairing::neox : ha::RotaryPairing::interleaved;
    return ha::KeyRotation::from_frequencies(pairing, frequencies);
  }

  [[noreturn]] void fail(std::string what, std::string expected, std::string got, ggml_tensor const* node) const {
    std::string where = "architecture '" + model_->info().architecture + "'";
    if (node != nullptr) where += ", node " + std::string(ggml_op_desc(node)) + " '" + node->name + "'";
    throw ha::Error({std::move(what), std::move(expected), std::move(got), std::move(where)});
  }

  Model const* model_;
  std::int64_t seen_ = 0;
  ggml_tensor const* last_ = nullptr;
  std::vector<ha::KeyRotation> rotations_;
};

}  // namespace

std::vector<ha::KeyRotation> key_rotations(Model const& model) {
  for (std::int32_t layer = 0; layer < model.shape().num_layers(); ++layer) {
    if (model.shape().layer(layer).kind != ha::LayerKind::latent) continue;
    throw ha::Error({"rotation of keys", "one of the rows' first channels", "a latent's, of its last",
                     "architecture '" + model.info().architecture + "', layer " + std::to_string(layer)});
  }
  RotationObserver observer(model);
  std::array<std::int32_t, 2> const tokens{};
  Context context(model,
                  {.tokens = static_cast<std::int32_t>(tokens.size()), .all_logits = false, .observer = &observer});
  context.evaluate(tokens);
  return observer.rotations();
}

}  // namespace llama_adapter
