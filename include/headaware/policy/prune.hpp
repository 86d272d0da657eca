#pragma once

#include <headaware/policy/concept.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps nothing: the head's attention output is zero.
struct Prune {
  static constexpr std::string_view name = "prune";

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t, std::int64_t) const { return false; }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t, std::int64_t) const { return 0; }
  friend constexpr bool operator==(Prune const&, Prune const&) = default;
};
static_assert(HeadPolicy<Prune>);

HEADAWARE_NAMESPACE_END
