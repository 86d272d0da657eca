#pragma once

/// @file
/// A short name for contents, the same on every machine.

#include <headaware/config.hpp>

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

/// @brief FNV-1a, 64 bits: tells files and measurements apart, and is no protection against forgery.
/// @par Source  Fowler, Noll and Vo
class ContentHash {
 public:
  void add(std::string_view bytes) {
    for (char const byte : bytes) {
      value_ ^= static_cast<unsigned char>(byte);
      value_ *= 0x100000001b3U;
    }
  }
  void add(std::span<std::int32_t const> numbers) {
    for (std::int32_t const number : numbers) add(std::to_string(number) + ",");
  }
  /// 16 hexadecimal digits.
  [[nodiscard]] std::string text() const {
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value_));
    return text;
  }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325U;
};

HEADAWARE_NAMESPACE_END
