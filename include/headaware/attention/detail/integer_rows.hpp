#pragma once

// The two products of attention over rows of integer codes, in integers: 16-bit numbers of queries, or of weights,
// times codes, two products to an instruction. Converting codes to floats first would cost more than reading them does.

#include <headaware/attention/detail/coded_rows.hpp>
#include <headaware/attention/detail/row_kernels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/format/int8.hpp>
#include <headaware/format/llama_blocks.hpp>
#include <headaware/format/packed.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// A block's rows of a format whose codes are multiplied as integers.
template <class F>
struct IntegerRows {
  unsigned char const* const* rows;  ///< [attend_block]
  std::int64_t at;                   ///< of the codes in a row, in bytes
  float const* scales;               ///< of `CodeRanges`

  [[nodiscard]] unsigned char const* bytes(std::int64_t row) const { return rows[row] + at; }
  [[nodiscard]] float const* scales_of(std::int64_t range) const { return scales + range * attend_block; }
  [[nodiscard]] float const* mins_of(std::int64_t range) const { return CodeRanges::mins(scales_of(range)); }
};

#if defined(__AVX2__)

/// Channels whose codes fill a register, one byte each.
inline constexpr std::int64_t code_unit = 32;

inline __m256i load_codes(void const* data) { return _mm256_loadu_si256(static_cast<__m256i_u const*>(data)); }

/// Codes of a range of channels as bytes, 32 channels to a register. `is_signed`: bytes are; `has_min`: channels are
/// scale · code + min, not scale · code.
template <class F>
struct CodeBytes {
  static constexpr bool reads = false;
};

template <std::int32_t Bits>
struct CodeBytes<Packed<Bits>> {
  using Format = Packed<Bits>;
  static constexpr bool reads = true;
  static constexpr bool is_signed = false;
  static constexpr bool has_min = true;

  static void load(unsigned char const* block, __m256i* codes) {
    codes[0] = codes[1] = _mm256_setzero_si256();
    if constexpr (Format::nibble_words > 0) {
      __m256i const both = load_codes(block);
      __m256i const low = _mm256_set1_epi8(15);
      codes[0] = _mm256_and_si256(both, low);
      codes[1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
    // Byte i is to have bit i of the plane: byte i / 8 of its word, then that byte's bit i % 8.
    __m256i const byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    __m256i const bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
    for (std::int32_t p = 0; p < Format::plane_bits; ++p) {
      __m256i const value = _mm256_set1_epi8(static_cast<char>(1 << (Bits - Format::plane_bits + p)));
      for (std::int32_t unit = 0; unit < 2; ++unit) {
        std::int32_t word = 0;
        std::memcpy(&word, block + 4 * (Format::nibble_words + 2 * p + unit), sizeof(word));
        __m256i const bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), byte), bit);
        codes[unit] = _mm256_or_si256(codes[unit], _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit), value));
      }
    }
  }
};

template <>
struct CodeBytes<Int8> {
  static constexpr bool reads = true;
  static constexpr bool is_signed = true;
  static constexpr bool has_min = false;

  static void load(unsigned char const* block, __m256i* codes) {
    codes[0] = load_codes(block);
    codes[1] = load_codes(block + 32);
  }
};

template <>
struct CodeBytes<LlamaQ8> {
  static constexpr bool reads = true;
  static constexpr bool is_signed = true;
  static constexpr bool has_min = false;

  static void load(unsigned char const* block, __m256i* codes) { codes[0] = load_codes(block + 2); }
};

template <>
struct CodeBytes<LlamaQ4> {
  static constexpr bool reads = true;
  static constexpr bool is_signed = false;
  static constexpr bool has_min = true;

  static void load(unsigned char const* block, __m256i* codes) {
    __m128i const both = _mm_loadu_si128(reinterpret_cast<__m128i_u const*>(block + 2));
    __m256i const halves = _mm256_set_m128i(_mm_srli_epi16(both, 4), both);
    codes[0] = _mm256_and_si256(halves, _mm256_set1_epi8(15));
  }
};

template <class F>
inline constexpr bool has_integer_rows = CodeBytes<F>::reads;

/// Even and odd ones of 32 codes, as 16-bit numbers.
template <bool Signed>
inline void widen_codes(__m256i codes, __m256i& even, __m256i& odd) {
  if constexpr (Signed) {
    even = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8);
    odd = _mm256_srai_epi16(codes, 8);
  } else {
    even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
    odd = _mm256_srli_epi16(codes, 8);
  }
}

