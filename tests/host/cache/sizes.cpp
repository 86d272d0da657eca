// The sizes of a compressed cache against counting token by token.

#include "support/errors.hpp"
#include "support/random_cache.hpp"

#include <headaware/cache/cache_info.hpp>
#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/policy/with_keep_lists.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// All that a compaction tells, against the tokens themselves.
void check_sizes(ha::PolicyTable const& table, std::vector<std::int32_t> const& lengths) {
  ha::Compaction const compaction(table, lengths);
  KeptTokens const tokens(table, lengths);
  REQUIRE(compaction.num_layers() == tokens.layers);
  REQUIRE(compaction.num_sequences() == tokens.sequences);
  REQUIRE(compaction.num_kv_heads() == tokens.heads);
  for (std::int32_t l = 0; l < tokens.layers; ++l) {
    REQUIRE(compaction.layer_segments(l) == tokens.sequences * tokens.heads);
  }
  REQUIRE(compaction.num_segments() == static_cast<std::int64_t>(tokens.segments.size()));
  REQUIRE(std::vector(compaction.lengths().begin(), compaction.lengths().end()) == lengths);
  REQUIRE(compaction.max_length() == (lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end())));

  std::int64_t total = 0;
  std::int64_t full = 0;
  std::vector<std::int64_t> pages(20);
  REQUIRE(compaction.offsets().size() == tokens.segments.size() + 1);
  for (std::int32_t l = 0; l < compaction.num_layers(); ++l) {
    REQUIRE(compaction.layer_begin(l) == total);
    std::int64_t layer = 0;
    std::int64_t most = 0;
    std::vector<std::int32_t> cu_seqlens{0};
    ha::LayerCapacity capacity{.num_kv_heads = static_cast<std::int32_t>(tokens.heads)};
    for (std::int32_t b = 0; b < compaction.num_sequences(); ++b) {
      for (std::int32_t h = 0; h < compaction.num_kv_heads(); ++h) {
        std::int64_t const s = tokens.segment(l, b, h);
        std::int64_t const kept = tokens.kept(l, b, h);
        REQUIRE(compaction.offsets()[static_cast<std::size_t>(s)] == total);
        REQUIRE(compaction.kept(l, b, h) == kept);
        ha::Segment const segment = compaction.segment(s);
        REQUIRE(segment.index == s);
        REQUIRE(segment.layer == l);
        REQUIRE(segment.sequence == b);
        REQUIRE(segment.kv_head == h);
        REQUIRE(segment.length == lengths[static_cast<std::size_t>(b)]);
        REQUIRE(segment.kept == kept);
        REQUIRE(segment.first_row == layer);
        total += kept;
        layer += kept;
        full += lengths[static_cast<std::size_t>(b)];
        most = std::max(most, kept);
        cu_seqlens.push_back(static_cast<std::int32_t>(layer));
        for (std::size_t size = 1; size < pages.size(); ++size) {
          for (std::int64_t left = kept; left > 0; left -= static_cast<std::int64_t>(size)) ++pages[size];
        }
        if (table.at(l, h).is<ha::Full>()) {
          capacity.full_heads += b == 0 ? 1 : 0;
          capacity.full_head_rows = std::max(capacity.full_head_rows, kept);
        } else if (!table.at(l, h).is<ha::Prune>()) {
          capacity.window_heads += b == 0 ? 1 : 0;
          capacity.head_rows = std::max(capacity.head_rows, kept);
        }
      }
    }
    capacity.rows = compaction.num_sequences() *
                    (capacity.full_heads * capacity.full_head_rows + capacity.window_heads * capacity.head_rows);
    REQUIRE(compaction.kept_total(l) == layer);
    REQUIRE(compaction.max_kept(l) == most);
    REQUIRE(compaction.cu_seqlens(l) == cu_seqlens);
    REQUIRE(compaction.grouped_capacity(l) == capacity);
  }
  REQUIRE(compaction.kept_total() == total);
  REQUIRE(compaction.offsets().back() == total);
  REQUIRE(compaction.layer_begin(compaction.num_layers()) == total);
  REQUIRE(compaction.full_total() == full);
  ha::TokenBytes const token{.key = 24, .value = 6};
  REQUIRE(compaction.bytes_held(token) == total * 30);
  REQUIRE(compaction.bytes_held(12, 2) == total * 48);
  REQUIRE(compaction.bytes_full(token) == full * 30);
  for (std::int32_t size = 1; size < 20; ++size) {
    REQUIRE(compaction.pages_total(size) == pages[static_cast<std::size_t>(size)]);
    REQUIRE(compaction.bytes_held_paged(size, token) == pages[static_cast<std::size_t>(size)] * size * 30);
    for (std::int32_t b = 0; b < compaction.num_sequences(); ++b) {
      std::int64_t most = 0;
      tokens.for_each([&](auto l, auto sequence, auto h) {
        if (sequence == b) most = std::max(most, tokens.kept(l, b, h));
      });
      REQUIRE(compaction.pages_needed(b, size) == most / size + (most % size != 0 ? 1 : 0));
    }
  }
}

}  // namespace

