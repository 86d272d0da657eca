#include <headaware/compressor.hpp>

#include <cstdio>

int main() {
  headaware::PolicyTable table(2, 4, headaware::SinkWindow{.sink = 4, .window = 28});
  table.set(1, 2, headaware::Full{});
  std::int64_t kept = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(); ++head) {
      kept += table.visit(layer, head, [](auto const& policy) { return headaware::kept_count(policy, 1000); });
    }
  }
  std::printf("%lld of 8000 tokens kept\n", static_cast<long long>(kept));
  return kept == 7 * 32 + 1000 ? 0 : 1;
}
