// Keys turned on the device, against rotation in double and against the CPU's.

#include "support/device_arena.cuh"
#include "support/rotary.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// Random numbers in [-1, 1] for keys.
template <class T, class Source>
SourceCache<T, Source> random_cache(Source const& source, std::int64_t extent, std::int32_t layers, std::int64_t dim,
                                    unsigned seed) {
  SourceCache<T, Source> cache(source, extent, layers, dim, dim, seed);
  cache.fill_keys(seed);
  return cache;
}

/// Whether two numbers are the same or neighbours in a half-precision format, or close in float.
template <class T>
bool within_one_place(T a, T b) {
  if constexpr (std::is_same_v<T, float>) {
    return std::abs(a - b) <= 1e-6F * std::max(1.0F, std::abs(b));
  } else {
    auto const order = [](T x) {
      return (x.bits & 0x8000) != 0 ? -static_cast<int>(x.bits & 0x7fff) : static_cast<int>(x.bits);
    };
    // Near zero, where cancellation leaves float's own error, places are finer than that.
    return std::abs(order(a) - order(b)) <= 1 || std::abs(ha::to_float(a) - ha::to_float(b)) <= 1e-6F;
  }
}

template <class T>
std::string first_not_within_one_place(std::vector<T> const& got, std::vector<T> const& expected) {
  FirstDifference difference;
  difference.expect(got.size(), expected.size(), "size");
  for (std::size_t i = 0; i < std::min(got.size(), expected.size()); ++i)
    difference.expect_that(within_one_place(got[i], expected[i]), got[i], expected[i], "element ", i);
  return difference.text();
}

