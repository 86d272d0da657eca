#pragma once

// Every form of cache filled by the CPU, whole buffers compared with what plain loops say.

#include "support/random_cache.hpp"

#include <headaware/cache/compact.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

/// What `for_each_form` and its like call: compresses into one form and compares the buffer, gaps included.
template <class T, class Source, class Compaction>
auto check_host_form(SourceCache<T, Source> const& cache, Compaction const& compaction, KeptTokens const& tokens) {
  return [&](std::string const& name, Places const& places, auto const& make) {
    std::vector<T> arena = guarded<T>(places.elements);
    HostUpload const upload;
    ha::compress(compaction, cache.layers(), cache.source, make(arena.data(), upload));
    INFO(name);
    REQUIRE(arena_difference(arena, expected_arena(cache, tokens, places), {cache.head_dim, cache.value_dim}, tokens,
                             places) == "");
  };
}

template <class T, class Source, class Compaction>
void check_host_forms(SourceCache<T, Source> const& cache, Compaction const& compaction,
                      std::vector<std::int32_t> const& lengths, std::int64_t gap, unsigned seed) {
  KeptTokens const tokens(compaction.table(), lengths);
  for_each_form<T>(compaction, tokens, {cache.head_dim, cache.value_dim}, gap, seed,
                   check_host_form(cache, compaction, tokens));
}

template <class T, class Source, class Compaction>
void check_host_ragged(SourceCache<T, Source> const& cache, Compaction const& compaction,
                       std::vector<std::int32_t> const& lengths, std::int64_t gap) {
  KeptTokens const tokens(compaction.table(), lengths);
  ragged_arenas<T>(compaction, tokens, {cache.head_dim, cache.value_dim}, gap,
                   check_host_form(cache, compaction, tokens));
}

}  // namespace headaware_test
