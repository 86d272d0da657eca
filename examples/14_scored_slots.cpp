// A cache whose heads keep, beside sinks and a window, the tokens of the highest scores: every token comes with a
// score, and one that leaves the window replaces the scored token of the lowest, or goes. Rolling, and in pages of
// single heads, of which a fork keeps the same tokens.

#include <headaware/attention/attend.hpp>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/attention/scored_pages_view.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/paged_scored.hpp>
#include <headaware/cache/scored_append.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t num_kv_heads = 2;
constexpr std::int32_t num_query_heads = 4;
constexpr std::int64_t head_dim = 32;
constexpr std::int32_t max_tokens = 400;
constexpr std::int32_t needle = 57;  ///< a token that a late query looks for

/// Stands for an engine's tensor of one step.
std::vector<float> projected(std::int64_t count, float phase) {
  std::vector<float> tensor(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tensor.size(); ++i)
    tensor[i] = std::sin((1 + phase) * (1 + 0.37F * static_cast<float>(i)));
  return tensor;
}

/// A layer's part of a step.
struct Step {
  std::vector<float> keys;
  std::vector<float> values;
  std::array<float, num_kv_heads> scores{};
  std::vector<float> queries;

  explicit Step(std::int32_t token)
      : keys(projected(num_kv_heads * head_dim, static_cast<float>(token))),
        values(projected(num_kv_heads * head_dim, 0.5F + static_cast<float>(token))),
        queries(projected(num_kv_heads * head_dim, static_cast<float>(needle))) {
    // How much later tokens will look at this one, by any method.
    scores.fill(token == needle ? 10.0F : std::sin(static_cast<float>(token)));
    // The query is the needle's key: where that is kept, attention finds its value.
    queries.insert(queries.begin() + head_dim, queries.begin(), queries.begin() + head_dim);
    queries.insert(queries.end(), queries.end() - head_dim, queries.end());
  }
  [[nodiscard]] std::vector<ha::LayerKv<float const>> tokens() const { return {{keys.data(), values.data()}}; }
  /// [sequences, KV heads, new tokens]
  [[nodiscard]] ha::TokenScores of_tokens() const {
    return ha::TokenScores::contiguous(scores.data(), 1, num_kv_heads, 1);
  }
};

}  // namespace

int main() {
  try {
    // [scored]
    ha::PolicyTable table(1, num_kv_heads, ha::SinkWindowScored{.sink = 4, .window = 28, .scored = 32});
    table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 60});  // as many tokens, chosen by their age alone
    ha::RollingSlots const slots(table, 1, {});
    ha::RollingScores scores(slots);  // beside the rows: 16 bytes a scored slot, 4 a slot of the ring
    std::vector<float> keys(static_cast<std::size_t>(slots.rows_total() * head_dim));
    std::vector<float> values(keys.size());
    auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), head_dim);
    ha::RollingState state(1);

    auto const kv = ha::strided_bshd(1, 1, num_kv_heads, head_dim);
    auto const heads = ha::strided_bshd(1, 1, num_query_heads, head_dim);
    std::vector<float> output(num_query_heads * head_dim);
    for (std::int32_t token = 0; token < max_tokens; ++token) {
      Step const step(token);
      ha::append(slots.view(), state, step.tokens(), kv, std::array{1}, cache, scores.view(), step.of_tokens());
      ha::ScoredView const view{slots.view(), scores.view(), 0, state.lengths().data()};
      ha::attend({1, num_query_heads, num_kv_heads, 1, head_dim}, ha::AttentionQueries{step.queries.data(), heads},
                 ha::KeptCache{keys.data(), values.data(), view}, ha::AttentionOutput{output.data(), heads},
                 {.scale = 20.0F});
    }
    // [/scored]

    // The same in pages of single heads, where a sequence may continue another.
    // [scored-pages]
    ha::PagedHeads pages(table, {.num_sequences = 2, .page_size = 16, .num_pages = 64, .limits = {}});
    ha::RollingScores records(pages.slots());
    std::vector<float> page_keys(static_cast<std::size_t>(pages.shape().num_pages * 16 * head_dim));
    std::vector<float> page_values(page_keys.size());
    ha::PageStorage<float> const pool{page_keys.data(), page_values.data(), head_dim, head_dim};
    auto const both = ha::strided_bshd(2, 1, num_kv_heads, head_dim);
    for (std::int32_t token = 0; token < max_tokens; ++token) {
      Step const step(token);
      ha::PageStep const places = pages.append(std::array{1, 0});  // nothing is read of a sequence without new tokens
      ha::append(pages, places, step.tokens(), both, pool, records.view(), step.of_tokens());
    }
    ha::fork(pages, 0, 1, records.view());
    auto const pairs = ha::strided_bshd(2, 1, num_query_heads, head_dim);
    std::vector<float> queries = Step(0).queries;
    queries.insert(queries.end(), queries.begin(), queries.begin() + num_query_heads * head_dim);
    std::vector<float> of_both(queries.size());
    ha::ScoredPagesView const view(ha::HeadPagesView(pages.view(), 0, pages.state().lengths().data()), records.view());
    ha::attend({2, num_query_heads, num_kv_heads, 1, head_dim}, ha::AttentionQueries{queries.data(), pairs},
               ha::KeptCache{page_keys.data(), page_values.data(), view}, ha::AttentionOutput{of_both.data(), pairs},
               {.scale = 20.0F});
    // [/scored-pages]
    bool const same = std::equal(output.begin(), output.end(), of_both.begin()) &&
                      std::equal(output.begin(), output.end(), of_both.begin() + num_query_heads * head_dim);

    std::vector<std::int32_t> shown(static_cast<std::size_t>(slots.head(0, 0).slots()));
    ha::slot_positions(slots.view(), scores.view(), 0, 0, 0, max_tokens, shown);
    bool kept = false;
    for (std::int32_t const token : shown) kept = kept || token == needle;
    auto const sought = projected(num_kv_heads * head_dim, 0.5F + static_cast<float>(needle));
    auto const error = [&](std::int64_t query_head) {
      float worst = 0;
      for (std::int64_t c = 0; c < head_dim; ++c) {
        auto const at = static_cast<std::size_t>(query_head * head_dim + c);
        auto const right = static_cast<std::size_t>(query_head / 2 * head_dim + c);
        worst = std::max(worst, std::abs(output[at] - sought[right]));
      }
      return worst;
    };
    std::printf("token %d of %d %s; value read: off by %.3f with scores, by %.3f in the window of as many tokens\n",
                needle, max_tokens, kept ? "is kept" : "is gone", static_cast<double>(error(0)),
                static_cast<double>(error(2)));
    std::printf("pages and their fork: %s\n", same ? "the same" : "OTHERS");
    std::printf("%lld bytes of rows, %lld of scores and records\n",
                static_cast<long long>(slots.bytes_held(head_dim, sizeof(float))),
                static_cast<long long>(scores.bytes_held()));
    return kept && same && error(0) < 0.1F && error(0) < error(2) ? 0 : 1;
  } catch (ha::Error const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
