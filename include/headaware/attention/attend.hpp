#pragma once

/// @file
/// Attention over kept tokens on the CPU: decoding and prefill chunks over caches whose heads hold different
/// numbers of tokens. All cores, where the compiler has OpenMP.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/dense_views.hpp>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/attention/detail/query_tile.hpp>
#include <headaware/attention/detail/tile_rows.hpp>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/attention/merge.hpp>
#include <headaware/attention/paged_view.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/intervals.hpp>
#include <headaware/detail/online_softmax.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Checks that queries and output do not overlap, as results are written before the last query is read. Strided layouts
/// alone; rows of both may alternate in one buffer.
template <class Q, class QLayout, class O, class OLayout>
void check_output_apart(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries,
                        AttentionOutput<O, OLayout> const& output) {
  if constexpr (std::is_same_v<QLayout, StridedLayout> && std::is_same_v<OLayout, StridedLayout>) {
    std::int64_t const s = shape.num_sequences - 1;
    std::int64_t const h = shape.num_query_heads - 1;
    std::int64_t const t = shape.query_tokens - 1;
    auto const all = [&](auto const* data, StridedLayout const& layout, std::int64_t channels) {
      return interval(data, layout.offset(s, h, t, channels - 1) + 1);
    };
    auto const note_rows = [&](auto const* data, StridedLayout const& layout, std::int64_t channels,
                               std::vector<Interval>& result) {
      for (std::int64_t i = 0; i <= s; ++i) {
        for (std::int64_t j = 0; j <= h; ++j) {
          for (std::int64_t k = 0; k <= t; ++k) {
            result.push_back(interval(data + layout.offset(i, j, k, 0), layout.offset(0, 0, 0, channels - 1) + 1));
          }
        }
      }
    };
    auto const x = all(queries.data, queries.layout, shape.head_dim);
    auto const y = all(output.data, output.layout, shape.output_dim());
    if (x.begin >= y.end || y.begin >= x.end) return;
    Memory& memory = thread_memory();
    note_rows(queries.data, queries.layout, shape.head_dim, memory.sources);
    note_rows(output.data, output.layout, shape.output_dim(), memory.destinations);
    bool const meet = sort_and_overlap(memory.sources, memory.destinations);
    require(!meet, "output", "apart from the queries", "overlapping buffers", "attend");
  }
}

/// Part of a segment's attention: a tile of query rows over a KV split, that is, a part of its rows.
struct AttentionItem {
  std::int64_t segment;
  std::int64_t tile;
  std::int64_t split;
  std::int64_t partial;  ///< place of the partial result; -1: there is but one split
};

/// A segment's tile whose splits are to be merged.
struct AttentionJoin {
  std::int64_t segment;
  std::int64_t tile;
  std::int64_t first_partial;
  std::int64_t splits;
};

/// The work of a call, and its partial results. Items of a split follow each other, so that its rows stay in the
/// processor's caches. A thread keeps the memory, so that later calls allocate nothing.
struct AttentionWork {
  std::vector<AttentionItem> items;
  std::vector<AttentionJoin> joins;
  std::vector<OnlineSoftmax<float>> parts;  ///< [partials, query rows of a tile]
  FloatBuffer sums;                         ///< [partials, query rows of a tile, channels]
  std::int64_t partials = 0;
  std::int64_t rows = 0;  ///< held by all segments

  static AttentionWork& of_thread() {
    thread_local AttentionWork work;
    return work;
  }

