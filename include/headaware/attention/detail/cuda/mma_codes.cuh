#pragma once

// Codes as operands of matrix products. The last bits of a half-precision number are, alone, that many 2^-24: a code in
// the low bits of 16 is a number that products take as it is, exactly, and one shifted left is a power of two larger.
// So a mask makes operands of two codes at a time; scales multiply what becomes of a range of them.
//
// Keys. A lane has channels 16 i + 4 t … + 3 of two rows, t = lane % 4: the even ones, and the odd ones, are neighbours
// in operands, and queries lie in the same order. Shifted codes meet queries that are smaller. Codes' high bits that
// lie in planes are channels of further products, with queries in an order of their own (`plane_place`).
// Values. Operands are pairs of tokens; a lane has two channels of each of four tiles of 64 (`CodePlaces`), and what
// codes are shifted by is taken from the sums in the end.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/element.hpp>
#include <headaware/format/int8.hpp>
#include <headaware/format/llama_blocks.hpp>
#include <headaware/format/packed.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Which of 64 channels of values a lane has: half · of_half + tile / 2 · of_pair + tile % 2 · of_tile + lane / 4 ·
/// of_lane.
struct CodePlaces {
  std::int32_t of_half;
  std::int32_t of_pair;
  std::int32_t of_tile;
  std::int32_t of_lane;
};

/// How a format's 64 channels lie, and what products of them are.
struct CodeShape {
  std::int32_t family = 0;       ///< `id` of the operands' maker
  std::int32_t words = 0;        ///< of 64 channels
  std::int32_t ranges = 0;       ///< each with a scale of its own; 0: there are none
  std::int32_t scale_at = 0;     ///< bytes before the first scale, in half precision; a minimum follows if there is one
  std::int32_t range_bytes = 0;  ///< from one scale to the next
  std::int32_t origin = 0;       ///< the code of 0, or, above a minimum, of the middle
  std::int32_t planes = 0;       ///< of codes' high bits
  std::int32_t shifted = 0;      ///< bit of the number of keys' channels whose codes are shifted left by 4
  bool shifted_half = false;     ///< codes of values in a lane's second half are
  bool nibbles = true;           ///< low bits are not in planes
  bool has_min = false;
  bool turned = false;
  bool ordered = false;      ///< keys' elements, and queries, lie in their order
  CodePlaces places{};       ///< of values
  std::uint32_t signs = 0;   ///< of a word's numbers, where there are no ranges
  std::uint32_t beyond = 0;  ///< what makes the sign's bit of a magnitude that is no number, or infinite
  float factor = 1;          ///< a channel is the product's number times this, and a range's scale

  /// Words of a row: whole blocks of 64 where there are ranges.
  [[nodiscard]] __device__ std::int32_t row_words(std::int32_t channels) const {
    return ranges != 0 ? (channels + 63) / 64 * words : channels * words / 64;
  }
};

/// How a family of formats becomes operands: `Element`; `ranged`, with scales, and `has_min`, with minima; `ranges` of
/// 64 channels; `multiply_keys<R>`, which calls `multiply.operator()
/// <Plane, Step>(a, next)` with operands of 16 channels from `Step` · 16 on and the next 16 of range R; `Values` of two
/// tokens and 64 channels, with `rows<Tile>`.
/// Packed<3..6>: nibbles, and planes.
struct MmaPacked {
  using Element = float16;
  static constexpr std::int32_t id = 0;
  static constexpr bool ranged = true;
  static constexpr bool has_min = true;
  static constexpr int ranges = 1;

