#pragma once

/// @file
/// The exceptions of headaware's host functions. Functions that launch kernels throw nothing and
/// return `cudaError_t` instead.

#include <headaware/config.hpp>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Parts of an error message: what is wrong, expected, got and where.
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

/// @brief An argument is outside the domain of a function.
class ArgumentError : public Error {
  using Error::Error;
};

/// @brief The contents of a file or a document do not follow their format.
class FormatError : public Error {
  using Error::Error;
};

/// @brief A file cannot be opened, read, written or renamed.
class FileError : public Error {
  using Error::Error;
};

/// @brief A pool is exhausted; nothing has changed, and the caller may free pages and try again.
class CapacityError : public Error {
  using Error::Error;
};

/// @brief Part of a message, put together only on failure: text, a number, a function that returns a
/// `std::string`, or several of these in braces. Borrows what it is made of until the end of the full expression.
class Text {
 public:
  Text(char const* text) : kind_(Kind::text), text_(text) {}
  Text(std::string_view text) : kind_(Kind::text), text_(text) {}
  Text(std::string const& text) : kind_(Kind::text), text_(text) {}
  // No templates: every check goes through these, and overloads of plain types compile faster.
  Text(int value) : kind_(Kind::integer), integer_(value) {}
  Text(long value) : kind_(Kind::integer), integer_(value) {}
  Text(long long value) : kind_(Kind::integer), integer_(value) {}
  Text(unsigned value) : kind_(Kind::natural), natural_(value) {}
  Text(unsigned long value) : kind_(Kind::natural), natural_(value) {}
  Text(unsigned long long value) : kind_(Kind::natural), natural_(value) {}
  Text(double value) : kind_(Kind::real), real_(value) {}
  template <class F>
    requires requires(F const& f) { f(); }
  Text(F const& f)
      : kind_(Kind::call), call_{&f, [](void const* g) -> std::string { return (*static_cast<F const*>(g))(); }} {}
  Text(std::initializer_list<Text> parts) : kind_(Kind::parts), parts_(parts) {}

  [[nodiscard]] std::string str() const {
    switch (kind_) {
      case Kind::text: return std::string(text_);
      case Kind::integer: return std::to_string(integer_);
      case Kind::natural: return std::to_string(natural_);
      case Kind::real: return std::to_string(real_);
      case Kind::call: return call_.run(call_.function);
      default: break;
    }
    std::string all;
    for (Text const& part : parts_) all += part.str();
    return all;
  }

 private:
  enum class Kind : std::uint8_t { text, integer, natural, real, call, parts };
  struct Call {
    void const* function;
    std::string (*run)(void const*);
  };
  Kind kind_;
  union {
    std::string_view text_;
    long long integer_;
    unsigned long long natural_;
    double real_;
    Call call_;
    std::initializer_list<Text> parts_;
  };
};

namespace detail {

[[noreturn, gnu::cold, gnu::noinline]] inline void throw_argument_error(Text const& what, Text const& expected,
                                                                        Text const& got, Text const& where) {
  throw ArgumentError({what.str(), expected.str(), got.str(), where.str()});
}

}  // namespace detail

/// @brief Throws `ArgumentError` unless `ok`; its message is put together on failure alone.
// Inlined everywhere, so that the parts of the message are made on the way to the exception: launches check dozens.
[[gnu::always_inline]] inline void require(bool ok, Text const& what, Text const& expected, Text const& got,
                                           Text const& where) {
  if (ok) [[likely]]
    return;
  detail::throw_argument_error(what, expected, got, where);
}

/// @brief Throws `ArgumentError` for a null pointer.
inline void require_pointer(void const* data, Text const& what, Text const& where) {
  require(data != nullptr, what, "a pointer", "nullptr", where);
}

/// @brief Throws `ArgumentError` for an address that no `T` can have.
template <class T>
void require_aligned(T const* data, Text const& what, Text const& where) {
  require(reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0, what, "a pointer aligned to its elements",
          "a misaligned one", where);
}

/// @brief Throws `ArgumentError` unless 0 <= index < size.
inline void require_index(std::int64_t index, std::int64_t size, Text const& what, Text const& where) {
  require(index >= 0 && index < size, what, {"in [0, ", size, ")"}, index, where);
}

HEADAWARE_NAMESPACE_END
