#pragma once

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// One buffer of a temporary storage: where its pointer goes, and how many elements it has.
template <class T>
struct TempBuffer {
  T*& pointer;
  std::int64_t count;

  static constexpr std::size_t alignment = 16;
  [[nodiscard]] std::size_t bytes() const {
    return (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
  }
};

/// @brief CUB's two calls: lays several buffers out in one blob, each aligned to 16 bytes, whatever `d_temp` is.
/// @param d_temp      device; nullptr: size query, sets `temp_bytes` alone
/// @param temp_bytes  includes the room to align
/// @return whether the buffers have been placed
/// @throws ArgumentError where the storage is too small
template <class... T>
bool place_buffers(void* d_temp, std::size_t& temp_bytes, char const* where, TempBuffer<T> const&... buffers) {
  constexpr std::size_t alignment = TempBuffer<char>::alignment;
  static_assert(((alignof(T) <= alignment) && ...));
  std::size_t const bytes = (buffers.bytes() + ... + 0);
  std::size_t const needed = bytes == 0 ? 0 : bytes + alignment - 1;
  if (d_temp == nullptr) {
    temp_bytes = needed;
    return false;
  }
  require(temp_bytes >= needed, "temporary storage in bytes", needed, temp_bytes, where);
  std::uintptr_t next = (reinterpret_cast<std::uintptr_t>(d_temp) + alignment - 1) / alignment * alignment;
  ((buffers.pointer = reinterpret_cast<T*>(next), next += buffers.bytes()), ...);
  return true;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
