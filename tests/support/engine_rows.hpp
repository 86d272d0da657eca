#pragma once

// Caches as engines have them, encoded already: llama.cpp's blocks, written from its definition by nothing of the
// library, and rows of any bytes with gaps between them.
// Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_q8_0, block_q4_0) and ggml-quants.c

#include "support/kept_rows.hpp"

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace headaware_test {

using Bytes = std::vector<std::byte>;

/// A half-precision number's bits, to nearest even. @pre  0, or of a size that is normal there
inline std::uint16_t half_bits(float x) {
  if (x == 0) return std::signbit(x) ? 0x8000 : 0;
  int exponent = 0;
  double const fraction = std::frexp(std::fabs(static_cast<double>(x)), &exponent);  // in [0.5, 1)
  auto const significand = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));
  return static_cast<std::uint16_t>((x < 0 ? 0x8000 : 0) + ((exponent + 14) << 10) + significand - 1024);
}
inline double half_number(unsigned bits) {
  int const exponent = static_cast<int>(bits >> 10 & 31U);
  double const significand = static_cast<double>(bits & 1023U) + (exponent > 0 ? 1024 : 0);
  return ((bits & 0x8000U) != 0 ? -1 : 1) * std::ldexp(significand, (exponent > 0 ? exponent : 1) - 25);
}
inline void put_half(Bytes& to, unsigned bits) {
  to.push_back(static_cast<std::byte>(bits & 255U));
  to.push_back(static_cast<std::byte>(bits >> 8));
}

/// A row in llama.cpp's q8_0. @param x  of a multiple of 32 channels
inline Bytes llama_q8_0(std::vector<float> const& x) {
  Bytes row;
  for (std::size_t first = 0; first < x.size(); first += 32) {
    float most = 0;
    for (std::size_t i = first; i < first + 32; ++i) most = std::fmax(most, std::fabs(x[i]));
    float const d = most / 127;
    float const inverse = d != 0 ? 1 / d : 0;
    put_half(row, half_bits(d));
    for (std::size_t i = first; i < first + 32; ++i) {
      row.push_back(static_cast<std::byte>(static_cast<std::int8_t>(std::roundf(x[i] * inverse))));
    }
  }
  return row;
}
inline std::vector<double> from_q8_0(Bytes const& row) {
  std::vector<double> x;
  for (std::size_t first = 0; first < row.size(); first += 34) {
    double const d =
        half_number(std::to_integer<unsigned>(row[first]) | std::to_integer<unsigned>(row[first + 1]) << 8);
    for (std::size_t i = 0; i < 32; ++i) x.push_back(d * static_cast<std::int8_t>(row[first + 2 + i]));
  }
  return x;
}

/// A row in llama.cpp's q4_0: the first 16 codes of a block in low nibbles, the others in high ones.
inline Bytes llama_q4_0(std::vector<float> const& x) {
  Bytes row;
  for (std::size_t first = 0; first < x.size(); first += 32) {
    float most = 0;
    for (std::size_t i = first; i < first + 32; ++i) most = std::fabs(most) < std::fabs(x[i]) ? x[i] : most;
    float const d = most / -8;
    float const inverse = d != 0 ? 1 / d : 0;
    put_half(row, half_bits(d));
    auto const code = [&](std::size_t i) {
      auto const rounded = static_cast<int>(x[first + i] * inverse + 8.5F);
      return static_cast<unsigned>(rounded < 15 ? rounded : 15);
    };
    for (std::size_t j = 0; j < 16; ++j) row.push_back(static_cast<std::byte>(code(j) | code(j + 16) << 4));
  }
  return row;
}
inline std::vector<double> from_q4_0(Bytes const& row) {
  std::vector<double> x(row.size() / 18 * 32);
  for (std::size_t b = 0; b < row.size() / 18; ++b) {
    std::byte const* const block = &row[18 * b];
    double const d = half_number(std::to_integer<unsigned>(block[0]) | std::to_integer<unsigned>(block[1]) << 8);
    for (std::size_t j = 0; j < 16; ++j) {
      auto const byte = std::to_integer<int>(block[2 + j]);
      x[32 * b + j] = d * (byte % 16 - 8);
      x[32 * b + j + 16] = d * (byte / 16 - 8);
    }
  }
  return x;
}

