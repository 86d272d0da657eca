#pragma once

// A rolling cache whose sequences have just taken different numbers of tokens: slots that no token has come to yet hold
// NaN, and what each query sees is told from what the tokens' rows hold.

#include "support/differences.hpp"

#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// Filled with windows as `compress` leaves them, so that the slack is empty; then 1 and 4 new tokens, and none.
struct UnevenChunk {
  static constexpr std::int64_t tokens = 4;
  static constexpr std::int64_t dim = 16;
  static constexpr std::int32_t sequences = 3;
  static constexpr std::int64_t sink = 2;
  static constexpr std::int64_t window = 4;

  ha::RollingSlots slots{ha::UniformTable(ha::SinkWindow{.sink = 2, .window = 4}, 1, 1), sequences, {.slack = 3}};
  std::vector<float> keys;    ///< zeros: all rows that a query sees weigh the same
  std::vector<float> values;  ///< a token's number
  ha::RollingState state{sequences};
  std::vector<std::int32_t> before{10, 6, 12};
  std::vector<std::int32_t> counts{1, 4, 0};
  std::vector<float> queries;

  [[nodiscard]] static ha::AttentionShape shape() { return {sequences, 1, 1, tokens, dim}; }
  [[nodiscard]] static ha::StridedLayout layout() { return ha::strided_bhsd(sequences, 1, tokens, dim); }

  UnevenChunk()
      : keys(static_cast<std::size_t>(slots.rows_total() * dim), std::numeric_limits<float>::quiet_NaN()),
        values(keys),
        queries(static_cast<std::size_t>(layout().required_span_size()), 1.0F) {
    auto const view = slots.view();
    ha::RollingHead const& head = view.head(0, 0);
    for (std::int32_t b = 0; b < sequences; ++b) {
      std::int64_t const length = before[static_cast<std::size_t>(b)];
      for (std::int64_t token = 0; token < length; ++token) {
        if (token >= sink && token < length - window) continue;
        std::int64_t const row = head.row(b, head.slot_of(token)) * dim;
        std::fill_n(keys.begin() + row, dim, 0.0F);
        std::fill_n(values.begin() + row, dim, static_cast<float>(token));
      }
      state.start(view, b, length);
    }
    auto const source = ha::strided_bhsd(sequences, 1, tokens, dim);
    std::vector<float> const new_keys(static_cast<std::size_t>(source.required_span_size()), 0.0F);
    std::vector<float> new_values(new_keys.size());
    for (std::int64_t b = 0; b < sequences; ++b) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        auto const number = static_cast<float>(before[static_cast<std::size_t>(b)] + t);
        std::fill_n(new_values.begin() + source.offset(b, 0, t, 0), dim, number);
      }
    }
    ha::append(view, state, std::vector<ha::LayerKv<float const>>{{new_keys.data(), new_values.data()}}, source, counts,
               ha::rolling(slots, view, keys.data(), values.data(), dim));
  }

  /// The first element of the output that is no mean of what its query sees; queries after the last token see what that
  /// one sees. Empty: none.
  [[nodiscard]] std::string difference(std::vector<float> const& output) const {
    FirstDifference result;
    for (std::int64_t b = 0; b < sequences; ++b) {
      std::int64_t const length = state.length(static_cast<std::int32_t>(b));
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::int64_t const end = std::min(length, before[static_cast<std::size_t>(b)] + t + 1);
        double sum = 0;
        double seen = 0;
        for (std::int64_t token = 0; token < end; ++token) {
          if (token >= sink && token < end - window) continue;
          sum += static_cast<double>(token);
          seen += 1;
        }
        for (std::int64_t c = 0; c < dim; ++c) {
          float const got = output[static_cast<std::size_t>(layout().offset(b, 0, t, c))];
          result.expect_that(std::abs(got - sum / seen) < 1e-5, got, sum / seen, "sequence ", b, ", query ", t,
                             ", channel ", c);
        }
      }
    }
    return result.text();
  }
};

}  // namespace headaware_test
