#pragma once

// A segment of encoded rows as the kernel on tensor cores has it, and its tiles on their way to shared memory.

#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/mma_fetch.cuh>
#include <headaware/attention/detail/cuda/mma_numbers.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/format/table.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// How a segment's rows are encoded.
struct SegmentCodes {
  CodeShape key;
  CodeShape value;
  std::int64_t shift;  ///< as of `PackedSegment`
  std::int32_t units;
  std::int32_t key_words;  ///< of a row
  RowUnit* new_rows;       ///< of an append that is under way, from row `first_new` on; not in the cache
  std::int32_t first_new;

  template <class Registry>
  __device__ void take(PackedSegment<Registry> const& packed, std::int64_t head_dim) {
    key = code_shape(packed.formats.key);
    value = code_shape(packed.formats.value);
    shift = packed.shift;
    units = packed.units;
    key_words = key.row_words(static_cast<std::int32_t>(head_dim));
  }
};

/// A segment's rows, as the view has them; how they are encoded is in shared memory.
template <class P>
struct CodedSegmentRows : RowsOf<typename P::View> {
  SegmentCodes const* codes = nullptr;

  /// Where a row begins, which may be new. @param cache  `PackedCache::rows`, and the segment's shift
  __device__ RowUnit* place(RowUnit const* cache, std::int64_t row, std::int32_t units) const {
    if constexpr (has_new_rows<CodedSegmentRows>) {
      if (row >= codes->first_new) return codes->new_rows + (row - codes->first_new) * units;
    }
    return const_cast<RowUnit*>(cache) + this->offset(row, units);
  }
};

/// A warp's ring of tiles in shared memory. A stage of it: [16 rows, pitch], then, where there is a mask, [16]
/// positions. How many there are depends on how large a segment's rows are.
template <class P, class Rows>
class CodedRing : public MmaTiles<P, Rows> {
  using Tiles = MmaTiles<P, Rows>;

 public:
  /// @param tile, end  as `MmaTiles`; @param memory  the warp's
  __device__ CodedRing(P const& p, Rows const& rows, MmaMask const& mask, unsigned char* memory, std::int32_t tile,
                       std::int32_t end)
      : Tiles(p, rows, mask, tile, end, 0) {
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
    units_ = rows.codes->units;
    std::int32_t const pitch = CodedRowSizes<typename P::Registry>::pitch(units_);
    stage_bytes_ = static_cast<std::uint32_t>(mma_rows * (pitch + (mask.masked ? 8 : 0)));
    this->stages_ =
        min(P::most_stages, (p.stages * P::stage_bytes - P::after_ring) / static_cast<std::int32_t>(stage_bytes_));
    rows_at_ = p.cache.rows + rows.codes->shift;
    upper_ = lane / mma_rows;
    own_ = shared_address(memory) + static_cast<std::uint32_t>(lane % mma_rows * pitch);
    position_at_ = shared_address(memory) + static_cast<std::uint32_t>(mma_rows * pitch + lane % mma_rows * 8);
    hold(units_);
    hold(this->stages_);
    hold(rows_at_);
    hold(own_);
    hold(stage_bytes_);
  }

  [[nodiscard]] __device__ std::uint32_t stage_bytes() const { return stage_bytes_; }
  [[nodiscard]] __device__ std::uint32_t bytes() const {
    return static_cast<std::uint32_t>(this->stages_) * stage_bytes_;
  }
  /// Starts to copy the next tile. @param stage  bytes of the ring before it
  __device__ void fetch(std::uint32_t stage) {
    this->fetch_by([&] { copy(stage); });
  }

 private:
  /// Two lanes copy a row, 16 bytes each of the same 32, which memory has as one sector.
  __device__ void copy(std::uint32_t stage) {
    // After the last row comes the last row.
    std::int64_t const number = min(this->row_, this->last_);
    RowUnit const* const row = this->rows_.place(rows_at_, number, units_);
    std::int32_t const column = upper_ - static_cast<std::int32_t>(reinterpret_cast<std::uintptr_t>(row) / 16 % 2);
    auto const* from = reinterpret_cast<char const*>(row + column);
    std::uint32_t to = own_ + stage + static_cast<std::uint32_t>(column * 16);
    std::int32_t left = units_ - column;
    std::int32_t first = column < 0 ? 0 : left;
#pragma unroll 1
    for (std::int32_t all = units_ + 1; all > 0; all -= 8) {
      copy_async_if<0, 0>(first, to, from);
      copy_async_if<32, 2>(left, to, from);
      copy_async_if<64, 4>(left, to, from);
      copy_async_if<96, 6>(left, to, from);
      left -= 8;
      first = left;
      from += 128;
      to += 128;
    }
    if (this->masked_ && upper_ == 0) store_shared_number(position_at_ + stage, this->position_);
  }

  RowUnit const* rows_at_;
  std::int32_t units_;  ///< of a row
  std::int32_t upper_;  ///< of the two lanes of a row
  std::uint32_t stage_bytes_;
  std::uint32_t own_;  ///< shared, the lane's row
  std::uint32_t position_at_;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
