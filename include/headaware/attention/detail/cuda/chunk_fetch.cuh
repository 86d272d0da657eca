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

/// A warp's tile in shared memory, which all warps work on, and what they must know of it. Beside a key's position lie
/// those of the job's tokens that see its row, where not all do.
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
      if (this->masked_) seen = sees(this->mask_.first) && sees(this->mask_.last);
    }
    if (__all_sync(~0U, seen)) return mma_rows;
    if constexpr (has_positions<typename P::View>) {
      if (this->masked_ && this->own_ != 0) note_range();
    }
    return static_cast<std::int32_t>(
        min(this->last_ + 1 - std::int64_t{this->tile_} * mma_rows, std::int64_t{mma_rows - 1}));
  }
  [[nodiscard]] __device__ bool sees(std::int64_t query) const {
    return is_seen(this->rows_, this->position_, query, this->window_);
  }
  /// Finds which of the job's tokens see the lane's row, and writes them beside the row's position: the first, and that
  /// after the last, counted from the job's first.
  __device__ void note_range() const {
    std::int64_t const first = this->mask_.first;
    std::int32_t begin = 0;
    std::int32_t end = 0;
    if (is_seen_by_any(this->rows_, this->position_, first, this->mask_.last, this->window_)) {
      std::int64_t from = this->position_;
      if constexpr (has_query_ranges<Rows>) from = this->rows_.queries_of(from).begin;
      begin = static_cast<std::int32_t>(max(from - first, std::int64_t{0}));
      std::int32_t seen = begin;
      for (end = static_cast<std::int32_t>(this->mask_.last - first) + 1; end - seen > 1;) {
        std::int32_t const middle = (seen + end) / 2;
        (sees(first + middle) ? seen : end) = middle;
      }
    }
    store_shared_number(this->own_ - P::value_offset + 8, std::int64_t{end} << 32 | begin);
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
