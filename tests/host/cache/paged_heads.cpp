// Pages of single heads: when they come and go, what forks share, what compression gives back, what is refused.

#include "support/errors.hpp"
#include "support/paged_walk.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t dim = 2;

/// A cache with its pool in host memory.
struct Paged {
  TokenModel model;
  ha::PagedHeads pages;
  std::vector<float> keys;
  std::vector<float> values;

  Paged(ha::PolicyTable const& table, ha::PagedHeadsShape const& shape)
      : model(table, shape.num_sequences),
        pages(table, shape),
        keys(static_cast<std::size_t>(shape.num_pages * shape.page_size * dim)),
        values(keys) {}
  [[nodiscard]] ha::PageStorage<float> storage() { return {keys.data(), values.data(), dim, dim}; }
  ha::PageStep append(std::vector<std::int32_t> const& counts) {
    ha::PageStep const step = pages.append(counts);
    model.append(counts);
    auto const layout =
        ha::strided_bshd(static_cast<std::int64_t>(counts.size()), step.max_count, model.table.num_kv_heads(), dim);
    NewTokens<float> const news(model, counts, layout, layout);
    ha::append(pages, step, news.layers(), layout, storage());
    return step;
  }
  void rollback(std::int32_t b, std::int64_t tokens) {
    pages.rollback(b, tokens);
    model.sequences[static_cast<std::size_t>(b)].resize(static_cast<std::size_t>(pages.length(b)));
  }
  void set_policies(ha::PolicyTable const& table) {
    pages.set_policies(table);
    model.table = table;
  }
  [[nodiscard]] bool good() const {
    for (std::int32_t b = 0; b < pages.shape().num_sequences; ++b) {
      if (!pages_hold(model, pages, b, keys.data(), dim, values.data(), dim)) return false;
    }
    return accounts_balance(pages);
  }
  [[nodiscard]] std::int64_t in_use() const { return pages.pool().num_pages() - pages.pool().free_pages(); }
};

}  // namespace

TEST_CASE("pages go back when the window has passed them, sinks' pages stay", "[cache]") {
  for (std::int32_t const page_size : {1, 2, 3, 4, 7}) {
    for (std::int32_t const sink : {0, 1, 4}) {
      for (std::int32_t const window : {0, 1, 4, 6}) {
        for (std::int32_t const slack : {0, 2}) {
          ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = sink, .window = window});
          Paged cache(table, {.num_sequences = 1, .page_size = page_size, .num_pages = 64, .limits = {.slack = slack}});
          for (std::int64_t length = 1; length < 30; ++length) {
            INFO(page_size << " " << sink << " " << window << " " << slack << " " << length);
            cache.append({1});
            REQUIRE(cache.good());
            std::set<std::int64_t> held;
            for (std::int64_t t = 0; t < length; ++t) {
              bool const in_sink_page = t / page_size * page_size < sink;
              if (in_sink_page || (window > 0 && t >= length - window - slack)) held.insert(t / page_size);
            }
            REQUIRE(cache.in_use() == static_cast<std::int64_t>(held.size()));
            REQUIRE(cache.pages.bytes_held(ha::TokenBytes::of(dim, 4)) == cache.in_use() * page_size * 2 * dim * 4);
          }
          cache.pages.release(0);
          REQUIRE(cache.in_use() == 0);
        }
      }
    }
  }
}

TEST_CASE("a long append writes and takes what stays alone", "[cache]") {
  ha::PolicyTable const table(2, 2, ha::SinkWindow{.sink = 3, .window = 8});
  Paged cache(table, {.num_sequences = 2, .page_size = 4, .num_pages = 4 * 2 * 4});
  cache.append({1000, 2});
  REQUIRE(cache.good());
  // A sink's page, and 8 tokens from a page's beginning on.
  REQUIRE(cache.in_use() == 4 * (1 + 2) + 4 * 1);
  cache.append({1, 999});
  REQUIRE(cache.good());
  REQUIRE(cache.in_use() == 4 * (1 + 3) + 4 * (1 + 3));
}