/// Query rows as 16-bit numbers of one scale a row, in the order of `widen_codes`.
class IntegerQueries {
 public:
  static constexpr std::int64_t largest = 32767;

  /// @param queries  [count, channels], at most `few_queries`; channels whole units
  void take(float const* queries, std::int64_t count, std::int64_t channels) {
    channels_ = channels;
    std::int64_t const units = channels / code_unit;
    auto const numbers = static_cast<std::size_t>(count * channels);
    if (numbers_.size() < numbers) numbers_.resize(numbers);
    sums_.grow(static_cast<std::size_t>(count * units * 8));
    for (std::int64_t q = 0; q < count; ++q) {
      float const* const row = queries + q * channels;
      float most = 0;
      float poison = 0;
      for (std::int64_t c = 0; c < channels; ++c) {
        most = std::max(most, std::abs(row[c]));
        poison += row[c] * 0;
      }
      float const inverse = most > 0 && most < 1e38F ? largest / most : 0;
      // Scores of queries too large for it are no numbers.
      scales_[q] = most < 1e38F ? most / largest + poison : std::numeric_limits<float>::quiet_NaN();
      for (std::int64_t u = 0; u < units; ++u) {
        std::int16_t* const to = numbers_.data() + q * channels + u * code_unit;
        float const* const from = row + u * code_unit;
        float sums[8] = {};
        for (std::int64_t i = 0; i < 16; ++i) {
          to[i] = static_cast<std::int16_t>(std::lrintf(from[2 * i] * inverse));
          to[i + 16] = static_cast<std::int16_t>(std::lrintf(from[2 * i + 1] * inverse));
          sums[i / 2] += static_cast<float>(to[i] + to[i + 16]);
        }
        std::copy_n(sums, 8, sums_.data() + (q * units + u) * 8);
      }
    }
  }

  [[nodiscard]] float scale(std::int64_t q) const { return scales_[q]; }
  /// Of a query, [units, 2, 16]: the even ones of a unit, the odd ones.
  [[nodiscard]] std::int16_t const* numbers(std::int64_t q) const { return numbers_.data() + q * channels_; }
  /// [units, 8]: of each unit the sums of the numbers that are summed in one lane.
  [[nodiscard]] float const* sums(std::int64_t q) const { return sums_.data() + q * channels_ / code_unit * 8; }

 private:
  std::int64_t channels_ = 0;
  std::vector<std::int16_t> numbers_;  ///< [queries, channels]
  FloatBuffer sums_;                   ///< [queries, units, 8]
  float scales_[few_queries] = {};
};

