// error: a policy needs 'bool keeps(int64_t token, int64_t length) const', marked HEADAWARE_HOST_DEVICE

#include <headaware/policy/registry.hpp>

#include <string_view>

struct Policy {
  static constexpr std::string_view name = "mine";
  friend constexpr bool operator==(Policy const&, Policy const&) = default;
};

auto const names = headaware::DefaultRegistry::with<Policy>::names;
