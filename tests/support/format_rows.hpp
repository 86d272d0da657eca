#pragma once

// Rows that are hard on formats, and what a format may lose of a row, in plain double precision.

#include <headaware/format/registry.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

using FormatRows = std::vector<std::pair<std::string, std::vector<float>>>;

/// Rows of `channels` channels: random ones of many sizes, and each edge of the numbers.
inline FormatRows hard_rows(std::int64_t channels) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  auto const count = static_cast<std::size_t>(channels);
  auto const drawn = [&](float size, float shift) {
    std::vector<float> row(count);
    for (float& x : row) x = size * normal(random) + shift;
    return row;
  };
  FormatRows rows{{"zeros", std::vector<float>(count)},
                  {"negative zeros", std::vector<float>(count, -0.0F)},
                  {"all 3.3", std::vector<float>(count, 3.3F)},
                  {"all -1e-30", std::vector<float>(count, -1e-30F)},
                  {"all 7e4", std::vector<float>(count, 7e4F)},
                  {"denormals", drawn(1e-41F, 0)},
                  {"tiny", drawn(1e-7F, 0)},
                  {"small", drawn(1e-4F, 0)},
                  {"shifted", drawn(1, 50)},
                  {"large", drawn(1e4F, 0)},
                  {"beyond half precision", drawn(1e6F, 0)},
                  {"near the largest float", drawn(1e37F, 0)}};
  for (int i = 0; i < 20; ++i) rows.push_back({"random " + std::to_string(i), drawn(std::exp2(float(i - 10)), 0)});
  auto outlier = drawn(1, 0);
  outlier[count / 2] = 100;
  rows.push_back({"an outlier", outlier});
  for (auto const& [name, bad] : {std::pair{"NaN", nan}, std::pair{"inf", inf}, std::pair{"-inf", -inf}}) {
    auto row = drawn(1, 0);
    row[count - 1] = bad;
    rows.push_back({name, row});
  }
  return rows;
}

/// All formats of the registry with their default fields, and fp8 with a scale.
inline std::vector<ha::AnyFormat<>> all_formats() {
  std::vector<ha::AnyFormat<>> result;
  for (auto const name : ha::DefaultFormats::names) result.push_back(ha::AnyFormat<>::of_name(name));
  result.push_back(ha::Fp8E4M3{.scale = 0.03F});
  return result;
}

/// The words of a row, and what they decode to.
struct CodedRow {
  std::vector<std::uint32_t> words;
  std::vector<float> decoded;
};

inline CodedRow code_row(ha::AnyFormat<> const& format, std::vector<float> const& row) {
  auto const channels = static_cast<std::int64_t>(row.size());
  CodedRow result{std::vector<std::uint32_t>(static_cast<std::size_t>(format.row_words(channels)), 0xdeadbeefU),
                  std::vector<float>(row.size(), 77)};
  format.visit([&](auto const& f) {
    ha::encode_row(f, row.data(), channels, result.words.data());
    ha::decode_row(f, result.words.data(), channels, result.decoded.data());
  });
  return result;
}

}  // namespace headaware_test
