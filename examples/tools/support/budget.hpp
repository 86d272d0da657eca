#pragma once

// A budget as a person types it.

#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace support {

/// "25%" of the context, "512" tokens per KV head, or bytes of keys and values: "64MiB", "1.5GB", "4096B".
/// @param token  of bytes: what one token costs one KV head, in each layer; nothing known: 0
/// @throws ArgumentError on anything else
inline headaware::Budget parse_budget(std::string const& text, headaware::LayerBytes const& token) {
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
      auto const layers = token.layers();
      bool const known = layers.empty() ? token.of(0).total() > 0
                                        : std::any_of(layers.begin(), layers.end(),
                                                      [](ha::TokenBytes const& bytes) { return bytes.total() > 0; });
      if (!known) {
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

/// KV heads that a budget is of, and the tokens that they hold of a sequence where they keep everything.
struct PlannedCache {
  std::int64_t heads = 0;
  std::int64_t tokens = 0;

  /// @param skipped  ascending
  /// @throws ArgumentError if all layers are skipped, or one is out of range
  PlannedCache(headaware::ModelShape const& shape, std::vector<std::int32_t> const& skipped, std::int64_t context) {
    for (std::int32_t const index : headaware::planned_layers(shape.num_layers(), skipped)) {
      headaware::LayerShape const& layer = shape.layer(index);
      if (!layer.has_cache()) continue;
      heads += layer.num_kv_heads;
      tokens += layer.num_kv_heads * layer.visible(context);
    }
    headaware::require(heads > 0, "layers that are not skipped", "one with a cache of its own", "none",
                       "--skip_layers");
  }
  /// Tokens that a head holds on average.
  [[nodiscard]] double mean() const { return static_cast<double>(tokens) / static_cast<double>(heads); }
  /// Tokens that all may keep together. @throws ArgumentError for bytes of rows that differ
  [[nodiscard]] std::int64_t budget(headaware::Budget const& budget, std::int64_t context) const {
    bool const share = budget.unit() == headaware::Budget::Unit::share;
    return share ? budget.total(1, tokens) : budget.total(heads, context);
  }
};

/// @param asked  the budget's text, where known
/// @throws ArgumentError if the budget is beyond all that the heads can keep, where there is nothing to choose
inline void require_within_cache(headaware::Budget const& budget, headaware::ModelShape const& shape,
                                 std::vector<std::int32_t> const& skipped, std::int64_t context,
                                 std::string const& asked = {}) {
  PlannedCache const cache(shape, skipped, context);
  if (!budget.row_bytes().empty()) return;  // is not told in tokens
  std::int64_t const tokens = cache.budget(budget, context);
  std::string const got = std::to_string(tokens) + (asked.empty() ? "" : " (" + asked + ")");
  headaware::require(
      tokens <= cache.tokens, "budget",
      {"at most the whole cache, ", cache.tokens, " tokens (", cache.tokens / cache.heads, " per KV head)"}, got,
      "--budget");
}

}  // namespace support