TEST_CASE("sizes count what heads keep", "[cache]") {
  constexpr unsigned seed = 7;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 60; ++i) {
    auto const layers = static_cast<std::int32_t>(1 + random() % 4);
    auto const heads = static_cast<std::int32_t>(1 + random() % 6);
    std::vector<std::int32_t> lengths(random() % 5);
    for (auto& length : lengths) length = random() % 4 == 0 ? 0 : static_cast<std::int32_t>(random() % 60);
    INFO("case " << i);
    check_sizes(random_table(layers, heads, 60, random), lengths);
  }
  check_sizes(ha::PolicyTable(2, 3, ha::Full{}), {});
  check_sizes(ha::PolicyTable(2, 3, ha::Full{}), {0, 0});
  check_sizes(ha::PolicyTable(2, 3, ha::Prune{}), {40, 7});
}

TEST_CASE("sizes of long contexts and wide batches count in 64 bits", "[cache]") {
  constexpr std::int32_t longest = std::numeric_limits<std::int32_t>::max();
  ha::Compaction const compaction(ha::PolicyTable(3, 2), std::vector<std::int32_t>{longest, longest});
  std::int64_t const layer = 4 * std::int64_t{longest};
  REQUIRE(compaction.kept_total() == 3 * layer);
  REQUIRE(compaction.layer_begin(2) == 2 * layer);
  REQUIRE(compaction.max_length() == longest);
  REQUIRE(compaction.bytes_held(128, 2) == 3 * layer * 512);
  REQUIRE(compaction.pages_total(16) == 12 * ((std::int64_t{longest} + 15) / 16));
  check_error<ha::ArgumentError>([&] { (void)compaction.cu_seqlens(0); },
                                 {"rows of a layer", "2147483647", std::to_string(layer), "cu_seqlens"});
  check_error<ha::ArgumentError>(
      [&] { (void)ha::consecutive_pages(compaction, 4); },
      {"pages", "fit int32", std::to_string(compaction.pages_total(4)), "consecutive_pages"});
}

