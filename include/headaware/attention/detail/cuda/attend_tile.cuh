#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/detail/cuda/warp_reduce.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

// One tile of cache rows: load, score, weigh, add up values.

/// Copies rows into shared memory `Vector` by `Vector`, four loads under way before the first store.
template <int Threads, class Vector, class T>
__device__ void copy_to_shared(T const* data, std::int64_t const* offsets, std::int32_t rows, std::int32_t channels,
                               unsigned char* to, std::int32_t pitch) {
  constexpr std::int32_t unroll = 4;
  constexpr std::int32_t width = sizeof(Vector) / sizeof(T);
  RowCursor at(channels / width, Threads);
  while (at.row < rows) {
    Vector vectors[unroll];
    std::int32_t targets[unroll];
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      targets[u] = -1;
      if (at.row < rows) {
        vectors[u] = *reinterpret_cast<Vector const*>(data + offsets[at.row] + at.column * width);
        targets[u] = at.row * pitch + at.column * static_cast<std::int32_t>(sizeof(Vector));
      }
      at.advance();
    }
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      if (targets[u] >= 0) *reinterpret_cast<Vector*>(to + targets[u]) = vectors[u];
    }
  }
}

/// Copies `rows` rows into shared memory. Plain loads: `cp.async` would spare registers, but not memory.
template <int Threads, class T>
__device__ void load_rows(T const* data, std::int64_t const* offsets, std::int32_t rows, std::int32_t channels,
                          bool wide, unsigned char* to, std::int32_t pitch) {
  if (wide) {
    copy_to_shared<Threads, uint4>(data, offsets, rows, channels, to, pitch);
  } else {
    copy_to_shared<Threads, T>(data, offsets, rows, channels, to, pitch);
  }
}

/// Zeroes the rows after the last, up to a multiple of four: rows are weighed four at a time.
template <int Threads>
__device__ void clear_rows(std::int32_t rows, unsigned char* to, std::int32_t pitch) {
  std::int32_t const pads = (rows + 3) / 4 * 4 - rows;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < pads * pitch / 4; i += Threads) {
    reinterpret_cast<std::uint32_t*>(to + rows * pitch)[i] = 0;
  }
}