TEST_CASE("forks share pages until they write on", "[cache]") {
  ha::PolicyTable const table(1, 2, ha::SinkWindow{.sink = 2, .window = 8});
  Paged cache(table, {.num_sequences = 3, .page_size = 4, .num_pages = 32});
  cache.append({10, 0, 0});
  REQUIRE(cache.in_use() == 2 * 3);
  cache.pages.fork(0, 1);
  cache.pages.fork(1, 2);
  cache.model.sequences[1] = cache.model.sequences[2] = cache.model.sequences[0];
  REQUIRE(cache.in_use() == 2 * 3);
  REQUIRE(cache.good());
  REQUIRE(cache.pages.pool().references(cache.pages.page(0, 1, 0, 2)) == 3);
  // The last page has two tokens: who goes on alone copies them, no other.
  auto const step = cache.append({0, 1, 0});
  REQUIRE(step.copies.size() == 2);
  REQUIRE(step.copies[0].tokens == 2);
  REQUIRE(cache.in_use() == 2 * 4);
  REQUIRE(cache.good());
  // The window of the second passes a page that the others still own.
  cache.append({0, 3, 0});
  REQUIRE(cache.pages.page(0, 1, 0, 1) == cache.pages.page(0, 0, 0, 1));
  cache.append({0, 2, 0});
  REQUIRE(cache.pages.page(0, 1, 0, 1) == -1);
  REQUIRE(cache.pages.pool().references(cache.pages.page(0, 0, 0, 1)) == 2);
  REQUIRE(cache.good());
  // Both that are left write on at once.
  REQUIRE(cache.append({1, 0, 1}).copies.size() == 4);
  REQUIRE(cache.good());
  cache.pages.release(0);
  cache.model.sequences[0].clear();
  REQUIRE(cache.good());
  // Taken back into a page that is shared, then other tokens.
  cache.pages.fork(2, 0);
  cache.model.sequences[0] = cache.model.sequences[2];
  cache.pages.rollback(0, cache.pages.max_rollback(0));
  cache.model.sequences[0].resize(static_cast<std::size_t>(cache.pages.length(0)));
  cache.append({2, 0, 0});
  REQUIRE(cache.good());
}

TEST_CASE("a pool that runs out changes nothing, and one freed page more is enough", "[cache]") {
  ha::PolicyTable const table = mixed_table();
  Paged cache(table, {.num_sequences = 2, .page_size = 4, .num_pages = 120, .limits = {.max_tokens = 64}});
  cache.append({10, 3});
  cache.pages.release(1);
  cache.model.sequences[1].clear();
  cache.pages.fork(0, 1);
  cache.model.sequences[1] = cache.model.sequences[0];
  std::vector<std::int32_t> const counts{9, 5};
  // The fewest free pages with which the step succeeds, found by trying.
  for (std::int64_t left = 0;; ++left) {
    std::vector<std::int32_t> taken;
    while (cache.pages.pool().free_pages() > left) taken.push_back(cache.pages.pool().take());
    PagedSnapshot const before(cache.pages);
    bool failed = false;
    try {
      cache.append(counts);
    } catch (ha::CapacityError const& error) {
      failed = true;
      REQUIRE(error.detail().where == "PagedHeads::append");
      REQUIRE(PagedSnapshot(cache.pages) == before);
    }
    for (std::int32_t const page : taken) cache.pages.pool().release(page);
    REQUIRE(cache.good());
    if (failed) continue;
    REQUIRE(left > 0);
    break;
  }
}

