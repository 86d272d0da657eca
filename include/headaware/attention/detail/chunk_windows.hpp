#pragma once

// What views of caches with windows share: which tokens each of several new queries sees, and which calls they are for.

#include <headaware/attention/attention.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstdint>
#include <string>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Whether a query sees a token by its sinks and window. A query behind the newest of `length` tokens sees what that
/// one sees.
HEADAWARE_HOST_DEVICE constexpr bool in_sinks_or_window(std::int64_t position, std::int64_t query, std::int64_t length,
                                                        std::int64_t sink, std::int64_t window) {
  std::int64_t const newest = length - 1;
  return position < sink || position > (query < newest ? query : newest) - window;
}

/// @throws ArgumentError if the first of so many new tokens may have lost its window
inline void check_chunk(std::int64_t query_tokens, std::int32_t slack, char const* where) {
  require(query_tokens >= 1 && query_tokens - 1 <= slack, "query_tokens",
          {"1 to ", slack + std::int64_t{1}, ", the plan's slack and 1"}, query_tokens, where);
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
