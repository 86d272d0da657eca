// The most layers and tensors of one call, lengths that no longer fit, temporary storage to the byte, graphs.

#include "support/device_arena.cuh"
#include "support/rotary.hpp"

#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// Device memory of exactly so many bytes: what is beyond belongs to nobody.
class ExactStorage {
 public:
  explicit ExactStorage(std::size_t bytes) { REQUIRE_CUDA(cudaMalloc(&data_, bytes)); }
  ExactStorage(ExactStorage const&) = delete;
  ExactStorage& operator=(ExactStorage const&) = delete;
  ~ExactStorage() { cudaFree(data_); }
  [[nodiscard]] void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

void set_lengths(DeviceVector<std::int32_t> const& d_lengths, std::vector<std::int32_t> const& lengths) {
  REQUIRE_CUDA(
      cudaMemcpy(d_lengths.data(), lengths.data(), lengths.size() * sizeof(lengths[0]), cudaMemcpyHostToDevice));
}

}  // namespace

TEST_CASE("the most layers a launch takes, keys turning, scales along", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int32_t layers = 256;
  constexpr std::int64_t dim = 16;
  std::vector<std::int32_t> const lengths{13};
  ha::PolicyTable table(layers, 1, ha::SinkWindow{.sink = 1, .window = 3});
  for (std::int32_t l = 0; l < layers; l += 3) table.set(l, 0, ha::WindowOnly{.window = l % 14});
  auto const layout = ha::strided_bhsd(1, 1, 13, dim);
  auto const scale_layout = ha::strided_bhsd(1, 1, 13, 1);
  SourceCache<float, ha::StridedLayout> const cache(layout, layout.required_span_size(), layers, dim, dim, 541);
  SourceCache<ha::float16, ha::StridedLayout> const scales(scale_layout, 13, layers, 1, 1, 542);
  ha::Compaction const compaction(table, lengths);
  KeptTokens const tokens(table, lengths);
  DeviceTable const d_table(table);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  DeviceSource<float, ha::StridedLayout> const source(cache);
  DeviceSource<ha::float16, ha::StridedLayout> const d_scales(scales);
  auto const rows = compaction.kept_total();
  DeviceVector<float> const d_keys(guarded<float>(rows * dim));
  DeviceVector<float> const d_values(guarded<float>(rows * dim));
  DeviceVector<ha::float16> const d_key_scales(guarded<ha::float16>(rows));
  DeviceVector<ha::float16> const d_value_scales(guarded<ha::float16>(rows));
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{-7});
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(layers, -7));
  DeviceVector<std::int32_t> const d_cu_seqlens(std::vector<std::int32_t>(2 * layers, -7));
  auto d_compaction = compaction.on_device(d_table.view(), d_lengths.data());
  d_compaction.d_status = d_status.data();
  d_compaction.d_kept = d_kept.data();
  d_compaction.d_cu_seqlens = d_cu_seqlens.data();
  run_compress(d_compaction,
               ha::transfer(source.layers, layout, ha::ragged(compaction, d_keys.data(), d_values.data(), dim))
                   .rotate_keys(ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000)),
               ha::transfer(d_scales.layers, scale_layout,
                            ha::ragged(compaction, d_key_scales.data(), d_value_scales.data(), 1)));
  auto const keys = d_keys.host();
  auto const values = d_values.host();
  auto const key_scales = d_key_scales.host();
  auto const value_scales = d_value_scales.host();
  auto const kept = d_kept.host();
  auto const cu_seqlens = d_cu_seqlens.host();
  Rotary const rotary = Rotary::of_base(ha::RotaryPairing::neox, dim, 10000);
  REQUIRE(d_status.host()[0] == 0);
  FirstDifference difference;
  for (std::size_t l = 0; l < layers; ++l) {
    auto const held = static_cast<std::int32_t>(tokens.segments[l].size());
    difference.expect(kept[l], held, "kept rows of layer ", l);
    difference.expect(cu_seqlens[2 * l], 0, "first row of layer ", l);
    difference.expect(cu_seqlens[2 * l + 1], held, "last row of layer ", l);
  }
  std::size_t row = 0;
  tokens.for_each_row([&](auto layer, auto b, auto h, auto slot, auto token) {
    std::vector<double> turned;
    for (std::int64_t c = 0; c < dim; ++c) turned.push_back(double(cache.key(layer, b, h, token, c)));
    rotary.turn(turned, static_cast<double>(slot - token));
    for (std::int64_t c = 0; c < dim; ++c) {
      std::size_t const at = row * dim + static_cast<std::size_t>(c);
      double const right = turned[static_cast<std::size_t>(c)];
      difference.expect_that(close_to(keys[at], right), keys[at], right, "key row ", row, ", channel ", c);
      difference.expect(values[at], cache.value(layer, b, h, token, c), "value row ", row, ", channel ", c);
    }
    difference.expect(key_scales[row], scales.key(layer, b, h, token, 0), "key scale ", row);
    difference.expect(value_scales[row], scales.value(layer, b, h, token, 0), "value scale ", row);
    ++row;
  });
  REQUIRE(difference.text() == "");
  REQUIRE(row == static_cast<std::size_t>(rows));

  // Scales into fewer rows than the elements: refused.
  ha::Compaction const smaller(table.skip_layers({}), std::vector<std::int32_t>{12});
  std::size_t bytes = 0;
  auto const call = [&](void* temp) {
    return ha::device::compress(
        temp, bytes, d_compaction,
        ha::transfer(source.layers, layout, ha::ragged(compaction, d_keys.data(), d_values.data(), dim))
            .rotate_keys(ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000)),
        ha::transfer(d_scales.layers, scale_layout, ha::ragged(smaller, d_key_scales.data(), d_value_scales.data(), 1)),
        nullptr);
  };
  REQUIRE_CUDA(call(nullptr));
  ExactStorage const temp(bytes);
  REQUIRE(call(temp.data()) == cudaErrorInvalidValue);
}

