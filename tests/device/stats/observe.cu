// The device's sums against those of the CPU's pass, over types, layouts, lengths and parameters.

#include "support/device_observation.cuh"

#include <headaware/layout/engines.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace ha = headaware;
using namespace headaware_test;

namespace {

ha::ObserverParameters with_retention(ha::ObserverParameters parameters = {}) {
  parameters.retention = ha::RetentionGrid{};
  return parameters;
}

int shared_memory() {
  int bytes = 0;
  REQUIRE_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  return bytes;
}

}  // namespace

TEST_CASE("sums of any length agree with the CPU's", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const tokens : {1, 9, 10, 11, 15, 16, 17, 63, 64, 65, 300}) {
    Attention<ha::float16> const a({.num_query_heads = 2, .num_kv_heads = 1, .tokens = tokens, .head_dim = 32});
    ha::ObserverParameters parameters;
    parameters.min_chunk = tokens < 10 ? 1 : 10;
    compare_bhsd<__half>(a, Mode::mass, {.scale = 0.2F}, parameters);
    compare_bhsd<__half>(a, Mode::mass, {.scale = 0.2F}, with_retention(parameters));
    compare_bhsd<__half>(a, Mode::values, {.scale = 0.2F}, with_retention(parameters));
  }
}

TEST_CASE("every type and head dimension", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const head_dim : {8, 20, 64, 80, 96, 128, 256}) {
    AttentionShape const shape{.num_query_heads = 1, .tokens = 70, .head_dim = head_dim};
    ha::AttentionScore const score{.scale = 1 / std::sqrt(static_cast<float>(head_dim))};
    for (Mode const mode : {Mode::mass, Mode::values, Mode::metric}) {
      compare_bhsd<__half>(Attention<ha::float16>(shape), mode, score, with_retention());
      compare_bhsd<__nv_bfloat16>(Attention<ha::bfloat16>(shape), mode, score, with_retention());
      // Tiles of 256 floats a key and a value are more than small devices have room for.
      if (mode == Mode::values || (head_dim == 256 && mode == Mode::metric && shared_memory() < (128 << 10))) continue;
      compare_bhsd<float>(Attention<float>(shape), mode, score, with_retention());
    }
  }
  AttentionShape const shape{.num_query_heads = 1, .tokens = 90, .head_dim = 48, .value_dim = 24};
  compare_bhsd<ha::bfloat16>(Attention<ha::bfloat16>(shape), Mode::metric, {.scale = 0.15F}, with_retention());
  compare_bhsd<ha::float16>(Attention<ha::float16>(shape), Mode::values, {.scale = 0.15F}, with_retention());
}

TEST_CASE("a longer text, sharp attention", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape shape{.num_query_heads = 1, .tokens = 2200, .head_dim = 64};
  ha::ObserverParameters sampled = with_retention();
  sampled.first_query = 1000;
  sampled.query_stride = 9;
  for (float const spread : {1.0F, 3.0F}) {
    shape.spread = spread;
    Attention<ha::float16> const a(shape);
    compare_bhsd<__half>(a, Mode::mass, {.scale = 0.125F}, with_retention());
    compare_bhsd<__half>(a, Mode::values, {.scale = 0.125F}, sampled);
  }
}

TEST_CASE("grouped queries, two layers in a launch", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::bfloat16> const a(
      {.num_query_heads = 6, .num_kv_heads = 2, .tokens = 130, .head_dim = 32, .layers = 2});
  for (Mode const mode : {Mode::mass, Mode::values, Mode::metric})
    compare_bhsd<__nv_bfloat16>(a, mode, {.scale = 0.2F}, with_retention());
}

TEST_CASE("soft cap, sliding window, sampled queries", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::float16> const a({.num_query_heads = 2, .num_kv_heads = 1, .tokens = 400, .head_dim = 32});
  Attention<float> const b({.num_query_heads = 1, .num_kv_heads = 1, .tokens = 400, .head_dim = 32});
  ha::ObserverParameters sampled = with_retention();
  sampled.first_query = 37;
  sampled.query_stride = 5;
  ha::ObserverParameters few = with_retention();
  few.first_query = 3;
  few.query_stride = 150;
  for (Mode const mode : {Mode::mass, Mode::values}) {
    for (ha::ObserverParameters const& parameters : {with_retention(), sampled, few}) {
      compare_bhsd<__half>(a, mode, {.scale = 0.2F, .soft_cap = 2}, parameters);
      compare_bhsd<__half>(a, mode, {.scale = 0.2F, .sliding_window = 50}, parameters);
      compare_bhsd<float>(b, mode, {.scale = 0.2F, .soft_cap = 3, .sliding_window = 100}, parameters);
    }
  }
}

