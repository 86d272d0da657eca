// What calls take and refuse, their outputs, streams and graphs; rotation, scales and compaction in place.

#include "support/device_cache.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// One layer of two heads on the device, with its compaction.
struct Small {
  static constexpr std::int64_t dim = 64;
  std::vector<std::int32_t> lengths{100};
  ha::StridedLayout layout = ha::strided_bhsd(1, 2, 100, dim);
  SourceCache<std::uint16_t, ha::StridedLayout> cache{layout, layout.required_span_size(), 1, dim, dim, 31};
  ha::PolicyTable table{1, 2, ha::SinkWindow{.sink = 4, .window = 28}};
  ha::Compaction<> compaction{table, lengths};
  DeviceSource<std::uint16_t, ha::StridedLayout> source{cache};
  DeviceVector<std::byte> d_bytes{std::vector<std::byte>(table.bytes().begin(), table.bytes().end())};
  DeviceVector<std::int32_t> d_lengths{lengths};
  DeviceVector<std::uint16_t> d_keys{
      std::vector<std::uint16_t>(static_cast<std::size_t>(compaction.kept_total() * dim), 77)};
  DeviceVector<std::uint16_t> d_values{
      std::vector<std::uint16_t>(static_cast<std::size_t>(compaction.kept_total() * dim), 77)};

  [[nodiscard]] auto device_compaction() const {
    return compaction.on_device(table.view_at(d_bytes.data()), d_lengths.data());
  }
  [[nodiscard]] auto kept() const { return ha::ragged(compaction, d_keys.data(), d_values.data(), dim); }
  [[nodiscard]] bool untouched() const {
    auto const k = d_keys.host();
    auto const v = d_values.host();
    return std::all_of(k.begin(), k.end(), [](auto x) { return x == 77; }) &&
           std::all_of(v.begin(), v.end(), [](auto x) { return x == 77; });
  }
};

}  // namespace

TEST_CASE("bad calls are refused before anything is launched", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  Small const s;
  auto const compaction = s.device_compaction();
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::compress(nullptr, bytes, compaction, s.source.layers, s.layout, s.kept(), nullptr));
  REQUIRE(bytes >= 12 * 3);
  REQUIRE(bytes < 12 * 3 + 64);
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes + 8));
  auto const fails = [&](cudaError_t error) {
    REQUIRE(error == cudaErrorInvalidValue);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE(s.untouched());
  };
  auto const call = [&](auto const& d_compaction, auto const& layers, auto const& layout, auto const& kept) {
    std::size_t given = bytes;
    return ha::device::compress(temp.data(), given, d_compaction, layers, layout, kept, nullptr);
  };
  std::size_t small = bytes - 1;
  fails(ha::device::compress(temp.data(), small, compaction, s.source.layers, s.layout, s.kept(), nullptr));
  fails(call(compaction, std::vector<ha::LayerKv<std::uint16_t>>{}, s.layout, s.kept()));
  fails(call(compaction, std::vector<ha::LayerKv<std::uint16_t>>{{s.source.layers[0].keys, nullptr}}, s.layout,
             s.kept()));
  fails(call(compaction, s.source.layers, ha::strided_bhsd(1, 3, 100, 64), s.kept()));
  fails(call(compaction, s.source.layers, ha::strided_bhsd(1, 2, 99, 64), s.kept()));
  auto overlapping = s.kept();
  overlapping.layers[0].values = s.source.layers[0].keys + 64;
  fails(call(compaction, s.source.layers, s.layout, overlapping));
  auto no_lengths = compaction;
  no_lengths.d_lengths = nullptr;
  fails(call(no_lengths, s.source.layers, s.layout, s.kept()));
  fails(ha::device::compress_in_place(compaction, std::vector<ha::LayerKv<std::uint16_t>>{}, s.layout,
                                      ha::KeepPositions{}, nullptr));

  // A layer beyond what one launch takes.
  ha::PolicyTable const deep(257, 1, ha::WindowOnly{.window = 1});
  ha::Compaction const deep_compaction(deep, std::vector<std::int32_t>{4});
  std::vector<ha::LayerKv<std::uint16_t>> const many(257, {s.source.layers[0].keys, s.source.layers[0].values});
  DeviceVector<std::byte> const deep_temp(std::vector<std::byte>(12 * 258 + 64));
  std::size_t deep_bytes = 12 * 258 + 64;
  auto const deep_device = deep_compaction.on_device(deep.view_at(s.d_bytes.data()), s.d_lengths.data());
  std::vector<ha::LayerKv<std::uint16_t>> const targets(257, {s.d_keys.data(), s.d_values.data()});
  fails(ha::device::compress(deep_temp.data(), deep_bytes, deep_device, many, ha::strided_bhsd(1, 1, 4, 64),
                             ha::ragged(deep_compaction, targets, 64), nullptr));

  // Temporary storage of any alignment will do.
  REQUIRE_CUDA(ha::device::compress(temp.data() + 4, bytes, compaction, s.source.layers, s.layout, s.kept(), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE_FALSE(s.untouched());
}

TEST_CASE("lengths the compaction was not made for move nothing and say so", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  Small const s;
  DeviceVector<std::int32_t> const status(std::vector<std::int32_t>{-7});
  for (std::int32_t const length : {101, -1}) {
    DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>{length});
    auto compaction = s.device_compaction();
    compaction.d_lengths = d_lengths.data();
    compaction.d_status = status.data();
    run_compress(compaction, ha::transfer(s.source.layers, s.layout, s.kept()));
    REQUIRE(status.host()[0] == 1);
    REQUIRE(s.untouched());
  }
  // Within the longest length, but more rows than there is room for.
  ha::PolicyTable const full(1, 2, ha::Full{});
  DeviceVector<std::byte> const d_full(std::vector<std::byte>(full.bytes().begin(), full.bytes().end()));
  auto compaction = s.device_compaction();
  compaction.table = full.view_at(d_full.data());
  compaction.max_rows = 200;
  compaction.d_status = status.data();
  run_compress(compaction, ha::transfer(s.source.layers, s.layout, s.kept()));
  REQUIRE(status.host()[0] == 1);
  REQUIRE(s.untouched());
  compaction = s.device_compaction();
  compaction.d_status = status.data();
  run_compress(compaction, ha::transfer(s.source.layers, s.layout, s.kept()));
  REQUIRE(status.host()[0] == 0);
  REQUIRE_FALSE(s.untouched());
}

