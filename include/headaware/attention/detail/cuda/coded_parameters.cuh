#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/attention_bounds.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>

#include <algorithm>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Encoded rows in shared memory at a time: a thread has a key.
inline constexpr std::int32_t max_coded_rows = attend_threads;
inline constexpr std::int32_t min_coded_rows = 4;
/// Rows of a KV split: encoded rows are short, so more of them, beside which queries and partial results cost little.
constexpr std::int64_t coded_split_rows(std::int32_t queries) { return queries > 8 ? 2048 : queries > 4 ? 1024 : 512; }

/// What a registry's formats make of a row.
template <class Registry>
struct CodedRowSizes;
template <class... Formats>
struct CodedRowSizes<FormatRegistry<Formats...>> {
  /// Channels that the widest rotated block has.
  static constexpr std::int32_t widest = std::max({std::int32_t{4}, (Formats::rotated ? Formats::group : 4)...});

  /// Channels of a query or of a sum, whatever the format.
  static constexpr std::int64_t padded(std::int64_t channels) { return (channels + widest - 1) / widest * widest; }
  /// Bytes of the largest row in shared memory.
  static constexpr std::int64_t most_bytes(std::int64_t head_dim, std::int64_t value_dim) {
    std::int64_t const units = (std::max({row_words<Formats>(head_dim)...}) +  //
                                std::max({row_words<Formats>(value_dim)...}) + 3) /
                               4;
    return pitch(units);
  }
  /// An odd number of units, so that a warp's rows lie in all banks.
  HEADAWARE_HOST_DEVICE static constexpr std::int64_t pitch(std::int64_t units) {
    return (units | 1) * std::int64_t{sizeof(RowUnit)};
  }
};

/// Layout of a block's dynamic shared memory. The threads' sums overwrite scores and rows in the end.
struct CodedMemory {
  std::int32_t query_pitch;   ///< floats
  std::int32_t score_offset;  ///< bytes
  std::int32_t row_offset;
  std::int32_t row_bytes;  ///< for rows, as many as fit
  std::int32_t bytes;

  template <class Registry>
  static CodedMemory of(std::int64_t head_dim, std::int64_t value_dim, std::int32_t queries) {
    using Sizes = CodedRowSizes<Registry>;
    constexpr std::int64_t wanted = 24 * 1024;
    CodedMemory m{};
    m.query_pitch = static_cast<std::int32_t>(Sizes::padded(head_dim));
    m.score_offset = queries * m.query_pitch * 4;
    m.row_offset = m.score_offset + queries * max_coded_rows * 4;
    m.row_bytes = static_cast<std::int32_t>(std::max(wanted, min_coded_rows * Sizes::most_bytes(head_dim, value_dim)));
    m.bytes = std::max(m.row_offset + m.row_bytes, m.score_offset + queries * wide_width * attend_threads * 4);
    return m;
  }
  /// Rows of a head that fit: whole fours.
  [[nodiscard]] __device__ std::int32_t tile_rows(std::int32_t pitch) const {
    return min(max_coded_rows, row_bytes / pitch & ~3);
  }
};

template <class Q, class QLayout, class Reg, class V, class O, class OLayout>
struct CodedParameters {
  using Registry = Reg;
  using View = V;
  using Output = O;
  static constexpr int thread_queries = 16;

  AttentionShape shape;
  AttentionQueries<Q, QLayout> queries;
  PackedCache<Registry, View> cache;
  AttentionOutput<O, OLayout> output;
  std::int32_t const* first_positions;
  std::int64_t window;
  float const* sinks;
  LogitMap map;
  KvSplit kv;
  AttentionBounds bounds;
  AttendArrays arrays;
  CodedMemory memory;
};

/// A head's keys or values, as its format has them.
struct CodedTensor {
  std::int32_t channels;  ///< of scores or sums: whole blocks where they are rotated
  std::int32_t coded;     ///< whole blocks
  std::int32_t words;
  std::int32_t rotated;  ///< channels that are turned together, or 0

  /// @param turned  whether the caller rotates, whole blocks
  template <class Registry>
  __device__ static CodedTensor of(AnyFormat<Registry> const& any, std::int64_t dim, bool turned) {
    return any.visit([&]<class Format>(Format const&) {
      auto const channels = static_cast<std::int32_t>(dim);
      std::int32_t const blocks = (channels + Format::group - 1) / Format::group;
      std::int32_t const coded = blocks * Format::group;
      return CodedTensor{Format::rotated ? coded : channels, coded, blocks * Format::block_words,
                         Format::rotated && !turned ? Format::group : 0};
    });
  }
};

/// What a block needs to know, read from memory by one thread.
template <int Queries, class Registry, class View>
struct CodedShared {
  RowsOf<View> rows;
  PackedSegment<Registry> packed;
  SplitWork work;
  AttendPlace place;
  CodedTensor keys;
  CodedTensor values;
  std::int64_t begin;  ///< of the split's rows
  std::int64_t end;
  std::int64_t first_position;  ///< of the block's queries
  std::int64_t last_position;
  std::int64_t offsets[max_coded_rows];
  std::int64_t positions[max_coded_rows];
  AttendSoftmaxes<Queries> softmaxes;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
