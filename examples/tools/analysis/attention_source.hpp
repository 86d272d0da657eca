#pragma once

// Sources of a model's attention, text by text: captured arrays, or the model itself.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/types.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

namespace analysis {

template <class T>
using Qkv = headaware::LayerQkv<T, headaware::StridedLayout, headaware::StridedLayout>;

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
  [[nodiscard]] virtual headaware::ModelConfig model() const = 0;
  /// Indices of the source's layers in the model; empty: all.
  [[nodiscard]] virtual std::vector<std::int32_t> layers() const { return {}; }
  /// Tokens of each text.
  [[nodiscard]] virtual std::vector<std::int64_t> texts() const = 0;
  /// Hands over every layer of a text, in order; what the handler throws comes out again.
  virtual void run(std::size_t text, Handler const& handler) = 0;
  /// A layer's W_O, [hidden_size, num_query_heads · head_dim], row-major; empty if it is not known.
  [[nodiscard]] virtual std::vector<float> output_projection(std::int32_t) const { return {}; }
};

}  // namespace analysis
