// Caches of a model whose layers differ: every form, in place, rolling and paged, in one call for all layers.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_model.hpp"
#include "support/mixed_pages.hpp"
#include "support/table_upload.hpp"

#include <headaware/cache/cache_info.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

std::vector<std::int32_t> const lengths{23, 5, 0, 14};

using Buffers = MixedBuffers<HostArray>;

}  // namespace

TEST_CASE("sizes of layers that differ", "[mixed]") {
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  CHECK(table.num_layers() == 7);
  CHECK(table.num_kv_heads() == 4);
  std::vector<std::int32_t> counts;
  for (std::int32_t l = 0; l < 7; ++l) counts.push_back(table.num_kv_heads(l));
  CHECK(counts == std::vector<std::int32_t>{4, 2, 0, 1, 0, 1, 4});
  // The layer's own window bounds every policy.
  CHECK(table.at(1, 0) == ha::AnyPolicy<>(ha::WindowOnly{7}));
  CHECK(table.at(1, 1) == ha::AnyPolicy<>(ha::WindowOnly{4}));
  CHECK(table.at(6, 2) == ha::AnyPolicy<>(ha::WindowOnly{7}));
  ha::Compaction const compaction(table, lengths);
  CHECK(compaction.num_segments() == 4 * 12);
  CHECK(compaction.layer_segments(2) == 0);
  CHECK(compaction.kept(0, 0, 0) == 23);
  CHECK(compaction.kept(1, 0, 0) == 7);
  CHECK(compaction.kept(3, 0, 0) == 10);
  CHECK(compaction.kept_total(2) == 0);
  CHECK(compaction.kept_total(4) == 0);
  CHECK(compaction.cu_seqlens(1) == std::vector<std::int32_t>{0, 7, 11, 16, 20, 20, 20, 27, 31});
  CHECK(compaction.segment(4 * 4 + 2).name() == ha::SegmentName{1, 1, 0});
  std::int64_t bytes = 0;
  for (std::int32_t l = 0; l < 7; ++l) bytes += compaction.kept_total(l) * shape.layer(l).token_bytes(2).total();
  CHECK(compaction.bytes_held({shape, 2}) == bytes);
  CHECK(ha::cache_info(compaction, {shape, 2}).bytes == bytes);
  // The cache before compression is what the model's own would hold: layers that slide their windows.
  std::int64_t full = 0;
  for (std::int32_t const length : lengths) full += shape.bytes(length, 2);
  CHECK(full < 42 * shape.token_bytes(2));
  CHECK(compaction.bytes_full({shape, 2}) == full);
  CHECK(ha::full_cache_info(compaction, {shape, 2}).bytes == full);
  CHECK(ha::full_cache_info(compaction, {shape, 2}).ratio == 1);
  CHECK(ha::full_cache_info(compaction, {shape, 2}).layers[1].lengths.max == 7);
  CHECK(ha::cache_info(compaction, {shape, 2}).ratio == static_cast<double>(bytes) / static_cast<double>(full));
  ha::Compaction const whole(ha::PolicyTable(shape, ha::Full{}), lengths);
  CHECK(whole.bytes_held({shape, 2}) == full);
  CHECK(ha::cache_info(whole, {shape, 2}).ratio == 1);
  CHECK(whole.full_total() == whole.kept_total());
  CHECK(ha::CacheSizes(whole).full_rows(1) == whole.kept_total(1));
  CHECK_THROWS_WITH(compaction.kept(2, 0, 0), Catch::Contains("KV head") && Catch::Contains("got 0"));
  CHECK_THROWS_WITH(table.at(4, 0), Catch::Contains("KV head"));
}

TEST_CASE("tokens of each layer that fit a page", "[mixed]") {
  ha::LayerChannels const channels(mixed_shape());
  CHECK(channels.page_stride(4) == 4 * 24);
  CHECK(channels.page_sizes(4) == std::vector<std::int32_t>{6, 12, 4, 4, 4, 8, 6});
  CHECK(channels.page_sizes(1) == std::vector<std::int32_t>{1, 3, 1, 1, 1, 2, 1});
  // Wider values count; layers that are alike need no sizes of their own.
  CHECK(ha::LayerChannels(8, 24).page_stride(4) == 4 * 24);
  CHECK(ha::LayerChannels(8, 24).page_sizes(4).empty());
  CHECK(ha::LayerChannels(ha::ModelShape(ha::ModelConfig{6, 8, 4, 16})).page_sizes(16).empty());
  std::int32_t const most = std::numeric_limits<std::int32_t>::max();
  check_error<ha::ArgumentError>([&] { (void)channels.page_sizes(0); },
                                 {"page size", "> 0", "0", "LayerChannels::page_stride"});
  check_error<ha::ArgumentError>([&] { (void)channels.page_sizes(-3); },
                                 {"page size", "> 0", "-3", "LayerChannels::page_stride"});
  check_error<ha::ArgumentError>([&] { (void)channels.page_sizes(most); },
                                 {"page size", "at most 2147483647", "3221225470", "LayerChannels::page_sizes"});
  check_error<ha::ArgumentError>([&] { (void)channels.page_stride(std::int64_t{1} << 60); },
                                 {"elements", "9223372036854775807", "24", "LayerChannels::page_stride"});
}

