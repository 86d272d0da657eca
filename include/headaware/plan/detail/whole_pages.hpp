#pragma once

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Tokens rounded up to whole pages.
[[nodiscard]] constexpr std::int64_t whole_pages(std::int64_t tokens, std::int64_t page_size) {
  return (tokens + page_size - 1) / page_size * page_size;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
