// Steps of decoding allocate nothing once the threads have made room for them.

#include "support/allocations.hpp"

#include "support/catch.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <span>
#include <vector>

namespace {

void* allocate(std::size_t bytes, std::size_t alignment) {
  using headaware_test::allocations_left;
  ++headaware_test::allocations;
  if (allocations_left > 0 && --allocations_left == 0) return nullptr;
  std::size_t const size = bytes > 0 ? bytes : 1;
  return alignment == 0 ? std::malloc(size)
                        : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  void* const memory = allocate(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// For the whole program: as the library's own, but for counts and failures. Out of line, or the compiler sees memory of
// `new` go to `free`.
[[gnu::noinline]] void* operator new(std::size_t bytes) { return allocate_or_throw(bytes, 0); }
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate_or_throw(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::nothrow_t const&) noexcept {
  return std::malloc(bytes > 0 ? bytes : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::nothrow_t const&) noexcept { std::free(memory); }

namespace ha = headaware;
using headaware_test::allocations_of;

namespace {

constexpr std::int32_t layers = 3;
constexpr std::int32_t sequences = 2;
constexpr std::int32_t heads = 2;
constexpr std::int64_t dim = 16;

template <class View>
void attend_to(View const& view, std::vector<float> const& pool, std::int64_t query_tokens = 1,
               std::int32_t const* first_positions = nullptr) {
  std::vector<float> const queries(static_cast<std::size_t>(sequences * 2 * heads * query_tokens * dim), 0.5F);
  std::vector<float> output(queries.size());
  auto const layout = ha::strided_bhsd(sequences, 2 * heads, query_tokens, dim);
  ha::AttentionShape const shape{sequences, 2 * heads, heads, query_tokens, dim};
  CHECK(allocations_of([&] {
          ha::attend(shape, ha::AttentionQueries{queries.data(), layout}, ha::KeptCache{pool.data(), pool.data(), view},
                     ha::AttentionOutput{output.data(), layout}, {.first_positions = first_positions});
        }) == 0);
}

/// Policies that differ by layer.
ha::PolicyTable policies() {
  ha::PolicyTable table(layers, heads, ha::SinkWindow{.sink = 4, .window = 12});
  table.set(1, 0, ha::WindowOnly{.window = 9});
  table.set(2, 1, ha::Prune{});
  return table;
}

std::vector<ha::LayerKv<float const>> tokens_of(std::vector<float> const& news) {
  return {layers, ha::LayerKv<float const>{news.data(), news.data()}};
}

}  // namespace

TEST_CASE("a step over rolling caches allocates nothing", "[attention][cache]") {
  ha::RollingSlots const slots(policies(), sequences, {.slack = 3});
  ha::RollingState state(sequences);
  std::vector<float> keys(static_cast<std::size_t>(slots.rows_total() * dim));
  std::vector<float> values(keys.size());
  auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), dim);
  std::vector<float> const news(static_cast<std::size_t>(sequences * heads * dim), 1.0F);
  auto const tokens = tokens_of(news);
  std::vector<std::int32_t> const counts(sequences, 1);
  CHECK(allocations_of([&] {
          ha::append(slots.view(), state, tokens, ha::strided_bhd(sequences, heads, dim), counts, cache);
        }) == 0);
  std::vector<std::int32_t> const first_positions(sequences, 1);
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    attend_to(ha::RollingView{slots.view(), layer, state.lengths().data()}, keys);
    attend_to(ha::RollingView::of_chunk(slots.view(), layer, state.lengths().data(), 2), keys, 2,
              first_positions.data());
  }
}

TEST_CASE("a step over pages of single heads allocates nothing", "[attention][cache]") {
  constexpr std::int32_t num_pages = 120;
  ha::PagedHeads pages(policies(), {.num_sequences = sequences, .page_size = 4, .num_pages = num_pages});
  std::vector<float> pool(static_cast<std::size_t>(num_pages * 4 * dim));
  std::vector<float> values(pool.size());
  ha::PageStorage<float> const storage{pool.data(), values.data(), dim, dim};
  std::vector<float> const news(static_cast<std::size_t>(sequences * heads * dim), 1.0F);
  auto const tokens = tokens_of(news);
  std::vector<std::int32_t> const counts(sequences, 1);
  std::vector<ha::PageCopy> copies(static_cast<std::size_t>(layers * pages.max_copies()));
  ha::PageStep step;
  auto const append = [&] {
    pages.append(counts, step);
    pages.padded_copies(step, copies);
    for (std::size_t layer = 0; layer < tokens.size(); ++layer) {  // as a decoding loop does
      ha::append(pages, step, std::span(tokens).subspan(layer, 1), ha::strided_bhd(sequences, heads, dim), storage,
                 static_cast<std::int32_t>(layer));
    }
  };
  for (int i = 0; i < 40; ++i) append();  // every kind of change: new pages, and pages that go back
  for (int i = 0; i < 8; ++i) CHECK(allocations_of(append) == 0);
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    attend_to(ha::HeadPagesView(pages.view(), layer, pages.state().lengths().data()), pool);
  }
}

TEST_CASE("attention that many threads share allocates nothing", "[attention]") {
  constexpr std::int64_t rows = 3000;  // several KV splits per head
  std::vector<float> const pool(static_cast<std::size_t>(sequences * heads * rows * dim), 0.25F);
  std::vector<std::int32_t> const lengths(static_cast<std::size_t>(sequences * heads), rows);
  ha::PaddedView const view{lengths.data(), heads, rows};
  for (int warm_up = 0; warm_up < 20; ++warm_up) {  // until every thread has had some part of the work
    std::vector<float> const queries(static_cast<std::size_t>(sequences * 2 * heads * dim), 0.5F);
    std::vector<float> output(queries.size());
    auto const layout = ha::strided_bhd(sequences, 2 * heads, dim);
    ha::attend({sequences, 2 * heads, heads, 1, dim}, ha::AttentionQueries{queries.data(), layout},
               ha::KeptCache{pool.data(), pool.data(), view}, ha::AttentionOutput{output.data(), layout});
  }
  attend_to(view, pool);
}