TEST_CASE("compression by editing tables: whole pages go, no byte moves", "[cache]") {
  for (std::int32_t const page_size : {1, 4, 5}) {
    ha::PolicyTable const full(2, 4, ha::Full{});
    Paged cache(full, {.num_sequences = 3,
                       .page_size = page_size,
                       .num_pages = 8 * 3 * 60,
                       .limits = {.max_tokens = 60, .slack = 2}});
    cache.append({37, 5, 0});
    cache.pages.fork(0, 2);
    cache.model.sequences[2] = cache.model.sequences[0];
    auto const keys = cache.keys;
    std::int64_t const before = cache.in_use();
    ha::PolicyTable const table = mixed_table();
    cache.pages.set_policies(table);
    cache.model.table = table;
    REQUIRE(cache.keys == keys);
    REQUIRE(cache.in_use() < before);
    REQUIRE(cache.good());
    // And on, as if it had always been so.
    REQUIRE(cache.pages.max_rollback(0) == 2);
    cache.pages.rollback(0, 2);
    cache.model.sequences[0].resize(35);
    REQUIRE(cache.good());
    for (int i = 0; i < 20; ++i) {
      cache.append({1, 2, 0});
      REQUIRE(cache.good());
    }
    // More than is held cannot be had back, and nothing changes.
    PagedSnapshot const now(cache.pages);
    check_error<ha::ArgumentError>([&] { cache.pages.set_policies(full); },
                                   {"policies", "no more than is held", "others", "sequence 0"});
    REQUIRE(PagedSnapshot(cache.pages) == now);
    // Smaller windows still.
    ha::PolicyTable small(2, 4, ha::WindowOnly{.window = 1});
    small.set(1, 0, ha::Prune{});
    small.set(1, 1, ha::Prune{});
    cache.pages.set_policies(small);
    cache.model.table = small;
    REQUIRE(cache.good());
    for (std::int32_t b = 0; b < 3; ++b) cache.pages.release(b);
    REQUIRE(cache.in_use() == 0);
  }
}

TEST_CASE("compression of what has been taken back keeps the window at the length it has", "[cache]") {
  ha::PolicyTable const full(1, 1, ha::Full{});
  for (std::int32_t const slack : {0, 4}) {
    INFO("slack " << slack);
    Paged cache(full,
                {.num_sequences = 1, .page_size = 16, .num_pages = 64, .limits = {.max_tokens = 512, .slack = slack}});
    cache.append({100});
    cache.rollback(0, 50);
    // The window is of tokens 30 to 49, though 100 have been written.
    cache.set_policies(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 4, .window = 20}));
    REQUIRE(cache.pages.indices(0, ha::PagePart::window).kv_start[0] == 14);
    REQUIRE(cache.in_use() == 4);
    REQUIRE(cache.good());
    REQUIRE(cache.pages.max_rollback(0) == slack);
    cache.append({10});
    REQUIRE(cache.good());
    REQUIRE(cache.pages.max_rollback(0) == slack);
  }
  // What has been taken back of the slack, and what is left of it, is the same behind compression.
  ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = 0, .window = 8});
  Paged cache(table, {.num_sequences = 1, .page_size = 1, .num_pages = 64, .limits = {.slack = 6}});
  cache.append({40});
  cache.rollback(0, 2);
  cache.set_policies(table);
  REQUIRE(cache.pages.max_rollback(0) == 4);
  REQUIRE(cache.good());
  // A smaller window leaves pages behind, and may be taken back further.
  cache.set_policies(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 0, .window = 7}));
  REQUIRE(cache.pages.max_rollback(0) == 5);
  cache.rollback(0, 5);
  REQUIRE(cache.good());
}

