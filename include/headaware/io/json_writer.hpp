#pragma once

/// @file
/// Writes JSON documents piece by piece.

#include <headaware/config.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/io/detail/text.hpp>

#include <charconv>
#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Text of a JSON document in the making. Numbers are written with the fewest digits that read back the same,
/// in the manner of Python; NaN and infinity as null. Bytes of a string that are not UTF-8 become U+FFFD: JSON cannot
/// hold them.
class JsonWriter {
 public:
  /// @param indent  spaces per level; negative: all in one line
  explicit JsonWriter(int indent = -1) : indent_(indent) {}

  /// Writes an object whose members `body` writes.
  template <std::invocable Body>
  void object(Body const& body) {
    enclose('{', '}', body);
  }
  /// Writes an array whose elements `body` writes.
  template <std::invocable Body>
  void array(Body const& body) {
    enclose('[', ']', body);
  }
  /// Begins a member of an object; a value follows.
  void key(std::string_view name) {
    next();
    quote(name);
    text_ += indent_ < 0 ? ":" : ": ";
    after_key_ = true;
  }

  void value(bool value) {
    next();
    text_ += value ? "true" : "false";
  }
  void value(std::string_view text) {
    next();
    quote(text);
  }
  void value(char const* text) { value(std::string_view(text)); }
  void value(std::nullptr_t) {
    next();
    text_ += "null";
  }
  template <std::integral T>
  void value(T value) {
    next();
    text_ += std::to_string(value);
  }
  void value(double value) {
    next();
    number(value);
  }
  /// Writes any range of values as an array.
  template <class Range>
    requires(!std::convertible_to<Range, std::string_view>)
  &&requires(Range const& r) { r.begin() != r.end(); }
  void value(Range const& values) {
    array([&] {
      for (auto const& each : values) value(each);
    });
  }

  /// Writes a member: `key`, then `value`, or the object that a function writes.
  template <class T>
  void field(std::string_view name, T const& content) {
    key(name);
    if constexpr (std::invocable<T const&>) {
      object(content);
    } else {
      value(content);
    }
  }

  [[nodiscard]] std::string const& text() const { return text_; }

 private:
  /// Ends what stands before a value or key: a comma, and a new line.
  void next() {
    if (after_key_) {
      after_key_ = false;
      return;
    }
    if (level_ == 0) return;
    if (!empty_) text_ += ',';
    empty_ = false;
    new_line();
  }
  void new_line() {
    if (indent_ >= 0) text_.append(1, '\n').append(static_cast<std::size_t>(indent_ * level_), ' ');
  }

  template <class Body>
  void enclose(char open, char close, Body const& body) {
    next();
    text_ += open;
    ++level_;
    empty_ = true;
    body();
    --level_;
    if (!empty_) new_line();
    text_ += close;
    empty_ = false;
  }

  void number(double value) {
    if (!detail::is_finite(value)) {
      text_ += "null";
      return;
    }
    char digits[32];
    // 1e-05 and 1e+16 as they are; between them without an exponent.
    char const* end = std::to_chars(digits, digits + sizeof(digits), value, std::chars_format::scientific).ptr;
    std::string_view scientific(digits, static_cast<std::size_t>(end - digits));
    int exponent = 0;
    std::size_t const mark = scientific.find('e');
    bool const negative = scientific[mark + 1] == '-';
    std::from_chars(digits + mark + 2, end, exponent);
    if (value != 0 && (negative ? exponent > 4 : exponent > 14)) {
      text_ += scientific;
      return;
    }
    char plain[64];
    end = std::to_chars(plain, plain + sizeof(plain), value, std::chars_format::fixed).ptr;
    std::string_view const fixed(plain, static_cast<std::size_t>(end - plain));
    text_ += fixed;
    if (fixed.find('.') == std::string_view::npos) text_ += ".0";
  }

  void quote(std::string_view text) {
    constexpr std::string_view escaped = "\"\\\b\f\n\r\t";
    constexpr std::string_view letters = "\"\\bfnrt";
    constexpr std::string_view hex = "0123456789abcdef";
    text_ += '"';
    for (std::size_t at = 0; at < text.size();) {
      auto const byte = static_cast<unsigned char>(text[at]);
      int const length = detail::utf8_length(text, at);
      if (length < 0) {
        text_ += "\xEF\xBF\xBD";
      } else if (std::size_t const which = escaped.find(text[at]); which != std::string_view::npos) {
        (text_ += '\\') += letters[which];
      } else if (byte < 0x20) {
        ((text_ += "\\u00") += hex[byte >> 4U]) += hex[byte & 15U];
      } else {
        text_ += text.substr(at, static_cast<std::size_t>(length));
      }
      at += static_cast<std::size_t>(length < 0 ? -length : length);
    }
    text_ += '"';
  }

  int indent_;
  int level_ = 0;
  bool empty_ = true;       ///< the open object or array
  bool after_key_ = false;  ///< a value follows on the same line
  std::string text_;
};

HEADAWARE_NAMESPACE_END
