#pragma once

#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/global_pointer.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

template <class P>
__device__ MmaMask mma_mask(P const& p, MmaJob const& job) {
  MmaMask mask;
  if constexpr (has_positions<typename P::View>) {
    if (p.first_positions != nullptr) {
      mask.masked = true;
      mask.first_position = global_pointer(p.first_positions)[job.sequence];
      mask.first = mask.first_position + job.first_query / p.shape.group();
      mask.last = mask.first_position + (job.first_query + job.query_count - 1) / p.shape.group();
    }
  }
  return mask;
}

/// The tiles of a segment's rows that a warp has copied, in groups, and those that it copies next: every so many-th of
/// the block's, or, of a block that works on each tile together, all.
template <class P, class Rows>
class MmaTiles {
 public:
  /// @param tile, end  the warp's first tile, and the end of the block's; @param stages  tiles that are under way
  __device__ MmaTiles(P const& p, Rows const& rows, MmaMask const& mask, std::int32_t tile, std::int32_t end,
                      std::int32_t stages)
      : rows_(rows),
        mask_(mask),
        masked_(mask.masked),
        window_(p.window),
        tile_(tile),
        end_(end),
        warps_(P::wide    ? 1
               : P::chunk ? max_mma_warps
                          : static_cast<std::int32_t>(blockDim.x) / warp_threads),
        stages_(stages) {
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
    if constexpr (P::wide) tile_rows_ = p.tile_rows;
    row_ = std::int64_t{tile} * tile_rows_ + lane % tile_rows_;
    last_ = rows.rows() - 1;
    if constexpr (P::chunk) return;
    hold(stages_);
    if constexpr (!P::wide) hold(warps_);
  }

  /// Waits for the oldest tile. @return false: there are no more
  __device__ bool wait() {
    if (pending_ == 0) return false;
    --pending_;
    wait_for<P::least_stages, P::most_stages>();
    __syncwarp();
    return true;
  }

 protected:
  /// Starts to copy the next tile that a query sees by `copy`, and closes the group of copies. @return whether there is
  template <class Copy>
  __device__ bool fetch_by(Copy const& copy) {
    bool const found = find();
    if (found) {
      copy();
      move_on();
      ++pending_;
    }
    commit_copies();
    return found;
  }

  Rows const& rows_;
  MmaMask const& mask_;
  bool masked_;
  std::int64_t const& window_;
  std::int32_t tile_;
  std::int32_t end_;
  std::int32_t warps_;
  std::int32_t stages_;
  std::int32_t tile_rows_ = mma_rows;
  std::int64_t row_;   ///< the lane's; of the upper lanes the lower ones'
  std::int64_t last_;  ///< of the segment
  std::int64_t position_ = no_position;

 private:
  __device__ void move_on() {
    tile_ += warps_;
    row_ += warps_ * tile_rows_;
  }
  /// Moves on to the next tile of which the block's queries see a row, and finds its positions.
  __device__ bool find() {
    if constexpr (has_positions<typename P::View>) {
      if (masked_) {
        for (; tile_ < end_; move_on()) {
          position_ = row_ <= last_ ? rows_.position(row_) : no_position;
          if (__any_sync(~0U, is_seen_by_any(rows_, position_, mask_.first, mask_.last, window_))) return true;
        }
      }
    }
    return tile_ < end_;
  }
  /// Waits for the oldest of `stages_` groups, which are from `Least` to `Most`.
  template <int Least, int Most>
  __device__ void wait_for() {
    if constexpr (Least == Most) {
      wait_copies<Most - 1>();
    } else {
      constexpr int middle = (Least + Most) / 2;
      if (stages_ <= middle) return wait_for<Least, middle>();
      wait_for<middle + 1, Most>();
    }
  }

  std::int32_t pending_ = 0;  ///< tiles that are under way or there
};

/// A warp's ring of tiles in shared memory. A stage of it: [2, 16 rows, pitch] keys and values. The last 16 bytes of a
/// value's row hold the addresses of both rows, those of a key's its position.
template <class P, class Rows>
class MmaRing : public MmaTiles<P, Rows> {
  using Tiles = MmaTiles<P, Rows>;

