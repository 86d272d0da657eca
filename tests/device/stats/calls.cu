// Layouts, arguments, streams and graphs of the statistics.

#include "support/device_observation.cuh"

#include <headaware/layout/engines.hpp>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

ha::ObserverParameters with_retention() {
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{};
  return parameters;
}

constexpr ha::AttentionScore score{.scale = 0.2F};

/// The shape of some attention by other layouts.
template <class Q, class K, class V>
ha::DeviceQkvShape<Q, K, V> shape_of(AttentionShape const& s, Q const& queries, K const& keys, V const& values,
                                     std::int64_t sequence = 0, std::int64_t first_token = 0) {
  return {queries,  keys,       values,   s.num_query_heads, s.num_kv_heads,
          s.tokens, s.head_dim, sequence, first_token,       s.output_dim()};
}

}  // namespace

TEST_CASE("any layout of queries, keys and values", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape const s{.num_query_heads = 4, .num_kv_heads = 2, .tokens = 83, .head_dim = 32};
  Attention<ha::float16> const a(s);
  auto const parameters = with_retention();
  SECTION("FlashAttention's, the second sequence, from a token on") {
    auto const kv = ha::strided_bshd(2, 90, 2, 32);
    auto const shape = shape_of(s, ha::strided_bshd(2, 90, 4, 32), kv, kv, 1, 5);
    compare_layouts<__half>(a, Mode::values, shape, shape, score, parameters);
    compare_layouts<__half>(a, Mode::values, shape, shape, score, parameters, 1e-5, 8);
    compare_layouts<__half>(a, Mode::values, shape, shape, score, parameters, 1e-5, 3);  // off the alignment
  }
  SECTION("transposed values, queries and keys") {
    auto const kv = ha::strided_bhds(1, 2, 32, 83);
    auto const shape = shape_of(s, ha::strided_bhds(1, 4, 32, 83), kv, kv);
    compare_layouts<__half>(a, Mode::values, shape, shape, score, parameters);
  }
  SECTION("pages") {
    std::vector<std::int32_t> block_table(2 * 6);
    for (std::size_t i = 0; i < block_table.size(); ++i)
      block_table[i] = static_cast<std::int32_t>((7 * i + 2) % block_table.size());
    DeviceVector<std::int32_t> const d_block_table(block_table);
    ha::PagedShape const pages{.num_sequences = 2, .num_kv_heads = 2, .channels = 32, .num_pages = 12, .page_size = 16};
    auto const paged = [&](std::int32_t const* table) {
      auto const kv = ha::flash_attention_paged(ha::PageTable::dense(table, 6), pages);
      return shape_of(s, ha::strided_bshd(2, 90, 4, 32), kv, kv, 1, 3);
    };
    for (Mode const mode : {Mode::mass, Mode::values})
      compare_layouts<__half>(a, mode, paged(block_table.data()), paged(d_block_table.data()), score, parameters);
  }
  SECTION("split keys, pages of vLLM's first kernel") {
    std::vector<std::int32_t> const block_table{3, 0, 5, 1, 4, 2};
    DeviceVector<std::int32_t> const d_block_table(block_table);
    ha::PagedShape const pages{.num_sequences = 1, .num_kv_heads = 2, .channels = 32, .num_pages = 6, .page_size = 16};
    auto const paged = [&](std::int32_t const* table) {
      auto const kv = ha::vllm_paged_attention(ha::PageTable::dense(table, 6), pages, 8);
      return shape_of(s, ha::strided_bhsd(1, 4, 83, 32), kv.keys, kv.values);
    };
    compare_layouts<__half>(a, Mode::values, paged(block_table.data()), paged(d_block_table.data()), score, parameters);
  }
}

