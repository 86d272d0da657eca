#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/stats/sums_layout.hpp>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int32_t observe_threads = 128;
inline constexpr std::int32_t observe_warps = observe_threads / warp_threads;
/// Limits of a retention grid on the device: its thresholds are kernel parameters.
inline constexpr std::int32_t max_grid_sinks = 32;
inline constexpr std::int32_t max_grid_windows = 64;

/// @brief Cuts a row's keys into intervals, so that any (sink, window) pair drops a run of whole intervals.
///
/// A row at position q has a cut before each sink size s and before each window's oldest key, q - w + 1.
/// In order of position the cuts make intervals: interval 0 lies before the first cut, and the pair (s, w) drops
/// the intervals between its two cuts. Thresholds that no row reaches are left out.
struct RetentionCuts {
  std::int32_t num_sinks = 0;     ///< sink sizes in reach, 0 included
  std::int32_t zero_sinks = 0;    ///< 1 if the first of them is 0, which needs no cut
  std::int32_t num_windows = 0;   ///< windows that some row is longer than
  std::int32_t grid_windows = 0;  ///< windows of the grid
  std::int32_t sinks[max_grid_sinks]{};
  std::int32_t windows[max_grid_windows]{};

  HEADAWARE_HOST_DEVICE std::int32_t intervals() const { return num_sinks - zero_sinks + num_windows + 1; }
  HEADAWARE_HOST_DEVICE std::int32_t cell(std::int32_t sink, std::int32_t window) const {
    return sink * grid_windows + window;
  }
};

/// Keys of a tile. Where all warps share 16 rows each has a part of them: these tiles are as long as `longest`.
HEADAWARE_HOST_DEVICE constexpr std::int32_t observe_tile_keys(std::int32_t longest, bool shares_rows) {
  return shares_rows ? longest : 32;
}

/// Order in which the elements of a tensor are fetched.
enum class FetchOrder : std::int32_t {
  rows,      ///< 16 bytes at once, the channels of a token side by side
  wide,      ///< 16 bytes at once
  channels,  ///< one by one, neighbours in a row
  tokens,    ///< one by one, neighbours in a channel
};

/// One warp's share of a row: its softmax, and the sum of the recent keys.
struct RowPart {
  EntropySoftmax<float> softmax;
  float recent;
};

