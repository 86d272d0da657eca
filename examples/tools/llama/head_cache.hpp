#pragma once

// The per-head cache that an engine's attention runs on: what every KV head keeps of what the model has read so far.
// New keys and values go into their slots, and attention reads the slots that each head's policy shows.

#include "tools/llama/attention_tap.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>
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

/// A head's rows, of which a query sees those within the model's own sliding window.
struct WindowedRows {
  headaware::RollingRows kept;
  std::int64_t model_window = 0;

  [[nodiscard]] std::int64_t rows() const { return kept.rows(); }
  [[nodiscard]] std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return kept.offset(row, channels);
  }
  [[nodiscard]] std::int64_t position(std::int64_t row) const { return kept.position(row); }
  [[nodiscard]] bool sees(std::int64_t position, std::int64_t query) const {
    return kept.sees(position, query) && (model_window == 0 || position > query - model_window);
  }
};

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

/// A rolling cache seen through a layer's own sliding window. An engine's own view is no more than this.
struct WindowedView {
  headaware::RollingView cache;
  std::int64_t model_window = 0;  ///< 0: none

  [[nodiscard]] WindowedRows head(std::int64_t sequence, std::int64_t kv_head) const {
    return {cache.head(sequence, kv_head), model_window};
  }
  void check(headaware::AttentionShape const& shape, headaware::AttentionOptions const& options) const {
    cache.check(shape, options);
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }
};

/// The policies as far as a model's own sliding windows let its heads see: nothing else need be kept.
/// @param windows  [layers], 0: none
/// @throws ArgumentError on policies without sinks and window
[[nodiscard]] headaware::PolicyTable within_windows(headaware::PolicyTable table,
                                                    std::span<std::int32_t const> windows);

/// @tparam T  of the kept keys and values: float, or headaware::float16 as engines hold them
template <class T>
class HeadCache {
  /// Tokens appended, and attended to, at a time: so many slots more than its window a head owns.
  static constexpr std::int64_t step_tokens = 32;

 public:
  /// @param table          policies, each a sink and a window
  /// @param model_windows  [layers] the model's own sliding windows; 0: none
  /// @param max_tokens     room of heads that keep everything
  HeadCache(headaware::PolicyTable table, ModelShape const& shape, std::vector<std::int32_t> model_windows,
            std::int64_t max_tokens)
      : windows_(std::move(model_windows)),
        plan_(within_windows(std::move(table), windows_), 1, {.max_tokens = max_tokens, .slack = step_tokens - 1}),
        keys_(kept_elements<T>(plan_.rows_total() * shape.head_dim)),
        values_(kept_elements<T>(plan_.rows_total() * shape.head_dim)),
        buffers_(headaware::rolling(plan_, plan_.view(), keys_.data(), values_.data(), shape.head_dim)),
        state_(1),
        next_state_(1) {}

  /// Appends a layer's new tokens and attends, each token seeing its own sinks and window: as token by token.
  void run(TappedAttention const& attention) {
    namespace ha = headaware;
    std::int64_t const width = attention.num_kv_heads * attention.head_dim;
    auto const stored = [&](float const* from, std::vector<T>& to) {
      to.resize(static_cast<std::size_t>(attention.tokens * width));
      std::transform(from, from + attention.tokens * width, to.begin(), ha::from_float<T>);
    };
    stored(attention.keys, new_keys_);
    stored(attention.values, new_values_);
    auto const layer = static_cast<std::size_t>(attention.layer);
    auto const& kept = buffers_.layers[layer];
    next_state_ = state_;  // every layer counts the same tokens
    for (std::int64_t token = 0; token < attention.tokens; token += step_tokens) {
      std::int64_t const count = std::min(step_tokens, attention.tokens - token);
      std::array<std::int32_t, 1> const counts{static_cast<std::int32_t>(count)};
      std::array<std::int32_t, 1> const before{static_cast<std::int32_t>(next_state_.length(0))};
      std::vector<ha::LayerKv<T>> const step{{new_keys_.data() + token * width, new_values_.data() + token * width}};
      ha::append(plan_.view(), next_state_, step,
                 ha::strided_bshd(1, count, attention.num_kv_heads, attention.head_dim), counts, buffers_,
                 {.first_layer = attention.layer, .advance = true});
      ha::AttentionShape const shape{1,     attention.num_query_heads, attention.num_kv_heads,
                                     count, attention.head_dim,        0};
      auto const layout = ha::strided_bshd(1, count, attention.num_query_heads, attention.head_dim);
      std::int64_t const row = token * attention.num_query_heads * attention.head_dim;
      WindowedView const view{
          ha::RollingView::of_chunk(plan_.view(), attention.layer, next_state_.lengths().data(), count),
          windows_[layer]};
      ha::attend(shape, ha::AttentionQueries{attention.queries + row, layout},
                 ha::KeptCache{kept.keys, kept.values, view}, ha::AttentionOutput{attention.output + row, layout},
                 {.scale = attention.scale, .soft_cap = attention.soft_cap, .first_positions = before.data()});
    }
  }

  /// All layers have run.
  void advance() { state_ = next_state_; }
  [[nodiscard]] std::int64_t length() const { return state_.length(0); }
  /// Bytes of keys and values, whatever has been read so far.
  [[nodiscard]] std::int64_t bytes() const {
    return static_cast<std::int64_t>((keys_.size() + values_.size()) * sizeof(T));
  }
  /// Tokens that a KV head keeps on average.
  [[nodiscard]] double mean_kept() const {
    std::int64_t kept = 0;
    for (std::int32_t layer = 0; layer < plan_.num_layers(); ++layer) {
      for (std::int32_t head = 0; head < plan_.num_kv_heads(); ++head)
        kept += plan_.head(layer, head).kept(length()).count();
    }
    return static_cast<double>(kept) / (plan_.num_layers() * plan_.num_kv_heads());
  }

 private:
  std::vector<std::int32_t> windows_;
  headaware::RollingSlots plan_;
  std::vector<T> keys_;
  std::vector<T> values_;
  headaware::Destination<T, headaware::RollingSlotsView> buffers_;
  headaware::RollingState state_;
  headaware::RollingState next_state_;
  std::vector<T> new_keys_;
  std::vector<T> new_values_;
};

/// @brief The sliding window of each layer, 0 where there is none, read from the masks of one short evaluation.
[[nodiscard]] std::vector<std::int32_t> layer_windows(Model const& model);

}  // namespace llama_adapter
