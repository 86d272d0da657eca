// Attention in every layer of a model whose layers differ, over every cache that holds it, against plain loops.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_attention.hpp"

#include <headaware/attention/policy_mask.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/page_indices.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

template <class View>
std::vector<float> attend(MixedStep const& step, std::int32_t layer, ha::LayerKv<float> const& kv, View const& view) {
  std::vector<float> const queries = step.queries(layer);
  std::vector<float> output(at(step.output_layout(layer).required_span_size()), 77);
  std::vector<std::int32_t> const first = step.first_positions();
  ha::AttentionOptions options;
  if (step.query_tokens > 1) options.first_positions = first.data();
  if (step.has_sinks(layer)) options.sinks = step.sinks.data();
  with_cache(step, layer, kv, view, [&](auto const& cache) {
    ha::attend(step.of(layer), ha::AttentionQueries{queries.data(), step.query_layout(layer)}, cache,
               ha::AttentionOutput{output.data(), step.output_layout(layer)}, options);
  });
  return output;
}

using Buffers = MixedBuffers<HostArray>;

}  // namespace

TEST_CASE("layers that differ attend over compressed caches", "[attention][mixed]") {
  MixedStep step;
  step.lengths = {23, 5, 0, 14};
  ha::Compaction const compaction(step.table, step.lengths);
  MixedTensors source(step.shape, 4, 0, 23);
  auto const compress = [&](auto const& kept) {
    ha::compress(compaction, source.layers(), ha::per_layer(source.layouts), kept);
  };
  SECTION("ragged") {
    Buffers cache(step.shape, [&](std::int32_t l) { return compaction.kept_total(l); });
    auto const kept = ha::ragged(compaction, cache.keys.data(), cache.values.data(), step.shape);
    compress(kept);
    step.check([&](std::int32_t layer, std::int32_t of) {
      auto const offsets = compaction.cu_seqlens(of);
      return attend(step, layer, kept.layers[at(of)], ha::RaggedView{offsets.data(), step.of(layer).num_kv_heads});
    });
  }
  SECTION("padded") {
    Buffers cache(step.shape, [&](std::int32_t l) { return compaction.layer_segments(l) * compaction.max_kept(l); });
    auto const kept = ha::padded(compaction, cache.keys.data(), cache.values.data(), step.shape, ha::Alignment::right);
    compress(kept);
    step.check([&](std::int32_t layer, std::int32_t of) {
      std::vector<std::int32_t> rows;
      for (std::int64_t s = 0; s < compaction.layer_segments(of); ++s) {
        rows.push_back(static_cast<std::int32_t>(compaction.kept(compaction.first_segment(of) + s)));
      }
      return attend(
          step, layer, kept.layers[at(of)],
          ha::PaddedView{rows.data(), step.of(layer).num_kv_heads, compaction.max_kept(of), ha::Alignment::right});
    });
  }
  SECTION("paged") {
    ha::LayerChannels const channels(step.shape);
    for (bool const by_layer : {false, true}) {
      std::vector<std::int32_t> const sizes = by_layer ? channels.page_sizes(4) : std::vector<std::int32_t>(7, 4);
      std::int64_t const num_pages = compaction.pages_total(sizes);
      ha::PageIndices const pages = ha::consecutive_pages(compaction, sizes);
      std::vector<float> keys(at(num_pages * 4 * 24));
      std::vector<float> values(keys.size());
      std::vector<ha::LayerKv<float>> const pools(7, {keys.data(), values.data()});
      ha::PagedForm const form{
          .block_table = pages.indices.data(), .indptr = pages.indptr.data(), .page_size = 4, .page_stride = 4 * 24};
      compress(ha::paged(compaction, pools, form, step.shape, num_pages, 0, sizes));
      step.check([&](std::int32_t layer, std::int32_t of) {
        auto const first = compaction.first_segment(of);
        auto const view =
            ha::PagedView::csr(pages.indices.data(), pages.indptr.data() + first, pages.last_page_len.data() + first,
                               step.of(layer).num_kv_heads, sizes[at(of)], 4 * 24);
        return attend(step, layer, pools[0], view);
      });
    }
  }
}

TEST_CASE("layers that differ attend over a rolling cache", "[attention][mixed]") {
  MixedStep step;
  step.lengths = {23, 5, 0, 14};
  ha::RollingSlots const slots(step.table, 4, {.max_tokens = 60, .slack = 2});
  Buffers cache(step.shape, [&](std::int32_t l) { return slots.rows_total(l); });
  auto const rolling = ha::rolling(slots, slots.view(), cache.keys.data(), cache.values.data(), step.shape);
  ha::RollingState state(4);
  MixedTensors source(step.shape, 4, 0, 23);
  ha::compress(ha::Compaction(step.table, step.lengths), source.layers(), ha::per_layer(source.layouts), rolling);
  for (std::int32_t b = 0; b < 4; ++b) state.start(slots.view(), b, step.lengths[at(b)]);
  for (std::int32_t const tokens : {1, 3, 1, 2, 3, 3}) {
    for (std::int32_t b = 0; b < 4; ++b) {  // sequences of their own lengths
      MixedTensors news(step.shape, 4, step.lengths[at(b)], tokens);
      std::vector<std::int32_t> counts(4, 0);
      counts[at(b)] = tokens;
      ha::append(slots.view(), state, news.layers(), ha::per_layer(news.layouts), counts, rolling);
      step.lengths[at(b)] += tokens;
    }
    step.query_tokens = tokens;
    INFO(tokens << " tokens");
    step.check([&](std::int32_t layer, std::int32_t of) {
      return attend(step, layer, rolling.layers[at(of)],
                    ha::RollingView::of_chunk(slots.view(), of, state.lengths().data(), tokens));
    });
  }
  // A layer that reads another's cache names that one; heads are the layer's.
  check_error<ha::ArgumentError>(
      [&] {
        (void)attend(step, 4, rolling.layers[0], ha::RollingView::of_chunk(slots.view(), 4, state.lengths().data(), 3));
      },
      {"KV heads", "0, of layer 4", "4", "attend, RollingView"});
  check_error<ha::ArgumentError>(
      [&] {
        (void)attend(step, 1, rolling.layers[0], ha::RollingView::of_chunk(slots.view(), 0, state.lengths().data(), 3));
      },
      {"KV heads", "4, of layer 0", "2", "attend, RollingView"});
}