/// Offsets in shared memory, in bytes.
struct ObserveShared {
  std::int32_t rows = 0;         ///< of a tile
  std::int32_t pitch = 0;        ///< elements between rows of queries and keys
  std::int32_t channels = 0;     ///< head_dim, padded to what a multiplication takes
  std::int32_t value_pitch = 0;  ///< the same of values
  std::int32_t value_dim = 0;
  std::int32_t sum_channels = 0;      ///< value_dim, padded to what an interval's sums take
  std::int32_t parameters = 0;        ///< and after them what is the layer's own
  std::int32_t raw = 0;               ///< double [sums]: of a chunk
  bool queries_held = false;          ///< in registers: their memory then serves others, too
  std::int32_t queries = 0;           ///< E [rows, rounded up to 16, pitch]
  std::int32_t keys = 0;              ///< E [tile_keys, pitch]; after the last key, reduction scratch
  std::int32_t values = 0;            ///< E [tile_keys, value_pitch]; after the last key, reduction scratch
  std::int32_t weights = 0;           ///< float [16, weight_pitch]: relative to the rows' largest scores of the tile
  std::int32_t near = 0;              ///< float [rows, near]: scores by distance
  std::int32_t sinks = 0;             ///< float [rows, sink_size]: scores by position
  std::int32_t maxima = 0;            ///< float [warps, 16]: a tile's largest scores
  std::int32_t row_parts = 0;         ///< RowPart [key warps, rows]
  std::int32_t row_max = 0;           ///< float [rows]
  std::int32_t row_inverse = 0;       ///< float [rows]: 1 / the sum of weights; 0: not to be counted
  std::int32_t cuts = 0;              ///< int32 [intervals, rows]: first key of each interval
  std::int32_t sink_intervals = 0;    ///< uint8 [sinks, rows]: first interval that a sink size does not keep
  std::int32_t window_intervals = 0;  ///< uint8 [windows, rows]: last interval that a window does not keep
  std::int32_t masses = 0;            ///< OnlineSoftmax<float> [key warps, intervals, rows]
  std::int32_t shares = 0;       ///< float [intervals, rows]: probabilities; with one key warp in `masses`, as sums
  std::int32_t kept_before = 0;  ///< float [intervals + 1, rows]: probability of the intervals before
  std::int32_t kept_after = 0;   ///< float [intervals + 1, rows]: probability of this interval and those after
  std::int32_t sum_max = 0;      ///< float [warps, intervals, rows]: the scores that the sums are relative to
  std::int32_t sum_factors = 0;  ///< float [intervals, rows]: from sums to Σ p v
  std::int32_t sums = 0;         ///< float [intervals, rows, sum_channels]: Σ of weight · value
  // Of wide tiles with values, after all other statistics; `padded` are rows rounded up to 16.
  std::int32_t sink_values = 0;   ///< E [largest sink size, rounded up to 16, value_pitch]
  std::int32_t sink_weights = 0;  ///< float [the same / 8, threads, 4]: weights of sinks, relative to their interval's
  std::int32_t sink_shares = 0;   ///< float2 [sinks, padded]: from these weights to probabilities, and their sum
  std::int32_t turns = 0;         ///< int8 [sinks, threads, 2]: window from which on errors come from what is kept
  std::int32_t cell_factors = 0;  ///< float2 [sinks, padded]: of a cell's errors
  std::int32_t starts = 0;        ///< int32 [warps]: first keys of the way back
  std::int32_t cell_sums = 0;     ///< double [warps, cells + 1]
  std::int32_t bytes = 0;
};

/// Statistics of a row that are summed over rows, by a thread each.
inline constexpr std::int32_t row_scalars = 8;

/// Sizes that shared memory depends on.
struct ObserveSizes {
  bool with_values = false;
  std::int32_t element_bytes = 0;
  std::int32_t padding = 0;
  std::int32_t tile_keys = 0;
  std::int32_t parameter_bytes = 0;
  std::int32_t head_dim = 0;
  std::int32_t value_dim = 0;
  std::int32_t sums = 0;
  std::int32_t near = 0;
  std::int32_t sink_size = 0;
  std::int32_t used_cells = 0;
  std::int32_t cut_sinks = 0;
  std::int32_t cut_windows = 0;
  std::int32_t intervals = 0;  ///< 0: no retention
  std::int32_t last_sink = 0;  ///< the largest sink size that rows are longer than
  bool wide = false;           ///< with values: 64 rows, each warp's its own

  [[nodiscard]] bool shares_rows() const { return with_values && !wide; }
  [[nodiscard]] std::int32_t tile_rows() const { return shares_rows() ? 16 : 64; }
  [[nodiscard]] bool holds_queries() const { return !with_values && element_bytes == 2 && head_dim <= 128; }
};

/// Channels of wide tiles' values, with zeros after the last: so many that loops over them have constant ends.
constexpr std::int32_t wide_channels(std::int32_t value_dim) { return value_dim <= 64 ? 64 : 128; }

