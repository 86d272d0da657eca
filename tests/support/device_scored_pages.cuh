#pragma once

// Pages of single heads with scored slots on both sides: what the device writes is compared with what the CPU does.

#include "support/device_pages.cuh"
#include "support/scored_pages.hpp"

#include <headaware/cache/paged_scored.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace headaware_test {

/// Pages with scored slots in device memory, too. @tparam Host  `ScoredPages`, or one like it
template <class Host>
struct OnDevice : Host {
  DeviceVector<typename decltype(Host::pool)::value_type> d_pool;
  DeviceVector<std::byte> d_heads;
  DeviceVector<std::byte> d_scores;

  template <class... Arguments>
  explicit OnDevice(Arguments... arguments)
      : Host(arguments...),
        d_pool(this->pool),
        d_heads(std::vector<std::byte>(this->pages.head_bytes().begin(), this->pages.head_bytes().end())),
        d_scores(std::vector<std::byte>(this->scores.bytes().begin(), this->scores.bytes().end())) {}

  [[nodiscard]] ha::RollingScoresView d_records() const { return this->scores.view_at(d_scores.data()); }
  void fork(std::int32_t from, std::int32_t to) {
    ha::PagedHeads before = this->pages;
    Host::fork(from, to);
    before.release(to);
    REQUIRE_CUDA(ha::device::fork(before, from, to, d_heads.data(), d_records(), nullptr));
    CHECK(ScoredTables(before) == ScoredTables(this->pages));
    check();
  }
  /// Records, scores and all of the pool must be the CPU's.
  void check() const {
    REQUIRE_CUDA(cudaDeviceSynchronize());
    auto const bytes = d_scores.host();
    CHECK(std::equal(bytes.begin(), bytes.end(), this->scores.bytes().begin()));
    auto const got = d_pool.host();
    CHECK(std::memcmp(got.data(), this->pool.data(), got.size() * sizeof(got[0])) == 0);
  }
};

template <class T>
struct DeviceScoredPages : OnDevice<ScoredPages<T>> {
  using OnDevice<ScoredPages<T>>::OnDevice;

  void append(std::vector<std::int32_t> const& counts) {
    auto const news = ScoredPages<T>::append(counts);
    DeviceTables const tables(this->pages);
    DeviceStep const d_step(this->step);
    std::vector<DeviceVector<T>> d_tensors;
    for (auto const& tensor : news.tensors) d_tensors.emplace_back(tensor);
    std::vector<ha::LayerKv<T const>> d_layers;
    for (std::size_t i = 0; i < d_tensors.size(); i += 2) {
      d_layers.push_back({d_tensors[i].data(), d_tensors[i + 1].data()});
    }
    DeviceVector<float> const d_of(news.scores);
    auto const of = ha::TokenScores::contiguous(d_of.data(), this->batch, this->heads, news.most);
    auto const storage = this->storage(this->d_pool.data());
    if (counts[0] % 2 == 0) {
      REQUIRE_CUDA(ha::device::append(tables.view, d_step.view, d_layers, news.layout, storage, this->d_records(), of,
                                      0, nullptr));
    } else {  // layer by layer
      for (std::int32_t layer = 0; layer < this->num_layers; ++layer) {
        std::vector<ha::LayerKv<T const>> const one{d_layers[at(layer)]};
        ha::TokenScores of_layer = of;
        of_layer.data += layer * of.layer_stride;
        REQUIRE_CUDA(ha::device::append(tables.view, d_step.view, one, news.layout, storage, this->d_records(),
                                        of_layer, layer, nullptr));
      }
    }
    REQUIRE_CUDA(cudaDeviceSynchronize());
    CHECK(d_step.status.host()[0] == 0);
    this->check();
  }
};

}  // namespace headaware_test
