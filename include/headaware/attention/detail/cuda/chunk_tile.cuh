#pragma once

// Two tiles of 16 rows of 16-bit elements and 16 query rows, by one warp. Fragments: lane l holds query rows l / 4 and
// l / 4 + 8, and of each 8 keys (or channels) 2 · (l % 4) and the next. Weights are the second product's operand as
// they are.

#include <headaware/attention/detail/cuda/chunk_parameters.cuh>
#include <headaware/attention/detail/cuda/mma_tile.cuh>
#include <headaware/attention/detail/cuda/mma_weights.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/element.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A warp's weighted values and weights, relative to origins as of `MmaSums`.
template <class P>
struct ChunkOutputs {
  static constexpr float most = 15;
  static constexpr float head_room = 8;

  float values[2 * P::channel_tiles][4] = {};       ///< of 8 channels each
  float weights[2] = {};                            ///< of the lane's keys; of all after `gather`
  float shift[2] = {-hidden_logit, -hidden_logit};  ///< minus the origins

  /// Adds up the lanes' weights. By all lanes
  __device__ void gather() {
#pragma unroll
    for (float& weight : weights) {
      weight += __shfl_xor_sync(~0U, weight, 1);
      weight += __shfl_xor_sync(~0U, weight, 2);
    }
  }
  /// Multiplies what row `j` of the lane's has by a factor.
  __device__ void rescale(int j, float by) {
    weights[j] *= by;
#pragma unroll
    for (auto& tile : values) {
      tile[2 * j] *= by;
      tile[2 * j + 1] *= by;
    }
  }
};

/// What is the same for all tiles of a warp.
template <class P>
struct ChunkSetup {
  std::uint32_t queries[P::channel_tiles][4];  ///< as the first product takes them
  std::uint32_t rows;  ///< shared address, of the first tile, where the lane's matrices of keys begin
  std::int32_t key_channels;
  std::int32_t value_channels;
  float scales[2];  ///< from products to logits; with a soft cap from capped ones: 1
  float inner;      ///< as of `MmaLogits`
  float outer;

  /// @param from  shared, the block's queries; @param rings  the warps' tiles
  __device__ ChunkSetup(P const& p, MmaShared<P::queries> const& shared, unsigned char const* from,
                        unsigned char const* rings)
      : key_channels(static_cast<std::int32_t>(p.shape.head_dim)),
        value_channels(static_cast<std::int32_t>(p.shape.output_dim())),
        inner(p.map.inner),
        outer(p.map.outer) {
    auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
    auto const first = static_cast<std::int32_t>(threadIdx.x) / warp_threads * 16;
    std::uint32_t const own = shared_address(from + (first + lane % 16) * P::pitch + lane / 16 * 16);
#pragma unroll
    for (int i = 0; i < P::channel_tiles; ++i) load_matrices(queries[i], own + i * 32);
    rows = shared_address(rings + lane % 16 * P::pitch + lane / 16 * 16);
    // A scale of 0 would make numbers of hidden logits.
#pragma unroll
    for (int j = 0; j < 2; ++j) scales[j] = inner != 0 ? 1 : fmaxf(shared.scales[first + lane / 4 + 8 * j], 1e-37F);
    hold(rows);
    hold(key_channels);
    hold(value_channels);
    hold(inner);
  }
};

/// Calls `f.operator()<I>()` for every 16 channels: up to 64, 96 or 128, so that few branches part the products.
template <class F>
__device__ void for_channels(std::int32_t channels, F const& f) {
  unrolled<4>(f);
  if (channels > 64) unrolled<2>([&]<int I>() { f.template operator()<I + 4>(); });
  if (channels > 96) unrolled<2>([&]<int I>() { f.template operator()<I + 6>(); });
}

/// Zeroes the channels of keys in shared memory that `for_channels` adds. By all threads
template <class P>
__device__ void clear_channels_after_keys(P const& p, unsigned char* rings) {
  auto const first = static_cast<std::int32_t>(p.shape.head_dim) / 8;
  std::int32_t const pieces = P::row_lanes - first;
  if (p.shape.head_dim == 64 || p.shape.head_dim == 96) return;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < max_mma_warps * mma_rows * pieces;
       i += static_cast<std::int32_t>(blockDim.x)) {
    std::int32_t const row = i / pieces;
    unsigned char* const at = rings + row / mma_rows * P::stage_bytes + row % mma_rows * P::pitch;
    *reinterpret_cast<uint4*>(at + (first + i % pieces) * 16) = {};
  }
}

