// Errors of formats on the device against those of the CPU's pass.

#include "support/device_observation.cuh"

#include <headaware/format/registry.hpp>
#include <headaware/layout/engines.hpp>

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

constexpr ha::AttentionScore score{.scale = 0.2F};

ha::ObserverParameters with_formats(std::vector<std::string> formats, std::int64_t stride) {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {0}, .windows = {8}};
  parameters.min_chunk = 1;
  parameters.formats = std::move(formats);
  parameters.rounding_stride = stride;
  return parameters;
}

std::vector<std::string> all_formats() { return {ha::DefaultFormats::names.begin(), ha::DefaultFormats::names.end()}; }

}  // namespace

TEST_CASE("errors of every format agree with the CPU's", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::float16> const a({.num_query_heads = 4, .num_kv_heads = 2, .tokens = 70, .head_dim = 64, .layers = 2});
  compare_bhsd<__half>(a, Mode::metric, score, with_formats(all_formats(), 4));
  compare_bhsd<__half>(a, Mode::values, score, with_formats({}, 4));
  compare_bhsd<__half>(a, Mode::mass, score, with_formats({"int8"}, 4));
}

TEST_CASE("errors of formats over any length and stride", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const tokens : {1, 16, 17, 31, 33, 140}) {
    Attention<ha::float16> const a({.num_query_heads = 2, .num_kv_heads = 1, .tokens = tokens, .head_dim = 16});
    for (std::int64_t const stride : {1, 5, 16, 200})
      compare_bhsd<__half>(a, Mode::values, score, with_formats({"int8", "packed4"}, stride));
  }
}

TEST_CASE("errors of formats by type and channels", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const head_dim : {5, 20, 72, 128}) {
    AttentionShape const shape{.num_query_heads = 1, .tokens = 50, .head_dim = head_dim};
    auto const parameters = with_formats({"bf16", "fp8_e4m3", "packed5"}, 3);
    compare_bhsd<ha::float16>(Attention<ha::float16>(shape), Mode::metric, {}, parameters);
    compare_bhsd<__nv_bfloat16>(Attention<ha::bfloat16>(shape), Mode::values, {}, parameters);
    compare_bhsd<float>(Attention<float>(shape), Mode::metric, {}, parameters);
  }
  AttentionShape const shape{.num_query_heads = 2, .tokens = 40, .head_dim = 48, .value_dim = 23};
  compare_bhsd<float>(Attention<float>(shape), Mode::metric, score, with_formats({"int8", "packed4"}, 2));
}

TEST_CASE("errors of formats with windows, learned sinks, a soft cap, chunks and sampled queries", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::float16> a({.num_query_heads = 2, .num_kv_heads = 1, .tokens = 130, .head_dim = 16, .layers = 3});
  a.windows = {0, 20, 64};
  a.sinks = {{1, -std::numeric_limits<float>::infinity()}, {}, {6, -3}};
  auto parameters = with_formats({"int8", "packed4"}, 3);
  compare_bhsd<__half>(a, Mode::metric, score, parameters);
  compare_bhsd<__half>(a, Mode::values, {.scale = 0.2F, .soft_cap = 2}, parameters);
  parameters.first_query = 11;
  parameters.query_stride = 4;
  compare_bhsd<__half>(a, Mode::values, score, parameters);
  parameters.chunk_size = 50;
  compare_bhsd<__half>(a, Mode::metric, score, parameters);
  parameters.min_chunk = 40;
  compare_bhsd<__half>(a, Mode::values, score, parameters);
}

TEST_CASE("rows with a NaN or an infinity do not count in errors of formats", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (float const wrong : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    Attention<ha::float16> a({.num_query_heads = 1, .num_kv_heads = 1, .tokens = 60, .head_dim = 16});
    a.keys[0][40 * 16] = ha::from_float<ha::float16>(wrong);
    for (std::size_t row = 0; row < 60; ++row) a.queries[0][row * 16] = ha::from_float<ha::float16>(1);
    compare_bhsd<__half>(a, Mode::values, score, with_formats({"int8", "packed4"}, 1));
    a.windows = {8};
    compare_bhsd<__half>(a, Mode::values, score, with_formats({"int8", "packed4"}, 1));
  }
}

TEST_CASE("a latent's errors of formats are the key's", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape const s{.num_query_heads = 3, .num_kv_heads = 1, .tokens = 60, .head_dim = 72, .value_dim = 64};
  Attention<ha::float16> const a(s);
  auto const parameters = with_formats({"int8", "packed4", "packed6"}, 4);
  auto shape = bhsd_shape(s);
  shape.value_layout = shape.key_layout;
  DeviceAttention<__half, ha::float16, ha::StridedLayout, ha::StridedLayout, ha::StridedLayout> device(a, Mode::mass,
                                                                                                       shape);
  device.layers[0].d_values = device.layers[0].d_keys;
  auto const got = observe_on_device(shape, device.layers, score, parameters);
  ha::LayerQkv<ha::float16, ha::StridedLayout, ha::StridedLayout> layer;
  set_bhsd(layer, s);
  layer.value_layout = layer.key_layout;
  layer.queries = a.queries[0].data();
  layer.keys = layer.values = a.keys[0].data();
  ha::AttentionObserver observer({1, 3, 1, 0}, parameters);
  observer.observe(0, layer, score);
  require_same(got, {observer.head(0, 0), observer.head(0, 1), observer.head(0, 2)});
  REQUIRE(got[0].retention.rounding.rows == 15);
  REQUIRE(got[0].retention.rounding.key_error_squared[1] > 0);
  REQUIRE(got[0].retention.rounding.value_error_squared == std::vector<double>(3));
}
