// Tokens chosen by scores, as SnapKV and its kin do: the attention that a prompt's rows get from its last queries, the
// best of every KV head beside sinks and window, a cache of these.

#include <headaware/attention/dense_views.hpp>
#include <headaware/attention/key_scores.hpp>
#include <headaware/compressor.hpp>
#include <headaware/score/select.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace ha = headaware;

int main() {
  constexpr std::int32_t num_query_heads = 4;
  constexpr std::int32_t num_kv_heads = 2;
  constexpr std::int32_t head_dim = 16;
  constexpr std::int32_t tokens = 200;
  constexpr std::int32_t last = 16;  // queries that score
  std::vector<std::int32_t> const lengths{tokens};

  // Keys [1, num_kv_heads, tokens, head_dim]; queries of the last tokens. All of them look for token 77 of KV head 0.
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> keys(num_kv_heads * tokens * head_dim);
  std::vector<float> queries(num_query_heads * last * head_dim);
  std::generate(keys.begin(), keys.end(), [&] { return normal(random); });
  std::fill(queries.begin(), queries.end(), 1.0F);
  std::fill_n(keys.begin() + 77 * head_dim, head_dim, 1.0F);

  // The probability that every row gets, summed over the queries of its group.
  std::vector<std::int32_t> const offsets{0, tokens, 2 * tokens};
  std::int32_t const first_position = tokens - last;
  std::vector<float> scores(num_kv_heads * tokens);
  ha::score_keys({1, num_query_heads, num_kv_heads, last, head_dim},
                 ha::AttentionQueries{queries.data(), ha::strided_bhsd(1, num_query_heads, last, head_dim)},
                 ha::KeptCache{keys.data(), static_cast<float*>(nullptr), ha::RaggedView{offsets.data(), num_kv_heads}},
                 {.first_positions = &first_position}, ha::KeyScoreReduction::sum, {scores.data(), tokens});

  // 4 sinks, the 8 newest, and 20 others of head 0, 5 of head 1.
  std::vector<std::int32_t> const budgets{20, 5};
  ha::SelectionShape const from{{1, num_kv_heads, nullptr, 0}, 1, lengths.data(), tokens};
  ha::SelectionRule const rule{.sink = 4, .window = 8, .budgets = budgets.data()};
  std::int64_t const stride = ha::selection_stride(from, rule);
  std::vector<std::int32_t> selected(static_cast<std::size_t>(num_kv_heads * stride));
  std::vector<ha::KeepList> lists(num_kv_heads);
  ha::select_tokens(from, {scores.data(), tokens}, rule, {selected.data(), stride, lists.data(), nullptr});

  // Lists go before the policies of a table; a head without one would follow it.
  ha::PolicyTable const table(1, num_kv_heads, ha::Full{});
  ha::Compaction const plan(ha::WithKeepLists(table.view(), lists.data(), 1), lengths);
  std::vector<float> kept_keys(static_cast<std::size_t>(plan.kept_total() * head_dim));
  std::vector<float> kept_values(kept_keys.size());
  std::vector<ha::LayerKv<float const>> const layers{{keys.data(), keys.data()}};
  auto const source = ha::strided_bhsd(1, num_kv_heads, tokens, head_dim);
  ha::compress(plan, layers, source, ha::ragged(plan, kept_keys.data(), kept_values.data(), head_dim));

  std::int32_t const* const begin = lists[0].tokens;
  bool right = lists[0].count == 32 && lists[1].count == 17 && std::count(begin, begin + lists[0].count, 77) == 1;
  for (std::int32_t head = 0; head < num_kv_heads; ++head) {
    ha::KeepList const& list = lists[static_cast<std::size_t>(head)];
    for (std::int64_t i = 0; i < list.count; ++i) {
      float const got =
          kept_keys[static_cast<std::size_t>((plan.offsets()[static_cast<std::size_t>(head)] + i) * head_dim)];
      right = right && got == keys[static_cast<std::size_t>(source.offset(0, head, list.tokens[i], 0))];
    }
  }
  std::printf("%lld of %lld rows kept, the best by score: %s\n", static_cast<long long>(plan.kept_total()),
              static_cast<long long>(plan.full_total()), right ? "right" : "WRONG");
  return right ? 0 : 1;
}