/// Lays out shared memory for tiles of `rows` rows. @return its bytes; offsets are right if they fit in 30 bits
inline std::int64_t place_shared(ObserveSizes const& sizes, std::int32_t rows, ObserveShared& shared) {
  std::int64_t bytes = 0;
  auto const place = [&](std::int32_t& offset, std::int64_t size) {
    offset = static_cast<std::int32_t>(std::min<std::int64_t>(bytes, 1 << 30));
    bytes += (size + 15) / 16 * 16;
  };
  std::int64_t const key_warps = sizes.shares_rows() ? observe_warps : 1;
  std::int64_t const n = rows;
  std::int64_t const padded = (n + 15) / 16 * 16;
  std::int64_t const intervals = sizes.intervals;
  shared.rows = rows;
  shared.channels = (sizes.head_dim + 15) / 16 * 16;
  shared.value_dim = sizes.wide ? wide_channels(sizes.value_dim) : (sizes.value_dim + 15) / 16 * 16;
  shared.sum_channels = (sizes.value_dim + 31) / 32 * 32;
  shared.pitch = shared.channels + sizes.padding;
  shared.value_pitch = shared.value_dim + sizes.padding;
  shared.queries_held = sizes.holds_queries();
  std::int64_t const row_bytes = std::int64_t{shared.pitch} * sizes.element_bytes;
  std::int64_t const value_row_bytes = std::int64_t{shared.value_pitch} * sizes.element_bytes;
  std::int64_t const row_scratch = 8 * (row_scalars * n + sizes.near + sizes.sink_size);
  std::int64_t const cell_scratch = 8 * observe_warps * (std::int64_t{sizes.used_cells} + 1);
  place(shared.parameters, sizes.parameter_bytes);
  place(shared.raw, 8 * std::int64_t{sizes.sums});
  place(shared.keys, std::max(sizes.tile_keys * row_bytes, row_scratch));
  place(shared.row_max, 4 * n);
  place(shared.row_inverse, 4 * n);
  std::int64_t const queries_begin = bytes;
  place(shared.queries, padded * row_bytes);
  std::int64_t const queries_end = bytes;
  if (shared.queries_held) bytes = queries_begin;
  std::int64_t const scores_begin = bytes;
  place(shared.near, 4 * n * sizes.near);
  place(shared.sinks, 4 * n * sizes.sink_size);
  std::int64_t const sinks = (sizes.last_sink + 15) / 16 * 16;
  if (sizes.wide) {
    std::int64_t const scores_end = bytes;
    bytes = scores_begin;
    place(shared.sink_values, sinks * value_row_bytes);
    bytes = std::max(bytes, scores_end);
  }
  std::int64_t const intervals_begin = bytes;
  place(shared.row_parts, static_cast<std::int64_t>(sizeof(RowPart)) * key_warps * n);
  if (intervals > 0) {
    place(shared.cuts, 4 * intervals * n);
    place(shared.sink_intervals, sizes.cut_sinks * n);
    place(shared.window_intervals, sizes.cut_windows * n);
    place(shared.masses, static_cast<std::int64_t>(sizeof(OnlineSoftmax<float>)) * key_warps * intervals * n);
    if (sizes.shares_rows()) place(shared.shares, 4 * intervals * n);
  }
  bytes = std::max(bytes, queries_end);
  if (sizes.wide) {
    std::int64_t const intervals_end = bytes;
    bytes = intervals_begin;
    place(shared.sink_weights, 4 * sinks / 8 * observe_threads * 4);
    place(shared.sink_shares, 8 * sizes.cut_sinks * padded);
    place(shared.turns, 2 * sizes.cut_sinks * observe_threads);
    place(shared.cell_factors, 8 * sizes.cut_sinks * padded);
    bytes = std::max(bytes, intervals_end);
    place(shared.starts, 4 * observe_warps);
    place(shared.cell_sums, cell_scratch);
    place(shared.values, sizes.tile_keys * value_row_bytes);
  }
  if (sizes.shares_rows()) {
    place(shared.values, std::max(sizes.tile_keys * value_row_bytes, cell_scratch));
    place(shared.weights, 4 * 16 * weight_pitch);
    place(shared.maxima, 4 * observe_warps * 16);
    place(shared.kept_before, 4 * (intervals + 1) * n);
    place(shared.kept_after, 4 * (intervals + 1) * n);
    place(shared.sum_max, 4 * observe_warps * intervals * n);
    place(shared.sum_factors, 4 * intervals * n);
    place(shared.sums, 4 * intervals * n * shared.sum_channels);
  }
  shared.bytes = static_cast<std::int32_t>(std::min<std::int64_t>(bytes, 1 << 30));
  return bytes;
}