  /// @param channels  of a partial sum
  template <class View>
  void divide(AttentionShape const& shape, KvSplit const& cut, View const& view, std::int64_t channels) {
    items.clear();
    joins.clear();
    partials = 0;
    rows = 0;
    for (std::int64_t s = 0; s < shape.segments(); ++s) {
      auto const head = view.head(s / shape.num_kv_heads, s % shape.num_kv_heads);
      std::int64_t const held = head.rows();
      require(held >= 0, "rows held", ">= 0", held,
              {"attend, sequence ", s / shape.num_kv_heads, ", KV head ", s % shape.num_kv_heads});
      if constexpr (requires { head.pages == nullptr; }) {
        if (held > 0) require_pointer(head.pages, "pages", "attend");
      }
      rows += held;
      std::int64_t const splits = cut.splits(held);
      for (std::int64_t tile = 0; splits > 1 && tile < cut.tiles; ++tile) {
        joins.push_back({s, tile, partials + tile * splits, splits});
      }
      for (std::int64_t split = 0; split < splits; ++split) {
        for (std::int64_t tile = 0; tile < cut.tiles; ++tile) {
          items.push_back({s, tile, split, splits > 1 ? partials + tile * splits + split : -1});
        }
      }
      if (splits > 1) partials += splits * cut.tiles;
    }
    auto const results = static_cast<std::size_t>(partials * cut.tile_rows);
    parts.assign(results, {});
    sums.grow(results * static_cast<std::size_t>(channels));
  }
};

/// Writes one query row's result. @param sums  [output_dim], weighted by 2^(logit - part.max)
template <class O, class Layout>
void write_attention(AttentionShape const& shape, AttentionOutput<O, Layout> const& output, QueryRow const& row,
                     OnlineSoftmax<float> const& part, float const* sums) {
  float const inverse = part.inverse();
  for (std::int64_t c = 0; c < shape.output_dim(); ++c) {
    output.data[output.layout.offset(row.sequence, row.head, row.token, c)] = from_float<O>(sums[c] * inverse);
  }
  if (output.lse != nullptr) output.lse[row.lse_index(shape)] = part.lse();
}

HEADAWARE_TARGET_BEGIN

/// A cache of elements as `attend_rows` reads it.
template <class Cache>
struct ElementAccess {
  using T = typename CacheTypes<Cache>::Element;
  static constexpr std::int64_t tile_rows = is_latent<Cache> ? QueryTile::max_latent_queries : QueryTile::max_queries;
  Cache const& cache;
  AttentionShape const& shape;

  [[nodiscard]] std::int64_t padded(std::int64_t channels) const { return whole_vectors(channels); }
  [[nodiscard]] std::int64_t row_bytes() const {
    return (shape.head_dim + (is_latent<Cache> ? 0 : shape.output_dim())) * static_cast<std::int64_t>(sizeof(T));
  }
  template <class Head>
  [[nodiscard]] PlainRows<T, Head> rows(Head const& head, std::int64_t) const {
    T const* values = nullptr;
    if constexpr (!is_latent<Cache>) values = cache.values;
    return {head, cache.keys, values, shape.head_dim, shape.output_dim()};
  }
  void turn_queries(std::int64_t, QueryTile&) const {}
  void turn_sums(std::int64_t, float*) const {}
};

/// A cache of encoded rows as `attend_rows` reads it. Queries and sums are as wide as whole blocks of any format.
template <class Registry, class View>
struct CodedAccess {
  static constexpr std::int64_t tile_rows = QueryTile::max_queries;
  static constexpr std::int64_t widest = std::max(std::int64_t{64}, PackedCache<Registry, View>::widest_block);
  PackedCache<Registry, View> const& cache;
  AttentionShape const& shape;

  [[nodiscard]] std::int64_t padded(std::int64_t channels) const { return (channels + widest - 1) / widest * widest; }
  [[nodiscard]] std::int64_t row_bytes() const { return shape.head_dim + shape.output_dim(); }
  template <class Head>
  [[nodiscard]] CodedRows<Registry, Head> rows(Head const& head, std::int64_t segment) const {
    return {head, cache.rows, cache.segments[segment], shape.head_dim, shape.output_dim()};
  }
  void turn_queries(std::int64_t segment, QueryTile& tile) const {
    auto const& key = cache.segments[segment].formats.key;
    if (!cache.rotated_by_caller) rotate_rows_of(key, tile.queries(), tile.query_count(), tile.key_channels());
    if (key.visit([]<class Format>(Format const&) { return has_integer_rows<Format>; })) tile.take_integers();
  }
  void turn_sums(std::int64_t segment, float* sums) const {
    if (cache.rotated_by_caller) return;
    rotate_rows_of(cache.segments[segment].formats.value, sums, 1, padded(shape.output_dim()));
  }
};

