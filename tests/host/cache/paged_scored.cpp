// Pages of single heads with scored slots: they keep what a rolling cache of the same policies and scores keeps, and
// attention over both is the same.

#include "support/errors.hpp"
#include "support/scored_pages.hpp"

#include <headaware/attention/head_pages_view.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

using namespace headaware_test;

namespace {

using Error = ha::ArgumentError;
using Pages = ScoredPages<float>;

void check_attention(Pages& p, std::int64_t tokens, std::vector<std::int32_t> const& first) {
  for (std::int32_t layer = 0; layer < Pages::num_layers; ++layer) {
    INFO("layer " << layer << ", " << tokens << " tokens");
    REQUIRE(p.attend(true, layer, tokens, 2, first) == p.attend(false, layer, tokens, 2, first));
  }
}

/// What is shown to the newest token, by (layer, sequence, KV head, position).
std::map<std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t>, std::vector<float>> shown(Pages& p) {
  std::map<std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t>, std::vector<float>> result;
  p.for_each_shown(
      [&](ha::Segment const& at_head, std::int64_t, std::int32_t token, float const* key, float const* value) {
        std::vector<float> row(key, key + p.key_dim);
        row.insert(row.end(), value, value + p.value_dim);
        result[{at_head.layer, at_head.sequence, at_head.kv_head, token}] = row;
      });
  return result;
}

std::int64_t in_use(Pages const& p) { return p.pages.pool().num_pages() - p.pages.pool().free_pages(); }

}  // namespace

TEST_CASE("walks of pages with scored slots keep what rolling caches keep", "[cache]") {
  for (auto const& [page_size, slack] :
       {std::pair{1, 0}, std::pair{4, 0}, std::pair{4, 3}, std::pair{16, 4}, std::pair{7, 19}}) {
    INFO("pages of " << page_size);
    Pages p(page_size, slack, 8, 5);
    walk_scored_pages(p, static_cast<unsigned>(70 + slack), 120, [&](std::int64_t tokens) {
      REQUIRE(p.difference() == "");
      if (tokens > 0 && tokens - 1 <= slack) check_attention(p, tokens, p.first_positions(tokens));
      if (slack == 0) check_attention(p, 1, {});
    });
  }
}

TEST_CASE("a prompt's append to pages with scored slots keeps what chunks and single tokens keep", "[cache]") {
  for (std::int32_t const slack : {0, 3}) {
    Pages whole(4, slack, 8, 8);
    Pages chunks(4, slack, 8, 8);
    Pages single(4, slack, 8, 8);
    auto const all = whole.news(130);
    std::vector<std::int32_t> const lengths{130, 41, 7};
    whole.append(all, lengths, {0, 0, 0});
    for (auto* const p : {&chunks, &single}) {
      std::int32_t const most = p == &chunks ? 37 : 1;
      std::vector<std::int32_t> first(3, 0);
      while (first != lengths) {
        std::vector<std::int32_t> counts;
        for (std::size_t b = 0; b < 3; ++b) counts.push_back(std::min(most, lengths[b] - first[b]));
        p->append(all, counts, first);
        for (std::size_t b = 0; b < 3; ++b) first[b] += counts[b];
      }
      REQUIRE(p->difference() == "");
      CHECK(shown(*p) == shown(whole));
      CHECK(p->pages.max_rollback(0) == whole.pages.max_rollback(0));
      CHECK(in_use(*p) == in_use(whole));
    }
  }
}

