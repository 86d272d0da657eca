#pragma once

/// @file
/// A block of a row's channels encoded by one thread of a kernel, by the code of the CPU, so that every bit is the
/// CPU's.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/format/hadamard.hpp>
#include <headaware/format/table.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Reads a block's channels; of those that are not there, zeros.
template <std::int32_t Group, class T, class At>
__device__ void read_block(T const* data, At const& at, std::int64_t first, std::int64_t channels, bool adjacent,
                           float* x) {
  constexpr std::int32_t width = 16 / static_cast<std::int32_t>(sizeof(T));
  T const* const begin = data + at(first);
  if (Group % width == 0 && adjacent && first + Group <= channels &&
      reinterpret_cast<std::uintptr_t>(begin) % 16 == 0) {
    if constexpr (Group % width == 0) {
#pragma unroll
      for (std::int32_t i = 0; i < Group; i += width) {
        struct alignas(16) Vector {
          T elements[width];
        };
        Vector const v = *reinterpret_cast<Vector const*>(begin + i);
#pragma unroll
        for (std::int32_t j = 0; j < width; ++j) x[i + j] = to_float(v.elements[j]);
      }
    }
    return;
  }
#pragma unroll
  for (std::int32_t i = 0; i < Group; ++i) x[i] = first + i < channels ? to_float(data[at(first + i)]) : 0.0F;
}

/// Leaves a block as it has been read.
struct StayInPlace {
  template <class Group, class T, class At>
  __device__ void operator()(Group, T const*, At const&, std::int64_t, float*) const {}
};

/// Whether `Format` is the first of these of its group.
template <class Format, class First, class... Rest>
HEADAWARE_HOST_DEVICE constexpr bool is_first_of_group() {
  if constexpr (First::group == Format::group) {
    return std::is_same_v<First, Format>;
  } else {
    return is_first_of_group<Format, Rest...>();
  }
}

/// Calls `f` with a format's group as a constant: what is done before rows are encoded is compiled once for all formats
/// of a group, of which there are many.
template <class... Formats, class F>
__device__ __forceinline__ void visit_group(AnyFormat<FormatRegistry<Formats...>> const& any, F const& f) {
  std::int32_t const group =
      any.visit([](auto const& format) { return std::int32_t{std::remove_cvref_t<decltype(format)>::group}; });
  auto const call = [&]<class Format>(std::type_identity<Format>) {
    if constexpr (is_first_of_group<Format, Formats...>()) {
      if (group == Format::group) f(std::integral_constant<std::int32_t, Format::group>{});
    }
  };
  (call(std::type_identity<Formats>{}), ...);
}

/// Encodes one block of a row's key or value.
/// @param at      (channel) to its element in `data`
/// @param number  of the block in the key or value
/// @param to      where that begins
/// @param turn    (group, data, at, first channel, x) changes the block before it is encoded
template <class Registry, class T, class At, class Turn>
__device__ __forceinline__ void encode_block(AnyFormat<Registry> const& any, T const* data, At const& at, bool adjacent,
                                             std::int64_t channels, std::int32_t number, std::uint32_t* to,
                                             Turn const& turn) {
  visit_group(any, [&]<std::int32_t Group>(std::integral_constant<std::int32_t, Group> group) {
    std::int64_t const first = std::int64_t{number} * Group;
    float x[Group];
    read_block<Group>(data, at, first, channels, adjacent, x);
    turn(group, data, at, first, x);
    any.visit([&]<class Format>(Format const& format) {
      if constexpr (Format::group == Group) {
        if constexpr (Format::rotated) rotate_block<Group>(x);
        format.encode(x, to + std::int64_t{number} * Format::block_words);
      }
    });
  });
}

/// Writes zeros after a row's words, to a whole unit.
template <class Registry>
__device__ void clear_row_end(BasicHeadFormats<Registry> const& formats, std::int64_t head_dim, std::int64_t value_dim,
                              std::int32_t units, std::uint32_t* words) {
  std::int64_t const used = formats.key.row_words(head_dim) + formats.value.row_words(value_dim);
  for (std::int64_t w = used; w < std::int64_t{4} * units; ++w) words[w] = 0;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
