#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_split_kernel.cuh>
#include <headaware/attention/detail/softmax_part.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/segment_search.cuh>
#include <headaware/element.hpp>

#include <cub/warp/warp_reduce.cuh>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int32_t attend_threads = 128;
inline constexpr std::int32_t attend_warps = attend_threads / warp_threads;
/// Channels of a row, at most: a thread adds up two channels of a value.
inline constexpr std::int32_t max_attend_channels = 2 * attend_threads;
inline constexpr std::int32_t min_attend_rows = 8;
inline constexpr std::int32_t max_attend_rows = 64;
/// Blocks a multiprocessor must have room for: as many as leave registers enough not to spill.
constexpr std::int32_t attend_blocks(std::int32_t queries) { return queries > 8 ? 2 : 3; }

template <class E>
__device__ float element_value(E element) {
  return to_float(element);
}
__device__ inline float element_value(float16 element) { return __half2float(__ushort_as_half(element.bits)); }

/// How a block's shared memory is cut. The floats come first: they are aligned by being there.
struct AttendMemory {
  std::int32_t tile_rows;     ///< cache rows in shared memory at a time
  std::int32_t query_pitch;   ///< floats
  std::int32_t key_pitch;     ///< bytes; an odd number of 16-byte pieces, so that a warp's rows lie in all banks
  std::int32_t value_pitch;   ///< bytes
  std::int32_t score_offset;  ///< bytes
  std::int32_t key_offset;
  std::int32_t value_offset;
  std::int32_t bytes;

  /// The largest tiles that fit. @throws ArgumentError where not even the smallest do
  template <class T>
  static AttendMemory of(std::int64_t head_dim, std::int64_t value_dim, std::int32_t queries, std::int32_t most) {
    constexpr std::int32_t piece = 16;
    auto const pieces = [](std::int64_t channels) {
      return static_cast<std::int32_t>((channels * static_cast<std::int64_t>(sizeof(T)) + piece - 1) / piece);
    };
    AttendMemory m{};
    m.query_pitch = pieces(head_dim) * (piece / static_cast<std::int32_t>(sizeof(T)));
    m.key_pitch = (pieces(head_dim) | 1) * piece;
    m.value_pitch = pieces(value_dim) * piece;
    m.score_offset = queries * m.query_pitch * 4;
    for (m.tile_rows = max_attend_rows; m.tile_rows >= min_attend_rows; m.tile_rows /= 2) {
      m.key_offset = m.score_offset + queries * m.tile_rows * 4;
      m.value_offset = m.key_offset + m.tile_rows * m.key_pitch;
      // What threads add up goes over both in the end.
      std::int32_t const sums = m.key_offset + queries * max_attend_channels * 4;
      std::int32_t const end = m.value_offset + m.tile_rows * m.value_pitch;
      m.bytes = sums > end ? sums : end;
      if (m.bytes <= most) return m;
    }
    require(false, "shared memory in bytes", most, m.bytes, "attend");
    return m;
  }
};

template <class Q, class QLayout, class T, class View, class O, class OLayout>
struct AttendParameters {
  AttentionShape shape;
  AttentionQueries<Q, QLayout> queries;
  KeptCache<T, View> cache;
  AttentionOutput<O, OLayout> output;
  std::int32_t const* first_positions;
  LogitMap map;
  AttentionCut cut;
  AttendArrays arrays;
  AttendMemory memory;
  bool wide_keys;  ///< 16-byte loads; else element by element
  bool wide_values;
};

template <int Queries>
struct AttendShared {
  std::int64_t segment;
  std::int64_t chunk;
  std::int32_t last;
  std::int64_t key_offsets[max_attend_rows];
  std::int64_t value_offsets[max_attend_rows];
  std::int64_t positions[max_attend_rows];
  float max[Queries];
  float sum[Queries];
  float factor[Queries];
  typename cub::WarpReduce<float>::TempStorage reduce[attend_warps];
};

/// Dynamic shared memory of a block: what others leave of the 48 KiB that are to be had without asking the driver.
template <int Queries, class Parameters>
inline constexpr std::int32_t attend_dynamic_bytes =
    48 * 1024 - static_cast<std::int32_t>(sizeof(SharedStorage<AttendShared<Queries>>) +
                                          sizeof(SharedStorage<Parameters>) + 3 * alignof(float4));

struct LargerOrNan {
  __device__ float operator()(float a, float b) const { return larger_or_nan(a, b); }
};

