#pragma once

#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/cuda/attend_tile.cuh>
#include <headaware/attention/detail/cuda/coded_channels.cuh>
#include <headaware/attention/detail/cuda/coded_parameters.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/format/hadamard.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Encoded rows in shared memory.
struct CodedTile {
  unsigned char const* rows;
  std::int32_t pitch;  ///< bytes
  std::int32_t count;
  std::int32_t room;  ///< rows; floats between two queries' scores

  [[nodiscard]] __device__ std::uint32_t const* words(std::int32_t row) const {
    return reinterpret_cast<std::uint32_t const*>(rows + row * pitch);
  }
};

/// Multiplies blocks of `group` floats in shared memory by the Hadamard matrix, in the order of `rotate_block`.
/// Synchronises the block, before and after. @param count  floats, whole blocks
__device__ inline void rotate_shared(float* x, std::int32_t count, std::int32_t group) {
  float const norm = inverse_root(group);
  for (std::int32_t half = 1; half < group; half *= 2) {
    float const factor = 2 * half == group ? norm : 1.0F;
    __syncthreads();
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count / 2; i += attend_threads) {
      float* const pair = x + (i / half * 2 * half + i % half);
      float const a = pair[0];
      float const b = pair[half];
      pair[0] = (a + b) * factor;
      pair[half] = (a - b) * factor;
    }
  }
  __syncthreads();
}

/// Computes scores[q][key] of the block's queries and the tile's keys: a thread has a key and up to 8 queries at a
/// time.
template <int Queries, class Format>
__device__ void score_codes(Format const& format, CodedTensor const& keys, CodedTile const& tile, float const* queries,
                            std::int32_t query_pitch, float* scores) {
  using Channels = CodedChannels<Format>;
  constexpr int batch = Queries < 8 ? Queries : 8;
  std::int32_t const lanes = tile.room > 64 ? 128 : tile.room > 32 ? 64 : 32;
  auto const key = static_cast<std::int32_t>(threadIdx.x) % lanes;
  if (key >= tile.count) return;
  std::int32_t const step = attend_threads / lanes * batch;
#pragma unroll 1
  for (std::int32_t q = static_cast<std::int32_t>(threadIdx.x) / lanes * batch; q < Queries; q += step) {
    float sums[batch] = {};
    float const* query = queries + q * query_pitch;
#pragma unroll 1
    for (std::int32_t c = 0; c < keys.channels; c += Channels::ranged) {
      std::uint32_t const* const words = tile.words(key) + c / Channels::run * Channels::run_words;
      std::int32_t const first = c % Channels::run;
      std::int32_t const count = min(Channels::ranged, keys.channels - c);
      auto const range = Channels::range(words, first);
#pragma unroll 4
      for (std::int32_t w = 0; w < count; w += 4, query += 4) {
        float x[4];
        Channels::read(format, range, words, first + w, keys.coded - c + first, x);
#pragma unroll
        for (int j = 0; j < batch; ++j) {
          float4 const y = *reinterpret_cast<float4 const*>(query + j * query_pitch);
          sums[j] += y.x * x[0] + y.y * x[1] + y.z * x[2] + y.w * x[3];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < batch; ++j) scores[(q + j) * tile.room + key] = sums[j];
  }
}

/// Adds the tile's weighted values to a thread's sums: four channels, of every `groups`-th two rows.
/// @param scores  weights by now
template <int Queries, class Format>
__device__ void add_codes(Format const& format, CodedTensor const& values, std::int32_t first_word,
                          CodedTile const& tile, bool masked, float const* factors, float const* scores,
                          std::int32_t column, std::int32_t group, std::int32_t groups, float (&sums)[Queries][4]) {
  using Channels = CodedChannels<Format>;
  std::int32_t const c = 4 * column;
  std::int32_t const within = c % Channels::run;
  std::int32_t const skipped = first_word + c / Channels::run * Channels::run_words;
  std::int32_t const coded = values.coded - c + within;
#pragma unroll
  for (int q = 0; q < Queries; ++q) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[q][i] *= factors[q];
  }
#pragma unroll 1
  for (std::int32_t row = group * 2; row < tile.count; row += groups * 2) {
    float x[2][4];
    float zero = 0;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      // Beyond the last row it is the last again, and weighs nothing.
      std::uint32_t const* const words = tile.words(min(row + k, tile.count - 1)) + skipped;
      Channels::read(format, Channels::range(words, within), words, within, coded, x[k]);
#pragma unroll
      for (int i = 0; i < 4; ++i) zero += x[k][i] * 0;
    }
    if (masked && zero != 0) {  // NaN: some value is no number
#pragma unroll
      for (int q = 0; q < Queries; ++q) {
        float2 const weight = *reinterpret_cast<float2 const*>(scores + q * tile.room + row);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[q][i] += weighed(weight.x, x[0][i]) + weighed(weight.y, x[1][i]);
      }
      continue;
    }
#pragma unroll
    for (int q = 0; q < Queries; ++q) {
      float2 const weight = *reinterpret_cast<float2 const*>(scores + q * tile.room + row);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[q][i] += weight.x * x[0][i] + weight.y * x[1][i];
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
