#pragma once

// A budget as a person types it.

#include <headaware/cache/compaction.hpp>
#include <headaware/error.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <array>
#include <charconv>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace support {

/// "25%" of the context, "512" tokens per KV head, or bytes of keys and values: "64MiB", "1.5GB", "4096B".
/// @param token  of bytes: what one token costs one KV head; nothing known: 0
/// @throws ArgumentError on anything else
inline headaware::Budget parse_budget(std::string const& text, headaware::TokenBytes const& token) {
  namespace ha = headaware;
  constexpr std::array<std::pair<std::string_view, double>, 8> units{{{"B", 1},
                                                                      {"kB", 1e3},
                                                                      {"KB", 1e3},
                                                                      {"MB", 1e6},
                                                                      {"GB", 1e9},
                                                                      {"KiB", 1024},
                                                                      {"MiB", 1048576},
                                                                      {"GiB", 1073741824}}};
  double amount = 0;
  char const* const end = text.data() + text.size();
  auto const [rest, error] = std::from_chars(text.data(), end, amount);
  std::string_view const unit(rest, static_cast<std::size_t>(end - rest));
  if (error == std::errc{} && amount > 0 && amount < 1e15) {
    if (unit.empty()) return ha::Budget::tokens(amount);
    if (unit == "%") return ha::Budget::share(amount / 100);
    for (auto const& [name, size] : units) {
      if (unit != name) continue;
      if (token.total() <= 0) {
        throw ha::ArgumentError({"--budget in bytes", "--head_dim too, and --element_bytes", "no head_dim", text});
      }
      ha::require(amount * size < 9e18, "--budget", "less than 9e18 bytes", text, "--budget");
      return ha::Budget::bytes(static_cast<std::int64_t>(amount * size), token);
    }
  }
  throw ha::ArgumentError({"--budget",
                           "25% (of the context), 512 (tokens per KV head) or 64MiB (or B, kB, MB, GB, KiB, GiB)", text,
                           "--budget"});
}

/// KV heads that a budget is of: those of layers that are not skipped.
/// @param skipped  ascending
/// @throws ArgumentError if that is none, or a skipped layer is out of range
inline std::int64_t planned_heads(std::int32_t layers, std::int32_t num_kv_heads,
                                  std::vector<std::int32_t> const& skipped) {
  return std::ssize(headaware::planned_layers(layers, skipped)) * num_kv_heads;
}

/// @param num_kv_heads  `planned_heads`
/// @throws ArgumentError if the budget is beyond all that they can keep, where there is nothing to choose
inline void require_within_cache(headaware::Budget const& budget, std::int64_t num_kv_heads, std::int64_t context) {
  std::int64_t const tokens = budget.total(num_kv_heads, context);
  headaware::require(tokens <= num_kv_heads * context, "budget",
                     {"at most the whole cache, ", num_kv_heads * context, " tokens (", context, " per KV head)"},
                     tokens, "--budget");
}

}  // namespace support
