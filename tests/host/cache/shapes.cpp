// Shapes at the edges: values as wide as keys without saying so, models without any cache, layers that read another's.

#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/policy_mask.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/per_layer.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/policy/window_only.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ha = headaware;
using headaware_test::check_error;

TEST_CASE("values without channels of their own are as wide as keys", "[cache]") {
  ha::ModelShape const shape(std::vector<ha::LayerShape>{{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8}});
  CHECK(shape.layer(0).value_dim == 8);
  CHECK(shape.layer(0).token_bytes(2).total() == 32);
  CHECK(shape.bytes(10, 2) == 2 * 10 * 32);
  ha::PolicyTable const table(shape);
  ha::RollingSlots const slots(table, 1, {.max_tokens = 4});
  std::vector<float> keys(static_cast<std::size_t>(slots.rows_total() * 8), -1);
  std::vector<float> values(keys.size(), -1);
  auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), shape);
  ha::RollingState state(1);
  std::vector<float> const news(16, 5);
  std::vector<ha::LayerKv<float const>> const step{{news.data(), news.data()}};
  ha::append(slots.view(), state, step, ha::strided_bshd(1, 1, 2, 8), std::array{1}, cache);
  std::vector<float> const queries(32, 1);
  std::vector<float> output(32, -1);
  auto const layout = ha::strided_bhd(1, 4, 8);
  ha::attend(ha::AttentionShape::of(shape.layer(0), 1), ha::AttentionQueries{queries.data(), layout},
             ha::KeptCache{keys.data(), values.data(), ha::RollingView{slots.view(), 0, state.lengths().data()}},
             ha::AttentionOutput{output.data(), layout});
  CHECK(std::all_of(output.begin(), output.end(), [](float x) { return x == 5; }));
}

TEST_CASE("a model without any cache holds nothing", "[cache]") {
  ha::ModelShape const shape(std::vector<ha::LayerShape>(3, {.kind = ha::LayerKind::none}));
  ha::PolicyTable const table(shape);
  CHECK(table.slice(0, 2).num_layers() == 3);
  std::vector<std::int32_t> const lengths{7};
  ha::Compaction const compaction(table, lengths);
  CHECK(compaction.kept_total() == 0);
  float* const none = nullptr;
  std::vector<ha::LayerKv<float const>> const layers(3);
  std::vector<ha::StridedLayout> const layouts(3);
  ha::compress(compaction, layers, ha::per_layer(layouts), ha::ragged(compaction, none, none, shape));
  CHECK(ha::RollingSlots(table, 1, {}).rows_total() == 0);
}

TEST_CASE("a layer that reads another's cache has no policies, and no mask, of its own", "[cache]") {
  ha::LayerShape const own{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8};
  ha::LayerShape reader = own;
  reader.value_dim = 8;
  reader.cache_layer = 0;
  ha::PolicyTable const table(ha::ModelShape(std::vector{own, reader}));
  check_error<ha::ArgumentError>([&] { (void)table.at(1, 0); },
                                 {"KV head of a layer without a cache of its own", "[0, 0)", "0", "layer 1"});
  std::vector<float> mask(64, 7);
  check_error<ha::ArgumentError>(
      [&] { ha::fill_policy_mask(table, {.layer = 1, .queries = 2, .keys = 2}, mask.data()); },
      {"layer of a mask", "reads another's cache", "1", "fill_policy_mask"});
  CHECK(mask == std::vector<float>(64, 7));
}

TEST_CASE("in place a latent is told by a layout of values that has no channels", "[cache]") {
  ha::PolicyTable const table(1, 1, ha::WindowOnly{.window = 1});
  std::vector<std::int32_t> const lengths{2};
  std::vector<float> rows(8, 1);
  std::vector<ha::LayerKv<float>> const layers{{rows.data(), nullptr}};
  auto const layout = ha::strided_bhsd(1, 1, 2, 4);
  check_error<ha::ArgumentError>([&] { ha::compress_in_place(ha::Compaction(table, lengths), layers, layout); },
                                 {"values, as their layout has channels", "a pointer", "nullptr", "layer 0"});
}

// Layouts that would be gone before they are read do not compile; spans of them do.
template <class Layouts>
concept TakesTemporary = requires(Layouts layouts) {
  ha::per_layer(static_cast<Layouts&&>(layouts));
};
static_assert(!TakesTemporary<std::vector<ha::StridedLayout>>);
static_assert(TakesTemporary<std::span<ha::StridedLayout const>>);

TEST_CASE("a model of latents alone lives in pages", "[cache]") {
  ha::LayerShape const latent{
      .kind = ha::LayerKind::latent, .num_query_heads = 4, .num_kv_heads = 1, .head_dim = 24, .value_dim = 16};
  for (bool const with_none : {false, true}) {
    INFO("with layers that have no cache: " << with_none);
    std::vector<ha::LayerShape> layers{latent, latent};
    if (with_none) layers[0] = {.kind = ha::LayerKind::none};
    ha::ModelShape const shape(layers);
    ha::LayerChannels const channels(shape);
    ha::PagedHeads pages(ha::PolicyTable(shape), {1, 4, 8, {.max_tokens = 12}, channels.page_sizes(4)});
    std::vector<float> pool(static_cast<std::size_t>(8 * channels.page_stride(4)), -1);
    ha::PageStorage<float> const storage{pool.data(), nullptr, 24, 0, channels.page_stride(4), channels.layers()};
    std::vector<float> output(4 * 16, -1);
    for (int token = 1; token <= 9; ++token) {
      std::vector<float> const row(24, static_cast<float>(token));
      auto const keys = ha::strided_bshd(1, 1, 1, 24);
      std::vector<ha::LayerKv<float const>> const step(2, {row.data(), nullptr});
      auto const change = pages.append(std::array{1});
      ha::append(pages, change, step, ha::KvLayouts{keys, keys}, storage);
      std::vector<float> const queries(4 * 24);  // zeros: the mean of what is seen
      std::int32_t const* const lengths = pages.state().lengths().data();
      ha::attend(ha::AttentionShape::of(shape.layer(1), 1),
                 ha::AttentionQueries{queries.data(), ha::strided_bhd(1, 4, 24)},
                 ha::LatentCache{pool.data(), ha::HeadPagesView(pages.view(), 1, lengths, channels.page_stride(4))},
                 ha::AttentionOutput{output.data(), ha::strided_bhd(1, 4, 16)});
      for (float const x : output) REQUIRE(std::abs(x - static_cast<float>(token + 1) / 2) < 1e-5F);
    }
  }
}
