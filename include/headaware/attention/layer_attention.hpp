#pragma once

/// @file
/// Input of statistics: one layer's queries, keys and values, or its probabilities.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/logit_map.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/strided.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The queries, keys and values of one layer and one sequence, host pointers; positions are
/// 0 … tokens - 1, and queries and keys are rotated as the engine has them.
///
/// Of a latent (multi-head latent attention) the queries are those that meet the latent itself, and `values` are the
/// keys: the same pointer, by the keys' layout or a layout of the first `value_dim` channels.
/// @tparam T  float, float16 or bfloat16
template <class T, class QueryLayout, class KeyLayout, class ValueLayout = KeyLayout>
struct LayerQkv {
  T const* queries = nullptr;
  T const* keys = nullptr;
  T const* values = nullptr;   ///< nullptr: mass only
  QueryLayout query_layout{};  ///< over query heads
  KeyLayout key_layout{};      ///< over KV heads
  ValueLayout value_layout{};  ///< over KV heads
  std::int32_t num_query_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int64_t tokens = 0;
  std::int64_t head_dim = 0;
  std::int64_t sequence = 0;     ///< index of the sequence in the layouts
  std::int64_t first_token = 0;  ///< index in the layouts of the token at position 0
  std::int64_t value_dim = 0;    ///< channels of a value; 0: head_dim
  /// `OutputMetric::factors()`, host, [num_query_heads, value_dim, value_dim]; nullptr: errors before W_O alone
  float const* output_factors = nullptr;
  std::int64_t window = 0;  ///< tokens that a query sees, its own included; 0: all before it
  /// Logits of learned sinks, host, [num_query_heads], neither scaled nor capped: each takes part in the softmax of
  /// every row of its head and brings no value. -infinity: none; nullptr: no head has one
  float const* sinks = nullptr;
};

/// @brief Ready probabilities of one layer and one sequence, host pointers, from an engine that has them.
///
/// Row q of head h begins at `probabilities + h * head_stride + q * query_stride`, keys side by side;
/// keys after the query are not read.
/// @tparam T  float, float16 or bfloat16
template <class T, class ValueLayout = StridedLayout>
struct LayerProbabilities {
  T const* probabilities = nullptr;  ///< [num_query_heads, tokens, tokens]
  T const* values = nullptr;         ///< nullptr: mass only
  ValueLayout value_layout{};        ///< over KV heads
  std::int32_t num_query_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int64_t tokens = 0;
  std::int64_t head_stride = 0;   ///< elements; 0: tokens · tokens
  std::int64_t query_stride = 0;  ///< elements; 0: tokens
  std::int64_t sequence = 0;      ///< index of the sequence in the values' layout
  std::int64_t value_dim = 0;     ///< channels of a value; only needed with values
  float const* output_factors = nullptr;
  std::int64_t window = 0;  ///< keys that a query sees, its own included; those before count for nothing. 0: all before

  /// Index of the first element of a row.
  [[nodiscard]] std::int64_t row(std::int32_t head, std::int64_t query) const {
    return head * (head_stride != 0 ? head_stride : tokens * tokens) +
           query * (query_stride != 0 ? query_stride : tokens);
  }
};