TEST_CASE("slices of a table of layers that differ", "[mixed]") {
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  for (std::int32_t rank = 0; rank < 4; ++rank) {
    ha::PolicyTable const slice = table.slice(rank, 4);
    CHECK(slice.num_kv_heads(0) == 1);
    CHECK(slice.at(0, 0) == table.at(0, rank));
    CHECK(slice.at(1, 0) == table.at(1, rank / 2));
    CHECK(slice.num_kv_heads(2) == 0);
    CHECK(slice.at(3, 0) == table.at(3, 0));
    CHECK(slice == ha::PolicyTable(table.slice(rank, 4)));
    CHECK(shape.tensor_parallel(rank, 4).layer(1).num_kv_heads == 1);
  }
  std::vector<std::int32_t> const some{6, 2, 1};
  ha::PolicyTable const part = table.select_layers(some);
  CHECK(part.at(0, 3) == table.at(6, 3));
  CHECK(part.num_kv_heads(1) == 0);
  CHECK(part.window(2) == 7);
  std::vector<std::int32_t> const sixth{6};
  CHECK(table.skip_layers(sixth).at(6, 3) == ha::AnyPolicy<>(ha::WindowOnly{7}));
}

TEST_CASE("compress of layers that differ", "[mixed]") {
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  ha::Compaction const compaction(table, lengths);
  MixedTensors source(shape, 4, 0, 23);
  auto const layouts = ha::per_layer(source.layouts);
  auto const check = [&](auto const& kept) {
    ha::compress(compaction, source.layers(), layouts, kept);
    CHECK(mixed_difference(compaction, kept) == "");
  };
  SECTION("ragged") {
    Buffers cache(shape, [&](std::int32_t l) { return compaction.kept_total(l); });
    check(ha::ragged(compaction, cache.keys.data(), cache.values.data(), shape));
  }
  SECTION("padded") {
    Buffers cache(shape, [&](std::int32_t l) { return compaction.layer_segments(l) * compaction.max_kept(l); });
    check(ha::padded(compaction, cache.keys.data(), cache.values.data(), shape, ha::Alignment::right));
  }
  SECTION("grouped") {
    Buffers cache(shape, [&](std::int32_t l) { return compaction.grouped_capacity(l).rows; });
    check(ha::grouped(compaction, cache.keys.data(), cache.values.data(), shape));
  }
  SECTION("paged") {
    ha::PageIndices const pages = ha::consecutive_pages(compaction, 4);
    std::vector<float> pool_keys(static_cast<std::size_t>(compaction.pages_total(4)) * 4 * 24);
    std::vector<float> pool_values(static_cast<std::size_t>(compaction.pages_total(4)) * 4 * 24);
    std::vector<ha::LayerKv<float>> const pools(7, {pool_keys.data(), pool_values.data()});
    ha::PagedForm const form{
        .block_table = pages.indices.data(), .indptr = pages.indptr.data(), .page_size = 4, .page_stride = 4 * 24};
    check(ha::paged(compaction, pools, form, shape, compaction.pages_total(4)));
  }
  SECTION("paged, a page size per layer") {
    ha::LayerChannels const channels(shape);
    std::vector<std::int32_t> const sizes = channels.page_sizes(4);
    std::int64_t const stride = channels.page_stride(4);
    std::int64_t const num_pages = compaction.pages_total(sizes);
    CHECK(num_pages < compaction.pages_total(4));
    std::int64_t by_hand = 0;
    for (std::int32_t l = 0; l < 7; ++l) by_hand += compaction.pages_total(l, sizes[static_cast<std::size_t>(l)]);
    CHECK(num_pages == by_hand);
    for (bool const csr : {true, false}) {
      ha::PageIndices pages = ha::consecutive_pages(compaction, sizes);
      REQUIRE(pages.indptr.back() == num_pages);
      std::vector<float> pool_keys(static_cast<std::size_t>(num_pages * stride));
      std::vector<float> pool_values(pool_keys.size());
      std::vector<ha::LayerKv<float>> const pools(7, {pool_keys.data(), pool_values.data()});
      ha::PagedForm form{.block_table = pages.indices.data(), .indptr = pages.indptr.data(), .page_stride = stride};
      std::vector<std::int32_t> dense(static_cast<std::size_t>(compaction.num_segments() * 6), -1);
      if (!csr) {
        for (std::size_t s = 0; s + 1 < pages.indptr.size(); ++s) {
          std::copy(pages.indices.begin() + pages.indptr[s], pages.indices.begin() + pages.indptr[s + 1],
                    dense.begin() + static_cast<std::ptrdiff_t>(s * 6));
        }
        form = {.block_table = dense.data(), .table_stride = 6, .page_stride = stride};
      }
      auto const kept = ha::paged(compaction, pools, form, shape, num_pages, 0, sizes);
      CHECK(kept.capacities[1].page_size == 12);
      check(kept);
      // Of a layer that has the form's size it need not be said again.
      form.page_size = 4;
      check(ha::paged(compaction, pools, form, shape, num_pages, 0, sizes));
      form.page_stride = stride - 1;
      check_error<ha::ArgumentError>([&] { (void)ha::paged(compaction, pools, form, shape, num_pages, 0, sizes); },
                                     {"page stride", ">= 96", "95", "paged"});
      form.page_stride = stride;
      std::vector<std::int32_t> wrong{6, 12, 4};
      check_error<ha::ArgumentError>([&] { (void)ha::paged(compaction, pools, form, shape, num_pages, 0, wrong); },
                                     {"page sizes", "7, one per layer", "3", "paged"});
      wrong = sizes;
      wrong[5] = 0;
      check_error<ha::ArgumentError>([&] { (void)ha::paged(compaction, pools, form, shape, num_pages, 0, wrong); },
                                     {"page size", "> 0", "0", "paged, layer 5"});
      check_error<ha::ArgumentError>([&] { (void)compaction.pages_total(wrong); },
                                     {"page size", "> 0", "0", "CacheSizes::pages_total, layer 5"});
    }
  }
  SECTION("in place") {
    ha::compress_in_place(compaction, source.layers(), layouts);
    for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
      ha::Segment const segment = compaction.segment(s);
      auto const l = static_cast<std::size_t>(segment.layer);
      table.visit(segment.layer, segment.kv_head, [&](auto const& policy) {
        for (std::int64_t row = 0; row < segment.kept; ++row) {
          std::int64_t const token = ha::source_token(policy, row, segment.length);
          auto const at = source.layouts[l].keys.offset(segment.sequence, segment.kv_head, row, 0);
          REQUIRE(source.keys[l][static_cast<std::size_t>(at)] ==
                  mixed_element(segment.layer, false, segment.sequence, segment.kv_head, token, 0));
        }
      });
    }
  }
  SECTION("what does not fit is refused") {
    Buffers cache(shape, [&](std::int32_t l) { return compaction.kept_total(l); });
    auto const kept = ha::ragged(compaction, cache.keys.data(), cache.values.data(), shape);
    CHECK_THROWS_WITH(ha::compress(compaction, source.layers(), source.layouts[0], kept),
                      Catch::Contains("source KV heads"));
    auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, 8, 10000);
    CHECK_THROWS_WITH(ha::compress(compaction, ha::transfer(source.layers(), layouts, kept).rotate_keys(rotation)),
                      Catch::Contains("a latent's") && Catch::Contains("layer 3"));
    auto layers = source.layers();
    layers[5].values = nullptr;
    CHECK_THROWS_WITH(ha::compress(compaction, layers, layouts, kept),
                      Catch::Contains("source values, layer 5") || Catch::Contains("layer 5"));
    auto others = source.layouts;
    std::swap(others[3], others[5]);
    CHECK_THROWS_WITH(ha::compress(compaction, source.layers(), ha::per_layer(others), kept),
                      Catch::Contains("source channels") && Catch::Contains("layer 3"));
    auto unfinished = source.layers();
    unfinished[5].values = nullptr;
    CHECK_THROWS_WITH(ha::compress_in_place(compaction, unfinished, layouts),
                      Catch::Contains("values") && Catch::Contains("layer 5"));
    others.pop_back();
    CHECK_THROWS_WITH(ha::compress(compaction, source.layers(), ha::per_layer(others), kept),
                      Catch::Contains("one per layer"));
    CHECK_THROWS_WITH(
        ha::ragged(compaction, cache.keys.data(), cache.values.data(), ha::ModelShape(ha::ModelConfig{6, 8, 4, 16})),
        Catch::Contains("layers of the shape"));
  }
}