TEST_CASE("a step is not written once the tables have changed", "[cache]") {
  ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = 1, .window = 6});
  Paged cache(table, {.num_sequences = 2, .page_size = 4, .num_pages = 20, .limits = {.slack = 2}});
  cache.append({9, 0});
  std::vector<std::int32_t> const one{1, 0};
  auto const layout = ha::strided_bshd(2, 1, 1, dim);
  auto const stale = [&](auto const& change) {
    ha::PageStep const step = cache.pages.append(one);
    cache.model.append(one);
    NewTokens<float> const news(cache.model, one, layout, layout);
    auto const write = [&] { ha::append(cache.pages, step, news.layers(), layout, cache.storage()); };
    write();
    write();  // as often as there are layers
    change();
    auto const keys = cache.keys;
    check_error<ha::ArgumentError>(write, {"step", "the tables' last change, ", "change ", "append"});
    REQUIRE(cache.keys == keys);
    REQUIRE(cache.good());
  };
  stale([&] { cache.append(one); });
  stale([&] { cache.rollback(0, 1); });
  stale([&] {
    cache.pages.fork(0, 1);
    cache.model.sequences[1] = cache.model.sequences[0];
  });
  stale([&] { cache.set_policies(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 1, .window = 5})); });
  stale([&] {
    cache.pages.release(0);
    cache.model.sequences[0].clear();
  });
  // Neither is one that no append has made.
  ha::PageStep none;
  none.lengths = none.high_water = none.counts = {0, 0};
  NewTokens<float> const news(cache.model, {0, 0}, layout, layout);
  check_error<ha::ArgumentError>([&] { ha::append(cache.pages, none, news.layers(), layout, cache.storage()); },
                                 {"step", "the tables' last change, ", "change 0", "append"});
}

TEST_CASE("pages are written layer by layer behind a fork", "[cache]") {
  ha::PolicyTable const table(3, 1, ha::SinkWindow{.sink = 1, .window = 6});
  for (std::vector<std::size_t> const& parts : {std::vector<std::size_t>{1, 1, 1}, {1, 2}, {2, 1}}) {
    Paged cache(table, {.num_sequences = 2, .page_size = 4, .num_pages = 60, .limits = {}});
    cache.append({6, 0});
    cache.pages.fork(0, 1);
    cache.model.sequences[1] = cache.model.sequences[0];
    std::vector<std::int32_t> const counts{1, 1};
    ha::PageStep const step = cache.pages.append(counts);
    REQUIRE(step.copies.size() == 6);
    cache.model.append(counts);
    auto const layout = ha::strided_bshd(2, 1, 1, dim);
    NewTokens<float> const news(cache.model, counts, layout, layout);
    auto const layers = news.layers();
    std::size_t first = 0;
    for (std::size_t const count : parts) {
      std::vector const part(layers.begin() + static_cast<std::ptrdiff_t>(first),
                             layers.begin() + static_cast<std::ptrdiff_t>(first + count));
      ha::append(cache.pages, step, part, layout, cache.storage(), static_cast<std::int32_t>(first));
      first += count;
    }
    REQUIRE(cache.good());
  }
}

TEST_CASE("copies of a step, padded to a number that does not change", "[cache]") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 1, .window = 6});
  table.set(1, 0, ha::Prune{});
  ha::PagedHeads pages(table, {.num_sequences = 3, .page_size = 4, .num_pages = 60});
  REQUIRE(pages.max_copies() == 6);
  auto const padded = [&](std::vector<std::int32_t> const& counts, std::vector<int> const& in_layers) {
    ha::PageStep const step = pages.append(counts);
    std::vector<ha::PageCopy> const copies = pages.padded_copies(step);
    REQUIRE(copies.size() == 2 * 6);
    std::size_t found = 0;
    for (std::size_t i = 0; i < copies.size(); ++i) {
      bool const used = static_cast<int>(i % 6) < in_layers[i / 6];
      REQUIRE((copies[i].tokens > 0) == used);
      if (!used) continue;
      REQUIRE(copies[i].layer == static_cast<std::int32_t>(i / 6));
      REQUIRE(std::any_of(step.copies.begin(), step.copies.end(), [&](ha::PageCopy const& copy) {
        return copy.layer == copies[i].layer && copy.from == copies[i].from && copy.to == copies[i].to;
      }));
      ++found;
    }
    REQUIRE(found == step.copies.size());
    return step;
  };
  padded({6, 0, 0}, {0, 0});
  pages.fork(0, 1);
  pages.fork(0, 2);
  padded({0, 1, 0}, {2, 1});
  ha::PageStep const step = padded({1, 0, 1}, {4, 2});
  pages.release(2);
  check_error<ha::ArgumentError>([&] { (void)pages.padded_copies(step); },
                                 {"step", "the last append's", "another", "PagedHeads::padded_copies"});
  REQUIRE(ha::PagedHeads(table, {.num_sequences = 0, .num_pages = 1}).max_copies() == 0);
}

