#pragma once

/// @file
/// The arguments of attention over kept tokens, the same for both back ends.

#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The counts of one layer's attention.
struct AttentionShape {
  std::int32_t num_sequences = 0;
  std::int32_t num_query_heads = 0;  ///< a multiple of `num_kv_heads`; query head q reads KV head q / group
  std::int32_t num_kv_heads = 0;
  std::int64_t query_tokens = 1;  ///< of each sequence: 1 for decoding, more for drafts and prefill chunks
  std::int64_t head_dim = 0;      ///< channels of a query and of a key
  std::int64_t value_dim = 0;     ///< channels of a value and of the output; 0: head_dim

  /// @brief The counts of a layer that attends, its own cache or another's.
  /// @throws ArgumentError if the layer does not attend
  [[nodiscard]] static AttentionShape of(LayerShape const& layer, std::int32_t num_sequences,
                                         std::int64_t query_tokens = 1) {
    require(layer.attends(), "layer", "one that attends", to_string(layer.kind), "AttentionShape::of");
    return {num_sequences, layer.num_query_heads, layer.num_kv_heads, query_tokens, layer.head_dim, layer.value_dim};
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int32_t group() const { return num_query_heads / num_kv_heads; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t output_dim() const {
    return value_dim != 0 ? value_dim : head_dim;
  }
  /// KV heads of all sequences.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t segments() const {
    return std::int64_t{num_sequences} * num_kv_heads;
  }
  /// Queries that share a KV head's rows: row r is query token r / group of the group's head r mod group.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t query_rows() const { return query_tokens * group(); }
};

/// @brief Queries, rotated as the keys are. @tparam T float, float16 or bfloat16 (CUDA: also their CUDA names)
template <class T, class Layout>
struct AttentionQueries {
  static_assert(check_layout<Layout>());
  T const* data = nullptr;
  Layout layout;  ///< over query heads
};
template <class T, class Layout>
AttentionQueries(T*, Layout) -> AttentionQueries<std::remove_const_t<T>, Layout>;

/// @brief One layer's kept keys and values. @tparam T float, float16 or bfloat16
template <class T, class View>
struct KeptCache {
  static_assert(check_kept_view<View>());
  T const* keys = nullptr;
  T const* values = nullptr;
  View view;
};
template <class T, class View>
KeptCache(T*, T*, View) -> KeptCache<std::remove_const_t<T>, View>;

/// @brief One layer's kept rows of a latent (multi-head latent attention), stored once: a row is the key, and its first
/// `AttentionShape::value_dim` channels are the value.
///
/// This is the absorbed form. Queries have the latent's channels: DeepSeek-V2's are, per head, W_UK folded into the
/// query without position (512 channels), and the query with it (64); W_UV is applied to the output. Their
/// `AttentionOptions::scale` is the model's, 1 / sqrt(128 + 64) there, not 1 / sqrt(head_dim).
/// @tparam T float, float16 or bfloat16
/// @par Source  DeepSeek-V2, arXiv:2405.04434, section 2.1
template <class T, class View>
struct LatentCache {
  static_assert(check_kept_view<View>());
  T const* keys = nullptr;  ///< rows of head_dim channels
  View view;
};
template <class T, class View>
LatentCache(T*, View) -> LatentCache<std::remove_const_t<T>, View>;

/// @brief One layer's kept rows, encoded in formats of their heads' own (`PackedDestination`, `PackedPages`).
///
/// Scores and sums are made of the encoded numbers; where a format is rotated, the query is rotated, too, and the sums
/// are turned back: inside `attend`, or by the caller, whose weights may have it for nothing.
/// @tparam Registry  of the formats
template <class Registry, class View>
struct PackedCache {
  static_assert(check_kept_view<View>());
  RowUnit const* rows = nullptr;  ///< the layer's buffer, or the pool
  /// [sequences, num_kv_heads]: `PackedDestination::layer`, `PackedPages::layer`
  PackedSegment<Registry> const* segments = nullptr;
  View view;  ///< of rows, as if all were alike
  /// The caller has rotated queries (`rotate_block` of each whole block of the key's format, where it is `rotated`),
  /// and turns outputs back as the value's format has it. Channels are whole blocks of all rotated formats of the
  /// registry.
  bool rotated_by_caller = false;

