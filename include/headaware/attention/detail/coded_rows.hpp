#pragma once

// Encoded rows as vectors of floats, and the two products of attention over them: what attention on the CPU reads
// without decoding rows to memory first.

#include <headaware/attention/detail/row_kernels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/element.hpp>
#include <headaware/format/fp8.hpp>
#include <headaware/format/int8.hpp>
#include <headaware/format/llama_blocks.hpp>
#include <headaware/format/packed.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

HEADAWARE_NAMESPACE_BEGIN
namespace detail::simd {
HEADAWARE_TARGET_BEGIN

/// As many bytes as there are lanes. By intrinsics where there are any: g++ 12 converts short vectors lane by lane.
inline Ints load_bytes(unsigned char const* data) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i_u const*>(data))));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i_u const*>(data))));
#else
  Ints result{};
  for (int i = 0; i < lanes; ++i) result[i] = data[i];
  return result;
#endif
}
inline Floats load_signed_bytes(unsigned char const* data) {
  // The sign's place is the top of each lane.
  return __builtin_convertvector((load_bytes(data) << 24) >> 24, Floats);
}

/// Half-precision numbers at `at(lane)`. Brought together in registers: stores of single ones would have to leave the
/// store buffer before a vector of them could be loaded.
template <class At>
[[gnu::always_inline]] inline Floats load_halves(At const& at) {
#if defined(__F16C__)
  auto const bits = [&](int lane) {
    std::int16_t half = 0;
    std::memcpy(&half, at(lane), sizeof(half));
    return half;
  };
  auto const eight = [&](int i) {
    return _mm_setr_epi16(bits(i), bits(i + 1), bits(i + 2), bits(i + 3), bits(i + 4), bits(i + 5), bits(i + 6),
                          bits(i + 7));
  };
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_maskz_cvtph_ps(0xffff, _mm256_set_m128i(eight(8), eight(0))));
#else
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(eight(0)));
#endif
#else
  Floats result;
  for (int lane = 0; lane < lanes; ++lane) {
    float16 half;
    std::memcpy(&half.bits, at(lane), sizeof(half.bits));
    result[lane] = to_float(half);
  }
  return result;
#endif
}

/// x, with `value` set in the lanes whose bit is.
inline Ints or_bits(Ints x, std::uint32_t bits, std::int32_t value) {
#if defined(__AVX512F__)
  auto const v = reinterpret_cast<__m512i>(x);
  return reinterpret_cast<Ints>(_mm512_mask_or_epi32(v, static_cast<__mmask16>(bits), v, _mm512_set1_epi32(value)));
#else
  Ints bit;
  for (int i = 0; i < lanes; ++i) bit[i] = 1 << i;
  return x | ((((static_cast<std::int32_t>(bits) - Ints{}) & bit) == bit) & value);
#endif
}

/// How a format's rows are read: `channels` that share a scale and a minimum lie in `bytes` bytes, each scale · number
/// + minimum. `scale_at` and `min_at` are where the two lie there, in half precision; -1: the scale is the format's
/// own, and the minimum `min_per_scale` times the scale.
template <class F>
struct CodeReader {
  static constexpr bool reads = false;
};

template <std::int32_t Bits>
struct CodeReader<Packed<Bits>> {
  using Format = Packed<Bits>;
  static constexpr bool reads = true;
  static constexpr int channels = Format::group;
  static constexpr std::int64_t bytes = 4 * Format::block_words;
  static constexpr std::int64_t scale_at = bytes - 4;
  static constexpr std::int64_t min_at = bytes - 2;
  static constexpr float min_per_scale = 0;

  template <int Within>
  static Floats numbers(unsigned char const* block) {
    Ints codes{};
    if constexpr (Format::nibble_words > 0) {
      codes = load_bytes(block + Within % 32);
      codes = Within < 32 ? codes & 15 : codes >> 4;
    }
    for (std::int32_t p = 0; p < Format::plane_bits; ++p) {
      std::uint16_t plane = 0;
      std::memcpy(&plane, block + 4 * Format::nibble_words + 8 * p + Within / 16 * 2, sizeof(plane));
      codes = or_bits(codes, static_cast<std::uint32_t>(plane) >> (Within % 16), 1 << (Bits - Format::plane_bits + p));
    }
    return __builtin_convertvector(codes, Floats);
  }
};

template <>
struct CodeReader<Int8> {
  static constexpr bool reads = true;
  static constexpr int channels = Int8::group;
  static constexpr std::int64_t bytes = 4 * Int8::block_words;

  static constexpr std::int64_t scale_at = 64;
  static constexpr std::int64_t min_at = -1;
  static constexpr float min_per_scale = 0;

