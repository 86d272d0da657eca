#pragma once

// Reading the prompt: dense attention, and a full cache, as an engine leaves it before anything is compressed.

#include "decode_loop/model.hpp"

#include <headaware/cache/transfer.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>

#include <cstdint>
#include <vector>

namespace decode_loop {

/// The full cache of a prompt, on the host.
struct Prefilled {
  Shape shape;
  std::int32_t tokens = 0;
  std::vector<headaware::float16> keys;    ///< [layers, num_kv_heads, tokens, head_dim]
  std::vector<headaware::float16> values;  ///< the same
  std::vector<float> hidden;               ///< [hidden], the last token's, behind the last layer

  /// How one layer lies.
  [[nodiscard]] headaware::StridedLayout layout() const {
    return headaware::strided_bhsd(1, shape.num_kv_heads, tokens, shape.head_dim);
  }
  /// Each layer's part of two tensors of this shape, here or on the device.
  [[nodiscard]] std::vector<headaware::LayerKv<headaware::float16 const>> layers(
      headaware::float16 const* all_keys, headaware::float16 const* all_values) const {
    std::vector<headaware::LayerKv<headaware::float16 const>> result;
    for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
      result.push_back(
          {all_keys + layer * layout().required_span_size(), all_values + layer * layout().required_span_size()});
    }
    return result;
  }
};

/// @param tokens  > 0, random ones
[[nodiscard]] Prefilled prefill(Model const& model, std::int32_t tokens, std::uint64_t seed);

}  // namespace decode_loop
