// A model whose layers differ, in one call for all of them: full attention beside sliding windows, a latent, a layer
// without a cache and one that reads another's. A prompt is compressed into a rolling cache, a token is appended, and
// every layer attends; the prompt goes into pages; and a chunk attends within its layer's window.

#include <headaware/attention/attend.hpp>
#include <headaware/attention/dense_views.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/per_layer.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

namespace {

using Layouts = ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>;

/// An engine's tensors of `tokens` tokens of one sequence, [1, KV heads, tokens, channels] in every layer.
struct Tensors {
  std::vector<std::vector<float>> memory{};
  std::vector<ha::LayerKv<float>> layers{};
  std::vector<Layouts> layouts{};

  Tensors(ha::ModelShape const& shape, std::int64_t tokens) {
    float next = 0;
    auto const tensor = [&](ha::StridedLayout const& layout) {
      memory.emplace_back(static_cast<std::size_t>(layout.required_span_size()));
      for (float& x : memory.back()) x = std::sin(next += 1);
      return memory.back().data();
    };
    for (ha::LayerShape const& l : shape.layers()) {
      std::int64_t const heads = l.has_cache() ? l.num_kv_heads : 0;
      std::int64_t const values = l.kind == ha::LayerKind::latent ? 0 : l.value_dim;  // a latent's are in its keys
      layouts.push_back({ha::strided_bhsd(1, heads, tokens, l.head_dim), ha::strided_bhsd(1, heads, tokens, values)});
      float* const keys = tensor(layouts.back().keys);
      layers.push_back({keys, tensor(layouts.back().values)});
    }
  }
};

}  // namespace

int main() {
  // From a model: ha::load_model_shape("config.json") or ha::load_gguf_shape("model.gguf").
  ha::ModelShape const shape(
      {{.num_query_heads = 8, .num_kv_heads = 2, .head_dim = 64, .value_dim = 64},
       {.kind = ha::LayerKind::sliding,
        .num_query_heads = 8,
        .num_kv_heads = 4,
        .head_dim = 32,
        .value_dim = 32,
        .window = 64},
       {.kind = ha::LayerKind::none},
       {.kind = ha::LayerKind::latent, .num_query_heads = 8, .num_kv_heads = 1, .head_dim = 72, .value_dim = 64},
       {.num_query_heads = 8, .num_kv_heads = 2, .head_dim = 64, .value_dim = 64, .cache_layer = 0}});
  constexpr std::int32_t tokens = 512;
  std::vector<std::int32_t> const lengths{tokens};

  // Each layer's window bounds its policies: 4 sinks and 124 tokens mean the last 64 in the second layer.
  ha::PolicyTable const table(shape, ha::SinkWindow{.sink = 4, .window = 124});
  ha::RollingSlots const slots(table, 1, {});
  auto const elements =
      ha::buffer_elements(shape, shape.num_layers(), [&](auto layer) { return slots.rows_total(layer); });
  std::vector<float> cache_keys(static_cast<std::size_t>(elements.head_dim));
  std::vector<float> cache_values(static_cast<std::size_t>(elements.value_dim));
  auto const cache = ha::rolling(slots, slots.view(), cache_keys.data(), cache_values.data(), shape);
  std::printf("%lld bytes before, %lld after\n", static_cast<long long>(shape.bytes(tokens, sizeof(float))),
              static_cast<long long>(slots.bytes_held({shape, sizeof(float)})));

  Tensors const prompt(shape, tokens);
  ha::compress(ha::Compaction(table, lengths), prompt.layers, ha::per_layer(prompt.layouts), cache);
  ha::RollingState state(1);
  state.start(slots.view(), 0, tokens);

  Tensors const token(shape, 1);
  ha::append(slots.view(), state, token.layers, ha::per_layer(token.layouts), std::vector<std::int32_t>{1}, cache);
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    ha::LayerShape const& l = shape.layer(layer);
    if (!l.attends()) continue;
    auto const counts = ha::AttentionShape::of(l, 1);
    std::vector<float> const query(static_cast<std::size_t>(l.num_query_heads * l.head_dim), 0.1F);
    std::vector<float> output(static_cast<std::size_t>(l.num_query_heads * l.value_dim));
    ha::AttentionQueries const queries{query.data(), ha::strided_bhd(1, l.num_query_heads, l.head_dim)};
    ha::AttentionOutput const result{output.data(), ha::strided_bhd(1, l.num_query_heads, l.value_dim)};
    std::int32_t const held = shape.cache_layer(layer);
    ha::LayerKv<float> const rows = cache.layers[static_cast<std::size_t>(held)];
    ha::RollingView const view{slots.view(), held, state.lengths().data()};
    if (l.kind == ha::LayerKind::latent) {
      ha::attend(counts, queries, ha::LatentCache{rows.keys, view}, result);
    } else {
      // A learned sink per query head, where the layer has them: a logit without a value.
      std::vector<float> const sinks(static_cast<std::size_t>(l.num_query_heads), 0.5F);
      ha::AttentionOptions const options{.sinks = l.kind == ha::LayerKind::sliding ? sinks.data() : nullptr};
      ha::attend(counts, queries, ha::KeptCache{rows.keys, rows.values, view}, result, options);
    }
    std::printf("layer %d, %-9s over %lld tokens: %+.4f, ...\n", layer, std::string(ha::to_string(l.kind)).c_str(),
                static_cast<long long>(slots.head(held, 0).kept(state.length(0)).count()),
                static_cast<double>(output[0]));
  }

  // The same in pages: one size in elements for all layers, so that narrow rows lie more tokens to a page.
  constexpr std::int32_t num_pages = 128;
  ha::LayerChannels const channels(shape);
  std::int64_t const stride = channels.page_stride(16);
  ha::PagedHeads pages(table, {1, 16, num_pages, {}, channels.page_sizes(16)});
  std::vector<float> pool_keys(static_cast<std::size_t>(num_pages * stride));
  std::vector<float> pool_values(pool_keys.size());
  ha::PageStorage<float> const pool{
      pool_keys.data(), pool_values.data(), channels.common().head_dim, channels.common().value_dim,
      stride,           channels.layers()};
  auto const step = pages.append(lengths);
  ha::append(pages, step, prompt.layers, ha::per_layer(prompt.layouts), pool);
  std::printf("%d and %d tokens to a page of the first two layers, %lld bytes of pages\n", pages.page_size(0),
              pages.page_size(1), static_cast<long long>(pages.bytes_held({shape, sizeof(float)})));

  // The prompt's last tokens attend to what the engine holds of all of them, within their layer's window.
  constexpr std::int32_t last = 4;
  ha::LayerShape const& slides = shape.layer(1);
  ha::AttentionShape const chunk = ha::AttentionShape::of(slides, 1, last);
  std::vector<std::int32_t> const held(static_cast<std::size_t>(slides.num_kv_heads), tokens);
  std::int32_t const first = tokens - last;
  auto const layout = ha::strided_bhsd(1, slides.num_query_heads, last, slides.head_dim);
  std::vector<float> const queries(static_cast<std::size_t>(layout.required_span_size()), 0.1F);
  std::vector<float> output(queries.size());
  ha::attend(chunk, ha::AttentionQueries{queries.data(), layout},
             ha::KeptCache{prompt.layers[1].keys, prompt.layers[1].values,
                           ha::PaddedView{held.data(), slides.num_kv_heads, tokens}},
             ha::AttentionOutput{output.data(), layout}, {.first_positions = &first, .window = slides.window});
  std::printf("layer 1, the prompt's last %d tokens: %+.4f, ...\n", last, static_cast<double>(output[0]));
}
