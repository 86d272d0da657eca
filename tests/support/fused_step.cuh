#pragma once

// A model's decoding step for calls that append and attend in one launch.

#include "support/device_cache.cuh"
#include "support/kept_rows.hpp"

#include <headaware/attention/attention.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headaware_test {

struct FusedCase {
  std::int64_t key_dim = 64;
  std::int64_t value_dim = 64;
  std::int32_t group = 2;
  std::int32_t tokens = 1;  ///< of a step
  std::int32_t steps = 40;
  std::int32_t prompt = 0;  ///< tokens before the first step
  bool counted = false;     ///< sequences differ in new tokens
  std::int64_t window = 0;
};

inline constexpr std::int32_t kv_heads = 5;
inline constexpr std::int32_t batch = 2;
inline constexpr std::int32_t layers = 2;

inline ha::PolicyTable step_table() {
  ha::PolicyTable table(layers, kv_heads, ha::Full{});
  table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 12});
  table.set(0, 2, ha::Prune{});
  table.set(0, 3, ha::SinkWindow{.sink = 3, .window = 1});
  table.set(1, 1, ha::WindowOnly{.window = 70});
  table.set(1, 2, ha::SinkWindow{.sink = 6, .window = 0});
  table.set(1, 4, ha::SinkWindow{.sink = 90, .window = 5});
  return table;
}

/// A model's step: queries, new keys and values of every layer, and where attention goes.
template <class T>
struct FusedStep {
  FusedCase c;
  DeviceVector<T> keys, values, queries, output;
  DeviceVector<float> lse;

  explicit FusedStep(FusedCase const& of)
      : c(of),
        keys(std::vector<T>(at(layers * key_layout().required_span_size()))),
        values(std::vector<T>(at(layers * value_layout().required_span_size()))),
        queries(std::vector<T>(at(layers * query_layout().required_span_size()))),
        output(std::vector<T>(at(layers * output_layout().required_span_size()), ha::from_float<T>(77))),
        lse(std::vector<float>(at(std::int64_t{layers} * batch * kv_heads * c.group * c.tokens), 77)) {}
  [[nodiscard]] ha::StridedLayout key_layout() const { return ha::strided_bshd(batch, c.tokens, kv_heads, c.key_dim); }
  [[nodiscard]] ha::StridedLayout value_layout() const {
    return ha::strided_bshd(batch, c.tokens, kv_heads, c.value_dim);
  }
  [[nodiscard]] ha::StridedLayout query_layout() const {
    return ha::strided_bshd(batch, c.tokens, kv_heads * c.group, c.key_dim);
  }
  [[nodiscard]] ha::StridedLayout output_layout() const {
    return ha::strided_bshd(batch, c.tokens, kv_heads * c.group, c.value_dim);
  }
  [[nodiscard]] ha::AttentionShape shape() const {
    return {batch, kv_heads * c.group, kv_heads, c.tokens, c.key_dim, c.value_dim};
  }
  [[nodiscard]] ha::LayerKv<T const> layer(std::int64_t l) const {
    return {keys.data() + l * key_layout().required_span_size(),
            values.data() + l * value_layout().required_span_size()};
  }
  [[nodiscard]] auto queries_of(std::int64_t l) const {
    return ha::AttentionQueries{queries.data() + l * query_layout().required_span_size(), query_layout()};
  }
  [[nodiscard]] auto output_of(std::int64_t l) const {
    return ha::AttentionOutput{output.data() + l * output_layout().required_span_size(), output_layout(),
                               lse.data() + l * std::int64_t{batch} * kv_heads * c.group * c.tokens};
  }
};

/// Elements that a step's tensors hold from now on.
template <class T>
void upload(DeviceVector<T> const& to, std::vector<T> const& from) {
  REQUIRE_CUDA(cudaMemcpy(to.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
}

/// New queries, keys and values of a step. @param seed  of the first of them
template <class T>
void fill_step(FusedStep<T> const& step, unsigned seed) {
  upload(step.keys, random_elements<T>(std::ssize(step.keys.host()), seed));
  upload(step.values, random_elements<T>(std::ssize(step.values.host()), seed + 1));
  upload(step.queries, random_elements<T>(std::ssize(step.queries.host()), seed + 2));
}

}  // namespace headaware_test
