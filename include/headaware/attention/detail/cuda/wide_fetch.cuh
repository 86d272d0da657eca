#pragma once

#include <headaware/attention/detail/cuda/mma_fetch.cuh>
#include <headaware/attention/detail/cuda/wide_parameters.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A block's ring of tiles in shared memory, of which each warp copies four rows, eight lanes each. A stage of it:
/// [tile_rows, pitch] keys, and as many values where these are no parts of the keys. The last 16 bytes of a key's row
/// hold its position.
template <class P, class Rows>
class WideRing : public MmaTiles<P, Rows> {
  using Tiles = MmaTiles<P, Rows>;
  static constexpr std::int32_t lanes = 8;  ///< of a row

 public:
  /// @param tile, end  the block's; @param memory  shared
  __device__ WideRing(P const& p, Rows const& rows, MmaMask const& mask, unsigned char* memory, std::int32_t tile,
                      std::int32_t end)
      : Tiles(p, rows, mask, tile, end, p.stages - 1) {
    auto const thread = static_cast<std::int32_t>(threadIdx.x);
    auto const lane = thread % warp_threads;
    own_row_ = thread / lanes;
    keys_ = p.cache.keys + lane % lanes * 8;
    key_channels_ = static_cast<std::int32_t>(p.shape.head_dim);
    key_pieces_ = (key_channels_ / 8 - lane % lanes + lanes - 1) / lanes;
    std::uint32_t const base = shared_address(memory);
    to_ = base + static_cast<std::uint32_t>(own_row_ * P::pitch + lane % lanes * 16);
    note_ = base + static_cast<std::uint32_t>((lane + 1) * P::pitch - 16);
    leader_ = lane / lanes * lanes;
    hold(keys_);
    hold(own_row_);
    hold(key_channels_);
    hold(key_pieces_);
    hold(to_);
    hold(note_);
    hold(leader_);
    if constexpr (!P::latent) {
      values_ = p.cache.values + lane % lanes * 8;
      value_channels_ = static_cast<std::int32_t>(p.shape.output_dim());
      value_pieces_ = (value_channels_ / 8 - lane % lanes + lanes - 1) / lanes;
      value_offset_ = static_cast<std::uint32_t>(this->tile_rows_ * P::pitch);
      hold(values_);
      hold(value_channels_);
      hold(value_pieces_);
      hold(value_offset_);
    }
  }

  /// Starts to copy the next tile. By all warps. @param stage  bytes of the ring before it
  __device__ void fetch(std::uint32_t stage) {
    this->fetch_by([&] { copy(stage); });
  }

 private:
  __device__ void copy(std::uint32_t stage) {
    if (this->masked_ && static_cast<std::int32_t>(threadIdx.x) < this->tile_rows_) {
      store_shared_number(note_ + stage, this->position_);
    }
    if (own_row_ >= this->tile_rows_) return;
    std::int64_t key = 0;
    std::int64_t value = 0;
    if (leader_ == static_cast<std::int32_t>(threadIdx.x) % warp_threads) {
      // After the last row comes the last row: what lies there must be readable.
      std::int64_t const row = min(std::int64_t{this->tile_} * this->tile_rows_ + own_row_, this->last_);
      key = this->rows_.offset(row, key_channels_);
      if constexpr (!P::latent) {
        value = value_channels_ == key_channels_ ? key : this->rows_.offset(row, value_channels_);
      }
    }
    key = __shfl_sync(~0U, key, leader_);
    copy_row<P::row_lanes / lanes>(to_ + stage, keys_ + key, key_pieces_);
    if constexpr (!P::latent) {
      value = __shfl_sync(~0U, value, leader_);
      copy_row<max_wide_values / 8 / lanes>(to_ + stage + value_offset_, values_ + value, value_pieces_);
    }
  }
  /// @param pieces  of the lane, every eighth of a row's
  template <int Most>
  static __device__ void copy_row(std::uint32_t to, typename P::Element const* from, std::int32_t pieces) {
    if (pieces == Most) {
      unrolled<Most>([&]<int I>() { copy_async<I * lanes * 16, I * lanes * 16>(to, from); });
    } else {
      unrolled<Most>([&]<int I>() { copy_async_if<I * lanes * 16, I>(pieces, to, from); });
    }
  }

  typename P::Element const* keys_;
  typename P::Element const* values_ = nullptr;
  std::int32_t own_row_;  ///< of a tile, which the lane copies
  std::int32_t leader_;   ///< the lane that finds it
  std::int32_t key_channels_;
  std::int32_t value_channels_ = 0;
  std::int32_t key_pieces_;
  std::int32_t value_pieces_ = 0;
  std::uint32_t to_;  ///< shared, in the first stage
  std::uint32_t note_;
  std::uint32_t value_offset_ = 0;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
