// Decoding in batches on a cache in which every KV head keeps its own tokens, on CUDA: the host edits the tables of
// pages, and what a step launches is captured once in a graph. Every decoded output is compared with dense masked
// attention, and bytes and time with those of the same loop in which all heads keep everything.

#include "../cuda_helpers.hpp"
#include "toy_model.hpp"

#include <headaware/attention/attend.cuh>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/layout/strided.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

namespace ha = headaware;

namespace {

using toy::head_dim, toy::num_kv_heads, toy::num_layers, toy::num_query_heads, toy::num_sequences;
constexpr std::int32_t page_size = 16;
constexpr std::int32_t num_pages = 160;
constexpr std::int32_t max_tokens = 96;  // of a sequence
constexpr std::int32_t prompt = 70;
constexpr std::int32_t slack = 2;  // tokens that can be taken back
constexpr std::size_t pool_elements = num_pages * page_size * head_dim;
constexpr std::size_t query_elements = num_sequences * num_query_heads * head_dim;     // of a decode batch
constexpr std::size_t kv_elements = num_sequences * prompt * num_kv_heads * head_dim;  // of prompts

/// A layer's activations, which here come from the host; an engine's kernels write them, and layers may share them.
struct Activations {
  DeviceArray<float> queries{query_elements}, output{query_elements};
  DeviceArray<ha::float16> keys{kv_elements}, values{kv_elements};

  [[nodiscard]] auto cache() const { return std::array{ha::LayerKv{keys.data(), values.data()}}; }
};

toy::Cost decode(ha::PolicyTable const& table, cudaStream_t stream) {
  toy::Model model(table);
  std::array<Activations, num_layers> const layers;
  std::vector<float> output(query_elements);
  DeviceArray<ha::float16> const d_pool_keys(pool_elements), d_pool_values(pool_elements);
  ha::PageStorage<ha::float16> const pool{d_pool_keys.data(), d_pool_values.data(), head_dim, head_dim};
  ha::PagedHeads pages(table, {num_sequences, page_size, num_pages, {.max_tokens = max_tokens, .slack = slack}});
  ha::PageStep step;
  std::size_t most_copies = 0;

  // [decode]
  std::vector<ha::PageCopy> copies(static_cast<std::size_t>(num_layers * pages.max_copies()));  // the most of any step
  DeviceArray<std::byte> const d_heads(pages.head_bytes(), stream);
  DeviceArray<std::int32_t> const d_table(pages.table().size()), d_lengths(num_sequences), d_before(num_sequences),
      d_high_water(num_sequences), d_counts(num_sequences);
  DeviceArray<ha::PageCopy> const d_copies(copies.size());
  ha::PagedHeadsView const d_pages = pages.view_at(d_heads.data(), d_table.data());
  auto const append = [&](std::int32_t layer, std::int32_t max_count) {
    ha::PageCopy const* const of_layer = d_copies.data() + layer * pages.max_copies();
    ha::DevicePageStep const d_step{d_before.data(), d_high_water.data(), d_counts.data(),
                                    of_layer,        pages.max_copies(),  max_count};
    auto const layout = ha::strided_bshd(num_sequences, max_count, num_kv_heads, head_dim);
    check(ha::device::append(d_pages, d_step, layers[layer].cache(), layout, pool, layer, stream));
  };
  auto const attend = [&](std::int32_t layer, void* d_temp, std::size_t temp_bytes) {  // nullptr: tells the bytes
    auto const layout = ha::strided_bhd(num_sequences, num_query_heads, head_dim);
    ha::KeptCache const cache{pool.keys, pool.values, ha::HeadPagesView(d_pages, layer, d_lengths.data())};
    check(ha::device::attend(d_temp, temp_bytes, {num_sequences, num_query_heads, num_kv_heads, 1, head_dim},
                             ha::AttentionQueries{layers[layer].queries.data(), layout}, cache,
                             ha::AttentionOutput{layers[layer].output.data(), layout},
                             {.max_rows = pages.slots().rows_total(layer)}, {}, stream));
    return temp_bytes;
  };
  DeviceArray<std::byte> const d_temp(std::max(attend(0, nullptr, 0), attend(1, nullptr, 0)));
  cudaGraphExec_t const graph = capture(stream, [&] {  // the engine's own kernels go in between
    for (std::int32_t l = 0; l < num_layers; ++l) append(l, 1), attend(l, d_temp.data(), d_temp.size());
  });
  auto const begin = [&](std::array<std::int32_t, num_sequences> const& counts) {  // before appends or a replay
    pages.append(counts, step), pages.padded_copies(step, copies);
    d_table.upload(pages.table(), stream), d_lengths.upload(pages.state().lengths(), stream);
    d_before.upload(step.lengths, stream), d_high_water.upload(step.high_water, stream);
    d_counts.upload(step.counts, stream), d_copies.upload(copies, stream);
  };
  // [/decode]

  auto const run = [&](std::array<std::int32_t, num_sequences> const& counts) {  // new tokens of each sequence
    begin(counts);
    most_copies = std::max(most_copies, step.copies.size());
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      auto const news = model.project(step, layer);
      layers[layer].keys.upload(news.keys, stream);
      layers[layer].values.upload(news.values, stream);
      if (step.max_count == 1) layers[layer].queries.upload(news.queries, stream);
      if (step.max_count > 1) append(layer, step.max_count);  // prompts: the engine's own kernel attends, densely
    }
    if (step.max_count > 1) return;
    check(cudaGraphLaunch(graph, stream));
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      layers[layer].output.download(output, stream);
      model.check(layer, output);
    }
  };
  run({prompt, 0, 0, 0});  // joins: its prompt in one call
  for (std::int32_t s = 1; s < num_sequences; ++s) pages.fork(0, s), model.fork(0, s);
  run({1, 1, 1, 1});  // each writes on in pages that it shares
  ha::require(most_copies > 0 && most_copies <= d_copies.size(), "copies", d_copies.size(), most_copies, "run");
  for (int i = 0; i < slack; ++i) run({1, 1, 0, 1});  // drafts, say
  pages.rollback(1, slack);                           // which are rejected
  pages.release(0);
  run({17, 0, 0, 0});  // another one joins
  for (int i = 0; i < 8; ++i) run({1, 1, i % 2, 1});

  auto const again = [&] { check(cudaGraphLaunch(graph, stream)), check(cudaStreamSynchronize(stream)); };
  double const replay_us = toy::microseconds(4, again);  // the last step, which writes the same each time
  check(cudaGraphExecDestroy(graph));
  std::printf("a step makes at most %zu copies of pages, the graph allows for %zu\n", most_copies, d_copies.size());
  auto const bytes = static_cast<double>(pages.bytes_held(ha::TokenBytes::of(head_dim, sizeof(ha::float16))));
  return {bytes / 1024, replay_us, model.compared()};
}

}  // namespace

int main() try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: nothing to show\n");
    return 0;
  }
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  toy::Cost const full = decode(ha::PolicyTable(num_layers, num_kv_heads, ha::Full{}), stream);
  toy::Cost const by_head = decode(toy::policies(), stream);
  check(cudaStreamDestroy(stream));
  toy::print(full, by_head);
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