/// Computes scores[q][key] of the block's queries and the tile's keys: a thread has a key and up to 4 queries at a
/// time.
template <int Queries, class T, class Parameters>
__device__ void score_tile(Parameters const& p, float const* queries, unsigned char const* keys, float* scores) {
  constexpr int batch = Queries < 4 ? Queries : 4;
  constexpr int width = 16 / sizeof(T);
  std::int32_t const rows = p.memory.tile_rows;
  auto const key = static_cast<std::int32_t>(threadIdx.x) % rows;
  std::int32_t const groups = attend_block_threads<Queries, Parameters> / rows;
  unsigned char const* const row = keys + key * p.memory.key_pitch;
  for (std::int32_t q = static_cast<std::int32_t>(threadIdx.x) / rows * batch; q < Queries; q += groups * batch) {
    float sums[batch] = {};
#pragma unroll 2
    for (std::int32_t c = 0; c < p.memory.query_pitch; c += width) {
      auto const piece = *reinterpret_cast<Pack<T, width> const*>(row + c * static_cast<std::int32_t>(sizeof(T)));
      float values[width];
#pragma unroll
      for (int i = 0; i < width; ++i) values[i] = element_value(piece.elements[i]);
#pragma unroll
      for (int j = 0; j < batch; ++j) {
        float const* const query = queries + (q + j) * p.memory.query_pitch + c;
#pragma unroll
        for (int i = 0; i < width; i += 4) {
          float4 const x = *reinterpret_cast<float4 const*>(query + i);
          sums[j] += x.x * values[i] + x.y * values[i + 1] + x.z * values[i + 2] + x.w * values[i + 3];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < batch; ++j) scores[(q + j) * rows + key] = sums[j];
  }
}

struct LargerOrNan {
  __device__ float operator()(float a, float b) const { return larger_or_nan(a, b); }
};

/// Weight of hidden rows, told apart from rows that are seen and weigh next to nothing.
inline constexpr float hidden_weight = -0.0F;
/// weight · value; 0 for a hidden row, which may hold anything: a slot never written, or a token yet to come.
__device__ inline float weighed(float weight, float value) {
  return __float_as_uint(weight) == 0x80000000U ? 0.0F : weight * value;
}

/// Turns scores into weights and adds them to each query's softmax; a warp has a query at a time.
/// @param positions  of the tile's rows, where there are masks @param tile_rows  floats between two queries' scores
template <int Queries, int MaxRows, class Parameters, class Segment>
__device__ void weigh_tile(Parameters const& p, AttendSoftmaxes<Queries>& softmaxes, std::int64_t const* positions,
                           Segment const& segment, std::int64_t first_query, std::int64_t first_position,
                           std::int32_t rows, std::int32_t tile_rows, float* scores) {
  constexpr float hidden = hidden_logit;
  constexpr int per_lane = MaxRows / warp_threads;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
  for (std::int32_t q = warp; q < Queries; q += attend_block_threads<Queries, Parameters> / warp_threads) {
    std::int64_t const query = first_position + (first_query + q) / p.shape.group();
    float logits[per_lane];
    float tile_max = hidden;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      std::int32_t const key = lane + i * warp_threads;
      logits[i] = hidden;
      if (key < rows && (p.first_positions == nullptr || is_seen(segment, positions[key], query, p.window))) {
        float const x = scores[q * tile_rows + key];
        float const logit = p.map.inner == 0 ? x * p.map.outer : tanhf(x * p.map.inner) * p.map.outer;
        logits[i] = logit + (logit - logit);  // NaN where it is infinite
      }
      tile_max = larger_or_nan(tile_max, logits[i]);
    }
    tile_max = __shfl_sync(0xffffffffU, reduce_lanes(tile_max, LargerOrNan{}), 0);
    OnlineSoftmax<float> softmax = softmaxes.softmax(q);
    bool const none = tile_max == hidden;  // the query sees nothing of the tile
    float const max = none ? softmax.max : larger_or_nan(softmax.max, tile_max);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      std::int32_t const key = lane + i * warp_threads;
      float const weight = logits[i] == hidden ? hidden_weight : exp2f(logits[i] - max);
      sum += weight;
      if (key < tile_rows) scores[q * tile_rows + key] = weight;
    }
    __syncwarp();
    sum = sum_lanes(sum);
    if (lane == 0) {
      softmaxes.factor[q] = none ? 1.0F : softmax.rescale(max);
      softmax.sum += sum;
      softmaxes.set_softmax(q, softmax);
    }
    __syncwarp();
  }
}

/// Adds the tile's weighted values to a thread's sums: `Width` channels, of every `groups`-th four rows.
/// @param factors  of the thread's queries; @param scores  theirs
template <class T, int Queries, int Width, class Parameters>
__device__ void add_values(Parameters const& p, float const* factors, std::int32_t column, std::int32_t group,
                           std::int32_t groups, std::int32_t rows, unsigned char const* values, float const* scores,
                           float (&sums)[Queries][Width]) {
#pragma unroll
  for (int q = 0; q < Queries; ++q) {
#pragma unroll
    for (int i = 0; i < Width; ++i) sums[q][i] *= factors[q];
  }
#pragma unroll 1
  for (std::int32_t row = group * 4; row < rows; row += groups * 4) {
    float x[4][Width];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      auto const value = reinterpret_cast<Pack<T, Width> const*>(values + (row + k) * p.memory.value_pitch)[column];
#pragma unroll
      for (int i = 0; i < Width; ++i) x[k][i] = element_value(value.elements[i]);
    }
    if (p.first_positions != nullptr) {
      float zero = 0;
#pragma unroll
      for (int k = 0; k < 4 * Width; ++k) zero += x[k / Width][k % Width] * 0;
      if (zero != 0) {  // NaN: some value is no number
#pragma unroll
        for (int q = 0; q < Queries; ++q) {
          float4 const weight = *reinterpret_cast<float4 const*>(scores + q * p.memory.tile_rows + row);
#pragma unroll
          for (int i = 0; i < Width; ++i) {
            sums[q][i] += weighed(weight.x, x[0][i]) + weighed(weight.y, x[1][i]) + weighed(weight.z, x[2][i]) +
                          weighed(weight.w, x[3][i]);
          }
        }
        continue;
      }
    }
#pragma unroll
    for (int q = 0; q < Queries; ++q) {
      float4 const weight = *reinterpret_cast<float4 const*>(scores + q * p.memory.tile_rows + row);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        sums[q][i] += weight.x * x[0][i] + weight.y * x[1][i] + weight.z * x[2][i] + weight.w * x[3][i];
      }
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