TEST_CASE("statistics refuse arguments that make no sense", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape const s{.num_query_heads = 2, .num_kv_heads = 1, .tokens = 40, .head_dim = 16};
  Attention<ha::float16> const a(s);
  using Strided = ha::StridedLayout;
  auto const good = bhsd_shape(s);
  DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const device(a, Mode::metric, good);
  auto const parameters = with_retention();
  DeviceVector<double> const sums(std::vector<double>(static_cast<std::size_t>(2 * ha::SumsLayout(parameters).size())));
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::observe(nullptr, bytes, good, device.layers, score, parameters, sums.data(), nullptr));
  REQUIRE(bytes > 0);
  DeviceVector<std::byte> const temp{std::vector<std::byte>(bytes + 4)};
  auto const call = [&](auto const& shape, auto const& layers, ha::AttentionScore const& asked,
                        ha::ObserverParameters const& wanted) {
    std::size_t temp_bytes = bytes;
    return ha::device::observe(temp.data(), temp_bytes, shape, layers, asked, wanted, sums.data(), nullptr);
  };
  auto const refuses = [&](auto const& shape, auto const& layers, ha::AttentionScore const& asked,
                           ha::ObserverParameters const& wanted) {
    REQUIRE(call(shape, layers, asked, wanted) == cudaErrorInvalidValue);
  };
  // Temporary storage.
  std::size_t less = bytes - 1;
  REQUIRE(ha::device::observe(temp.data(), less, good, device.layers, score, parameters, sums.data(), nullptr) ==
          cudaErrorInvalidValue);
  DeviceVector<double> const others(sums.host());
  REQUIRE_CUDA(
      ha::device::observe(temp.data() + 4, bytes, good, device.layers, score, parameters, others.data(), nullptr));
  double* const nowhere = nullptr;
  REQUIRE(ha::device::observe(temp.data(), bytes, good, device.layers, score, parameters, nowhere, nullptr) ==
          cudaErrorInvalidValue);
  auto* const between = reinterpret_cast<double*>(reinterpret_cast<std::uintptr_t>(sums.data()) + 4);
  REQUIRE(ha::device::observe(temp.data(), bytes, good, device.layers, score, parameters, between, nullptr) ==
          cudaErrorInvalidValue);
  // Shapes.
  auto const with = [&](auto const& change) {
    auto shape = good;
    change(shape);
    return shape;
  };
  refuses(with([](auto& x) { x.num_query_heads = 3; }), device.layers, score, parameters);
  refuses(with([](auto& x) { x.num_kv_heads = 0; }), device.layers, score, parameters);
  refuses(with([](auto& x) { x.head_dim = 257; }), device.layers, score, parameters);
  refuses(with([](auto& x) { x.value_dim = 17; }), device.layers, score, parameters);
  refuses(with([](auto& x) { x.tokens = 41; }), device.layers, score, parameters);
  refuses(with([](auto& x) { x.tokens = -1; }), device.layers, score, parameters);
  refuses(with([](auto& x) { x.first_token = 1; }), device.layers, score, parameters);
  refuses(with([](auto& x) { x.sequence = 1; }), device.layers, score, parameters);
  // Layers.
  auto const layers_with = [&](auto const& change) {
    std::vector<ha::DeviceQkv<__half>> layers{device.layers[0], device.layers[0]};
    change(layers[1]);
    return layers;
  };
  refuses(good, layers_with([](auto& x) { x.d_keys = nullptr; }), score, parameters);
  refuses(good, layers_with([](auto& x) { x.d_output_factors = nullptr; }), score, parameters);
  refuses(good, layers_with([](auto& x) { x.d_values = nullptr; }), score, parameters);
  refuses(good, std::vector<ha::DeviceQkv<__half>>(257, device.layers[0]), score, parameters);
  auto const shifted = [](auto const* data, std::uintptr_t bytes) {
    return reinterpret_cast<decltype(data)>(reinterpret_cast<std::uintptr_t>(data) + bytes);
  };
  refuses(good, layers_with([&](auto& x) { x.d_keys = shifted(x.d_keys, 1); }), score, parameters);
  refuses(good, layers_with([&](auto& x) { x.d_output_factors = shifted(x.d_output_factors, 2); }), score, parameters);
  // Parameters.
  refuses(good, device.layers, {.scale = -1}, parameters);
  auto wrong = parameters;
  wrong.query_stride = 0;
  refuses(good, device.layers, score, wrong);
  wrong = parameters;
  wrong.num_distances = 60000;  // more than shared memory holds of a row
  std::size_t much = 0;
  REQUIRE_CUDA(ha::device::observe(nullptr, much, good, device.layers, score, wrong, sums.data(), nullptr));
  DeviceVector<std::byte> const much_temp{std::vector<std::byte>(much)};
  REQUIRE(ha::device::observe(much_temp.data(), much, good, device.layers, score, wrong, sums.data(), nullptr) ==
          cudaErrorInvalidValue);
  wrong = parameters;
  for (std::int32_t w = 0; w < 65; ++w) wrong.retention->windows.push_back(5000 + w);
  refuses(good, device.layers, score, wrong);
  // Nothing was launched.
  REQUIRE(sums.host() == std::vector<double>(sums.host().size()));
  REQUIRE_CUDA(call(good, device.layers, score, parameters));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(sums.host()[ha::SumsLayout::rows] == 40);
}

