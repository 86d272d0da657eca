// An engine's own layout is a type with one function: here pages of 16 tokens that hold a head's keys
// channel-major, found through a table of the engine's own.

#include <headaware/compressor.hpp>

#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

namespace ha = headaware;

struct EngineKeys {
  std::int64_t const* page_addresses;  ///< [sequences, heads, pages]: element offset of each page
  std::int64_t pages_per_head;
  std::int64_t heads;

  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t sequence, std::int64_t head, std::int64_t token,
                                            std::int64_t channel) const {
    std::int64_t const page = page_addresses[(sequence * heads + head) * pages_per_head + token / 16];
    return page + channel * 16 + token % 16;
  }
};
static_assert(ha::KvLayout<EngineKeys>);

int main() {
  constexpr std::int64_t head_dim = 4;
  constexpr std::int64_t heads = 2;
  constexpr std::int64_t pages = 3;
  // Pages in reverse order, to show that nothing is taken for granted.
  std::vector<std::int64_t> addresses(heads * pages);
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    addresses[i] = static_cast<std::int64_t>(addresses.size() - 1 - i) * 16 * head_dim;
  }
  std::vector<std::uint16_t> keys(heads * pages * 16 * head_dim);
  std::iota(keys.begin(), keys.end(), std::uint16_t{0});
  std::vector<ha::LayerKv<std::uint16_t const>> const layers{{keys.data(), keys.data()}};

  ha::PolicyTable const table(1, heads, ha::WindowOnly{.window = 5});
  std::vector<std::int32_t> const lengths{40};
  EngineKeys const source{addresses.data(), pages, heads};
  auto const cache = ha::head_aware_compress(layers, source, table, lengths, head_dim);

  bool right = true;
  for (std::int32_t head = 0; head < heads; ++head) {
    auto const rows = cache.head_keys(0, 0, head);
    for (std::int64_t i = 0; i < 5; ++i) {
      for (std::int64_t c = 0; c < head_dim; ++c) {
        right = right && rows[static_cast<std::size_t>(i * head_dim + c)] ==
                             keys[static_cast<std::size_t>(source.offset(0, head, 35 + i, c))];
      }
    }
  }
  std::printf("%zu elements kept, %s\n", cache.keys.size(), right ? "all from the right places" : "WRONG");
  return right ? 0 : 1;
}