TEST_CASE("forks share pages of scored slots up to their next token, and go different ways", "[cache]") {
  Pages p(4, 2, 8, 8);
  p.append({100, 0, 0});
  std::int64_t const used = in_use(p);
  auto const before = shown(p);
  p.fork(0, 1);
  p.fork(0, 2);
  CHECK(in_use(p) == used);
  // Layer 1 has the same heads.
  std::int64_t scored_pages = 0;
  for (std::int32_t h = 0; h < p.heads; ++h) scored_pages += 2 * p.pages.head(0, h).scored_pages(100);
  auto const shared = [&] {
    std::int64_t count = 0;
    for (std::int32_t h = 0; h < p.heads; ++h) {
      for (std::int64_t i = 0; i < p.pages.head(1, h).scored_pages(100); ++i) {
        count += p.pages.scored_page(1, 0, h, i) == p.pages.scored_page(1, 1, h, i) ? 1 : 0;
      }
    }
    return count;
  };
  CHECK(shared() == scored_pages / 2);
  p.append({0, 1, 0});  // the first stays as it was
  CHECK(shared() == 0);
  REQUIRE(p.difference() == "");
  auto const now = shown(p);
  for (auto const& [place, row] : before) {
    if (std::get<1>(place) == 0) REQUIRE(now.at(place) == row);
  }
  CHECK(in_use(p) >= used + scored_pages);
  std::vector<std::int32_t> const own{p.pages.scored_page(0, 1, 1, 0)};
  p.append({0, 1, 0});  // nothing is shared any more
  CHECK(p.pages.scored_page(0, 1, 1, 0) == own[0]);
  for (std::int32_t const most : {1, 3, 20}) {
    p.append({most, most, most});
    REQUIRE(p.difference() == "");
    if (most <= 3) check_attention(p, most, p.first_positions(most));
  }
  p.rollback(1, 2);
  p.fork(1, 0);
  p.append({3, 3, 0});
  REQUIRE(p.difference() == "");
  for (std::int32_t b = 0; b < 3; ++b) p.release(b);
  CHECK(in_use(p) == 0);
}

TEST_CASE("an append that pages with scored slots have no room for changes nothing", "[cache]") {
  for (std::int32_t const page_size : {1, 4}) {
    Pages p(page_size, 1, 8, 8, 1200 / page_size);
    p.append({60, 20, 0});
    p.fork(0, 2);
    int refused = 0;
    int taken = 0;
    for (int i = 0; i < 80; ++i) {
      ScoredTables const before(p.pages);
      auto const pool = p.pool;
      std::vector<std::int32_t> const counts{1 + i % 3, i % 2, 1};
      ha::PageStep step;
      try {
        p.pages.append(counts, step);
      } catch (ha::CapacityError const& error) {
        ++refused;
        CHECK(error.detail().what == "pages");
        REQUIRE(ScoredTables(p.pages) == before);
        p.release(i % 3);
        p.fork((i + 1) % 3, i % 3);
        continue;
      }
      ++taken;
      // Appended already: only the rows are missing.
      auto const all = p.news(3);
      auto const of = ha::TokenScores::contiguous(all.scores.data(), 3, p.heads, 3);
      ha::append(p.pages, step, all.layers(), all.layout, p.storage(p.pool.data()), p.scores.view(), of);
      ha::append(p.pages.slots().view(), p.state, all.layers(), all.layout, counts, p.cache(), p.rolled.view(), of);
      REQUIRE(p.difference() == "");
    }
    CHECK(refused > 0);
    CHECK(taken > 0);
  }
}

