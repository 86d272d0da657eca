#pragma once

// Text of messages and of JSON strings.

#include <headaware/config.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Quotes text from outside for an error message: printable, and not long.
template <class = void>
[[nodiscard]] std::string quoted(std::string_view text, char quote = '"') {
  constexpr std::size_t most = 40;
  constexpr std::string_view digits = "0123456789abcdef";
  std::string result(1, quote);
  for (char const c : text.substr(0, most)) {
    auto const byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      result += c;
    } else {
      result += "\\x";
      result += digits[byte >> 4U];
      result += digits[byte & 15U];
    }
  }
  return result + (text.size() > most ? "..." : "") + quote;
}

/// Whether `test` holds for one of several words, each between spaces.
template <class Test>
[[nodiscard]] constexpr bool any_word(std::string_view words, Test const& test) {
  for (std::size_t begin = 0; begin < words.size();) {
    std::size_t const space = words.find(' ', begin);
    std::size_t const end = space == std::string_view::npos ? words.size() : space;
    if (test(words.substr(begin, end - begin))) return true;
    begin = end + 1;
  }
  return false;
}
/// Whether a name is one of several, each between spaces.
[[nodiscard]] constexpr bool is_any(std::string_view name, std::string_view names) {
  return any_word(names, [&](std::string_view each) { return each == name; });
}
/// Whether a name holds one of several words, each between spaces.
[[nodiscard]] constexpr bool holds_any(std::string_view name, std::string_view words) {
  return any_word(words, [&](std::string_view word) { return name.find(word) != std::string_view::npos; });
}

/// Appends a code point as UTF-8.
template <class = void>
void append_utf8(std::string& text, std::uint32_t code) {
  auto put = [&](std::uint32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (code < 0x80) {
    put(code);
    return;
  }
  if (code < 0x800) {
    put(0xc0U | (code >> 6U));
  } else {
    if (code < 0x10000) {
      put(0xe0U | (code >> 12U));
    } else {
      put(0xf0U | (code >> 18U));
      put(0x80U | ((code >> 12U) & 0x3fU));
    }
    put(0x80U | ((code >> 6U) & 0x3fU));
  }
  put(0x80U | (code & 0x3fU));
}

/// Length of the well-formed UTF-8 character at `at`, or minus the bytes of the malformed one: as many as could have
/// begun a character, at least 1 (the Unicode standard's substitution of maximal subparts).
[[nodiscard]] inline int utf8_length(std::string_view text, std::size_t at) {
  auto const byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  std::uint32_t const first = byte(at);
  if (first < 0x80) return 1;
  int const length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  for (int i = 1; i < length; ++i) {
    // No overlong forms, no surrogates, nothing beyond U+10FFFF.
    std::uint32_t low = 0x80;
    std::uint32_t high = 0xbf;
    if (i == 1 && first == 0xe0) low = 0xa0;
    if (i == 1 && first == 0xed) high = 0x9f;
    if (i == 1 && first == 0xf0) low = 0x90;
    if (i == 1 && first == 0xf4) high = 0x8f;
    std::uint32_t const next = byte(at + static_cast<std::size_t>(i));
    if (next < low || next > high) return -i;
  }
  return length == 0 ? -1 : length;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
