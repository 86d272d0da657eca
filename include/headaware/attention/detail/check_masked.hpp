#pragma once

// Checks of the policies that masks read from a table on the host.

#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>

#include <cstdint>
#include <limits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks the keep-lists of one layer of one sequence. Not for tables on a device.
/// @throws ArgumentError if one is missing or does not ascend
template <class Table>
void check_masked_policies(Table const& table, std::int32_t layer, std::int32_t sequence) {
  if constexpr (requires { table.validate(); }) table.validate();
  // A list may name tokens beyond a mask's keys.
  constexpr std::int64_t any_length = std::int64_t{std::numeric_limits<std::int32_t>::max()} + 1;
  for (std::int32_t head = 0; head < layer_heads(table).count(layer); ++head) {
    visit_policy(table, layer, sequence, head, [](auto const& policy) {
      if constexpr (requires { policy.validate_entries(any_length); }) policy.validate_entries(any_length);
    });
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
