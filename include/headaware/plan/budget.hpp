#pragma once

/// @file
/// Size that a plan may use.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/detail/cache_costs.hpp>
#include <headaware/token_bytes.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Size of one sequence's cache over all KV heads: as tokens per head, as a share of the cache, or as bytes.
///
/// Where the rows of layers differ in size (and the model's channels are known), a token of a wide row costs more: the
/// budget is in bytes, or in channels of keys and values, and holds as much as so many tokens in every head would.
///
/// Where heads choose among formats (`PlanOptions::formats`), tokens and shares are those of the cache in 16 bits, and
/// bytes are what is held.
class Budget {
 public:
  enum class Unit : std::uint8_t { tokens, share, bytes };

  /// @param mean  tokens per KV head, on average over all heads; fractions are allowed
  /// @throws ArgumentError unless > 0 and finite
  [[nodiscard]] static Budget tokens(double mean) {
    require(mean > 0 && std::isfinite(mean), "mean tokens", "> 0", mean, "Budget::tokens");
    return {Unit::tokens, mean};
  }
  /// @param of_context  in (0, 1]: 0.25 for 25 % of what the cache of a sequence holds where nothing is evicted but
  /// what
  ///                    windows of the layers' own have passed
  /// @throws ArgumentError if it is outside
  [[nodiscard]] static Budget share(double of_context) {
    require(of_context > 0 && of_context <= 1, "share of the context", "in (0, 1]", of_context, "Budget::share");
    return {Unit::share, of_context};
  }
  /// @param held   keys and values of one sequence, all layers and KV heads (not those of one rank)
  /// @param token  bytes of one token in one KV head: `TokenBytes`, or a shape's by layer (`{shape, element_bytes}`)
  /// @throws ArgumentError unless both are > 0
  [[nodiscard]] static Budget bytes(std::int64_t held, LayerBytes const& token) {
    require(held > 0, "bytes", "> 0", held, "Budget::bytes");
    std::vector<std::int64_t> rows;
    std::int64_t least = 0;
    std::int64_t most = 0;
    for (TokenBytes const& bytes : token.layers()) {
      rows.push_back(bytes.total());
      most = std::max(most, rows.back());
      if (rows.back() > 0) least = least == 0 ? rows.back() : std::min(least, rows.back());
    }
    if (rows.empty()) least = most = token.of(0).total();
    require(least > 0, "bytes of a token", "> 0", least, "Budget::bytes");
    std::int64_t const tokens = held / most;
    Budget budget{Unit::bytes, static_cast<double>(least == most ? tokens : held)};
    budget.held_ = held;
    if (least != most) budget.row_bytes_ = std::move(rows);
    return budget;
  }

  [[nodiscard]] Unit unit() const { return unit_; }
  /// [num_layers] of one token of a KV head, for bytes of layers whose rows differ; else empty.
  [[nodiscard]] std::span<std::int64_t const> row_bytes() const { return row_bytes_; }

  /// @brief The tokens that `num_kv_heads` heads may keep together, rounded down, where all layers are alike.
  /// @param num_kv_heads  layers times KV heads
  /// @param context   tokens of the sequence
  /// @throws ArgumentError for bytes of layers whose rows differ
  [[nodiscard]] std::int64_t total(std::int64_t num_kv_heads, std::int64_t context) const {
    require(row_bytes_.empty(), "budget", "tokens, a share, or bytes of rows that are alike",
            "bytes of rows that differ", "Budget::total");
    double tokens = amount_;
    if (unit_ != Unit::bytes) tokens *= static_cast<double>(num_kv_heads);
    if (unit_ == Unit::share) tokens *= static_cast<double>(context);
    return whole(tokens);
  }

  /// The same by costs, of any layers.
  [[nodiscard]] std::int64_t total(detail::CacheCosts const& costs) const {
    if (costs.alike()) return total(costs.heads().total(), costs.context);
    double amount = amount_;
    if (unit_ == Unit::tokens) amount *= static_cast<double>(costs.of_one_token());
    if (unit_ == Unit::share) amount *= static_cast<double>(costs.of_all());
    // Costs of rows are bytes here, also of rows that are alike.
    if (unit_ == Unit::bytes && !costs.rows.empty()) amount = static_cast<double>(held_);
    return whole(amount);
  }

  friend bool operator==(Budget const&, Budget const&) = default;

 private:
  Budget(Unit unit, double amount) : unit_(unit), amount_(amount) {}

  [[nodiscard]] std::int64_t whole(double amount) const {
    // 10 % of 20 heads of 100 tokens are 200, not the 199 that rounding may leave.
    if (unit_ != Unit::bytes) amount = std::floor(amount * (1 + 1e-12));
    constexpr auto most = static_cast<double>(std::int64_t{1} << 53);
    require(amount <= most, "budget", "at most 2^53 tokens", amount, "Budget::total");
    return static_cast<std::int64_t>(amount);
  }

  Unit unit_;
  double amount_;          ///< mean tokens, share, or tokens in all (bytes, where rows differ)
  std::int64_t held_ = 0;  ///< bytes as they were given
  std::vector<std::int64_t> row_bytes_{};
};

HEADAWARE_NAMESPACE_END
