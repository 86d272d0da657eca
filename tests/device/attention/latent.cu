// Attention over latents on CUDA, against plain double-precision loops.

#include "support/device_attention.cuh"

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace {

/// @param shift  elements by which the rows miss their alignment
template <class O, class Q = float, class T, class Make>
void check_device(HeldProblem<T> const& p, PlacedRows<T> const& placed, Make const& make, Attended const& expected,
                  std::size_t shift = 0) {
  DeviceUpload const upload;
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = upload(p.first_positions);
  if (!p.sinks.empty()) options.sinks = upload(p.sinks);
  std::vector<T> rows = placed.keys;
  rows.insert(rows.begin(), shift, T{});
  DeviceVector<T> const d_rows(rows);
  std::vector<Q> queries;
  for (float const x : p.queries) queries.push_back(ha::from_float<Q>(x));
  DeviceVector<Q> const d_queries(queries);
  DeviceVector<O> const d_output(std::vector<O>(expected.output.size(), ha::from_float<O>(77)));
  DeviceVector<float> const d_lse(std::vector<float>(expected.lse.size(), 77));
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{-7});
  run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
             ha::LatentCache{d_rows.data() + shift, make(upload)},
             ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()}, {p.total_rows(), d_status.data()},
             options);
  REQUIRE(d_status.host()[0] == 0);
  check_attended(d_output.host(), d_lse.host(), expected);
}

struct Sizes {
  std::int32_t heads;
  std::int32_t tokens;
  std::int32_t keys;
  std::int32_t values;
};
constexpr Sizes masked_sizes[] = {{16, 1, 304, 256}, {2, 9, 112, 64}};

}  // namespace

TEMPLATE_TEST_CASE("device attention: latents of DeepSeek's size", "[attention]", ha::float16, ha::bfloat16) {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [heads, rows] : {std::pair{16, 1111}, std::pair{128, 70}}) {
    auto p = latent_problem<TestType>({3, heads, 1, 1, 576, 512}, {rows, 0, 33}, 3);
    p.options.scale = 0.0721688F;
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const& name, PlacedRows<TestType> const& placed, auto const& make) {
      INFO(name << ", " << heads << " heads");
      if constexpr (makes<Ragged, decltype(make)>) check_device<float>(p, placed, make, expected);
      if constexpr (makes<ha::PagedView, decltype(make)>) {
        if (name == "paged, CSR, 16") check_device<TestType>(p, placed, make, expected);
      }
    });
  }
}

TEMPLATE_TEST_CASE("device attention: latents of other sizes, groups, sinks and addresses", "[attention]", float,
                   ha::float16) {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const heads : {1, 3, 8, 9, 33}) {
    for (auto const& [keys, values] : {std::pair{24, 16}, std::pair{22, 18}, std::pair{288, 256}, std::pair{32, 1}}) {
      INFO(heads << " heads, " << keys << " and " << values << " channels");
      auto p = latent_problem<TestType>({4, heads, 1, 1, keys, values}, {0, 1, 65, 200}, 5);
      p.options = {.scale = 0.1F, .soft_cap = heads == 3 ? 2.0F : 0.0F};
      if (heads == 9) p.sinks = std::vector<float>(9, 1.5F);
      Attended const expected = naive_attention(p);
      for_each_view(p, true, [&](std::string const& name, PlacedRows<TestType> const& placed, auto const& make) {
        INFO(name);
        if constexpr (makes<Ragged, decltype(make)>) check_device<float>(p, placed, make, expected, heads == 8 ? 1 : 0);
        if constexpr (makes<ha::PaddedView, decltype(make)> || makes<ha::PagedView, decltype(make)>) {
          if (name == "padded" || name == "paged, dense, 5") check_device<float>(p, placed, make, expected);
        }
      });
    }
  }
}

