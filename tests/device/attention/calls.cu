// What device attention takes and refuses, graphs, merging, and masks.

#include "support/device_attention.cuh"

#include <headaware/attention/policy_mask.cuh>
#include <headaware/cache/rolling.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

using namespace headaware_test;

TEST_CASE("device outputs over parts of a cache merge", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  float const none = -std::numeric_limits<float>::infinity();
  ha::AttentionShape const shape{2, 3, 1, 2, 40};
  auto const layout = ha::strided_bhsd(2, 3, 2, 40);
  auto first = random_elements<float>(layout.required_span_size(), 1);
  auto const second = random_elements<float>(layout.required_span_size(), 2);
  std::vector<float> first_lse{1, none, 2, none, 90, -5, 0.5F, 0, 0, 3, none, 1};
  std::vector<float> second_lse{1, 2, none, none, -5, 90, 0.25F, 1, 0, 3, 4, none};
  DeviceVector<float> const d_first(first);
  DeviceVector<float> const d_second(second);
  DeviceVector<float> const d_first_lse(first_lse);
  DeviceVector<float> const d_second_lse(second_lse);
  Stream const stream;
  REQUIRE_CUDA(ha::device::merge_attention(shape, ha::AttentionOutput{d_first.data(), layout, d_first_lse.data()},
                                           ha::AttentionOutput{d_second.data(), layout, d_second_lse.data()}, stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  auto other = second;
  ha::merge_attention(shape, ha::AttentionOutput{first.data(), layout, first_lse.data()},
                      ha::AttentionOutput{other.data(), layout, second_lse.data()});
  auto const merged = d_first.host();
  auto const lse = d_first_lse.host();
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(std::abs(first[i] - merged[i]) < 1e-6F);
  for (std::size_t i = 0; i < lse.size(); ++i)
    CHECK((lse[i] == first_lse[i] || std::abs(lse[i] - first_lse[i]) < 1e-5F));
  REQUIRE(ha::device::merge_attention(shape, ha::AttentionOutput{d_first.data(), layout},
                                      ha::AttentionOutput{d_second.data(), layout}, stream) == cudaErrorInvalidValue);
}

namespace {

/// A ragged cache on the device whose lengths may be replaced.
struct Decoder {
  HeldProblem<float> p{{1, 4, 2, 1, 32}, {400, 30}, 51};
  std::vector<std::int32_t> offsets{0, 400, 430};
  DeviceVector<float> d_keys, d_values, d_queries, d_output, d_lse;
  DeviceVector<std::int32_t> d_offsets, d_status;

  static std::vector<float> joined(std::vector<float> a, std::vector<float> const& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  Decoder()
      : d_keys(joined(p.segments[0].keys, p.segments[1].keys)),
        d_values(joined(p.segments[0].values, p.segments[1].values)),
        d_queries(p.queries),
        d_output(std::vector<float>(4 * 32, 77)),
        d_lse(std::vector<float>(4, 77)),
        d_offsets(offsets),
        d_status(std::vector<std::int32_t>{-7}) {}
  [[nodiscard]] cudaError_t call(void* d_temp, std::size_t& bytes, std::int64_t max_rows, cudaStream_t stream) const {
    return ha::device::attend(d_temp, bytes, p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
                              ha::KeptCache{d_keys.data(), d_values.data(), ha::RaggedView{d_offsets.data(), 2}},
                              ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()},
                              {max_rows, d_status.data()}, {}, stream);
  }
  void set_offsets(std::vector<std::int32_t> const& to) {
    REQUIRE_CUDA(cudaMemcpy(d_offsets.data(), to.data(), to.size() * 4, cudaMemcpyHostToDevice));
  }
  [[nodiscard]] bool untouched() const {
    auto const output = d_output.host();
    return std::all_of(output.begin(), output.end(), [](float x) { return x == 77; });
  }
};

}  // namespace

TEST_CASE("a captured step reads the lengths of its replay", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Decoder decoder;
  std::size_t bytes = 0;
  REQUIRE_CUDA(decoder.call(nullptr, bytes, 430, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  Stream const stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(decoder.call(temp.data(), bytes, 430, stream));
  REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
  REQUIRE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  for (std::int32_t const first : {400, 0, 257, 256}) {
    decoder.set_offsets({0, first, first + 30});
    HeldProblem<float> now = decoder.p;
    auto const keys = decoder.d_keys.host();
    auto const values = decoder.d_values.host();
    for (std::size_t s = 0; s < 2; ++s) {
      std::size_t const begin = s == 0 ? 0 : at(first);
      std::size_t const end = s == 0 ? at(first) : at(first + 30);
      auto const part = [&](std::vector<float> const& of) {
        return std::vector<float>(of.begin() + static_cast<std::ptrdiff_t>(begin * 32),
                                  of.begin() + static_cast<std::ptrdiff_t>(end * 32));
      };
      now.segments[s] = {part(keys), part(values), std::vector<std::int32_t>(end - begin)};
    }
    REQUIRE_CUDA(cudaGraphLaunch(exec, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    REQUIRE(decoder.d_status.host()[0] == 0);
    check_attended(decoder.d_output.host(), decoder.d_lse.host(), naive_attention(now));
  }
  REQUIRE_CUDA(cudaGraphExecDestroy(exec));
  REQUIRE_CUDA(cudaGraphDestroy(graph));
}

TEST_CASE("more rows than were said write nothing and say so; bad calls are refused", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Decoder decoder;
  std::size_t bytes = 0;
  REQUIRE_CUDA(decoder.call(nullptr, bytes, 430, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  REQUIRE_CUDA(decoder.call(temp.data(), bytes, 429, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(decoder.d_status.host()[0] == 1);
  REQUIRE(decoder.untouched());
  decoder.set_offsets({0, -1, 10});
  REQUIRE_CUDA(decoder.call(temp.data(), bytes, 430, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(decoder.d_status.host()[0] == 1);
  REQUIRE(decoder.untouched());

  std::size_t small = bytes - 1;
  REQUIRE(decoder.call(temp.data(), small, 430, nullptr) == cudaErrorInvalidValue);
  DeviceVector<std::byte> const longer(std::vector<std::byte>(bytes + 4));
  REQUIRE_CUDA(decoder.call(longer.data() + 4, bytes, 430, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(decoder.call(temp.data(), bytes, -1, nullptr) == cudaErrorInvalidValue);
  decoder.p.shape.num_query_heads = 3;
  REQUIRE(decoder.call(temp.data(), bytes, 430, nullptr) == cudaErrorInvalidValue);
  decoder.p.shape = {1, 4, 2, 1, 513};
  REQUIRE(decoder.call(nullptr, bytes, 430, nullptr) == cudaErrorInvalidValue);
  decoder.p.shape = {0, 4, 2, 1, 32};
  REQUIRE_CUDA(decoder.call(nullptr, bytes, 0, nullptr));
  REQUIRE(bytes == 0);
  REQUIRE(decoder.untouched());
}

TEST_CASE("device masks are the CPU's", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::PolicyTable table(1, 4);
  table.set(0, 0, ha::SinkWindow{.sink = 4, .window = 12});
  table.set(0, 1, ha::WindowOnly{.window = 7});
  table.set(0, 2, ha::Prune{});
  DeviceVector<std::byte> const d_bytes(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  ha::MaskShape const shape{.group = 2, .first_query = 3, .queries = 50, .keys = 45};
  std::size_t const rows = 4 * 2 * 50;
  std::vector<float> floats(rows * 45);
  std::vector<std::uint32_t> bits(rows * 2);
  ha::fill_policy_mask(table, shape, floats.data());
  ha::fill_policy_mask(table, shape, bits.data());
  DeviceVector<float> const d_floats(std::vector<float>(floats.size(), 7));
  DeviceVector<std::uint32_t> const d_bits(std::vector<std::uint32_t>(bits.size(), 7));
  Stream const stream;
  REQUIRE_CUDA(ha::device::fill_policy_mask(table.view_at(d_bytes.data()), shape, d_floats.data(), stream));
  REQUIRE_CUDA(ha::device::fill_policy_mask(table.view_at(d_bytes.data()), shape, d_bits.data(), stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  CHECK(d_floats.host() == floats);
  CHECK(d_bits.host() == bits);
  auto bad = shape;
  bad.layer = 1;
  REQUIRE(ha::device::fill_policy_mask(table.view_at(d_bytes.data()), bad, d_bits.data(), stream) ==
          cudaErrorInvalidValue);
}

TEST_CASE("device attention over nothing needs no buffers", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Decoder decoder;
  decoder.set_offsets({0, 0, 0});
  auto const call = [&](void* d_temp, std::size_t& bytes, std::int64_t max_rows) {
    using Cache = ha::KeptCache<float, ha::RaggedView<std::int32_t>>;
    return ha::device::attend(
        d_temp, bytes, decoder.p.shape, ha::AttentionQueries{decoder.d_queries.data(), decoder.p.query_layout()},
        Cache{nullptr, nullptr, ha::RaggedView{decoder.d_offsets.data(), 2}},
        ha::AttentionOutput{decoder.d_output.data(), decoder.p.output_layout(), decoder.d_lse.data()},
        {max_rows, decoder.d_status.data()}, {}, nullptr);
  };
  std::size_t bytes = 0;
  REQUIRE_CUDA(call(nullptr, bytes, 0));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  REQUIRE(call(temp.data(), bytes, 1) == cudaErrorInvalidValue);
  REQUIRE_CUDA(call(temp.data(), bytes, 0));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(decoder.d_status.host()[0] == 0);
  CHECK(decoder.d_output.host() == std::vector<float>(4 * 32, 0));
  CHECK(decoder.d_lse.host() == std::vector<float>(4, -std::numeric_limits<float>::infinity()));
}

TEST_CASE("a part without keys does not count in a device merge", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  float const none = -std::numeric_limits<float>::infinity();
  auto const layout = ha::strided_bhsd(1, 2, 1, 8);
  DeviceVector<float> const into(std::vector<float>(16, 2));
  DeviceVector<float> const other(std::vector<float>(16, std::numeric_limits<float>::quiet_NaN()));
  DeviceVector<float> const into_lse(std::vector<float>{0.5F, none});
  DeviceVector<float> const other_lse(std::vector<float>{none, none});
  REQUIRE_CUDA(ha::device::merge_attention({1, 2, 2, 1, 8}, ha::AttentionOutput{into.data(), layout, into_lse.data()},
                                           ha::AttentionOutput{other.data(), layout, other_lse.data()}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  auto const merged = into.host();
  for (std::size_t c = 0; c < 16; ++c) CHECK(merged[c] == (c < 8 ? 2.0F : 0.0F));
  CHECK(into_lse.host() == std::vector<float>{0.5F, none});
}

TEST_CASE("device attention on streams of their own does not meet", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Stream const streams[2];
  Decoder decoders[2];
  decoders[1].set_offsets({0, 257, 287});
  std::vector<DeviceVector<std::byte>> temps;
  std::size_t bytes = 0;
  for (auto const& decoder : decoders) {
    REQUIRE_CUDA(decoder.call(nullptr, bytes, 430, nullptr));
    temps.emplace_back(std::vector<std::byte>(bytes, std::byte{0xEE}));
  }
  // What each gives alone.
  std::vector<float> alone[2];
  for (std::size_t i = 0; i < 2; ++i) {
    REQUIRE_CUDA(decoders[i].call(temps[i].data(), bytes, 430, streams[i]));
    REQUIRE_CUDA(cudaStreamSynchronize(streams[i]));
    alone[i] = decoders[i].d_output.host();
    REQUIRE_CUDA(cudaMemset(decoders[i].d_output.data(), 0xEE, alone[i].size() * sizeof(float)));
  }
  REQUIRE(alone[0] != alone[1]);
  check_attended(alone[0], decoders[0].d_lse.host(), naive_attention(decoders[0].p));
  for (int round = 0; round < 10; ++round) {
    for (std::size_t i = 0; i < 2; ++i) REQUIRE_CUDA(decoders[i].call(temps[i].data(), bytes, 430, streams[i]));
  }
  for (std::size_t i = 0; i < 2; ++i) {
    REQUIRE_CUDA(cudaStreamSynchronize(streams[i]));
    REQUIRE(decoders[i].d_status.host()[0] == 0);
    CHECK(decoders[i].d_output.host() == alone[i]);
  }
}

TEST_CASE("device attention refuses what it knows to be wrong of views and addresses", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Decoder decoder;
  std::size_t bytes = 0;
  REQUIRE_CUDA(decoder.call(nullptr, bytes, 430, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  ha::RollingSlots const slots(ha::UniformTable(ha::SinkWindow{.sink = 2, .window = 4}, 1, 2), 1, {});
  auto const* const plan_bytes = slots.bytes().data();
  DeviceVector<std::byte> const d_heads(std::vector<std::byte>(plan_bytes, plan_bytes + slots.bytes().size()));
  auto const call = [&](std::int32_t layer, ha::AttentionShape const& shape, std::int64_t query_shift,
                        std::int64_t output_shift) {
    auto const shifted = [](auto* data, std::int64_t by) {
      return reinterpret_cast<decltype(data)>(reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(by));
    };
    return ha::device::attend(
        temp.data(), bytes, shape,
        ha::AttentionQueries{shifted(decoder.d_queries.data(), query_shift), ha::strided_bhsd(2, 4, 1, 16)},
        ha::KeptCache{decoder.d_keys.data(), decoder.d_values.data(),
                      ha::RollingView{slots.view_at(d_heads.data()), layer, decoder.d_offsets.data()}},
        ha::AttentionOutput{shifted(decoder.d_output.data(), output_shift), ha::strided_bhsd(2, 4, 1, 16)}, {12}, {},
        nullptr);
  };
  ha::AttentionShape const good{1, 4, 2, 1, 16};
  REQUIRE_CUDA(call(0, good, 0, 0));
  REQUIRE(call(1, good, 0, 0) == cudaErrorInvalidValue);
  REQUIRE(call(-1, good, 0, 0) == cudaErrorInvalidValue);
  REQUIRE(call(0, {1, 4, 1, 1, 16}, 0, 0) == cudaErrorInvalidValue);
  REQUIRE(call(0, {2, 4, 2, 1, 16}, 0, 0) == cudaErrorInvalidValue);
  REQUIRE(call(0, good, 2, 0) == cudaErrorInvalidValue);
  REQUIRE(call(0, good, 0, 2) == cudaErrorInvalidValue);
  REQUIRE_CUDA(cudaDeviceSynchronize());
}
