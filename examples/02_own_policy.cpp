// A policy of one's own is one small struct: here every second token of a window, and the sinks.

#include <headaware/compressor.hpp>

#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

/// Keeps the first `sink` tokens and, of the last `window`, every `step`-th, the newest included.
struct DilatedWindow {
  static constexpr std::string_view name = "dilated_window";

  std::int32_t sink = 4;
  std::int32_t window = 64;
  std::int32_t step = 2;

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token < sink || (token >= length - window && (length - 1 - token) % step == 0);
  }
  friend constexpr bool operator==(DilatedWindow const&, DilatedWindow const&) = default;
};
static_assert(ha::HeadPolicy<DilatedWindow>);

int main() {
  using Registry = ha::DefaultRegistry::with<DilatedWindow>;
  ha::ModelConfig const model{
      .num_hidden_layers = 1, .num_attention_heads = 2, .num_key_value_heads = 2, .head_dim = 8};
  ha::BasicPolicyTable<Registry> table(1, 2, DilatedWindow{.sink = 1, .window = 8, .step = 2});
  table.set(0, 1, ha::WindowOnly{.window = 3});
  ha::BasicCompressor<Registry> const compressor(model, table);

  std::vector<float> keys;
  for (int head = 0; head < 2; ++head) {
    for (int token = 0; token < 20; ++token) keys.insert(keys.end(), 8, static_cast<float>(token));
  }
  std::vector<ha::LayerKv<float const>> const layers{{keys.data(), keys.data()}};
  std::vector<std::int32_t> const lengths{20};
  auto const cache = compressor.compress(layers, ha::strided_bhsd(1, 2, 20, 8), lengths, 8);

  std::printf("%s", to_string(compressor.compression_summary(20)).c_str());
  std::vector<float> kept;
  for (std::int32_t head = 0; head < 2; ++head) {
    auto const rows = cache.head_keys(0, 0, head);
    std::printf("head %d (%s) keeps tokens", head, std::string(compressor.head_config(0, head).name()).c_str());
    for (std::size_t i = 0; i < rows.size(); i += 8) {
      std::printf(" %.0f", rows[i]);
      kept.push_back(rows[i]);
    }
    std::printf("\n");
  }
  return kept == std::vector<float>{0, 13, 15, 17, 19, 17, 18, 19} ? 0 : 1;
}
