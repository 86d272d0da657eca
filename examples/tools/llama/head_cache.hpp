#pragma once

// The per-head cache that an engine's attention runs on: what every KV head keeps of what the model has read so far.
// New keys and values go into their slots, and attention reads the slots that each head's policy shows.

#include "tools/llama/attention_tap.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/classify/builders.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

/// Elements of a cache's buffer. @throws std::runtime_error that says how much could not be had
template <class T>
std::vector<T> kept_elements(std::int64_t elements) {
  try {
    return std::vector<T>(static_cast<std::size_t>(elements));
  } catch (std::exception const&) {  // bad_alloc, length_error
    double const gigabytes = static_cast<double>(elements) * sizeof(T) / (1 << 30);
    throw std::runtime_error("the cache's keys, and its values as well, need " +
                             std::to_string(static_cast<std::int64_t>(gigabytes) + 1) +
                             " GiB, which cannot be allocated: fewer tokens, or smaller windows");
  }
}

/// @tparam T  of the kept keys and values: float, or headaware::float16 as engines hold them
template <class T>
class HeadCache {
  /// Tokens appended, and attended to, at a time: so many slots more than its window a head owns.
  static constexpr std::int64_t step_tokens = 32;

 public:
  /// @param table       policies, each a sink and a window; within the windows of the model's own
  /// @param max_tokens  room of heads that keep everything
  HeadCache(headaware::PolicyTable table, headaware::ModelShape const& shape, std::int64_t max_tokens)
      : plan_(headaware::within_layers(std::move(table), shape, "HeadCache"), 1,
              {.max_tokens = max_tokens, .slack = step_tokens - 1}),
        keys_(kept_elements<T>(elements_of(plan_, shape).head_dim)),
        values_(kept_elements<T>(elements_of(plan_, shape).value_dim)),
        buffers_(headaware::rolling(plan_, plan_.view(), keys_.data(), values_.data(), shape)),
        state_(1),
        next_state_(1) {}

  /// Appends a layer's new tokens and attends, each token seeing its own sinks and window: as token by token.
  void run(TappedAttention const& attention) {
    namespace ha = headaware;
    std::int64_t const key_width = attention.num_kv_heads * attention.head_dim;
    std::int64_t const value_width = attention.num_kv_heads * attention.value_dim;
    auto const stored = [&](float const* from, std::int64_t width, std::vector<T>& to) {
      to.resize(static_cast<std::size_t>(attention.tokens * width));
      std::transform(from, from + attention.tokens * width, to.begin(), ha::from_float<T>);
    };
    stored(attention.keys, key_width, new_keys_);
    if (!attention.latent) stored(attention.values, value_width, new_values_);
    auto const layer = static_cast<std::size_t>(attention.layer);
    auto const& kept = buffers_.layers[layer];
    next_state_ = state_;  // every layer counts the same tokens
    for (std::int64_t token = 0; token < attention.tokens; token += step_tokens) {
      std::int64_t const count = std::min(step_tokens, attention.tokens - token);
      std::array<std::int32_t, 1> const counts{static_cast<std::int32_t>(count)};
      std::array<std::int32_t, 1> const before{static_cast<std::int32_t>(next_state_.length(0))};
      std::vector<ha::LayerKv<T>> const step{{new_keys_.data() + token * key_width,
                                              attention.latent ? nullptr : new_values_.data() + token * value_width}};
      ha::KvLayouts const layouts{ha::strided_bshd(1, count, attention.num_kv_heads, attention.head_dim),
                                  ha::strided_bshd(1, count, attention.num_kv_heads, attention.value_dim)};
      ha::append(plan_.view(), next_state_, step, layouts, counts, buffers_,
                 {.first_layer = attention.layer, .advance = true});
      ha::AttentionShape const shape{1,     attention.num_query_heads, attention.num_kv_heads,
                                     count, attention.head_dim,        attention.value_dim};
      auto const queries = ha::strided_bshd(1, count, attention.num_query_heads, attention.head_dim);
      auto const output = ha::strided_bshd(1, count, attention.num_query_heads, attention.value_dim);
      std::int64_t const row = token * attention.num_query_heads;
      auto const view = ha::RollingView::of_chunk(plan_.view(), attention.layer, next_state_.lengths().data(), count);
      ha::AttentionQueries const read{attention.queries + row * attention.head_dim, queries};
      ha::AttentionOutput const written{attention.output + row * attention.value_dim, output};
      ha::AttentionOptions const options{.scale = attention.scale,
                                         .soft_cap = attention.soft_cap,
                                         .first_positions = before.data(),
                                         .sinks = attention.sinks};
      if (attention.latent) {
        ha::attend(shape, read, ha::LatentCache{kept.keys, view}, written, options);
      } else {
        ha::attend(shape, read, ha::KeptCache{kept.keys, kept.values, view}, written, options);
      }
    }
  }

  /// All layers have run.
  void advance() { state_ = next_state_; }
  [[nodiscard]] std::int64_t length() const { return state_.length(0); }
  /// Bytes of keys and values, whatever has been read so far.
  [[nodiscard]] std::int64_t bytes() const {
    return static_cast<std::int64_t>((keys_.size() + values_.size()) * sizeof(T));
  }
  /// Bytes of the keys and values of the tokens kept so far, without the slots for those read at a time.
  [[nodiscard]] std::int64_t kept_bytes() const {
    auto const kept = headaware::buffer_elements(buffers_.channels, plan_.num_layers(),
                                                 [&](std::int32_t layer) { return kept_rows(layer); });
    return (kept.head_dim + kept.value_dim) * std::int64_t{sizeof(T)};
  }
  /// Tokens that a KV head keeps on average.
  [[nodiscard]] double mean_kept() const {
    std::int64_t kept = 0;
    for (std::int32_t layer = 0; layer < plan_.num_layers(); ++layer) kept += kept_rows(layer);
    return static_cast<double>(kept) / static_cast<double>(plan_.heads().total());
  }

 private:
  /// Tokens that a layer's KV heads keep together.
  [[nodiscard]] std::int64_t kept_rows(std::int32_t layer) const {
    std::int64_t kept = 0;
    for (std::int32_t head = 0; head < plan_.heads().count(layer); ++head) {
      kept += plan_.head(layer, head).kept(length()).count();
    }
    return kept;
  }
  static headaware::RowChannels elements_of(headaware::RollingSlots const& plan, headaware::ModelShape const& shape) {
    return headaware::buffer_elements(shape, plan.num_layers(),
                                      [&](std::int32_t layer) { return plan.rows_total(layer); });
  }

  headaware::RollingSlots plan_;
  std::vector<T> keys_;
  std::vector<T> values_;
  headaware::Destination<T, headaware::RollingSlotsView> buffers_;
  headaware::RollingState state_;
  headaware::RollingState next_state_;
  std::vector<T> new_keys_;
  std::vector<T> new_values_;
};

}  // namespace llama_adapter
