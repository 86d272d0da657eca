#pragma once

// A rolling cache that a prefill chunk has just been appended to, and what attending token by token gives.

#include "support/kept_rows.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// Two sequences of different lengths; heads with every kind of policy.
struct RolledChunk {
  static constexpr std::int32_t num_kv_heads = 6;
  static constexpr std::int32_t num_query_heads = 12;
  static constexpr std::int64_t head_dim = 32;
  static constexpr std::int32_t slack = 39;

  std::int32_t tokens;  ///< of the chunk
  ha::RollingSlots slots;
  std::vector<float> keys;
  std::vector<float> values;
  ha::RollingState state{2};
  std::vector<std::int32_t> before;  ///< lengths before the chunk
  std::vector<float> queries;        ///< [sequences, tokens, num_query_heads, head_dim]
  std::vector<float> stepwise;       ///< likewise: token by token

  static ha::PolicyTable table() {
    ha::PolicyTable table(1, num_kv_heads, ha::Full{});
    table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 12});
    table.set(0, 2, ha::WindowOnly{.window = 70});
    table.set(0, 3, ha::Prune{});
    table.set(0, 4, ha::SinkWindow{.sink = 3, .window = 1});
    table.set(0, 5, ha::SinkWindow{.sink = 90, .window = 5});
    return table;
  }
  [[nodiscard]] ha::AttentionShape shape(std::int64_t count) const {
    return {2, num_query_heads, num_kv_heads, count, head_dim, 0};
  }
  [[nodiscard]] ha::StridedLayout layout() const { return ha::strided_bshd(2, tokens, num_query_heads, head_dim); }

  /// @param first, second  tokens that the sequences have before the chunk
  RolledChunk(std::int32_t first, std::int32_t second, std::int32_t count)
      : tokens(count), slots(table(), 2, {.max_tokens = 400, .slack = slack}) {
    keys.resize(static_cast<std::size_t>(slots.rows_total() * head_dim), 99.0F);
    values.resize(keys.size(), 99.0F);
    queries = random_elements<float>(layout().required_span_size(), 7);
    stepwise.resize(queries.size());
    auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), head_dim);
    auto const add = [&](std::int32_t at, std::array<std::int32_t, 2> const& counts) {
      std::int32_t const most = std::max(counts[0], counts[1]);
      auto const elements = std::int64_t{2} * most * num_kv_heads * head_dim;
      auto const seed = static_cast<unsigned>(100 + 2 * at);
      auto const new_keys = random_elements<float>(elements, seed);
      auto const new_values = random_elements<float>(elements, seed + 1);
      std::vector<ha::LayerKv<float const>> const step{{new_keys.data(), new_values.data()}};
      ha::append(slots.view(), state, step, ha::strided_bshd(2, most, num_kv_heads, head_dim), counts, cache);
    };
    add(0, {first, second});
    before.assign(state.lengths().begin(), state.lengths().end());
    for (std::int32_t t = 0; t < tokens; ++t) {
      add(1 + t, {1, 1});
      // One token's queries of both sequences.
      auto const of_token = layout();
      std::int64_t const from = of_token.offset(0, 0, t, 0);
      ha::attend(shape(1), ha::AttentionQueries{queries.data() + from, of_token},
                 ha::KeptCache{keys.data(), values.data(), ha::RollingView{slots.view(), 0, state.lengths().data()}},
                 ha::AttentionOutput{stepwise.data() + from, of_token});
    }
  }
};

}  // namespace headaware_test