/// scores[n] = queries · keys of the 8 keys n. @param stage  bytes before the tiles
template <class P>
__device__ void score_slots(float (&scores)[2 * chunk_slots][4], ChunkSetup<P> const& setup, std::uint32_t stage) {
  using E = typename P::Element;
  std::uint32_t const keys = setup.rows + stage;
  for_channels(setup.key_channels, [&]<int I>() {
    unrolled<chunk_slots>([&]<int S>() {
      std::uint32_t b[4];
      load_matrices<S * P::stage_bytes + I * 32>(b, keys);
      multiply_add<E>(scores[2 * S], setup.queries[I], b[0], b[2]);
      multiply_add<E>(scores[2 * S + 1], setup.queries[I], b[1], b[3]);
    });
  });
}

/// Which of the weights of a tile that a lane holds are of rows that their query does not see: bit 4n + i.
/// @param tile  shared; @param held  rows of it
template <class P>
__device__ std::uint32_t hidden_of_tile(MmaShared<P::queries> const& shared, unsigned char const* tile,
                                        std::int32_t held) {
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const first = static_cast<std::int32_t>(threadIdx.x) / warp_threads * 16 + lane / 4;
  if (held == none_held) return 0xff;
  std::int32_t const own = lane % 4 * 2;
  std::uint32_t hidden = 0;
  if (!shared.mask.masked) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (own + k / 2 * 8 + k % 2 >= held) hidden |= 5U << (k / 2 * 4 + k % 2);
    }
    return hidden;
  }
  std::int32_t tokens[2];  // counted from the job's first
#pragma unroll
  for (int j = 0; j < 2; ++j) tokens[j] = static_cast<std::int32_t>(shared.tokens[first + 8 * j] - shared.tokens[0]);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    std::int32_t const row = own + k / 2 * 8 + k % 2;
    auto const range = *reinterpret_cast<int2 const*>(tile + row * P::pitch + P::pitch - 8);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      bool const seen = tokens[j] >= range.x && tokens[j] < range.y;
      if (!seen) hidden |= 1U << (k / 2 * 4 + 2 * j + k % 2);
    }
  }
  return hidden;
}

/// Moves the origins of rows with a logit that is too large. By all lanes @param largest  products
template <class P>
__device__ void move_origins(ChunkOutputs<P>& sums, float const (&largest)[2], float const (&scales)[2]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float const logit = quad_max(largest[j]) * scales[j];
    float const origin = -sums.shift[j];
    float const to = logit - origin > ChunkOutputs<P>::most ? logit - ChunkOutputs<P>::head_room : origin;
    sums.shift[j] = -to;
    sums.rescale(j, exp2_fast(origin - to));
  }
}

/// Turns products into weights, and adds these up. @param hidden  of each tile
template <class P>
__device__ void weigh_scores(ChunkOutputs<P>& sums, MmaShared<P::queries> const& shared, ChunkSetup<P> const& setup,
                             std::uint32_t const (&hidden)[chunk_slots], bool hiding,
                             float (&scores)[2 * chunk_slots][4]) {
  auto const each = [](auto const& f) {
#pragma unroll
    for (int n = 0; n < 2 * chunk_slots; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(n, i);
    }
  };
  if (setup.inner != 0) {
    auto const* const scales = shared.scales + threadIdx.x / warp_threads * 16 + threadIdx.x % warp_threads / 4;
    each([&](int n, int i) { scores[n][i] = tanhf(scores[n][i] * scales[i / 2 * 8]) * setup.outer; });
  }
  each([&](int n, int i) { scores[n][i] = __fmaf_rn(scores[n][i], 0.0F, scores[n][i]); });  // NaN where it is infinite
  if (hiding) {
    each([&](int n, int i) {
      if ((hidden[n / 2] >> (n % 2 * 4 + i) & 1U) != 0) scores[n][i] = -INFINITY;
    });
  }
  float largest[2] = {-INFINITY, -INFINITY};
  each([&](int n, int i) { largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]); });
  bool far = false;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    far = far || __fmaf_rn(largest[j], setup.scales[j], sums.shift[j]) > ChunkOutputs<P>::most;
  }
  if (__any_sync(~0U, far)) move_origins(sums, largest, setup.scales);
  each([&](int n, int i) {
    scores[n][i] = exp2_fast(__fmaf_rn(scores[n][i], setup.scales[i / 2], sums.shift[i / 2]));
    sums.weights[i / 2] += scores[n][i];
  });
}

/// Rounds the weights of tile S to sums of elements. @param scores  the weights, and what is left of them
template <class P, int S>
__device__ void pack_weights(float (&scores)[2 * chunk_slots][4], std::uint32_t (&weights)[P::weight_parts][4]) {
  using E = typename P::Element;
#pragma unroll
  for (int part = 0; part < P::weight_parts; ++part) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& a = scores[2 * S + i / 2][i % 2 * 2];
      float& b = scores[2 * S + i / 2][i % 2 * 2 + 1];
      std::uint32_t const pair = pack_pair<E>(a, b);
      weights[part][i] = pair;
      if (part + 1 == P::weight_parts) continue;
      float2 const rounded = unpack_pair<E>(pair);
      a -= rounded.x;
      b -= rounded.y;
    }
  }
}