  template <int R, class Multiply>
  static __device__ __forceinline__ void multiply_keys(CodeShape const& shape, std::uint32_t const* const (&rows)[2],
                                                       std::int32_t t, Multiply const& multiply) {
    if (shape.nibbles) {
      std::uint32_t words[2][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i / 2][i % 2] = rows[i % 2][4 * (i / 2) + t];
      auto const step = [&]<int Step>() {
        constexpr std::uint32_t mask = Step == 0 ? 0x000f000fU : 0x00f000f0U;
        std::uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[i / 2][i % 2] = words[i / 2][i % 2] & mask;
          a[i / 2][i % 2 + 2] = words[i / 2][i % 2] >> 8 & mask;
        }
        multiply.template operator()<false, Step>(a[0], a[1]);
      };
      step.template operator()<0>();
      step.template operator()<2>();
    }
    std::int32_t const first = shape.nibbles ? 8 : 0;
    std::int32_t bit = shape.nibbles ? 4 : 0;
#pragma unroll 1
    for (std::int32_t at = first; at < shape.words - 1; at += 2, ++bit) {
      // Bits 4 t … + 3 of each half of a word go where the code has them, and 1, 2, 3 bits on.
      std::uint32_t words[2][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t const bits = rows[i % 2][at + i / 2];
        words[i / 2][i % 2] = __funnelshift_r(bits, bits, static_cast<std::uint32_t>(4 * t - bit));
      }
      auto const mask = 0x00010001U << bit;
      auto const step = [&]<int Step>() {
        std::uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          a[0][i] = words[Step / 2][i] & mask;
          a[0][i + 2] = words[Step / 2][i] & mask << 1;
          a[1][i] = words[Step / 2][i] & mask << 2;
          a[1][i + 2] = words[Step / 2][i] & mask << 3;
        }
        multiply.template operator()<true, Step>(a[0], a[1]);
      };
      step.template operator()<0>();
      step.template operator()<2>();
    }
  }

  struct Values {
    std::uint32_t channels[4][2];

    __device__ __forceinline__ Values(CodeShape const& shape, std::uint32_t const* a, std::uint32_t const* b,
                                      std::int32_t g) {
      std::int32_t at = 0;
      std::int32_t bit = 0;
      if (shape.nibbles) {
        std::uint32_t const words[2] = {__byte_perm(a[g], b[g], 0x5410U), __byte_perm(a[g], b[g], 0x7632U)};
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          std::uint32_t const both = words[tile / 2] >> (tile % 2 * 8);
          channels[tile][0] = both & 0x000f000fU;
          channels[tile][1] = both & 0x00f000f0U;
        }
        at = 8;
        bit = 4;
      } else {
#pragma unroll
        for (auto& tile : channels) tile[0] = tile[1] = 0;
      }
#pragma unroll 1
      for (; at < shape.words - 1; at += 2, ++bit) {
        // The byte with bits 4 g … + 3, twice, of either token; these bits go where the code has them, of the second
        // half 4 bits on.
        auto const byte = 0x4400U + 0x1111U * static_cast<std::uint32_t>(g / 2);
        auto const by = static_cast<std::uint32_t>(bit - g % 2 * 4);
        std::uint32_t const first = __byte_perm(a[at], b[at], byte);
        std::uint32_t const second = __byte_perm(a[at + 1], b[at + 1], byte);
        std::uint32_t const bits =
            select_bits(__funnelshift_l(first, first, by), __funnelshift_l(second, second, by + 4), 0x00f000f0U << bit);
        std::uint32_t const mask = 0x00010001U << bit;
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          channels[tile][0] = or_masked(channels[tile][0], bits >> tile, mask);
          channels[tile][1] = or_masked(channels[tile][1], bits >> tile, mask << 4);
        }
      }
    }
    template <int Tile>
    __device__ void rows(std::uint32_t& first, std::uint32_t& second) const {
      first = channels[Tile][0];
      second = channels[Tile][1];
    }
  };
};

/// Where the query of a channel of 64 lies in the order of planes: channels 16 apart are neighbours in operands.
__device__ constexpr std::int32_t plane_place(std::int32_t channel) {
  std::int32_t const within = channel % 4;
  return (channel / 32 * 2 + within / 2) * 16 + channel % 16 / 4 * 2 + channel / 16 % 2 + within % 2 * 8;
}

