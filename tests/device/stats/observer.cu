// The observer of a whole model, its layers handed over piece by piece and text by text.

#include "support/device_observation.cuh"

#include <headaware/stats/attention_observer.cuh>

#include <cuda_fp16.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("texts and layers on the device come to what they come to on the host", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {0, 4}, .windows = {8, 32}};
  ha::AttentionObserver on_host({3, 4, 2, 32}, parameters);
  ha::AttentionObserver on_device = on_host;
  auto const entries = on_host.sums().size();
  DeviceVector<double> const d_sums{std::vector<double>(entries)};
  Stream const stream;
  ha::AttentionScore const score;  // by default the scale that the host is told

  for (std::int64_t const tokens : {40, 71}) {
    AttentionShape const s{.num_query_heads = 4, .num_kv_heads = 2, .tokens = tokens, .head_dim = 32, .layers = 3};
    Attention<ha::float16> const a(s);
    auto const shape = bhsd_shape(s);
    DeviceAttention<__half, ha::float16, ha::StridedLayout, ha::StridedLayout, ha::StridedLayout> const device(
        a, Mode::values, shape);
    std::vector<DeviceVector<std::byte>> temporary;
    for (std::int32_t const first : {0, 1}) {  // layer 0, then layers 1 and 2
      std::vector<ha::DeviceQkv<__half>> const layers(device.layers.begin() + first,
                                                      first == 0 ? device.layers.begin() + 1 : device.layers.end());
      std::size_t bytes = 0;
      REQUIRE_CUDA(ha::device::observe(on_device, nullptr, bytes, first, shape, layers, score, d_sums.data(), stream));
      temporary.emplace_back(std::vector<std::byte>(bytes, std::byte{0xEE}));
      REQUIRE_CUDA(ha::device::observe(on_device, temporary.back().data(), bytes, first, shape, layers, score,
                                       d_sums.data(), stream));
      // One layer too many.
      REQUIRE(ha::device::observe(on_device, temporary.back().data(), bytes,
                                  4 - static_cast<std::int32_t>(layers.size()), shape, layers, score, d_sums.data(),
                                  stream) == cudaErrorInvalidValue);
    }
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    auto const host = observe_on_host(a, Mode::values, {.scale = 1 / std::sqrt(32.0F)}, parameters);
    std::vector<double> sums(entries);
    auto const size = static_cast<std::size_t>(on_host.sums_layout().size());
    for (std::size_t i = 0; i < host.size(); ++i) {
      on_host.sums_layout().store(host[i], std::span(sums).subspan(i * size, size));
    }
    on_host.add_sums(sums);
  }
  on_device.add_sums(d_sums.host());
  std::vector<ha::ObservedHead> got;
  std::vector<ha::ObservedHead> expected;
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    for (std::int32_t head = 0; head < 4; ++head) {
      got.push_back(on_device.head(layer, head));
      expected.push_back(on_host.head(layer, head));
    }
  }
  require_same(got, expected);
  REQUIRE(on_device.statistics().heads.size() == 12);

  AttentionShape const other{.num_query_heads = 2, .num_kv_heads = 2, .tokens = 40, .head_dim = 32};
  std::size_t bytes = 0;
  REQUIRE(ha::device::observe(on_device, nullptr, bytes, 0, bhsd_shape(other), std::vector<ha::DeviceQkv<__half>>(1),
                              score, d_sums.data(), stream) == cudaErrorInvalidValue);
}