TEST_CASE("sizes refuse what they cannot answer", "[cache]") {
  ha::PolicyTable const table(2, 3, ha::WindowOnly{.window = 4});
  ha::Compaction const compaction(table, std::vector<std::int32_t>{9, 1});
  auto const refused = [](auto const& call, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(call, parts);
  };
  refused(
      [&] {
        (void)ha::Compaction(table, std::vector<std::int32_t>{3, -7, -8});
      },
      {"negative length", "tokens >= 0", "-7", "sequence 1"});
  refused([&] { (void)compaction.kept(2, 0, 0); }, {"layer", "in [0, 2)", "2", "CacheSizes"});
  refused([&] { (void)compaction.kept(-1, 0, 0); }, {"layer", "in [0, 2)", "-1", "CacheSizes"});
  refused([&] { (void)compaction.kept(0, 2, 0); }, {"sequence", "in [0, 2)", "2", "CacheSizes::kept"});
  refused([&] { (void)compaction.kept(0, 0, -1); }, {"KV head", "in [0, 3)", "-1", "CacheSizes::kept"});
  refused([&] { (void)compaction.segment(12); }, {"segment", "in [0, 12)", "12", "CacheSizes::segment"});
  refused([&] { (void)compaction.segment(-1); }, {"segment", "in [0, 12)", "-1", "CacheSizes::segment"});
  refused([&] { (void)compaction.kept_total(2); }, {"layer", "in [0, 2)", "3", "CacheSizes"});
  refused([&] { (void)compaction.max_kept(2); }, {"layer", "in [0, 2)", "2", "CacheSizes"});
  refused([&] { (void)compaction.cu_seqlens(-1); }, {"layer", "in [0, 2)", "-1", "CacheSizes"});
  refused([&] { (void)compaction.grouped_capacity(2); }, {"layer", "in [0, 2)", "2", "CacheSizes"});
  refused([&] { (void)compaction.pages_total(0); }, {"page size", "> 0", "0", "pages_total"});
  refused([&] { (void)compaction.pages_needed(0, -4); }, {"page size", "> 0", "-4", "pages_needed"});
  refused([&] { (void)compaction.pages_needed(2, 4); }, {"sequence", "in [0, 2)", "2", "CacheSizes"});
  refused([&] { (void)compaction.bytes_held_paged(0, ha::TokenBytes{}); },
          {"page size", "> 0", "0", "CacheSizes::bytes_held_paged"});
  refused([&] { (void)ha::consecutive_pages(compaction, 0); }, {"page size", "> 0", "0", "pages_total"});
  refused([&] { (void)compaction.on_device(ha::UniformTable(ha::Full{}, 1, 3), nullptr); },
          {"device table's layers", "2", "1", "on_device"});
  refused([&] { (void)compaction.on_device(ha::UniformTable(ha::Full{}, 2, 4), nullptr); },
          {"device table's KV heads", "3", "4", "on_device"});
  // A list with a count below 0 would make offsets descend.
  std::int32_t const token = 0;
  ha::KeepList const negative{&token, -3};
  refused(
      [&] {
        (void)ha::Compaction(ha::WithKeepLists(ha::UniformTable(ha::Full{}, 1, 1), &negative, 1),
                             std::vector<std::int32_t>{5});
      },
      {"keep-list count", ">= 0", "-3", "KeepList"});
  // A list longer than the sequence.
  std::vector<std::int32_t> const tokens{0, 1, 2, 3, 4, 5};
  ha::KeepList const longer{tokens.data(), 6};
  refused(
      [&] {
        (void)ha::Compaction(ha::WithKeepLists(ha::UniformTable(ha::Full{}, 1, 1), &longer, 1),
                             std::vector<std::int32_t>{5});
      },
      {"kept tokens", "in [0, 5]", "6", "layer 0, sequence 0, KV head 0"});
}

TEST_CASE("a device compaction carries the bounds that the host computed", "[cache]") {
  ha::PolicyTable const table(2, 3, ha::WindowOnly{.window = 4});
  ha::Compaction const compaction(table, std::vector<std::int32_t>{9, 1});
  std::int32_t const lengths[2] = {9, 1};
  auto const device = compaction.on_device(table.view(), lengths);
  REQUIRE(device.table.data() == table.view().data());
  REQUIRE(device.d_lengths == lengths);
  REQUIRE(device.num_sequences == 2);
  REQUIRE(device.max_length == 9);
  REQUIRE(device.max_rows == 2 * 3 * 5);
  REQUIRE(device.d_cu_seqlens == nullptr);
  REQUIRE(device.d_kept == nullptr);
  REQUIRE(device.d_status == nullptr);
}

