#pragma once

/// @file
/// Which rows move between an engine's tensors and a packed cache, segment by segment, as a device reads it.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_engine_rows.hpp>
#include <headaware/cache/detail/check_packed.hpp>
#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/engine_rows.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// One segment: a thread moves a unit of a row.
struct EngineRowsSegment {
  std::int64_t units_before = 0;  ///< of all segments before
  std::int64_t first_unit = 0;    ///< as `PackSegment::first_unit`
  std::int64_t length = 0;
  EngineRow row{};
  std::int32_t kept = 0;
  std::int32_t units = 0;
  std::int32_t layer = 0;
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
};

}  // namespace detail

/// @brief A move of rows between an engine's tensors and a packed cache, in either direction, planned on the host for a
/// device to follow: upload `bytes()`.
/// @note  A plan is for the lengths of its compaction and the formats of the cache.
class EngineRowsPlan {
 public:
  /// @param compaction  whose kept rows the cache holds
  /// @param cache       planned for the compaction
  /// @throws ArgumentError if the cache has other layers or lengths, or formats that no engine has
  template <class Table, class Form, class Registry>
  EngineRowsPlan(Compaction<Table> const& compaction, PackedDestination<Form, Registry> const& cache)
      : rows_(detail::bounds_of_rows(compaction)) {
    constexpr auto where = "EngineRowsPlan";
    detail::check_planned_cache(compaction, cache, "cache", where);
    for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
      Segment const segment = compaction.segment(s);
      PackedSegment<Registry> const& packed = cache.segments[static_cast<std::size_t>(s)];
      RowChannels const channels = cache.channels.of(static_cast<std::size_t>(segment.layer));
      segments_.push_back({.units_before = num_units_,
                           .first_unit = detail::first_unit_of(cache, segment),
                           .length = segment.length,
                           .row = detail::engine_row(packed, channels, detail::PlaceOf{where, segment}),
                           .kept = static_cast<std::int32_t>(segment.kept),
                           .units = packed.units,
                           .layer = segment.layer,
                           .sequence = segment.sequence,
                           .kv_head = segment.kv_head});
      num_units_ += detail::elements(where, {segment.kept, packed.units});
    }
  }

  [[nodiscard]] std::int64_t num_segments() const { return static_cast<std::int64_t>(segments_.size()); }
  /// Units of all rows together: a thread each.
  [[nodiscard]] std::int64_t num_units() const { return num_units_; }
  /// The bytes to copy to the device, 16-byte aligned there.
  [[nodiscard]] std::span<std::byte const> bytes() const { return std::as_bytes(std::span(segments_)); }

  /// Sizes that an engine's tensors must have to be written to.
  [[nodiscard]] detail::CacheBounds const& bounds_of_rows() const { return rows_; }

 private:
  detail::CacheBounds rows_;
  std::vector<detail::EngineRowsSegment> segments_;
  std::int64_t num_units_ = 0;
};

HEADAWARE_NAMESPACE_END
