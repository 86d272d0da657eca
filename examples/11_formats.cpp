// A rolling cache whose heads hold fewer bits, each its own number: prompts and new tokens are encoded on the way in,
// the newest 16 and the first 4 stay exact beside, attention reads both.

#include <headaware/attention/exact_ring.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_layers = 1;
constexpr std::int32_t num_kv_heads = 3;
constexpr std::int32_t num_query_heads = 6;
constexpr std::int64_t head_dim = 64;
constexpr std::int32_t max_tokens = 600;

/// Stands for an engine's tensor of one step.
std::vector<ha::float16> projected(std::int64_t count, float phase) {
  std::vector<ha::float16> tensor(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tensor.size(); ++i) {
    tensor[i] = ha::from_float<ha::float16>(std::sin(phase + 0.37F * static_cast<float>(i)));
  }
  return tensor;
}

}  // namespace

int main() {
  try {
    // [formats]
    ha::PolicyTable table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 252});
    table.set(0, 1, ha::Full{});
    ha::FormatTable formats(num_layers, num_kv_heads, {ha::Packed<5>{}, ha::Packed<4>{}});  // of keys, of values
    formats.set(0, 2, {ha::Int8{}, ha::Int8{}});  // or load_format_table("plan.json", model)
    ha::RollingSlots const slots(table, 1, {.max_tokens = max_tokens});
    auto const planned = ha::packed_rolling(slots, slots.view(), formats, head_dim);
    std::vector<ha::RowUnit> rows(static_cast<std::size_t>(planned.total_units()));  // 16 bytes each: no more is held
    auto const packed = planned.with_buffer(rows.data());
    ha::RollingState state(1);

    ha::PolicyTable const newest(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 16});
    ha::RollingSlots const ring_slots(newest, 1, {.max_tokens = max_tokens});
    std::vector<ha::float16> ring_keys(static_cast<std::size_t>(ring_slots.rows_total() * head_dim));
    std::vector<ha::float16> ring_values(ring_keys.size());
    auto const ring = ha::rolling(ring_slots, ring_slots.view(), ring_keys.data(), ring_values.data(), head_dim);

    auto const kv = ha::strided_bshd(1, 1, num_kv_heads, head_dim);
    auto const heads = ha::strided_bshd(1, 1, num_query_heads, head_dim);
    std::vector<float> output(num_query_heads * head_dim);
    for (std::int32_t token = 0; token < max_tokens; ++token) {
      auto const phase = static_cast<float>(token);
      auto const keys = projected(num_kv_heads * head_dim, phase);
      auto const values = projected(num_kv_heads * head_dim, 1 + phase);
      auto const queries = projected(num_query_heads * head_dim, 2 + phase);
      std::vector<ha::LayerKv<ha::float16 const>> const news{{keys.data(), values.data()}};
      ha::append(slots.view(), state, news, kv, std::array{1}, packed, ring_slots.view(), ring);
      ha::RollingView const view{slots.view(), 0, state.lengths().data()};
      ha::RollingView const ring_view{ring_slots.view(), 0, state.lengths().data()};
      ha::RingedCache<ha::DefaultFormats, ha::float16> const cache{{packed.layers[0], packed.layer(0).data(), view},
                                                                   {ring_keys.data(), ring_values.data(), ring_view}};
      ha::attend({1, num_query_heads, num_kv_heads, 1, head_dim}, ha::AttentionQueries{queries.data(), heads}, cache,
                 ha::AttentionOutput{output.data(), heads});
    }
    // [/formats]
    std::printf("%lld bytes of codes and scales, %lld of exact rows; 16 bits would take %lld\n",
                static_cast<long long>(planned.total_bytes()),
                static_cast<long long>(2 * sizeof(ha::float16) * ring_keys.size()),
                static_cast<long long>(2 * sizeof(ha::float16)) * slots.rows_total() * head_dim);
    return std::isfinite(output[0]) ? 0 : 1;
  } catch (ha::Error const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