  template <int Within>
  static Floats numbers(unsigned char const* block) {
    return load_signed_bytes(block + Within);
  }
};

template <>
struct CodeReader<LlamaQ8> {
  static constexpr bool reads = true;
  static constexpr int channels = 32;
  static constexpr std::int64_t bytes = 34;

  static constexpr std::int64_t scale_at = 0;
  static constexpr std::int64_t min_at = -1;
  static constexpr float min_per_scale = 0;

  template <int Within>
  static Floats numbers(unsigned char const* block) {
    return load_signed_bytes(block + 2 + Within);
  }
};

template <>
struct CodeReader<LlamaQ4> {
  static constexpr bool reads = true;
  static constexpr int channels = 32;
  static constexpr std::int64_t bytes = 18;

  static constexpr std::int64_t scale_at = 0;
  static constexpr std::int64_t min_at = -1;
  static constexpr float min_per_scale = -8;

  template <int Within>
  static Floats numbers(unsigned char const* block) {
    Ints const both = load_bytes(block + 2 + Within % 16);
    return __builtin_convertvector(Within < 16 ? both & 15 : both >> 4, Floats);
  }
};

template <std::int32_t Mantissa>
struct CodeReader<Fp8<Mantissa>> {
  using Number = Float8<Mantissa>;
  static constexpr bool reads = true;
  static constexpr int channels = 32;
  static constexpr std::int64_t bytes = 32;

  static constexpr std::int64_t scale_at = -1;
  static constexpr std::int64_t min_at = -1;
  static constexpr float min_per_scale = 0;

  template <int Within>
  static Floats numbers(unsigned char const* block) {
    Ints const code = load_bytes(block + Within);
    Ints const magnitude = code & 0x7f;
    // As `Float8::decode`.
    Floats value;
    Ints const shifted = magnitude << (23 - Mantissa);
    std::memcpy(&value, &shifted, sizeof(value));
    value *= bits_as<float>(static_cast<std::uint32_t>(127 + 127 - Number::bias) << 23);
    Ints bits;
    std::memcpy(&bits, &value, sizeof(bits));
    constexpr auto largest = static_cast<std::int32_t>(Number::largest_bits);
    constexpr std::int32_t nan = 0x7fc00000;
    constexpr std::int32_t next = Mantissa == 2 ? 0x7f800000 : nan;
    bits = magnitude > largest ? (magnitude == largest + 1 ? next - Ints{} : nan - Ints{}) : bits;
    bits |= (code & 0x80) << 24;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

/// Calls `f(channel, numbers)` with all vectors of a range's channels, unrolled.
template <class F, class Each, int... Vector>
[[gnu::always_inline]] inline void for_each_vector(unsigned char const* block, Each const& f,
                                                   std::integer_sequence<int, Vector...>) {
  (f(Vector * lanes, CodeReader<F>::template numbers<Vector * lanes>(block)), ...);
}
template <class F>
using VectorsOf = std::make_integer_sequence<int, CodeReader<F>::channels / lanes>;

HEADAWARE_TARGET_END
}  // namespace detail::simd

namespace detail {
HEADAWARE_TARGET_BEGIN

/// Scales and minima of a block's rows, converted once.
class CodeRanges {
 public:
  /// Of a row, at most.
  static constexpr std::int64_t most = 32;

  /// @param rows  [attend_block], of each `ranges` times `CodeReader::bytes` bytes from `at` on
  template <class F>
  void read(F const& format, unsigned char const* const* rows, std::int64_t at, std::int64_t ranges) {
    using Reader = simd::CodeReader<F>;
    for (std::int64_t r = 0; r < ranges; ++r) {
      float* const scales = values_ + r * attend_block;
      float* const mins = scales + to_mins;
      if constexpr (Reader::scale_at < 0) {
        std::fill_n(scales, attend_block, format.scale);
        std::fill_n(mins, attend_block, 0.0F);
      } else {
        for (int k = 0; k < attend_block; k += simd::lanes) {
          auto const halves = [&](std::int64_t within) {
            std::int64_t const half = at + r * Reader::bytes + within;
            return simd::load_halves([&](int lane) { return rows[k + lane] + half; });
          };
          simd::Floats const scale = halves(Reader::scale_at);
          simd::store(scales + k, scale);
          simd::store(mins + k, Reader::min_at >= 0 ? halves(Reader::min_at) : scale * Reader::min_per_scale);
        }
      }
    }
  }
  /// Scales of a row, `attend_block` from one range to the next.
  [[nodiscard]] float const* scales(std::int64_t row) const { return values_ + row; }
  /// Minima beside such scales.
  [[nodiscard]] static float const* mins(float const* scales) { return scales + to_mins; }