TEST_CASE("no tokens, too few tokens, no layers", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape const s{.num_query_heads = 2, .num_kv_heads = 1, .tokens = 9, .head_dim = 16};
  Attention<ha::float16> const a(s);
  compare_bhsd<__half>(a, Mode::values, score, with_retention());
  Attention<ha::float16> const one({.num_query_heads = 2, .num_kv_heads = 1, .tokens = 12, .head_dim = 16});
  ha::ObserverParameters parameters;
  parameters.first_query = 12;
  compare_bhsd<__half>(one, Mode::mass, score, parameters);
  std::size_t bytes = 0;
  auto shape = bhsd_shape(s);
  DeviceVector<std::byte> const temp{std::vector<std::byte>(8)};
  REQUIRE_CUDA(ha::device::observe(temp.data(), bytes, shape, std::vector<ha::DeviceQkv<__half>>{}, score, {}, nullptr,
                                   nullptr));
  shape.tokens = 0;
  std::vector<ha::DeviceQkv<__half>> const layers(2);
  REQUIRE_CUDA(ha::device::observe(nullptr, bytes, shape, layers, score, {}, nullptr, nullptr));
  REQUIRE_CUDA(ha::device::observe(temp.data(), bytes, shape, layers, score, {}, nullptr, nullptr));
}

TEST_CASE("a captured graph adds up what it finds each time", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  AttentionShape const s{.num_query_heads = 2, .num_kv_heads = 1, .tokens = 200, .head_dim = 16, .layers = 2};
  Attention<ha::float16> const a(s);
  using Strided = ha::StridedLayout;
  auto const shape = bhsd_shape(s);
  DeviceAttention<__half, ha::float16, Strided, Strided, Strided> const device(a, Mode::values, shape);
  auto const parameters = with_retention();
  ha::SumsLayout const layout(parameters);
  auto const size = static_cast<std::size_t>(layout.size());
  DeviceVector<double> const sums(std::vector<double>(4 * size));
  Stream const stream;
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::observe(nullptr, bytes, shape, device.layers, score, parameters, sums.data(), stream));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0x55}));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(ha::device::observe(temp.data(), bytes, shape, device.layers, score, parameters, sums.data(), stream));
  REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
  REQUIRE_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<double> first;
  for (int round = 1; round <= 3; ++round) {
    REQUIRE_CUDA(cudaGraphLaunch(executable, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    auto const now = sums.host();
    if (round == 1) first = now;
    REQUIRE(now[ha::SumsLayout::rows] == 200 * round);
    REQUIRE(now[size + ha::SumsLayout::chunks] == round);
    if (round == 2) {
      for (std::size_t i = 0; i < now.size(); ++i) REQUIRE(now[i] == 2 * first[i]);  // to the last bit
    }
  }
  REQUIRE_CUDA(cudaGraphExecDestroy(executable));
  REQUIRE_CUDA(cudaGraphDestroy(graph));
  // What a whole-model observer takes over.
  ha::AttentionObserver observer({2, 2, 1, 0}, parameters);
  observer.add_sums(first);
  require_same({observer.head(0, 0), observer.head(0, 1), observer.head(1, 0), observer.head(1, 1)},
               observe_on_host(a, Mode::values, score, parameters));
}

TEST_CASE("a call of little shared memory leaves others what they need", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  using Strided = ha::StridedLayout;
  compare_bhsd<__half>(Attention<ha::float16>({.tokens = 20, .head_dim = 16}), Mode::mass, score, {});
  auto const kernel =
      ha::detail::observe_kernel<ha::float16, 0, false, ha::detail::ObserveParameters<Strided, Strided, Strided>>;
  cudaFuncAttributes attributes{};
  int device = 0;
  int limit = 0;
  REQUIRE_CUDA(cudaFuncGetAttributes(&attributes, kernel));
  REQUIRE_CUDA(cudaGetDevice(&device));
  REQUIRE_CUDA(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  CHECK(attributes.maxDynamicSharedSizeBytes + static_cast<int>(attributes.sharedSizeBytes) == limit);
}
