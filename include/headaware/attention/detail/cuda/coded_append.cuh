#pragma once

// New tokens on their way through attention into a cache of encoded rows. A block that attends to some encodes them
// before it copies its first rows, when registers are free: into the cache, if the job is the first of its segment, and
// else to memory of its own, so that no block waits for another.

#include <headaware/attention/detail/cuda/appended_view.cuh>
#include <headaware/attention/detail/cuda/coded_segment.cuh>
#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/cache/pack_plan.hpp>
#include <headaware/config.hpp>
#include <headaware/format/encode_block.cuh>
#include <headaware/format/table.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Finds where a job's new rows go. By one thread
template <class P, class Rows>
__device__ void find_new_rows(P const& p, MmaJob const& job, Rows const& rows, SegmentCodes& codes) {
  CodedRollingLayer const& layer = p.cache.view.layer;
  bool const writes = job.first_query == 0;
  codes.first_new = writes ? INT32_MAX : static_cast<std::int32_t>(rows.tokens.kept_before(rows.length));
  codes.new_rows = layer.scratch + blockIdx.x * layer.block_units;
}

/// Encodes the new rows of a piece, by all threads: one has a block of channels at a time. Synchronises the block
template <class P>
__device__ void encode_new_rows(P const& p, MmaJob const& job, CodedSegmentRows<P> const& rows) {
  std::int64_t const begin = max(rows.tokens.kept_before(rows.length), std::int64_t{job.begin} * mma_rows);
  std::int64_t const end = min(rows.rows(), std::int64_t{job.end} * mma_rows);
  if (begin >= end) return;
  auto const& news = p.cache.view.news;
  BasicHeadFormats<typename P::Registry> const& formats =
      p.cache.segments[job.sequence * p.shape.num_kv_heads + job.kv_head].formats;
  std::int64_t const key_channels = p.shape.head_dim;
  std::int64_t const value_channels = p.shape.output_dim();
  std::int32_t const key_blocks = blocks_of(formats.key, key_channels);
  std::int32_t const blocks = key_blocks + blocks_of(formats.value, value_channels);
  RowUnit const* const cache = p.cache.rows + rows.codes->shift;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < (end - begin) * blocks;
       i += static_cast<std::int32_t>(blockDim.x)) {
    std::int64_t const row = begin + i / blocks;
    std::int32_t const index = i % blocks;
    std::int64_t const token = rows.position(row) - rows.length;
    std::uint32_t* const words = rows.place(cache, row, rows.codes->units)->words;
    bool const key = index < key_blocks;
    auto const* const from = key ? news.keys + news.key_layout.offset(rows.sequence, rows.kv_head, token, 0)
                                 : news.values + news.value_layout.offset(rows.sequence, rows.kv_head, token, 0);
    encode_block(
        key ? formats.key : formats.value, from, [](std::int64_t channel) { return channel; }, true,
        key ? key_channels : value_channels, key ? index : index - key_blocks,
        key ? words : words + rows.codes->key_words, StayInPlace{});
    if (index == blocks - 1) clear_row_end(formats, key_channels, value_channels, rows.codes->units, words);
  }
  // What other threads have written is copied past the first cache.
  __threadfence();
  __syncthreads();
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
