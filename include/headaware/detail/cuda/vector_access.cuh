#pragma once

#include <headaware/config.hpp>

#include <cuda_runtime_api.h>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The widest power-of-two access, in elements, that `run` elements and all the addresses allow.
/// @param addresses  all of them, joined by `|`
template <class T>
std::int64_t vector_elements(std::int64_t run, std::uintptr_t addresses) {
  std::int64_t width = 16 / static_cast<std::int64_t>(sizeof(T));
  auto const fits = [&](std::int64_t elements) {
    return run % elements == 0 && addresses % (static_cast<std::uintptr_t>(elements) * sizeof(T)) == 0;
  };
  while (width > 1 && !fits(width)) width /= 2;
  return width;
}

/// `Count` elements that move in one access.
template <class E, int Count>
struct alignas(sizeof(E) * Count) Pack {
  E elements[Count];
};

/// @brief Calls `f.operator()<Vector>()` with the type of an access of `bytes` bytes: a power of two.
/// @tparam Widest  bytes of the widest access that occurs
template <int Widest = 16, class F>
__device__ void with_vector(std::int32_t bytes, F const& f) {
  if constexpr (Widest >= 16) {
    if (bytes == 16) return f.template operator()<uint4>();
  }
  switch (bytes) {
    case 8: return f.template operator()<uint2>();
    case 4: return f.template operator()<std::uint32_t>();
    case 2: return f.template operator()<std::uint16_t>();
    default: return f.template operator()<std::uint8_t>();
  }
}

/// A thread's place in rows of `per_row` items; steps over a block's threads without dividing.
struct RowCursor {
  std::int32_t row;
  std::int32_t column;
  std::int32_t per_row;
  std::int32_t row_step;
  std::int32_t column_step;

  __device__ RowCursor(std::int32_t items_per_row, std::int32_t threads)
      : row(static_cast<std::int32_t>(threadIdx.x) / items_per_row),
        column(static_cast<std::int32_t>(threadIdx.x) % items_per_row),
        per_row(items_per_row),
        row_step(threads / items_per_row),
        column_step(threads % items_per_row) {}
  __device__ void advance() {
    row += row_step;
    column += column_step;
    if (column >= per_row) {
      column -= per_row;
      ++row;
    }
  }
};

/// Copies bytes within one tensor, by one block. @param from, to, bytes  multiples of `vector_bytes`
__device__ inline void copy_bytes(char* data, std::int64_t from, std::int64_t to, std::int64_t bytes,
                                  std::int32_t vector_bytes) {
  with_vector(vector_bytes, [&]<class Vector>() {
    auto const* const source = reinterpret_cast<Vector const*>(data + from);
    auto* const target = reinterpret_cast<Vector*>(data + to);
    auto const count = bytes / static_cast<std::int64_t>(sizeof(Vector));
    for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) target[i] = source[i];
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