TEST_CASE("what pages with scored slots refuse", "[cache]") {
  Pages p(4, 1, 8, 8);
  p.append({40, 3, 0});
  auto const untouched = p.pool;
  std::vector<std::byte> const records(p.scores.bytes().begin(), p.scores.bytes().end());
  ha::PageStep step = p.pages.append(std::vector<std::int32_t>{1, 1, 0});
  auto const all = p.news(1);
  auto const of = ha::TokenScores::contiguous(all.scores.data(), 3, p.heads, 1);
  ScoredTables const tables(p.pages);
  auto const refuses = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<Error>(call, parts);
    REQUIRE(std::memcmp(p.pool.data(), untouched.data(), untouched.size() * sizeof(float)) == 0);
    REQUIRE(std::equal(records.begin(), records.end(), p.scores.bytes().begin()));
    REQUIRE(ScoredTables(p.pages) == tables);
  };
  auto const storage = p.storage(p.pool.data());
  refuses([&] { ha::append(p.pages, step, all.layers(), all.layout, storage); },
          {"pages", "cache/paged_scored.hpp", "heads with scored tokens", "append"});
  auto const with = [&](ha::RollingScoresView const& of_pages, ha::TokenScores const& of_tokens) {
    return
        [&, of_pages, of_tokens] { ha::append(p.pages, step, all.layers(), all.layout, storage, of_pages, of_tokens); };
  };
  refuses(with({}, of), {"scores", "a pointer", "nullptr", "append"});
  refuses(with(p.scores.view(), {}), {"new tokens' scores", "a pointer", "nullptr", "append"});
  ha::RollingSlots const others(p.table, 3, {.max_tokens = 400, .slack = 1});
  ha::RollingScores other_scores(others);
  refuses(with(other_scores.view(), of), {"scores", "made for these slots", "other slots", "append"});
  refuses([&] { p.pages.fork(0, 2); },
          {"pages", "cache/paged_scored.hpp", "heads with scored tokens", "PagedHeads::fork"});
  refuses([&] { ha::fork(p.pages, 0, 2, other_scores.view()); },
          {"scores", "made for these slots", "other slots", "fork"});
  refuses([&] { ha::fork(p.pages, 0, 1, p.scores.view()); },
          {"sequence to fork to", "an empty one", "4", "PagedHeads::fork"});
  refuses([&] { ha::fork(p.pages, 0, 3, p.scores.view()); }, {"sequence", "[0, 3)", "3", "RollingState"});
  refuses([&] { p.pages.set_policies(ha::PolicyTable(2, p.heads, ha::SinkWindow{.sink = 1, .window = 1})); },
          {"pages", "heads of sinks and windows", "heads with scored tokens", "PagedHeads::set_policies"});
  refuses([&] { (void)p.pages.indices(0); }, {"pages", "", "heads with scored tokens", "PagedHeads::indices"});
  step.generation = 1;
  refuses(with(p.scores.view(), of), {"step", "the tables' last change", "1", "append"});

  // Attention: through the view that knows the records, by positions where these decide.
  std::vector<float> output(at(3 * p.heads * 8));
  auto const layout = ha::strided_bshd(3, 1, p.heads, 8);
  auto const attend = [&](auto const& view, ha::AttentionOptions const& options) {
    ha::attend(p.shape(1, 1), ha::AttentionQueries{all.tensors[0].data(), layout},
               ha::KeptCache{p.pool.data(), p.pool.data() + p.value_offset(), view},
               ha::AttentionOutput{output.data(), layout}, options);
  };
  auto const first = p.first_positions(1);
  ha::HeadPagesView const window(p.pages.view(), 0, p.pages.state().lengths().data(), p.page_stride);
  refuses([&] { attend(window, {.first_positions = first.data()}); },
          {"pages", "ScoredPagesView", "heads with scored tokens", "attend, HeadPagesView"});
  refuses([&] { attend(p.view(0, 1), {}); }, {"first_positions", "a pointer", "nullptr", "attend, ScoredPagesView"});
  refuses([&] { attend(p.view(0, 1), {.first_positions = first.data(), .window = 3}); },
          {"window", "0: scored tokens", "3", "attend, ScoredPagesView"});
  refuses([&] { attend(ha::ScoredPagesView(window, other_scores.view()), {.first_positions = first.data()}); },
          {"scores", "made for these slots", "other slots", "attend, ScoredPagesView"});
  std::vector<std::int32_t> broken(p.pages.table().begin(), p.pages.table().end());
  broken[at(p.pages.head(0, 1).scored_entry(0, 1))] = -1;
  ha::HeadPagesView const of_broken(p.pages.view_at(p.pages.view().heads, broken.data()), 0,
                                    p.pages.state().lengths().data(), p.page_stride);
  refuses([&] { attend(ha::ScoredPagesView(of_broken, p.scores.view()), {.first_positions = first.data()}); },
          {"page table entry", "a page in", "-1 for page 1 of scored slots", "ScoredPagesView"});
  // Pages of windows do not get scored slots.
  ha::PagedHeads windows(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 9}), {.num_sequences = 1, .num_pages = 9});
  check_error<Error>(
      [&] { windows.set_policies(ha::PolicyTable(1, 1, ha::SinkWindowScored{.sink = 1, .window = 1, .scored = 2})); },
      {"pages", "heads of sinks and windows", "heads with scored tokens", "PagedHeads::set_policies"});
}
