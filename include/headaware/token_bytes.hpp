#pragma once

/// @file
/// Bytes of one kept token.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Bytes of one kept token of a KV head: key and value, with their scales if they have any.
struct TokenBytes {
  std::int64_t key = 0;
  std::int64_t value = 0;
  /// @throws ArgumentError beyond 64 bits
  [[nodiscard]] constexpr std::int64_t total() const {
    if (key > 0 && value > 0 && detail::sum_overflows(key, value)) {
      detail::refuse_size(std::to_string(key) + " + " + std::to_string(value), "TokenBytes::total");
    }
    return key + value;
  }

  /// Sizes of keys and values of the same shape. @param channels head_dim; @param element_bytes bytes per element
  /// @throws ArgumentError beyond 64 bits
  static constexpr TokenBytes of(std::int64_t channels, std::size_t element_bytes) {
    std::int64_t const bytes = detail::elements("TokenBytes::of", {channels, static_cast<std::int64_t>(element_bytes)});
    return {bytes, bytes};
  }
};

HEADAWARE_NAMESPACE_END