/// Keys of which a lane has a word of every 16 channels: `Maker::keys` reads four, `digits` makes operands of one.
template <class Maker>
struct MmaWords {
  template <int R, class Multiply>
  static __device__ __forceinline__ void multiply_keys(CodeShape const&, std::uint32_t const* const (&rows)[2],
                                                       std::int32_t t, Multiply const& multiply) {
    constexpr int count = 4 / Maker::ranges;
    std::uint32_t words[2][4];
#pragma unroll
    for (int row = 0; row < 2; ++row) Maker::template keys<R>(rows[row], t, words[row]);
    unrolled<count / 2>([&]<int Two>() {
      std::uint32_t a[2][4];
      unrolled<4>([&]<int I>() {
        Maker::template digits<Two * 2 + I / 2>(words[I % 2], a[I / 2][I % 2], a[I / 2][I % 2 + 2]);
      });
      multiply.template operator()<false, R * count + Two * 2>(a[0], a[1]);
    });
  }
};

/// Signed bytes: a code is its distance from -128.
__device__ inline void signed_digits(std::uint32_t bytes, std::uint32_t& even, std::uint32_t& odd) {
  even = and_xor(bytes, 0x00ff00ffU, 0x00800080U);
  odd = and_xor(bytes >> 8, 0x00ff00ffU, 0x00800080U);
}
/// Halves of words of two tokens: of bytes `lane / 4` and 8 words on, tile by tile.
struct ByteHalves {
  std::uint32_t halves[2][2];

  __device__ ByteHalves(std::uint32_t const* a, std::uint32_t const* b, std::int32_t g) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      halves[i / 2][i % 2] = __byte_perm(a[g + i / 2 * 8], b[g + i / 2 * 8], i % 2 == 0 ? 0x5410U : 0x7632U);
  }
};

struct MmaInt8 : MmaWords<MmaInt8> {
  using Element = float16;
  static constexpr std::int32_t id = 1;
  static constexpr bool ranged = true;
  static constexpr bool has_min = false;
  static constexpr int ranges = 1;

  template <int>
  static __device__ void keys(std::uint32_t const* row, std::int32_t t, std::uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = row[4 * i + t];
  }
  template <int Step>
  static __device__ void digits(std::uint32_t const (&words)[4], std::uint32_t& even, std::uint32_t& odd) {
    signed_digits(words[Step], even, odd);
  }
  struct Values : ByteHalves {
    __device__ Values(CodeShape const&, std::uint32_t const* a, std::uint32_t const* b, std::int32_t g)
        : ByteHalves(a, b, g) {}
    template <int Tile>
    __device__ void rows(std::uint32_t& first, std::uint32_t& second) const {
      first = and_xor(halves[0][Tile / 2] >> (Tile % 2 * 8), 0x00ff00ffU, 0x00800080U);
      second = and_xor(halves[1][Tile / 2] >> (Tile % 2 * 8), 0x00ff00ffU, 0x00800080U);
    }
  };
};

/// llama.cpp's blocks of bytes: the first 32 codes begin in the middle of a word.
struct MmaQ8 : MmaWords<MmaQ8> {
  using Element = float16;
  static constexpr std::int32_t id = 2;
  static constexpr bool ranged = true;
  static constexpr bool has_min = false;
  static constexpr int ranges = 2;

  template <int R>
  static __device__ void keys(std::uint32_t const* row, std::int32_t t, std::uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      words[i] = R == 0 ? __funnelshift_r(row[4 * i + t], row[4 * i + t + 1], 16) : row[9 + 4 * i + t];
    }
  }
  template <int Step>
  static __device__ void digits(std::uint32_t const (&words)[4], std::uint32_t& even, std::uint32_t& odd) {
    signed_digits(words[Step], even, odd);
  }
  struct Values {
    std::uint32_t halves[4];

    __device__ Values(CodeShape const&, std::uint32_t const* a, std::uint32_t const* b, std::int32_t g) {
      halves[0] = __byte_perm(a[g], b[g], 0x7632U);
      halves[1] = __byte_perm(a[g + 1], b[g + 1], 0x5410U);
      halves[2] = __byte_perm(a[g + 9], b[g + 9], 0x5410U);
      halves[3] = __byte_perm(a[g + 9], b[g + 9], 0x7632U);
    }
    template <int Tile>
    __device__ void rows(std::uint32_t& first, std::uint32_t& second) const {
      signed_digits(halves[Tile], first, second);
    }
  };
};

