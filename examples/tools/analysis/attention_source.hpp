#pragma once

// Sources of a model's attention, text by text: captured arrays, or the model itself.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

namespace analysis {

template <class T>
using Qkv = headaware::LayerQkv<T, headaware::StridedLayout, headaware::StridedLayout>;

/// A model's numbers of layers, and the most heads and channels that a layer has.
inline headaware::ModelConfig widest(headaware::ModelShape const& model) {
  headaware::ModelConfig most{model.num_layers(), 0, 0, 0};
  for (headaware::LayerShape const& layer : model.layers()) {
    most.num_attention_heads = std::max(most.num_attention_heads, layer.num_query_heads);
    most.num_key_value_heads = std::max(most.num_key_value_heads, layer.num_kv_heads);
    most.head_dim = std::max(most.head_dim, static_cast<std::int32_t>(layer.head_dim));
  }
  return most;
}

/// "30 layers, 9 query heads, 3 KV heads, head_dim 64"; where layers differ, their kinds, and the most of each.
inline std::string shape_text(headaware::ModelShape const& model) {
  headaware::ModelConfig const most = widest(model);
  std::string text = std::to_string(most.num_hidden_layers) + " layers";
  std::array<std::int32_t, headaware::layer_kind_names.size()> kinds{};
  for (headaware::LayerShape const& layer : model.layers()) ++kinds[static_cast<std::size_t>(layer.kind)];
  std::string list;
  for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
    if (kinds[kind] == 0) continue;
    list += (list.empty() ? " (" : ", ") + std::to_string(kinds[kind]) + " " +
            std::string(headaware::layer_kind_names[kind]);
  }
  if (!model.uniform()) text += list + ")";
  return text + ", " + std::to_string(most.num_attention_heads) + " query heads, " +
         std::to_string(most.num_key_value_heads) + " KV heads, head_dim " + std::to_string(most.head_dim);
}

/// One layer of one text. Pointers are borrowed for the call that hands it over.
struct LayerAttention {
  std::int32_t layer = 0;
  std::variant<Qkv<float>, Qkv<headaware::float16>> qkv;
  headaware::AttentionScore score;
};

/// A model, and the texts over which its attention can be seen.
class AttentionSource {
 public:
  using Handler = std::function<void(LayerAttention const&)>;

  AttentionSource() = default;
  AttentionSource(AttentionSource const&) = delete;
  AttentionSource& operator=(AttentionSource const&) = delete;
  virtual ~AttentionSource() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  /// Description that tells one observation from another: model, text, sizes.
  [[nodiscard]] virtual std::string description() const = 0;
  [[nodiscard]] virtual headaware::ModelShape model() const = 0;
  /// Indices of the source's layers in the model; empty: all.
  [[nodiscard]] virtual std::vector<std::int32_t> layers() const { return {}; }
  /// Tokens of each text.
  [[nodiscard]] virtual std::vector<std::int64_t> texts() const = 0;
  /// Hands over every layer of a text that attends, in order; what the handler throws comes out again.
  virtual void run(std::size_t text, Handler const& handler) = 0;
  /// A layer's W_O, [hidden_size, num_query_heads · value_dim], row-major; empty if it is not known.
  [[nodiscard]] virtual std::vector<float> output_projection(std::int32_t) const { return {}; }
};

}  // namespace analysis
