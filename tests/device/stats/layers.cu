// Layers that differ: windows, learned sinks, latents and models of such layers, against the CPU's sums.

#include "support/device_observation.cuh"

#include <headaware/last_error.hpp>
#include <headaware/stats/attention_observer.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

using Strided = ha::StridedLayout;
constexpr ha::AttentionScore score{.scale = 0.2F};
constexpr float no_sink = -std::numeric_limits<float>::infinity();

ha::ObserverParameters with_retention(ha::ObserverParameters parameters = {}) {
  parameters.retention = ha::RetentionGrid{.sinks = {0, 1, 4, 16}, .windows = {1, 8, 20, 50, 64, 150, 300}};
  return parameters;
}

/// The device's sums as they are, to compare bits.
template <class T, class E>
std::vector<ha::ObservedHead> sums_of(Attention<E> const& a, Mode mode, ha::AttentionScore const& how = score) {
  auto const shape = bhsd_shape(a.shape);
  DeviceAttention<T, E, Strided, Strided, Strided> const device(a, mode, shape);
  return observe_on_device(shape, device.layers, how, with_retention());
}

void require_equal(std::vector<ha::ObservedHead> const& a, std::vector<ha::ObservedHead> const& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    INFO("head " << i);
    REQUIRE(a[i].head.entropy == b[i].head.entropy);
    REQUIRE(a[i].head.uniformity == b[i].head.uniformity);
    REQUIRE(a[i].head.max_attention == b[i].head.max_attention);
    REQUIRE(a[i].head.sink == b[i].head.sink);
    REQUIRE(a[i].head.recent == b[i].head.recent);
    REQUIRE(a[i].head.distances == b[i].head.distances);
    REQUIRE(a[i].retention == b[i].retention);
  }
}

bool last_error_has(std::string const& part) {
  return std::string(ha::last_error_message()).find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("each layer's own window, in one launch", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape const s{.num_query_heads = 4, .num_kv_heads = 2, .tokens = 140, .head_dim = 32, .layers = 4};
  Attention<ha::float16> a(s);
  for (std::vector<std::int64_t> const& windows : {std::vector<std::int64_t>{50, 0, 1, 64}, {20, 7, 17, 63}}) {
    a.windows = windows;
    for (Mode const mode : {Mode::mass, Mode::values, Mode::metric})
      compare_bhsd<__half>(a, mode, score, with_retention());
  }
  ha::ObserverParameters sampled = with_retention();
  sampled.first_query = 11;
  sampled.query_stride = 9;
  ha::ObserverParameters chunks = with_retention();
  chunks.chunk_size = 60;
  for (Mode const mode : {Mode::mass, Mode::values}) {
    compare_bhsd<__half>(a, mode, score, sampled);
    compare_bhsd<__half>(a, mode, {.scale = 0.2F, .soft_cap = 2}, chunks);
  }
}

TEST_CASE("a window of the score is one of every layer, and one as long as the text is none", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::float16> a({.num_query_heads = 2, .num_kv_heads = 1, .tokens = 130, .head_dim = 16, .layers = 2});
  for (Mode const mode : {Mode::mass, Mode::values}) {
    a.windows.clear();
    auto const none = sums_of<__half>(a, mode);
    auto const by_score = sums_of<__half>(a, mode, {.scale = 0.2F, .sliding_window = 40});
    a.windows = {40, 40};
    auto const by_layer = sums_of<__half>(a, mode);
    require_equal(by_layer, by_score);
    require_equal(sums_of<__half>(a, mode, {.scale = 0.2F, .sliding_window = 40}), by_layer);
    // Windows of the grid from the layer's own on lose nothing.
    auto const grid = *with_retention().retention;
    for (std::size_t cell = 0; cell < grid.size(); ++cell)
      REQUIRE((by_layer[0].retention.mass[cell] > 0) == (grid.windows[cell % grid.windows.size()] < 40));
    a.windows = {130, std::int64_t{1} << 40};
    auto const whole = sums_of<__half>(a, mode);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      REQUIRE(whole[i].head.entropy == none[i].head.entropy);
      REQUIRE(whole[i].head.uniformity == none[i].head.uniformity);
    }
    require_same(whole, none);
  }
  a.windows = {40, 41};
  auto const shape = bhsd_shape(a.shape);
  DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const device(a, Mode::mass, shape);
  std::size_t bytes = 0;
  REQUIRE(ha::device::observe(nullptr, bytes, shape, device.layers, {.sliding_window = 40}, {}, nullptr, nullptr) ==
          cudaErrorInvalidValue);
  REQUIRE(last_error_has("the layer's window, 41"));
  auto layers = device.layers;
  layers[0].window = -1;
  REQUIRE(ha::device::observe(nullptr, bytes, shape, layers, {}, {}, nullptr, nullptr) == cudaErrorInvalidValue);
}

