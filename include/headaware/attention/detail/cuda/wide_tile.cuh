#pragma once

// One tile of wide rows by all warps of a block: scores, weights, and sums.

#include <headaware/attention/detail/cuda/mma_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_tile.cuh>
#include <headaware/attention/detail/cuda/mma_weights.cuh>
#include <headaware/attention/detail/cuda/wide_parameters.cuh>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/logit_map.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Where a warp finds what it works on, the same for all tiles: shared addresses, of the ring those in its first stage.
template <class P>
struct WideTileSetup {
  std::uint32_t queries;  ///< at the warp's channels
  std::uint32_t keys;     ///< of the warp's 16 rows, at its channels
  std::uint32_t values;   ///< at the channels that the warp sums
  std::uint32_t weights;
  float2* scores;               ///< where the lane's partial scores belong
  float2 const* own_scores;     ///< of the warp's two queries and the lane's row
  std::uint16_t* own_weights;   ///< where those belong
  WideNote* own_note;           ///< of one of the two queries, by the first two lanes
  std::int32_t score_pitch;     ///< pairs
  std::int32_t group_pitch;     ///< of partial scores, pairs
  std::int32_t steps;           ///< of 16 channels that the warp multiplies
  std::int32_t value_channels;  ///< from the warp's first on
  std::int32_t tile_rows;

  /// @param memory  the block's
  __device__ WideTileSetup(P const& p, unsigned char* memory) {
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
    auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
    std::int32_t const groups = P::score_groups(p.tile_rows);
    std::int32_t const all_steps = static_cast<std::int32_t>(p.shape.head_dim) / 16;
    std::int32_t const most = (all_steps + groups - 1) / groups;
    std::int32_t const first = warp % groups * most;
    std::int32_t const first_row = warp / groups * mma_rows;
    unsigned char* const ring = memory + P::ring_offset(p.tile_rows);
    steps = max(0, min(most, all_steps - first));
    // [queries or channels, rows or channels] of weights and values lie as those of queries and keys.
    std::int32_t const row = lane % 8 + lane / 16 * 8;
    std::int32_t const column = lane / 8 % 2 * 16;
    queries = shared_address(memory + row * P::pitch + column + first * 32);
    keys = shared_address(ring + (first_row + lane % 16) * P::pitch + lane / 16 * 16 + first * 32);
    values = shared_address(ring + ((P::latent ? 0 : p.tile_rows) + row) * P::pitch + column) +
             static_cast<std::uint32_t>(warp * P::channel_tiles * 32);
    weights = shared_address(memory + P::weight_offset + row * P::weight_pitch + column);
    score_pitch = P::score_pitch(p.tile_rows);
    auto* const all = reinterpret_cast<float2*>(memory + P::score_offset);
    scores = all + (warp % groups * (P::queries / 2) + lane % 4) * score_pitch + first_row + lane / 4;
    own_scores = all + warp * score_pitch + lane;
    own_weights = reinterpret_cast<std::uint16_t*>(memory + P::weight_offset + 2 * warp * P::weight_pitch) + lane;
    own_note = reinterpret_cast<WideNote*>(memory + P::note_offset) + 2 * warp + lane;
    value_channels = static_cast<std::int32_t>(p.shape.output_dim()) - warp * P::channel_tiles * 16;
    group_pitch = P::queries / 2 * score_pitch;
    tile_rows = p.tile_rows;
    hold(queries);
    hold(keys);
    hold(values);
    hold(weights);
    hold(steps);
    hold(value_channels);
    hold(group_pitch);
    hold(tile_rows);
  }
};

