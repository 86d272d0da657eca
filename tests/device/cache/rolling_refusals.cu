// What calls on the device refuse of rolling caches, on the host and on the device.

#include "support/device_rolling.cuh"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("what the device refuses of a rolling cache", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 4;
  ha::PolicyTable const table = mixed_table();
  DeviceRolling<float> const device(ha::RollingSlots(table, 2, {.max_tokens = 20, .slack = 2}), dim, dim);
  SlotModel model(table, device.slots);
  auto const layout = ha::strided_bhsd(2, 4, 19, dim);
  std::vector<std::int32_t> const counts{19, 3};
  model.append(counts);
  DeviceTokens<float> const news(NewTokens<float>(model, counts, layout, layout));
  auto const append = [&](std::vector<std::int32_t> const& each, std::int32_t most) {
    DeviceVector<std::int32_t> const d_counts(each);
    REQUIRE_CUDA(ha::device::append(device.view(), device.state(), news.layers, layout, d_counts.data(), most,
                                    device.cache(), {}, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
  };
  auto const refused = [&] {
    bool const status = !device.good();
    REQUIRE_CUDA(cudaMemset(device.state().status, 0, sizeof(std::int32_t)));
    return status;
  };
  append(counts, 19);
  REQUIRE(device.good());
  // One sequence has no room, the other goes on; a negative count; one beyond the grid's.
  auto const before = device.counters.host();
  append({2, 0}, 2);
  REQUIRE(refused());
  append({-1, 0}, 2);
  REQUIRE(refused());
  append({0, 3}, 2);
  REQUIRE(refused());
  REQUIRE(device.counters.host() == before);
  REQUIRE(model.difference(0, device.keys.host().data(), dim, device.values.host().data(), dim) == "");
  append({2, 1}, 2);
  REQUIRE(refused());
  REQUIRE(device.length(0) == 19);
  REQUIRE(device.length(1) == 4);

  auto const back = [&](std::vector<std::int32_t> const& tokens) {
    DeviceVector<std::int32_t> const d_tokens(tokens);
    REQUIRE_CUDA(ha::device::rollback(device.view(), device.state(), d_tokens.data(), nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
  };
  back({3, 0});
  REQUIRE(refused());
  back({-1, 0});
  REQUIRE(refused());
  REQUIRE(device.length(0) == 19);
  back({2, 4});
  REQUIRE(device.good() == false);  // the second sequence's window of 1 with a slack of 2 has wrapped
  REQUIRE(refused());
  REQUIRE(device.length(0) == 17);

  DeviceVector<std::int32_t> const d_started(std::vector<std::int32_t>{21, 7});
  REQUIRE_CUDA(ha::device::start(device.view(), device.state(), d_started.data(), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(refused());
  REQUIRE(device.length(0) == 17);
  REQUIRE(device.length(1) == 7);

  auto const view = device.view();
  auto const state = device.state();
  auto const fails = [&](cudaError_t error) {
    REQUIRE(error == cudaErrorInvalidValue);
    REQUIRE_CUDA(cudaDeviceSynchronize());
  };
  auto const cache = device.cache();
  fails(ha::device::append(view, state, news.layers, ha::strided_bhsd(2, 3, 19, dim), nullptr, 1, cache, {}, nullptr));
  fails(ha::device::append(view, state, news.layers, ha::strided_bhsd(1, 4, 19, dim), nullptr, 1, cache, {}, nullptr));
  fails(ha::device::append(view, state, news.layers, ha::strided_bhsd(2, 4, 19, 3), nullptr, 1, cache, {}, nullptr));
  fails(ha::device::append(view, state, news.layers, layout, nullptr, 20, cache, {}, nullptr));
  fails(ha::device::append(view, state, news.layers, layout, nullptr, -1, cache, {}, nullptr));
  fails(ha::device::append(view, state, news.layers, layout, nullptr, 1, cache, {.first_layer = 1}, nullptr));
  fails(ha::device::append(view, state, news.layers, layout, nullptr, 1, cache, {.first_layer = -1}, nullptr));
  fails(ha::device::append(view, {}, news.layers, layout, nullptr, 1, cache, {}, nullptr));
  fails(ha::device::append(view, {.lengths = state.lengths}, news.layers, layout, nullptr, 1, cache, {}, nullptr));
  fails(ha::device::append(device.slots.view(), state, news.layers, layout, nullptr, 1, cache, {}, nullptr));
  auto layers = news.layers;
  layers[1].values = nullptr;
  fails(ha::device::append(view, state, layers, layout, nullptr, 1, cache, {}, nullptr));
  layers[1].values = device.keys.data();
  fails(ha::device::append(view, state, layers, layout, nullptr, 1, cache, {}, nullptr));
  fails(ha::device::copy_sequences(view, state, std::vector<ha::SequenceCopy>{{0, 0}}, cache, nullptr));
  fails(ha::device::copy_sequences(view, state, std::vector<ha::SequenceCopy>{{0, 2}}, cache, nullptr));
  fails(ha::device::rollback(view, state, nullptr, nullptr));
  auto broken = cache;
  broken.layers[0].keys = nullptr;
  fails(ha::device::append(view, state, news.layers, layout, nullptr, 1, broken, {}, nullptr));
  fails(ha::device::copy_sequences(view, state, std::vector<ha::SequenceCopy>{{0, 1}}, broken, nullptr));
  broken.layers[0].keys = broken.layers[0].values;
  fails(ha::device::append(view, state, news.layers, layout, nullptr, 1, broken, {}, nullptr));
  fails(ha::device::copy_sequences(view, state, std::vector<ha::SequenceCopy>{{0, 1}}, broken, nullptr));
  REQUIRE(device.length(0) == 17);

  // Nothing to do is no error: no sequences, no heads that keep anything, no tokens.
  ha::RollingSlots const nobody(table, 0, {.max_tokens = 5});
  DeviceRolling<float> const empty(nobody, dim, dim);
  REQUIRE_CUDA(ha::device::append(empty.view(), empty.state(), news.layers, ha::strided_bhsd(0, 4, 19, dim), nullptr, 1,
                                  empty.cache(), {}, nullptr));
  append({0, 0}, 0);
  REQUIRE(device.good());
}

TEST_CASE("what has been taken back of the slack on the device cannot be taken back again", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 4;
  ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = 1, .window = 6});
  DeviceRolling<float> const device(ha::RollingSlots(table, 2, {.slack = 4}), dim, dim);
  DeviceVector<std::int32_t> const d_counts(std::vector<std::int32_t>{30, 5});
  REQUIRE_CUDA(ha::device::advance(device.view(), device.state(), d_counts.data(), nullptr));
  auto const back = [&](std::int32_t first, std::int32_t second) {
    DeviceVector<std::int32_t> const d_tokens(std::vector<std::int32_t>{first, second});
    REQUIRE_CUDA(ha::device::rollback(device.view(), device.state(), d_tokens.data(), nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    bool const good = device.good();
    REQUIRE_CUDA(cudaMemset(device.state().status, 0, sizeof(std::int32_t)));
    return good;
  };
  REQUIRE(back(3, 2));  // the second sequence's ring has not wrapped: all of it may go
  REQUIRE_FALSE(back(2, 0));
  REQUIRE(device.length(0) == 27);
  REQUIRE(back(1, 3));
  REQUIRE_FALSE(back(1, 0));
  REQUIRE(device.length(0) == 26);
  REQUIRE(device.length(1) == 0);
  // New tokens over those taken back give nothing of it back, ones beyond them do.
  DeviceVector<std::int32_t> const d_more(std::vector<std::int32_t>{5, 0});
  REQUIRE_CUDA(ha::device::advance(device.view(), device.state(), d_more.data(), nullptr));
  REQUIRE_FALSE(back(5, 0));
  REQUIRE(back(4, 0));
  REQUIRE(device.length(0) == 27);
}

TEST_CASE("a compressed cache is refused by slots of other policies", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 4;
  std::vector<std::int32_t> const lengths{30};
  ha::PolicyTable const table(1, 2, ha::SinkWindow{.sink = 2, .window = 9});
  ha::PolicyTable const other(1, 2, ha::SinkWindow{.sink = 2, .window = 8});
  DeviceTable const d_other(other);
  auto const layout = ha::strided_bhsd(1, 2, 30, dim);
  SourceCache<float, ha::StridedLayout> const source(layout, layout.required_span_size(), 1, dim, dim, 614);
  DeviceSource<float, ha::StridedLayout> const d_source(source);
  DeviceRolling<float> const device(ha::RollingSlots(table, 1, {}), dim, dim);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  DeviceVector<std::int32_t> const status(std::vector<std::int32_t>{-7});
  auto compaction = ha::Compaction(other, lengths).on_device(d_other.view(), d_lengths.data());
  compaction.d_status = status.data();
  run_compress(compaction, ha::transfer(d_source.layers, layout, device.cache()));
  REQUIRE(status.host()[0] == 1);
  auto const keys = device.keys.host();
  REQUIRE(std::all_of(keys.begin(), keys.end(), [](float x) { return x == 0; }));
}
