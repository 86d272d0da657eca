// Caches of a model whose layers differ: every form, in place, rolling and paged, in one call for all layers.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_model.hpp"
#include "support/table_upload.hpp"

#include <headaware/cache/cache_info.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>

#include <algorithm>
#include <cstdint>
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
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable const table = mixed_table(shape);
  ha::PagedHeads pages(table, {.num_sequences = 2, .page_size = 4, .num_pages = 160, .limits = {.max_tokens = 40}});
  ha::LayerChannels const channels(shape);
  std::vector<float> keys(160 * 4 * 24);
  std::vector<float> values(160 * 4 * 24);
  ha::PageStorage<float> const storage{keys.data(), values.data(), 24, 16, 4 * 24, channels.layers()};
  std::vector<std::int32_t> now{0, 0};
  for (std::int32_t b : {0, 1, 0, 1, 0}) {
    std::int32_t const step = 7 - 2 * b;
    MixedTensors tokens(shape, 2, now[static_cast<std::size_t>(b)], step);
    std::vector<std::int32_t> counts(2, 0);
    counts[static_cast<std::size_t>(b)] = step;
    ha::PageStep const change = pages.append(counts);
    ha::append(pages, change, tokens.layers(), ha::per_layer(tokens.layouts), storage);
    now[static_cast<std::size_t>(b)] += step;
  }
  FirstDifference difference;
  auto const view = pages.view();
  for (std::int32_t l = 0; l < 7; ++l) {
    for (std::int32_t b = 0; b < 2; ++b) {
      for (std::int32_t h = 0; h < table.num_kv_heads(l); ++h) {
        ha::PagedHead const& head = view.head(l, h);
        std::int64_t const length = now[static_cast<std::size_t>(b)];
        auto const rows = view.rows(head, b, head.rule.range(length), storage.page_stride);
        ha::Segment const segment{.layer = l, .sequence = b, .kv_head = h};
        for (std::int64_t row = 0; row < rows.rows(); ++row) {
          expect_rows(difference, rows, segment, row, rows.position(row), channels.of(static_cast<std::size_t>(l)),
                      keys.data(), values.data());
        }
      }
    }
  }
  CHECK(difference.text() == "");
  CHECK(pages.indices(2).indices.empty());
  ha::PageStorage<float> unstrided = storage;
  unstrided.page_stride = 0;
  MixedTensors tokens(shape, 2, 0, 1);
  ha::PageStep const change = pages.append(std::vector<std::int32_t>{1, 1});
  CHECK_THROWS_WITH(ha::append(pages, change, tokens.layers(), ha::per_layer(tokens.layouts), unstrided),
                    Catch::Contains("page stride"));
}
