#pragma once

/// @file
/// The CPU pass: attention statistics from queries and keys, blocked, without an S×S buffer.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/stats/detail/rounding_pass.hpp>
#include <headaware/stats/detail/rounding_rows.hpp>
#include <headaware/stats/detail/row_pass.hpp>
#include <headaware/stats/head_sums.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/rounding.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Adds the errors of formats of a chunk's sampled rows. @param heads  [num_query_heads]
template <class Layer>
void observe_rounding(Layer const& layer, AttentionScore const& score, ObserverParameters const& parameters,
                      std::vector<HeadChunk>& heads) {
  SampledRows const sampled(layer.tokens, parameters.first_query, parameters.query_stride, parameters.rounding_stride);
  std::int64_t const group = layer.num_query_heads / layer.num_kv_heads;
  std::int64_t const tile = RoundingPass::queries_at_once(group);
  std::int64_t const tiles = (sampled.count + tile - 1) / tile;
  std::int64_t const work = tiles * layer.num_kv_heads;
  // Threads and order as `observe_chunk`.
  constexpr std::int64_t batch = 256;
  std::vector<RoundingSums> const empty(static_cast<std::size_t>(group), RoundingSums(parameters.num_formats()));
  std::vector<std::vector<RoundingSums>> parts(static_cast<std::size_t>(std::min(work, batch)), empty);
  auto const make_pass = [&] { return RoundingPass(parameters, score, layer); };
  for (std::int64_t begin = 0; begin < work; begin += batch) {
    std::int64_t const count = std::min(batch, work - begin);
    parallel_for(count, 1, true, make_pass, [&](RoundingPass& pass, std::int64_t i) {
      std::int64_t const first = (tiles - 1 - (begin + i) / layer.num_kv_heads) * tile;
      pass.run(layer, static_cast<std::int32_t>((begin + i) % layer.num_kv_heads), sampled, first,
               std::min(tile, sampled.count - first), parts[static_cast<std::size_t>(i)].data());
    });
    for (std::int64_t i = 0; i < count; ++i) {
      std::vector<RoundingSums>& part = parts[static_cast<std::size_t>(i)];
      auto const first_head = static_cast<std::size_t>((begin + i) % layer.num_kv_heads * group);
      for (std::size_t h = 0; h < part.size(); ++h) heads[first_head + h].retention.rounding.merge(part[h]);
      part = empty;
    }
  }
}

HEADAWARE_TARGET_END
}  // namespace detail

HEADAWARE_TARGET_BEGIN

/// @brief The statistics of one chunk: all query heads of one layer of one sequence, on the CPU.
///
/// Where a query sees a window of keys, the softmax is over these alone, and so is what follows from it: a token
/// outside weighs nothing, be it a sink, and windows of the retention grid as long as that lose nothing; the uniformity
/// is against uniform attention to these. A head's learned sink is one more outcome of the softmax, of which entropy
/// and uniformity know, but it is no token: no other share holds its mass, but for `global`, which is the rest. What
/// a (sink, window) pair keeps is renormalised together with it, so its mass is never lost.
/// Errors of formats are those of every key and value that a row sees, decoded from its encoding; of a latent, whose
/// row is rounded once, they are all in the key's errors, and the value's are 0. What a format cannot hold, an infinity
/// or NaN, counts as 1e15. Of ready probabilities, which have no keys, no such rows are counted.
/// @param layer  a `LayerQkv` or `LayerProbabilities`, taken as one chunk whatever its length; its window and that of
///               the score are one, which either may leave out (0)
/// @param score  how the engine makes logits of queries and keys; probabilities need the default
/// @return [num_query_heads]
/// @throws ArgumentError on shapes that make no sense, and on missing or misaligned pointers
/// @note   Rows with a NaN or infinite score (errors of formats: also with rounded keys), that see a value (V) which is
/// NaN, infinite or beyond 1e15, or with
///         probabilities that do not sum to 1 within 1 %, are counted in `invalid_rows` and nowhere else.
///         Deterministic: threads share out tiles of a fixed size, which are merged in order.
/// @par Cost  num_query_heads · tokens² · head_dim / 2 multiplications, twice that with values and thrice with output
///            factors; with a window num_query_heads · tokens · window · head_dim; per format three multiplications for
///            every `rounding_stride`-th row; memory does not depend on `tokens`
template <class Layer>
[[nodiscard]] std::vector<HeadChunk> observe_chunk(Layer const& layer, AttentionScore const& score,
                                                   ObserverParameters const& parameters = {}) {
  constexpr auto where = "observe_chunk";
  parameters.validate();
  score.validate();
  detail::check_layer(layer, where);
  (void)detail::common_window(layer.window, score.sliding_window, where);
  if constexpr (detail::has_probabilities<Layer>) {
    bool const plain = score.scale == 0 && score.soft_cap == 0 && score.sliding_window == 0;
    require(plain, "score of probabilities", "the default", "a scale, a soft cap or a sliding window", where);
  }

  HeadChunk empty{ChunkSums(static_cast<std::size_t>(parameters.num_distances)), parameters.empty_sums()};
  std::int64_t const queries =
      layer.tokens <= parameters.first_query
          ? 0
          : (layer.tokens - parameters.first_query + parameters.query_stride - 1) / parameters.query_stride;
  std::int64_t const tile = detail::RowPass::max_rows;
  std::int64_t const tiles = (queries + tile - 1) / tile;
  std::int64_t const work = tiles * layer.num_query_heads;
  // Some tiles at a time, so that memory does not grow with the tokens; how many does not depend on the threads, so
  // that sums come out the same.
  constexpr std::int64_t batch = 256;
  std::vector<HeadChunk> parts(static_cast<std::size_t>(std::min(work, batch)), empty);
  std::vector<HeadChunk> result(static_cast<std::size_t>(layer.num_query_heads), empty);
  auto const make_pass = [&] { return detail::RowPass(parameters, score, layer); };
  for (std::int64_t begin = 0; begin < work; begin += batch) {
    std::int64_t const count = std::min(batch, work - begin);
    detail::parallel_for(count, 1, true, make_pass, [&](detail::RowPass& pass, std::int64_t i) {
      // The rows with most keys first, so that the last tile to finish is a short one.
      std::int64_t const first = (tiles - 1 - (begin + i) / layer.num_query_heads) * tile;
      auto const head = static_cast<std::int32_t>((begin + i) % layer.num_query_heads);
      pass.run(layer, head, parameters.first_query + first * parameters.query_stride, std::min(tile, queries - first),
               parts[static_cast<std::size_t>(i)]);
    });
    for (std::int64_t i = 0; i < count; ++i) {
      HeadChunk& part = parts[static_cast<std::size_t>(i)];
      HeadChunk& head = result[static_cast<std::size_t>((begin + i) % layer.num_query_heads)];
      head.chunk.merge(part.chunk);
      head.retention.merge(part.retention);
      part = empty;
    }
  }
  if constexpr (!detail::has_probabilities<Layer>) {
    if (parameters.num_formats() > 0 && layer.values != nullptr)
      detail::observe_rounding(layer, score, parameters, result);
  }
  return result;
}

HEADAWARE_TARGET_END
HEADAWARE_NAMESPACE_END
