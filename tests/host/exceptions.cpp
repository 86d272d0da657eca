// What fails reaches the caller: what a user's types throw, also from work that is shared out among threads, and
// pointers that are missing.

#include "support/errors.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/masked.hpp>
#include <headaware/attention/policy_mask.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/stats/observe.hpp>

#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// A layout of one's own that throws at a token.
struct Throws {
  std::int64_t tokens = 0;
  std::int64_t channels = 0;
  std::int64_t at = 0;
  [[nodiscard]] std::int64_t offset(std::int64_t, std::int64_t head, std::int64_t token, std::int64_t channel) const {
    if (token == at) throw std::out_of_range("a layout of one's own");
    return (head * tokens + token) * channels + channel;
  }
  [[nodiscard]] std::int64_t num_channels() const { return channels; }
};

struct ThrowingPolicy {
  static constexpr std::string_view name = "throwing";
  [[nodiscard]] bool keeps(std::int64_t token, std::int64_t length) const {
    if (token == 5) throw std::out_of_range("a policy of one's own");
    return token + 100 > length;
  }
  friend constexpr bool operator==(ThrowingPolicy const&, ThrowingPolicy const&) = default;
};

constexpr std::int64_t heads = 8;
constexpr std::int64_t tokens = 600;
constexpr std::int64_t channels = 16;
constexpr Throws throws{tokens, channels, 7};

}  // namespace

TEST_CASE("Exceptions of a user's types leave attention and statistics", "[attention]") {
  std::vector<float> data(static_cast<std::size_t>(heads * tokens * channels), 0.5F);
  std::vector<float> result(data.size());
  auto const plain = ha::strided_bhsd(1, heads, tokens, channels);
  std::vector<std::int32_t> const lengths(heads, static_cast<std::int32_t>(tokens));
  ha::PaddedView const view{lengths.data(), static_cast<std::int32_t>(heads), tokens};
  ha::AttentionShape const shape{.num_sequences = 1,
                                 .num_query_heads = static_cast<std::int32_t>(heads),
                                 .num_kv_heads = static_cast<std::int32_t>(heads),
                                 .query_tokens = tokens,
                                 .head_dim = channels};
  ha::KeptCache const cache{data.data(), data.data(), view};
  CHECK_THROWS_AS(
      ha::attend(shape, ha::AttentionQueries{data.data(), throws}, cache, ha::AttentionOutput{result.data(), plain}),
      std::out_of_range);
  std::vector<float> lse(static_cast<std::size_t>(heads * tokens));
  std::vector<float> other_lse = lse;
  CHECK_THROWS_AS(ha::attend(shape, ha::AttentionQueries{data.data(), plain}, cache,
                             ha::AttentionOutput{result.data(), throws, lse.data()}),
                  std::out_of_range);
  CHECK_THROWS_AS(ha::merge_attention(shape, ha::AttentionOutput{result.data(), throws, lse.data()},
                                      ha::AttentionOutput{data.data(), plain, other_lse.data()}),
                  std::out_of_range);

  ha::LayerQkv<float, ha::StridedLayout, Throws> const layer{.queries = data.data(),
                                                             .keys = data.data(),
                                                             .values = data.data(),
                                                             .query_layout = plain,
                                                             .key_layout = throws,
                                                             .value_layout = throws,
                                                             .num_query_heads = static_cast<std::int32_t>(heads),
                                                             .num_kv_heads = static_cast<std::int32_t>(heads),
                                                             .tokens = tokens,
                                                             .head_dim = channels};
  CHECK_THROWS_AS(ha::observe_chunk(layer, {}), std::out_of_range);
  ha::UniformTable const full(ha::Full{}, 1, static_cast<std::int32_t>(heads));
  CHECK_THROWS_AS(ha::attend_masked(layer, {}, full, 0, result.data(), plain), std::out_of_range);

  std::vector<std::uint32_t> mask(static_cast<std::size_t>(heads * tokens * ((tokens + 31) / 32)));
  ha::UniformTable const table(ThrowingPolicy{}, 1, static_cast<std::int32_t>(heads));
  CHECK_THROWS_AS(ha::fill_policy_mask(table, {.queries = tokens, .keys = tokens}, mask.data()), std::out_of_range);
}

