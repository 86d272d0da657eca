#pragma once

#include <headaware/attention/detail/cuda/chunk_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_fetch.cuh>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A warp's tile in shared memory, which all warps work on, and what they must know of it.
template <class P, class Rows>
class ChunkRing : public MmaRing<P, Rows> {
 public:
  using MmaRing<P, Rows>::MmaRing;

  /// Starts to copy the warp's next tile. @param slot  shared, what becomes known of it
  __device__ void fetch(std::int32_t& slot) {
    std::int32_t held = none_held;
    this->fetch_by([&] {
      this->copy(0);
      held = seen_rows();
    });
    if (threadIdx.x % warp_threads == 0) slot = held;
  }

 private:
  [[nodiscard]] __device__ std::int32_t seen_rows() const {
    bool seen = this->row_ <= this->last_;
    if constexpr (has_positions<typename P::View>) {
      // The queries that see a row follow each other.
      if (this->masked_) {
        seen = is_seen(this->rows_, this->position_, this->mask_.first, this->window_) &&
               is_seen(this->rows_, this->position_, this->mask_.last, this->window_);
      }
    }
    if (__all_sync(~0U, seen)) return mma_rows;
    return static_cast<std::int32_t>(
        min(this->last_ + 1 - std::int64_t{this->tile_} * mma_rows, std::int64_t{mma_rows - 1}));
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