TEST_CASE("a rolling cache of layers that differ", "[mixed]") {
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  ha::RollingSlots const slots(table, 4, {.max_tokens = 40, .slack = 2});
  Buffers cache(shape, [&](std::int32_t l) { return slots.rows_total(l); });
  auto const rolling = ha::rolling(slots, slots.view(), cache.keys.data(), cache.values.data(), shape);
  CHECK(slots.bytes_held({shape, 4}) == static_cast<std::int64_t>((cache.keys.size() + cache.values.size()) * 4));
  ha::Compaction const compaction(table, lengths);
  MixedTensors source(shape, 4, 0, 23);
  ha::compress(compaction, source.layers(), ha::per_layer(source.layouts), rolling);
  CHECK(mixed_difference(compaction, rolling) == "");
  ha::RollingState state(4);
  for (std::int32_t b = 0; b < 4; ++b) state.start(slots.view(), b, lengths[static_cast<std::size_t>(b)]);
  // Sequences go on from different lengths: each appends its own tokens.
  std::vector<std::int32_t> now = lengths;
  for (std::int32_t b = 0; b < 4; ++b) {
    for (std::int32_t step : {1, 3, 1, 6}) {
      MixedTensors tokens(shape, 4, now[static_cast<std::size_t>(b)], step);
      std::vector<std::int32_t> counts(4, 0);
      counts[static_cast<std::size_t>(b)] = step;
      ha::append(slots.view(), state, tokens.layers(), ha::per_layer(tokens.layouts), counts, rolling);
      now[static_cast<std::size_t>(b)] += step;
    }
  }
  CHECK(mixed_difference(ha::Compaction(table, now), rolling) == "");
  // Layer by layer as well, and forks.
  MixedTensors next(shape, 4, now[2], 2);
  std::vector<std::int32_t> const counts{0, 0, 2, 0};
  for (std::int32_t l = 0; l < 7; ++l) {
    auto const at = static_cast<std::size_t>(l);
    std::vector<ha::LayerKv<float>> const layer{next.layers()[at]};
    ha::append(slots.view(), state, layer, next.layouts[at], counts, rolling, {.first_layer = l, .advance = l == 6});
  }
  now[2] += 2;
  CHECK(mixed_difference(ha::Compaction(table, now), rolling) == "");
  std::vector<ha::SequenceCopy> const copies{{0, 3}};
  ha::copy_sequences(slots.view(), state, copies, rolling);
  CHECK(state.length(3) == now[0]);
  auto const& form = rolling.form;
  for (std::int32_t l : {0, 1, 3, 5}) {
    for (std::int32_t h = 0; h < table.num_kv_heads(l); ++h) {
      ha::Segment from{.layer = l, .sequence = 0, .kv_head = h, .length = now[0]};
      ha::Segment to = from;
      to.sequence = 3;
      auto const a = form.rows(from, {});
      auto const b = form.rows(to, {});
      auto const width = rolling.channels.of(static_cast<std::size_t>(l)).head_dim;
      auto const* const keys = rolling.layers[static_cast<std::size_t>(l)].keys;
      for (std::int64_t row = 0; row < a.rows(); ++row) {
        REQUIRE(
            std::equal(keys + a.offset(row, width), keys + a.offset(row, width) + width, keys + b.offset(row, width)));
      }
    }
  }
}

