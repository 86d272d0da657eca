// Decoding in batches on a cache in which every KV head keeps its own tokens, on the CPU: sequences join with a prompt,
// fork, have drafts rejected, and leave. Every decoded output is compared with dense masked attention, and bytes and
// time with those of the same loop in which all heads keep everything.

#include "toy_model.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/layout/strided.hpp>

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
constexpr std::int32_t num_pages = 640;
constexpr std::int32_t max_tokens = 400;  // of a sequence
constexpr std::int32_t prompt = 300;
constexpr std::int32_t drafts = 3;  // tokens tried ahead, which can be taken back

toy::Cost decode(ha::PolicyTable const& table) {
  toy::Model model(table);
  std::vector<ha::float16> pool_keys(static_cast<std::size_t>(num_pages * page_size * head_dim));
  std::vector<ha::float16> pool_values(pool_keys.size());
  std::vector<float> output(static_cast<std::size_t>(num_sequences * (1 + drafts) * num_query_heads * head_dim));

  // [decode]
  ha::PagedHeads pages(table, {num_sequences, page_size, num_pages, {.max_tokens = max_tokens, .slack = drafts}});
  ha::PageStorage<ha::float16> const pool{pool_keys.data(), pool_values.data(), head_dim, head_dim};
  ha::PageStep step;  // its memory is used again: after some steps nothing is allocated
  auto const run = [&](std::array<std::int32_t, num_sequences> const& counts) {  // new tokens of each sequence
    pages.append(counts, step);  // edits tables; pages that windows have passed go back to the pool
    auto const kv_layout = ha::strided_bshd(num_sequences, step.max_count, num_kv_heads, head_dim);
    auto const layout = ha::strided_bshd(num_sequences, step.max_count, num_query_heads, head_dim);
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      auto const news = model.project(step, layer);
      ha::append(pages, step, news.cache(), kv_layout, pool, layer);
      if (step.max_count > 1 + drafts) continue;  // a prompt: the engine's own kernel attends, densely
      std::int32_t const* const lengths = pages.state().lengths().data();  // with the new tokens
      auto const view = ha::HeadPagesView::of_chunk(pages.view(), layer, lengths, step.max_count);
      ha::attend({num_sequences, num_query_heads, num_kv_heads, step.max_count, head_dim},
                 ha::AttentionQueries{news.queries.data(), layout}, ha::KeptCache{pool.keys, pool.values, view},
                 ha::AttentionOutput{output.data(), layout}, {.first_positions = step.lengths.data()});
      model.check(layer, output);
    }
  };
  run({prompt, 0, 0, 0});              // joins: its prompt in one call
  pages.fork(0, 1), model.fork(0, 1);  // shares all pages until one of them writes, which copies
  run({1, 1 + drafts, 0, 0});          // one decodes a token, the other also verifies drafts
  pages.rollback(1, 2);                // of which two are rejected
  pages.release(0);                    // leaves: its pages go back, shared ones stay with the other
  // [/decode]

  run({0, 0, prompt, 17});  // others join
  for (std::int32_t i = 0; i < 24; ++i) {
    run({0, 1, 1 + i % (1 + drafts), 1});
    pages.rollback(2, i % (1 + drafts) / 2);
  }
  pages.fork(2, 0), model.fork(2, 0);
  constexpr int steps = 32;
  double const before = model.seconds();
  double const all = toy::microseconds(steps, [&] { run({1, 1, 1, 1}); });
  double const of_model = (model.seconds() - before) * 1e6 / steps;
  auto const bytes = static_cast<double>(pages.bytes_held(ha::TokenBytes::of(head_dim, sizeof(ha::float16))));
  return {bytes / 1024, all - of_model, model.compared()};
}

}  // namespace

int main() try {
  toy::Cost const full = decode(ha::PolicyTable(num_layers, num_kv_heads, ha::Full{}));
  toy::Cost const by_head = decode(toy::policies());
  toy::print(full, by_head);
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