TEST_CASE("learned sinks take part in the softmax", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape const s{.num_query_heads = 4, .num_kv_heads = 2, .tokens = 150, .head_dim = 32, .layers = 3};
  Attention<ha::bfloat16> a(s);
  a.sinks = {{0.5F, -3, no_sink, 6}, {}, {2, 200, 1e30F, -1e30F}};
  a.windows = {0, 0, 30};
  for (Mode const mode : {Mode::mass, Mode::values, Mode::metric}) {
    compare_bhsd<__nv_bfloat16>(a, mode, score, with_retention());
    compare_bhsd<__nv_bfloat16>(a, mode, {.scale = 0.2F, .soft_cap = 2}, with_retention());
  }
  Attention<float> single({.num_query_heads = 2, .num_kv_heads = 1, .tokens = 90, .head_dim = 16});
  single.sinks = {{1, -1}};
  for (Mode const mode : {Mode::mass, Mode::values}) compare_bhsd<float>(single, mode, score, with_retention());
}

TEST_CASE("sinks of minus infinity are none, and others that are not finite spoil their head", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::float16> a({.num_query_heads = 2, .num_kv_heads = 1, .tokens = 100, .head_dim = 16});
  for (Mode const mode : {Mode::mass, Mode::values}) {
    a.sinks.clear();
    auto const none = sums_of<__half>(a, mode);
    a.sinks = {{no_sink, no_sink}};
    require_equal(sums_of<__half>(a, mode), none);
    for (float const wrong : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      a.sinks = {{no_sink, wrong}};
      auto const got = sums_of<__half>(a, mode);
      REQUIRE(got[0].retention == none[0].retention);
      REQUIRE(got[1].head.invalid_rows == 100);
      REQUIRE(got[1].head.rows == 0);
    }
  }
}

TEST_CASE("latents: masses of any, errors of those that have room", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape s{.num_query_heads = 16, .num_kv_heads = 1, .tokens = 70, .head_dim = 576, .spread = 0.3F};
  s.value_dim = 512;
  compare_bhsd<__half>(Attention<ha::float16>(s), Mode::mass, score, with_retention());
  compare_bhsd<__nv_bfloat16>(Attention<ha::bfloat16>(s), Mode::mass, score, with_retention());
  Attention<ha::float16> const wide(s);
  auto shape = bhsd_shape(s);
  shape.value_layout = shape.key_layout;
  DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const device(wide, Mode::mass, shape);
  auto layers = device.layers;
  layers[0].d_values = layers[0].d_keys;
  std::size_t bytes = 0;
  REQUIRE(ha::device::observe(nullptr, bytes, shape, layers, score, with_retention(), nullptr, nullptr) ==
          cudaErrorInvalidValue);
  REQUIRE(last_error_has("value_dim"));
  REQUIRE(last_error_has("only masses"));

  // Values that are the first channels of the keys.
  s.head_dim = 96;
  s.value_dim = 64;
  s.num_query_heads = 4;
  Attention<ha::float16> small(s);
  for (std::size_t t = 0; t < 70; ++t)
    for (std::size_t c = 0; c < 64; ++c) small.values[0][t * 64 + c] = small.keys[0][t * 96 + c];
  shape = bhsd_shape(s);
  shape.value_layout = shape.key_layout;
  DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const latent(small, Mode::mass, shape);
  layers = latent.layers;
  layers[0].d_values = layers[0].d_keys;
  ha::ObserverParameters parameters = with_retention();
  parameters.formats.clear();  // of a latent they are others: rounding.cu
  require_same(observe_on_device(shape, layers, score, parameters),
               observe_on_host(small, Mode::values, score, parameters));
  DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const apart(small, Mode::values, bhsd_shape(s));
  layers[0].d_values = apart.layers[0].d_values;  // not the keys' rows: a layout of too many channels
  REQUIRE(ha::device::observe(nullptr, bytes, shape, layers, score, with_retention(), nullptr, nullptr) ==
          cudaErrorInvalidValue);
}

