// error: a policy must be trivially copyable, because it travels to the device as bytes

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

struct Policy {
  static constexpr std::string_view name = "mine";
  std::vector<std::int64_t> tokens;
  bool keeps(std::int64_t token, std::int64_t) const { return tokens[0] == token; }
  friend bool operator==(Policy const&, Policy const&) = default;
};

headaware::UniformTable<Policy> const table(Policy{}, 1, 1);