TEST_CASE("what has been moved from is empty", "[cache]") {
  ha::PolicyTable table(2, 3);
  ha::PolicyTable const moved_table = std::move(table);
  CHECK(moved_table.num_layers() == 2);
  CHECK(table.num_layers() == 0);
  CHECK(table.bytes().empty());
  CHECK(table == ha::PolicyTable());
  check_error<ha::ArgumentError>([&] { (void)table.at(0, 0); }, {"layer", "in [0, 0)", "0", "PolicyTable"});
  CHECK(table.skip_layers({}).num_kv_heads() == 0);
  table = moved_table;
  CHECK(table.num_kv_heads() == 3);

  auto const check = [](auto compaction) {
    auto const full = compaction.full_total();
    auto const moved = std::move(compaction);
    CHECK(moved.full_total() == full);
    CHECK(compaction.num_sequences() == 0);
    CHECK(compaction.num_segments() == 0);
    CHECK(compaction.kept_total() == 0);
    CHECK(compaction.full_total() == 0);
    CHECK(compaction.max_length() == 0);
    CHECK(compaction.pages_total(4) == 0);
    CHECK(ha::cache_info(compaction, {1, 1}).rows == 0);
    for (std::int32_t layer = 0; layer < compaction.num_layers(); ++layer) {
      CHECK(compaction.kept_total(layer) == 0);
      CHECK(compaction.max_kept(layer) == 0);
      CHECK(compaction.cu_seqlens(layer) == std::vector<std::int32_t>{0});
      CHECK(compaction.grouped_capacity(layer).rows == 0);
    }
    check_error<ha::ArgumentError>([&] { (void)compaction.kept(0, 0, 0); }, {"", "[0, 0)", "0", "CacheSizes"});
    check_error<ha::ArgumentError>([&] { (void)compaction.segment(0); }, {"segment", "[0, 0)", "0", "CacheSizes"});
  };
  std::vector<std::int32_t> const lengths{5, 7};
  check(ha::Compaction(ha::PolicyTable(2, 3), lengths));
  check(ha::Compaction(ha::UniformTable(ha::Full{}, 2, 3), lengths));
}

TEST_CASE("pages of any size are counted without overflow", "[cache]") {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  ha::Compaction const compaction(ha::PolicyTable(1, 2), std::vector<std::int32_t>{5});
  CHECK(compaction.pages_total(most) == 2);
  CHECK(compaction.pages_needed(0, most) == 1);
  check_error<ha::ArgumentError>(
      [&] {
        (void)compaction.bytes_held_paged(most, {1, 1});
      },
      {"elements", "9223372036854775807", "2 * 9223372036854775807", "bytes_held_paged"});
}

TEST_CASE("pages are handed out in order", "[cache]") {
  ha::PolicyTable table(1, 3, ha::WindowOnly{.window = 9});
  table.set(0, 1, ha::Prune{});
  ha::Compaction const compaction(table, std::vector<std::int32_t>{20, 4});
  auto const pages = ha::consecutive_pages(compaction, 4, 100);
  REQUIRE(pages.indptr == std::vector<std::int32_t>{0, 3, 3, 6, 7, 7, 8});
  REQUIRE(pages.indices == std::vector<std::int32_t>{100, 101, 102, 103, 104, 105, 106, 107});
  REQUIRE(pages.last_page_len == std::vector<std::int32_t>{1, 0, 1, 4, 0, 4});
}