TEST_CASE("a model of layers that differ, a call per kind", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  using Kind = ha::LayerKind;
  ha::LayerShape const full{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 32, .value_dim = 32};
  ha::LayerShape sliding = full;
  sliding.kind = Kind::sliding;
  sliding.window = 24;
  ha::LayerShape other{.num_query_heads = 3, .num_kv_heads = 1, .head_dim = 16, .value_dim = 16};
  ha::LayerShape shared = sliding;
  shared.cache_layer = 2;
  ha::ModelShape const model({full, {.kind = Kind::none}, sliding, other, shared, full});
  ha::AttentionObserver on_host(model, with_retention());
  ha::AttentionObserver on_device = on_host;
  DeviceVector<double> const d_sums{std::vector<double>(on_host.sums().size())};
  Stream const stream;

  // Layers 0, 2, 4 and 5 have heads alike; layer 3 has not.
  Attention<ha::float16> const alike(
      {.num_query_heads = 4, .num_kv_heads = 2, .tokens = 90, .head_dim = 32, .layers = 4});
  Attention<ha::float16> const alone({.num_query_heads = 3, .num_kv_heads = 1, .tokens = 90, .head_dim = 16});
  std::vector<std::int32_t> const numbers{0, 2, 4, 5};
  auto const on_both = [&](Attention<ha::float16> const& a, std::vector<std::int32_t> const& layers) {
    auto const shape = bhsd_shape(a.shape);
    DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const device(a, Mode::values, shape);
    std::size_t bytes = 0;
    auto const call = [&](void* temp) {
      return layers.size() == 1 ? ha::device::observe(on_device, temp, bytes, layers[0], shape, device.layers, score,
                                                      d_sums.data(), stream)
                                : ha::device::observe(on_device, temp, bytes, layers, shape, device.layers, score,
                                                      d_sums.data(), stream);
    };
    REQUIRE_CUDA(call(nullptr));
    DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
    REQUIRE_CUDA(call(temp.data()));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      ha::LayerQkv<ha::float16, Strided, Strided> layer;
      layer.queries = a.queries[i].data();
      layer.keys = a.keys[i].data();
      layer.values = a.values[i].data();
      set_bhsd(layer, a.shape);
      on_host.observe(layers[i], layer, score);
    }
  };
  on_both(alike, numbers);
  on_both(alone, {3});
  on_device.add_sums(d_sums.host());
  std::vector<ha::ObservedHead> got;
  std::vector<ha::ObservedHead> expected;
  for (std::int32_t layer = 0; layer < model.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < model.layer(layer).num_query_heads; ++head) {
      got.push_back(on_device.head(layer, head));
      expected.push_back(on_host.head(layer, head));
    }
  }
  REQUIRE(got.size() == 19);
  require_same(got, expected);
  REQUIRE(on_device.statistics().heads.size() == 19);

  // What is not the model's.
  auto const shape = bhsd_shape(alike.shape);
  DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const device(alike, Mode::mass, shape);
  auto const refuses = [&](std::vector<std::int32_t> const& layers, ha::AttentionScore const& how,
                           std::string const& message) {
    std::size_t bytes = 0;
    REQUIRE(ha::device::observe(on_device, nullptr, bytes, layers, shape, device.layers, how, nullptr, nullptr) ==
            cudaErrorInvalidValue);
    INFO(ha::last_error_message());
    REQUIRE(last_error_has(message));
  };
  refuses({0, 2, 4}, score, "layer_numbers: expected 4, got 3");
  refuses({0, 2, 2, 5}, score, "ascending");
  refuses({0, 1, 2, 5}, score, "layer 1");
  refuses({0, 2, 3, 5}, score, "query heads: expected 3, got 4");
  refuses({0, 2, 4, 6}, score, "[0, 6)");
  refuses(numbers, {.scale = 0.2F, .sliding_window = 24}, "0: the layer sees all tokens");
  std::size_t bytes = 0;
  REQUIRE(ha::device::observe(on_device, nullptr, bytes, 3, shape, device.layers, score, nullptr, nullptr) ==
          cudaErrorInvalidValue);
  REQUIRE(last_error_has("first_layer"));
}