TEST_CASE("layers that differ attend over pages of single heads", "[attention][mixed]") {
  bool const by_layer = GENERATE(false, true);
  INFO("a page size per layer: " << by_layer);
  MixedStep step;
  step.lengths = {0, 0};
  ha::LayerChannels const channels(step.shape);
  ha::PagedHeads pages(step.table, {.num_sequences = 2,
                                    .page_size = 4,
                                    .num_pages = 220,
                                    .limits = {.max_tokens = 60, .slack = 2},
                                    .page_sizes = by_layer ? channels.page_sizes(4) : std::vector<std::int32_t>{}});
  std::vector<float> keys(220 * 4 * 24, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> values = keys;
  ha::PageStorage<float> const storage{keys.data(), values.data(), 24, 16, 4 * 24, channels.layers()};
  for (std::int32_t const tokens : {20, 3, 1, 2, 3, 1}) {
    for (std::int32_t b = 0; b < 2; ++b) {
      auto const append = [&](std::int32_t first, std::int32_t count) {
        MixedTensors news(step.shape, 2, first, count);
        std::vector<std::int32_t> counts(2, 0);
        counts[at(b)] = count;
        ha::PageStep const change = pages.append(counts);
        ha::append(pages, change, news.layers(), ha::per_layer(news.layouts), storage);
      };
      if (tokens < 3) {  // a draft of other tokens
        append(step.lengths[at(b)] + 1000, 2);
        pages.rollback(b, 2);
      }
      std::int32_t const count = tokens - (tokens == 20 ? 7 * b : 0);
      append(step.lengths[at(b)], count);
      step.lengths[at(b)] += count;
    }
    step.query_tokens = std::min(tokens, 3);
    INFO(tokens << " tokens");
    step.check([&](std::int32_t layer, std::int32_t of) {
      return attend(step, layer, {keys.data(), values.data()},
                    ha::HeadPagesView::of_chunk(pages.view(), of, pages.state().lengths().data(), step.query_tokens,
                                                storage.page_stride));
    });
  }
  if (by_layer) {
    check_error<ha::ArgumentError>([&] { (void)ha::HeadPagesView(pages.view(), 0, pages.state().lengths().data()); },
                                   {"page stride", "> 0, as page sizes of layers differ", "0", "HeadPagesView"});
  }
  check_error<ha::ArgumentError>(
      [&] {
        (void)attend(step, 1, {keys.data(), values.data()},
                     ha::HeadPagesView(pages.view(), 5, pages.state().lengths().data(), storage.page_stride));
      },
      {"KV heads", "1, of layer 5", "2", "attend, HeadPagesView"});
}

TEST_CASE("masks of layers that differ", "[attention][mixed]") {
  MixedStep const step;
  for (std::int32_t layer = 0; layer < step.shape.num_layers(); ++layer) {
    std::int32_t const heads = step.table.num_kv_heads(layer);
    ha::MaskShape const shape{.layer = layer, .group = 2, .first_query = 3, .queries = 20, .keys = 25};
    std::vector<float> mask(at(heads * 2 * 20 * 25), 7);
    std::vector<std::uint32_t> bits(at(heads * 2 * 20), 7);
    if (heads == 0) {
      check_error<ha::ArgumentError>([&] { ha::fill_policy_mask(step.table, shape, mask.data()); },
                                     {"layer of a mask", "one with policies", std::to_string(layer), ""});
      continue;
    }
    ha::fill_policy_mask(step.table, shape, mask.data());
    ha::fill_policy_mask(step.table, shape, bits.data());
    for (std::int32_t h = 0; h < 2 * heads; ++h) {
      for (std::int32_t q = 0; q < 20; ++q) {
        for (std::int32_t k = 0; k < 25; ++k) {
          bool const seen = step.sees(layer, h / 2, q + 3, k);
          REQUIRE((mask[at((h * 20 + q) * 25 + k)] == 0) == seen);
          REQUIRE(((bits[at(h * 20 + q)] >> k & 1U) == 1) == seen);
        }
      }
    }
  }
  // A table that knows of no window: the mask does.
  ha::UniformTable const all(ha::Full{}, 1, 1);
  std::vector<float> mask(9 * 9);
  ha::fill_policy_mask(all, {.queries = 9, .keys = 9, .window = 3}, mask.data());
  for (std::int32_t q = 0; q < 9; ++q) {
    for (std::int32_t k = 0; k < 9; ++k) CHECK((mask[at(q * 9 + k)] == 0) == (k <= q && k > q - 3));
  }
  check_error<ha::ArgumentError>(
      [&] { ha::fill_policy_mask(all, {.queries = 9, .keys = 9, .window = -1}, mask.data()); },
      {"window", ">= 0", "-1", "fill_policy_mask"});
}
