#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/element.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/rounding_parameters.cuh>
#include <headaware/stats/detail/rounding_rows.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The largest of a warp's values, in all lanes.
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int lanes = warp_threads / 2; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(~0U, value, lanes));
  return value;
}
/// The sum of a warp's values, in all lanes.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lanes = warp_threads / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0U, value, lanes);
  return value;
}

/// @brief Sampled query rows of one head that a block works on: warp w has rows w, w + 4, …, alone; keys and values of
/// a tile are all warps'.
template <class E, class Parameters>
struct RoundingTile {
  static constexpr int warp_rows = rounding_warp_rows;

  __device__ RoundingTile(Parameters const& parameters, unsigned char* shared_memory,
                          ObserveTensors::Layer const& of_layer, ObserveTensors::Own const& own_of,
                          std::int32_t query_head)
      : p(parameters),
        memory(shared_memory),
        layer(of_layer),
        own(own_of),
        head(query_head),
        thread(static_cast<std::int32_t>(threadIdx.x)),
        warp(thread / warp_threads),
        lane(thread % warp_threads) {}

  template <class X = float>
  [[nodiscard]] __device__ X* at(std::int32_t offset) const {
    return reinterpret_cast<X*>(memory + offset);
  }
  [[nodiscard]] __device__ std::int32_t row_of(int i) const { return warp + i * observe_warps; }
  [[nodiscard]] __device__ std::int32_t query_of(std::int32_t row) const {
    return static_cast<std::int32_t>(sampled.first + (first + row) * sampled.step);
  }
  [[nodiscard]] __device__ std::int32_t oldest_of(std::int32_t query) const {
    return own.window > 0 ? max(0, query - own.window + 1) : 0;
  }
  [[nodiscard]] __device__ float* sums_of(std::int32_t index, std::int32_t row) const {
    return at(p.shared.sums) + (index * p.shared.rows + row) * p.shared.value_pitch;
  }
  [[nodiscard]] __device__ OnlineSoftmax<float>& state_of(std::int32_t state, std::int32_t row) const {
    return at<OnlineSoftmax<float>>(p.shared.states)[state * p.shared.rows + row];
  }
  [[nodiscard]] __device__ std::int32_t num_formats() const { return p.layout.formats; }

  /// Clears where rounded rows go: not every format has channels up to the pitch.
  __device__ void clear_rounded() const {
    for (std::int32_t i = thread; i < rounding_keys * p.shared.pitch; i += observe_threads)
      at(p.shared.rounded_keys)[i] = 0;
    for (std::int32_t i = thread; i < rounding_keys * p.shared.value_pitch; i += observe_threads)
      at(p.shared.value_errors)[i] = 0;
  }

  /// Moves on to a tile of a chunk. @return whether it has rows
  __device__ bool begin(std::int64_t chunk, std::int64_t tile) {
    std::int64_t const length = min(p.chunk_size, p.tokens - chunk * p.chunk_size);
    chunk_begin = p.first_token + chunk * p.chunk_size;
    sampled = SampledRows(length, p.first_query, p.query_stride, p.rounding_stride);
    first = tile * p.shared.rows;
    rows = static_cast<std::int32_t>(min(std::int64_t{p.shared.rows}, sampled.count - first));
    return rows > 0;
  }

  /// Loads queries and clears what sums up. Whole after the next barrier.
  __device__ void begin_rows() const {
    load_rows(static_cast<E const*>(layer.queries), p.query_layout, head,
              chunk_begin + sampled.first + first * sampled.step, sampled.step, rows, p.shared.rows, p.head_dim,
              p.shared.pitch, at(p.shared.queries));
    for (std::int32_t i = thread; i < (1 + 2 * num_formats()) * p.shared.rows * p.shared.value_pitch;
         i += observe_threads)
      at(p.shared.sums)[i] = 0;
    for (std::int32_t i = thread; i < (1 + num_formats()) * p.shared.rows; i += observe_threads)
      at<OnlineSoftmax<float>>(p.shared.states)[i] = {hidden_logit, 0};
    for (std::int32_t i = thread; i < p.shared.rows; i += observe_threads)
      at<std::int32_t>(p.shared.valid)[i] = i < rows ? 1 : 0;
  }

  /// Loads the keys from `key` on and their values; of those that no row sees, zeros.
  __device__ void load_keys(std::int32_t key) const {
    std::int32_t const count = min(rounding_keys, query_of(rows - 1) + 1 - key);
    load_rows(static_cast<E const*>(layer.keys), p.key_layout, head / p.group, chunk_begin + key, 1, count,
              rounding_keys, p.head_dim, p.shared.pitch, at(p.shared.keys));
    load_rows(static_cast<E const*>(layer.values), p.value_layout, head / p.group, chunk_begin + key, 1, count,
              rounding_keys, p.value_dim, p.shared.value_pitch, at(p.shared.values));
  }

