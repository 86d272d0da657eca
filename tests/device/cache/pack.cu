// Compaction into encoded rows on the device: every unit is the CPU's, gaps included.

#include "support/device_cache.cuh"
#include "support/packed_cache.hpp"
#include "support/table_upload.hpp"

#include <headaware/cache/pack.cuh>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

template <class T, class Form, class Rotation>
void check_units(PackedProblem<T> const& p, ha::PackedDestination<Form> const& planned, Rotation const& rotation) {
  ha::Compaction const compaction(p.table, p.lengths);
  std::vector<ha::RowUnit> expected(at(planned.total_units()), ha::RowUnit{{0xabababab, 1, 2, 3}});
  DeviceVector<ha::RowUnit> const d_rows(expected);
  ha::compress(compaction, p.layers, p.source(), planned.with_buffer(expected.data()), rotation);
  std::vector<DeviceVector<T>> tensors;
  std::vector<ha::LayerKv<T const>> layers;
  for (std::size_t layer = 0; layer < 2; ++layer) {
    tensors.emplace_back(p.keys[layer]);
    tensors.emplace_back(p.values[layer]);
    layers.push_back({tensors[2 * layer].data(), tensors[2 * layer + 1].data()});
  }
  DeviceVector<std::byte> const d_table(std::vector<std::byte>(p.table.bytes().begin(), p.table.bytes().end()));
  DeviceVector<std::int32_t> const d_lengths(p.lengths);
  auto const on_device = compaction.on_device(p.table.view_at(d_table.data()), d_lengths.data());
  ha::PackPlan<> const plan(compaction, planned);
  DeviceVector<std::byte> const d_plan(std::vector<std::byte>(plan.bytes().begin(), plan.bytes().end()));
  REQUIRE_CUDA(ha::device::compress(on_device, plan, d_plan.data(), layers, p.source(),
                                    planned.with_buffer(d_rows.data()), rotation, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  auto const got = d_rows.host();
  std::size_t wrong = 0;
  for (std::size_t u = 0; u < got.size(); ++u) wrong += got[u] == expected[u] ? 0 : 1;
  CHECK(wrong == 0);
}

}  // namespace

TEMPLATE_TEST_CASE("packing on the device is the CPU's", "[cache]", float, ha::float16, ha::bfloat16) {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{80, 36}}) {
    INFO(keys << " and " << values << " channels");
    PackedProblem<TestType> const p(keys, values, {100, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    ha::KeepPositions const stay;
    check_units(p, ha::packed_ragged(compaction, p.formats, keys, values), stay);
    check_units(p, ha::packed_padded(compaction, p.formats, keys, ha::Alignment::right, values), stay);
    check_units(p, ha::packed_grouped(compaction, p.formats, keys, values), stay);
  }
}