/// Copies rows into shared memory `Vector` by `Vector`, four loads under way before the first store.
template <class Vector, class T>
__device__ void copy_to_shared(T const* data, std::int64_t const* offsets, std::int32_t rows, std::int32_t channels,
                               unsigned char* to, std::int32_t pitch) {
  constexpr std::int32_t unroll = 4;
  constexpr std::int32_t width = sizeof(Vector) / sizeof(T);
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  std::int32_t const per_row = channels / width;
  // Advancing by whole blocks keeps the division out of the loop.
  std::int32_t row = thread / per_row;
  std::int32_t column = thread % per_row;
  std::int32_t const row_step = attend_threads / per_row;
  std::int32_t const column_step = attend_threads % per_row;
  while (row < rows) {
    Vector vectors[unroll];
    std::int32_t targets[unroll];
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      targets[u] = -1;
      if (row < rows) {
        vectors[u] = *reinterpret_cast<Vector const*>(data + offsets[row] + column * width);
        targets[u] = row * pitch + column * static_cast<std::int32_t>(sizeof(Vector));
      }
      row += row_step;
      column += column_step;
      if (column >= per_row) {
        column -= per_row;
        ++row;
      }
    }
#pragma unroll
    for (std::int32_t u = 0; u < unroll; ++u) {
      if (targets[u] >= 0) *reinterpret_cast<Vector*>(to + targets[u]) = vectors[u];
    }
  }
}

/// Copies `rows` rows into shared memory. Plain loads: `cp.async` would spare registers, but not memory.
template <class T>
__device__ void load_rows(T const* data, std::int64_t const* offsets, std::int32_t rows, std::int32_t channels,
                          bool wide, unsigned char* to, std::int32_t pitch) {
  if (wide) {
    copy_to_shared<uint4>(data, offsets, rows, channels, to, pitch);
  } else {
    copy_to_shared<T>(data, offsets, rows, channels, to, pitch);
  }
}

/// Rows are weighed four at a time: those beyond the end weigh nothing, and must be numbers.
__device__ inline void clear_rows(std::int32_t rows, unsigned char* to, std::int32_t pitch) {
  std::int32_t const pads = (rows + 3) / 4 * 4 - rows;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < pads * pitch / 4; i += attend_threads) {
    reinterpret_cast<std::uint32_t*>(to + rows * pitch)[i] = 0;
  }
}

/// scores[q][key] of the block's queries and the tile's keys: a thread has a key and `Batch` queries at a time.
template <int Queries, class T, class Parameters>
__device__ void score_tile(Parameters const& p, float const* queries, unsigned char const* keys, float* scores) {
  constexpr int batch = Queries < 4 ? Queries : 4;
  constexpr int width = 16 / sizeof(T);
  std::int32_t const rows = p.memory.tile_rows;
  auto const key = static_cast<std::int32_t>(threadIdx.x) % rows;
  std::int32_t const groups = attend_threads / rows;
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

/// What hidden rows weigh, told apart from rows that are seen and weigh next to nothing.
inline constexpr float hidden_weight = -0.0F;
/// A hidden row may hold anything: a slot never written, or a token yet to come.
__device__ inline float weighed(float weight, float value) {
  return __float_as_uint(weight) == 0x80000000U ? 0.0F : weight * value;
}

/// Turns scores into weights and adds them to each query's softmax; a warp has a query at a time.
template <int Queries, class Parameters, class Segment>
__device__ void weigh_tile(Parameters const& p, AttendShared<Queries>& shared, Segment const& segment,
                           std::int64_t first_query, std::int64_t first_position, std::int32_t rows, float* scores) {
  constexpr float hidden = hidden_logit;
  constexpr int per_lane = max_attend_rows / warp_threads;
  auto const lane = static_cast<std::int32_t>(threadIdx.x) % warp_threads;
  auto const warp = static_cast<std::int32_t>(threadIdx.x) / warp_threads;
  using Reduce = cub::WarpReduce<float>;
  for (std::int32_t q = warp; q < Queries; q += attend_warps) {
    std::int64_t const query = first_position + (first_query + q) / p.shape.group();
    float logits[per_lane];
    float top = hidden;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      std::int32_t const key = lane + i * warp_threads;
      logits[i] = hidden;
      if (key < rows && (p.first_positions == nullptr || is_seen(segment, shared.positions[key], query))) {
        float const x = scores[q * p.memory.tile_rows + key];
        float const logit = p.map.inner == 0 ? x * p.map.outer : tanhf(x * p.map.inner) * p.map.outer;
        logits[i] = logit + (logit - logit);  // NaN where it is infinite
      }
      top = larger_or_nan(top, logits[i]);
    }
    top = __shfl_sync(0xffffffffU, Reduce(shared.reduce[warp]).Reduce(top, LargerOrNan{}), 0);
    SoftmaxPart const before{shared.max[q], shared.sum[q]};
    bool const none = top == hidden;  // the query sees nothing of the tile
    float const max = none ? before.max : larger_or_nan(before.max, top);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      std::int32_t const key = lane + i * warp_threads;
      float const weight = logits[i] == hidden ? hidden_weight : exp2f(logits[i] - max);
      sum += weight;
      if (key < p.memory.tile_rows) scores[q * p.memory.tile_rows + key] = weight;
    }
    __syncwarp();
    sum = Reduce(shared.reduce[warp]).Sum(sum);
    if (lane == 0) {
      float const factor = none ? 1.0F : before.weight(max);
      shared.factor[q] = factor;
      shared.max[q] = max;
      shared.sum[q] = before.sum * factor + sum;
    }
    __syncwarp();
  }
}

