// Pages of single heads on the device: long random walks, joined pools, graphs, and what calls refuse.

#include "support/device_cache.cuh"
#include "support/paged_walk.hpp"

#include <headaware/cache/paged_heads.cuh>

#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// A step's arrays on the device.
struct DeviceStep {
  DeviceVector<std::int32_t> lengths;
  DeviceVector<std::int32_t> written;
  DeviceVector<std::int32_t> counts;
  DeviceVector<ha::PageCopy> copies;
  DeviceVector<std::int32_t> status{std::vector<std::int32_t>{0}};
  ha::DevicePageStep view;

  explicit DeviceStep(ha::PageStep const& step)
      : lengths(step.lengths), written(step.written), counts(step.counts), copies(step.copies) {
    view = {lengths.data(), written.data(), counts.data(), copies.data(), static_cast<std::int32_t>(step.copies.size()),
            step.max_count, status.data()};
  }
};

/// Tables on the device, as they are now.
struct DeviceTables {
  DeviceVector<std::byte> heads;
  DeviceVector<std::int32_t> table;
  ha::PagedHeadsView view;

  explicit DeviceTables(ha::PagedHeads const& pages)
      : heads(std::vector<std::byte>(pages.head_bytes().begin(), pages.head_bytes().end())),
        table(std::vector<std::int32_t>(pages.table().begin(), pages.table().end())),
        view(pages.view_at(heads.data(), table.data())) {}
};

/// New tokens' tensors on the device.
template <class T>
struct DeviceTokens {
  std::vector<DeviceVector<T>> tensors;
  std::vector<ha::LayerKv<T>> layers;
  explicit DeviceTokens(NewTokens<T> const& tokens) {
    for (std::size_t l = 0; l < tokens.keys.size(); ++l) {
      tensors.emplace_back(tokens.keys[l]);
      tensors.emplace_back(tokens.values[l]);
      layers.push_back({tensors[2 * l].data(), tensors[2 * l + 1].data()});
    }
  }
};

template <class T>
void walk(unsigned seed, int steps, std::int32_t page_size, std::int32_t slack, std::int32_t num_pages,
          std::int64_t key_dim, std::int64_t value_dim) {
  constexpr std::int64_t max_tokens = 70;
  ha::PolicyTable const table = mixed_table();
  ha::PagedHeads pages(table, {.num_sequences = 3,
                               .page_size = page_size,
                               .num_pages = num_pages,
                               .limits = {.max_tokens = max_tokens, .slack = slack}});
  TokenModel model(table, 3);
  DeviceVector<T> const d_keys(std::vector<T>(static_cast<std::size_t>(num_pages * page_size * key_dim)));
  DeviceVector<T> const d_values(std::vector<T>(static_cast<std::size_t>(num_pages * page_size * value_dim)));
  ha::PageStorage<T> const storage{d_keys.data(), d_values.data(), key_dim, value_dim};
  Stream const stream;
  std::vector<T> keys = d_keys.host();
  std::vector<T> values = d_values.host();
  paged_walk<T>(
      model, pages, seed, steps, max_tokens, key_dim, value_dim,
      [&](ha::PageStep const& step, NewTokens<T> const& news) {
        DeviceTables const tables(pages);
        DeviceStep const d_step(step);
        DeviceTokens<T> const d_news(news);
        REQUIRE_CUDA(ha::append(tables.view, d_step.view, d_news.layers, news.layout(), storage, 0, stream));
        REQUIRE_CUDA(cudaStreamSynchronize(stream));
        REQUIRE(d_step.status.host()[0] == 0);
        keys = d_keys.host();
        values = d_values.host();
      },
      [&](std::int32_t b) { return pages_hold(model, pages, b, keys.data(), key_dim, values.data(), value_dim); });
}

}  // namespace

TEST_CASE("pages of single heads on the device through 10,000 random steps", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<float>(641, 10000, 4, 3, 200, 8, 5);
}
TEST_CASE("pages of single heads on the device, random steps, pages of 16, no slack", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<std::uint16_t>(642, 2000, 16, 0, 70, 16, 24);
}
TEST_CASE("pages of single heads on the device, random steps, pages of 5, one-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<std::uint8_t>(643, 2000, 5, 11, 200, 3, 16);
}