TEST_CASE("an empty keep-list keeps nothing, no keep-list leaves it to the table", "[cache]") {
  std::vector<ha::KeepList> const lists{{}, {nullptr, 0}};
  ha::WithKeepLists const table(ha::UniformTable(ha::WindowOnly{.window = 3}, 1, 2), lists.data(), 1);
  ha::Compaction const compaction(table, std::vector<std::int32_t>{5});
  REQUIRE(compaction.kept(0, 0, 0) == 3);
  REQUIRE(compaction.kept(0, 0, 1) == 0);

  std::vector<ha::KeepList> const impossible{{nullptr, 2}};
  check_error<ha::ArgumentError>(
      [&] {
        ha::Compaction(ha::WithKeepLists(ha::UniformTable(ha::Full{}, 1, 1), impossible.data(), 1),
                       std::vector<std::int32_t>{5});
      },
      {"keep-list tokens", "a pointer", "nullptr", "KeepList"});
  check_error<ha::ArgumentError>(
      [] {
        ha::Compaction(ha::WithKeepLists(ha::UniformTable(ha::Full{}, 1, 1), nullptr, 1), std::vector<std::int32_t>{5});
      },
      {"keep-lists", "a pointer", "nullptr", "WithKeepLists"});
}

TEST_CASE("a head's group is decided over all sequences", "[cache]") {
  // Pruned in the first sequence, a list in the second.
  std::int32_t const tokens[2] = {0, 1};
  std::vector<ha::KeepList> const lists{{}, {tokens, 2}};
  ha::WithKeepLists const table(ha::UniformTable(ha::Prune{}, 1, 1), lists.data(), 2);
  ha::Compaction const compaction(table, std::vector<std::int32_t>{5, 5});
  auto const capacity = compaction.grouped_capacity(0);
  REQUIRE(capacity.window_heads == 1);
  REQUIRE(capacity.head_rows == 2);
  REQUIRE(capacity.rows == 4);

  // All of a Full head's first sequence, a list of the second: the streaming group.
  ha::WithKeepLists const full(ha::UniformTable(ha::Full{}, 1, 1), lists.data(), 2);
  ha::Compaction const mixed(full, std::vector<std::int32_t>{5, 5});
  REQUIRE(mixed.grouped_capacity(0).full_heads == 0);
  REQUIRE(mixed.grouped_capacity(0).head_rows == 5);
}

TEST_CASE("compactions know sizes beforehand", "[cache]") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 2, .window = 6});
  table.set(1, 0, ha::Full{});
  table.set(1, 1, ha::Prune{});
  ha::Compaction const compaction(table, std::vector<std::int32_t>{100, 5});
  REQUIRE(compaction.kept_total() == 8 + 8 + 5 + 5 + 100 + 0 + 5 + 0);
  REQUIRE(compaction.kept_total(0) == 26);
  REQUIRE(compaction.full_total() == 105 * 4);
  REQUIRE(compaction.cu_seqlens(0) == std::vector<std::int32_t>{0, 8, 16, 21, 26});
  REQUIRE(compaction.cu_seqlens(1) == std::vector<std::int32_t>{0, 100, 100, 105, 105});
  REQUIRE(compaction.layer_begin(1) == 26);
  REQUIRE(compaction.layer_begin(2) == 131);
  REQUIRE(compaction.max_kept(0) == 8);
  REQUIRE(compaction.pages_total(16) == 4 + 7 + 1);
  REQUIRE(compaction.bytes_held(64, 2) == 131 * 64 * 2 * 2);
  REQUIRE(compaction.bytes_held_paged(16, ha::TokenBytes{.key = 10, .value = 6}) == 12 * 16 * 16);
  REQUIRE(compaction.bytes_full(ha::TokenBytes::of(64, 2)) == 420 * 256);

  auto const after = ha::cache_info(compaction, ha::TokenBytes::of(64, 2));
  REQUIRE(after.rows == 131);
  REQUIRE(after.bytes == compaction.bytes_held(64, 2));
  REQUIRE(after.layers[1].lengths.min == 0);
  REQUIRE(after.layers[1].lengths.max == 100);
  REQUIRE(after.layers[1].lengths.mean == 105.0 / 4);
  REQUIRE(after.ratio == 131.0 / 420);
  auto const before = ha::full_cache_info(compaction, ha::TokenBytes::of(64, 2));
  REQUIRE(before.rows == 420);
  REQUIRE(before.lengths.min == 5);
  REQUIRE(before.lengths.max == 100);
  REQUIRE(before.ratio == 1);
}
