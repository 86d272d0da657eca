// Pages of single heads that hold encoded rows, on the device: what appends write, and attention over it.

#include "support/device_attention.cuh"
#include "support/packed_pages.hpp"

#include <headaware/attention/head_pages_view.hpp>
#include <headaware/cache/packed_pages.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace {

/// The model's pool and tables on the device.
template <class T>
struct DevicePages {
  PackedPagesModel<T>& m;
  DeviceVector<ha::RowUnit> pool;
  DeviceVector<ha::PackedSegment<>> segments;
  DeviceVector<std::byte> heads;
  ha::PackedPages<> cache;

  explicit DevicePages(PackedPagesModel<T>& of)
      : m(of),
        pool(std::vector<ha::RowUnit>(at(900 * m.planned.page_units), ha::RowUnit{{~0U, ~0U, ~0U, ~0U}})),
        segments(m.planned.segments),
        heads(std::vector<std::byte>(m.pages.head_bytes().begin(), m.pages.head_bytes().end())),
        cache(m.planned.with_pool(pool.data())) {}

  /// @return copies on write
  std::size_t append(typename PackedPagesModel<T>::Counts const& counts) {
    auto const news = m.append(counts);
    DeviceVector<std::int32_t> const table(std::vector<std::int32_t>(m.pages.table().begin(), m.pages.table().end()));
    DeviceVector<std::int32_t> const lengths(news.step.lengths);
    DeviceVector<std::int32_t> const high_water(news.step.high_water);
    DeviceVector<std::int32_t> const d_counts(news.step.counts);
    DeviceVector<ha::PageCopy> const copies(news.step.copies);
    DeviceVector<std::int32_t> const status(std::vector<std::int32_t>{0});
    std::vector<DeviceVector<T>> tensors;
    for (auto const& tensor : news.tensors) tensors.emplace_back(tensor);
    std::vector<ha::LayerKv<T const>> const layers{{tensors[0].data(), tensors[1].data()},
                                                   {tensors[2].data(), tensors[3].data()}};
    ha::DevicePageStep const step{.d_lengths = lengths.data(),
                                  .d_high_water = high_water.data(),
                                  .d_counts = d_counts.data(),
                                  .d_copies = copies.data(),
                                  .num_copies = static_cast<std::int32_t>(news.step.copies.size()),
                                  .max_count = news.step.max_count,
                                  .d_status = status.data(),
                                  .generation = news.step.generation};
    REQUIRE_CUDA(ha::device::append(m.pages.view_at(heads.data(), table.data()), step, layers,
                                    m.layout(news.step.max_count), cache, segments.data(), 0, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    CHECK(status.host()[0] == 0);
    CHECK(m.wrong_rows(pool.host()) == 0);
    return news.step.copies.size();
  }
  void check_attention() const {
    DeviceVector<std::int32_t> const table(std::vector<std::int32_t>(m.pages.table().begin(), m.pages.table().end()));
    DeviceUpload const upload;
    auto const* const lengths =
        upload(std::vector<std::int32_t>(m.pages.state().lengths().begin(), m.pages.state().lengths().end()));
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      HeldProblem<float> const held = m.held(at(layer));
      Attended const expected = naive_attention(held);
      DeviceVector<float> const queries(held.queries);
      DeviceVector<float> const output(std::vector<float>(expected.output.size(), 77));
      DeviceVector<float> const lse(std::vector<float>(expected.lse.size(), 77));
      ha::HeadPagesView const view(m.pages.view_at(heads.data(), table.data()), layer, lengths, cache.page_units);
      run_attend(held.shape, ha::AttentionQueries{queries.data(), held.query_layout()},
                 ha::PackedCache<ha::DefaultFormats, ha::HeadPagesView>{
                     cache.rows, segments.data() + cache.first_segments[at(layer)], view},
                 ha::AttentionOutput{output.data(), held.output_layout(), lse.data()},
                 {m.pages.slots().rows_total(layer)}, {});
      check_attended(output.host(), lse.host(), expected);
    }
  }
};

template <class T>
void walk(std::int64_t keys, std::int64_t values) {
  INFO(keys << " and " << values << " channels");
  PackedPagesModel<T> m(keys, values);
  DevicePages<T> device(m);
  device.append({40, 7, 0});
  device.check_attention();
  device.append({1, 1, 1});
  m.release(2);
  m.fork(0, 2);
  CHECK(device.append({1, 0, 3}) > 0);  // copies on write
  device.check_attention();
  m.rollback(2, 2);
  device.append({1, 30, 1});
  device.check_attention();
}

}  // namespace

TEST_CASE("pages of encoded rows on the device are appended to, forked, rolled back and attended to", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<ha::float16>(64, 64);
  walk<float>(80, 36);
}

TEST_CASE("appending to pages of encoded rows on the device refuses what the CPU's does", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  PackedPagesModel<ha::bfloat16> m(64, 64);
  DevicePages<ha::bfloat16> const device(m);
  auto const news = m.append({1, 1, 1});
  DeviceVector<std::int32_t> const table(std::vector<std::int32_t>(m.pages.table().begin(), m.pages.table().end()));
  DeviceVector<std::int32_t> const numbers(std::vector<std::int32_t>(3, 0));
  DeviceVector<ha::bfloat16> const tensor(news.tensors[0]);
  std::vector<ha::LayerKv<ha::bfloat16 const>> const layers(2, {tensor.data(), tensor.data()});
  ha::DevicePageStep step{.d_lengths = numbers.data(), .d_high_water = numbers.data(), .d_counts = numbers.data()};
  step.max_count = 1;
  auto const append = [&](ha::PackedPages<> const& cache, ha::PackedSegment<> const* segments) {
    return ha::device::append(m.pages.view_at(device.heads.data(), table.data()), step, layers, m.layout(1), cache,
                              segments, 0, nullptr);
  };
  auto const* const segments = device.segments.data();
  CHECK(append(m.planned, segments) == cudaErrorInvalidValue);
  CHECK(append(device.cache, nullptr) == cudaErrorInvalidValue);
  CHECK(append(ha::packed_pages(m.formats, 3, 100, 64).with_pool(device.pool.data()), segments) ==
        cudaErrorInvalidValue);
  REQUIRE_CUDA(append(device.cache, segments));
  step.generation = news.step.generation;
  m.release(0);
  CHECK(append(device.cache, segments) == cudaErrorInvalidValue);
  REQUIRE_CUDA(cudaDeviceSynchronize());
}