TEST_CASE("other parameters and grids", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::float16> const a({.num_query_heads = 1, .num_kv_heads = 1, .tokens = 260, .head_dim = 16});
  for (Mode const mode : {Mode::mass, Mode::values}) {
    compare_bhsd<__half>(a, mode, {.scale = 0.2F},
                         {.sink_size = 0, .local_window = 0, .recent_ratio = 0, .num_distances = 1});
    compare_bhsd<__half>(a, mode, {.scale = 0.2F},
                         {.sink_size = 300, .local_window = 100, .recent_ratio = 1, .num_distances = 3});
    ha::ObserverParameters parameters;
    parameters.retention = ha::RetentionGrid{.sinks = {0, 3}, .windows = {1, 2, 3, 5, 40, 41, 300}};
    compare_bhsd<__half>(a, mode, {.scale = 0.2F}, parameters);
    parameters.retention = ha::RetentionGrid{.sinks = {0}, .windows = {4}};
    compare_bhsd<__half>(a, mode, {.scale = 0.2F}, parameters);
    parameters.retention = ha::RetentionGrid{.sinks = {2, 70, 130, 1000}, .windows = {3, 100, 101, 259, 260}};
    compare_bhsd<__half>(a, mode, {.scale = 0.2F}, parameters);
    parameters.retention = ha::RetentionGrid{.sinks = {1000}, .windows = {5000}};
    compare_bhsd<__half>(a, mode, {.scale = 0.2F}, parameters);
  }
}

TEST_CASE("chunks are texts of their own", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  Attention<ha::float16> const a({.num_query_heads = 2, .num_kv_heads = 1, .tokens = 332, .head_dim = 16});
  for (std::int64_t const chunk : {9, 30, 64, 108, 323, 400}) {
    for (Mode const mode : {Mode::mass, Mode::values}) {
      INFO("chunk " << chunk);
      ha::ObserverParameters parameters = with_retention();
      parameters.chunk_size = chunk;
      compare_bhsd<__half>(a, mode, {.scale = 0.2F}, parameters);
      parameters.first_query = 9;
      compare_bhsd<__half>(a, mode, {.scale = 0.2F}, parameters);
    }
  }
  // So many chunks that a block has several.
  Attention<ha::float16> const many(
      {.num_query_heads = 64, .num_kv_heads = 64, .tokens = 108, .head_dim = 16, .layers = 8});
  ha::ObserverParameters parameters;
  parameters.chunk_size = 12;
  compare_bhsd<__half>(many, Mode::mass, {.scale = 0.2F}, parameters);
}

TEST_CASE("rows with a NaN or an infinity are counted, not averaged", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (float const wrong : {std::nanf(""), infinity, -infinity}) {
    for (std::size_t const token : {0, 40, 99}) {
      Attention<ha::float16> a({.num_query_heads = 1, .num_kv_heads = 1, .tokens = 100, .head_dim = 16});
      a.keys[0][token * 16] = ha::from_float<ha::float16>(wrong);
      for (std::size_t row = 0; row < 100; ++row) a.queries[0][row * 16] = ha::from_float<ha::float16>(1);
      for (Mode const mode : {Mode::mass, Mode::values}) {
        compare_bhsd<__half>(a, mode, {.scale = 0.2F}, {});
        compare_bhsd<__half>(a, mode, {.scale = 0.2F}, with_retention());
      }
    }
    Attention<float> a({.num_query_heads = 1, .num_kv_heads = 1, .tokens = 100, .head_dim = 16});
    a.queries[0][55 * 16 + 3] = wrong;
    compare_bhsd<float>(a, Mode::values, {.scale = 0.2F}, with_retention());
  }
}
