#pragma once

/// @file
/// What functions that return `cudaError_t` have to say beyond the code.

#include <headaware/config.hpp>

#include <cstddef>
#include <cstdio>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// This thread's text: an array, so that keeping one takes no memory.
struct LastError {
  char text[1024];
};
inline LastError& last_error() noexcept {
  thread_local LastError error{};
  return error;
}
inline void keep_last_error(char const* text) noexcept {
  LastError& error = last_error();
  std::snprintf(error.text, sizeof(error.text), "%s", text);
}

}  // namespace detail

/// @brief Says why the last call of this thread that returned an error did so: what, what was expected, what was found
/// and where, as the exceptions of host functions do.
///
/// Meant to be read when a function of this library has returned something else than `cudaSuccess`; those that succeed
/// leave it as it is. Errors that CUDA finds later, while kernels run, are not among it.
/// @return never nullptr; empty before the first error; valid until this thread's next error; at most 1,023 bytes
/// @note   Each shared library that hides its symbols has texts of its own: ask in the one that made the call.
[[nodiscard]] inline char const* last_error_message() noexcept { return detail::last_error().text; }

HEADAWARE_NAMESPACE_END