TEST_CASE("offsets and lengths come out for the engine's attention", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  // More segments than the counting kernel has threads.
  ha::PolicyTable table(5, 20, ha::SinkWindow{.sink = 1, .window = 6});
  for (std::int32_t h = 0; h < 20; h += 3) table.set(h % 5, h, ha::Full{});
  std::vector<std::int32_t> lengths;
  for (std::int32_t b = 0; b < 13; ++b) lengths.push_back(b * 5 % 31);
  ha::Compaction const compaction(table, lengths);
  auto const layout = ha::strided_bhsd(13, 20, 31, 8);
  SourceCache<std::uint16_t, ha::StridedLayout> const cache(layout, layout.required_span_size(), 5, 8, 8, 32);
  DeviceSource<std::uint16_t, ha::StridedLayout> const source(cache);
  DeviceVector<std::byte> const d_bytes(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  DeviceVector<std::int32_t> const d_lengths(lengths);
  DeviceVector<std::int32_t> const d_cu_seqlens(std::vector<std::int32_t>(5 * 261, -1));
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(5 * 260, -1));
  DeviceVector<std::uint16_t> const d_keys(
      std::vector<std::uint16_t>(static_cast<std::size_t>(compaction.kept_total() * 8)));
  DeviceVector<std::uint16_t> const d_values(
      std::vector<std::uint16_t>(static_cast<std::size_t>(compaction.kept_total() * 8)));
  auto d_compaction = compaction.on_device(table.view_at(d_bytes.data()), d_lengths.data());
  d_compaction.d_cu_seqlens = d_cu_seqlens.data();
  d_compaction.d_kept = d_kept.data();
  run_compress(d_compaction,
               ha::transfer(source.layers, layout, ha::ragged(compaction, d_keys.data(), d_values.data(), 8)));
  auto const cu_seqlens = d_cu_seqlens.host();
  auto const kept = d_kept.host();
  for (std::int32_t layer = 0; layer < 5; ++layer) {
    auto const expected = compaction.cu_seqlens(layer);
    auto const first = cu_seqlens.begin() + layer * 261;
    REQUIRE(first_difference(std::vector(first, first + 261), expected) == "");
    for (std::int32_t s = 0; s < 260; ++s)
      REQUIRE(kept[static_cast<std::size_t>(layer * 260 + s)] == compaction.kept(layer, s / 20, s % 20));
  }
  std::vector<std::uint16_t> keys(static_cast<std::size_t>(compaction.kept_total() * 8));
  std::vector<std::uint16_t> values(keys);
  ha::compress(compaction, cache.layers(), layout, ha::ragged(compaction, keys.data(), values.data(), 8));
  REQUIRE(d_keys.host() == keys);
  REQUIRE(d_values.host() == values);
}

