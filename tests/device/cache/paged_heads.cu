// Pages of single heads on the device: long random walks, joined pools, graphs, and what calls refuse.

#include "support/device_cache.cuh"
#include "support/device_pages.cuh"
#include "support/device_tokens.cuh"
#include "support/paged_walk.hpp"

#include <headaware/cache/paged_heads.cuh>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// @param page_sizes  of both layers, or of one layer each
template <class T>
void walk(unsigned seed, int steps, std::vector<std::int32_t> const& page_sizes, std::int32_t slack,
          std::int32_t num_pages, std::int64_t key_dim, std::int64_t value_dim) {
  constexpr std::int64_t max_tokens = 70;
  ha::PolicyTable const table = mixed_table();
  bool const alike = page_sizes.size() == 1;
  ha::PagedHeads pages(table, {.num_sequences = 3,
                               .page_size = page_sizes[0],
                               .num_pages = num_pages,
                               .limits = {.max_tokens = max_tokens, .slack = slack},
                               .page_sizes = alike ? std::vector<std::int32_t>{} : page_sizes});
  std::int64_t const page = *std::max_element(page_sizes.begin(), page_sizes.end()) * std::max(key_dim, value_dim);
  TokenModel model(table, 3);
  DeviceVector<T> const d_keys(std::vector<T>(static_cast<std::size_t>(num_pages * page)));
  DeviceVector<T> const d_values(std::vector<T>(static_cast<std::size_t>(num_pages * page)));
  ha::PageStorage<T> const storage{d_keys.data(), d_values.data(), key_dim, value_dim, alike ? 0 : page};
  Stream const stream;
  std::vector<T> keys = d_keys.host();
  std::vector<T> values = d_values.host();
  paged_walk<T>(
      model, pages, seed, steps, max_tokens, key_dim, value_dim,
      [&](ha::PageStep const& step, NewTokens<T> const& news) {
        DeviceTables const tables(pages);
        DeviceStep const d_step(step);
        DeviceTokens<T> const d_news(news);
        REQUIRE_CUDA(ha::device::append(tables.view, d_step.view, d_news.layers, news.layout(), storage, 0, stream));
        REQUIRE_CUDA(cudaStreamSynchronize(stream));
        REQUIRE(d_step.status.host()[0] == 0);
        keys = d_keys.host();
        values = d_values.host();
      },
      [&](std::int32_t b) {
        return pages_difference(model, pages, b, keys.data(), key_dim, values.data(), value_dim, storage.page_stride);
      });
}

}  // namespace

TEST_CASE("pages of single heads on the device through 10,000 random steps", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<float>(641, 10000, {4}, 3, 200, 8, 5);
}
TEST_CASE("pages of single heads on the device, random steps, pages of 16, no slack", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<std::uint16_t>(642, 2000, {16}, 0, 70, 16, 24);
}
TEST_CASE("pages of single heads on the device, random steps, pages of 5, one-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<std::uint8_t>(643, 2000, {5}, 11, 200, 3, 16);
}
TEST_CASE("pages of single heads on the device, random steps, a page size per layer", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<std::uint16_t>(644, 2000, {16, 3}, 5, 180, 8, 4);
}