TEST_CASE("Exceptions of a user's types leave caches", "[cache]") {
  std::vector<float> data(static_cast<std::size_t>(heads * tokens * channels), 0.5F);
  std::vector<ha::LayerKv<float const>> const layers{{data.data(), data.data()}};
  std::vector<std::int32_t> const lengths{static_cast<std::int32_t>(tokens)};
  ha::PolicyTable const table(1, static_cast<std::int32_t>(heads), ha::WindowOnly{.window = tokens - 2});
  ha::Compaction const compaction(table, lengths);
  std::vector<float> keys(static_cast<std::size_t>(compaction.kept_total() * channels));
  std::vector<float> values = keys;
  CHECK_THROWS_AS(
      ha::compress(compaction, layers, throws, ha::ragged(compaction, keys.data(), values.data(), channels)),
      std::out_of_range);
  std::vector<float> more = data;
  CHECK_THROWS_AS(
      ha::compress_in_place(compaction, std::vector<ha::LayerKv<float>>{{data.data(), more.data()}}, throws),
      std::out_of_range);

  ha::RollingSlots const rolling(table, 1, {});
  std::vector<float> ring(static_cast<std::size_t>(rolling.rows_total() * channels));
  std::vector<float> other_ring = ring;
  ha::RollingState state(1);
  CHECK_THROWS_AS(ha::append(rolling.view(), state, layers, throws, std::vector<std::int32_t>{300},
                             ha::rolling(rolling, rolling.view(), ring.data(), other_ring.data(), channels)),
                  std::out_of_range);
}

TEST_CASE("what a late step of a shared loop throws reaches the caller", "[attention]") {
  auto const loop = [](auto const& thrown) {
    ha::detail::parallel_for(1000, 4, [&](std::int64_t i) {
      if (i == 999) throw thrown;
    });
  };
  CHECK_THROWS_AS(loop(std::out_of_range("late")), std::out_of_range);
  CHECK_THROWS_AS(loop(7), int);
}

TEST_CASE("views without pointers are refused in words", "[attention]") {
  std::vector<float> const data(64, 1);
  std::vector<float> output(16);
  auto const layout = ha::strided_bhsd(1, 2, 1, 8);
  auto const refused = [&](auto const& view, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(
        [&] {
          ha::attend({1, 2, 2, 1, 8}, ha::AttentionQueries{data.data(), layout},
                     ha::KeptCache{data.data(), data.data(), view}, ha::AttentionOutput{output.data(), layout});
        },
        parts);
  };
  std::vector<std::int32_t> const two{1, 1, 2};
  std::vector<std::int64_t> const offsets{0, 1, 2};
  refused(ha::RaggedView<std::int64_t>{}, {"offsets", "a pointer", "nullptr", "RaggedView"});
  refused(ha::RaggedView{offsets.data(), 1}, {"KV heads", "1", "2", "RaggedView"});
  refused(ha::PaddedView{}, {"lengths", "a pointer", "nullptr", "PaddedView"});
  refused(ha::PagedView(), {"KV heads", "0", "2", "PagedView"});
  refused(ha::PagedView::csr(two.data(), nullptr, two.data(), 2, 4), {"indptr", "a pointer", "nullptr", "PagedView"});
  refused(ha::PagedView::csr(two.data(), two.data(), nullptr, 2, 4), {"last_page_len", "a pointer", "nullptr", ""});
  refused(ha::PagedView::dense(two.data(), 1, nullptr, 2, 4), {"lengths", "a pointer", "nullptr", "PagedView"});
  refused(ha::PagedView::dense(nullptr, 1, two.data(), 2, 4), {"pages", "a pointer", "nullptr", "attend"});
  refused(ha::HeadPagesView(), {"KV heads", "0", "2", "HeadPagesView"});
  refused(ha::RollingView{}, {"layer", "[0, 0)", "0", "RollingView"});
  ha::RollingSlots const slots(ha::UniformTable(ha::SinkWindow{.sink = 2, .window = 4}, 1, 2), 1, {});
  refused(ha::RollingView{slots.view()}, {"lengths", "a pointer", "nullptr", "RollingView"});
  ha::PagedHeadsView pages;
  ha::PagedHead const heads[2] = {};
  pages.num_layers = pages.num_sequences = 1;
  pages.num_kv_heads = 2;
  refused(ha::HeadPagesView(pages, 0, two.data()), {"pages", "a pointer", "nullptr", "HeadPagesView"});
  pages.heads = heads;
  refused(ha::HeadPagesView(pages, 0, nullptr), {"lengths", "a pointer", "nullptr", "HeadPagesView"});
  pages.max_tokens_held = 4;
  refused(ha::HeadPagesView(pages, 0, two.data()), {"block table", "a pointer", "nullptr", "HeadPagesView"});
}
