#pragma once

// Tiles of queries and of keys of one KV head in shared memory, and which of them see which.

#include <headaware/attention/detail/cuda/key_score_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/element.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Copies rows to shared memory, zeros after their channels and after the last row; asynchronously where 16 bytes move
/// at once. By all threads @param source  (row) to its first element; channels side by side
/// @param to  [total, pitch]
template <bool Async, class Source, class Tile>
__device__ void fetch_tile(Source const& source, bool wide, std::int32_t count, std::int32_t total,
                           std::int32_t channels, std::int32_t pitch, Tile* to) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  constexpr std::int32_t width = 16 / sizeof(Tile);
  constexpr std::int32_t row_threads = 8;
  std::int32_t const padded = (channels + 15) / 16 * 16;
  for (std::int32_t row = thread / row_threads; row < total; row += score_threads / row_threads) {
    bool const exists = row < count;
    auto const* const from = source(exists ? row : 0);
    Tile* const target = to + row * pitch;
    if constexpr (Async) {
      if (wide) {
        for (std::int32_t c = thread % row_threads * width; c < padded; c += row_threads * width) {
          bool const valid = exists && c < channels;
          copy_async(target + c, valid ? from + c : from, valid);
        }
        continue;
      }
    }
    for (std::int32_t c = thread % row_threads; c < padded; c += row_threads) {
      bool const valid = exists && c < channels;
      if constexpr (std::is_same_v<Tile, std::remove_cvref_t<decltype(*from)>>) {
        target[c] = valid ? from[c] : Tile{};
      } else {
        target[c] = valid ? element_value(from[c]) : Tile{};
      }
    }
  }
  commit_copies();
}

/// One KV head of one sequence, as a block works on it.
template <class P>
struct ScoredHead {
  using Rows = RowsOf<typename P::View>;
  P const& p;
  std::int64_t segment;
  std::int64_t sequence;
  std::int64_t kv_head;
  Rows rows;
  std::int64_t first_position;  ///< of the queries
  bool masked;

  __device__ ScoredHead(P const& parameters, std::int64_t of_segment)
      : p(parameters),
        segment(of_segment),
        sequence(of_segment / parameters.shape.num_kv_heads),
        kv_head(of_segment % parameters.shape.num_kv_heads),
        rows(parameters.cache.view.head(sequence, kv_head)),
        first_position(parameters.first_positions != nullptr ? global_pointer(parameters.first_positions)[sequence]
                                                             : 0),
        masked(has_positions<typename P::View> && parameters.first_positions != nullptr) {}

  [[nodiscard]] __device__ std::int32_t channels() const { return static_cast<std::int32_t>(p.shape.head_dim); }
  [[nodiscard]] __device__ std::int64_t query_position(std::int64_t query_row) const {
    return first_position + query_row / p.shape.group();
  }
  [[nodiscard]] __device__ std::int64_t position(std::int64_t row) const {
    if constexpr (has_positions<typename P::View>) return rows.position(row);
    return 0;
  }
  [[nodiscard]] __device__ bool sees(std::int64_t position_of_row, std::int64_t query) const {
    return is_seen(rows, position_of_row, query, p.window);
  }
  /// Fetches query rows [first, first + total). By all threads
  __device__ void fetch_queries(std::int64_t first, std::int32_t total, typename P::Tile* to) const {
    auto const count = static_cast<std::int32_t>(min(p.shape.query_rows() - first, std::int64_t{total}));
    auto const source = [&](std::int32_t row) {
      QueryRow const at(p.shape, sequence, kv_head, first + row);
      return global_pointer(p.queries.data) + p.queries.layout.offset(at.sequence, at.head, at.token, 0);
    };
    auto const by_element = [&](std::int32_t row, std::int32_t c) {
      QueryRow const at(p.shape, sequence, kv_head, first + row);
      return p.queries.layout.offset(at.sequence, at.head, at.token, c);
    };
    if (p.wide_queries) {
      fetch_tile<P::copies_async>(source, true, count, total, channels(), p.memory.pitch, to);
      return;
    }
    // Channels may lie apart.
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < total * p.memory.pitch; i += score_threads) {
      std::int32_t const row = i / p.memory.pitch;
      std::int32_t const c = i % p.memory.pitch;
      bool const valid = row < count && c < channels();
      if constexpr (P::copies_async) {
        to[i] = valid ? global_pointer(p.queries.data)[by_element(row, c)] : typename P::Tile{};
      } else {
        to[i] = valid ? element_value(global_pointer(p.queries.data)[by_element(row, c)]) : typename P::Tile{};
      }
    }
    commit_copies();
  }
  /// Fetches keys [first, first + total), zeros after `end`. By all threads
  __device__ void fetch_keys(std::int64_t first, std::int64_t end, std::int32_t total, typename P::Tile* to) const {
    auto const count = static_cast<std::int32_t>(min(end - first, std::int64_t{total}));
    auto const source = [&](std::int32_t row) {
      return global_pointer(p.cache.keys) + rows.offset(first + row, p.shape.head_dim);
    };
    fetch_tile<P::copies_async>(source, p.wide_keys, count, total, channels(), p.memory.pitch, to);
  }
  /// From products of queries and keys to logits in base 2.
  [[nodiscard]] __device__ float logit(float product) const {
    return p.map.inner == 0 ? product * p.map.outer : tanhf(product * p.map.inner) * p.map.outer;
  }
};

/// Which rows of a tile queries from `first` to `last` see: all do all, some do some, or none any.
enum class Seen : std::int32_t { none, some, all };

/// By all threads; thread t looks at row t, which holds the token at `position`. @param count  rows that exist;
/// @param rows  of the tile, which are not all seen where fewer exist
template <class P>
__device__ Seen seen_of(ScoredHead<P> const& head, std::int64_t position, std::int32_t count, std::int32_t rows,
                        std::int64_t first, std::int64_t last) {
  auto const row = static_cast<std::int32_t>(threadIdx.x);
  bool const exists = row < count;
  // The queries that see a row follow each other.
  bool const any = exists && is_seen_by_any(head.rows, position, first, last, head.p.window);
  bool const all = row >= rows || (exists && head.sees(position, first) && head.sees(position, last));
  if (__syncthreads_or(any ? 1 : 0) == 0) return Seen::none;
  return __syncthreads_and(all ? 1 : 0) != 0 ? Seen::all : Seen::some;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
