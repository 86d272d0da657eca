#pragma once

/// @file
/// The exceptions of headaware's host functions. Functions that launch kernels throw nothing and
/// return `cudaError_t` instead.

#include <headaware/config.hpp>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief What went wrong, what was expected, what was found instead, and where.
struct ErrorDetail {
  std::string what;      ///< the thing that is wrong, for example "negative window"
  std::string expected;  ///< for example "window >= 0"
  std::string got;       ///< for example "-3"
  std::string where;     ///< file and place in it, or function and argument
};

/// @brief Base of all exceptions thrown by headaware.
class Error : public std::runtime_error {
 public:
  explicit Error(ErrorDetail detail) : std::runtime_error(message(detail)), detail_(std::move(detail)) {}

  /// The parts of the message, for programs that react to them.
  [[nodiscard]] ErrorDetail const& detail() const noexcept { return detail_; }

 private:
  static std::string message(ErrorDetail const& d) {
    return "headaware: " + d.what + ": expected " + d.expected + ", got " + d.got + " (" + d.where + ")";
  }
  ErrorDetail detail_;
};

/// @brief A caller's argument is outside what a function takes.
class ArgumentError : public Error {
  using Error::Error;
};

/// @brief The contents of a file or a document are not what their format asks for.
class FormatError : public Error {
  using Error::Error;
};

/// @brief A file cannot be opened, read, written or renamed.
class FileError : public Error {
  using Error::Error;
};

/// @brief A pool has nothing left to give; nothing has changed, and the caller may free some and try again.
class CapacityError : public Error {
  using Error::Error;
};

namespace detail {

/// Throws `ArgumentError` unless `ok`; the strings are only built on failure.
template <class Expected, class Got>
void require(bool ok, char const* what, Expected const& expected, Got const& got, char const* where) {
  if (ok) return;
  auto text = [](auto const& value) -> std::string {
    if constexpr (requires { std::to_string(value); }) {
      return std::to_string(value);
    } else {
      return std::string(value);
    }
  };
  throw ArgumentError({what, text(expected), text(got), where});
}

/// Throws `ArgumentError` for a null pointer.
inline void require_pointer(void const* data, char const* what, char const* where) {
  require(data != nullptr, what, "a pointer", "nullptr", where);
}

/// Throws `ArgumentError` for an address that no element can have.
template <class T>
void require_aligned(T const* data, char const* what, char const* where) {
  require(reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0, what, "a pointer aligned to its elements",
          "a misaligned one", where);
}

/// Throws `ArgumentError` unless 0 <= index < size.
inline void require_index(std::int64_t index, std::int64_t size, char const* what, char const* where) {
  if (index >= 0 && index < size) return;
  throw ArgumentError({what, "in [0, " + std::to_string(size) + ")", std::to_string(index), where});
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
