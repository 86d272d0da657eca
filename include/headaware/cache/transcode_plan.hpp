#pragma once

/// @file
/// What writing a packed cache again in other formats does, segment by segment, as a device reads it.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_packed.hpp>
#include <headaware/cache/detail/check_transcode.hpp>
#include <headaware/cache/pack_plan.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows of a segment in one of the caches.
template <class Registry>
struct TranscodeRows {
  BasicHeadFormats<Registry> formats{};
  std::int64_t first_unit = 0;  ///< as `PackSegment::first_unit`
  std::int32_t units = 0;
};

template <class Registry>
struct TranscodeSegment {
  TranscodeRows<Registry> from;
  TranscodeRows<Registry> to;
  std::int64_t first_row = 0;  ///< rows of all segments before
  std::int64_t length = 0;
  std::int32_t kept = 0;
  std::int32_t layer = 0;
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
  bool same_key = false;  ///< its format stays, fields included
  bool same_value = false;
};

}  // namespace detail

/// @brief Transcoding planned on the host for a device to follow: upload `bytes()`.
/// @note  A plan is for the lengths of its compaction and the formats of both caches.
template <class Registry = DefaultFormats>
class TranscodePlan {
 public:
  /// @param compaction  whose kept rows both caches hold
  /// @param from, to    planned for the compaction, of the same channels; buffers, and heads and tables on a device,
  ///                    are not read
  /// @throws ArgumentError if they are of other layers, heads, channels or lengths
  template <class Table, class From, class To>
  TranscodePlan(Compaction<Table> const& compaction, PackedDestination<From, Registry> const& from,
                PackedDestination<To, Registry> const& to) {
    constexpr auto where = "TranscodePlan";
    detail::check_transcoded(compaction, from, to, where);
    for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
      Segment const segment = compaction.segment(s);
      detail::TranscodeSegment<Registry> part{.from = rows_of(segment, from),
                                              .to = rows_of(segment, to),
                                              .first_row = num_rows_,
                                              .length = segment.length,
                                              .kept = static_cast<std::int32_t>(segment.kept),
                                              .layer = segment.layer,
                                              .sequence = segment.sequence,
                                              .kv_head = segment.kv_head};
      part.same_key = part.from.formats.key == part.to.formats.key;
      part.same_value = part.from.formats.value == part.to.formats.value;
      segments_.push_back(part);
      num_rows_ += segment.kept;
    }
  }

  [[nodiscard]] std::int64_t num_segments() const { return static_cast<std::int64_t>(segments_.size()); }
  [[nodiscard]] std::int64_t num_rows() const { return num_rows_; }
  /// The bytes to copy to the device, 16-byte aligned there.
  [[nodiscard]] std::span<std::byte const> bytes() const { return std::as_bytes(std::span(segments_)); }

 private:
  template <class Form>
  static detail::TranscodeRows<Registry> rows_of(Segment const& segment,
                                                 PackedDestination<Form, Registry> const& cache) {
    PackedSegment<Registry> const& packed = cache.segments[static_cast<std::size_t>(segment.index)];
    return {packed.formats, detail::first_unit_of(cache, segment), static_cast<std::int32_t>(packed.units)};
  }

  std::vector<detail::TranscodeSegment<Registry>> segments_;
  std::int64_t num_rows_ = 0;
};

HEADAWARE_NAMESPACE_END
