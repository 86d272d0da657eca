// Row formats on the device: the very bits of the CPU, both ways.

#include "support/catch.hpp"
#include "support/device.hpp"
#include "support/device_tokens.cuh"
#include "support/format_rows.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

/// One thread a row.
template <class F>
__global__ void code_rows(F format, float const* rows, std::int64_t count, std::int64_t channels, std::uint32_t* words,
                          float* decoded) {
  std::int64_t const row = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= count) return;
  std::uint32_t* const own = words + row * ha::row_words<F>(channels);
  ha::encode_row(format, rows + row * channels, channels, own);
  ha::decode_row(format, own, channels, decoded + row * channels);
}

/// Not by `visit`: of the kernel that is first named where only the type of a result is asked for, nvcc emits nothing.
template <class... Formats>
void launch(ha::AnyFormat<ha::FormatRegistry<Formats...>> const& format, float const* rows, std::int64_t count,
            std::int64_t channels, std::uint32_t* words, float* decoded) {
  auto const run = [&]<class F>(F const& f) { code_rows<F><<<1, 64>>>(f, rows, count, channels, words, decoded); };
  (void)((format.template is<Formats>() && (run(format.template get<Formats>()), true)) || ...);
}

}  // namespace

TEST_CASE("formats on the device have the CPU's bits", "[format]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const channels : {128, 80}) {
    FormatRows const rows = hard_rows(channels);
    std::vector<float> all;
    for (auto const& [name, row] : rows) all.insert(all.end(), row.begin(), row.end());
    DeviceVector<float> const d_rows(all);
    DeviceVector<float> const d_decoded(std::vector<float>(all.size(), 77));
    auto const count = static_cast<std::int64_t>(rows.size());
    for (ha::AnyFormat<> const& format : all_formats()) {
      auto const words = static_cast<std::size_t>(format.row_words(channels));
      DeviceVector<std::uint32_t> const d_words(std::vector<std::uint32_t>(words * rows.size(), 0xdeadbeefU));
      launch(format, d_rows.data(), count, channels, d_words.data(), d_decoded.data());
      REQUIRE(cudaGetLastError() == cudaSuccess);
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      auto const got_words = d_words.host();
      auto const got = d_decoded.host();
      for (std::size_t r = 0; r < rows.size(); ++r) {
        INFO(format.name() << ", " << channels << " channels, " << rows[r].first);
        CodedRow const expected = code_row(format, rows[r].second);
        CHECK(std::memcmp(got_words.data() + r * words, expected.words.data(), 4 * words) == 0);
        auto const first = got.begin() + static_cast<std::ptrdiff_t>(r * static_cast<std::size_t>(channels));
        bool same = true;
        for (std::size_t i = 0; i < expected.decoded.size(); ++i) {
          float const a = first[static_cast<std::ptrdiff_t>(i)];
          float const b = expected.decoded[i];
          same = same && (std::memcmp(&a, &b, 4) == 0 || (a != a && b != b));
        }
        CHECK(same);
      }
    }
  }
}