TEST_CASE("device attention: a latent of many splits and tiles of queries, and a chunk", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  auto many = latent_problem<ha::float16>({2, 40, 1, 1, 24, 16}, {5000, 1025}, 6);
  many.sinks = std::vector<float>(40, 2.0F);
  auto wide = latent_problem<ha::float16>({2, 40, 1, 1, 32, 16}, {5000, 1025}, 6);
  auto chunk = latent_problem<ha::float16>({2, 8, 1, 9, 40, 32}, {300, 700}, 11);
  chunk.first_positions = {0, 691};
  auto wide_chunk = latent_problem<ha::float16>({2, 8, 1, 9, 48, 32}, {300, 700}, 11);
  wide_chunk.first_positions = {0, 691};
  for (auto const* const p : {&many, &wide, &chunk, &wide_chunk}) {
    Attended const expected = naive_attention(*p);
    for_each_view(*p, true, [&](std::string const&, PlacedRows<ha::float16> const& placed, auto const& make) {
      if constexpr (makes<Ragged, decltype(make)>) check_device<float>(*p, placed, make, expected);
    });
  }
}

TEMPLATE_TEST_CASE("device attention: latents with masks, windows, learned sinks and a soft cap in every form",
                   "[attention]", ha::float16, ha::bfloat16) {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [heads, tokens, keys, values] : masked_sizes) {
    auto p = latent_problem<TestType>({3, heads, 1, tokens, keys, values}, {tokens + 8, 333, 90}, 13);
    p.options.scale = 0.2F;
    p.options.soft_cap = 3;
    p.options.window = 70;
    p.first_positions = std::vector<std::int32_t>{0, 333 - tokens, -5};  // some queries see nothing but their sinks
    for (std::int32_t h = 0; h < heads; ++h) p.sinks.push_back(static_cast<float>(h % 4) - 1);
    for (float& x : p.queries) x = ha::to_float(ha::from_float<TestType>(x));
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const& name, PlacedRows<TestType> const& placed, auto const& make) {
      INFO(name << ", " << heads << " heads");
      check_device<TestType, TestType>(p, placed, make, expected);
    });
  }
}

TEST_CASE("device attention: what a latent's memory and kernels do not hold is refused", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  DeviceVector<float> const d_data(std::vector<float>(64));
  DeviceVector<std::int32_t> const d_offsets(std::vector<std::int32_t>{0, 1});
  DeviceVector<std::byte> const d_temp(std::vector<std::byte>(1 << 20));
  auto const call = [&](std::int64_t keys, std::int64_t values, void* temp) {
    auto const layout = ha::strided_bhsd(1, 1, 1, std::max(keys, values));
    std::size_t bytes = 1 << 20;
    return ha::device::attend(temp, bytes, {1, 1, 1, 1, keys, values}, ha::AttentionQueries{d_data.data(), layout},
                              ha::LatentCache{d_data.data(), ha::RaggedView{d_offsets.data(), 1}},
                              ha::AttentionOutput{d_data.data(), layout}, {1}, {}, nullptr);
  };
  CHECK(call(576, 512, nullptr) == cudaSuccess);
  CHECK(call(576, 513, nullptr) == cudaErrorInvalidValue);
  CHECK(std::string(ha::last_error_message()).find("512") != std::string::npos);
  CHECK(call(1 << 30, 16, nullptr) == cudaErrorInvalidValue);
  CHECK(call(24, 25, d_temp.data()) == cudaErrorInvalidValue);
  CHECK(call(4000, 16, d_temp.data()) == cudaErrorInvalidValue);
  CHECK(std::string(ha::last_error_message()).find("shared memory") != std::string::npos);
  // The layout of shared memory for all sizes that models have.
  for (std::int32_t const queries : {8, 16, 32}) {
    std::int32_t const limit = (queries == 32 ? 160 : 97) * 1024;
    for (std::int64_t keys = 1; keys <= 640; ++keys) {
      auto const memory = ha::detail::AttendMemory::of<ha::float16>(keys, 0, queries, 4, limit, 48 * 1024, 32);
      bool const fits = memory.bytes <= limit && memory.tile_rows >= 32 && memory.tile_rows <= 64;
      if (!fits) FAIL(keys << " channels, " << queries << " queries");
    }
  }
}