TEST_CASE("a captured graph is replayed with other lengths", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  Small const s;
  Stream const stream;
  std::size_t bytes = 0;
  auto const compaction = s.device_compaction();
  REQUIRE_CUDA(ha::device::compress(nullptr, bytes, compaction, s.source.layers, s.layout, s.kept(), stream));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0}));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(ha::device::compress(temp.data(), bytes, compaction, s.source.layers, s.layout, s.kept(), stream));
  REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
  REQUIRE_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  for (std::int32_t const length : {100, 50, 7, 0}) {
    REQUIRE_CUDA(cudaMemcpy(s.d_lengths.data(), &length, sizeof(length), cudaMemcpyHostToDevice));
    REQUIRE_CUDA(cudaGraphLaunch(executable, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    ha::Compaction const now(s.table, std::vector<std::int32_t>{length});
    std::vector<std::uint16_t> keys(static_cast<std::size_t>(now.kept_total() * Small::dim));
    std::vector<std::uint16_t> values(keys);
    ha::compress(now, s.cache.layers(), s.layout, ha::ragged(now, keys.data(), values.data(), Small::dim));
    auto got = s.d_keys.host();
    got.resize(keys.size());
    REQUIRE(first_difference(got, keys) == "");
  }
  REQUIRE_CUDA(cudaGraphExecDestroy(executable));
  REQUIRE_CUDA(cudaGraphDestroy(graph));
}

TEST_CASE("scales move in the same launch", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  Small const s;
  auto const scale_layout = ha::strided_bhsd(1, 2, 100, 1);
  SourceCache<float, ha::StridedLayout> const scales(scale_layout, scale_layout.required_span_size(), 1, 1, 1, 33);
  DeviceSource<float, ha::StridedLayout> const d_scales(scales);
  std::vector<float> keys(static_cast<std::size_t>(s.compaction.kept_total()));
  std::vector<float> values(keys);
  DeviceVector<float> const d_keys(keys);
  DeviceVector<float> const d_values(keys);
  run_compress(
      s.device_compaction(), ha::transfer(s.source.layers, s.layout, s.kept()),
      ha::transfer(d_scales.layers, scale_layout, ha::ragged(s.compaction, d_keys.data(), d_values.data(), 1)));
  ha::compress(s.compaction, scales.layers(), scale_layout, ha::ragged(s.compaction, keys.data(), values.data(), 1));
  REQUIRE(d_keys.host() == keys);
  REQUIRE(d_values.host() == values);
  REQUIRE_FALSE(s.untouched());
}

namespace {

template <class T>
float value_of(T value) {
  typename ha::detail::ElementOf<T>::type element;
  std::memcpy(static_cast<void*>(&element), &value, sizeof(T));
  return ha::to_float(element);
}

/// Rotation on both sides, out of place and in place. @tparam T the device's element; @tparam H the host's
template <class T, class H>
void check_rotation(std::int64_t dim, float tolerance) {
  constexpr std::int32_t tokens = 900;
  std::vector<std::int32_t> const lengths{tokens};
  auto const layout = ha::strided_bhsd(1, 2, tokens, dim);
  ha::PolicyTable table(1, 2, ha::SinkWindow{.sink = 4, .window = 45});
  table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 600});
  ha::Compaction const compaction(table, lengths);
  std::mt19937 random(34);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<H> keys(static_cast<std::size_t>(2 * tokens * dim));
  for (H& x : keys) x = ha::from_float<H>(uniform(random));
  std::vector<T> device_keys(keys.size());
  std::memcpy(static_cast<void*>(device_keys.data()), keys.data(), keys.size() * sizeof(T));
  DeviceVector<std::byte> const d_bytes(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  DeviceVector<std::int32_t> const d_lengths(lengths);
  auto const d_compaction = compaction.on_device(table.view_at(d_bytes.data()), d_lengths.data());
  std::vector<ha::LayerKv<H const>> const layers{{keys.data(), keys.data()}};

  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    for (std::int64_t const rotary_dim : {dim, dim / 2}) {
      auto const rotation = ha::KeyRotation::from_base(pairing, static_cast<std::int32_t>(rotary_dim), 10000);
      std::vector<H> k(static_cast<std::size_t>(compaction.kept_total() * dim));
      std::vector<H> v(k);
      ha::compress(compaction,
                   ha::transfer(layers, layout, ha::ragged(compaction, k.data(), v.data(), dim)).rotate_keys(rotation));
      DeviceVector<T> const d_source(device_keys);
      DeviceVector<T> const d_source_values(device_keys);
      DeviceVector<T> const d_keys(std::vector<T>(k.size()));
      DeviceVector<T> const d_values(std::vector<T>(k.size()));
      std::vector<ha::LayerKv<T>> const d_layers{{d_source.data(), d_source_values.data()}};
      run_compress(d_compaction,
                   ha::transfer(d_layers, layout, ha::ragged(compaction, d_keys.data(), d_values.data(), dim))
                       .rotate_keys(rotation));
      REQUIRE_CUDA(ha::device::compress_in_place(d_compaction, d_layers, layout, rotation.evicting(1), nullptr));
      auto const got = d_keys.host();
      auto const moved = d_source.host();
      float worst = 0;
      std::size_t row = 0;
      for (std::int64_t head = 0; head < 2; ++head) {
        for (std::int64_t slot = 0; slot < compaction.kept(0, 0, static_cast<std::int32_t>(head)); ++slot, ++row) {
          for (std::size_t c = 0; c < static_cast<std::size_t>(dim); ++c) {
            std::size_t const i = row * static_cast<std::size_t>(dim) + c;
            float const expected = ha::to_float(k[i]);
            worst = std::max(worst, std::abs(value_of(got[i]) - expected));
            worst = std::max(
                worst,
                std::abs(
                    value_of(
                        moved[static_cast<std::size_t>(layout.offset(0, head, slot, static_cast<std::int64_t>(c)))]) -
                    expected));
          }
        }
      }
      REQUIRE(worst <= tolerance);
      auto const values = d_values.host();
      REQUIRE(std::memcmp(values.data(), v.data(), v.size() * sizeof(T)) == 0);
    }
  }
}

}  // namespace