/// Adds the tile's weighted values to what a thread adds up: two channels, of every `groups`-th four rows.
template <int Queries, class T, class Parameters>
__device__ void add_values(Parameters const& p, AttendShared<Queries> const& shared, std::int32_t pair,
                           std::int32_t group, std::int32_t groups, std::int32_t rows, unsigned char const* values,
                           float const* scores, float (&sums)[Queries][2]) {
#pragma unroll
  for (int q = 0; q < Queries; ++q) {
    sums[q][0] *= shared.factor[q];
    sums[q][1] *= shared.factor[q];
  }
#pragma unroll 1
  for (std::int32_t row = group * 4; row < rows; row += groups * 4) {
    float x[4][2];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      auto const value = reinterpret_cast<Pack<T, 2> const*>(values + (row + k) * p.memory.value_pitch)[pair];
      x[k][0] = element_value(value.elements[0]);
      x[k][1] = element_value(value.elements[1]);
    }
    if (p.first_positions != nullptr) {
      float zero = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) zero += x[k][0] * 0 + x[k][1] * 0;
      if (zero != 0) {  // NaN: some value is no number
#pragma unroll
        for (int q = 0; q < Queries; ++q) {
          float4 const weight = *reinterpret_cast<float4 const*>(scores + q * p.memory.tile_rows + row);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
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
      for (int i = 0; i < 2; ++i) {
        sums[q][i] += weight.x * x[0][i] + weight.y * x[1][i] + weight.z * x[2][i] + weight.w * x[3][i];
      }
    }
  }
}

/// The last block of a segment's tile merges its chunks, in their order whichever came last.
/// @param weights  shared, [Queries, max_attend_channels]: of the first chunks, so that they are read once
template <int Queries, class Parameters>
__device__ void join_chunks(Parameters const& p, AttendShared<Queries>& shared, std::int64_t sequence,
                            std::int64_t kv_head, std::int64_t first_query, std::int32_t queries,
                            std::int64_t first_slot, std::int64_t chunks, float* weights) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  auto const lane = thread % warp_threads;
  auto const warp = thread / warp_threads;
  using Reduce = cub::WarpReduce<float>;
  auto const part = [&](std::int64_t chunk, std::int32_t q) {
    float2 const both = __ldcg(p.arrays.parts + (first_slot + chunk * p.cut.tiles) * Queries + q);
    return SoftmaxPart{both.x, both.y};
  };
  for (std::int32_t q = warp; q < queries; q += attend_warps) {
    float top = -INFINITY;
    for (std::int64_t chunk = lane; chunk < chunks; chunk += warp_threads) {
      SoftmaxPart const here = part(chunk, q);
      if (here.sum != 0) top = larger_or_nan(top, here.max);
    }
    top = __shfl_sync(0xffffffffU, Reduce(shared.reduce[warp]).Reduce(top, LargerOrNan{}), 0);
    float sum = 0;
    for (std::int64_t chunk = lane; chunk < chunks; chunk += warp_threads) {
      SoftmaxPart const here = part(chunk, q);
      float const weight = here.weight(top);
      sum += weight * here.sum;
      if (chunk < max_attend_channels) weights[q * max_attend_channels + chunk] = weight;
    }
    __syncwarp();
    sum = Reduce(shared.reduce[warp]).Sum(sum);
    if (lane == 0) {
      shared.max[q] = top;
      shared.sum[q] = sum;
    }
    __syncwarp();
  }
  __syncthreads();
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  for (std::int32_t i = thread; i < queries * channels; i += attend_threads) {
    std::int32_t const q = i / channels;
    std::int32_t const c = i % channels;
    SoftmaxPart const whole{shared.max[q], shared.sum[q]};
    float sum = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      std::int64_t const slot = first_slot + chunk * p.cut.tiles;
      float const weight =
          chunk < max_attend_channels ? weights[q * max_attend_channels + chunk] : part(chunk, q).weight(whole.max);
      sum += weight * __ldcg(p.arrays.sums + (slot * Queries + q) * channels + c);
    }
    QueryRow const row(p.shape, sequence, kv_head, first_query + q);
    using O = std::remove_pointer_t<decltype(p.output.data)>;
    p.output.data[p.output.layout.offset(row.sequence, row.head, row.token, c)] = from_float<O>(sum * whole.inverse());
    if (c == 0 && p.output.lse != nullptr) p.output.lse[row.lse_index(p.shape)] = whole.lse();
  }
}