/// Adds weights · values of a tile. @param rows  shared address, `ChunkSetup::rows` of the step
template <class P, int S>
__device__ void add_tile_values(ChunkOutputs<P>& sums, std::uint32_t const (&weights)[P::weight_parts][4],
                                std::uint32_t rows, std::int32_t channels) {
  using E = typename P::Element;
  for_channels(channels, [&]<int I>() {  // after the last channel comes what no output shows
    std::uint32_t b[4];
    load_matrices_transposed<P::value_offset + S * P::stage_bytes + I * 32>(b, rows);
#pragma unroll
    for (auto const& part : weights) {
      multiply_add<E>(sums.values[2 * I], part, b[0], b[1]);
      multiply_add<E>(sums.values[2 * I + 1], part, b[2], b[3]);
    }
  });
}

/// Whether any of eight elements is no number, or infinite.
template <class E>
__device__ bool no_numbers_among(std::uint32_t const (&pairs)[4]) {
  constexpr std::uint32_t exponents = std::is_same_v<E, float16> ? 0x7c007c00U : 0x7f807f80U;
  constexpr std::uint32_t last = exponents & ~(exponents << 1);  // as of `no_number_mask`
  std::uint32_t carries = 0;
#pragma unroll
  for (std::uint32_t const pair : pairs) carries |= (pair & exponents) + last;
  return (carries & 0x80008000U) != 0;
}

/// The same where queries do not see some rows, whose values may be no numbers: as `multiply_seen`, where there are
/// any.
template <class P, int S>
__device__ void add_seen_tile_values(ChunkOutputs<P>& sums, std::uint32_t const (&weights)[P::weight_parts][4],
                                     std::uint32_t hidden, std::uint32_t rows, std::int32_t channels) {
  using E = typename P::Element;
  std::uint32_t seen[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    std::uint32_t const pair = hidden >> 2 * i;
    seen[i] = (((pair & 1U) != 0 ? 0 : 0x0000ffffU) | ((pair & 2U) != 0 ? 0 : 0xffff0000U)) & ones<E>;
  }
#pragma unroll
  for (int i = 0; i < P::channel_tiles; ++i) {
    if (i * 16 >= channels) break;
    std::uint32_t b[4];
    load_matrices_transposed<P::value_offset + S * P::stage_bytes>(b, rows + i * 32);
    if (__any_sync(~0U, no_numbers_among<E>(b))) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        std::uint32_t bad[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          std::uint32_t const no_numbers = no_number_mask<E>(b[2 * n + j]);
          b[2 * n + j] &= ~no_numbers;
          bad[j] = no_numbers & ones<E>;
        }
        float counts[4] = {};
        multiply_add<E>(counts, seen, bad[0], bad[1]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (counts[j] != 0) sums.values[2 * i + n][j] = NAN;
        }
      }
    }
#pragma unroll
    for (auto const& part : weights) {
      multiply_add<E>(sums.values[2 * i], part, b[0], b[1]);
      multiply_add<E>(sums.values[2 * i + 1], part, b[2], b[3]);
    }
  }
}

/// Adds the tiles of two warps to a warp's sums. @param first  the first of these warps; @param held  rows of the tiles
template <class P>
__device__ void add_slots(ChunkOutputs<P>& sums, MmaShared<P::queries> const& shared, ChunkSetup<P> const& setup,
                          unsigned char const* rings, std::int32_t first, std::int32_t const (&held)[chunk_slots]) {
  auto const stage = static_cast<std::uint32_t>(first * P::stage_bytes);
  float scores[2 * chunk_slots][4] = {};
  score_slots(scores, setup, stage);
  std::uint32_t hidden[chunk_slots] = {};
  bool hiding = false;
#pragma unroll
  for (int s = 0; s < chunk_slots; ++s) {
    if (held[s] == mma_rows) continue;
    hiding = true;
    hidden[s] = hidden_of_tile<P>(shared, rings + (first + s) * P::stage_bytes, held[s]);
  }
  weigh_scores(sums, shared, setup, hidden, hiding, scores);
  unrolled<chunk_slots>([&]<int S>() {
    constexpr std::uint32_t all = 0xff;
    std::uint32_t weights[P::weight_parts][4];
    pack_weights<P, S>(scores, weights);
    if (!hiding || !__any_sync(~0U, hidden[S] != 0)) {
      add_tile_values<P, S>(sums, weights, setup.rows + stage, setup.value_channels);
    } else if (!__all_sync(~0U, hidden[S] == all)) {
      add_seen_tile_values<P, S>(sums, weights, hidden[S], setup.rows + stage, setup.value_channels);
    }
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