/// Multiplies 16 rows of a tile by queries, over the warp's channels, for `weigh_wide_tile` to add up.
template <class P>
__device__ void score_wide_tile(WideTileSetup<P> const& setup, std::uint32_t stage) {
  float scores[P::query_tiles][4] = {};
  std::uint32_t const keys = setup.keys + stage;
  if (setup.steps == P::most_score_steps) {
    constexpr int pairs = P::most_score_steps / 2;
    float unused[4];
    unrolled<pairs>([&]<int I>() { score_step<P, I * 64, true>(scores, unused, keys, setup.queries); });
    if constexpr (P::most_score_steps % 2 != 0) {
      score_step<P, pairs * 64, false>(scores, unused, keys, setup.queries);
    }
  } else {
    score_keys<P, P::most_score_steps / 2>(scores, keys, setup.queries, setup.steps);
  }
#pragma unroll
  for (int n = 0; n < P::query_tiles; ++n) {
    float2* const to = setup.scores + n * 4 * setup.score_pitch;
    to[0] = {scores[n][0], scores[n][1]};
    to[8] = {scores[n][2], scores[n][3]};
  }
}

/// The softmaxes of a warp's two queries over a block's tiles, of which a lane has a row each. Weights as of `MmaSums`.
template <class P>
struct WideSoftmax {
  static_assert(P::queries == 2 * P::warps);
  using Sums = MmaSums<P>;

  float sums[2] = {};  ///< of the lane's rows
  float origins[2] = {hidden_logit, hidden_logit};
  float scales[2];
  std::int64_t positions[2];  ///< of the queries
  float inner;                ///< of the logit map
  float outer;
  bool masked;

  __device__ WideSoftmax(P const& p, MmaShared<P::queries> const& shared)
      : inner(p.map.inner), outer(p.map.outer), masked(shared.mask.masked) {
    auto const first = static_cast<std::int32_t>(threadIdx.x) / warp_threads * 2;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      scales[j] = shared.scales[first + j];
      positions[j] = shared.mask.first_position + shared.tokens[first + j];
    }
  }
  /// Adds up the lanes' weights, and hands each query's state over. By all lanes
  __device__ void finish(MmaShared<P::queries>& shared) {
    auto const thread = static_cast<std::int32_t>(threadIdx.x);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float const sum = sum_lanes(sums[j]);
      if (thread % warp_threads == 0) shared.states[0][thread / warp_threads * 2 + j] = {origins[j], sum};
    }
  }
  /// Moves the origins of queries with a logit that is too large. By all lanes. @param factors  of their sums
  __device__ void move_origins(float const (&logits)[2], float (&factors)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float largest = logits[j];
#pragma unroll
      for (int i = 1; i < warp_threads; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0U, largest, i));
      float const to = largest - origins[j] > Sums::most ? largest - Sums::head_room : origins[j];
      factors[j] = exp2_fast(origins[j] - to);
      origins[j] = to;
      sums[j] *= factors[j];
    }
  }
};

