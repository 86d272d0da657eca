#pragma once

// Floating-point rows as operands of matrix products (mma_codes), and the choice among all families.

#include <headaware/attention/detail/cuda/mma_codes.cuh>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/element.hpp>
#include <headaware/format/fp8.hpp>
#include <headaware/format/half.hpp>
#include <headaware/format/registry.hpp>

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Numbers of 8 bits, as the upper bytes of 16 bits, in half precision: e5m2 as they are, e4m3 times 2^-8.
template <std::int32_t Mantissa>
__device__ std::uint32_t half_numbers(std::uint32_t bytes) {
  if constexpr (Mantissa == 2) {
    return bytes & 0xff00ff00U;
  } else {
    std::uint32_t const bits = bytes >> 1 & 0x3f803f80U;
    auto const magnitude = reinterpret_cast<__half2 const&>(bits);
    // The last of all magnitudes is no number: 2^15 times it, and 6,000, is beyond half precision, of no other.
    __half2 const beyond =
        __hfma2(magnitude, __half2half2(__ushort_as_half(0x7800)), __half2half2(__ushort_as_half(0x6ddc)));
    __half2 const number = __hfma2(beyond, __half2half2(__ushort_as_half(0)), magnitude);
    return or_masked(reinterpret_cast<std::uint32_t const&>(number), bytes, 0x80008000U);
  }
}

template <std::int32_t Mantissa>
struct MmaFp8 : MmaWords<MmaFp8<Mantissa>> {
  using Element = float16;
  static constexpr std::int32_t id = 2 + Mantissa;
  static constexpr bool ranged = false;
  static constexpr bool has_min = false;
  static constexpr int ranges = 1;

  template <int>
  static __device__ void keys(std::uint32_t const* row, std::int32_t t, std::uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = row[4 * i + t];
  }
  template <int Step>
  static __device__ void digits(std::uint32_t const (&words)[4], std::uint32_t& even, std::uint32_t& odd) {
    even = half_numbers<Mantissa>(words[Step] << 8);
    odd = half_numbers<Mantissa>(words[Step]);
  }
  struct Values : ByteHalves {
    __device__ Values(CodeShape const&, std::uint32_t const* a, std::uint32_t const* b, std::int32_t g)
        : ByteHalves(a, b, g) {}
    template <int Tile>
    __device__ void rows(std::uint32_t& first, std::uint32_t& second) const {
      first = half_numbers<Mantissa>(halves[0][Tile / 2] << (Tile % 2 == 0 ? 8 : 0));
      second = half_numbers<Mantissa>(halves[1][Tile / 2] << (Tile % 2 == 0 ? 8 : 0));
    }
  };
};

/// Elements of 16 bits: keys are loaded as matrices.
template <class T>
struct MmaHalves {
  using Element = T;
  static constexpr std::int32_t id = std::is_same_v<T, float16> ? 6 : 7;
  static constexpr bool ranged = false;
  static constexpr int ranges = 1;

  struct Values {
    std::uint32_t words[4][2];

    __device__ Values(CodeShape const&, std::uint32_t const* a, std::uint32_t const* b, std::int32_t g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i][0] = a[g + 8 * i];
        words[i][1] = b[g + 8 * i];
      }
    }
    template <int Tile>
    __device__ void rows(std::uint32_t& first, std::uint32_t& second) const {
      first = __byte_perm(words[Tile][0], words[Tile][1], 0x5410U);
      second = __byte_perm(words[Tile][0], words[Tile][1], 0x7632U);
    }
  };
};

template <std::int32_t Mantissa>
struct MmaCodes<Fp8<Mantissa>> {
  using Family = MmaFp8<Mantissa>;
  static constexpr bool known = true;
  static HEADAWARE_HOST_DEVICE constexpr CodeShape shape() {
    constexpr bool e5 = Mantissa == 2;
    return {.family = Family::id,
            .words = 16,
            .places = {32, 2, 1, 4},
            .signs = 0x80808080U,
            .beyond = e5 ? 0x04040404U : 0x01010101U,
            .factor = e5 ? 1.0F : 0x1p8F};
  }
};
template <class T>
struct MmaCodes<HalfRows<T>> {
  using Family = MmaHalves<T>;
  static constexpr bool known = true;
  static HEADAWARE_HOST_DEVICE constexpr CodeShape shape() {
    constexpr bool half = std::is_same_v<T, float16>;
    return {.family = Family::id,
            .words = 32,
            .ordered = true,
            .places = {1, 32, 16, 2},
            .signs = 0x80008000U,
            .beyond = half ? 0x04000400U : 0x00800080U};
  }
};

/// Whether keys, or values, are elements that lie as they are.
template <class Family>
inline constexpr bool is_halves = Family::id >= 6;

/// How a format lies.
template <class... Formats>
__device__ CodeShape code_shape(AnyFormat<FormatRegistry<Formats...>> const& any) {
  CodeShape result;
  auto const take = [&]<class F>(F const& format) {
    result = MmaCodes<F>::shape();
    if constexpr (requires { format.scale; }) result.factor *= format.scale;
  };
  (void)((any.template is<Formats>() && (take(any.template get<Formats>()), true)) || ...);
  return result;
}

/// Whether matrix products take all formats of a registry, and whether some of them are of a family.
template <class Registry>
struct MmaFormats;
template <class... Formats>
struct MmaFormats<FormatRegistry<Formats...>> {
  static constexpr bool known = (MmaCodes<Formats>::known && ...);
  template <class Family>
  static constexpr bool has = [] {
    auto const is = []<class F>(std::type_identity<F>) { return std::is_same_v<typename MmaCodes<F>::Family, Family>; };
    return (is(std::type_identity<Formats>{}) || ...);
  }();
};

/// Calls `f` with the family whose `id` is given, in the caller's code: what `f` refers to stays in registers.
template <class Registry, class F, class... Families>
__device__ __forceinline__ void visit_families(std::int32_t id, F const& f, std::type_identity<Families>...) {
  auto const visit = [&]<class Family>(std::type_identity<Family>) {
    if constexpr (MmaFormats<Registry>::template has<Family>) {
      if (id != Family::id) return false;
      f(Family{});
      return true;
    } else {
      return false;
    }
  };
  (void)(visit(std::type_identity<Families>{}) || ...);
}
template <class Registry, class F>
__device__ __forceinline__ void visit_family(std::int32_t id, F const& f) {
  visit_families<Registry>(id, f, std::type_identity<MmaPacked>{}, std::type_identity<MmaInt8>{},
                           std::type_identity<MmaQ8>{}, std::type_identity<MmaQ4>{}, std::type_identity<MmaFp8<2>>{},
                           std::type_identity<MmaFp8<3>>{}, std::type_identity<MmaHalves<float16>>{},
                           std::type_identity<MmaHalves<bfloat16>>{});
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
