// A step's new tokens appended and attended to in one launch, beside two calls.

#include "support/device_attention.cuh"
#include "support/device_rolling.cuh"
#include "support/differences.hpp"
#include "support/fused_step.cuh"
#include "support/rotary.hpp"

#include <headaware/attention/append_and_attend.cuh>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

using namespace headaware_test;

namespace {

template <class T>
DeviceRolling<T> rolling_of(FusedCase const& c) {
  return DeviceRolling<T>(ha::RollingSlots(step_table(), batch, {.max_tokens = 400, .slack = 4}), c.key_dim,
                          c.value_dim);
}

/// Fills both sequences' first tokens, of different number.
template <class T>
std::vector<std::int32_t> prefill(FusedCase const& c, DeviceRolling<T> const& cache) {
  std::vector<std::int32_t> const counts{c.prompt, c.prompt / 2};
  if (c.prompt == 0) return counts;
  auto const keys = ha::strided_bshd(batch, c.prompt, kv_heads, c.key_dim);
  auto const values = ha::strided_bshd(batch, c.prompt, kv_heads, c.value_dim);
  DeviceVector<T> const d_keys(random_elements<T>(keys.required_span_size(), 3));
  DeviceVector<T> const d_values(random_elements<T>(values.required_span_size(), 4));
  DeviceVector<std::int32_t> const d_counts(counts);
  std::vector<ha::LayerKv<T const>> const all(layers, {d_keys.data(), d_values.data()});
  REQUIRE_CUDA(ha::device::append(cache.view(), cache.state(), all, ha::KvLayouts{keys, values}, d_counts.data(),
                                  c.prompt, cache.cache(), {}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  return counts;
}

/// One step of all layers in one call each. @param temp  storage of all layers, that earlier steps have used, too
template <class T, class Rotation>
cudaError_t fused_step(FusedStep<T> const& step, DeviceRolling<T> const& cache, void* temp, std::size_t& bytes,
                       std::int32_t const* d_counts, Rotation const& rotation, cudaStream_t stream) {
  for (std::int32_t l = 0; l < layers; ++l) {
    ha::AttentionOptions options;
    options.window = step.c.window;
    options.overlap_launches = true;  // of no effect but in code for compute capability 9.0
    ha::RollingStep const news{cache.view(),
                               cache.state(),
                               step.layer(l),
                               ha::KvLayouts{step.key_layout(), step.value_layout()},
                               ha::AppendOptions{.first_layer = l, .advance = l + 1 == layers},
                               d_counts,
                               rotation};
    std::size_t needed = bytes;
    cudaError_t const error = ha::device::append_and_attend(temp, needed, step.shape(), step.queries_of(l), news,
                                                            cache.cache(), step.output_of(l), options, stream);
    bytes = std::max(bytes, needed);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

/// The same in two calls each. @param before  device, lengths
template <class T>
void separate_step(FusedStep<T> const& step, DeviceRolling<T> const& cache, std::int32_t const* d_counts,
                   std::int32_t const* before) {
  ha::KvLayouts const source{step.key_layout(), step.value_layout()};
  for (std::int32_t l = 0; l < layers; ++l) {
    REQUIRE_CUDA(ha::device::append(cache.view(), cache.state(), std::vector{step.layer(l)}, source, d_counts,
                                    step.c.tokens, cache.cache(), {.first_layer = l, .advance = false}, nullptr));
  }
  DeviceVector<std::int32_t> const all(std::vector<std::int32_t>(batch, step.c.tokens));
  REQUIRE_CUDA(ha::device::advance(cache.view(), cache.state(), d_counts != nullptr ? d_counts : all.data(), nullptr));
  for (std::int32_t l = 0; l < layers; ++l) {
    ha::AttentionOptions options;
    options.window = step.c.window;
    if (step.c.tokens > 1 || options.window != 0) options.first_positions = before;
    auto const destination = cache.cache();
    auto const& buffers = destination.layers[at(l)];
    run_attend(
        step.shape(), step.queries_of(l),
        ha::KeptCache{buffers.keys, buffers.values,
                      ha::RollingView::of_chunk(cache.view(), l, cache.state().lengths, step.c.tokens, d_counts)},
        step.output_of(l), {destination.capacities[at(l)].rows}, options);
  }
}

template <class T>
void check_steps(FusedCase const& c) {
  INFO(c.key_dim << " and " << c.value_dim << " channels, group " << c.group << ", " << c.tokens << " tokens");
  auto const one = rolling_of<T>(c);
  auto const two = rolling_of<T>(c);
  std::vector<std::int32_t> lengths = prefill(c, one);
  prefill(c, two);
  FusedStep<T> const fused(c);
  FusedStep<T> const separate(c);
  DeviceVector<std::int32_t> const d_counts(std::vector<std::int32_t>(batch, 0));
  std::size_t bytes = 0;
  REQUIRE_CUDA(fused_step(fused, one, nullptr, bytes, nullptr, ha::KeepPositions{}, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  for (std::int32_t step = 0; step < c.steps; ++step) {
    auto const seed = static_cast<unsigned>(10 * step);
    for (FusedStep<T> const* each : {&fused, &separate}) fill_step(*each, seed);
    std::vector<std::int32_t> counts(batch, c.tokens);
    if (c.counted) counts = {step % (c.tokens + 1), (step + 1) % (c.tokens + 1)};
    upload(d_counts, counts);
    DeviceVector<std::int32_t> const before(lengths);
    std::int32_t const* const given = c.counted ? d_counts.data() : nullptr;
    REQUIRE_CUDA(fused_step(fused, one, temp.data(), bytes, given, ha::KeepPositions{}, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    separate_step(separate, two, given, before.data());
    for (std::size_t b = 0; b < batch; ++b) lengths[b] += counts[b];
    INFO("step " << step);
    REQUIRE(one.good());
    REQUIRE(one.length(0) == lengths[0]);
    REQUIRE(first_difference(one.counters.host(), two.counters.host()) == "");
    REQUIRE(first_difference(fused.output.host(), separate.output.host()) == "");
    REQUIRE(first_difference(fused.lse.host(), separate.lse.host()) == "");
    REQUIRE(first_difference(one.keys.host(), two.keys.host()) == "");
    REQUIRE(first_difference(one.values.host(), two.values.host()) == "");
  }
}

}  // namespace

TEST_CASE("append and attend: one call does what two do, to the bit", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_steps<ha::float16>({});
  check_steps<ha::float16>({.key_dim = 128, .value_dim = 48, .group = 1, .steps = 3, .prompt = 380});
  check_steps<ha::float16>({.key_dim = 16, .value_dim = 256, .group = 12, .steps = 3, .prompt = 300});
  check_steps<ha::float16>({.steps = 12, .prompt = 20, .counted = true});
  check_steps<ha::float16>({.key_dim = 32, .value_dim = 32, .steps = 5, .prompt = 90, .window = 50});
}

TEST_CASE("append and attend: drafts of several tokens, of which each sees its own window", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_steps<ha::float16>({.key_dim = 32, .value_dim = 32, .tokens = 3, .steps = 12});
  check_steps<ha::float16>({.key_dim = 32, .value_dim = 32, .tokens = 5, .steps = 10, .prompt = 60, .counted = true});
  // Several tiles of queries, of which each writes the new rows of its own tokens.
  check_steps<ha::float16>({.key_dim = 144, .value_dim = 32, .group = 8, .tokens = 5, .steps = 6, .prompt = 120});
  for (std::int32_t const group : {8, 15, 16}) {  // 40, 75 and 80 query rows, of which a block has 64
    check_steps<ha::float16>({.key_dim = 32, .value_dim = 32, .group = group, .tokens = 5, .steps = 6, .prompt = 120});
    check_steps<ha::float16>(
        {.key_dim = 32, .value_dim = 32, .group = group, .tokens = 5, .steps = 8, .prompt = 30, .counted = true});
  }
}

TEST_CASE("append and attend: a captured step is replayed with fixed arguments", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using T = ha::float16;
  FusedCase const c{.steps = 30, .prompt = 130};
  auto const one = rolling_of<T>(c);
  auto const two = rolling_of<T>(c);
  prefill(c, one);
  prefill(c, two);
  FusedStep<T> const fused(c);
  FusedStep<T> const separate(c);
  std::size_t bytes = 0;
  REQUIRE_CUDA(fused_step(fused, one, nullptr, bytes, nullptr, ha::KeepPositions{}, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  Stream const stream;
  Graph const graph(stream, [&](cudaStream_t on) {
    return fused_step(fused, one, temp.data(), bytes, nullptr, ha::KeepPositions{}, on);
  });
  for (std::int32_t step = 0; step < c.steps; ++step) {
    for (FusedStep<T> const* each : {&fused, &separate}) {
      upload(each->keys, random_elements<T>(std::ssize(each->keys.host()), static_cast<unsigned>(step)));
      upload(each->queries, random_elements<T>(std::ssize(each->queries.host()), static_cast<unsigned>(step + 1)));
    }
    graph.replay(stream);
    separate_step(separate, two, nullptr, nullptr);
    REQUIRE(first_difference(fused.output.host(), separate.output.host()) == "");
    REQUIRE(first_difference(one.keys.host(), two.keys.host()) == "");
  }
  REQUIRE(one.length(0) == c.prompt + c.steps);
}

TEST_CASE("append and attend: keys and queries are turned to their positions inside", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using T = ha::float16;
  for (auto const& [pairing, rotary_dim, tokens, table] :
       {std::tuple{ha::RotaryPairing::neox, 64, 1, false}, std::tuple{ha::RotaryPairing::interleaved, 64, 1, false},
        std::tuple{ha::RotaryPairing::neox, 32, 3, true}, std::tuple{ha::RotaryPairing::interleaved, 48, 3, true}}) {
    FusedCase const c{.tokens = tokens, .steps = 6, .prompt = 101};
    INFO(rotary_dim << " channels, " << tokens << " tokens");
    auto const one = rolling_of<T>(c);
    auto const two = rolling_of<T>(c);
    std::vector<std::int32_t> lengths = prefill(c, one);
    prefill(c, two);
    FusedStep<T> const fused(c);
    FusedStep<T> const separate(c);
    auto const rotary = Rotary::of_base(pairing, rotary_dim, 10000);
    auto const tables = rotary.tables(400);
    DeviceVector<float> const cosines(tables.cosines);
    DeviceVector<float> const sines(tables.sines);
    auto const rotation = table ? ha::KeyRotation::from_table(pairing, rotary_dim, cosines.data(), sines.data(), 400)
                                : ha::KeyRotation::from_base(pairing, rotary_dim, 10000);
    std::size_t bytes = 0;
    REQUIRE_CUDA(fused_step(fused, one, nullptr, bytes, nullptr, rotation, nullptr));
    DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
    for (std::int32_t step = 0; step < c.steps; ++step) {
      auto const seed = static_cast<unsigned>(10 * step);
      auto keys = random_elements<T>(std::ssize(fused.keys.host()), seed);
      auto queries = random_elements<T>(std::ssize(fused.queries.host()), seed + 1);
      upload(fused.keys, keys);
      upload(fused.queries, queries);
      auto const turn = [&](std::vector<T>& rows, std::int32_t heads) {  // [layers, batch, tokens, heads, channels]
        for (std::size_t row = 0; row < rows.size() / at(c.key_dim); ++row) {
          std::size_t const token = row / at(heads) % at(c.tokens);
          std::size_t const sequence = row / at(heads) / at(c.tokens) % batch;
          std::vector<double> x;
          for (std::int64_t i = 0; i < c.key_dim; ++i) x.push_back(ha::to_float(rows[row * at(c.key_dim) + at(i)]));
          rotary.turn(x, double(lengths[sequence]) + double(token));
          for (std::int64_t i = 0; i < c.key_dim; ++i)
            rows[row * at(c.key_dim) + at(i)] = ha::from_float<T>(float(x[at(i)]));
        }
      };
      turn(keys, kv_heads);
      turn(queries, kv_heads * c.group);
      upload(separate.keys, keys);
      upload(separate.queries, queries);
      DeviceVector<std::int32_t> const before(lengths);
      REQUIRE_CUDA(fused_step(fused, one, temp.data(), bytes, nullptr, rotation, nullptr));
      REQUIRE_CUDA(cudaDeviceSynchronize());
      separate_step(separate, two, nullptr, before.data());
      for (std::size_t b = 0; b < batch; ++b) lengths[b] += c.tokens;
      auto const near = [](DeviceVector<T> const& a, DeviceVector<T> const& b, double room) {
        auto const x = a.host();
        auto const y = b.host();
        for (std::size_t i = 0; i < x.size(); ++i) {
          if (std::abs(ha::to_float(x[i]) - ha::to_float(y[i])) > room) return false;
        }
        return true;
      };
      REQUIRE(near(one.keys, two.keys, 2e-3));  // a unit in the last place
      REQUIRE(first_difference(one.values.host(), two.values.host()) == "");
      REQUIRE(near(fused.output, separate.output, 4e-3));
    }
    // The turn is not nothing.
    REQUIRE(first_difference(fused.keys.host(), separate.keys.host()) != "");
  }
}

TEST_CASE("append and attend: refuses what takes two calls, and says so of sequences", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using T = ha::float16;
  FusedCase const c{.key_dim = 32, .value_dim = 32, .prompt = 10};
  auto const cache = rolling_of<T>(c);
  prefill(c, cache);
  FusedStep<T> const step(c);
  std::size_t bytes = 0;
  auto const call = [&](auto const& change) {
    ha::RollingStep news{cache.view(), cache.state(), step.layer(1), step.key_layout(),
                         ha::AppendOptions{.first_layer = 1}};
    auto shape = step.shape();
    change(news, shape);
    DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes + 1, std::byte{0}));
    auto const error =
        ha::device::append_and_attend(bytes == 0 ? nullptr : temp.data(), bytes, shape, step.queries_of(1), news,
                                      cache.cache(), step.output_of(1), {}, nullptr);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    return error;
  };
  REQUIRE_CUDA(call([](auto&, auto&) {}));
  REQUIRE(bytes > 0);
  REQUIRE(call([](auto& news, auto&) { news.tokens.keys += 1; }) == cudaErrorInvalidValue);
  CHECK(std::string(ha::last_error_message()).find("new keys") != std::string::npos);
  REQUIRE(call([](auto& news, auto&) { news.options.first_layer = 2; }) == cudaErrorInvalidValue);
  REQUIRE(call([](auto& news, auto&) { news.state.lengths = nullptr; }) == cudaErrorInvalidValue);
  REQUIRE(call([](auto& news, auto&) { news.tokens.values = nullptr; }) == cudaErrorInvalidValue);
  REQUIRE(call([](auto&, auto& shape) { shape.query_tokens = 6; }) == cudaErrorInvalidValue);  // the slack is 4
  REQUIRE(call([](auto&, auto& shape) { shape.head_dim = 16; }) == cudaErrorInvalidValue);
  REQUIRE(call([](auto&, auto& shape) { shape.num_sequences = 1; }) == cudaErrorInvalidValue);
  REQUIRE(cache.length(0) == 10);
  REQUIRE(cache.good());
  // A count above the step's is refused on the device: that sequence stays as it is, the other goes on.
  DeviceVector<std::int32_t> const counts(std::vector<std::int32_t>{2, 1});
  REQUIRE_CUDA(call([&](auto& news, auto&) { news.d_counts = counts.data(); }));
  CHECK(!cache.good());
  CHECK(cache.length(0) == 10);
  CHECK(cache.length(1) == 6);
}