/// Turns the partial scores of a tile and the warp's two queries into weights.
/// @param tile  shared, the tile in the ring; @param count  rows that are there
/// @return whether some query has a note that says something (`WideNote`)
template <class P, class Rows>
__device__ bool weigh_wide_tile(P const& p, WideTileSetup<P> const& setup, WideSoftmax<P>& softmax, Rows const& rows,
                                unsigned char const* tile, std::int32_t count) {
  using E = typename P::Element;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  constexpr std::int32_t groups = P::score_groups(P::most_rows);
  bool const own = lane < setup.tile_rows;
  float logits[2] = {};
  float2 const* from = setup.own_scores;
  auto const add_groups = [&] {
#pragma unroll
    for (int i = 0; i < groups; ++i, from += setup.group_pitch) {
      logits[0] += from->x;
      logits[1] += from->y;
    }
  };
  if (own) {
    add_groups();
    if (setup.tile_rows == P::least_rows) add_groups();
  }
  auto const each = [](auto const& f) {
#pragma unroll
    for (int j = 0; j < 2; ++j) f(j);
  };
  each([&](int j) { logits[j] *= softmax.scales[j]; });
  if (softmax.inner != 0) each([&](int j) { logits[j] = tanhf(logits[j]) * softmax.outer; });
  each([&](int j) { logits[j] = __fmaf_rn(logits[j], 0.0F, logits[j]); });  // NaN where it is infinite
  bool const hiding = softmax.masked || count < warp_threads;
  bool hidden[2] = {};
  std::uint32_t hidden_rows[2] = {};
  if (hiding) {
    hidden[0] = hidden[1] = lane >= count;
    if constexpr (has_positions<typename P::View>) {
      if (softmax.masked) {
        std::int64_t const at = TilePositions{tile + P::pitch - 16, P::pitch}.of(lane & (setup.tile_rows - 1));
        each([&](int j) { hidden[j] = !own || !is_seen(rows, at, softmax.positions[j], p.window); });
      }
    }
    each([&](int j) {
      hidden_rows[j] = __ballot_sync(~0U, own && hidden[j]);
      logits[j] = hidden[j] ? hidden_logit : logits[j];
    });
  }
  float factors[2] = {1, 1};
  float weights[2] = {logits[0] - softmax.origins[0], logits[1] - softmax.origins[1]};
  bool const moves = __any_sync(~0U, fmaxf(weights[0], weights[1]) > MmaSums<P>::most) != 0;
  if (moves) {
    softmax.move_origins(logits, factors);
    each([&](int j) { weights[j] = logits[j] - softmax.origins[j]; });
  }
  each([&](int j) { weights[j] = exp2_fast(weights[j]); });
  if (hiding) each([&](int j) { weights[j] = hidden[j] ? 0 : weights[j]; });
  each([&](int j) { softmax.sums[j] += weights[j]; });
  std::uint16_t* const to = setup.own_weights;
#pragma unroll
  for (int part = 0; part < P::weight_parts; ++part) {
    std::uint32_t const pair = pack_pair<E>(weights[0], weights[1]);
    to[part * P::weight_bytes / 2] = static_cast<std::uint16_t>(pair);
    to[(part * P::weight_bytes + P::weight_pitch) / 2] = static_cast<std::uint16_t>(pair >> 16);
    float2 const rounded = unpack_pair<E>(pair);
    weights[0] -= rounded.x;
    weights[1] -= rounded.y;
  }
  if (lane < 2) {
    *setup.own_note = {lane == 0 ? factors[0] : factors[1], lane == 0 ? hidden_rows[0] : hidden_rows[1]};
  }
  return moves || (hidden_rows[0] | hidden_rows[1]) != 0;
}

/// Adds weights · values of a tile to a warp's sums. @param noted  some query has a note that says something;
/// @param hiding  perhaps that it does not see some row
template <class P>
__device__ void add_wide_tile(MmaSums<P>& sums, WideTileSetup<P> const& setup, std::uint32_t stage,
                              unsigned char const* memory, bool noted, bool hiding) {
  using E = typename P::Element;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const* const notes = reinterpret_cast<WideNote const*>(memory + P::note_offset);
  if (noted) {
#pragma unroll
    for (int n = 0; n < P::query_tiles; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) sums.rescale(n, j, notes[n * 8 + lane % 4 * 2 + j].factor);
    }
  }
#pragma unroll
  for (int step = 0; step < P::most_rows / mma_rows; ++step) {
    if (step * mma_rows >= setup.tile_rows) break;
    std::uint32_t weights[P::weight_parts][P::query_tiles][2];
#pragma unroll
    for (int part = 0; part < P::weight_parts; ++part) {
      std::uint32_t b[4];
      load_matrices(b, setup.weights + part * P::weight_bytes + step * mma_rows * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[part][i / 2][i % 2] = b[i];
    }
    std::uint32_t const values = setup.values + stage + step * mma_rows * P::pitch;
    if (noted && hiding) {
      std::uint32_t seen[P::query_tiles][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t const hidden = notes[i / 2 * 8 + lane / 4].hidden >> (step * mma_rows + i % 2 * 8 + lane % 4 * 2);
        std::uint32_t const low = (hidden & 1U) != 0 ? 0 : 0x0000ffffU;
        std::uint32_t const high = (hidden & 2U) != 0 ? 0 : 0xffff0000U;
        seen[i / 2][i % 2] = (low | high) & ones<E>;
      }
      add_seen_values(sums, weights, seen, values, setup.value_channels);
    } else {
      add_values(sums, weights, values, setup.value_channels);
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