TEST_CASE("a paged cache of layers that differ", "[mixed]") {
  bool const by_layer = GENERATE(false, true);
  INFO("a page size per layer: " << by_layer);
  MixedPages cache(3, by_layer);
  std::vector<std::int32_t> sizes;
  for (std::int32_t l = 0; l < 7; ++l) sizes.push_back(cache.pages.page_size(l));
  CHECK(sizes == (by_layer ? std::vector<std::int32_t>{6, 12, 4, 4, 4, 8, 6} : std::vector<std::int32_t>(7, 4)));
  for_each_mixed_step(
      cache, [](auto const&, auto const&) {}, [&] { REQUIRE(cache.difference() == ""); });
  CHECK(cache.pages.indices(2).indices.empty());
  CHECK_THROWS_WITH(cache.pages.page_size(7), Catch::Contains("layer") && Catch::Contains("[0, 7)"));

  MixedPages joined(3, by_layer);
  joined.join();
  for_each_mixed_step(
      joined, [](auto const&, auto const&) {}, [&] { REQUIRE(joined.difference() == ""); });

  MixedTensors tokens(cache.shape, 3, 0, 1);
  ha::PageStep const change = cache.pages.append(std::vector<std::int32_t>{1, 1, 1});
  auto const refused = [&](std::int64_t stride, ha::ErrorDetail const& parts) {
    auto storage = cache.storage();
    storage.page_stride = stride;
    auto const before = cache.keys;
    check_error<ha::ArgumentError>(
        [&] { ha::append(cache.pages, change, tokens.layers(), ha::per_layer(tokens.layouts), storage); }, parts);
    CHECK(cache.keys == before);
  };
  refused(0, {"page stride", "pages of all layers fit, as they differ", "0", "append"});
  refused(-1, {"page stride", "pages of all layers fit, as they differ", "-1", "append"});
  refused(95, {"page stride", ">= 96", "95", by_layer ? "append, layer 0" : "append, layer 3"});
  // Keys of a page that reach into its values, in the first layer or in a later one.
  auto const overlap = [&](std::int64_t joint, std::int64_t stride) {
    auto storage = joined.storage();
    storage.values = storage.keys + joint;
    storage.page_stride = stride;
    ha::PageStep const step = joined.pages.append(std::vector<std::int32_t>{1, 1, 1});
    check_error<ha::ArgumentError>(
        [&] { ha::append(joined.pages, step, tokens.layers(), ha::per_layer(tokens.layouts), storage); },
        {"cache's buffers", "keys apart from values", "overlapping", "append"});
  };
  overlap(by_layer ? 95 : 63, 200);
  overlap(97, by_layer ? 192 : 160);
}