namespace {

/// Two sequences of two heads in pages; what is checked is which lengths the pages take.
struct PagedSetup {
  static constexpr std::int64_t dim = 8;
  static constexpr std::int32_t page_size = 4;
  std::vector<std::int32_t> lengths{20, 7};
  ha::StridedLayout layout = ha::strided_bhsd(2, 2, 20, dim);
  SourceCache<std::uint16_t, ha::StridedLayout> cache{layout, layout.required_span_size(), 1, dim, dim, 543};
  ha::PolicyTable table{1, 2, ha::SinkWindow{.sink = 2, .window = 9}};
  ha::Compaction<> compaction{table, lengths};
  ha::PageIndices pages = ha::consecutive_pages(compaction, page_size);
  DeviceSource<std::uint16_t, ha::StridedLayout> source{cache};
  DeviceTable<ha::DefaultRegistry> d_table{table};
  DeviceVector<std::int32_t> d_lengths{lengths};
  DeviceVector<std::int32_t> d_indices{pages.indices};
  DeviceVector<std::int32_t> d_indptr{pages.indptr};
  DeviceVector<std::int32_t> d_status{std::vector<std::int32_t>{-7}};
  std::int64_t elements = compaction.pages_total(page_size) * page_size * dim;
  DeviceVector<std::uint16_t> d_keys{guarded<std::uint16_t>(elements)};
  DeviceVector<std::uint16_t> d_values{guarded<std::uint16_t>(elements)};

  [[nodiscard]] auto device_compaction() const {
    auto d_compaction = compaction.on_device(d_table.view(), d_lengths.data());
    d_compaction.d_status = d_status.data();
    return d_compaction;
  }
  [[nodiscard]] auto kept() const {
    ha::PagedForm const form{.block_table = d_indices.data(), .indptr = d_indptr.data(), .page_size = page_size};
    std::vector<ha::LayerKv<std::uint16_t>> const pool{{d_keys.data(), d_values.data()}};
    return ha::paged(compaction, pool, form, dim);
  }
  /// The keys that pages hold for these lengths, over what was there before.
  void expect(std::vector<std::uint16_t>& keys, std::vector<std::int32_t> const& now) const {
    KeptTokens const tokens(table, now);
    tokens.for_each([&](auto l, auto b, auto h) {
      auto const s = static_cast<std::size_t>(tokens.segment(l, b, h));
      for (std::size_t i = 0; i < tokens.segments[s].size(); ++i) {
        auto const page = pages.indices[static_cast<std::size_t>(pages.indptr[s]) + i / page_size];
        for (std::int64_t c = 0; c < dim; ++c) {
          keys[(static_cast<std::size_t>(page) * page_size + i % page_size) * dim + static_cast<std::size_t>(c)] =
              cache.key(0, b, h, tokens.segments[s][i], c);
        }
      }
    });
  }
};

}  // namespace

TEST_CASE("pages are planned a head, and a graph replayed with other lengths keeps to them", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  PagedSetup const s;
  Stream const stream;
  auto const d_compaction = s.device_compaction();
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::compress(nullptr, bytes, d_compaction, s.source.layers, s.layout, s.kept(), stream));
  REQUIRE(bytes >= 12 * 5);
  REQUIRE(bytes < 12 * 5 + 64);
  ExactStorage const temp(bytes);
  Graph const graph(stream, [&](cudaStream_t capturing) {
    return ha::device::compress(temp.data(), bytes, d_compaction, s.source.layers, s.layout, s.kept(), capturing);
  });
  REQUIRE(first_difference(s.d_keys.host(), guarded<std::uint16_t>(s.elements)) == "");
  auto expected = guarded<std::uint16_t>(s.elements);
  for (std::vector<std::int32_t> const& now :
       {std::vector<std::int32_t>{20, 7}, {19, 8}, {12, 3}, {1, 0}, {0, 0}, {20, 8}}) {
    INFO("lengths " << now[0] << ", " << now[1]);
    set_lengths(s.d_lengths, now);
    graph.replay(stream);
    // A sequence grown beyond its own rows, within its own pages: more rows in all than were planned.
    bool const fits = now != std::vector<std::int32_t>{20, 8} && now != std::vector<std::int32_t>{19, 8};
    if (fits) s.expect(expected, now);
    REQUIRE(s.d_status.host()[0] == (fits ? 0 : 1));
    REQUIRE(first_difference(s.d_keys.host(), expected) == "");
  }
  // As many rows as planned, or fewer, but the second sequence's no longer fit its own pages.
  for (std::vector<std::int32_t> const& now : {std::vector<std::int32_t>{7, 20}, {0, 9}, {3, 11}}) {
    INFO("lengths " << now[0] << ", " << now[1]);
    set_lengths(s.d_lengths, now);
    graph.replay(stream);
    REQUIRE(s.d_status.host()[0] == 1);
    REQUIRE(first_difference(s.d_keys.host(), expected) == "");
  }
}

