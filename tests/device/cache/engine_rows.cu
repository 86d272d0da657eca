// Rows that engines have encoded go into packed caches and back on the device: every byte is the CPU's, gaps included.

#include "support/device_arena.cuh"
#include "support/device_cache.cuh"
#include "support/engine_rows.hpp"

#include <headaware/cache/engine_rows.cuh>
#include <headaware/cache/engine_rows.hpp>
#include <headaware/cache/engine_rows_plan.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

/// Tensors of two layers on the device, `shift` bytes after an aligned address.
struct DeviceTensors {
  std::vector<DeviceVector<std::byte>> buffers;
  std::int64_t shift;

  DeviceTensors(std::vector<Bytes> const& keys, std::vector<Bytes> const& values, std::int64_t bytes) : shift(bytes) {
    for (auto const* const tensor : {&keys[0], &values[0], &keys[1], &values[1]}) {
      Bytes shifted(at(shift));
      shifted.insert(shifted.end(), tensor->begin(), tensor->end());
      buffers.emplace_back(shifted);
    }
  }
  template <class Byte>
  [[nodiscard]] std::vector<ha::LayerKv<Byte>> layers() const {
    return {{buffers[0].data() + shift, buffers[1].data() + shift},
            {buffers[2].data() + shift, buffers[3].data() + shift}};
  }
  /// Whether these are the bytes.
  [[nodiscard]] bool hold(std::vector<Bytes> const& keys, std::vector<Bytes> const& values) const {
    bool same = true;
    std::size_t i = 0;
    for (auto const* const tensor : {&keys[0], &values[0], &keys[1], &values[1]}) {
      Bytes const got = buffers[i++].host();
      same = same && std::equal(tensor->begin(), tensor->end(), got.begin() + shift, got.end());
    }
    return same;
  }
};

/// @param on_host, on_device  the cache without buffers, with what it reads there
template <class Form>
void check_both_ways(EngineProblem& p, std::int64_t shift, ha::PackedDestination<Form> const& on_host,
                     ha::PackedDestination<Form> const& on_device) {
  ha::Compaction const compaction(p.table, p.lengths);
  std::vector<ha::RowUnit> units(at(on_host.total_units()), ha::RowUnit{{0xabababab, 1, 2, 3}});
  DeviceVector<ha::RowUnit> const d_units(units);
  ha::import_rows(compaction, EngineProblem::layers<std::byte const>(p.keys, p.values), p.layouts(),
                  on_host.with_buffer(units.data()));
  DeviceTensors const source(p.keys, p.values, shift);
  ha::EngineRowsPlan const plan(compaction, on_device);
  DeviceVector<std::byte> const d_plan(std::vector<std::byte>(plan.bytes().begin(), plan.bytes().end()));
  DeviceTable const d_table(p.table);
  DeviceVector<std::int32_t> const d_lengths(p.lengths);
  auto const cache = on_device.with_buffer(d_units.data());
  REQUIRE_CUDA(ha::device::import_rows(compaction.on_device(d_table.view(), d_lengths.data()), plan, d_plan.data(),
                                       source.layers<std::byte const>(), p.layouts(), cache, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(d_units.host() == units);

  std::vector<Bytes> keys(2, Bytes(p.keys[0].size(), std::byte{0x5a}));
  std::vector<Bytes> values(2, Bytes(p.values[0].size(), std::byte{0x5a}));
  DeviceTensors const target(keys, values, shift);
  ha::export_rows(compaction, on_host.with_buffer(units.data()), EngineProblem::layers<std::byte>(keys, values),
                  p.layouts());
  REQUIRE_CUDA(ha::device::export_rows(plan, d_plan.data(), cache, target.layers<std::byte>(), p.layouts(), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(target.hold(keys, values));
}

}  // namespace

TEST_CASE("engines' rows come in and go out on the device as on the CPU", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::int64_t gap = 0;
  for (EngineCase const& of : engine_cases()) {
    for (std::int64_t const shift : {0, 2}) {
      gap = (gap + 2) % 6;
      INFO(of.formats.name() << ", " << of.head_dim << " and " << of.value_dim << " channels, a gap of " << gap
                             << ", a shift of " << shift);
      EngineProblem p(of.formats, of.head_dim, of.value_dim, gap);
      ha::Compaction const compaction(p.table, p.lengths);
      auto const formats = p.format_table();
      auto const ragged = ha::packed_ragged(compaction, formats, p.head_dim, p.value_dim);
      check_both_ways(p, shift, ragged, ragged);
      auto const padded = ha::packed_padded(compaction, formats, p.head_dim, ha::Alignment::right, p.value_dim);
      check_both_ways(p, shift, padded, padded);
      ha::RollingSlots const slots(p.table, 3, {.max_tokens = 20, .slack = 2});
      DeviceVector<std::byte> const d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
      check_both_ways(p, shift, ha::packed_rolling(slots, slots.view(), formats, p.head_dim, p.value_dim),
                      ha::packed_rolling(slots, slots.view_at(d_heads.data()), formats, p.head_dim, p.value_dim));
    }
  }
}

TEST_CASE("a device refuses engines' rows that are not the formats'", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  EngineProblem const p({ha::LlamaQ8{}, ha::LlamaQ4{}}, 64, 64, 0);
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.format_table(), 64);
  std::vector<ha::RowUnit> const marked(at(planned.total_units()), ha::RowUnit{{0xabababab, 1, 2, 3}});
  DeviceVector<ha::RowUnit> const d_units(marked);
  auto const cache = planned.with_buffer(d_units.data());
  DeviceTensors const source(p.keys, p.values, 0);
  ha::EngineRowsPlan const plan(compaction, planned);
  DeviceVector<std::byte> const d_plan(std::vector<std::byte>(plan.bytes().begin(), plan.bytes().end()));
  DeviceTable const d_table(p.table);
  DeviceVector<std::int32_t> const d_lengths(p.lengths);
  auto const d_compaction = compaction.on_device(d_table.view(), d_lengths.data());
  auto const layers = source.layers<std::byte>();
  auto const good = p.layouts();
  auto const refused = [&](void const* at_plan, auto const& of, auto const& layouts, auto const& to, char const* why) {
    CHECK(ha::device::import_rows(d_compaction, plan, at_plan, of, layouts, to, nullptr) == cudaErrorInvalidValue);
    INFO(ha::last_error_message());
    CHECK(std::string(ha::last_error_message()).find(why) != std::string::npos);
    CHECK(ha::device::export_rows(plan, at_plan, to, of, layouts, nullptr) == cudaErrorInvalidValue);
    CHECK(std::string(ha::last_error_message()).find(why) != std::string::npos);
  };
  using Layouts = ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>;
  refused(nullptr, layers, good, cache, "plan");
  refused(d_plan.data() + 8, layers, good, cache, "aligned to 16 bytes");
  refused(d_plan.data(), layers, Layouts{good.values, good.keys}, cache, "bytes of an engine's row");
  refused(d_plan.data(), layers, Layouts{{{3, 3, 13, 68}, {13 * 204, 66, 204, 1}}, good.values}, cache, "strides");
  refused(d_plan.data(), DeviceTensors(p.keys, p.values, 1).layers<std::byte>(), good, cache, "multiple of 2 bytes");
  refused(d_plan.data(), layers, good, planned, "buffers of 2 layers");
  refused(d_plan.data(), layers, good, planned.with_buffer(nullptr), "nullptr");
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(d_units.host() == marked);
}
