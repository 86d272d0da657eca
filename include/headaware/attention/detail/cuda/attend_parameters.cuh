#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/signed_ticket.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Threads that sum all channels of a value, of up to `Parameters::thread_queries` query rows.
inline constexpr std::int32_t attend_threads = 128;
/// Threads of a block.
template <int Queries, class Parameters>
inline constexpr std::int32_t attend_block_threads =
    Queries > Parameters::thread_queries ? Queries / Parameters::thread_queries* attend_threads : attend_threads;
/// Channels of a value that a thread sums: of rows up to 256 channels, and of wider ones and latents.
inline constexpr int narrow_width = 2;
inline constexpr int wide_width = 4;
/// The most channels of a row.
inline constexpr std::int32_t max_narrow_channels = narrow_width * attend_threads;
inline constexpr std::int32_t max_wide_channels = wide_width * attend_threads;
/// The most channels of a latent's row, whatever shared memory there is.
inline constexpr std::int32_t max_latent_row = 4096;
/// The most rows of a KV split over a latent, whose blocks have more to do per row.
inline constexpr std::int64_t max_latent_split_rows = 1024;
inline constexpr std::int32_t min_attend_rows = 8;
inline constexpr std::int32_t max_attend_rows = 64;
/// Blocks that a multiprocessor must have room for: as many as leave enough registers not to spill.
template <int Queries, class Parameters>
inline constexpr std::int32_t attend_blocks = Queries > Parameters::thread_queries
                                                  ? 1
                                                  : (Queries > 8 || Parameters::width == wide_width ? 2 : 3);
/// Splits whose weights a merge holds in shared memory: no more than a block has room for.
inline constexpr std::int32_t merge_splits_at_once = max_narrow_channels;
/// Rows of a KV split: long enough that queries and partial results cost little beside it, short enough to divide one
/// sequence's heads among blocks.
constexpr std::int64_t attend_split_rows(std::int32_t queries) { return queries > 8 ? 512 : 256; }

/// Attention's temporary storage.
struct AttendArrays {
  float2* parts = nullptr;          ///< [splits, tiles, queries] (max, sum) of partial softmaxes
  float* sums = nullptr;            ///< [splits, tiles, queries, output_dim] weighted values
  SignedTicket* tickets = nullptr;  ///< [segments, tiles] splits that are done; of `mma_kernel`: of joins
  SignedTicket signature = 0;       ///< of the call
};

/// Layout of a block's dynamic shared memory: the floats come first, which keeps them aligned.
struct AttendMemory {
  std::int32_t tile_rows;     ///< cache rows in shared memory at a time
  std::int32_t query_pitch;   ///< floats
  std::int32_t key_pitch;     ///< bytes; an odd number of 16-byte pieces, so that a warp's rows lie in all banks
  std::int32_t value_pitch;   ///< bytes
  std::int32_t score_offset;  ///< bytes
  std::int32_t key_offset;
  std::int32_t value_offset;
  std::int32_t bytes;

  /// Lays out the largest tiles that fit: into `limit` bytes, and, of more than `few_rows` rows, into `wanted`. The
  /// threads' sums overwrite rows in the end, of a latent all. @param value_dim  0: a latent's rows are keys and values
  /// @throws ArgumentError where not even the smallest tile fits
  template <class T>
  static AttendMemory of(std::int64_t head_dim, std::int64_t value_dim, std::int32_t queries, int width,
                         std::int32_t limit, std::int32_t wanted, std::int32_t few_rows) {
    constexpr std::int32_t piece = 16;
    auto const pieces = [](std::int64_t channels) {
      return static_cast<std::int32_t>((channels * static_cast<std::int64_t>(sizeof(T)) + piece - 1) / piece);
    };
    bool const latent = value_dim == 0;
    AttendMemory m{};
    m.query_pitch = pieces(head_dim) * (piece / static_cast<std::int32_t>(sizeof(T)));
    m.key_pitch = (pieces(head_dim) | 1) * piece;
    m.value_pitch = latent ? m.key_pitch : pieces(value_dim) * piece;
    m.score_offset = queries * m.query_pitch * 4;
    for (m.tile_rows = max_attend_rows;; m.tile_rows /= 2) {
      m.key_offset = m.score_offset + queries * m.tile_rows * 4;
      m.value_offset = latent ? m.key_offset : m.key_offset + m.tile_rows * m.key_pitch;
      std::int32_t const sums = (latent ? 0 : m.key_offset) + queries * width * attend_threads * 4;
      m.bytes = std::max(sums, m.value_offset + m.tile_rows * m.value_pitch);
      if (m.bytes <= (m.tile_rows > few_rows ? wanted : limit)) return m;
      require(m.tile_rows > min_attend_rows, "shared memory in bytes", limit, m.bytes, "attend");
    }
  }
};

