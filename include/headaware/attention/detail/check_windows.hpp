#pragma once

// Argument checks of views of caches with windows.

#include <headaware/attention/attention.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

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
                                std::int32_t num_kv_heads, std::int64_t query_tokens, char const* where) {
  require(shape.num_kv_heads == num_kv_heads, "KV heads", num_kv_heads, shape.num_kv_heads, where);
  require(shape.num_sequences <= sequences, "sequences", {"at most ", sequences}, shape.num_sequences, where);
  require(query_tokens == 1 || options.first_positions != nullptr, "first_positions",
          "a pointer for a view of several queries' windows", "nullptr", where);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
