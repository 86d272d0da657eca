#pragma once

#include <headaware/policy/concept.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps every token: for heads that gather from everywhere.
struct Full {
  static constexpr std::string_view name = "full";

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t, std::int64_t) const { return true; }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token, std::int64_t) const { return token; }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t row, std::int64_t) const { return row; }
  friend constexpr bool operator==(Full const&, Full const&) = default;
};
static_assert(HeadPolicy<Full>);

HEADAWARE_NAMESPACE_END