/// Out of place into a ragged cache and in place. @param device_layout  the source with device pointers
template <class T, class Source, class MakeRotation>
void check_rotation(SourceCache<T, Source> const& cache, Source const& device_layout, ha::PolicyTable const& table,
                    std::vector<std::int32_t> const& lengths, Rotary const& rotary, MakeRotation const& make_rotation,
                    std::size_t shift = 0) {
  std::int64_t const dim = cache.head_dim;
  ha::Compaction const compaction(table, lengths);
  KeptTokens const tokens(table, lengths);
  DeviceTable const d_table(table);
  DeviceVector<std::int32_t> const d_lengths(lengths);
  auto const d_compaction = compaction.on_device(d_table.view(), d_lengths.data());
  DeviceSource<T, Source> const source(cache, shift);
  DeviceVector<T> const d_keys(guarded<T>(compaction.kept_total() * dim + 8));
  DeviceVector<T> const d_values(guarded<T>(compaction.kept_total() * dim + 8));
  auto host_keys = guarded<T>(compaction.kept_total() * dim + 8);
  auto host_values = host_keys;
  ha::KeyRotation const rotation = make_rotation(true);
  run_compress(d_compaction, ha::transfer(source.layers, device_layout,
                                          ha::ragged(compaction, d_keys.data() + shift, d_values.data() + shift, dim))
                                 .rotate_keys(rotation));
  ha::compress(compaction,
               ha::transfer(cache.layers(), cache.source,
                            ha::ragged(compaction, host_keys.data() + shift, host_values.data() + shift, dim))
                   .rotate_keys(make_rotation(false)));
  Stream const stream;
  REQUIRE_CUDA(ha::device::compress_in_place(d_compaction, source.layers, device_layout, rotation.evicting(1), stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  auto const keys = d_keys.host();
  REQUIRE(first_difference(d_values.host(), host_values) == "");

  auto expected_moved = cache;
  auto expected = guarded<T>(compaction.kept_total() * dim + 8);
  FirstDifference difference;
  std::size_t at = shift;
  tokens.for_each_row([&](auto l, auto b, auto h, auto slot, auto token) {
    std::vector<double> row;
    for (std::int64_t c = 0; c < dim; ++c) row.push_back(double(ha::to_float(cache.key(l, b, h, token, c))));
    rotary.turn(row, static_cast<double>(slot - token));
    for (std::int64_t c = 0; c < dim; ++c, ++at) {
      T const got = keys[at];
      T const source_bits = cache.key(l, b, h, token, c);
      bool const turned = token != slot && c < static_cast<std::int64_t>(2 * rotary.frequencies.size());
      double const right = turned ? row[static_cast<std::size_t>(c)] : double(ha::to_float(source_bits));
      auto const expect = [&](char const* what, bool holds, auto const& other) {
        difference.expect_that(holds, double(ha::to_float(got)), double(other), what, ", layer ", l, ", sequence ", b,
                               ", KV head ", h, ", row ", slot, " (token ", token, "), channel ", c);
      };
      expect("rotation in double", turned ? close_to(got, right) : got == source_bits, right);
      expect("the CPU's", within_one_place(got, host_keys[at]), ha::to_float(host_keys[at]));
      expected[at] = got;
      // In place the same arithmetic runs: the same bits.
      expected_moved.key(l, b, h, slot, c) = got;
    }
  });
  REQUIRE(difference.text() == "");
  REQUIRE(first_difference(keys, expected) == "");
  for (std::size_t l = 0; l < cache.keys.size(); ++l) {
    REQUIRE(first_difference(source.tensor(2 * l, shift), expected_moved.keys[l]) == "");
  }
}

/// Both pairings; all channels, half of them, and numbers of them that take narrow accesses; each source of angles.
template <class T, class Source>
void check_rotations(SourceCache<T, Source> const& cache, Source const& device_layout, ha::PolicyTable const& table,
                     std::vector<std::int32_t> const& lengths, std::size_t shift = 0) {
  std::int64_t const longest = *std::max_element(lengths.begin(), lengths.end());
  constexpr auto width = static_cast<std::int64_t>(16 / sizeof(T));  // not twice it, which wide pairs take
  std::vector<std::int64_t> const dims{cache.head_dim, cache.head_dim / 2, width, 6};
  for (auto const pairing : {ha::RotaryPairing::neox, ha::RotaryPairing::interleaved}) {
    for (std::int64_t const rotary_dim : dims) {
      INFO("rotary_dim " << rotary_dim << (pairing == ha::RotaryPairing::neox ? ", neox" : ", interleaved")
                         << ", shift " << shift);
      auto const dim = static_cast<std::int32_t>(rotary_dim);
      Rotary const rotary = Rotary::of_base(pairing, dim, 10000);
      check_rotation(
          cache, device_layout, table, lengths, rotary,
          [&](bool) { return ha::KeyRotation::from_base(pairing, dim, 10000); }, shift);
      auto const tables = rotary.tables(longest);
      DeviceVector<float> const d_cosines(tables.cosines);
      DeviceVector<float> const d_sines(tables.sines);
      check_rotation(
          cache, device_layout, table, lengths, rotary,
          [&](bool device) {
            return ha::KeyRotation::from_table(pairing, dim, device ? d_cosines.data() : tables.cosines.data(),
                                               device ? d_sines.data() : tables.sines.data(), longest);
          },
          shift);
    }
  }
}

ha::PolicyTable rotating_table(std::int32_t widest) {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 4, .window = 20});
  table.set(0, 1, ha::SinkWindow{.sink = 3, .window = widest});
  table.set(1, 0, ha::WindowOnly{.window = 7});
  table.set(1, 1, ha::Full{});
  return table;
}

template <class T>
void check_strided(unsigned seed) {
  // Longer than a tile's rows, in one order; then a transposed tensor, and pointers aligned to one element.
  auto const bhsd = ha::strided_bhsd(2, 2, 330, 32);
  check_rotations(random_cache<T>(bhsd, bhsd.required_span_size(), 2, 32, seed), bhsd, rotating_table(300), {330, 9});
  auto const bhds = ha::strided_bhds(2, 2, 32, 75);
  check_rotations(random_cache<T>(bhds, bhds.required_span_size(), 2, 32, seed), bhds, rotating_table(60), {75, 9});
  auto const bshd = ha::strided_bshd(2, 75, 2, 32);
  check_rotations(random_cache<T>(bshd, bshd.required_span_size(), 2, 32, seed), bshd, rotating_table(60), {75, 9}, 1);
}

}  // namespace