/// Lays out at most `limit` bytes of shared memory for as many rows as fit. @return whether one fits
inline bool fit_shared(ObserveSizes const& sizes, std::int64_t limit, ObserveShared& shared) {
  std::int32_t rows = sizes.tile_rows();
  while (rows > 0 && place_shared(sizes, rows, shared) > limit) --rows;
  return rows > 0;
}

/// @brief Divides one query head's work among blocks: `groups` runs of whole chunks, or, where chunks are few, each
/// chunk's tiles among `parts` blocks.
struct ObserveGrid {
  std::int64_t chunks = 0;
  std::int32_t groups = 0;
  std::int32_t parts = 0;
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t blocks() const { return groups * parts; }
};

template <class QueryLayout, class KeyLayout, class ValueLayout>
struct ObserveParameters {
  QueryLayout query_layout;
  KeyLayout key_layout;
  ValueLayout value_layout;
  std::int64_t sequence;
  std::int64_t first_token;  ///< index in the layouts of the token at position 0
  std::int64_t tokens;
  std::int64_t chunk_size;  ///< > 0
  double recent_ratio;
  double* partials;       ///< [layers, num_query_heads, blocks, sums]
  std::int32_t* tickets;  ///< [layers, num_query_heads], zero
  double* sums;           ///< [heads of all layers, sums]
  ObserveGrid grid;
  ObserveShared shared;
  SumsLayout layout;
  RetentionCuts cuts;
  std::int32_t num_query_heads;
  std::int32_t group;  ///< query heads per KV head
  std::int32_t head_dim;
  std::int32_t value_dim;
  std::int32_t first_query;
  std::int32_t query_stride;
  std::int32_t sink_size;
  std::int32_t local_window;
  std::int32_t near;  ///< distances whose scores are kept
  float scale;        ///< from q·k to a logit in base 2, or to what the soft cap takes
  float cap;          ///< soft cap in base 2; 0: none
  FetchOrder query_fetch;
  FetchOrder key_fetch;
  FetchOrder value_fetch;
};

/// What the layers of a launch do not share.
struct ObserveTensors {
  struct Layer {
    void const* queries;
    void const* keys;
    void const* values;
    float const* output_factors;
  };
  /// Shared by a block's threads: in registers it would be dear.
  struct Own {
    float const* sinks;       ///< logits of learned sinks, [num_query_heads], or nullptr
    std::int64_t first_head;  ///< place of its first head's sums
    std::int32_t window;      ///< keys that a query sees; 0: all before it
  };
  Layer layers[max_layers];
  Own own[max_layers];
};

/// @brief Entry `i` of what a chunk adds to the sums of a head (`HeadSums::add`), or of a head's sums.
///
/// The raw sums of a chunk lie as those of a head do; `chunks` holds its uniformity rows.
__device__ inline double chunk_entry(double const* raw, std::int64_t i, SumsLayout const& layout) {
  double const n = raw[SumsLayout::rows];
  if (i == SumsLayout::invalid_rows) return raw[i];
  if (!(n > 0)) return 0;
  switch (i) {
    case SumsLayout::chunks: return 1;
    case SumsLayout::entropy_squared: {
      double const entropy = raw[SumsLayout::entropy] / n;
      return entropy * entropy;
    }
    case SumsLayout::global: return fmax(0.0, 1 - raw[SumsLayout::sink] / n - raw[SumsLayout::local] / n);
    case SumsLayout::uniformity: {
      double const rows = raw[SumsLayout::chunks];
      return rows > 0 ? raw[i] / rows : 0;
    }
    case SumsLayout::entropy:
    case SumsLayout::max_attention:
    case SumsLayout::sink:
    case SumsLayout::recent:
    case SumsLayout::local: return raw[i] / n;
    default: return i >= layout.distances() && i < layout.mass() ? raw[i] / n : raw[i];
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
