// Rolling caches on the device: long random walks, graphs, streams and what moves.

#include "support/device_rolling.cuh"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

template <class T>
void walk(unsigned seed, int steps, std::int32_t slack, std::int64_t key_dim, std::int64_t value_dim) {
  constexpr std::int32_t batch = 3;
  constexpr std::int64_t max_tokens = 70;
  ha::PolicyTable const table = mixed_table();
  DeviceTable const d_table(table);
  DeviceRolling<T> const device(ha::RollingSlots(table, batch, {.max_tokens = max_tokens, .slack = slack}), key_dim,
                                value_dim);
  Stream const stream;
  SlotModel model(table, device.slots);
  ha::RollingState state(batch);  // the same counters on the host
  std::mt19937 random(seed);
  auto const below = [&](std::int64_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound));
  };
  for (int step = 0; step < steps; ++step) {
    INFO("seed " << seed << ", step " << step);
    std::int32_t const b = below(batch);
    auto const i = static_cast<std::size_t>(b);
    switch (below(10)) {
      case 0: {
        std::vector<std::int32_t> tokens(batch, 0);
        tokens[i] = below(state.max_rollback(device.slots.view(), b) + 1);
        DeviceVector<std::int32_t> const d_tokens(tokens);
        REQUIRE_CUDA(ha::device::rollback(device.view(), device.state(), d_tokens.data(), stream));
        REQUIRE_CUDA(cudaStreamSynchronize(stream));
        state.rollback(device.slots.view(), b, tokens[i]);
        model.sequences[i].resize(static_cast<std::size_t>(state.length(b)));
        break;
      }
      case 1: {
        std::int32_t const to = (b + 1 + below(batch - 1)) % batch;
        std::vector<ha::SequenceCopy> const copies{{b, to}};
        REQUIRE_CUDA(ha::device::copy_sequences(device.view(), device.state(), copies, device.cache(), stream));
        state.copy(b, to);
        model.copy(b, to);
        break;
      }
      case 2: {  // a prompt, compressed in one step, or an empty place
        std::int32_t const tokens = below(2) == 0 ? 0 : below(50);
        model.start(b, tokens);
        std::vector<std::int32_t> lengths(batch, 0);
        lengths[i] = tokens;
        NewTokens<T> const prompt(model, lengths, new_token_layout(random(), batch, 4, tokens + 1, key_dim),
                                  new_token_layout(random(), batch, 4, tokens + 1, value_dim));
        DeviceTokens<T> const d_prompt(prompt);
        DeviceVector<std::int32_t> const d_lengths(lengths);
        auto const compaction = ha::Compaction(table, lengths).on_device(d_table.view(), d_lengths.data());
        run_compress(compaction, ha::transfer(d_prompt.layers, prompt.layout(), device.cache()));
        std::vector<std::int32_t> started(batch, -1);
        started[i] = tokens;
        DeviceVector<std::int32_t> const d_started(started);
        REQUIRE_CUDA(ha::device::start(device.view(), device.state(), d_started.data(), stream));
        REQUIRE_CUDA(cudaStreamSynchronize(stream));
        state.start(device.slots.view(), b, tokens);
        break;
      }
      default: {
        std::vector<std::int32_t> counts(batch);
        for (std::size_t s = 0; s < counts.size(); ++s) {
          std::int32_t const count = below(8) == 0 ? below(30) : below(3);
          counts[s] = model.length(static_cast<std::int64_t>(s)) + count <= max_tokens ? count : 0;
        }
        model.append(counts);
        std::int32_t const most = *std::max_element(counts.begin(), counts.end());
        NewTokens<T> const news(model, counts, new_token_layout(random(), batch, 4, most, key_dim),
                                new_token_layout(random(), batch, 4, most, value_dim));
        DeviceTokens<T> const d_news(news);
        DeviceVector<std::int32_t> const d_counts(counts);
        REQUIRE_CUDA(ha::device::append(device.view(), device.state(), d_news.layers, news.layout(), d_counts.data(),
                                        most, device.cache(), {}, stream));
        REQUIRE_CUDA(cudaStreamSynchronize(stream));
        state.advance(device.slots.view(), counts);
      }
    }
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    auto const counters = device.counters.host();
    REQUIRE(counters.back() == 0);
    REQUIRE(counters[2 * batch] == 0);
    for (std::int32_t s = 0; s < batch; ++s) {
      REQUIRE(counters[static_cast<std::size_t>(s)] == model.length(s));
      REQUIRE(counters[static_cast<std::size_t>(batch + s)] == state.high_water(s));
    }
    auto const keys = device.keys.host();
    auto const values = device.values.host();
    for (std::int32_t s = 0; s < batch; ++s)
      REQUIRE(model.difference(s, keys.data(), key_dim, values.data(), value_dim) == "");
    REQUIRE(state.max_rollback(device.slots.view(), b) == model.max_rollback(b));
  }
}

}  // namespace

