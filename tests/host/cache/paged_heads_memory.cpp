// Pages of single heads when memory runs out: the n-th allocation fails, for every n, and nothing has changed then.

#include "support/allocations.hpp"
#include "support/paged_walk.hpp"

#include <cstddef>
#include <cstdint>
#include <new>
#include <thread>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t dim = 2;

/// Three sequences, two of which share pages and one of which is empty, in a pool that has `left` pages left.
struct Shared {
  ha::PagedHeads pages;
  std::vector<float> pool;

  explicit Shared(std::int64_t left)
      : pages(mixed_table(),
              {.num_sequences = 3, .page_size = 4, .num_pages = 150, .limits = {.max_tokens = 60, .slack = 3}}),
        pool(150 * 4 * dim) {
    (void)pages.append(std::vector<std::int32_t>{18, 0, 0});
    pages.fork(0, 1);
    while (pages.pool().free_pages() > left) (void)pages.pool().take();
  }
  [[nodiscard]] std::vector<std::byte> heads() const { return {pages.head_bytes().begin(), pages.head_bytes().end()}; }
};

/// @brief Runs `change(shared)` with the first, the second, … allocation failing until none does.
/// @param left        free pages
/// @param is_refused  the change is, with all allocations
/// @return how many failed
template <class Change>
int fail_each_allocation(std::int64_t left, bool is_refused, Change const& change) {
  for (int n = 1;; ++n) {
    INFO("allocation " << n);
    Shared const original(left);
    Shared shared = original;  // a copy needs as few allocations as what it is a copy of
    PagedSnapshot const before(shared.pages);
    auto const heads = shared.heads();
    std::uint64_t const generation = shared.pages.view().generation;
    bool failed = false;
    bool refused = false;
    allocations_left = n;
    try {
      change(shared);
    } catch (std::bad_alloc const&) {
      failed = true;
    } catch (ha::Error const&) {
      refused = true;
    }
    allocations_left = 0;
    if (!failed) REQUIRE(refused == is_refused);
    if (failed || refused) {
      REQUIRE(PagedSnapshot(shared.pages) == before);
      REQUIRE(shared.heads() == heads);
      REQUIRE(shared.pages.view().generation == generation);
    }
    if (!failed) return n - 1;
  }
}

}  // namespace

TEST_CASE("an allocation that fails leaves pages of single heads as they were", "[cache]") {
  auto const append = [](Shared& shared) { (void)shared.pages.append(std::vector<std::int32_t>{6, 2, 1}); };
  auto const compress_to = [](auto const& policy) {
    return [policy](Shared& shared) { shared.pages.set_policies(ha::PolicyTable(2, 4, policy)); };
  };
  CHECK(fail_each_allocation(60, false, append) > 5);
  CHECK(fail_each_allocation(0, true, append) > 5);
  CHECK(fail_each_allocation(60, false, compress_to(ha::Prune{})) > 5);
  CHECK(fail_each_allocation(0, false, compress_to(ha::Prune{})) > 5);
  CHECK(fail_each_allocation(60, true, compress_to(ha::Full{})) > 5);
  // These need none.
  CHECK(fail_each_allocation(0, false, [](Shared& shared) { shared.pages.release(0); }) == 0);
  CHECK(fail_each_allocation(0, false, [](Shared& shared) { shared.pages.rollback(0, 3); }) == 0);
  CHECK(fail_each_allocation(60, false, [](Shared& shared) { shared.pages.fork(0, 2); }) == 0);
}

TEST_CASE("an allocation that fails leaves a page step to be written again", "[cache]") {
  ha::PolicyTable const table = mixed_table();
  TokenModel model(table, 3);
  std::vector<std::int32_t> const counts{3, 1, 2};
  model.append(counts);
  auto const layout = ha::strided_bshd(3, 3, 4, dim);
  NewTokens<float> const news(model, counts, layout, layout);
  auto const layers = news.layers();
  for (int n = 1;; ++n) {
    Shared shared(60);
    std::vector<float> values(shared.pool.size());
    ha::PageStorage<float> const storage{shared.pool.data(), values.data(), dim, dim};
    ha::PageStep const step = shared.pages.append(counts);
    auto const keys = shared.pool;
    bool failed = false;
    std::thread([&] {  // a new one, which has no memory of earlier calls
      allocations_left = n;
      try {
        ha::append(shared.pages, step, layers, layout, storage);
      } catch (std::bad_alloc const&) {
        failed = true;
      }
      allocations_left = 0;
    })
        .join();
    REQUIRE((shared.pool == keys) == failed);
    if (failed) continue;
    CHECK(n > 1);
    break;
  }
}
