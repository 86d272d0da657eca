#pragma once

#include <headaware/config.hpp>
#include <headaware/element.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The element whose bits a caller's type has.
template <class T>
struct ElementOf {
  using type = T;
};
template <>
struct ElementOf<__half> {
  using type = float16;
};
template <>
struct ElementOf<__nv_bfloat16> {
  using type = bfloat16;
};

/// CUDA's 16-bit types by the names that the core knows.
template <class T>
typename ElementOf<T>::type const* element_pointer(T const* data) {
  return reinterpret_cast<typename ElementOf<T>::type const*>(data);
}
template <class T>
typename ElementOf<T>::type* element_pointer(T* data) {
  return reinterpret_cast<typename ElementOf<T>::type*>(data);
}

/// `to_float` by the device's conversion instructions.
template <class E>
__device__ float element_value(E element) {
  if constexpr (std::is_same_v<E, float16>) {
    return __half2float(__ushort_as_half(element.bits));
  } else {
    return to_float(element);
  }
}

/// Two values rounded to E, side by side.
template <class E>
__device__ std::uint32_t pack_pair(float a, float b) {
  using Pair = std::conditional_t<std::is_same_v<E, float16>, __half2, __nv_bfloat162>;
  Pair pair;
  if constexpr (std::is_same_v<E, float16>) {
    pair = __floats2half2_rn(a, b);
  } else {
    pair = __floats2bfloat162_rn(a, b);
  }
  return reinterpret_cast<std::uint32_t const&>(pair);
}
template <class E>
__device__ float2 unpack_pair(std::uint32_t pair) {
  if constexpr (std::is_same_v<E, float16>) {
    return __half22float2(reinterpret_cast<__half2 const&>(pair));
  } else {
    return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 const&>(pair));
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