template <class Cache>
auto access_to(Cache const& cache, AttentionShape const& shape) {
  return ElementAccess<Cache>{cache, shape};
}
template <class Registry, class View>
auto access_to(PackedCache<Registry, View> const& cache, AttentionShape const& shape) {
  return CodedAccess<Registry, View>{cache, shape};
}

/// `attend` over floating-point elements, or rows that decode to them.
template <class Q, class QLayout, class Cache, class O, class OLayout>
void attend_rows(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                 AttentionOutput<O, OLayout> const& output, AttentionOptions const& options) {
  check_attention(shape, queries, cache, output, options);
  if (shape.num_sequences == 0 || shape.query_tokens == 0) return;
  check_output_apart(shape, queries, output);
  check_attention_tables(shape, queries, cache, output);
  constexpr std::int64_t split_rows = 512;
  auto const access = access_to(cache, shape);
  auto const cut = KvSplit::of(shape, access.tile_rows, split_rows);
  std::int64_t const channels = access.padded(shape.output_dim());
  AttentionWork& work = AttentionWork::of_thread();
  work.divide(shape, cut, cache.view, channels);
  check_cache_pointers(cache, work.rows > 0);
  auto const items = static_cast<std::int64_t>(work.items.size());
  auto const joins = static_cast<std::int64_t>(work.joins.size());
  // Less than that, one core reads in the time that it takes to wake the others.
  constexpr std::int64_t few_bytes = 131072;
  std::int64_t const bytes = work.rows * cut.tiles * access.row_bytes();
  auto const make_tile = [&] {
    return QueryTile(shape, options, cut.tile_rows, access.padded(shape.head_dim), channels);
  };
  parallel_for(items, 1, bytes > few_bytes, make_tile, [&](QueryTile& tile, std::int64_t i) {
    AttentionItem const& item = work.items[static_cast<std::size_t>(i)];
    std::int64_t const sequence = item.segment / shape.num_kv_heads;
    std::int64_t const kv_head = item.segment % shape.num_kv_heads;
    auto const rows = cache.view.head(sequence, kv_head);
    std::int64_t const first_query = item.tile * cut.tile_rows;
    std::int64_t const count = std::min(cut.tile_rows, shape.query_rows() - first_query);
    tile.take_queries(queries, sequence, kv_head, first_query, count, item.split == 0);
    access.turn_queries(item.segment, tile);
    std::int64_t const begin = item.split * cut.split_rows;
    tile.attend(access.rows(rows, item.segment), begin, std::min(rows.rows(), begin + cut.split_rows));
    for (std::int64_t q = 0; q < count; ++q) {
      if (item.partial < 0) {
        access.turn_sums(item.segment, tile.sums(q));
        write_attention(shape, output, {shape, sequence, kv_head, first_query + q}, tile.part(q), tile.sums(q));
      } else {
        std::int64_t const at = item.partial * cut.tile_rows + q;
        work.parts[static_cast<std::size_t>(at)] = tile.part(q);
        std::copy_n(tile.sums(q), channels, work.sums.data() + at * channels);
      }
    }
  });
  std::int64_t const partial_bytes =
      work.partials * cut.tile_rows * channels * static_cast<std::int64_t>(sizeof(float));
  auto const make_sums = [&] { return QueryTileBuffers::of_thread().sums.grow(static_cast<std::size_t>(channels)); };
  auto const join_row = [&](float* sums, std::int64_t i) {
    AttentionJoin const& join = work.joins[static_cast<std::size_t>(i / cut.tile_rows)];
    std::int64_t const q = i % cut.tile_rows;
    std::int64_t const row = join.tile * cut.tile_rows + q;
    if (row >= shape.query_rows()) return;
    auto const at = [&](std::int64_t split) { return (join.first_partial + split) * cut.tile_rows + q; };
    OnlineSoftmax<float> whole;
    for (std::int64_t split = 0; split < join.splits; ++split) {
      auto const& part = work.parts[static_cast<std::size_t>(at(split))];
      if (part.sum != 0) whole.max = larger_or_nan(whole.max, part.max);
    }
    std::fill_n(sums, channels, 0.0F);
    for (std::int64_t split = 0; split < join.splits; ++split) {
      auto const& part = work.parts[static_cast<std::size_t>(at(split))];
      float const weight = part.factor(whole.max);
      whole.sum += weight * part.sum;
      float const* const from = work.sums.data() + at(split) * channels;
      for (std::int64_t c = 0; c < channels; ++c) sums[c] += weight * from[c];
    }
    access.turn_sums(join.segment, sums);
    write_attention(shape, output, {shape, join.segment / shape.num_kv_heads, join.segment % shape.num_kv_heads, row},
                    whole, sums);
  };
  parallel_for(joins * cut.tile_rows, 1, partial_bytes > few_bytes, make_sums, join_row);
}

