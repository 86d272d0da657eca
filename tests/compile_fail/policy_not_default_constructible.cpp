// error: a policy must be default constructible

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <string_view>

struct Policy {
  static constexpr std::string_view name = "mine";
  explicit Policy(int value) : window(value) {}
  int window;
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t length) const { return token >= length - window; }
  friend constexpr bool operator==(Policy const&, Policy const&) = default;
};

headaware::UniformTable<Policy> const table(Policy(3), 1, 1);