TEST_CASE("keys turn to consecutive positions", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_rotation<float, float>(32, 1e-6F);
  check_rotation<float, float>(12, 1e-6F);  // too few channels for wide accesses of both halves
  check_rotation<__half, ha::float16>(64, 1e-3F);
  check_rotation<__nv_bfloat16, ha::bfloat16>(64, 8e-3F);
}

TEST_CASE("in place on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{400, 33, 0};
  ha::PolicyTable table(2, 3, ha::SinkWindow{.sink = 4, .window = 29});
  table.set(0, 1, ha::Full{});
  table.set(1, 1, ha::SinkWindow{.sink = 3, .window = 390});  // target and source overlap
  table.set(1, 2, ha::WindowOnly{.window = 300});
  ha::Compaction const compaction(table, lengths);
  DeviceVector<std::byte> const d_bytes(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  DeviceVector<std::int32_t> const d_lengths(lengths);
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(18, -1));
  auto d_compaction = compaction.on_device(table.view_at(d_bytes.data()), d_lengths.data());
  d_compaction.d_kept = d_kept.data();
  auto const check = [&](auto const& host_layout, auto const& layout, std::int64_t extent, std::int64_t dim) {
    using Layout = std::remove_cvref_t<decltype(host_layout)>;
    SourceCache<std::uint16_t, Layout> cache(host_layout, extent, 2, dim, dim, 35);
    DeviceSource<std::uint16_t, Layout> const source(cache);
    Stream const stream;
    REQUIRE_CUDA(ha::device::compress_in_place(d_compaction, source.layers, layout, ha::KeepPositions{}, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    ha::compress_in_place(compaction, cache.layers(), host_layout);
    for (std::size_t l = 0; l < 2; ++l) {
      REQUIRE(source.tensor(2 * l) == cache.keys[l]);
      REQUIRE(source.tensor(2 * l + 1) == cache.values[l]);
    }
    REQUIRE(d_kept.host()[9] == 33);
  };
  for (auto const& layout :
       {ha::strided_bhsd(3, 3, 400, 64), ha::strided_bshd(3, 400, 3, 5), ha::strided_bhds(3, 3, 8, 400)}) {
    check(layout, layout, layout.required_span_size(), layout.num_channels());
  }
  std::vector<std::int32_t> block_table(3 * 25);
  for (std::size_t i = 0; i < block_table.size(); ++i)
    block_table[i] = static_cast<std::int32_t>((7 * i + 2) % block_table.size());
  DeviceVector<std::int32_t> const d_block_table(block_table);
  ha::PagedShape const shape{.num_sequences = 3, .num_kv_heads = 3, .channels = 64, .num_pages = 75, .page_size = 16};
  check(ha::flash_attention_paged(ha::PageTable::dense(block_table.data(), 25), shape),
        ha::flash_attention_paged(ha::PageTable::dense(d_block_table.data(), 25), shape),
        std::int64_t{75} * 16 * 3 * 64, 64);
}

TEST_CASE("strides beyond 32 bits on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t head_stride = (std::int64_t{1} << 31) + 64;
  std::uint16_t* tensor = nullptr;
  if (cudaMalloc(&tensor, static_cast<std::size_t>(head_stride + 4096) * sizeof(std::uint16_t)) != cudaSuccess) {
    (void)cudaGetLastError();
    HEADAWARE_SKIP("no 4 GiB of device memory");
  }
  ha::StridedLayout const layout({1, 2, 40, 64}, {.sequence = 0, .head = head_stride, .token = 64, .channel = 1});
  std::vector<std::uint16_t> rows(40 * 64);
  for (std::int64_t h = 0; h < 2; ++h) {
    std::iota(rows.begin(), rows.end(), static_cast<std::uint16_t>(h * 5000));
    REQUIRE_CUDA(cudaMemcpy(tensor + h * head_stride, rows.data(), rows.size() * 2, cudaMemcpyHostToDevice));
  }
  ha::UniformTable const table(ha::WindowOnly{.window = 3}, 1, 2);
  ha::Compaction const compaction(table, std::vector<std::int32_t>{40});
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>{40});
  DeviceVector<std::uint16_t> const d_keys(std::vector<std::uint16_t>(6 * 64));
  DeviceVector<std::uint16_t> const d_values(std::vector<std::uint16_t>(6 * 64));
  std::vector<ha::LayerKv<std::uint16_t>> const layers{{tensor, tensor}};
  run_compress(compaction.on_device(table, d_lengths.data()),
               ha::transfer(layers, layout, ha::ragged(compaction, d_keys.data(), d_values.data(), 64)));
  auto const keys = d_keys.host();
  REQUIRE(keys[0] == 37 * 64);
  REQUIRE(keys[3 * 64] == 5000 + 37 * 64);
  REQUIRE(keys[6 * 64 - 1] == 5000 + 40 * 64 - 1);
  REQUIRE(d_values.host() == keys);
  REQUIRE_CUDA(cudaFree(tensor));
}

TEST_CASE("empty input succeeds", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::UniformTable const table(ha::Prune{}, 1, 2);
  ha::Compaction const compaction(table, std::vector<std::int32_t>{40});
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>{40});
  std::uint16_t* const nothing = nullptr;
  std::vector<ha::LayerKv<std::uint16_t>> const layers{{nullptr, nullptr}};
  run_compress(compaction.on_device(table, d_lengths.data()),
               ha::transfer(layers, ha::strided_bhsd(1, 2, 40, 8), ha::ragged(compaction, nothing, nothing, 8)));
  ha::Compaction const none(table, std::vector<std::int32_t>{});
  run_compress(none.on_device(table, nullptr),
               ha::transfer(layers, ha::strided_bhsd(0, 2, 40, 8), ha::ragged(none, nothing, nothing, 8)));
}

TEST_CASE("a keep-list's token after the sequence's last one moves nothing on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  Small const s;
  DeviceVector<std::int32_t> const tokens(std::vector<std::int32_t>{1, 100});
  ha::PolicyTable table(1, 2, ha::Prune{});
  table.set(0, 0, ha::KeepList{tokens.data(), 2});
  DeviceVector<std::byte> const d_bytes(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
  ha::Compaction const compaction(table, s.lengths);
  auto const d_compaction = compaction.on_device(table.view_at(d_bytes.data()), s.d_lengths.data());
  run_compress(d_compaction,
               ha::transfer(s.source.layers, s.layout, ha::ragged(compaction, s.d_keys.data(), s.d_values.data(), 64)));
  auto const keys = s.d_keys.host();
  auto expected = std::vector<std::uint16_t>(keys.size(), 77);
  std::copy_n(s.cache.keys[0].begin() + 64, 64, expected.begin());
  REQUIRE(first_difference(keys, expected) == "");
}
