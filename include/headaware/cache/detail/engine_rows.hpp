#pragma once

// Rows of formats that engines have, between an engine's tensors and packed rows: one core on host and device. A packed
// row has the bytes of the engine's key, zeros to whole blocks of the format, those of the value likewise, and zeros to
// a whole unit.

#include <headaware/config.hpp>
#include <headaware/format/table.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// How a key or a value lies: bytes in the engine's tensor, words in a packed row.
struct EnginePart {
  std::int32_t bytes = 0;
  std::int32_t words = 0;
};

/// A key and a value of one segment.
struct EngineRow {
  EnginePart key{};
  EnginePart value{};
};

/// Reads or writes `Access` of an engine's row, aligned on a device.
template <class Access>
HEADAWARE_HOST_DEVICE Access load_access(std::byte const* from) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<Access const*>(from);
#else
  Access access{};
  std::memcpy(&access, from, sizeof(Access));
  return access;
#endif
}
template <class Access>
HEADAWARE_HOST_DEVICE void store_access(std::byte* to, Access access) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<Access*>(to) = access;
#else
  std::memcpy(to, &access, sizeof(Access));
#endif
}

/// Word `index` of an engine's row; bytes after its last one are zeros. @tparam Access  divides the row's bytes
template <class Access>
HEADAWARE_HOST_DEVICE std::uint32_t load_engine_word(std::byte const* row, std::int32_t bytes, std::int32_t index) {
  constexpr auto width = static_cast<std::int32_t>(sizeof(Access));
  std::uint32_t word = 0;
  HEADAWARE_UNROLL
  for (std::int32_t i = 0; i < 4; i += width) {
    if (4 * index + i < bytes) {
      word |= static_cast<std::uint32_t>(load_access<Access>(row + 4 * index + i)) << (8 * i);
    }
  }
  return word;
}

/// Writes word `index` of an engine's row, as far as that goes.
template <class Access>
HEADAWARE_HOST_DEVICE void store_engine_word(std::byte* row, std::int32_t bytes, std::int32_t index,
                                             std::uint32_t word) {
  constexpr auto width = static_cast<std::int32_t>(sizeof(Access));
  HEADAWARE_UNROLL
  for (std::int32_t i = 0; i < 4; i += width) {
    if (4 * index + i < bytes) store_access(row + 4 * index + i, static_cast<Access>(word >> (8 * i)));
  }
}

/// Calls `f(word of the unit, whether it is the key's, its index there)` with each word that is the key's or the
/// value's.
template <class F>
HEADAWARE_HOST_DEVICE void for_words_of_unit(EngineRow const& of, std::int32_t unit, F const& f) {
  HEADAWARE_UNROLL
  for (std::int32_t i = 0; i < 4; ++i) {
    std::int32_t const word = 4 * unit + i;
    std::int32_t const of_value = word - of.key.words;
    if (of_value < 0) {
      f(i, true, word);
    } else if (of_value < of.value.words) {
      f(i, false, of_value);
    }
  }
}

/// Moves unit `unit` of a packed row between it and an engine's key and value: in, if those may not be written.
/// @tparam Access  integer that divides their bytes @param value  not touched if the row has none
template <class Access, class Byte, class Unit>
HEADAWARE_HOST_DEVICE void move_engine_unit(EngineRow const& of, std::int32_t unit, Byte* key, Byte* value, Unit* row) {
  if constexpr (std::is_const_v<Byte>) {
    RowUnit moved;
    for_words_of_unit(of, unit, [&](std::int32_t i, bool is_key, std::int32_t word) {
      moved.words[i] = is_key ? load_engine_word<Access>(key, of.key.bytes, word)
                              : load_engine_word<Access>(value, of.value.bytes, word);
    });
    row[unit] = moved;
  } else {
    RowUnit const moved = row[unit];
    for_words_of_unit(of, unit, [&](std::int32_t i, bool is_key, std::int32_t word) {
      if (is_key) {
        store_engine_word<Access>(key, of.key.bytes, word, moved.words[i]);
      } else {
        store_engine_word<Access>(value, of.value.bytes, word, moved.words[i]);
      }
    });
  }
}

/// The same with accesses of `width` bytes: 1, 2 or 4.
template <class Byte, class Unit>
HEADAWARE_HOST_DEVICE void move_engine_unit(std::int32_t width, EngineRow const& of, std::int32_t unit, Byte* key,
                                            Byte* value, Unit* row) {
  if (width == 4) {
    move_engine_unit<std::uint32_t>(of, unit, key, value, row);
  } else if (width == 2) {
    move_engine_unit<std::uint16_t>(of, unit, key, value, row);
  } else {
    move_engine_unit<std::uint8_t>(of, unit, key, value, row);
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
