#pragma once

// The decoding loop, and a record of all that passed through attention in it.

#include "decode_loop/backend.hpp"
#include "decode_loop/model.hpp"
#include "decode_loop/prefill.hpp"

#include <headaware/element.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace decode_loop {

/// Inputs and outputs of attention, of every step and layer. Checks read it when the clock has stopped, so that they
/// neither count as time nor empty the processor's caches between two steps.
class Trace {
 public:
  Trace(Shape const& shape, std::int32_t steps)
      : shape_(shape),
        steps_(steps),
        queries_(static_cast<std::size_t>(std::int64_t{steps} * shape.layers * shape.query_width())),
        outputs_(queries_.size()),
        keys_(static_cast<std::size_t>(std::int64_t{steps} * shape.layers * shape.kv_width())),
        values_(keys_.size()) {}

  [[nodiscard]] std::int32_t steps() const { return steps_; }
  [[nodiscard]] TokenQkv token(std::int32_t step, std::int32_t layer) const {
    return {queries_.data() + query_index(step, layer), keys_.data() + kv_index(step, layer),
            values_.data() + kv_index(step, layer)};
  }
  [[nodiscard]] TokenBuffers token_buffers(std::int32_t step, std::int32_t layer) {
    return {queries_.data() + query_index(step, layer), keys_.data() + kv_index(step, layer),
            values_.data() + kv_index(step, layer)};
  }
  [[nodiscard]] float const* output(std::int32_t step, std::int32_t layer) const {
    return outputs_.data() + query_index(step, layer);
  }
  [[nodiscard]] float* output_buffer(std::int32_t step, std::int32_t layer) {
    return outputs_.data() + query_index(step, layer);
  }

 private:
  [[nodiscard]] std::int64_t query_index(std::int32_t step, std::int32_t layer) const {
    return (std::int64_t{step} * shape_.layers + layer) * shape_.query_width();
  }
  [[nodiscard]] std::int64_t kv_index(std::int32_t step, std::int32_t layer) const {
    return (std::int64_t{step} * shape_.layers + layer) * shape_.kv_width();
  }

  Shape shape_;
  std::int32_t steps_;
  std::vector<float> queries_;  ///< [steps, layers, num_query_heads, head_dim]
  std::vector<float> outputs_;
  std::vector<headaware::float16> keys_;  ///< [steps, layers, num_kv_heads, head_dim]
  std::vector<headaware::float16> values_;
};

struct Decoded {
  Trace trace;
  double seconds = 0;        ///< of all steps
  double cache_seconds = 0;  ///< of that in the cache: appending and attending
};

/// Goes on behind a prompt, token by token. @param cache  made from the same prompt
[[nodiscard]] Decoded decode(Model const& model, Prefilled const& prompt, DecodeCache& cache, std::int32_t steps,
                             std::uint64_t seed);

}  // namespace decode_loop
