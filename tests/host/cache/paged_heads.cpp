// Pages of single heads: when they come and go, what forks share, what compression gives back, what is refused.

#include "support/errors.hpp"
#include "support/paged_cache.hpp"

#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t dim = Paged::dim;

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
            REQUIRE(cache.difference() == "");
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
  REQUIRE(cache.difference() == "");
  // A sink's page, and 8 tokens from a page's beginning on.
  REQUIRE(cache.in_use() == 4 * (1 + 2) + 4 * 1);
  cache.append({1, 999});
  REQUIRE(cache.difference() == "");
  REQUIRE(cache.in_use() == 4 * (1 + 3) + 4 * (1 + 3));
}

TEST_CASE("forks share pages until they write on", "[cache]") {
  ha::PolicyTable const table(1, 2, ha::SinkWindow{.sink = 2, .window = 8});
  Paged cache(table, {.num_sequences = 3, .page_size = 4, .num_pages = 32});
  cache.append({10, 0, 0});
  REQUIRE(cache.in_use() == 2 * 3);
  cache.fork(0, 1);
  cache.fork(1, 2);
  REQUIRE(cache.in_use() == 2 * 3);
  REQUIRE(cache.difference() == "");
  REQUIRE(cache.pages.pool().references(cache.pages.page(0, 1, 0, 2)) == 3);
  // The last page has two tokens: who goes on alone copies them, no other.
  auto const step = cache.append({0, 1, 0});
  REQUIRE(step.copies.size() == 2);
  REQUIRE(step.copies[0].tokens == 2);
  REQUIRE(cache.in_use() == 2 * 4);
  REQUIRE(cache.difference() == "");
  // The window of the second passes a page that the others still own.
  cache.append({0, 3, 0});
  REQUIRE(cache.pages.page(0, 1, 0, 1) == cache.pages.page(0, 0, 0, 1));
  cache.append({0, 2, 0});
  REQUIRE(cache.pages.page(0, 1, 0, 1) == -1);
  REQUIRE(cache.pages.pool().references(cache.pages.page(0, 0, 0, 1)) == 2);
  REQUIRE(cache.difference() == "");
  // Both that are left write on at once.
  REQUIRE(cache.append({1, 0, 1}).copies.size() == 4);
  REQUIRE(cache.difference() == "");
  cache.release(0);
  REQUIRE(cache.difference() == "");
  // Taken back into a page that is shared, then other tokens.
  cache.fork(2, 0);
  cache.rollback(0, cache.pages.max_rollback(0));
  cache.append({2, 0, 0});
  REQUIRE(cache.difference() == "");
}

TEST_CASE("a pool that runs out changes nothing, and one freed page more is enough", "[cache]") {
  ha::PolicyTable const table = mixed_table();
  Paged cache(table, {.num_sequences = 2, .page_size = 4, .num_pages = 120, .limits = {.max_tokens = 64}});
  cache.append({10, 3});
  cache.release(1);
  cache.fork(0, 1);
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
    REQUIRE(cache.difference() == "");
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
    cache.fork(0, 2);
    auto const keys = cache.keys;
    std::int64_t const before = cache.in_use();
    ha::PolicyTable const table = mixed_table();
    cache.set_policies(table);
    REQUIRE(cache.keys == keys);
    REQUIRE(cache.in_use() < before);
    REQUIRE(cache.difference() == "");
    // And on, as if it had always been so.
    REQUIRE(cache.pages.max_rollback(0) == 2);
    cache.rollback(0, 2);
    REQUIRE(cache.difference() == "");
    for (int i = 0; i < 20; ++i) {
      cache.append({1, 2, 0});
      REQUIRE(cache.difference() == "");
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
    cache.set_policies(small);
    REQUIRE(cache.difference() == "");
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
    REQUIRE(cache.difference() == "");
    REQUIRE(cache.pages.max_rollback(0) == slack);
    cache.append({10});
    REQUIRE(cache.difference() == "");
    REQUIRE(cache.pages.max_rollback(0) == slack);
  }
  // What has been rolled back of the slack, and what is left of it, is the same after compression.
  ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = 0, .window = 8});
  Paged cache(table, {.num_sequences = 1, .page_size = 1, .num_pages = 64, .limits = {.slack = 6}});
  cache.append({40});
  cache.rollback(0, 2);
  cache.set_policies(table);
  REQUIRE(cache.pages.max_rollback(0) == 4);
  REQUIRE(cache.difference() == "");
  // A smaller window leaves pages over, and can be rolled back further.
  cache.set_policies(ha::PolicyTable(1, 1, ha::SinkWindow{.sink = 0, .window = 7}));
  REQUIRE(cache.pages.max_rollback(0) == 5);
  cache.rollback(0, 5);
  REQUIRE(cache.difference() == "");
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
  check_error<Error>(with([](auto& s) { s.page_sizes = {4, 0}; }), {"page size", "> 0", "0", "PagedHeads, layer 1"});
  check_error<Error>(with([](auto& s) { s.page_sizes = {-2, -2}; }), {"page size", "> 0", "-2", "PagedHeads"});
  check_error<Error>(with([](auto& s) { s.page_sizes = {4}; }), {"page sizes", "2, one per layer", "1", "PagedHeads"});
  check_error<Error>(with([](auto& s) { s.num_pages = -1; }), {"pages", ">= 0", "-1", "PagePool"});
  check_error<Error>(with([](auto& s) { s.num_sequences = -1; }), {"sequences", ">= 0", "-1", "RollingSlots"});
  check_error<Error>(with([](auto& s) { s.limits.max_tokens = 0; }), {"max_tokens", "> 0", "0", "KV head 3"});

  Paged cache(table, shape);
  cache.append({6, 1});
  PagedSnapshot const before(cache.pages);
  auto const refuses = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<Error>(call, parts);
    REQUIRE(PagedSnapshot(cache.pages) == before);
    REQUIRE(cache.difference() == "");
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
  REQUIRE(cache.difference() == "");

  // Page sizes per layer: pages of one stride, which every layer fits.
  ha::PagedHeadsShape by_layer = shape;
  by_layer.page_sizes = {4, 5};
  ha::PagedHeads two(table, by_layer);
  ha::PageStep const other = two.append(std::vector<std::int32_t>{1, 1});
  storage = cache.storage();
  auto const writes_two = [&] { ha::append(two, other, news.layers(), layout, storage); };
  check_error<Error>(writes_two, {"page stride", "pages of all layers fit, as they differ", "0", "append"});
  storage.page_stride = 9;
  check_error<Error>(writes_two, {"page stride", ">= 10", "9", "append, layer 1"});
  // Sizes that are all the same are one.
  by_layer.page_sizes = {4, 4};
  ha::PagedHeads const alike(table, by_layer);
  REQUIRE(alike.view().page_sizes.common() == 4);

  ha::PagePool pool(2);
  check_error<Error>([&] { pool.release(0); }, {"page", "with an owner", "0", "PagePool::release"});
  check_error<Error>([&] { pool.retain(1); }, {"page", "with an owner", "1", "PagePool::retain"});
  check_error<Error>([&] { (void)pool.references(2); }, {"page", "[0, 2)", "2", "PagePool"});
  REQUIRE(pool.take() == 0);
  REQUIRE(pool.take() == 1);
  check_error<ha::CapacityError>([&] { (void)pool.take(); }, {"pages", "a free page", "none of 2", "PagePool"});
}
