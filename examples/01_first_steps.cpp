// A cache compressed head by head, on the CPU: the README's first example.

#include <headaware/compressor.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

int main() {
  constexpr std::int32_t num_layers = 2, num_kv_heads = 4, tokens = 1000, head_dim = 64;
  constexpr std::size_t layer_elements = std::size_t{num_kv_heads} * tokens * head_dim;
  std::vector<float> const keys(num_layers * layer_elements, 1.0F), values(num_layers * layer_elements, 2.0F);
  ha::ModelConfig const model{.num_hidden_layers = num_layers,
                              .num_attention_heads = 2 * num_kv_heads,
                              .num_key_value_heads = num_kv_heads,
                              .head_dim = head_dim};

  std::vector<ha::LayerKv<float const>> const layers{{&keys[0], &values[0]},
                                                     {&keys[layer_elements], &values[layer_elements]}};

  // [compress]
  ha::PolicyTable table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 28});  // a policy per KV head
  table.set(1, 2, ha::Full{});                      // or Compressor::from_policies("plan.json", model)
  std::vector<std::int32_t> const lengths{tokens};  // of each sequence
  ha::Compaction const compaction(table, lengths);  // sizes are known before anything moves
  std::vector<float> kept_keys(static_cast<std::size_t>(compaction.kept_total() * head_dim));
  std::vector<float> kept_values(kept_keys.size());
  auto const kept = ha::ragged(compaction, kept_keys.data(), kept_values.data(), head_dim);  // or padded, paged
  auto const source = ha::strided_bhsd(1, num_kv_heads, tokens, head_dim);                   // your engine's layout
  ha::compress(compaction, layers, source, kept);  // layers: base pointers of each layer's keys and values
  // [/compress]

  ha::Compressor const compressor(model, table);  // the same with storage of its own, and what it came to in words
  auto const cache = compressor.compress(layers, source, lengths, head_dim);
  std::printf("%s%s", to_string(compressor.compression_summary(tokens)).c_str(), to_string(cache.cache_info()).c_str());
  bool const same = kept_keys.size() == static_cast<std::size_t>(1000 + 7 * 32) * head_dim && kept_values.back() == 2 &&
                    cache.head_keys(1, 0, 2).size() == 1000 * 64 && cache.head_keys(0, 0, 0).size() == 32 * 64;
  return same ? 0 : 1;
}