TEST_CASE("keys and values joined in a page, copies on write among them, replayed from a graph", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int32_t page_size = 4;
  constexpr std::int32_t num_pages = 80;
  constexpr std::int64_t dim = 8;
  constexpr std::int64_t stride = 2 * page_size * dim + 3;
  ha::PolicyTable const table = mixed_table();
  ha::PagedHeads pages(
      table, {.num_sequences = 2, .page_size = page_size, .num_pages = num_pages, .limits = {.max_tokens = 40}});
  TokenModel model(table, 2);
  std::vector<std::uint16_t> const nothing(static_cast<std::size_t>(num_pages * stride), 0xA7A7);
  DeviceVector<std::uint16_t> const pool(nothing);
  std::vector<std::uint16_t> host = nothing;
  ha::PageStorage<std::uint16_t> const d_storage{pool.data(), pool.data() + page_size * dim, dim, dim, stride};
  ha::PageStorage<std::uint16_t> const storage{host.data(), host.data() + page_size * dim, dim, dim, stride};
  auto const layout = ha::strided_bshd(2, 1, 4, dim);
  // What the graph reads: tables, a step with as many copies as there can be, and new tokens.
  ha::PageStep longest = pages.append(std::vector<std::int32_t>{0, 0});
  DeviceTables const tables(pages);
  longest.copies = pages.padded_copies(longest);
  longest.max_count = 1;
  DeviceStep const d_step(longest);
  DeviceTokens<std::uint16_t> const d_news(NewTokens<std::uint16_t>(model, {0, 0}, layout, layout));
  Stream const stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(ha::device::append(tables.view, d_step.view, d_news.layers, layout, d_storage, 0, stream));
  REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
  REQUIRE_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  auto const upload = [](auto* to, auto const& from) {
    REQUIRE_CUDA(cudaMemcpy(to, from.data(), from.size() * sizeof(from[0]), cudaMemcpyHostToDevice));
  };
  int copies = 0;
  for (int i = 0; i < 30; ++i) {
    if (i % 7 == 3) {  // the second sequence begins anew as the first
      pages.release(1);
      pages.fork(0, 1);
      model.sequences[1] = model.sequences[0];
    }
    std::vector<std::int32_t> const counts{1, i > 3 ? 1 : 0};
    ha::PageStep step = pages.append(counts);
    model.append(counts);
    NewTokens<std::uint16_t> const news(model, counts, layout, layout);
    ha::append(pages, step, news.layers(), layout, storage);
    copies += static_cast<int>(step.copies.size());
    step.copies = pages.padded_copies(step);
    upload(const_cast<ha::PageCopy*>(d_step.view.d_copies), step.copies);
    upload(const_cast<std::int32_t*>(d_step.view.d_lengths), step.lengths);
    upload(const_cast<std::int32_t*>(d_step.view.d_high_water), step.high_water);
    upload(const_cast<std::int32_t*>(d_step.view.d_counts), step.counts);
    upload(const_cast<std::int32_t*>(tables.view.table), pages.table());
    for (std::size_t l = 0; l < 2; ++l) {
      upload(d_news.layers[l].keys, news.keys[l]);
      upload(d_news.layers[l].values, news.values[l]);
    }
    REQUIRE_CUDA(cudaGraphLaunch(executable, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    REQUIRE(pool.host() == host);  // to the last byte between pages
  }
  REQUIRE(copies > 0);
  REQUIRE(d_step.status.host()[0] == 0);
  REQUIRE_CUDA(cudaGraphExecDestroy(executable));
  REQUIRE_CUDA(cudaGraphDestroy(graph));
}

TEST_CASE("pages are written layer by layer after a fork on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 4;
  constexpr std::int32_t num_pages = 60;
  ha::PolicyTable const table(3, 1, ha::SinkWindow{.sink = 1, .window = 6});
  ha::PagedHeads pages(table, {.num_sequences = 2, .page_size = 4, .num_pages = num_pages, .limits = {}});
  TokenModel model(table, 2);
  DeviceVector<float> const keys(std::vector<float>(num_pages * 4 * dim));
  DeviceVector<float> const values(std::vector<float>(num_pages * 4 * dim));
  ha::PageStorage<float> const storage{keys.data(), values.data(), dim, dim};
  auto const append = [&](std::vector<std::int32_t> const& counts, std::vector<std::size_t> const& parts) {
    ha::PageStep const step = pages.append(counts);
    model.append(counts);
    auto const layout = ha::strided_bshd(2, step.max_count, 1, dim);
    NewTokens<float> const news(model, counts, layout, layout);
    DeviceTables const tables(pages);
    DeviceStep const d_step(step);
    DeviceTokens<float> const d_news(news);
    std::size_t first = 0;
    for (std::size_t const count : parts) {
      std::vector const part(d_news.layers.begin() + static_cast<std::ptrdiff_t>(first),
                             d_news.layers.begin() + static_cast<std::ptrdiff_t>(first + count));
      REQUIRE_CUDA(ha::device::append(tables.view, d_step.view, part, layout, storage, static_cast<std::int32_t>(first),
                                      nullptr));
      first += count;
    }
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE(d_step.status.host()[0] == 0);
    for (std::int32_t b = 0; b < 2; ++b) {
      REQUIRE(pages_difference(model, pages, b, keys.host().data(), dim, values.host().data(), dim) == "");
    }
    return step.copies.size();
  };
  append({6, 0}, {3});
  pages.fork(0, 1);
  model.sequences[1] = model.sequences[0];
  REQUIRE(append({1, 1}, {1, 1, 1}) == 6);  // a page of each layer and sequence is written on
  pages.release(1);
  pages.fork(0, 1);
  model.sequences[1] = model.sequences[0];
  REQUIRE(append({0, 2}, {1, 2}) == 3);
}

TEST_CASE("what the device refuses of pages of single heads", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 4;
  ha::PagedHeads pages(ha::PolicyTable(1, 2, ha::WindowOnly{.window = 6}),
                       {.num_sequences = 2, .page_size = 4, .num_pages = 30, .limits = {}});
  TokenModel model(ha::PolicyTable(1, 2, ha::WindowOnly{.window = 6}), 2);
  std::vector<float> const nothing(30 * 4 * dim, -7);
  DeviceVector<float> const keys(nothing);
  DeviceVector<float> const values(nothing);
  ha::PageStorage<float> const storage{keys.data(), values.data(), dim, dim};
  auto const layout = ha::strided_bshd(2, 5, 2, dim);
  ha::PageStep const step = pages.append(std::vector<std::int32_t>{5, 2});
  model.append({5, 2});
  DeviceTokens<float> const news(NewTokens<float>(model, {5, 2}, layout, layout));
  DeviceTables const tables(pages);
  DeviceStep const d_step(step);
  auto const fails = [&](cudaError_t error) {
    REQUIRE(error == cudaErrorInvalidValue);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE(keys.host() == nothing);
    REQUIRE(values.host() == nothing);
  };
  auto const call = [&](auto const& change) {
    ha::PagedHeadsView view = tables.view;
    ha::DevicePageStep bad = d_step.view;
    ha::PageStorage<float> where = storage;
    auto layers = news.layers;
    std::int32_t first_layer = 0;
    change(view, bad, where, layers, first_layer);
    return ha::device::append(view, bad, layers, layout, where, first_layer, nullptr);
  };
  fails(call([](auto& view, auto&, auto&, auto&, auto&) { view.table = nullptr; }));
  fails(call([](auto&, auto& bad, auto&, auto&, auto&) { bad.d_counts = nullptr; }));
  fails(call([](auto&, auto& bad, auto&, auto&, auto&) { bad.max_count = -1; }));
  fails(call([](auto&, auto& bad, auto&, auto&, auto&) { --bad.generation; }));
  fails(call([](auto& view, auto&, auto&, auto&, auto&) { ++view.generation; }));
  fails(call([](auto&, auto& bad, auto&, auto&, auto&) { bad.max_count = 6; }));
  fails(call([](auto&, auto& bad, auto&, auto&, auto&) { bad.num_copies = -1; }));
  fails(call([](auto&, auto& bad, auto&, auto&, auto&) {
    bad.d_copies = nullptr;
    bad.num_copies = 1;
  }));
  fails(call([](auto&, auto&, auto& where, auto&, auto&) { where.page_stride = 3; }));
  fails(call([](auto&, auto&, auto& where, auto&, auto&) { where.values = nullptr; }));
  fails(call([](auto&, auto&, auto& where, auto& layers, auto&) { where.keys = layers[0].keys; }));
  fails(call([](auto&, auto&, auto&, auto&, auto& first_layer) { first_layer = 1; }));

  // A count beyond the grid's: the sequence is left alone, the other one goes on.
  auto small = d_step.view;
  small.max_count = 2;
  REQUIRE_CUDA(ha::device::append(tables.view, small, news.layers, layout, storage, 0, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(d_step.status.host()[0] == 1);
  REQUIRE(pages_difference(model, pages, 1, keys.host().data(), dim, values.host().data(), dim) == "");
  REQUIRE_CUDA(ha::device::append(tables.view, d_step.view, news.layers, layout, storage, 0, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(pages_difference(model, pages, 0, keys.host().data(), dim, values.host().data(), dim) == "");
}
