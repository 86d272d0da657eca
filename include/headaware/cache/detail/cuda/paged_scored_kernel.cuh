#pragma once

#include <headaware/cache/detail/cuda/rolling_kernels.cuh>
#include <headaware/cache/detail/cuda/scored_kernel.cuh>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Grid: x KV heads of all layers. @tparam Pages  `PagedHeadsView`
template <class Pages>
HEADAWARE_KERNEL void __launch_bounds__(scored_threads)
    copy_records_kernel(Pages const __grid_constant__ pages, RollingScoresView const __grid_constant__ records,
                        SequenceCopy const __grid_constant__ copy) {
  copy_scores(records, pages.heads[blockIdx.x].rolling(pages.slack), blockIdx.x, copy, 0);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