TEST_CASE("a step of other tables is not written, however many changes both have seen", "[cache]") {
  ha::PolicyTable const table(1, 1, ha::Full{});
  ha::PagedHeadsShape const small{.num_sequences = 1, .page_size = 4, .num_pages = 2, .limits = {.max_tokens = 8}};
  Paged one(table, small);
  Paged other(table, {.num_sequences = 1, .page_size = 4, .num_pages = 20, .limits = {.max_tokens = 80}});
  ha::PageStep step = other.pages.append(std::vector<std::int32_t>{60});
  (void)one.pages.append(std::vector<std::int32_t>{1});
  auto const layout = ha::strided_bshd(1, 60, 1, dim);
  other.model.append({60});
  NewTokens<float> const news(other.model, {60}, layout, layout);
  auto const write = [&] { ha::append(one.pages, step, news.layers(), layout, one.storage()); };
  check_error<ha::ArgumentError>(write, {"step", "the tables' last change, ", "change ", "append"});
  REQUIRE(one.keys == std::vector<float>(one.keys.size()));
  ha::PagedHeads const copy = other.pages;  // the same tables, until one of them changes
  ha::append(copy, step, news.layers(), layout, other.storage());
  REQUIRE(other.good());
  // A step that has lost its counters.
  step.high_water.clear();
  check_error<ha::ArgumentError>([&] { ha::append(other.pages, step, news.layers(), layout, other.storage()); },
                                 {"step's sequences", "1", "0", "append"});

  ha::PagedHeads from = one.pages;
  ha::PagedHeads const moved = std::move(from);
  REQUIRE(moved.length(0) == 1);
  check_error<ha::ArgumentError>([&] { (void)from.append(std::vector<std::int32_t>{1}); }, {"", "", "", ""});
  check_error<ha::ArgumentError>([&] { from.release(0); }, {"sequence", "[0, 0)", "0", ""});
}