TEST_CASE("pages with a size per layer take what rows take", "[mixed]") {
  // As Gemma's: five layers of a window, one that sees all, whose rows are twice as wide.
  std::vector<ha::LayerShape> layers(6, {.kind = ha::LayerKind::sliding,
                                         .num_query_heads = 8,
                                         .num_kv_heads = 4,
                                         .head_dim = 256,
                                         .value_dim = 256,
                                         .window = 512});
  layers[5] = {.num_query_heads = 8, .num_kv_heads = 1, .head_dim = 512, .value_dim = 512};
  ha::ModelShape const shape{layers};
  ha::PolicyTable const table(shape);
  ha::LayerChannels const channels(shape);
  ha::LayerBytes const token(shape, 2);
  constexpr std::int64_t length = 1024;
  std::vector<std::int32_t> const by_layer = channels.page_sizes(16);
  CHECK(by_layer == std::vector<std::int32_t>{32, 32, 32, 32, 32, 16});
  std::int64_t const page = 2 * channels.page_stride(16) * 2;  // keys and values, of 2 bytes
  ha::Compaction const compaction(table, std::vector<std::int32_t>{length});
  std::int64_t const rows = compaction.bytes_held(token);
  CHECK(rows == (5 * 4 * 512 * 256 + length * 512) * 2 * 2);
  auto const held = [&](std::vector<std::int32_t> const& sizes) {
    ha::PagedHeads pages(
        table,
        {.num_sequences = 1, .page_size = 16, .num_pages = 800, .limits = {.max_tokens = 2000}, .page_sizes = sizes});
    (void)pages.append(std::vector<std::int32_t>{length});
    ha::PageSizes const of = sizes.empty() ? ha::PageSizes(16) : ha::PageSizes(sizes);
    CHECK(ha::page_bytes(of, token, 6) == page);
    CHECK(pages.bytes_held(token) == (800 - pages.pool().free_pages()) * page);
    CHECK(pages.bytes_held(token) == compaction.pages_total(of) * page);  // windows begin at a page
    (void)pages.append(std::vector<std::int32_t>{5});
    // 5 tokens on every window lies in one page more, at most.
    CHECK(pages.bytes_held(token) == (compaction.pages_total(of) + 21) * page);
    return compaction.pages_total(of) * page;
  };
  CHECK(held(by_layer) == rows);
  CHECK(held({}) * 1000 / rows == 1833);
}
