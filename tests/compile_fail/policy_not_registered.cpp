// error: this policy type is not in the registry; add it with Registry::with<...>

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <string_view>

struct Policy {
  static constexpr std::string_view name = "mine";
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t, std::int64_t) const { return true; }
  friend constexpr bool operator==(Policy const&, Policy const&) = default;
};

headaware::PolicyTable const table(1, 1, Policy{});