TEST_CASE("on the device float keys turn", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_strided<float>(521);
}
TEST_CASE("on the device float16 keys turn", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_strided<ha::float16>(522);
}
TEST_CASE("on the device bfloat16 keys turn", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_strided<ha::bfloat16>(523);
}

TEST_CASE("on the device keys in split pages turn", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<std::int32_t> const lengths{75, 9};
  std::vector<std::int32_t> pages(2 * 10);
  for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>((7 * i + 3) % pages.size());
  DeviceVector<std::int32_t> const d_pages(pages);
  ha::PagedShape const shape{.num_sequences = 2, .num_kv_heads = 2, .channels = 32, .num_pages = 20, .page_size = 8};
  auto const layout = [&](std::int32_t const* table) {
    return ha::vllm_paged_attention(ha::PageTable::dense(table, 10), shape, 8);
  };
  auto const cache = random_cache<ha::float16>(layout(pages.data()), std::int64_t{20} * 8 * 2 * 32, 2, 32, 524);
  check_rotations(cache, layout(d_pages.data()), rotating_table(60), lengths);
}

namespace {

/// Out of place and in place with positions of the tokens' own: what the CPU makes of them.
template <class T>
void check_positions(std::int32_t rotary_dim, std::size_t shift) {
  constexpr std::int64_t dim = 32;
  constexpr std::int64_t stride = 40;
  std::vector<std::int32_t> const lengths{40, 9};
  auto const layout = ha::strided_bshd(2, 40, 2, dim);
  auto const cache = random_cache<T>(layout, layout.required_span_size(), 2, dim, 526);
  ha::Compaction const compaction(rotating_table(30), lengths);
  std::vector<std::int32_t> positions(2 * stride);
  for (std::size_t t = 0; t < stride; ++t) {  // after an image, and far away: keys turn forward and back
    positions[t] = static_cast<std::int32_t>(t < 8 ? t : t - 7);
    positions[stride + t] = static_cast<std::int32_t>(900 + 3 * t);
  }
  DeviceVector<std::int32_t> const d_positions(positions);
  DeviceTable const d_table(compaction.table());
  DeviceVector<std::int32_t> const d_lengths(lengths);
  DeviceSource<T, ha::StridedLayout> const source(cache, shift);
  auto const elements = static_cast<std::size_t>(compaction.kept_total() * dim);
  DeviceVector<T> const d_keys(std::vector<T>(elements + shift));
  DeviceVector<T> const d_values(std::vector<T>(elements + shift));
  std::vector<T> keys(elements + shift);
  std::vector<T> values(elements + shift);
  Rotary const rotary = Rotary::of_base(ha::RotaryPairing::neox, rotary_dim, 10000);
  auto const tables = rotary.tables(1020);
  DeviceVector<float> const d_cosines(tables.cosines);
  DeviceVector<float> const d_sines(tables.sines);
  auto const rotation = [&](bool device) {
    return ha::KeyRotation::from_table(ha::RotaryPairing::neox, rotary_dim,
                                       device ? d_cosines.data() : tables.cosines.data(),
                                       device ? d_sines.data() : tables.sines.data(), 1020)
        .with_positions(device ? d_positions.data() : positions.data(), stride);
  };
  ha::compress(compaction, ha::transfer(cache.layers(), layout,
                                        ha::ragged(compaction, keys.data() + shift, values.data() + shift, dim))
                               .rotate_keys(rotation(false)));
  auto const d_compaction = compaction.on_device(d_table.view(), d_lengths.data());
  run_compress(d_compaction, ha::transfer(source.layers, layout,
                                          ha::ragged(compaction, d_keys.data() + shift, d_values.data() + shift, dim))
                                 .rotate_keys(rotation(true)));
  REQUIRE(first_not_within_one_place(d_keys.host(), keys) == "");
  REQUIRE(first_difference(d_values.host(), values) == "");

  auto moved = cache;
  ha::compress_in_place(compaction, moved.layers(), layout, rotation(false).evicting(1));
  REQUIRE_CUDA(ha::device::compress_in_place(d_compaction, source.layers, layout, rotation(true).evicting(1), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  for (std::size_t l = 0; l < 2; ++l) {
    REQUIRE(first_not_within_one_place(source.tensor(2 * l, shift), moved.keys[l]) == "");
    REQUIRE(first_difference(source.tensor(2 * l + 1, shift), moved.values[l]) == "");
  }
  REQUIRE(ha::device::compress_in_place(d_compaction, source.layers, layout,
                                        rotation(true).with_positions(d_positions.data(), 39),
                                        nullptr) == cudaErrorInvalidValue);
}

}  // namespace

TEST_CASE("on the device keys that were rotated for other positions turn from there", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_positions<float>(32, 0);
  check_positions<ha::float16>(32, 0);
  check_positions<ha::bfloat16>(6, 1);
}

TEST_CASE("on the device keys of 16 bits are not turned in place for a few tokens", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 8;
  auto const layout = ha::strided_bhsd(2, 1, 280, dim);
  auto const cache = random_cache<ha::float16>(layout, layout.required_span_size(), 1, dim, 527);
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000);
  ha::PolicyTable const table(1, 1, ha::SinkWindow{.sink = 4, .window = 200});
  DeviceTable const d_table(table);
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{-7});
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>{-7, -7});
  DeviceSource<ha::float16, ha::StridedLayout> const source(cache);
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>{280, 204});
  auto const plan_of = [&](std::vector<std::int32_t> const& lengths) {
    auto compaction = ha::Compaction(table, lengths).on_device(d_table.view(), d_lengths.data());
    compaction.d_status = d_status.data();
    compaction.d_kept = d_kept.data();
    return compaction;
  };
  auto const call = [&](auto const& compaction, ha::KeyRotation const& turning) {
    auto const error = ha::device::compress_in_place(compaction, source.layers, layout, turning, nullptr);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    return error;
  };
  // The host sees it in the compaction.
  REQUIRE(plan_of({280, 205}).min_evicted == 1);
  REQUIRE(call(plan_of({280, 205}), rotation) == cudaErrorInvalidValue);
  for (char const* const part : {"KeyRotation::evicting(1) if these keys", "layer 0, sequence 1, KV head 0"}) {
    REQUIRE(std::string(ha::last_error_message()).find(part) != std::string::npos);
  }
  REQUIRE(call(plan_of({280, 267}), rotation) == cudaErrorInvalidValue);
  REQUIRE(first_difference(source.tensor(0), cache.keys[0]) == "");
  // Lengths that came after it only the kernel sees: that head stays as it is, all its tokens still there; the other
  // turns.
  REQUIRE_CUDA(cudaMemcpy(d_lengths.data() + 1, std::vector<std::int32_t>{267}.data(), 4, cudaMemcpyHostToDevice));
  REQUIRE(call(plan_of({280, 280}), rotation) == cudaSuccess);
  REQUIRE(d_status.host()[0] == 1);
  REQUIRE(d_kept.host() == std::vector<std::int32_t>{204, 267});
  auto expected = cache;
  ha::compress_in_place(ha::Compaction(table, std::vector<std::int32_t>{280, 204}), expected.layers(), layout,
                        rotation);
  REQUIRE(first_difference(source.tensor(1), expected.values[0]) == "");
  auto const half = static_cast<std::ptrdiff_t>(cache.keys[0].size() / 2);
  auto const keys = source.tensor(0);
  REQUIRE(std::vector(keys.begin() + half, keys.end()) ==
          std::vector(cache.keys[0].begin() + half, cache.keys[0].end()));
  // Enough of them, and a caller that says how many are enough.
  REQUIRE(call(plan_of({280, 280}), rotation.evicting(63)) == cudaSuccess);
  REQUIRE(d_status.host()[0] == 0);
  REQUIRE(d_kept.host()[1] == 204);
}