/// @tparam Width  channels of a value that a thread sums
template <class Q, class QLayout, class Cache, class O, class OLayout, int Width>
struct AttendParameters {
  using Element = typename CacheTypes<Cache>::Element;
  using View = typename CacheTypes<Cache>::View;
  using Output = O;
  static constexpr bool latent = is_latent<Cache>;
  static constexpr int width = Width;
  /// Query rows of which a thread sums values.
  static constexpr int thread_queries = width == wide_width && !latent ? 8 : 16;

  AttentionShape shape;
  AttentionQueries<Q, QLayout> queries;
  Cache cache;
  AttentionOutput<O, OLayout> output;
  std::int32_t const* first_positions;
  std::int64_t window;
  float const* sinks;
  LogitMap map;
  KvSplit kv;
  AttentionBounds bounds;
  AttendArrays arrays;
  AttendMemory memory;
  bool wide_keys;  ///< 16-byte loads; else element by element
  bool wide_values;
};

/// The softmaxes of a block's queries, as two arrays, which takes fewer registers.
template <int Queries>
struct AttendSoftmaxes {
  float max[Queries];
  float sum[Queries];
  float factor[Queries];

  [[nodiscard]] __device__ OnlineSoftmax<float> softmax(std::int32_t q) const { return {max[q], sum[q]}; }
  __device__ void set_softmax(std::int32_t q, OnlineSoftmax<float> const& to) {
    max[q] = to.max;
    sum[q] = to.sum;
  }
};

/// What a block works on: some query rows of a segment over one of its KV splits.
struct AttendPlace {
  std::int64_t segment;
  std::int64_t sequence;
  std::int64_t kv_head;
  std::int64_t split;
  std::int64_t splits;       ///< of the segment
  std::int64_t first_split;  ///< of the segment, among all
  std::int64_t first_query;
  std::int32_t query_count;
  std::int32_t tile;
};

/// The work of all segments, as a block's warps have added it up.
struct WorkScan {
  static constexpr std::int32_t max_warps = 8;
  std::int64_t rows[max_warps];  ///< of each warp's segments
  std::int64_t parts[max_warps];
  std::int64_t segment;  ///< where the block's next part lies
  std::int64_t before;   ///< parts of the segments before it
};

/// The KV splits of a block, on the line of all.
struct SplitWork {
  WorkScan scan;
  std::int64_t at;
  std::int64_t end;
};

template <int Queries>
struct AttendShared {
  SplitWork work;
  AttendPlace place;
  std::int64_t key_offsets[max_attend_rows];
  std::int64_t value_offsets[max_attend_rows];
  std::int64_t positions[max_attend_rows];
  AttendSoftmaxes<Queries> softmaxes;
};

/// Dynamic shared memory of a block: the rest of the 48 KiB that are available without asking the driver.
template <int Queries, class Parameters>
inline constexpr std::int32_t attend_dynamic_bytes =
    48 * 1024 - static_cast<std::int32_t>(sizeof(SharedStorage<AttendShared<Queries>>) +
                                          sizeof(SharedStorage<Parameters>) + 3 * alignof(float4));

}  // namespace detail
HEADAWARE_NAMESPACE_END
