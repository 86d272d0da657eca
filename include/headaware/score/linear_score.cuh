#pragma once

/// @file
/// Scores of rows by a linear function of what a layer computes for their token anyway, on CUDA, in one launch.

#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/score/detail/check_rows.hpp>
#include <headaware/score/detail/cuda/linear_score_kernel.cuh>
#include <headaware/score/linear_score.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/score/score_features.hpp>

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Scores tokens by a linear function of their features per KV head, on the device: the CPU's `score_rows`, but
/// for the order of sums (within 4·10⁻⁷ of the sum of the terms' magnitudes).
/// @param rows      device pointers; float, float16, bfloat16, __half or __nv_bfloat16
/// @param weights   [num_kv_heads, features.count()], standardisation folded in; device
/// @param scores    what is written; device; must overlap no input
/// @param rotation  as on the CPU; its tables and positions are on the device
/// @param stream    enqueued here, not synchronised
/// @pre    tables of layouts and positions are right, which the host cannot see
/// @return cudaErrorInvalidValue where the CPU's `score_rows` throws, but for what tables and positions say; launch
///         errors
/// @note   Deterministic: a token's score does not depend on the tokens beside it. Graph-capturable: one launch, no
///         workspace; none where there is nothing to score
/// @par Cost  Rows are read once per four KV heads, weights once per four tokens
template <class Q, class QLayout, class T, class Layout, class Rotation = KeepPositions>
cudaError_t score_rows(ScoreFeatures const& features, ScoreBatch const& batch,
                       TokenRows<Q, QLayout, T, Layout> const& rows, float const* weights, RowScores const& scores,
                       cudaStream_t stream, Rotation const& rotation = {}) noexcept {
  using namespace detail;
  return guarded([&] {
    constexpr auto where = "score_rows";
    if (!check_scored_rows(features, batch, rows, rotation, where)) return;
    require_pointer(weights, "weights", where);
    require_aligned(weights, "weights", where);
    scores.validate(batch.num_sequences, features.num_kv_heads, batch.tokens, where);
    std::int64_t const blocks = (batch.num_sequences * batch.tokens + scored_tokens - 1) / scored_tokens;
    require(blocks <= max_blocks, "blocks", max_blocks_text, blocks, where);
    auto const tensor = []<class E, class L>(E const* data, L const& layout, std::int64_t channels) {
      return LinearScoreTensor<E, L>{data, layout, rows_contiguous(layout, channels)};
    };
    auto const queries = tensor(element_pointer(rows.queries), rows.query_layout, features.head_dim);
    auto const keys = tensor(element_pointer(rows.keys), keys_of(rows.layout), features.head_dim);
    auto const values = tensor(element_pointer(rows.values), values_of(rows.layout), features.value_dim);
    using Parameters =
        LinearScoreParameters<std::remove_const_t<decltype(queries)>, std::remove_const_t<decltype(keys)>,
                              std::remove_const_t<decltype(values)>, Rotation>;
    Parameters const parameters{features, batch, queries, keys, values, weights, scores, rotation};
    launch(where, linear_score_kernel<Parameters>, static_cast<unsigned>(blocks), linear_score_threads, 0, stream,
           parameters);
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
