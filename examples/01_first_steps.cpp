// The README's first example: a cache compressed head by head, on the CPU.

#include <headaware/compressor.hpp>

#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

int main() {
  // A model's shape, and what its KV heads keep: sinks and a window, except one head that keeps all.
  ha::ModelConfig const model{
      .num_hidden_layers = 2, .num_attention_heads = 8, .num_key_value_heads = 4, .head_dim = 64};
  auto table = ha::PolicyTable(2, 4, ha::SinkWindow{.sink = 4, .window = 28});
  table.set(1, 2, ha::Full{});
  ha::Compressor const compressor(model, table);

  // Sizes are known before anything moves.
  std::vector<std::int32_t> const lengths{1000};
  auto const plan = compressor.compaction(lengths);
  std::printf("%s", to_string(compressor.compression_summary(1000)).c_str());
  std::printf("%lld of %lld bytes\n", static_cast<long long>(plan.bytes_held(64, sizeof(float))),
              static_cast<long long>(plan.bytes_full(ha::TokenBytes::of(64, sizeof(float)))));

  // The engine's tensors, [batch, num_kv_heads, tokens, head_dim] a layer.
  std::vector<float> const keys(2 * 4 * 1000 * 64, 1.0F);
  std::vector<float> const values(2 * 4 * 1000 * 64, 2.0F);
  constexpr std::size_t layer_elements = 4 * 1000 * 64;
  std::vector<ha::LayerKv<float const>> const layers{{keys.data(), values.data()},
                                                     {keys.data() + layer_elements, values.data() + layer_elements}};
  auto const cache = compressor.compress(layers, ha::strided_bhsd(1, 4, 1000, 64), lengths, 64);
  std::printf("%s", to_string(cache.cache_info()).c_str());
  return cache.head_keys(1, 0, 2).size() == 1000 * 64 && cache.head_keys(0, 0, 0).size() == 32 * 64 ? 0 : 1;
}