/// llama.cpp's blocks of nibbles.
struct MmaQ4 : MmaWords<MmaQ4> {
  using Element = float16;
  static constexpr std::int32_t id = 3;
  static constexpr bool ranged = true;
  static constexpr bool has_min = false;
  static constexpr int ranges = 2;

  template <int R>
  static __device__ void keys(std::uint32_t const* row, std::int32_t t, std::uint32_t (&words)[4]) {
    words[0] = R == 0 ? __funnelshift_r(row[t], row[t + 1], 16) : row[t + 5];
  }
  template <int Step>
  static __device__ void digits(std::uint32_t const (&words)[4], std::uint32_t& even, std::uint32_t& odd) {
    constexpr std::uint32_t mask = Step == 0 ? 0x000f000fU : 0x00f000f0U;
    even = words[0] & mask;
    odd = words[0] >> 8 & mask;
  }
  struct Values {
    std::uint32_t halves[2];

    __device__ Values(CodeShape const&, std::uint32_t const* a, std::uint32_t const* b, std::int32_t g) {
      std::int32_t const first = (g + 1) / 2;
      std::int32_t const second = g / 2 + 5;
      halves[0] = __byte_perm(a[first], b[first], g % 2 == 0 ? 0x7632U : 0x5410U);
      halves[1] = __byte_perm(a[second], b[second], g % 2 == 0 ? 0x5410U : 0x7632U);
    }
    template <int Tile>
    __device__ void rows(std::uint32_t& first, std::uint32_t& second) const {
      std::uint32_t const both = halves[Tile / 2] >> (Tile % 2 * 8);
      first = both & 0x000f000fU;
      second = both & 0x00f000f0U;
    }
  };
};

/// What products make of a format. @tparam F  of a registry; `known` where there is something
template <class F>
struct MmaCodes {
  static constexpr bool known = false;
};
template <std::int32_t Bits>
struct MmaCodes<Packed<Bits>> {
  using Family = MmaPacked;
  using Format = Packed<Bits>;
  static constexpr bool known = true;
  static HEADAWARE_HOST_DEVICE constexpr CodeShape shape() {
    return {.family = Family::id,
            .words = Format::block_words,
            .ranges = 1,
            .scale_at = 4 * Format::block_words - 4,
            .origin = 1 << (Bits - 1),
            .planes = Format::plane_bits,
            .shifted = 32,
            .shifted_half = true,
            .nibbles = Format::nibble_words > 0,
            .has_min = true,
            .turned = true,
            .places = {32, 2, 1, 4},
            .factor = 0x1p24F};
  }
};
template <>
struct MmaCodes<Int8> {
  using Family = MmaInt8;
  static constexpr bool known = true;
  static HEADAWARE_HOST_DEVICE constexpr CodeShape shape() {
    return {.family = Family::id,
            .words = Int8::block_words,
            .ranges = 1,
            .scale_at = 64,
            .origin = 128,
            .places = {32, 2, 1, 4},
            .factor = 0x1p24F};
  }
};
template <>
struct MmaCodes<LlamaQ8> {
  using Family = MmaQ8;
  static constexpr bool known = true;
  static HEADAWARE_HOST_DEVICE constexpr CodeShape shape() {
    return {.family = Family::id,
            .words = LlamaQ8::block_words,
            .ranges = 2,
            .range_bytes = 34,
            .origin = 128,
            .places = {1, 32, 2, 4},
            .factor = 0x1p24F};
  }
};
template <>
struct MmaCodes<LlamaQ4> {
  using Family = MmaQ4;
  static constexpr bool known = true;
  static HEADAWARE_HOST_DEVICE constexpr CodeShape shape() {
    return {.family = Family::id,
            .words = LlamaQ4::block_words,
            .ranges = 2,
            .range_bytes = 18,
            .origin = 8,
            .shifted = 16,
            .shifted_half = true,
            .places = {16, 32, 1, 2},
            .factor = 0x1p24F};
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
