#pragma once

// Argument checks of views of caches with windows.

#include <headaware/attention/attention.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @throws ArgumentError if the first of so many new tokens may have lost its window
inline void check_chunk(std::int64_t query_tokens, std::int32_t slack, char const* where) {
  require(query_tokens >= 1 && query_tokens - 1 <= slack, "query_tokens",
          {"1 to ", slack + std::int64_t{1}, ", the slack and 1"}, query_tokens, where);
}

/// @throws ArgumentError if a call is for other heads or more sequences than the cache's, or has no positions for the
///         windows of several queries
inline void check_windowed_call(AttentionShape const& shape, AttentionOptions const& options, std::int32_t sequences,
                                LayerHeads const& heads, std::int64_t query_tokens, char const* where) {
  // Where layers differ, their numbers may be in a device's memory: `check_layer_heads` reads them.
  bool const differ = heads.first_heads != nullptr;
  bool const possible = differ ? shape.num_kv_heads <= heads.num_kv_heads : shape.num_kv_heads == heads.num_kv_heads;
  require(possible, "KV heads", {differ ? "at most " : "", heads.num_kv_heads}, shape.num_kv_heads, where);
  require(shape.num_sequences <= sequences, "sequences", {"at most ", sequences}, shape.num_sequences, where);
  require(query_tokens == 1 || options.first_positions != nullptr, "first_positions",
          "a pointer for a view of several queries' windows", "nullptr", where);
}

/// Checks the KV heads of a layer, by numbers in host memory.
/// @throws ArgumentError if a call is for a layer of other heads, or for one that holds no cache of its own
inline void check_layer_heads(AttentionShape const& shape, LayerHeads const& heads, std::int32_t layer,
                              char const* where) {
  std::int32_t const count = heads.count(layer);
  require(shape.num_kv_heads == count, "KV heads", {count, ", of layer ", layer}, shape.num_kv_heads, where);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
