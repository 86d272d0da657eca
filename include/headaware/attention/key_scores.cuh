#pragma once

/// @file
/// Scores of rows by the attention that they get, on CUDA. Nothing is allocated, copied from the host or synchronised,
/// and lengths are read on the device, so a call may be captured in a graph.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/check_key_scores.hpp>
#include <headaware/attention/detail/cuda/attend_launch.cuh>
#include <headaware/attention/detail/cuda/key_score_kernel.cuh>
#include <headaware/attention/detail/cuda/key_score_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/key_score_buffer.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel_limits.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Parts into which the first pass divides a KV head's rows: as many as fill a device where queries are few.
inline std::int64_t score_splits(AttentionShape const& shape, std::int64_t query_tiles, std::int64_t max_rows) {
  constexpr std::int64_t blocks = 1024;
  constexpr std::int64_t least_rows = 256;
  std::int64_t const items = shape.segments() * query_tiles;
  std::int64_t const wanted = (blocks + items - 1) / items;
  return std::max<std::int64_t>(1, std::min({wanted, max_score_splits, max_rows / least_rows}));
}

template <class Q, class QLayout, class Cache>
void score_elements(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                    AttentionQueries<Q, QLayout> const& queries, Cache const& cache, AttentionOptions const& options,
                    KeyScoreReduction reduction, KeyScores const& scores, cudaStream_t stream) {
  constexpr auto where = "score_keys";
  using P = KeyScoreParameters<Q, QLayout, Cache>;
  std::int64_t const query_tiles = (shape.query_rows() + held_tile_rows - 1) / held_tile_rows;
  std::int64_t const key_tiles = (scores.stride + held_tile_rows - 1) / held_tile_rows;
  std::int64_t const splits = score_splits(shape, query_tiles, scores.stride);
  OnlineSoftmax<float>* parts = nullptr;
  if (!place_buffers(d_temp, temp_bytes, where, TempBuffer{parts, splits * shape.segments() * shape.query_rows()})) {
    return;
  }
  for (std::int64_t const tiles : {query_tiles, key_tiles}) {
    require(tiles <= max_blocks / shape.segments(), "tiles", max_blocks_text, tiles * shape.segments(), where);
  }
  static KernelLimitsByDevice kept[2];
  KernelLimits const limits = kept[0].of(row_softmax_kernel<P>, where);
  KernelLimits const second = kept[1].of(key_score_kernel<P>, where);
  if (limits.ptx_version < 80) {
    throw CudaError(cudaErrorNotSupported,
                    {"compute capability of device and code", ">= 8.0", std::to_string(limits.ptx_version), where});
  }
  std::int32_t const room = std::min(limits.block_bytes, second.block_bytes);
  auto const memory = KeyScoreMemory::of<typename P::Tile>(shape.head_dim, P::moving, room);
  require(memory.stages > 0, "head_dim", {"rows of which shared memory holds ", held_tile_rows + P::moving},
          shape.head_dim, where);
  constexpr std::int64_t query_width = 16 / static_cast<std::int64_t>(sizeof(Q));
  bool const wide_queries = rows_contiguous(queries.layout, shape.head_dim) && shape.head_dim % query_width == 0 &&
                            channel_run(queries.layout) % query_width == 0 &&
                            reinterpret_cast<std::uintptr_t>(queries.data) % 16 == 0;
  P parameters{shape,
               queries,
               cache,
               options.first_positions,
               attention_window(options),
               options.sinks,
               logit_map(shape, options),
               scores,
               reduction,
               parts,
               splits,
               query_tiles,
               memory,
               wide_queries,
               wide_rows(cache.keys, cache.view, shape.head_dim)};
  dim3 const softmaxes(static_cast<unsigned>(shape.segments() * query_tiles), static_cast<unsigned>(splits));
  launch(where, row_softmax_kernel<P>, softmaxes, score_threads, memory.all_bytes, stream, parameters);
  parameters.tiles = key_tiles;
  launch(where, key_score_kernel<P>, static_cast<unsigned>(shape.segments() * key_tiles), score_threads,
         memory.all_bytes, stream, parameters);
}

}  // namespace detail

namespace device {

/// @brief Merges, into the score of every row, the attention probabilities that it gets from the queries of its KV
/// head's group; results as of the CPU's `score_keys`.
///
/// All pointers, those inside the view included, are on the device and read when the kernels run. That lengths and
/// tables name existing rows, and no KV head holds more than `scores.stride`, is a precondition.
/// @tparam Q, T  float, `__half` or `__nv_bfloat16`, or `float16` and `bfloat16`
/// @param[in]     d_temp      device, of any alignment and content; nullptr: size query
/// @param[in,out] temp_bytes  bytes; depends on `shape` and `scores.stride` alone, at most 128 per query row
/// @param[in]     queries     [sequences, num_query_heads, query_tokens, head_dim], by the layout
/// @param[in]     cache       `KeptCache`, whose values are not read and may be null, or `LatentCache`
/// @param[in]     options     as in `attend`; without `first_positions` every query sees every row (not causal)
/// @param[in]     reduction   the largest probability of a row, or the sum
/// @param[in,out] scores      merged into: zeros before the first call; must overlap no input
/// @param[in]     stream      enqueued here, not synchronised
/// @return cudaErrorInvalidValue on what the CPU's refuses, rows that shared memory has no room for (of 16 bits: more
///         than some 600 channels; less on devices of 100 KB), or too little storage; cudaErrorNotSupported before
///         compute capability 8.0; launch errors
/// @note   Deterministic. Graph-capturable, and a replay reads the lengths of its time.
/// @par Cost  Two launches: one passes over the rows held for every 64 query rows, the other over the query rows for
///            every 64 rows held, causal ones for those alone that see any; neither reads values. Queries and keys of
///            one type of 16 bits go through tensor cores, others are multiplied in float.
template <class Q, class QLayout, AttentionCache Cache>
cudaError_t score_keys(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape,
                       AttentionQueries<Q, QLayout> const& queries, Cache const& cache, AttentionOptions const& options,
                       KeyScoreReduction reduction, KeyScores const& scores, cudaStream_t stream) noexcept {
  static_assert(!detail::is_packed<Cache>, "headaware: rows are scored before they are encoded");
  return detail::guarded([&] {
    if (d_temp == nullptr) {
      detail::check_attention_shape(shape, options);
    } else if (detail::check_key_scores(shape, queries, cache, options, scores)) {
      detail::check_key_pointers(cache, scores.stride > 0);
    }
    if (shape.num_sequences == 0 || shape.query_tokens == 0 || scores.stride == 0) {
      if (d_temp == nullptr) temp_bytes = 0;
      return;
    }
    AttentionQueries const q{detail::element_pointer(queries.data), queries.layout};
    detail::score_elements(d_temp, temp_bytes, shape, q, detail::element_cache(cache), options, reduction, scores,
                           stream);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
