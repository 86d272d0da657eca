#pragma once

/// @file
/// Error text of functions that return `cudaError_t`.

#include <headaware/config.hpp>

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

/// @brief Returns why the last call of this thread that returned an error failed: what, expected, got and where, as in
/// the exceptions of host functions.
///
/// Read it when a function of this library has not returned `cudaSuccess`; those that succeed do not change it. Errors
/// that CUDA finds later, while kernels run, are not reported here.
/// @return never nullptr; empty before the first error; valid until this thread's next error; at most 1,023 bytes
/// @note   Each shared library that hides its symbols has texts of its own: ask in the one that made the call.
[[nodiscard]] inline char const* last_error_message() noexcept { return detail::last_error().text; }

HEADAWARE_NAMESPACE_END
