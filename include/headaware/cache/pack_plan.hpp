#pragma once

// What packing does, segment by segment, as a device reads it.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_packed.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/format/table.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Blocks of a row of `channels` channels.
template <class Registry>
HEADAWARE_HOST_DEVICE std::int32_t blocks_of(AnyFormat<Registry> const& any, std::int64_t channels) {
  return any.visit([&](auto const& format) {
    using Format = std::remove_cvref_t<decltype(format)>;
    return static_cast<std::int32_t>((channels + Format::group - 1) / Format::group);
  });
}

/// One segment: its rows are whole numbers of blocks, keys' before values', and each block is one thread's.
template <class Registry>
struct PackSegment {
  BasicHeadFormats<Registry> formats{};
  std::int64_t first_block = 0;  ///< blocks of all segments before
  std::int64_t first_unit = 0;   ///< of row 0 in the layer's buffer; of forms of other rows: `PackedSegment::shift`
  std::int64_t length = 0;
  std::int32_t kept = 0;
  std::int32_t units = 0;
  std::int32_t key_blocks = 0;
  std::int32_t value_blocks = 0;
  std::int32_t layer = 0;
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
};

}  // namespace detail

/// @brief A compaction into encoded rows, planned on the host for a device to follow: upload `bytes()`.
/// @note  A plan is for the lengths of its compaction. A graph may be replayed with another plan in the same memory, of
///        as many segments and no more blocks.
template <class Registry = DefaultFormats>
class PackPlan {
 public:
  /// @param compaction  made for these lengths
  /// @param kept        planned for the compaction
  /// @throws ArgumentError if `kept` has other layers or segments, or was made for other lengths
  template <class Table, class Form>
  PackPlan(Compaction<Table> const& compaction, PackedDestination<Form, Registry> const& kept) {
    detail::check_planned_cache(compaction, kept, "destination", "PackPlan");
    for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
      Segment const segment = compaction.segment(s);
      auto const layer = static_cast<std::size_t>(segment.layer);
      RowChannels const channels = kept.channels.of(layer);
      PackedSegment<Registry> const& packed = kept.segments[static_cast<std::size_t>(s)];
      detail::PackSegment<Registry> const part{
          .formats = packed.formats,
          .first_block = num_blocks_,
          .first_unit = detail::first_unit_of(kept, segment),
          .length = segment.length,
          .kept = static_cast<std::int32_t>(segment.kept),
          .units = packed.units,
          .key_blocks = detail::blocks_of(packed.formats.key, channels.head_dim),
          .value_blocks = detail::blocks_of(packed.formats.value, channels.value_dim),
          .layer = segment.layer,
          .sequence = segment.sequence,
          .kv_head = segment.kv_head};
      segments_.push_back(part);
      num_blocks_ += detail::elements("PackPlan", {segment.kept, part.key_blocks + std::int64_t{part.value_blocks}});
    }
  }

  [[nodiscard]] std::int64_t num_segments() const { return static_cast<std::int64_t>(segments_.size()); }
  /// Blocks of channels of all rows together: a thread each.
  [[nodiscard]] std::int64_t num_blocks() const { return num_blocks_; }
  /// The bytes to copy to the device, 16-byte aligned there.
  [[nodiscard]] std::span<std::byte const> bytes() const { return std::as_bytes(std::span(segments_)); }

 private:
  std::vector<detail::PackSegment<Registry>> segments_;
  std::int64_t num_blocks_ = 0;
};

HEADAWARE_NAMESPACE_END
