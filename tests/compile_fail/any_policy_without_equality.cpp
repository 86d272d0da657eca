// error: a policy needs 'friend bool operator==(P const&, P const&) = default'

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <string_view>

struct Policy {
  static constexpr std::string_view name = "mine";
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t, std::int64_t) const { return true; }
};

headaware::PolicyTable const table(1, 1, Policy{});