  /// Writes keys as a format gives them back, and what it changes of values. Each thread has a block of channels.
  __device__ void round_rows(std::int32_t format_index) const {
    p.formats[format_index].visit([&]<class Format>(Format const& format) {
      constexpr std::int32_t group = Format::group;
      std::int32_t const key_blocks = (p.head_dim + group - 1) / group;
      std::int32_t const blocks = key_blocks + (p.latent ? 0 : (p.value_dim + group - 1) / group);
      for (std::int32_t i = thread; i < blocks * rounding_keys; i += observe_threads) {
        std::int32_t const row = i % rounding_keys;
        bool const key = i / rounding_keys < key_blocks;
        std::int32_t const channel = (i / rounding_keys - (key ? 0 : key_blocks)) * group;
        std::int32_t const pitch = key ? p.shared.pitch : p.shared.value_pitch;
        std::int32_t const offset = row * pitch + channel;
        float const* const from = at(key ? p.shared.keys : p.shared.values) + offset;
        float* const to = at(key ? p.shared.rounded_keys : p.shared.value_errors) + offset;
        float x[group];
        std::uint32_t words[Format::block_words];
#pragma unroll
        for (std::int32_t c = 0; c < group; ++c) x[c] = channel + c < pitch ? from[c] : 0.0F;
        if constexpr (Format::rotated) rotate_block<group>(x);
        format.encode(x, words);
        format.decode(words, x);
        if constexpr (Format::rotated) rotate_block<group>(x);
#pragma unroll
        for (std::int32_t c = 0; c < group; ++c) {
          if (channel + c < pitch) to[c] = bounded_channel(x[c]) - (key ? 0.0F : from[c]);
        }
      }
    });
  }

  /// Turns scores of this warp's rows with the keys from `key` on into weights, relative to the rows' largest so far.
  /// @param keys     [rounding_keys, pitch]
  /// @param weights  [rows, rounding_keys]
  /// @param factors  what rescales the rows' sums
  __device__ void weigh(float const* keys, std::int32_t state, std::int32_t key, float* weights,
                        float (&factors)[warp_rows]) const {
    float scores[warp_rows] = {};
    float const* const queries = at(p.shared.queries);
    float const* const k = keys + lane * p.shared.pitch;
    for (std::int32_t c = 0; c < p.head_dim; c += 4) {
      float4 const x = *reinterpret_cast<float4 const*>(k + c);
#pragma unroll
      for (int i = 0; i < warp_rows; ++i) {
        if (row_of(i) >= rows) continue;
        float4 const y = *reinterpret_cast<float4 const*>(queries + row_of(i) * p.shared.pitch + c);
        scores[i] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
      }
    }
#pragma unroll
    for (int i = 0; i < warp_rows; ++i) {
      std::int32_t const row = row_of(i);
      if (row >= rows) continue;
      std::int32_t const query = query_of(row);
      bool const visible = key + lane <= query && key + lane >= oldest_of(query);
      float score = scores[i] * p.scale;
      if (p.cap != 0) score = p.cap * tanhf(score);
      bool const wrong = __any_sync(~0U, visible && !isfinite(score));
      OnlineSoftmax<float> all = state_of(state, row);
      float const largest = fmaxf(all.max, warp_max(visible && isfinite(score) ? score : hidden_logit));
      float const weight = visible ? exp2f(score - largest) : 0;
      factors[i] = exp2f(all.max - largest);
      float const sum = all.sum * factors[i] + warp_sum(weight);
      __syncwarp();
      if (lane == 0) {
        state_of(state, row) = {largest, sum};
        if (wrong) at<std::int32_t>(p.shared.valid)[row] = 0;
      }
      weights[row * rounding_keys + lane] = weight;
    }
    __syncwarp();
  }

  /// Rescales sums of this warp's rows and adds weights · values.
  /// @param values  [rounding_keys, pitch]
  __device__ void add_values(float const* values, std::int32_t pitch, float const* weights, std::int32_t index,
                             float const (&factors)[warp_rows]) const {
    for (std::int32_t c = 2 * lane; c < p.value_dim; c += 2 * warp_threads) {
      float2 total[warp_rows] = {};
#pragma unroll
      for (int i = 0; i < warp_rows; ++i) {
        if (row_of(i) >= rows) continue;
        total[i] = *reinterpret_cast<float2 const*>(sums_of(index, row_of(i)) + c);
        total[i].x *= factors[i];
        total[i].y *= factors[i];
      }
      for (std::int32_t k = 0; k < rounding_keys; k += 4) {
        float2 value[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) value[j] = *reinterpret_cast<float2 const*>(values + (k + j) * pitch + c);
#pragma unroll
        for (int i = 0; i < warp_rows; ++i) {
          if (row_of(i) >= rows) continue;
          float4 const w = *reinterpret_cast<float4 const*>(weights + row_of(i) * rounding_keys + k);
          total[i].x += w.x * value[0].x + w.y * value[1].x + w.z * value[2].x + w.w * value[3].x;
          total[i].y += w.x * value[0].y + w.y * value[1].y + w.z * value[2].y + w.w * value[3].y;
        }
      }
#pragma unroll
      for (int i = 0; i < warp_rows; ++i) {
        if (row_of(i) < rows) *reinterpret_cast<float2*>(sums_of(index, row_of(i)) + c) = total[i];
      }
    }
  }

  Parameters const& p;
  unsigned char* memory;
  ObserveTensors::Layer layer;
  ObserveTensors::Own const& own;
  std::int32_t head;
  std::int32_t thread;
  std::int32_t warp;
  std::int32_t lane;
  std::int64_t chunk_begin = 0;
  SampledRows sampled;
  std::int64_t first = 0;  ///< sampled row
  std::int32_t rows = 0;   ///< of the tile

 private:
  /// Copies rows `from_row`, + step, … of a head as floats, channels and rows that are not there as zeros: a warp per
  /// row.
  template <class Layout>
  __device__ void load_rows(E const* from, Layout const& layout, std::int64_t of_head, std::int64_t from_row,
                            std::int64_t step, std::int32_t count, std::int32_t total, std::int32_t channels,
                            std::int32_t pitch, float* to) const {
    for (std::int32_t row = warp; row < total; row += observe_warps) {
      for (std::int32_t c = lane; c < pitch; c += warp_threads) {
        bool const exists = row < count && c < channels;
        to[row * pitch + c] =
            exists ? to_float(from[layout.offset(p.sequence, of_head, from_row + row * step, c)]) : 0.0F;
      }
    }
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