  /// Channels of the widest block that any format rotates.
  static constexpr std::int64_t widest_block = []<class... Formats>(std::type_identity<FormatRegistry<Formats...>>) {
    return std::max({std::int64_t{1}, (Formats::rotated ? std::int64_t{Formats::group} : std::int64_t{1})...});
  }(std::type_identity<Registry>{});
};

namespace detail {

/// The types of a cache that attention reads.
template <class Cache>
struct CacheTypes;
template <class Registry, class V>
struct CacheTypes<PackedCache<Registry, V>> {
  using Element = RowUnit;
  using View = V;
  static constexpr bool latent = false;
  static constexpr bool packed = true;
};
template <class T, class V>
struct CacheTypes<KeptCache<T, V>> {
  using Element = T;
  using View = V;
  static constexpr bool latent = false;
};
template <class T, class V>
struct CacheTypes<LatentCache<T, V>> {
  using Element = T;
  using View = V;
  static constexpr bool latent = true;
};
template <class Cache>
inline constexpr bool is_latent = CacheTypes<Cache>::latent;
template <class Cache>
inline constexpr bool is_packed = requires {
  requires CacheTypes<Cache>::packed;
};

}  // namespace detail

/// @brief `KeptCache`, `LatentCache` or `PackedCache`.
template <class Cache>
concept AttentionCache = requires {
  detail::CacheTypes<Cache>::latent;
};

/// @brief Output of attention. @tparam T float, float16 or bfloat16
template <class T, class Layout>
struct AttentionOutput {
  static_assert(check_layout<Layout>());
  T* data = nullptr;
  Layout layout;  ///< over query heads and value channels
  /// [sequences, num_query_heads, query_tokens], natural log of Σ exp(logit), a learned sink's included where the call
  /// was given one; nullptr: not wanted
  float* lse = nullptr;
};
template <class T, class Layout>
AttentionOutput(T*, Layout) -> AttentionOutput<T, Layout>;
template <class T, class Layout>
AttentionOutput(T*, Layout, float*) -> AttentionOutput<T, Layout>;

/// @brief Logit scaling, soft cap, causal positions and learned sinks.
struct AttentionOptions {
  float scale = 0;     ///< logit = scale · (query · key); 0: 1 / sqrt(head_dim)
  float soft_cap = 0;  ///< > 0: logit = soft_cap · tanh(logit / soft_cap), as Gemma 2 has it
  /// [sequences], host or device as the cache: query token j of a sequence is at position `first_positions[s] + j`
  /// and sees rows whose position is no greater (and that its window holds, where the view knows one); nullptr: every
  /// row is seen (decoding)
  std::int32_t const* first_positions = nullptr;
  /// `LayerShape::window`, where `first_positions` are given: tokens that a query sees, its own included, by the
  /// positions that the view says (rolling caches and pages of single heads know each head's own window, which is no
  /// longer); 0: all before it
  std::int64_t window = 0;
  /// [num_query_heads], host or device as the cache: logits of learned sinks, natural, neither scaled nor capped. Each
  /// takes part in the softmax of every query of its head as a key would that brings no value, so that a head which
  /// holds nothing gives zeros and the sink as its `lse`. -inf: none; NaN and +inf make NaN of the output; nullptr: no
  /// head has one. A sink counts once: of parts that are merged, one has it, or `merge_attention` (gpt-oss: model card,
  /// arXiv:2508.10925; `eager_attention_forward` of transformers' `modeling_gpt_oss.py`)
  float const* sinks = nullptr;
  /// CUDA: the launch may begin while the one before it in the stream ends, and waits for its results inside
  /// (programmatic dependent launch); where the code is for compute capability 9.0 or later, else it makes no
  /// difference
  bool overlap_launches = false;
};

namespace detail {

/// @throws ArgumentError on counts, channels or numbers that make no sense
inline void check_attention_shape(AttentionShape const& shape, AttentionOptions const& options) {
  constexpr auto where = "attend";
  require(shape.num_sequences >= 0, "sequences", ">= 0", shape.num_sequences, where);
  require(shape.num_kv_heads > 0, "KV heads", "> 0", shape.num_kv_heads, where);
  require(shape.num_query_heads > 0 && shape.num_query_heads % shape.num_kv_heads == 0, "query heads",
          {"a multiple of ", shape.num_kv_heads, " KV heads"}, shape.num_query_heads, where);
  require(shape.query_tokens >= 0, "query tokens", ">= 0", shape.query_tokens, where);
  // As many as positions have.
  require(shape.query_tokens <= 0x7fffffff, "query tokens", "at most 2147483647", shape.query_tokens, where);
  require(shape.head_dim > 0, "head_dim", "> 0", shape.head_dim, where);
  require(shape.value_dim >= 0, "value_dim", ">= 0", shape.value_dim, where);
  for (std::int64_t const channels : {shape.head_dim, shape.output_dim()}) {
    (void)elements(where, {shape.num_sequences, shape.num_query_heads, shape.query_tokens, channels});
  }
  require(std::isfinite(options.scale) && options.scale >= 0, "softmax scale", "finite and >= 0", options.scale, where);
  require(std::isfinite(options.soft_cap) && options.soft_cap >= 0, "soft cap", "finite and >= 0", options.soft_cap,
          where);
  require(options.window >= 0, "window", ">= 0", options.window, where);
}

/// Checks the sizes that a layout offers.
template <class Layout>
void check_attention_layout(AttentionShape const& shape, Layout const& layout, std::int64_t channels,
                            char const* where) {
  auto const holds = [&](std::int64_t has, std::int64_t needs, char const* what) {
    require(has >= needs, what, {">= ", needs}, has, where);
  };
  if constexpr (requires { layout.num_sequences(); }) holds(layout.num_sequences(), shape.num_sequences, "sequences");
  if constexpr (requires { layout.num_kv_heads(); }) holds(layout.num_kv_heads(), shape.num_query_heads, "query heads");
  if constexpr (requires { layout.token_capacity(); }) holds(layout.token_capacity(), shape.query_tokens, "tokens");
  if constexpr (requires { layout.num_channels(); }) holds(layout.num_channels(), channels, "channels");
}

/// Checks what attention reads. @return whether there is anything to attend to
template <class Q, class QLayout, class Cache>
bool check_attention_inputs(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries,
                            Cache const& cache, AttentionOptions const& options) {
  check_attention_shape(shape, options);
  if (shape.num_sequences == 0 || shape.query_tokens == 0) return false;
  constexpr auto where = "attend";
  require(queries.data != nullptr, "queries", "a pointer", "nullptr", where);
  require_aligned(queries.data, "queries", where);
  if constexpr (is_packed<Cache>) {
    require_aligned(cache.rows, "rows", where);
    require_aligned(cache.segments, "segments", where);
    for (std::int64_t const channels : {shape.head_dim, shape.output_dim()}) {
      require(!cache.rotated_by_caller || channels % Cache::widest_block == 0, "channels that the caller has rotated",
              {"a multiple of ", Cache::widest_block}, channels, where);
    }
  } else {
    require_aligned(cache.keys, "keys", where);
  }
  if constexpr (is_latent<Cache>) {
    require(shape.output_dim() <= shape.head_dim, "value_dim", {"at most the row's ", shape.head_dim, " channels"},
            shape.output_dim(), where);
  } else if constexpr (!is_packed<Cache>) {
    require_aligned(cache.values, "values", where);
  }
  require_aligned(options.first_positions, "first_positions", where);
  require(options.window == 0 || options.first_positions != nullptr, "first_positions",
          {"the queries' positions, as they have a window of ", options.window}, "nullptr", where);
  require_aligned(options.sinks, "sinks", where);
  check_attention_layout(shape, queries.layout, shape.head_dim, "attend, queries");
  require(has_positions<typename CacheTypes<Cache>::View> || options.first_positions == nullptr, "first_positions",
          "nullptr for a view without positions", "a pointer", where);
  if constexpr (requires { cache.view.check(shape, options); }) cache.view.check(shape, options);
  return true;
}

template <class Q, class QLayout, class Cache, class O, class OLayout>
void check_attention(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                     AttentionOutput<O, OLayout> const& output, AttentionOptions const& options) {
  if (!check_attention_inputs(shape, queries, cache, options)) return;
  constexpr auto where = "attend";
  require(output.data != nullptr, "output", "a pointer", "nullptr", where);
  require_aligned(output.data, "output", where);
  require_aligned(output.lse, "log-sum-exp", where);
  check_attention_layout(shape, output.layout, shape.output_dim(), "attend, output");
}

/// Checks the pointers of a layer; one that holds no rows needs none.
template <class Cache>
void check_cache_pointers(Cache const& cache, bool holds_rows) {
  if constexpr (is_packed<Cache>) {
    require(!holds_rows || cache.rows != nullptr, "rows", "a pointer", "nullptr", "attend");
    require(cache.segments != nullptr, "segments", "a pointer", "nullptr", "attend");
    return;
  } else {
    require(!holds_rows || cache.keys != nullptr, "keys", "a pointer", "nullptr", "attend");
    if constexpr (!is_latent<Cache>) {
      require(!holds_rows || cache.values != nullptr, "values", "a pointer", "nullptr", "attend");
    }
  }
}

/// Checks the tables of queries, cache and output, in host memory.
template <class Q, class QLayout, class Cache, class O, class OLayout>
void check_attention_tables(AttentionShape const& shape, AttentionQueries<Q, QLayout> const& queries,
                            Cache const& cache, AttentionOutput<O, OLayout> const& output) {
  auto const tokens = [&](std::int64_t) { return std::array{TokenRange{0, shape.query_tokens}}; };
  check_tables(queries.layout, shape.num_sequences, tokens, "attend, queries");
  check_tables(output.layout, shape.num_sequences, tokens, "attend, output");
  if constexpr (requires { cache.view.check_tables(shape); }) cache.view.check_tables(shape);
}

/// Names a segment in messages about tables.
struct SegmentPlace {
  char const* view;
  std::int64_t sequence;
  std::int64_t kv_head;
  std::string operator()() const {
    return Text({"attend, ", view, ", sequence ", sequence, ", KV head ", kv_head}).str();
  }
};

}  // namespace detail

/// @brief Checks a view's tables in host memory as the CPU's `attend` does before it reads them: for callers that
/// attend on a device, where right tables are an unchecked precondition.
/// @param view  over host copies of the tables
/// @throws ArgumentError on lengths, rows or pages that are not there
/// @par Cost  O(segments and pages)
template <class View>
void validate_tables(AttentionShape const& shape, View const& view) {
  static_assert(check_kept_view<View>());
  if constexpr (requires { view.check_tables(shape); }) view.check_tables(shape);
}

HEADAWARE_NAMESPACE_END
