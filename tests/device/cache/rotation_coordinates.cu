// Keys whose positions have several coordinates turn on the device as on the CPU.

#include "support/coordinates_problem.hpp"
#include "support/device.hpp"
#include "support/device_cache.cuh"

#include <headaware/cache/compact.cuh>

#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("keys of several coordinates turn each pair by its own on the device", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (bool const to_rows : {true, false}) {
    CoordinatesProblem problem(to_rows);
    DeviceVector<std::int32_t> const from(problem.from);
    DeviceVector<std::int32_t> const to(problem.to);
    DeviceVector<float> const source(problem.cache.keys[0]);
    DeviceVector<float> const source_values(problem.cache.values[0]);
    std::vector<float> const empty(static_cast<std::size_t>(problem.compaction.kept_total() * problem.dim));
    DeviceVector<float> const keys(empty);
    DeviceVector<float> const values(empty);
    auto const& table = problem.compaction.table();
    DeviceVector<std::byte> const d_table(std::vector<std::byte>(table.bytes().begin(), table.bytes().end()));
    DeviceVector<std::int32_t> const lengths(problem.lengths);
    auto const compaction = problem.compaction.on_device(table.view_at(d_table.data()), lengths.data());
    std::vector<ha::LayerKv<float>> const layers{{source.data(), source_values.data()}};
    auto const rotation = problem.rotation(from.data(), to.data());
    auto const transfer =
        ha::transfer(layers, problem.layout, ha::ragged(problem.compaction, keys.data(), values.data(), problem.dim))
            .rotate_keys(rotation);
    std::size_t bytes = 0;
    REQUIRE_CUDA(ha::device::compress(nullptr, bytes, compaction, transfer, nullptr));
    DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{1}));
    REQUIRE_CUDA(ha::device::compress(temp.data(), bytes, compaction, transfer, nullptr));
    REQUIRE_CUDA(ha::device::compress_in_place(compaction, layers, problem.layout, rotation, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    CHECK(problem.difference(keys.host()) == "");
    auto const moved = source.host();
    std::vector<float> in_place;
    KeptTokens(table, problem.lengths).for_each_row([&](auto, auto b, auto h, auto row, auto) {
      for (std::int64_t c = 0; c < problem.dim; ++c) {
        in_place.push_back(moved[static_cast<std::size_t>(problem.layout.offset(b, h, row, c))]);
      }
    });
    CHECK(problem.difference(in_place) == "");
  }
}
