#pragma once

#include <headaware/config.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
// Not by what the target has beyond the architecture: the linker keeps one copy of these for all units of a program.
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Copies past the CPU's caches: an ordinary store would first read the line that it overwrites, and
/// a compressed cache is larger than they are. Measured against `memcpy` in benchmarks/compaction.cpp and append.cpp.
/// @post  Other threads see the bytes once this one has called `stream_fence` and told them
inline void stream_bytes(void* target, void const* source, std::size_t bytes) {
#if defined(__x86_64__)
  constexpr std::size_t line = 64;
  auto* to = static_cast<std::byte*>(target);
  auto const* from = static_cast<std::byte const*>(source);
  std::size_t const head = (line - reinterpret_cast<std::uintptr_t>(to) % line) % line;
  // Short stretches and misaligned ends go through the cache.
  if (bytes >= head + line) {
    if (head != 0) std::memcpy(to, from, head);
    std::size_t at = head;
    for (; at + line <= bytes; at += line) {
      auto const* in = reinterpret_cast<__m128i const*>(from + at);
      auto* out = reinterpret_cast<__m128i*>(to + at);
      __m128i const a = _mm_loadu_si128(in);
      __m128i const b = _mm_loadu_si128(in + 1);
      __m128i const c = _mm_loadu_si128(in + 2);
      __m128i const d = _mm_loadu_si128(in + 3);
      _mm_stream_si128(out, a);
      _mm_stream_si128(out + 1, b);
      _mm_stream_si128(out + 2, c);
      _mm_stream_si128(out + 3, d);
    }
    if (at < bytes) std::memcpy(to + at, from + at, bytes - at);
    return;
  }
#endif
  std::memcpy(target, source, bytes);
}

/// Orders what this thread has streamed before what it stores next.
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

/// Calls `stream_fence` when it goes out of scope, also after an exception.
class StreamFence {
 public:
  StreamFence() = default;
  StreamFence(StreamFence const&) = delete;
  StreamFence& operator=(StreamFence const&) = delete;
  ~StreamFence() { stream_fence(); }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