 public:
  static constexpr std::int32_t info = P::pitch - 16;  ///< bytes of a row before what is said of it

  /// @param tile, end  as `MmaTiles`; @param memory  the warp's
  __device__ MmaRing(P const& p, Rows const& rows, MmaMask const& mask, unsigned char* memory, std::int32_t tile,
                     std::int32_t end)
      : Tiles(p, rows, mask, tile, end, p.stages) {
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
    keys_ = p.cache.keys;
    values_ = p.cache.values;
    key_channels_ = static_cast<std::int32_t>(p.shape.head_dim);
    value_channels_ = static_cast<std::int32_t>(p.shape.output_dim());
    column_ = lane % P::row_lanes * 16;
    std::int32_t const channel = column_ / 2;
    copies_ = (channel < key_channels_ ? 1 : 0) + (channel < value_channels_ ? 2 : 0);
    std::uint32_t const base = shared_address(memory);
    std::uint32_t const row = static_cast<std::uint32_t>(P::value_offset + lane * P::pitch + info);
    own_ = lane < mma_rows ? base + row : 0;
    first_ = base + static_cast<std::uint32_t>(lane / P::row_lanes * P::pitch);
    hold(keys_);
    hold(values_);
    hold(key_channels_);
    hold(value_channels_);
    hold(copies_);
    hold(column_);
    hold(own_);
    hold(first_);
  }

  [[nodiscard]] static __device__ constexpr std::uint32_t stage_bytes() { return P::stage_bytes; }
  [[nodiscard]] __device__ std::uint32_t bytes() const {
    return static_cast<std::uint32_t>(this->stages_ * P::stage_bytes);
  }
  /// Starts to copy the next tile. @param stage  bytes of the ring before it
  __device__ void fetch(std::uint32_t stage) {
    this->fetch_by([&] { copy(stage); });
  }

 protected:
  __device__ void copy(std::uint32_t stage) {
    constexpr int at_once = warp_threads / P::row_lanes * P::pitch;
    constexpr int times = mma_rows * P::pitch / at_once;
    if (own_ != 0) {
      // After the last row comes the last row: what lies there must be readable.
      std::int64_t const row = min(this->row_, this->last_);
      std::int64_t const key = this->rows_.offset(row, key_channels_);
      std::int64_t const value = value_channels_ == key_channels_ ? key : this->rows_.offset(row, value_channels_);
      auto const* keys = keys_ + key;
      auto const* values = values_ + value;
      if constexpr (has_new_rows<Rows>) {
        std::int64_t const at = this->rows_.position(row);
        this->rows_.redirect(at, keys, values);
        this->position_ = this->row_ <= this->last_ ? at : no_position;
      }
      store_shared_pointers(own_ + stage, keys, values);
      if (this->masked_ || has_new_rows<Rows>) store_shared_number(own_ + stage - P::value_offset, this->position_);
    }
    __syncwarp();
    std::uint32_t const first = first_ + stage;
    std::uint32_t const to = first + static_cast<std::uint32_t>(column_);
    auto const copy_rows = [&]<bool Keys, bool Values>() {
      unrolled<times>([&]<int I>() {
        constexpr int at = I * at_once;
        PointerPair const from = load_shared_pointers<P::value_offset + at + info>(first);
        if constexpr (Keys) copy_async<at>(to, from.first + column_);
        if constexpr (Values) copy_async<P::value_offset + at>(to, from.second + column_);
      });
    };
    if (copies_ == 3) {
      copy_rows.template operator()<true, true>();
    } else if (copies_ == 1) {
      copy_rows.template operator()<true, false>();
    } else if (copies_ == 2) {
      copy_rows.template operator()<false, true>();
    }
  }

 private:
  typename P::Element const* keys_;
  typename P::Element const* values_;
  std::int32_t key_channels_;
  std::int32_t value_channels_;
  std::int32_t column_;  ///< bytes
  std::int32_t copies_;  ///< bits: 1 keys, 2 values

 protected:
  std::uint32_t own_;  ///< shared, where the row's addresses belong; 0: it is another lane's row

 private:
  std::uint32_t first_;  ///< shared, the first row that the lane copies
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