HEADAWARE_TARGET_END
}  // namespace detail

HEADAWARE_TARGET_BEGIN

/// @brief Computes attention of one layer's queries over the rows of its KV heads, on the CPU.
///
/// For every query head: softmax(scale · query · keysᵀ) · values over the rows of its KV head, in single precision,
/// whatever the elements are; learned sinks (`AttentionOptions::sinks`) take part in the softmax. A head that holds
/// nothing, or of which a query sees nothing, gives zeros and an `lse` of -inf, or of its sink. A NaN or an infinite
/// logit makes its output NaN.
/// @param shape    counts; `query_tokens` 1 decodes
/// @param queries  [sequences, num_query_heads, query_tokens, head_dim] in the layout's order; host
/// @param cache    `KeptCache`, keys and values of the layer's heads, `LatentCache`, or `PackedCache`, rows in formats
/// of
///                 their heads' own; rows where the view says; host; null where no head holds anything
/// @param output   [sequences, num_query_heads, query_tokens, value_dim], and optionally log-sum-exp; host;
///                 must overlap no input
/// @throws ArgumentError on counts that make no sense, missing or misaligned pointers, layouts too small, a mask over a
///         view without positions, a view with negative rows or one that says itself that it is another's, tables
///         that name what is not there, and output that overlaps the queries where both layouts are strided
/// @note   Deterministic: the result does not depend on the number of threads.
/// @par Cost  Each row held is read once for all query heads of its group (once per 32 query rows in prefill chunks; of
///            a latent once per 128), shared out in KV splits, so that one long head does not keep one thread busy
///            alone. Allocates nothing once the threads have made room for calls of this size, which they keep
/// @par Source  Dao et al., Flash-Decoding, 2023; Milakov and Gimelshein, online softmax, arXiv:1805.02867
template <class Q, class QLayout, AttentionCache Cache, class O, class OLayout>
void attend(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
            AttentionOutput<O, OLayout> const& output, AttentionOptions const& options = {}) {
  using T = typename detail::CacheTypes<Cache>::Element;
  constexpr bool rows = detail::holds_floats<T> || detail::is_packed<Cache>;
  constexpr bool floats = detail::holds_floats<Q> && rows && detail::holds_floats<O>;
  static_assert(floats, "headaware: queries, keys, values and output of attention are float, float16 or bfloat16");
  if constexpr (floats) detail::attend_rows(shape, queries, cache, output, options);
}

HEADAWARE_TARGET_END
HEADAWARE_NAMESPACE_END
