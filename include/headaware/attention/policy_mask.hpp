#pragma once

/// @file
/// Policies as attention masks, for engines that cannot hold a cache whose heads differ in length: they keep the full
/// cache, save no memory, and compute what a compressed cache would give.

#include <headaware/attention/detail/check_masked.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/policy/table.hpp>

#include <cmath>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Tests whether a query at position `query` sees the key at position `key` where every token evicts what its
/// policy no longer keeps: `key <= query` and `policy.keeps(key, query + 1)`.
/// @pre  query >= 0, key >= 0
template <class P>
HEADAWARE_HOST_DEVICE constexpr bool sees(P const& policy, std::int64_t query, std::int64_t key) {
  return key <= query && policy.keeps(key, query + 1);
}

/// @brief The part of a layer's mask to fill: [num_kv_heads * group, queries, keys].
struct MaskShape {
  std::int32_t layer = 0;
  std::int32_t group = 1;        ///< query heads per KV head; 1: one mask per KV head
  std::int64_t first_query = 0;  ///< position of the first query
  std::int64_t queries = 0;
  std::int64_t keys = 0;      ///< keys are at positions 0 … keys - 1
  std::int32_t sequence = 0;  ///< for tables whose policies depend on the sequence
  std::int64_t window = 0;    ///< keys that a query sees, its own included, where the layer slides; 0: all before it

  /// Words of a row of packed bits.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t row_words() const { return (keys + 31) / 32; }
};

namespace detail {

inline constexpr std::int64_t mask_word_bits = 32;

/// The bits of keys 32 · word … + 31 of a query; bits beyond the last key are 0.
struct MaskWord {
  std::int64_t query;
  std::int64_t word;
  std::int64_t oldest;  ///< the first key that the layer sees
  std::int64_t keys;
  template <class P>
  HEADAWARE_HOST_DEVICE std::uint32_t operator()(P const& policy) const {
    std::uint32_t bits = 0;
    for (std::int64_t bit = 0; bit < mask_word_bits; ++bit) {
      std::int64_t const key = word * mask_word_bits + bit;
      if (key >= oldest && key < keys && sees(policy, query, key)) bits |= std::uint32_t{1} << bit;
    }
    return bits;
  }
};

/// One word of a mask. @param index  of [heads, queries, row_words]
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table>
HEADAWARE_HOST_DEVICE std::uint32_t mask_word(Table const& table, MaskShape const& shape, std::int64_t index) {
  std::int64_t const word = index % shape.row_words();
  std::int64_t const query = index / shape.row_words() % shape.queries;
  auto const head = static_cast<std::int32_t>(index / shape.row_words() / shape.queries);
  std::int64_t const at = shape.first_query + query;
  std::int64_t const oldest = shape.window > 0 ? at + 1 - shape.window : 0;
  return visit_policy(table, shape.layer, shape.sequence, head / shape.group, MaskWord{at, word, oldest, shape.keys});
}

/// Words of the mask of so many KV heads.
HEADAWARE_HOST_DEVICE inline std::int64_t mask_words(std::int32_t num_kv_heads, MaskShape const& shape) {
  return std::int64_t{num_kv_heads} * shape.group * shape.queries * shape.row_words();
}
/// Words of the whole mask. Where layers differ, to be asked where the table's numbers of heads are.
HEADAWARE_EXEC_CHECK_DISABLE
template <class Table>
HEADAWARE_HOST_DEVICE std::int64_t mask_words(Table const& table, MaskShape const& shape) {
  return mask_words(layer_heads(table).count(shape.layer), shape);
}

/// Writes one word's part of a mask: the word itself, or 0 and -inf for its keys.
HEADAWARE_HOST_DEVICE inline void write_mask(MaskShape const&, std::int64_t index, std::uint32_t bits,
                                             std::uint32_t* mask) {
  mask[index] = bits;
}
HEADAWARE_HOST_DEVICE inline void write_mask(MaskShape const& shape, std::int64_t index, std::uint32_t bits,
                                             float* mask) {
  std::int64_t const row = index / shape.row_words();
  std::int64_t const first = index % shape.row_words() * mask_word_bits;
  for (std::int64_t bit = 0; bit < mask_word_bits && first + bit < shape.keys; ++bit) {
    mask[row * shape.keys + first + bit] = (bits >> bit & 1U) != 0 ? 0.0F : -INFINITY;
  }
}

/// @param words  of the mask, at most
/// @throws ArgumentError as `fill_policy_mask`
template <class Table, class CountWords>
void check_mask(Table const& table, MaskShape const& shape, void const* mask, CountWords const& words) {
  constexpr auto where = "fill_policy_mask";
  require_index(shape.layer, table.num_layers(), "layer", where);
  require(shape.group > 0, "group", "> 0", shape.group, where);
  require(shape.first_query >= 0, "first query", ">= 0", shape.first_query, where);
  require(shape.queries >= 0, "queries", ">= 0", shape.queries, where);
  require(!sum_overflows(shape.first_query, shape.queries), "first query", {"at most ", largest_int64 - shape.queries},
          shape.first_query, where);
  require(shape.keys >= 0, "keys", ">= 0", shape.keys, where);
  require(shape.window >= 0, "window", ">= 0", shape.window, where);
  if constexpr (requires { table.num_sequences(); }) {
    require_index(shape.sequence, table.num_sequences(), "sequence", where);
  }
  require(mask != nullptr || words() == 0, "mask", "a pointer", "nullptr", where);
}

template <class Table, class T>
void fill_mask(Table const& table, MaskShape const& shape, T* mask) {
  check_mask(table, shape, mask, [&] { return mask_words(table, shape); });
  require(layer_heads(table).count(shape.layer) > 0, "layer of a mask",
          "one with policies: of a layer that reads another's cache the other one", shape.layer, "fill_policy_mask");
  check_masked_policies(table, shape.layer, shape.sequence);
  std::int64_t const words = mask_words(table, shape);
  constexpr std::int64_t grain = 256;
  parallel_for(words, grain, [&](std::int64_t i) { write_mask(shape, i, mask_word(table, shape, i), mask); });
}

}  // namespace detail

/// @brief Fills an additive mask on the CPU: 0 where a query sees a key, -inf elsewhere.
/// @param table  policies: `PolicyTable`, `UniformTable`, a view or `WithKeepLists`; host
/// @param shape  which part; query q of head h is at position `first_query + q` and follows KV head h / group's policy
/// @param mask   [num_kv_heads * group, queries, keys], host, with the KV heads of the layer
/// @throws ArgumentError on a layer or sequence out of range, a layer without a cache of its own, negative counts, a
///         missing pointer, or keep-lists that are missing or do not ascend
/// @note   A policy that keeps nothing of a sequence (`Prune`) hides all its keys: softmax over nothing is the
///         engine's to define, and zero here.
/// @par Cost  O(heads · queries · keys) calls of `keeps`; all cores with OpenMP
template <class Table>
void fill_policy_mask(Table const& table, MaskShape const& shape, float* mask) {
  detail::fill_mask(table, shape, mask);
}

/// @brief The same as bits: bit k mod 32 of word k / 32 of a row is set where the query sees key k.
/// @param mask   [num_kv_heads * group, queries, ceil(keys / 32)], host; bits beyond the last key are 0
template <class Table>
void fill_policy_mask(Table const& table, MaskShape const& shape, std::uint32_t* mask) {
  detail::fill_mask(table, shape, mask);
}

HEADAWARE_NAMESPACE_END
