#pragma once

// A rolling cache while a launch both appends a step's new tokens and attends to them: rows that are not in the cache
// yet are read from where the new tokens lie, so that no block waits for another's writes.

#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The position of a row that is not there: after every query.
inline constexpr std::int64_t no_position = INT64_MAX;

/// New keys and values of one layer, and the buffers that they go into.
template <class T, class KeyLayout, class ValueLayout>
struct NewRows {
  T const* keys;
  T const* values;
  T* cache_keys;
  T* cache_values;
  KeyLayout key_layout;
  ValueLayout value_layout;
};

/// Rows of one head of one sequence after an append that is under way.
template <class News>
struct AppendedRows : RollingRows {
  News const* news;
  std::int32_t length;  ///< tokens before the append
  std::int32_t sequence;
  std::int32_t kv_head;

  [[nodiscard]] HEADAWARE_HOST_DEVICE bool is_new(std::int64_t position) const {
    return position >= length && position != no_position;
  }
  /// Where the channels of a row lie, if not in the cache. @param at  its position
  template <class T>
  __device__ void redirect(std::int64_t at, T const*& keys, T const*& values) const {
    if (!is_new(at)) return;
    keys = news->keys + news->key_layout.offset(sequence, kv_head, at - length, 0);
    values = news->values + news->value_layout.offset(sequence, kv_head, at - length, 0);
  }
};

/// One layer of a rolling cache, shown as it is after an append that is under way.
/// @tparam Rotation  `KeepPositions`, or `KeyRotation`: of the new keys and of the queries
template <class T, class KeyLayout, class ValueLayout, class Rotation>
struct AppendedView {
  using News = NewRows<T, KeyLayout, ValueLayout>;
  RollingSlotsView slots;
  AppendCounters counters;
  News news;
  std::int32_t layer;
  Rotation rotation;

  /// Tokens before the append.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t length(std::int64_t sequence) const {
    return counters.lengths[sequence];
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE AppendedRows<News> head(std::int64_t sequence, std::int64_t kv_head) const {
    RollingHead const& of = slots.head(layer, kv_head);
    std::int64_t const before = length(sequence);
    std::int64_t count = counters.count(sequence);
    if (!counters.takes(before, count)) count = 0;
    return {RollingRows::of(of, sequence, of.rule.range_of_queries(before + count, count < 1 ? 1 : count)), &news,
            static_cast<std::int32_t>(before), static_cast<std::int32_t>(sequence), static_cast<std::int32_t>(kv_head)};
  }
};

template <class Rows>
inline constexpr bool has_new_rows = requires(Rows const rows) {
  rows.news;
};

/// Whether new keys and queries are turned to their positions.
template <class View>
inline constexpr bool rotates_rows = requires(View const view) {
  view.rotation.rotary_dim();
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
