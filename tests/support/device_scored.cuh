#pragma once

// A rolling cache with scored slots on both sides: what the device writes is compared with what the CPU does.

#include "support/device_cache.cuh"
#include "support/kept_rows.hpp"
#include "support/scored_model.hpp"

#include <headaware/cache/scored_append.cuh>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace headaware_test {

template <class T>
struct DeviceScored {
  static constexpr std::int32_t batch = 3;
  static constexpr std::int32_t num_layers = 2;

  ha::PolicyTable table = scored_table(num_layers);
  std::int32_t heads = table.num_kv_heads(0);
  std::int64_t key_dim;
  std::int64_t value_dim;
  ha::RollingSlots slots;
  ha::RollingScores scores;
  std::vector<T> keys, values;
  ha::RollingState state{batch};
  DeviceVector<std::byte> d_heads;
  DeviceVector<std::byte> d_scores;
  DeviceVector<T> d_keys, d_values;
  DeviceVector<std::int32_t> d_counters;
  unsigned seed = 40;

  DeviceScored(std::int32_t slack, std::int64_t of_keys, std::int64_t of_values)
      : key_dim(of_keys),
        value_dim(of_values),
        slots(table, batch, {.max_tokens = 400, .slack = slack}),
        scores(slots),
        // What nothing was written to is no number.
        keys(at(slots.rows_total() * key_dim), ha::from_float<T>(std::nanf(""))),
        values(at(slots.rows_total() * value_dim), ha::from_float<T>(std::nanf(""))),
        d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())),
        d_scores(std::vector<std::byte>(scores.bytes().begin(), scores.bytes().end())),
        d_keys(keys),
        d_values(values),
        d_counters(std::vector<std::int32_t>(ha::RollingStateView::bytes(batch) / 4, 0)) {}

  [[nodiscard]] ha::RollingSlotsView view() const { return slots.view_at(d_heads.data()); }
  [[nodiscard]] ha::RollingStateView d_state() const { return ha::RollingStateView::at(d_counters.data(), batch); }
  [[nodiscard]] ha::RollingScoresView d_records() const { return scores.view_at(d_scores.data()); }
  [[nodiscard]] auto cache() {
    return ha::rolling(slots, slots.view(), keys.data(), values.data(), key_dim, value_dim);
  }
  [[nodiscard]] auto d_cache() const {
    return ha::rolling(slots, view(), d_keys.data(), d_values.data(), key_dim, value_dim);
  }

  void append(std::array<std::int32_t, batch> const& of) {
    std::vector<std::int32_t> const counts(of.begin(), of.end());
    std::int32_t const most = std::max(1, *std::max_element(counts.begin(), counts.end()));
    ha::KvLayouts const layout{ha::strided_bshd(batch, most, heads, key_dim),
                               ha::strided_bshd(batch, most, heads, value_dim)};
    std::vector<std::vector<T>> tensors;
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      tensors.push_back(random_elements<T>(layout.keys.required_span_size(), ++seed));
      tensors.push_back(random_elements<T>(layout.values.required_span_size(), ++seed));
    }
    std::vector<DeviceVector<T>> d_tensors;
    for (auto const& tensor : tensors) d_tensors.emplace_back(tensor);
    std::vector<ha::LayerKv<T const>> tokens, d_tokens;
    for (std::size_t i = 0; i < tensors.size(); i += 2) {
      tokens.push_back({tensors[i].data(), tensors[i + 1].data()});
      d_tokens.push_back({d_tensors[i].data(), d_tensors[i + 1].data()});
    }
    auto const all = random_scores(at(std::int64_t{num_layers} * batch * heads * most), ++seed);
    DeviceVector<float> const d_all(all);
    DeviceVector<std::int32_t> const d_counts(counts);
    ha::append(slots.view(), state, tokens, layout, counts, cache(), scores.view(),
               ha::TokenScores::contiguous(all.data(), batch, heads, most));
    REQUIRE_CUDA(ha::device::append(view(), d_state(), d_tokens, layout, d_counts.data(), most, d_cache(), d_records(),
                                    ha::TokenScores::contiguous(d_all.data(), batch, heads, most), {}, nullptr));
    check();
  }
  void copy(std::int32_t from, std::int32_t to) {
    std::vector<ha::SequenceCopy> const copies{{from, to}};
    ha::copy_sequences(slots.view(), state, copies, cache(), scores.view());
    REQUIRE_CUDA(ha::device::copy_sequences(view(), d_state(), copies, d_cache(), d_records(), nullptr));
    check();
  }
  void rollback(std::array<std::int32_t, batch> const& tokens) {
    DeviceVector<std::int32_t> const d_tokens(std::vector<std::int32_t>(tokens.begin(), tokens.end()));
    for (std::int32_t b = 0; b < batch; ++b) state.rollback(slots.view(), b, tokens[at(b)]);
    REQUIRE_CUDA(ha::device::rollback(view(), d_state(), d_tokens.data(), nullptr));
    check();
  }
  void empty(std::int32_t sequence) {
    std::vector<std::int32_t> lengths(batch, -1);
    lengths[at(sequence)] = 0;
    DeviceVector<std::int32_t> const d_lengths(lengths);
    state.reset(sequence);
    REQUIRE_CUDA(ha::device::start(view(), d_state(), d_lengths.data(), nullptr));
    check();
  }

  /// Records and scores must be the CPU's, and so must all rows.
  void check() const {
    REQUIRE_CUDA(cudaDeviceSynchronize());
    auto const bytes = d_scores.host();
    CHECK(std::equal(bytes.begin(), bytes.end(), scores.bytes().begin()));
    auto const same = [](std::vector<T> const& got, std::vector<T> const& expected) {
      return std::memcmp(got.data(), expected.data(), got.size() * sizeof(T)) == 0;
    };
    CHECK(same(d_keys.host(), keys));
    CHECK(same(d_values.host(), values));
    auto const counters = d_counters.host();
    CHECK(counters.back() == 0);
    for (std::int32_t b = 0; b < batch; ++b) {
      CHECK(counters[at(b)] == state.length(b));
      CHECK(counters[at(batch + b)] == state.high_water(b));
    }
  }
};

}  // namespace headaware_test
