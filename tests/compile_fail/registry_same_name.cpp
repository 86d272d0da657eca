// error: two types of a registry have the same name

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <string_view>

struct Policy {
  static constexpr std::string_view name = "full";
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t, std::int64_t) const { return true; }
  friend constexpr bool operator==(Policy const&, Policy const&) = default;
};

headaware::BasicPolicyTable<headaware::DefaultRegistry::with<Policy>> const table(1, 1);
