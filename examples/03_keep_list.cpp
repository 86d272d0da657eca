// Score-based selection (SnapKV and its kin) plugs in as lists of tokens, one a (layer, sequence, head).

#include <headaware/compressor.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

namespace ha = headaware;

/// The `budget` tokens with the highest scores, in the order of the sequence.
static std::vector<std::int32_t> top_tokens(std::vector<float> const& scores, std::size_t budget) {
  std::vector<std::int32_t> tokens(scores.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  std::stable_sort(tokens.begin(), tokens.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  tokens.resize(std::min(budget, tokens.size()));
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

int main() {
  constexpr std::int32_t num_kv_heads = 2;
  constexpr std::int32_t head_dim = 16;
  std::vector<std::int32_t> const lengths{50, 30};

  std::vector<float> keys(2 * num_kv_heads * 50 * head_dim);
  std::iota(keys.begin(), keys.end(), 0.0F);
  std::vector<ha::LayerKv<float const>> const layers{{keys.data(), keys.data()}};

  // Lists for head 0 of both sequences; head 1 follows the table.
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform;
  std::vector<std::vector<std::int32_t>> tokens;
  for (std::int32_t const length : lengths) {
    std::vector<float> scores(static_cast<std::size_t>(length));
    std::generate(scores.begin(), scores.end(), [&] { return uniform(random); });
    tokens.push_back(top_tokens(scores, 8));
  }
  std::vector<ha::KeepList> const lists{{tokens[0].data(), 8}, {}, {tokens[1].data(), 8}, {}};

  ha::PolicyTable const table(1, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 12});
  ha::Compaction const plan(ha::WithKeepLists(table.view(), lists.data(), 2), lengths);
  std::vector<float> kept_keys(static_cast<std::size_t>(plan.kept_total() * head_dim));
  std::vector<float> kept_values(kept_keys.size());
  auto const source = ha::strided_bhsd(2, num_kv_heads, 50, head_dim);
  ha::compress(plan, layers, source, ha::ragged(plan, kept_keys.data(), kept_values.data(), head_dim));

  bool right = true;
  for (std::int32_t sequence = 0; sequence < 2; ++sequence) {
    auto const first = plan.offsets()[static_cast<std::size_t>(sequence * num_kv_heads)];
    for (std::size_t i = 0; i < 8; ++i) {
      std::int32_t const token = tokens[static_cast<std::size_t>(sequence)][i];
      float const got = kept_keys[static_cast<std::size_t>((first + static_cast<std::int64_t>(i)) * head_dim)];
      right = right && got == keys[static_cast<std::size_t>(source.offset(sequence, 0, token, 0))];
    }
  }
  std::printf("%lld of %lld rows kept, listed tokens %s\n", static_cast<long long>(plan.kept_total()),
              static_cast<long long>(plan.full_total()), right ? "as listed" : "WRONG");
  return right ? 0 : 1;
}