/// Sums the lanes of each of eight vectors: lane i has the sum of vector i.
inline __m256 sums_of_eight(__m256 const* v) {
  __m256 const a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  __m256 const b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/// As `score_keys`: `Queries` queries from `first` on against 8 / Queries rows.
template <int Queries, class F>
inline void score_codes(IntegerQueries const& queries, std::int64_t first, IntegerRows<F> const& rows, std::int64_t row,
                        std::int64_t channels, float* scores) {
  using Reader = simd::CodeReader<F>;
  using Bytes = CodeBytes<F>;
  constexpr int keys = 8 / Queries;
  constexpr int units = Reader::channels / code_unit;
  std::int16_t const* numbers[std::size_t{Queries}];
  float const* number_sums[std::size_t{Queries}];
  for (int q = 0; q < Queries; ++q) {
    numbers[q] = queries.numbers(first + q);
    number_sums[q] = queries.sums(first + q);
  }
  __m256 sums[8] = {};
  std::int64_t at = 0;
  for (std::int64_t channel = 0, range = 0; channel < channels; channel += Reader::channels, ++range) {
    float const* const scales = rows.scales_of(range) + row;
    float const* const mins = rows.mins_of(range) + row;
    for (int k = 0; k < keys; ++k) {
      __m256i codes[units];
      Bytes::load(rows.bytes(row + k) + at, codes);
      __m256i halves[2 * units];
      for (int u = 0; u < units; ++u) widen_codes<Bytes::is_signed>(codes[u], halves[2 * u], halves[2 * u + 1]);
      __m256 const scale = _mm256_set1_ps(scales[k]);
      for (int q = 0; q < Queries; ++q) {
        __m256i products = _mm256_madd_epi16(halves[0], load_codes(numbers[q] + channel));
        for (int h = 1; h < 2 * units; ++h) {
          products =
              _mm256_add_epi32(products, _mm256_madd_epi16(halves[h], load_codes(numbers[q] + channel + 16 * h)));
        }
        __m256 sum = sums[q * keys + k] + _mm256_cvtepi32_ps(products) * scale;
        if constexpr (Bytes::has_min) {
          __m256 of_range = _mm256_loadu_ps(number_sums[q] + channel / 4);
          for (int u = 1; u < units; ++u) of_range += _mm256_loadu_ps(number_sums[q] + channel / 4 + 8 * u);
          sum += of_range * _mm256_set1_ps(mins[k]);
        }
        sums[q * keys + k] = sum;
      }
    }
    at += Reader::bytes;
  }
  float results[8];
  _mm256_storeu_ps(results, sums_of_eight(sums));
  for (int q = 0; q < Queries; ++q) {
    for (int k = 0; k < keys; ++k) scores[q * attend_block + k] = results[q * keys + k] * queries.scale(first + q);
  }
}

/// As `score_rows`.
template <class F, class Passed>
inline void score_rows(IntegerQueries const& queries, std::int64_t count, IntegerRows<F> const& rows, std::int64_t keys,
                       std::int64_t channels, float* scores, Passed const& passed) {
  auto const pass = [&]<int Queries>(std::int64_t q, std::int64_t k) {
    score_codes<Queries>(queries, q, rows, k, channels, scores + q * attend_block + k);
  };
  for_score_groups<8>(count, keys, pass, passed);
}

/// Weights of a block's rows times the rows' scales in one range, as 16-bit numbers of a common scale.
struct IntegerWeights {
  static constexpr float largest = 32767;
  alignas(32) std::int16_t numbers[attend_block];
  float scale = 0;     ///< of the numbers
  float constant = 0;  ///< Σ weight · min

  /// @param scales, mins  [attend_block] of the rows
  void take(float const* weights, float const* scales, float const* mins) {
    simd::Floats most{};
    simd::Floats poison{};
    simd::Floats sum{};
    float products[attend_block];
    for (std::int64_t k = 0; k < attend_block; k += simd::lanes) {
      simd::Floats const weight = simd::load(weights + k);
      // A weight of 0 is one of a row beyond the end, or hidden, and the range of such a row may be no number.
      simd::Floats const product = weight == 0.0F ? simd::Floats{} : weight * simd::load(scales + k);
      if (mins != nullptr) sum += weight == 0.0F ? simd::Floats{} : weight * simd::load(mins + k);
      poison += simd::zero_or_nan(product);
      most = simd::maximum(most, simd::maximum(product, -product));  // scales may be negative
      simd::store(products + k, product);
    }
    float const all = simd::largest(most);
    float const inverse = all > 0 ? std::min(largest / all, 3e38F) : 0;
    scale = (all > 0 ? 1 / inverse : 0) + simd::sum(poison);
    constant = mins != nullptr ? simd::sum(sum) : 0;
    __m256 const factor = _mm256_set1_ps(inverse);
    for (std::int64_t k = 0; k < attend_block; k += 16) {
      __m256i const a = _mm256_cvtps_epi32(_mm256_loadu_ps(products + k) * factor);
      __m256i const b = _mm256_cvtps_epi32(_mm256_loadu_ps(products + k + 8) * factor);
      __m256i const both = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
      _mm256_store_si256(reinterpret_cast<__m256i*>(numbers + k), both);
    }
  }
  /// Those of rows k and k + 1, in all pairs of lanes.
  [[nodiscard]] __m256i pair(std::int64_t k) const {
    std::int32_t both = 0;
    std::memcpy(&both, numbers + k, sizeof(both));
    return _mm256_set1_epi32(both);
  }
};

/// Codes of two rows side by side, a unit's channels in the order of `add_sums`.
template <bool Signed>
inline void pair_codes(__m256i first, __m256i second, __m256i* pairs) {
  __m256i even[2];
  __m256i odd[2];
  widen_codes<Signed>(first, even[0], odd[0]);
  widen_codes<Signed>(second, even[1], odd[1]);
  pairs[0] = _mm256_unpacklo_epi16(even[0], even[1]);  // channels 0 2 4 6, 16 18 20 22
  pairs[1] = _mm256_unpackhi_epi16(even[0], even[1]);
  pairs[2] = _mm256_unpacklo_epi16(odd[0], odd[1]);
  pairs[3] = _mm256_unpackhi_epi16(odd[0], odd[1]);
}

/// sums[channel] += scale · products + constant of a unit. @param products  [4] in the order of `pair_codes`
inline void add_sums(__m256i const* products, float scale, float constant, float* sums) {
  __m256 const factor = _mm256_set1_ps(scale);
  __m256 const common = _mm256_set1_ps(constant);
  auto const add = [&](__m256i numbers, float* to) {
    _mm256_storeu_ps(to, _mm256_loadu_ps(to) + (_mm256_cvtepi32_ps(numbers) * factor + common));
  };
  for (int half = 0; half < 2; ++half) {
    __m256i const low = _mm256_unpacklo_epi32(products[half], products[half + 2]);
    __m256i const high = _mm256_unpackhi_epi32(products[half], products[half + 2]);
    add(_mm256_permute2x128_si256(low, high, 0x20), sums + 8 * half);
    add(_mm256_permute2x128_si256(low, high, 0x31), sums + 16 + 8 * half);
  }
}

/// As `weigh_values`: adds a block's rows to the sums of `Queries` queries.
template <int Queries, class F, class Passed>
inline void weigh_codes(float const* weights, IntegerRows<F> const& rows, std::int64_t keys, std::int64_t channels,
                        float* sums, Passed const& passed) {
  using Reader = simd::CodeReader<F>;
  using Bytes = CodeBytes<F>;
  constexpr int units = Reader::channels / code_unit;
  IntegerWeights numbers[std::size_t{Queries}];
  for (std::int64_t range = 0; range * Reader::channels < channels; ++range) {
    for (int q = 0; q < Queries; ++q) {
      numbers[q].take(weights + q * attend_block, rows.scales_of(range),
                      Bytes::has_min ? rows.mins_of(range) : nullptr);
    }
    __m256i products[std::size_t{Queries}][units][4] = {};
    for (std::int64_t k = 0; k < keys; k += 4) {
      __m256i codes[4][units];
      for (int i = 0; i < 4; ++i) Bytes::load(rows.bytes(k + i) + range * Reader::bytes, codes[i]);
      for (int u = 0; u < units; ++u) {
        __m256i pairs[2][4];
        pair_codes<Bytes::is_signed>(codes[0][u], codes[1][u], pairs[0]);
        pair_codes<Bytes::is_signed>(codes[2][u], codes[3][u], pairs[1]);
        for (int q = 0; q < Queries; ++q) {
          __m256i const first = numbers[q].pair(k);
          __m256i const second = numbers[q].pair(k + 2);
          for (int i = 0; i < 4; ++i) {
            __m256i const both =
                _mm256_add_epi32(_mm256_madd_epi16(pairs[0][i], first), _mm256_madd_epi16(pairs[1][i], second));
            products[q][u][i] = _mm256_add_epi32(products[q][u][i], both);
          }
        }
      }
      if (range == 0) passed(k, k + 4);
    }
    for (int q = 0; q < Queries; ++q) {
      for (int u = 0; u < units; ++u) {
        std::int64_t const channel = range * Reader::channels + u * code_unit;
        add_sums(products[q][u], numbers[q].scale, numbers[q].constant, sums + q * channels + channel);
      }
    }
  }
}

/// As for rows of elements. A row of weight 0 may hold anything.
template <class F, class Passed>
inline void weigh_rows(float const* weights, std::int64_t count, IntegerRows<F> const& rows, std::int64_t keys,
                       std::int64_t channels, float* sums, Passed const& passed) {
  in_groups(count, [&]<int Queries>(std::int64_t q) {
    weigh_codes<Queries>(weights + q * attend_block, rows, keys, channels, sums + q * channels,
                         [&](std::int64_t first, std::int64_t end) {
                           if (q == 0) passed(first, end);
                         });
  });
}

#else

template <class F>
inline constexpr bool has_integer_rows = false;

class IntegerQueries {
 public:
  void take(float const*, std::int64_t, std::int64_t) {}
};

#endif

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
