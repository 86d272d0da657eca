// Rolling caches with scored slots on the device: appends, forks and rollbacks leave the bits that the CPU's leave.

#include "support/device_scored.cuh"
#include "support/errors.hpp"
#include "support/mixed_device.cuh"
#include "support/mixed_model.hpp"

#include <headaware/last_error.hpp>

#include <array>
#include <cstdint>
#include <random>
#include <string>

using namespace headaware_test;

namespace {

template <class T>
void walk(std::int32_t slack, std::int64_t key_dim, std::int64_t value_dim, int steps) {
  DeviceScored<T> p(slack, key_dim, value_dim);
  std::mt19937 random(static_cast<unsigned>(900 + slack));
  auto const below = [&](std::int32_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<unsigned>(bound));
  };
  p.append({130, 1, 30});  // a prompt, of which most goes
  for (int step = 0; step < steps; ++step) {
    INFO("slack " << slack << ", step " << step);
    std::int32_t const b = below(3);
    switch (below(8)) {
      case 0: {
        std::array<std::int32_t, 3> tokens{};
        tokens[at(b)] = below(static_cast<std::int32_t>(p.state.max_rollback(p.slots.view(), b)) + 1);
        p.rollback(tokens);
        break;
      }
      case 1: p.copy(b, (b + 1 + below(2)) % 3); break;
      case 2:
        if (below(3) == 0) p.empty(b);
        break;
      default: {
        std::array<std::int32_t, 3> counts{};
        std::int32_t const most = below(6) == 0 ? 90 : slack + 2;
        for (std::int32_t i = 0; i < 3; ++i) {
          counts[at(i)] = below(most);
          if (p.state.length(i) + counts[at(i)] > 400) counts[at(i)] = 0;
        }
        p.append(counts);
      }
    }
  }
}

}  // namespace

TEST_CASE("scored slots on the device are the CPU's, bit for bit, four-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<float>(0, 8, 5, 60);
  walk<float>(3, 8, 8, 60);
}

TEST_CASE("scored slots on the device are the CPU's, bit for bit, two-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<ha::float16>(0, 64, 64, 60);
  walk<ha::float16>(17, 16, 40, 60);
}

TEST_CASE("scored slots on the device refuse what the CPU's refuse", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  DeviceScored<float> p(2, 8, 8);
  p.append({3, 2, 1});
  DeviceVector<float> const news(std::vector<float>(3 * 7 * 8));
  std::vector<ha::LayerKv<float const>> const tokens(2, {news.data(), news.data()});
  auto const layout = ha::strided_bshd(3, 1, p.heads, 8);
  auto const refused = [](cudaError_t error, std::string const& what) {
    CHECK(error == cudaErrorInvalidValue);
    INFO(ha::last_error_message());
    CHECK(std::string(ha::last_error_message()).find(what) != std::string::npos);
  };
  refused(ha::device::append(p.view(), p.d_state(), tokens, layout, nullptr, 1, p.d_cache(), {}, nullptr),
          "heads with scored tokens");
  refused(ha::device::copy_sequences(p.view(), p.d_state(), {}, p.d_cache(), nullptr), "heads with scored tokens");
  ha::TokenScores const none;
  refused(ha::device::append(p.view(), p.d_state(), tokens, layout, nullptr, 1, p.d_cache(), p.d_records(), none, {},
                             nullptr),
          "new tokens' scores");
  auto const some = ha::TokenScores::contiguous(news.data(), 3, p.heads, 1);
  auto records = p.d_records();
  ++records.id;
  refused(
      ha::device::append(p.view(), p.d_state(), tokens, layout, nullptr, 1, p.d_cache(), records, some, {}, nullptr),
      "records made for these slots");
  p.check();
  // Counters of sequences that `compress` has filled: it fills none of these.
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>{-1, 4, -1});
  REQUIRE_CUDA(ha::device::start(p.view(), p.d_state(), d_lengths.data(), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(p.d_counters.host().back() == 1);
}

TEST_CASE("scored slots of layers that differ on the device are the CPU's, bit for bit", "[mixed]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::ModelShape const shape = mixed_shape();
  ha::PolicyTable table = mixed_table(shape);
  table.set(0, 0, ha::SinkWindowScored{.sink = 1, .window = 4, .scored = 5});
  table.set(3, 0, ha::SinkWindowScored{.sink = 0, .window = 3, .scored = 4});
  table.set(5, 0, ha::SinkWindowScored{.sink = 2, .window = 1, .scored = 30});
  ha::RollingSlots const slots(table, 2, {.max_tokens = 60, .slack = 2});
  ha::RollingScores scores(slots);
  auto const rows = [&](std::int32_t layer) { return slots.rows_total(layer); };
  auto const elements = ha::buffer_elements(shape, shape.num_layers(), rows);
  std::vector<float> keys(at(elements.head_dim), 9);
  std::vector<float> values(at(elements.value_dim), 9);
  DeviceVector<float> const d_keys(keys), d_values(values);
  DeviceVector<std::byte> const d_scores(std::vector<std::byte>(scores.bytes().begin(), scores.bytes().end()));
  DeviceVector<std::byte> const d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  DeviceVector<std::int32_t> const d_counters(std::vector<std::int32_t>(ha::RollingStateView::bytes(2) / 4, 0));
  auto const view = slots.view_at(d_heads.data());
  auto const cache = ha::rolling(slots, slots.view(), keys.data(), values.data(), shape);
  auto const d_cache = ha::rolling(slots, view, d_keys.data(), d_values.data(), shape);
  ha::RollingState state(2);
  unsigned seed = 3;
  for (std::int32_t const count : {30, 1, 3, 1, 2}) {
    MixedTensors tokens(shape, 2, state.length(0), count);
    DeviceMixed const d_tokens(tokens);
    auto const of_tokens = random_scores(at(std::int64_t{shape.num_layers()} * 2 * 4 * count), ++seed);
    DeviceVector<float> const d_of_tokens(of_tokens);
    auto const layouts = ha::per_layer(tokens.layouts);
    ha::append(slots.view(), state, tokens.layers(), layouts, std::array{count, count}, cache, scores.view(),
               ha::TokenScores::contiguous(of_tokens.data(), 2, 4, count));
    REQUIRE_CUDA(ha::device::append(view, ha::RollingStateView::at(d_counters.data(), 2), d_tokens.layers, layouts,
                                    nullptr, count, d_cache, scores.view_at(d_scores.data()),
                                    ha::TokenScores::contiguous(d_of_tokens.data(), 2, 4, count), {}, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    auto const bytes = d_scores.host();
    CHECK(std::equal(bytes.begin(), bytes.end(), scores.bytes().begin()));
    CHECK(d_keys.host() == keys);
    CHECK(d_values.host() == values);
  }
}