 private:
  static constexpr std::int64_t to_mins = most * attend_block;
  float values_[2 * to_mins];  ///< [2, ranges, rows]: scales, minima
};

/// A row as its format has it.
template <class F>
struct CodedRow {
  unsigned char const* bytes = nullptr;
  float const* scales = nullptr;  ///< of `CodeRanges`

  [[nodiscard]] float scale(std::int64_t range) const { return scales[range * attend_block]; }
  [[nodiscard]] float min(std::int64_t range) const { return CodeRanges::mins(scales)[range * attend_block]; }
};

/// As for rows of elements. A row at a time: its range stays in registers, and sums of rows are independent.
template <int Queries, class F>
inline void score_keys(float const* queries, CodedRow<F> const* rows, std::int64_t channels, float* scores) {
  using Reader = simd::CodeReader<F>;
  constexpr int keys = simd::lanes / Queries;
  simd::Floats sums[simd::lanes];
  for (int k = 0; k < keys; ++k) {
    simd::Floats own[std::size_t{Queries}] = {};
    unsigned char const* block = rows[k].bytes;
    std::int64_t range = 0;
    for (std::int64_t c = 0; c < channels; c += Reader::channels, block += Reader::bytes, ++range) {
      simd::Floats const scale = simd::broadcast(rows[k].scale(range));
      simd::Floats const min = simd::broadcast(rows[k].min(range));
      simd::for_each_vector<F>(
          block,
          [&](int within, simd::Floats numbers) __attribute__((always_inline)) {
            simd::Floats const key = numbers * scale + min;
            for (int q = 0; q < Queries; ++q) own[q] += simd::load(queries + q * channels + c + within) * key;
          },
          simd::VectorsOf<F>{});
    }
    for (int q = 0; q < Queries; ++q) sums[q * keys + k] = own[q];
  }
  float results[simd::lanes];
  simd::store(results, simd::sums(sums));
  for (int q = 0; q < Queries; ++q) {
    for (int k = 0; k < keys; ++k) scores[q * attend_block + k] = results[q * keys + k];
  }
}

template <int Queries, class F>
inline void weigh_values(float const* weights, CodedRow<F> const* rows, std::int64_t channels, float* sums) {
  using Reader = simd::CodeReader<F>;
  constexpr int keys = 4;
  std::int64_t offset = 0;
  std::int64_t range = 0;
  for (std::int64_t c = 0; c < channels; c += Reader::channels, offset += Reader::bytes, ++range) {
    // weight · (scale · number + min), so that numbers need not become channels.
    simd::Floats scaled[std::size_t{Queries}][keys];
    simd::Floats common[std::size_t{Queries}];
    for (int q = 0; q < Queries; ++q) {
      float constant = 0;
      for (int k = 0; k < keys; ++k) {
        float const weight = weights[q * attend_block + k];
        // A weight of 0 is one of a row beyond the end, or hidden, and the range of such a row may be no number.
        scaled[q][k] = simd::broadcast(weight == 0 ? 0.0F : weight * rows[k].scale(range));
        constant += weight == 0 ? 0.0F : weight * rows[k].min(range);
      }
      common[q] = simd::broadcast(constant);
    }
    auto const add = [&]<int Within>(std::integral_constant<int, Within>) {
      simd::Floats numbers[keys];
      for (int k = 0; k < keys; ++k) numbers[k] = Reader::template numbers<Within>(rows[k].bytes + offset);
      for (int q = 0; q < Queries; ++q) {
        float* const to = sums + q * channels + c + Within;
        simd::Floats sum = simd::load(to) + common[q];
        for (int k = 0; k < keys; ++k) sum += scaled[q][k] * numbers[k];
        simd::store(to, sum);
      }
    };
    [&]<int... Vector>(std::integer_sequence<int, Vector...>) {
      (add(std::integral_constant<int, Vector * simd::lanes>{}), ...);
    }
    (simd::VectorsOf<F>{});
  }
}

/// Writes a row's channels as floats, [channels].
template <class F>
inline void decode_codes(CodedRow<F> const& row, std::int64_t channels, float* to) {
  using Reader = simd::CodeReader<F>;
  unsigned char const* block = row.bytes;
  std::int64_t range = 0;
  for (std::int64_t c = 0; c < channels; c += Reader::channels, block += Reader::bytes, ++range) {
    simd::for_each_vector<F>(
        block,
        [&](int within, simd::Floats numbers) {
          simd::store(to + c + within, numbers * row.scale(range) + row.min(range));
        },
        simd::VectorsOf<F>{});
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
