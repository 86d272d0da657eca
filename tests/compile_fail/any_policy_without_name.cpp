// error: a policy needs 'static constexpr std::string_view name', by which files and the registry know it

#include <headaware/policy/table.hpp>

#include <cstdint>

struct Policy {
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t, std::int64_t) const { return true; }
  friend constexpr bool operator==(Policy const&, Policy const&) = default;
};

headaware::PolicyTable const table(1, 1, Policy{});