TEST_CASE("what paged caches refuse", "[cache]") {
  using Error = ha::ArgumentError;
  ha::PolicyTable const table = mixed_table();
  ha::PagedHeadsShape const shape{.num_sequences = 2, .page_size = 4, .num_pages = 99, .limits = {.max_tokens = 40}};
  auto const with = [&](auto const& change) {
    ha::PagedHeadsShape bad = shape;
    change(bad);
    return [&table, bad] { ha::PagedHeads(table, bad); };
  };
  check_error<Error>(with([](auto& s) { s.page_size = 0; }), {"page size", "> 0", "0", "PagedHeads"});
  check_error<Error>(with([](auto& s) { s.num_pages = -1; }), {"pages", ">= 0", "-1", "PagePool"});
  check_error<Error>(with([](auto& s) { s.num_sequences = -1; }), {"sequences", ">= 0", "-1", "RollingSlots"});
  check_error<Error>(with([](auto& s) { s.limits.max_tokens = 0; }), {"max_tokens", "> 0", "0", "KV head 3"});

  Paged cache(table, shape);
  cache.append({6, 1});
  PagedSnapshot const before(cache.pages);
  auto const refuses = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<Error>(call, parts);
    REQUIRE(PagedSnapshot(cache.pages) == before);
    REQUIRE(cache.good());
  };
  auto const append = [&](std::vector<std::int32_t> const& counts) {
    return [&, counts] { (void)cache.pages.append(counts); };
  };
  refuses(append({1}), {"counts", "2", "1", "PagedHeads::append"});
  refuses(append({1, -1}), {"new tokens", "in [0, 39]", "-1", "sequence 1"});
  refuses(append({35, 1}), {"new tokens", "in [0, 34]", "35", "sequence 0"});
  refuses([&] { cache.pages.rollback(0, 7); }, {"tokens to take back", "[0, ", "7", "sequence 0"});
  refuses([&] { cache.pages.fork(0, 1); }, {"sequence to fork to", "an empty one", "1", "PagedHeads::fork"});
  refuses([&] { cache.pages.fork(0, 2); }, {"sequence", "[0, 2)", "2", ""});
  refuses([&] { cache.pages.release(2); }, {"sequence", "[0, 2)", "2", ""});
  refuses([&] { (void)cache.pages.indices(2); }, {"layer", "[0, 2)", "2", "PagedHeads"});
  refuses([&] { cache.pages.set_policies(ha::PolicyTable(1, 4)); }, {"layers", "2", "1", "set_policies"});
  refuses([&] { cache.pages.set_policies(ha::PolicyTable(2, 3)); }, {"KV heads", "4", "3", "set_policies"});

  auto const layout = ha::strided_bshd(2, 1, 4, dim);
  ha::PageStep const step = cache.pages.append(std::vector<std::int32_t>{1, 1});
  cache.model.append({1, 1});
  NewTokens<float> const news(cache.model, {1, 1}, layout, layout);
  auto const keys = cache.keys;
  auto const writes = [&](auto const& layers, auto const& source, ha::PageStorage<float> const& storage,
                          std::int32_t first, ha::ErrorDetail const& parts) {
    check_error<Error>([&] { ha::append(cache.pages, step, layers, source, storage, first); }, parts);
    REQUIRE(cache.keys == keys);
  };
  auto storage = cache.storage();
  writes(news.layers(), layout, storage, 1, {"layers", "within the cache's 2", "3", "append"});
  writes(news.layers(), ha::strided_bshd(2, 1, 3, dim), storage, 0, {"source KV heads", "4", "3", "append, keys"});
  writes(news.layers(), ha::strided_bshd(2, 0, 4, dim), storage, 0, {"source tokens", "1", "0", "append, keys"});
  storage.page_stride = 7;
  writes(news.layers(), layout, storage, 0, {"page stride", ">= 8", "7", "append"});
  storage.page_stride = 8;
  storage.value_dim = dim + 1;
  writes(news.layers(), layout, storage, 0, {"page stride", ">= 12", "8", "append"});
  // Keys and values in turn, the values' pages too long for the places between keys.
  storage = cache.storage();
  storage.page_stride = 15;
  storage.values = storage.keys + 8;
  writes(news.layers(), layout, storage, 0, {"cache's buffers", "keys apart from values", "overlapping", "append"});
  storage = cache.storage();
  storage.values = nullptr;
  writes(news.layers(), layout, storage, 0, {"cache's values", "pointer", "nullptr", "layer 0"});
  storage.values = const_cast<float*>(news.keys[0].data());
  writes(news.layers(), layout, storage, 0, {"buffers", "apart", "overlapping", "append"});
  // Layer by layer.
  for (std::int32_t l = 0; l < 2; ++l) {
    ha::append(cache.pages, step, std::vector{news.layers()[static_cast<std::size_t>(l)]}, layout, cache.storage(), l);
  }
  REQUIRE(cache.good());

  ha::PagePool pool(2);
  check_error<Error>([&] { pool.release(0); }, {"page", "with an owner", "0", "PagePool::release"});
  check_error<Error>([&] { pool.retain(1); }, {"page", "with an owner", "1", "PagePool::retain"});
  check_error<Error>([&] { (void)pool.references(2); }, {"page", "[0, 2)", "2", "PagePool"});
  REQUIRE(pool.take() == 0);
  REQUIRE(pool.take() == 1);
  check_error<ha::CapacityError>([&] { (void)pool.take(); }, {"pages", "a free page", "none of 2", "PagePool"});
}