namespace {

__global__ void convert_half(std::uint32_t const* floats, std::int32_t count, std::uint16_t* halves,
                             std::uint16_t* brains) {
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < count; i += static_cast<std::int32_t>(blockDim.x)) {
    float const value = ha::detail::bits_as<float>(floats[i]);
    halves[i] = ha::from_float<ha::float16>(value).bits;
    brains[i] = ha::from_float<ha::bfloat16>(value).bits;
  }
}

__global__ void widen_half(std::uint32_t* halves, std::uint32_t* brains) {
  for (std::uint32_t i = threadIdx.x; i < 65536; i += blockDim.x) {
    halves[i] = ha::detail::bits_as<std::uint32_t>(ha::to_float(ha::float16{static_cast<std::uint16_t>(i)}));
    brains[i] = ha::detail::bits_as<std::uint32_t>(ha::to_float(ha::bfloat16{static_cast<std::uint16_t>(i)}));
  }
}

}  // namespace

TEST_CASE("on the device half-precision numbers convert as on the host", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr unsigned seed = 525;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::vector<std::uint32_t> floats{0,          1,          0x7fffff,   0x800000,   0x33000000, 0x33000001, 0x387fffff,
                                    0x38800000, 0x477fefff, 0x477ff000, 0x7f7f7fff, 0x7f7f8000, 0x7f800000, 0x7fc00000};
  for (int i = 0; i < 20000; ++i) floats.push_back(static_cast<std::uint32_t>(random()));
  for (int i = 0; i < 20000; ++i) floats.push_back(0x33000000U + static_cast<std::uint32_t>(random()) % 0x14800000U);
  DeviceVector<std::uint32_t> const d_floats(floats);
  DeviceVector<std::uint16_t> const d_halves(std::vector<std::uint16_t>(floats.size()));
  DeviceVector<std::uint16_t> const d_brains(std::vector<std::uint16_t>(floats.size()));
  convert_half<<<1, 256>>>(d_floats.data(), static_cast<std::int32_t>(floats.size()), d_halves.data(), d_brains.data());
  REQUIRE_CUDA(cudaDeviceSynchronize());
  auto const halves = d_halves.host();
  auto const brains = d_brains.host();
  FirstDifference difference;
  for (std::size_t i = 0; i < floats.size(); ++i) {
    float const value = ha::detail::bits_as<float>(floats[i]);
    difference.expect(halves[i], ha::from_float<ha::float16>(value).bits, "float16 of float bits ", floats[i]);
    difference.expect(brains[i], ha::from_float<ha::bfloat16>(value).bits, "bfloat16 of float bits ", floats[i]);
  }
  REQUIRE(difference.text() == "");

  DeviceVector<std::uint32_t> const d_wide_halves(std::vector<std::uint32_t>(65536));
  DeviceVector<std::uint32_t> const d_wide_brains(std::vector<std::uint32_t>(65536));
  widen_half<<<1, 256>>>(d_wide_halves.data(), d_wide_brains.data());
  REQUIRE_CUDA(cudaDeviceSynchronize());
  auto const wide_halves = d_wide_halves.host();
  auto const wide_brains = d_wide_brains.host();
  for (std::uint32_t i = 0; i < 65536; ++i) {
    float const half = ha::to_float(ha::float16{static_cast<std::uint16_t>(i)});
    difference.expect(wide_halves[i], ha::detail::bits_as<std::uint32_t>(half), "float of float16 bits ", i);
    difference.expect(wide_brains[i], i << 16, "float of bfloat16 bits ", i);
  }
  REQUIRE(difference.text() == "");
}