/// Grid: x chunks of all segments, y tiles of query rows. Each block attends with its queries to its chunk's rows;
/// each row comes from memory once for all of them.
template <int Queries, class Q, class QLayout, class T, class View, class O, class OLayout>
HEADAWARE_KERNEL void __launch_bounds__(attend_threads, attend_blocks(Queries))
    attend_kernel(AttendParameters<Q, QLayout, T, View, O, OLayout> const __grid_constant__ parameters) {
  extern __shared__ float4 attend_memory[];
  __shared__ SharedStorage<AttendShared<Queries>> storage;
  __shared__ SharedStorage<AttendParameters<Q, QLayout, T, View, O, OLayout>> parameter_storage;
  AttendShared<Queries>& shared = storage.get();
  auto const& p = share_parameters(parameters, parameter_storage);
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  std::int64_t const segments = p.shape.segments();
  auto const chunk_index = static_cast<std::int32_t>(blockIdx.x);
  if (chunk_index >= p.arrays.chunk_offsets[segments]) return;
  if (thread < warp_threads) {
    std::int64_t const found = find_segment(p.arrays.chunk_offsets, segments, chunk_index);
    if (thread == 0) {
      shared.segment = found;
      shared.chunk = chunk_index - p.arrays.chunk_offsets[found];
    }
  }
  auto* const memory = reinterpret_cast<unsigned char*>(attend_memory);
  auto* const queries = reinterpret_cast<float*>(memory);
  auto* const scores = reinterpret_cast<float*>(memory + p.memory.score_offset);
  unsigned char* const keys = memory + p.memory.key_offset;
  unsigned char* const values = memory + p.memory.value_offset;
  // Channels beyond a row's end are zeros in keys and queries, and no row's load touches them.
  for (std::int32_t i = thread; i < (p.memory.bytes - p.memory.key_offset) / 4; i += attend_threads) {
    reinterpret_cast<std::uint32_t*>(keys)[i] = 0;
  }
  __syncthreads();
  std::int64_t const sequence = shared.segment / p.shape.num_kv_heads;
  std::int64_t const kv_head = shared.segment % p.shape.num_kv_heads;
  auto const segment = p.cache.view.head(sequence, kv_head);
  std::int64_t const held = segment.rows();
  std::int64_t const begin = shared.chunk * p.cut.chunk_rows;
  std::int64_t const end = min(held, begin + p.cut.chunk_rows);
  std::int64_t const first_query = std::int64_t{blockIdx.y} * p.cut.tile_rows;
  auto const query_count = static_cast<std::int32_t>(min(p.cut.tile_rows, p.shape.query_rows() - first_query));
  std::int64_t const first_position = p.first_positions != nullptr ? p.first_positions[sequence] : 0;
  std::int64_t const last_position = first_position + (first_query + query_count - 1) / p.shape.group();

  for (std::int32_t i = thread; i < Queries * p.memory.query_pitch; i += attend_threads) {
    std::int32_t const q = i / p.memory.query_pitch;
    std::int32_t const c = i % p.memory.query_pitch;
    float x = 0;
    if (q < query_count && c < p.shape.head_dim) {
      QueryRow const row(p.shape, sequence, kv_head, first_query + q);
      x = element_value(p.queries.data[p.queries.layout.offset(row.sequence, row.head, row.token, c)]);
    }
    queries[i] = x;
  }
  if (thread < Queries) {
    shared.max[thread] = -INFINITY;
    shared.sum[thread] = 0;
  }
  auto const channels = static_cast<std::int32_t>(p.shape.output_dim());
  std::int32_t const pairs = (channels + 1) / 2;
  std::int32_t const groups = attend_threads / pairs;
  std::int32_t const pair = thread % pairs;
  std::int32_t const group = thread / pairs;
  float sums[Queries][2] = {};
  for (std::int64_t first = begin; first < end; first += p.memory.tile_rows) {
    auto const rows = static_cast<std::int32_t>(min(std::int64_t{p.memory.tile_rows}, end - first));
    bool seen = p.first_positions == nullptr;
    if (thread < rows) {
      shared.key_offsets[thread] = segment.offset(first + thread, p.shape.head_dim);
      shared.value_offsets[thread] = segment.offset(first + thread, channels);
      if constexpr (has_positions<View>) {
        if (p.first_positions != nullptr) {
          shared.positions[thread] = segment.position(first + thread);
          seen = is_seen_by_any(segment, shared.positions[thread], first_position + first_query / p.shape.group(),
                                last_position);
        }
      }
    }
    if (__syncthreads_or(seen ? 1 : 0) == 0) continue;
    load_rows(p.cache.keys, shared.key_offsets, rows, static_cast<std::int32_t>(p.shape.head_dim), p.wide_keys, keys,
              p.memory.key_pitch);
    load_rows(p.cache.values, shared.value_offsets, rows, channels, p.wide_values, values, p.memory.value_pitch);
    clear_rows(rows, values, p.memory.value_pitch);
    __syncthreads();
    score_tile<Queries, T>(p, queries, keys, scores);
    __syncthreads();
    weigh_tile<Queries>(p, shared, segment, first_query, first_position, rows, scores);
    __syncthreads();
    if (group < groups) add_values<Queries, T>(p, shared, pair, group, groups, rows, values, scores, sums);
    __syncthreads();
  }

  // What the groups of threads have added up, side by side: [groups, Queries, 2 · pairs].
  auto* const all = reinterpret_cast<float*>(keys);
  __syncthreads();
  if (group < groups) {
#pragma unroll
    for (int q = 0; q < Queries; ++q) {
      all[((group * Queries) + q) * 2 * pairs + 2 * pair] = sums[q][0];
      all[((group * Queries) + q) * 2 * pairs + 2 * pair + 1] = sums[q][1];
    }
  }
  __syncthreads();
  std::int64_t const chunks = p.cut.chunks(held);
  std::int64_t const first_slot =
      std::int64_t{p.arrays.chunk_offsets[shared.segment]} * p.cut.tiles + static_cast<std::int64_t>(blockIdx.y);
  std::int64_t const slot = first_slot + shared.chunk * p.cut.tiles;
  for (std::int32_t i = thread; i < query_count * channels; i += attend_threads) {
    std::int32_t const q = i / channels;
    std::int32_t const c = i % channels;
    float sum = 0;
    for (std::int32_t g = 0; g < groups; ++g) sum += all[(g * Queries + q) * 2 * pairs + c];
    SoftmaxPart const part{shared.max[q], shared.sum[q]};
    if (chunks == 1) {
      QueryRow const row(p.shape, sequence, kv_head, first_query + q);
      p.output.data[p.output.layout.offset(row.sequence, row.head, row.token, c)] = from_float<O>(sum * part.inverse());
      if (c == 0 && p.output.lse != nullptr) p.output.lse[row.lse_index(p.shape)] = part.lse();
    } else {
      p.arrays.sums[(slot * Queries + q) * channels + c] = sum;
      if (c == 0) p.arrays.parts[slot * Queries + q] = {part.max, part.sum};
    }
  }
  if (chunks == 1) return;
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    std::int32_t* const counter = p.arrays.counters + shared.segment * p.cut.tiles + blockIdx.y;
    shared.last = atomicAdd(counter, 1) == chunks - 1 ? 1 : 0;
  }
  __syncthreads();
  if (shared.last == 0) return;
  __threadfence();
  join_chunks<Queries>(p, shared, sequence, kv_head, first_query, query_count, first_slot, chunks, all);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
