// Packed caches written again in other formats on the device: every unit is the CPU's, gaps included.

#include "support/device_cache.cuh"
#include "support/packed_cache.hpp"

#include <headaware/cache/packed_pages.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/transcode.cuh>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

std::vector<ha::RowUnit> marked(std::int64_t units) {
  return std::vector<ha::RowUnit>(at(units), ha::RowUnit{{0xabababab, 1, 2, 3}});
}

/// @param source        what `from` holds
/// @param from, to      on the host
/// @param d_from, d_to  the same with what they read on the device
template <class From, class To>
void check_transcode(PackedProblem<float> const& p, std::vector<ha::RowUnit>& source,
                     ha::PackedDestination<From> const& from, ha::PackedDestination<To> const& to,
                     ha::PackedDestination<From> const& d_from, ha::PackedDestination<To> const& d_to) {
  ha::Compaction const compaction(p.table, p.lengths);
  auto expected = marked(to.total_units());
  DeviceVector<ha::RowUnit> const d_source(source);
  DeviceVector<ha::RowUnit> const d_rows(expected);
  ha::transcode(compaction, from.with_buffer(source.data()), to.with_buffer(expected.data()));
  ha::TranscodePlan<> const plan(compaction, d_from, d_to);
  DeviceVector<std::byte> const d_plan(std::vector<std::byte>(plan.bytes().begin(), plan.bytes().end()));
  REQUIRE_CUDA(ha::device::transcode(plan, d_plan.data(), d_from.with_buffer(d_source.data()),
                                     d_to.with_buffer(d_rows.data()), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  auto const got = d_rows.host();
  std::size_t wrong = 0;
  for (std::size_t u = 0; u < got.size(); ++u) wrong += got[u] == expected[u] ? 0 : 1;
  CHECK(wrong == 0);
}

template <class From, class To>
void check_transcode(PackedProblem<float> const& p, ha::PackedDestination<From> const& from,
                     ha::PackedDestination<To> const& to, ha::PackedDestination<From> const& d_from,
                     ha::PackedDestination<To> const& d_to) {
  auto source = marked(from.total_units());
  ha::compress(ha::Compaction(p.table, p.lengths), p.layers, p.source(), from.with_buffer(source.data()));
  check_transcode(p, source, from, to, d_from, d_to);
}

template <class From, class To>
void check_transcode(PackedProblem<float> const& p, ha::PackedDestination<From> const& from,
                     ha::PackedDestination<To> const& to) {
  check_transcode(p, from, to, from, to);
}

/// Pages with tables on the device.
struct DeviceHeadPages {
  DeviceVector<std::byte> heads;
  DeviceVector<std::int32_t> table;
  ha::PackedDestination<ha::HeadPagesForm> rows;

  explicit DeviceHeadPages(PackedHeadPages<float> const& of)
      : heads(std::vector<std::byte>(of.pages.head_bytes().begin(), of.pages.head_bytes().end())),
        table(std::vector<std::int32_t>(of.pages.table().begin(), of.pages.table().end())),
        rows(ha::packed_head_pages(of.pages, of.pages.view_at(heads.data(), table.data()), of.cache)) {}
};

}  // namespace

TEST_CASE("transcoding on the device is the CPU's", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{80, 36}}) {
    INFO(keys << " and " << values << " channels");
    PackedProblem<float> const p(keys, values, {100, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const formats = p.other_formats();
    auto const ragged = ha::packed_ragged(compaction, p.formats, keys, values);
    check_transcode(p, ragged, ha::packed_ragged(compaction, formats, keys, values));
    check_transcode(p, ragged, ha::packed_padded(compaction, formats, keys, ha::Alignment::right, values));
    check_transcode(p, ha::packed_grouped(compaction, formats, keys, values), ragged);
  }
}

TEST_CASE("transcoding of a rolling cache on the device is the CPU's", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  PackedProblem<float> const p(64, 64, {100, 7});
  ha::Compaction const compaction(p.table, p.lengths);
  ha::RollingSlots const slots(p.table, 2, {.max_tokens = 128, .slack = 3});
  DeviceVector<std::byte> const d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  auto const rolling = ha::packed_rolling(slots, slots.view(), p.formats, 64);
  auto const d_rolling = ha::packed_rolling(slots, slots.view_at(d_heads.data()), p.formats, 64);
  auto const ragged = ha::packed_ragged(compaction, p.other_formats(), 64);
  check_transcode(p, rolling, ragged, d_rolling, ragged);
  check_transcode(p, ragged, rolling, ragged, d_rolling);
}

TEST_CASE("transcoding of pages of single heads on the device is the CPU's", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{80, 36}}) {
    INFO(keys << " and " << values << " channels");
    PackedProblem<float> const p(keys, values, {100, 7, 0});
    PackedHeadPages<float> const from(p, p.formats);
    PackedHeadPages<float> const to(p, p.other_formats());
    DeviceHeadPages const d_from(from);
    DeviceHeadPages const d_to(to);
    auto source = marked(from.rows().total_units());
    from.fill(p, source.data());
    check_transcode(p, source, from.rows(), to.rows(), d_from.rows, d_to.rows);
    ha::Compaction const compaction(p.table, p.lengths);
    auto const ragged = ha::packed_ragged(compaction, p.other_formats(), keys, values);
    check_transcode(p, source, from.rows(), ragged, d_from.rows, ragged);
  }
}