TEST_CASE("compaction in place is captured and replayed", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  PagedSetup const s;
  Stream const stream;
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(4, -7));
  auto d_compaction = s.device_compaction();
  d_compaction.d_kept = d_kept.data();
  Graph const graph(stream, [&](cudaStream_t capturing) {
    return ha::device::compress_in_place(d_compaction, s.source.layers, s.layout, {}, capturing);
  });
  auto expected = s.cache;
  auto const layers = expected.layers();
  for (std::vector<std::int32_t> const& now : {std::vector<std::int32_t>{20, 7}, {12, 20}, {0, 13}}) {
    set_lengths(s.d_lengths, now);
    graph.replay(stream);
    ha::Compaction const compaction(s.table, now);
    ha::compress_in_place(compaction, layers, s.layout);
    REQUIRE(first_difference(s.source.tensor(0), expected.keys[0]) == "");
    REQUIRE(first_difference(s.source.tensor(1), expected.values[0]) == "");
    for (std::int32_t i = 0; i < 4; ++i) {
      REQUIRE(d_kept.host()[static_cast<std::size_t>(i)] == compaction.kept(0, i / 2, i % 2));
    }
  }
}

TEST_CASE("a destination made for another compaction is left alone", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  PagedSetup const s;
  auto const refuses = [&](auto const& kept) {
    run_compress(s.device_compaction(), ha::transfer(s.source.layers, s.layout, kept));
    REQUIRE(s.d_status.host()[0] == 1);
    REQUIRE(first_difference(s.d_keys.host(), guarded<std::uint16_t>(s.elements)) == "");
    REQUIRE(first_difference(s.d_values.host(), guarded<std::uint16_t>(s.elements)) == "");
  };
  ha::Compaction const smaller(ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 2, .window = 8}), s.lengths);
  refuses(ha::ragged(smaller, s.d_keys.data(), s.d_values.data(), s.dim));
  refuses(ha::padded(smaller, s.d_keys.data(), s.d_values.data(), s.dim));
  refuses(ha::grouped(smaller, s.d_keys.data(), s.d_values.data(), s.dim));
  auto small_pages = s.kept();
  DeviceVector<std::int32_t> const d_short(std::vector<std::int32_t>{0, 3, 5, 7, 9});
  small_pages.form.indptr = d_short.data();
  refuses(small_pages);
  ha::PagedForm const dense{.block_table = s.d_indices.data(), .table_stride = 2, .page_size = 4};
  std::vector<ha::LayerKv<std::uint16_t>> const pool{{s.d_keys.data(), s.d_values.data()}};
  refuses(ha::paged(ha::Compaction(ha::PolicyTable(1, 2, ha::WindowOnly{.window = 8}), s.lengths), pool, dense, s.dim));
}

TEST_CASE("the default stream, again and again into one buffer", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  PagedSetup const s;
  auto const d_compaction = s.device_compaction();
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::compress(nullptr, bytes, d_compaction, s.source.layers, s.layout, s.kept(), nullptr));
  ExactStorage const temp(bytes);
  auto expected = guarded<std::uint16_t>(s.elements);
  s.expect(expected, s.lengths);
  for (int i = 0; i < 3; ++i) {
    REQUIRE_CUDA(ha::device::compress(temp.data(), bytes, d_compaction, s.source.layers, s.layout, s.kept(), nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE(first_difference(s.d_keys.host(), expected) == "");
    REQUIRE(s.d_status.host()[0] == 0);
  }
  // A misaligned or missing tensor is refused, whatever the rest.
  auto layers = s.source.layers;
  layers[0].keys = reinterpret_cast<std::uint16_t*>(reinterpret_cast<std::uintptr_t>(layers[0].keys) + 1);
  REQUIRE(ha::device::compress(temp.data(), bytes, d_compaction, layers, s.layout, s.kept(), nullptr) ==
          cudaErrorInvalidValue);
  layers[0].keys = nullptr;
  REQUIRE(ha::device::compress(temp.data(), bytes, d_compaction, layers, s.layout, s.kept(), nullptr) ==
          cudaErrorInvalidValue);
  auto kept = s.kept();
  kept.layers[0].values = nullptr;
  REQUIRE(ha::device::compress(temp.data(), bytes, d_compaction, s.source.layers, s.layout, kept, nullptr) ==
          cudaErrorInvalidValue);
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(first_difference(s.d_keys.host(), expected) == "");
}