TEST_CASE("a rolling cache on the device through 10,000 random steps, four-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<float>(611, 10000, 4, 8, 5);
}
TEST_CASE("a rolling cache on the device, random steps, two-byte elements, no slack", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<std::uint16_t>(612, 2000, 0, 16, 24);
}
TEST_CASE("a rolling cache on the device, random steps, one-byte elements, much slack", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<std::uint8_t>(613, 2000, 19, 3, 16);
}

TEST_CASE("a captured step of decoding is replayed, layer by layer, lengths counted up on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int32_t batch = 2;
  constexpr std::int64_t dim = 8;
  ha::PolicyTable const table = mixed_table();
  DeviceRolling<std::uint16_t> const device(ha::RollingSlots(table, batch, {.max_tokens = 60}), dim, dim);
  SlotModel model(table, device.slots);
  auto const layout = ha::strided_bshd(batch, 1, 4, dim);
  std::vector<std::int32_t> const ones(batch, 1);
  DeviceTokens<std::uint16_t> const news(NewTokens<std::uint16_t>(TokenModel(table, batch), {0, 0}, layout, layout));
  Stream const stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  // The lower layer does not count, the upper one does; no counts: a token each.
  REQUIRE_CUDA(ha::device::append(device.view(), device.state(), std::vector{news.layers[0]}, layout, nullptr, 1,
                                  device.cache(), {.first_layer = 0, .advance = false}, stream));
  REQUIRE_CUDA(ha::device::append(device.view(), device.state(), std::vector{news.layers[1]}, layout, nullptr, 1,
                                  device.cache(), {.first_layer = 1}, stream));
  REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
  REQUIRE_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  for (int step = 0; step < 40; ++step) {
    model.append(ones);
    NewTokens<std::uint16_t> const now(model, ones, layout, layout);
    for (std::size_t l = 0; l < 2; ++l) {
      auto const bytes = now.keys[l].size() * sizeof(std::uint16_t);
      REQUIRE_CUDA(cudaMemcpy(news.layers[l].keys, now.keys[l].data(), bytes, cudaMemcpyHostToDevice));
      REQUIRE_CUDA(cudaMemcpy(news.layers[l].values, now.values[l].data(), bytes, cudaMemcpyHostToDevice));
    }
    REQUIRE_CUDA(cudaGraphLaunch(executable, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    auto const keys = device.keys.host();
    auto const values = device.values.host();
    for (std::int32_t b = 0; b < batch; ++b) {
      REQUIRE(device.length(b) == step + 1);
      REQUIRE(model.difference(b, keys.data(), dim, values.data(), dim) == "");
    }
  }
  REQUIRE(device.good());
  REQUIRE_CUDA(cudaGraphExecDestroy(executable));
  REQUIRE_CUDA(cudaGraphDestroy(graph));
}

TEST_CASE("what a call that came to no end left of its count of blocks does not matter", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 8;
  ha::PolicyTable const table = mixed_table();
  ha::RollingSlots const slots(table, 2, {.max_tokens = 60});
  DeviceRolling<float> const device(slots, dim, dim);
  SlotModel model(table, slots);
  for (std::int32_t const left : {1, 3, -2, 100000}) {
    auto const spoil = [&] {
      REQUIRE_CUDA(cudaMemcpy(device.state().ticket, &left, sizeof(left), cudaMemcpyHostToDevice));
    };
    std::vector<std::int32_t> const counts{9, 2};
    model.append(counts);
    auto const layout = ha::strided_bhsd(2, 4, 9, dim);
    DeviceTokens<float> const news(NewTokens<float>(model, counts, layout, layout));
    DeviceVector<std::int32_t> const d_counts(counts);
    spoil();
    REQUIRE_CUDA(ha::device::append(device.view(), device.state(), news.layers, layout, d_counts.data(), 9,
                                    device.cache(), {}, nullptr));
    spoil();
    REQUIRE_CUDA(ha::device::copy_sequences(device.view(), device.state(), std::vector<ha::SequenceCopy>{{1, 0}},
                                            device.cache(), nullptr));
    model.copy(1, 0);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE(device.good());
    for (std::int32_t b = 0; b < 2; ++b) {
      REQUIRE(device.length(b) == model.length(b));
      REQUIRE(model.difference(b, device.keys.host().data(), dim, device.values.host().data(), dim) == "");
    }
  }
}

TEST_CASE("caches on streams of their own do not meet", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 4;
  ha::PolicyTable const table = mixed_table();
  ha::RollingSlots const slots(table, 1, {.max_tokens = 60, .slack = 2});
  Stream const streams[2];
  DeviceRolling<float> const caches[2] = {{slots, dim, dim}, {slots, dim, dim}};
  SlotModel models[2] = {{table, slots}, {table, slots}};
  models[1].next = 1000;
  std::vector<DeviceTokens<float>> alive;
  for (std::int32_t step = 0; step < 20; ++step) {
    for (std::size_t i = 0; i < 2; ++i) {
      std::vector<std::int32_t> const counts{i == 0 ? 1 : 1 + step % 4};
      models[i].append(counts);
      auto const layout = ha::strided_bhsd(1, 4, counts[0], dim);
      alive.emplace_back(NewTokens<float>(models[i], counts, layout, layout));
      REQUIRE_CUDA(ha::device::append(caches[i].view(), caches[i].state(), alive.back().layers, layout, nullptr,
                                      counts[0], caches[i].cache(), {}, streams[i]));
    }
  }
  for (std::size_t i = 0; i < 2; ++i) {
    REQUIRE_CUDA(cudaStreamSynchronize(streams[i]));
    REQUIRE(caches[i].good());
    REQUIRE(models[i].difference(0, caches[i].keys.host().data(), dim, caches[i].values.host().data(), dim) == "");
  }
}

TEST_CASE("buffers at odd addresses on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 16;
  ha::PolicyTable const table = mixed_table();
  ha::RollingSlots const slots(table, 2, {.max_tokens = 40});
  // Elements of two bytes, off 16: of the cache, and of what is appended.
  for (auto const& [shift, news_shift] :
       std::vector<std::pair<std::size_t, std::size_t>>{{1, 1}, {2, 2}, {4, 4}, {8, 8}, {1, 8}, {8, 2}}) {
    DeviceRolling<std::uint16_t> const device(slots, dim, dim);
    auto const elements = static_cast<std::size_t>(slots.rows_total() * dim) + shift;
    DeviceVector<std::uint16_t> const keys(std::vector<std::uint16_t>(elements, 7));
    DeviceVector<std::uint16_t> const values(std::vector<std::uint16_t>(elements, 7));
    auto const view = device.view();
    auto const cache = ha::rolling(slots, view, keys.data() + shift, values.data() + shift, dim);
    SlotModel model(table, slots);
    std::vector<std::int32_t> const counts{30, 3};
    model.append(counts);
    auto const layout = ha::strided_bhsd(2, 4, 30, dim);
    NewTokens<std::uint16_t> const news(model, counts, layout, layout);
    std::vector<DeviceVector<std::uint16_t>> tensors;
    std::vector<ha::LayerKv<std::uint16_t>> layers;
    for (std::size_t l = 0; l < 2; ++l) {
      for (auto tensor : {news.keys[l], news.values[l]}) {
        tensor.insert(tensor.begin(), news_shift, std::uint16_t{9});
        tensors.emplace_back(tensor);
      }
      layers.push_back({tensors[2 * l].data() + news_shift, tensors[2 * l + 1].data() + news_shift});
    }
    DeviceVector<std::int32_t> const d_counts(counts);
    REQUIRE_CUDA(ha::device::append(view, device.state(), layers, layout, d_counts.data(), 30, cache, {}, nullptr));
    REQUIRE_CUDA(
        ha::device::copy_sequences(view, device.state(), std::vector<ha::SequenceCopy>{{0, 1}}, cache, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    model.copy(0, 1);
    auto const got_keys = keys.host();
    auto const got_values = values.host();
    REQUIRE(got_keys[shift - 1] == 7);
    for (std::int32_t b = 0; b < 2; ++b) {
      REQUIRE(model.difference(b, got_keys.data() + shift, dim, got_values.data() + shift, dim) == "");
    }
  }
}

TEST_CASE("more sequences than a block has threads, more copies than a launch takes", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int32_t batch = 620;
  constexpr std::int64_t dim = 2;
  ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = 1, .window = 2});
  DeviceRolling<float> const device(ha::RollingSlots(table, batch, {.slack = 1}), dim, dim);
  SlotModel model(table, device.slots);
  std::vector<std::int32_t> counts;
  std::vector<ha::SequenceCopy> copies;
  for (std::int32_t b = 0; b < batch; ++b) counts.push_back(b % 9);
  for (std::int32_t b = 0; b < batch / 2; ++b) copies.push_back({b, batch - 1 - b});
  model.append(counts);
  auto const layout = ha::strided_bshd(batch, 8, 1, dim);
  DeviceTokens<float> const news(NewTokens<float>(model, counts, layout, layout));
  DeviceVector<std::int32_t> const d_counts(counts);
  REQUIRE_CUDA(ha::device::append(device.view(), device.state(), news.layers, layout, d_counts.data(), 8,
                                  device.cache(), {.advance = false}, nullptr));
  REQUIRE_CUDA(ha::device::advance(device.view(), device.state(), d_counts.data(), nullptr));
  REQUIRE_CUDA(ha::device::copy_sequences(device.view(), device.state(), copies, device.cache(), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  for (auto const& copy : copies) model.copy(copy.from, copy.to);
  REQUIRE(device.good());
  auto const keys = device.keys.host();
  auto const values = device.values.host();
  auto const counters = device.counters.host();
  for (std::int32_t b = 0; b < batch; ++b) {
    REQUIRE(counters[static_cast<std::size_t>(b)] == model.length(b));
    if (b % 31 == 0 || b > batch - 4) REQUIRE(model.difference(b, keys.data(), dim, values.data(), dim) == "");
  }
}