/// Two layers of three KV heads, rows of one pair of formats in tensors of random bytes, with gaps after rows and
/// tokens.
struct EngineProblem {
  static constexpr std::int32_t heads = 3;

  ha::HeadFormats formats;
  std::int64_t head_dim;
  std::int64_t value_dim;
  std::int64_t gap;  ///< bytes after each row
  std::vector<std::int32_t> lengths{13, 4, 0};
  ha::PolicyTable table{2, heads, ha::SinkWindow{.sink = 2, .window = 5}};
  std::vector<Bytes> keys, values;  ///< [layers]

  EngineProblem(ha::HeadFormats const& of, std::int64_t of_keys, std::int64_t of_values, std::int64_t bytes_between)
      : formats(of), head_dim(of_keys), value_dim(of_values), gap(bytes_between) {
    table.set(0, 1, ha::Full{});
    table.set(1, 2, ha::Prune{});
    std::mt19937 random(7);
    auto const drawn = [&](ha::StridedLayout const& layout) {
      Bytes bytes(at(layout.required_span_size() + gap));
      for (std::byte& b : bytes) b = static_cast<std::byte>(random() & 255U);
      return bytes;
    };
    for (int layer = 0; layer < 2; ++layer) {
      keys.push_back(drawn(layouts().keys));
      values.push_back(drawn(layouts().values));
    }
  }
  [[nodiscard]] std::int64_t key_bytes() const { return formats.key.engine_row_bytes(head_dim); }
  [[nodiscard]] std::int64_t value_bytes() const { return formats.value.engine_row_bytes(value_dim); }
  [[nodiscard]] ha::FormatTable format_table() const { return {2, heads, formats}; }
  /// [sequences, tokens, heads, bytes], as llama.cpp has them.
  [[nodiscard]] ha::KvLayouts<ha::StridedLayout, ha::StridedLayout> layouts() const {
    auto const of = [&](std::int64_t row) {
      std::int64_t const token = heads * (row + gap) + 2 * gap;
      return ha::StridedLayout({3, heads, 13, row}, {13 * token, row + gap, token, 1});
    };
    return {of(key_bytes()), of(value_bytes())};
  }
  /// A row's bytes.
  [[nodiscard]] static Bytes row(Bytes const& tensor, ha::StridedLayout const& layout, std::int64_t sequence,
                                 std::int64_t head, std::int64_t token) {
    auto const first = tensor.begin() + layout.offset(sequence, head, token, 0);
    return {first, first + layout.num_channels()};
  }
  template <class Byte>
  [[nodiscard]] static std::vector<ha::LayerKv<Byte>> layers(std::vector<Bytes>& of_keys, std::vector<Bytes>& of_values,
                                                             std::int64_t shift = 0) {
    return {{of_keys[0].data() + shift, of_values[0].data() + shift},
            {of_keys[1].data() + shift, of_values[1].data() + shift}};
  }
};

/// Every engine's format, with a partner for the values, and channels that are whole blocks or not.
struct EngineCase {
  ha::HeadFormats formats;
  std::int64_t head_dim;
  std::int64_t value_dim;
};
inline std::vector<EngineCase> engine_cases() {
  return {{{ha::LlamaQ8{}, ha::LlamaQ4{}}, 128, 64},
          {{ha::LlamaQ4{}, ha::LlamaQ8{}}, 96, 32},
          {{ha::LlamaQ8{}, ha::LlamaQ8{}}, 80, 160},
          {{ha::Fp8E4M3{.scale = 0.5F}, ha::Fp8E5M2{}}, 64, 30},
          {{ha::Fp16{}, ha::Bf16{}}, 64, 33},
          {{ha::Bf16{}, ha::LlamaQ4{}}, 7, 224},
          {{ha::Fp8E5M2{}, ha::Fp8E4M3{.scale = 3}}, 5, 3}};
}

}  // namespace headaware_test