TEST_CASE("transcoding on the device refuses caches that are not the plan's", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  PackedProblem<float> const p(64, 64, {40, 7});
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.formats, 64);
  DeviceVector<ha::RowUnit> const d_from(marked(planned.total_units()));
  DeviceVector<ha::RowUnit> const d_to(marked(planned.total_units()));
  ha::TranscodePlan<> const plan(compaction, planned, planned);
  DeviceVector<std::byte> const d_plan(std::vector<std::byte>(plan.bytes().begin(), plan.bytes().end()));
  auto const refused = [&](auto const& from, auto const& to, void const* at, char const* why) {
    CHECK(ha::device::transcode(plan, at, from, to, nullptr) == cudaErrorInvalidValue);
    INFO(ha::last_error_message());
    CHECK(std::string(ha::last_error_message()).find(why) != std::string::npos);
  };
  auto const from = planned.with_buffer(d_from.data());
  auto const to = planned.with_buffer(d_to.data());
  refused(from, from, d_plan.data(), "overlapping buffers");
  refused(planned, to, d_plan.data(), "source");
  refused(from, planned.with_buffer(nullptr), d_plan.data(), "nullptr");
  refused(from, to, nullptr, "plan");
  refused(from, to, d_plan.data() + 8, "aligned");
  ha::Compaction const longer(p.table, std::vector<std::int32_t>{40, 7, 9});
  auto const other = ha::packed_ragged(longer, p.formats, 64);
  DeviceVector<ha::RowUnit> const d_other(marked(other.total_units()));
  refused(other.with_buffer(d_other.data()), other.with_buffer(d_to.data()), d_plan.data(), "plan's segments");
  PackedHeadPages<float> shared(p, p.formats);
  shared.pages.release(1);
  shared.pages.fork(0, 1);
  DeviceHeadPages const d_shared(shared);
  DeviceVector<ha::RowUnit> const d_pool(marked(d_shared.rows.total_units()));
  refused(from, d_shared.rows.with_buffer(d_pool.data()), d_plan.data(), "shared");
  refused(from, d_shared.rows.with_buffer(nullptr), d_plan.data(), "nullptr");
  PackedProblem<float> const q(64, 32, {40, 7});
  auto const narrow = ha::packed_ragged(compaction, p.formats, 64, 32);
  refused(from, narrow.with_buffer(d_to.data()), d_plan.data(), "source's channels");
}
