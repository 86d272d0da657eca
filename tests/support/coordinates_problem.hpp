#pragma once

// Keys with positions of three coordinates, as after images in a prompt (M-RoPE), and what they are to become.

#include "support/differences.hpp"
#include "support/random_cache.hpp"
#include "support/rotary.hpp"

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/rotation.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

struct CoordinatesProblem {
  static constexpr std::int64_t dim = 16;
  static constexpr std::int64_t stride = 33;
  static constexpr std::int64_t plane = 2 * stride + 5;

  bool to_rows;  ///< keys are rotated for their rows; else for positions of the caller's own
  std::vector<std::int32_t> lengths{30, 20};
  ha::StridedLayout layout = ha::strided_bhsd(2, 2, 30, dim);
  SourceCache<float, ha::StridedLayout> cache{layout, layout.required_span_size(), 1, dim, dim, 209};
  ha::Compaction<> compaction{ha::PolicyTable(1, 2, ha::SinkWindow{.sink = 2, .window = 15}), lengths};
  std::vector<std::int32_t> from = std::vector<std::int32_t>(3 * plane);
  std::vector<std::int32_t> to = from;
  std::vector<std::uint8_t> coordinates{0, 1, 1, 2, 0, 2, 1, 0};

  explicit CoordinatesProblem(bool rows) : to_rows(rows) {
    cache.fill_keys(209);
    for (std::int32_t b = 0; b < 2; ++b) {
      for (std::int32_t t = 0; t < stride; ++t) {
        bool const image = t >= 4 && t < 20;  // 4 x 4 patches
        std::int32_t const place[3] = {image ? 4 : t, image ? 4 + (t - 4) / 4 : t, image ? 4 + (t - 4) % 4 : t};
        for (std::int32_t c = 0; c < 3; ++c) {
          auto const at = static_cast<std::size_t>(c * plane + b * stride + t);
          from[at] = place[c] + 100 * b;
          to[at] = place[c] + 7;
        }
      }
    }
  }
  [[nodiscard]] ha::KeyRotation rotation(std::int32_t const* positions, std::int32_t const* targets) const {
    return ha::KeyRotation::from_base(ha::RotaryPairing::neox, dim, 10000)
        .with_positions({.from = positions,
                         .to = to_rows ? nullptr : targets,
                         .stride = stride,
                         .coordinate_stride = plane,
                         .coordinate_of = coordinates});
  }
  /// The first key that is not what its definition says. @param keys  ragged
  [[nodiscard]] std::string difference(std::vector<float> const& keys) const {
    Rotary const rotary = Rotary::of_base(ha::RotaryPairing::neox, dim, 10000);
    FirstDifference result;
    std::size_t at = 0;
    KeptTokens(compaction.table(), lengths).for_each_row([&](auto, auto b, auto h, auto row, auto token) {
      for (std::int64_t c = 0; c < dim; ++c, ++at) {
        auto const pair = static_cast<std::size_t>(c % (dim / 2));
        auto const place = static_cast<std::size_t>(coordinates[pair] * plane + b * stride + token);
        double const by = (to_rows ? static_cast<double>(row) : double(to[place])) - double(from[place]);
        double const angle = by * rotary.frequencies[pair];
        double const x = double(cache.key(0, b, h, token, static_cast<std::int64_t>(pair)));
        double const y = double(cache.key(0, b, h, token, static_cast<std::int64_t>(pair) + dim / 2));
        double const turned =
            c < dim / 2 ? x * std::cos(angle) - y * std::sin(angle) : x * std::sin(angle) + y * std::cos(angle);
        result.expect_that(close_to(keys[at], turned), keys[at], turned, "sequence ", b, ", head ", h, ", row ", row,
                           ", channel ", c);
      }
    });
    return result.text();
  }
};

}  // namespace headaware_test
