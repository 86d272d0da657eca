#pragma once

// A cache while a launch both appends a step's new tokens and attends to them: rows that are not in the cache yet are
// read from where the new tokens lie, and a page that is being copied from where it was, so that no block waits for
// another's writes.

#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/page_step.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/append_counters.cuh>
#include <headaware/format/table.hpp>

#include <cstdint>
#include <utility>

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
/// @tparam Rows  as the cache has them
template <class Rows, class News>
struct AppendedRows : Rows {
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

/// One layer of a rolling cache.
struct RollingLayer {
  RollingSlotsView slots;
  std::int32_t layer;

  /// The rows that the last `queries` tokens of a sequence of `length` tokens see.
  [[nodiscard]] HEADAWARE_HOST_DEVICE RollingRows rows(std::int64_t sequence, std::int64_t kv_head, std::int64_t length,
                                                       std::int64_t queries) const {
    RollingHead const& head = slots.head(layer, kv_head);
    return RollingRows::of(head, sequence, head.rule.range_of_queries(length, queries));
  }
};

/// One layer of a rolling cache of encoded rows.
struct CodedRollingLayer : RollingLayer {
  /// [blocks, block_units], for jobs that do not write to the cache: their segments' new rows, encoded
  RowUnit* scratch;
  std::int64_t block_units;
};

/// Rows in pages of a single head, of which the page of the last old tokens may still be on its way to its own place: a
/// copy on write.
struct CopiedPageRows : HeadPagesRows {
  PageCopy copy{.to = -1};
  std::int32_t written = 0;  ///< tokens before the append: in that page they lie where it was

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return token_offset(position(row), channels);
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t token_offset(std::int64_t token, std::int64_t channels) const {
    std::int64_t const index = page_size.quotient(token);
    std::int32_t number = page(static_cast<std::int32_t>(index));
    if (number == copy.to && token < written) number = copy.from;
    return page_offset(number, channels) + (token - index * page_size.value()) * channels;
  }
};

/// One layer of a cache in pages of single heads.
struct PagedLayer {
  PagedHeadsView pages;
  PageCopy const* copies;  ///< of a step: `DevicePageStep::d_copies`
  std::int64_t page_stride;
  std::int32_t num_copies;
  std::int32_t layer;

  /// The same, as if there were no copies.
  [[nodiscard]] HEADAWARE_HOST_DEVICE CopiedPageRows rows(std::int64_t sequence, std::int64_t kv_head,
                                                          std::int64_t length, std::int64_t queries) const {
    PagedHead const& head = pages.head(layer, kv_head);
    return {pages.rows(head, sequence, head.rule.range_of_queries(length, queries), page_stride)};
  }
};

/// One layer of a cache, shown as it is after an append that is under way.
/// @tparam Layer     `RollingLayer`, `CodedRollingLayer` or `PagedLayer`
/// @tparam Rotation  `KeepPositions`, or `KeyRotation`: of the new keys and of the queries
template <class Layer, class T, class KeyLayout, class ValueLayout, class Rotation>
struct AppendedView {
  using News = NewRows<T, KeyLayout, ValueLayout>;
  using Rows = decltype(std::declval<Layer const&>().rows(0, 0, 0, 1));
  Layer layer;
  AppendCounters counters;
  News news;
  Rotation rotation;

  /// Tokens before the append.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t length(std::int64_t sequence) const {
    return counters.lengths[sequence];
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE AppendedRows<Rows, News> head(std::int64_t sequence, std::int64_t kv_head) const {
    std::int64_t const before = length(sequence);
    std::int64_t count = counters.count(sequence);
    if (!counters.takes(before, count)) count = 0;
    return {layer.rows(sequence, kv_head, before + count, count < 1 ? 1 : count), &news,
            static_cast<std::int32_t>(before), static_cast<std::int32_t>(sequence), static_cast<std::int32_t>(kv_head)};
  }
};

template <class Rows>
inline constexpr bool has_new_rows = requires(Rows const rows) {
  rows.news;
};

/// Whether rows lie in pages that may be on their way.
template <class Rows>
inline constexpr bool has_page_copies = requires(Rows const rows) {
  rows.copy.from;
};

/// Whether new keys and queries are turned to their positions.
template <class View>
inline constexpr bool rotates_rows = requires(View const view) {
  view.rotation.rotary_dim();
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
