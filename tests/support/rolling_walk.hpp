#pragma once

// What a rolling cache must hold, slot by slot, for walks on both back ends.

#include "support/token_model.hpp"

#include <headaware/cache/rolling.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

/// A model that also writes every token into its slot, one after the other, as the definition says.
struct SlotModel : TokenModel {
  ha::RollingSlots const& slots;
  std::vector<std::vector<std::int64_t>> numbers;  ///< [segment]: the number of the token in each slot; 0: none

  SlotModel(ha::PolicyTable policies, ha::RollingSlots const& rolling_slots)
      : TokenModel(std::move(policies), rolling_slots.num_sequences()), slots(rolling_slots) {
    for_each([&](auto, auto, auto, ha::RollingHead const& head) {
      numbers.emplace_back(static_cast<std::size_t>(head.slots()), 0);
    });
  }
  template <class F>
  void for_each(F const& f) const {
    for (std::int32_t l = 0; l < slots.num_layers(); ++l) {
      for (std::int32_t b = 0; b < slots.num_sequences(); ++b) {
        for (std::int32_t h = 0; h < slots.num_kv_heads(); ++h) f(l, b, h, slots.head(l, h));
      }
    }
  }
  [[nodiscard]] std::vector<std::int64_t>& slots_of(std::int32_t l, std::int32_t b, std::int32_t h) {
    return numbers[static_cast<std::size_t>((l * slots.num_sequences() + b) * slots.num_kv_heads() + h)];
  }
  static std::int64_t slot(ha::RollingHead const& head, std::int64_t t) {
    return t < head.rule.sink ? t : head.ring == 0 ? -1 : head.rule.sink + (t - head.rule.sink) % head.ring;
  }
  void append(std::vector<std::int32_t> const& counts) {
    TokenModel::append(counts);
    for_each([&](auto l, auto b, auto h, ha::RollingHead const& head) {
      auto const i = static_cast<std::size_t>(b);
      for (std::int64_t t = length(b) - counts[i]; t < length(b); ++t) {
        if (std::int64_t const s = slot(head, t); s >= 0) {
          slots_of(l, b, h)[static_cast<std::size_t>(s)] = sequences[i][static_cast<std::size_t>(t)];
        }
      }
    });
  }
  /// Compression puts the kept tokens alone.
  void start(std::int32_t sequence, std::int32_t tokens) {
    clear(sequence);
    for (std::int32_t i = 0; i < tokens; ++i) sequences[static_cast<std::size_t>(sequence)].push_back(next++);
    for_each([&](auto l, auto b, auto h, ha::RollingHead const& head) {
      if (b != sequence) return;
      for (std::int64_t const t : kept(l, b, h, tokens)) {
        slots_of(l, b, h)[static_cast<std::size_t>(slot(head, t))] =
            sequences[static_cast<std::size_t>(b)][static_cast<std::size_t>(t)];
      }
    });
  }
  void clear(std::int32_t sequence) {
    sequences[static_cast<std::size_t>(sequence)].clear();
    for_each([&](auto l, auto b, auto h, auto const&) {
      if (b == sequence) std::fill(slots_of(l, b, h).begin(), slots_of(l, b, h).end(), 0);
    });
  }
  void copy(std::int32_t from, std::int32_t to) {
    sequences[static_cast<std::size_t>(to)] = sequences[static_cast<std::size_t>(from)];
    for_each([&](auto l, auto b, auto h, auto const&) {
      if (b == to) slots_of(l, b, h) = slots_of(l, from, h);
    });
  }
  /// Whether every head has all that its policy keeps of the sequence's first `at` tokens.
  [[nodiscard]] bool whole(std::int32_t sequence, std::int64_t at) {
    bool result = true;
    for_each([&](auto l, auto b, auto h, ha::RollingHead const& head) {
      if (b != sequence || !result) return;
      for (std::int64_t const t : kept(l, b, h, at)) {
        result = result && slots_of(l, b, h)[static_cast<std::size_t>(slot(head, t))] ==
                               sequences[static_cast<std::size_t>(b)][static_cast<std::size_t>(t)];
      }
    });
    return result;
  }
  /// The most that can be taken back step by step.
  [[nodiscard]] std::int64_t max_rollback(std::int32_t sequence) {
    std::int64_t most = 0;
    while (most < length(sequence) && whole(sequence, length(sequence) - most - 1)) ++most;
    return most;
  }

  /// @brief The first difference between what attention would read and what the policies keep; empty: none.
  /// @param keys, values  [rows_total, channels], layers back to back
  template <class T>
  [[nodiscard]] std::string difference(std::int32_t sequence, T const* keys, std::int64_t head_dim, T const* values,
                                       std::int64_t value_dim) const {
    FirstDifference result;
    for_each([&](auto l, auto b, auto h, ha::RollingHead const& head) {
      if (b != sequence || !result.text().empty()) return;
      auto const expect = [&](char const* what, auto const& got, auto const& right, std::int64_t row) {
        result.expect(got, right, what, " of layer ", l, ", sequence ", b, ", KV head ", h, ", row ", row);
      };
      auto const expected = kept(l, b, h, length(b));
      ha::SlotRuns const runs = head.runs(head.kept(length(b)));
      auto const rows = static_cast<std::int64_t>(expected.size());
      expect("rows in runs", runs.total(), rows, rows);
      expect("kept rows", head.kept(length(b)).count(), rows, rows);
      std::int64_t const first =
          slots.offsets()[static_cast<std::size_t>((l * slots.num_sequences() + b) * slots.num_kv_heads() + h)];
      std::vector<std::int32_t> positions(static_cast<std::size_t>(head.slots()));
      ha::slot_positions(head, length(b), positions);
      expect("slots with positions", std::count_if(positions.begin(), positions.end(), [](auto p) { return p >= 0; }),
             rows, rows);
      for (std::int64_t i = 0; result.text().empty() && i < rows; ++i) {
        std::int64_t const token = expected[static_cast<std::size_t>(i)];
        std::int64_t const slot_of_row = runs.slot(i);
        std::int64_t const number = sequences[static_cast<std::size_t>(b)][static_cast<std::size_t>(token)];
        expect("position", positions[static_cast<std::size_t>(slot_of_row)], token, i);
        expect("slot", slot_of_row, slot(head, token), i);
        expect("token", head.kept(length(b)).token(i), token, i);
        std::int64_t const row = first + slot_of_row;
        note_row(result, keys + row * head_dim, number, l, h, 0, head_dim);
        note_row(result, values + row * value_dim, number, l, h, 1, value_dim);
      }
    });
    return result.text();
  }
};

}  // namespace headaware_test