namespace detail {

template <class Layer>
inline constexpr bool has_probabilities = requires(Layer const& layer) {
  layer.probabilities;
};

/// Channels of a query and a key; 0 for probabilities.
template <class Layer>
std::int64_t head_dim(Layer const& layer) {
  if constexpr (has_probabilities<Layer>) {
    return 0;
  } else {
    return layer.head_dim;
  }
}
/// Channels of a value.
template <class Layer>
std::int64_t value_dim(Layer const& layer) {
  return layer.value_dim != 0 ? layer.value_dim : head_dim(layer);
}
/// Index in the layouts of the token at position 0.
template <class Layer>
std::int64_t first_token(Layer const& layer) {
  if constexpr (has_probabilities<Layer>) {
    return 0;
  } else {
    return layer.first_token;
  }
}

/// The logit of a query head's learned sink; -infinity: none.
template <class Layer>
float sink_logit(Layer const& layer, std::int32_t head) {
  if constexpr (!has_probabilities<Layer>) {
    if (layer.sinks != nullptr) return layer.sinks[head];
  }
  return -std::numeric_limits<float>::infinity();
}
/// The window that two sources name, either of which may be silent: 0. @throws ArgumentError if they differ
inline std::int64_t common_window(std::int64_t of_layer, std::int64_t of_score, char const* where) {
  require(of_layer == 0 || of_score == 0 || of_layer == of_score, "sliding_window of the score",
          {"the layer's window, ", of_layer, ", or 0"}, of_score, where);
  return of_layer != 0 ? of_layer : of_score;
}

/// Checks that a layout reaches all tokens of its sequence, where it says how far it reaches.
/// @param wider  whether its rows may have more channels than these: they begin with them
template <class Layout, class Layer>
void check_reach(Layout const& layout, Layer const& layer, std::int32_t heads, std::int64_t channels, char const* what,
                 char const* where, bool wider = false) {
  static_assert(check_layout<Layout>());
  auto const name = [&](char const* of) { return std::string(what) + "' " + of; };
  if constexpr (requires { layout.num_sequences(); }) {
    require_index(layer.sequence, layout.num_sequences(), name("sequence"), where);
  }
  if constexpr (requires { layout.num_kv_heads(); }) {
    require(layout.num_kv_heads() == heads, name("heads"), heads, layout.num_kv_heads(), where);
  }
  if constexpr (requires { layout.num_channels(); }) {
    bool const reaches = wider ? layout.num_channels() >= channels : layout.num_channels() == channels;
    require(reaches, name("channels"), channels, layout.num_channels(), where);
  }
  if constexpr (requires { layout.token_capacity(); }) {
    std::int64_t const end = first_token(layer) + layer.tokens;
    require(end <= layout.token_capacity(), name("tokens"), {"at least ", end}, layout.token_capacity(), where);
  }
}

/// Checks that a layout's tables in host memory name all tokens of its sequence.
template <class Layout, class Layer>
void check_reach_of_table(Layout const& layout, Layer const& layer, char const* what, char const* where) {
  if constexpr (has_table<Layout>) {
    std::int64_t const first = first_token(layer);
    layout.check_table(layer.sequence, first, first + layer.tokens, (std::string(where) + ", " + what).c_str());
  }
}

/// @throws ArgumentError on shapes that make no sense, and on missing or misaligned pointers
template <class Layer>
void check_layer(Layer const& layer, char const* where) {
  require(layer.num_kv_heads > 0, "KV heads", "> 0", layer.num_kv_heads, where);
  bool const grouped = layer.num_query_heads > 0 && layer.num_query_heads % layer.num_kv_heads == 0;
  require(grouped, "query heads", {"a multiple of ", layer.num_kv_heads, " KV heads"}, layer.num_query_heads, where);
  require(layer.tokens >= 0, "tokens", ">= 0", layer.tokens, where);
  require(first_token(layer) >= 0, "first_token", ">= 0", first_token(layer), where);
  require(!sum_overflows(first_token(layer), layer.tokens), "first_token", {"at most ", largest_int64 - layer.tokens},
          first_token(layer), where);
  bool const with_values = layer.values != nullptr;
  require(layer.window >= 0, "window", ">= 0", layer.window, where);
  bool latent = false;
  require(layer.value_dim >= 0 && (!with_values || value_dim(layer) > 0), "value_dim", "> 0", layer.value_dim, where);
  require_aligned(layer.values, "values", where);
  require_aligned(layer.output_factors, "output factors", where);
  static_assert(holds_floats<std::remove_cvref_t<decltype(*layer.values)>>,
                "headaware: queries, keys, values and probabilities are float, float16 or bfloat16");
  require(with_values || layer.output_factors == nullptr, "values", "a pointer, as there are output factors", "nullptr",
          where);
  if constexpr (has_probabilities<Layer>) {
    require(layer.tokens == 0 || layer.probabilities != nullptr, "probabilities", "a pointer", "nullptr", where);
    require_aligned(layer.probabilities, "probabilities", where);
    bool const apart = (layer.query_stride == 0 || layer.query_stride >= layer.tokens) && layer.head_stride >= 0;
    require(apart, "query_stride", {">= ", layer.tokens}, layer.query_stride, where);
  } else {
    require(layer.head_dim > 0, "head_dim", "> 0", layer.head_dim, where);
    bool const given = layer.queries != nullptr && layer.keys != nullptr;
    require(layer.tokens == 0 || given, "queries and keys", "pointers", "nullptr", where);
    require_aligned(layer.queries, "queries", where);
    require_aligned(layer.keys, "keys", where);
    require_aligned(layer.sinks, "sinks", where);
    for (std::int32_t head = 0; layer.sinks != nullptr && head < layer.num_query_heads; ++head) {
      float const logit = layer.sinks[head];
      require(logit * log2_e < std::numeric_limits<float>::infinity(), "learned sink", "finite, or -infinity for none",
              logit, {where, ", query head ", head});
    }
    latent = layer.values == layer.keys;
    if (layer.tokens == 0) return;
    check_reach(layer.query_layout, layer, layer.num_query_heads, layer.head_dim, "queries", where);
    check_reach(layer.key_layout, layer, layer.num_kv_heads, layer.head_dim, "keys", where);
    check_reach_of_table(layer.query_layout, layer, "queries", where);
    check_reach_of_table(layer.key_layout, layer, "keys", where);
  }
  if (with_values && layer.tokens > 0) {
    check_reach(layer.value_layout, layer, layer.num_kv_heads, value_dim(layer), "values", where, latent);
    check_reach_of_table(layer.value_layout, layer, "values", where);
  }
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
