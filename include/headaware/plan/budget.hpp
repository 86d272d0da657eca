#pragma once

/// @file
/// Size that a plan may use.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/token_bytes.hpp>

#include <cmath>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Size of one sequence's cache over all KV heads: as tokens per head, as a share of the context, or
/// as bytes.
class Budget {
 public:
  enum class Unit : std::uint8_t { tokens, share, bytes };

  /// @param mean  tokens per KV head, on average over all heads; fractions are allowed
  /// @throws ArgumentError unless > 0 and finite
  [[nodiscard]] static Budget tokens(double mean) {
    require(mean > 0 && std::isfinite(mean), "mean tokens", "> 0", mean, "Budget::tokens");
    return {Unit::tokens, mean};
  }
  /// @param of_context  in (0, 1]: 0.25 for 25 %
  /// @throws ArgumentError if it is outside
  [[nodiscard]] static Budget share(double of_context) {
    require(of_context > 0 && of_context <= 1, "share of the context", "in (0, 1]", of_context, "Budget::share");
    return {Unit::share, of_context};
  }
  /// @param held   keys and values of one sequence, all layers and KV heads (not those of one rank)
  /// @param token  bytes of one token in one KV head
  /// @throws ArgumentError unless both are > 0
  [[nodiscard]] static Budget bytes(std::int64_t held, TokenBytes const& token) {
    require(held > 0, "bytes", "> 0", held, "Budget::bytes");
    require(token.total() > 0, "bytes of a token", "> 0", token.total(), "Budget::bytes");
    std::int64_t const tokens = held / token.total();
    return {Unit::bytes, static_cast<double>(tokens)};
  }

  [[nodiscard]] Unit unit() const { return unit_; }

  /// @brief The tokens that `num_kv_heads` heads may keep together, rounded down.
  /// @param num_kv_heads  layers times KV heads
  /// @param context   tokens of the sequence
  [[nodiscard]] std::int64_t total(std::int64_t num_kv_heads, std::int64_t context) const {
    double tokens = amount_;
    if (unit_ != Unit::bytes) tokens *= static_cast<double>(num_kv_heads);
    if (unit_ == Unit::share) tokens *= static_cast<double>(context);
    // 10 % of 20 heads of 100 tokens are 200, not the 199 that rounding may leave.
    tokens = std::floor(tokens * (1 + 1e-12));
    constexpr auto most = static_cast<double>(std::int64_t{1} << 53);
    require(tokens <= most, "budget", "at most 2^53 tokens", tokens, "Budget::total");
    return static_cast<std::int64_t>(tokens);
  }

  friend bool operator==(Budget const&, Budget const&) = default;

 private:
  Budget(Unit unit, double amount) : unit_(unit), amount_(amount) {}

  Unit unit_;
  double amount_;  ///< mean tokens, share, or tokens in all
};

HEADAWARE_NAMESPACE_END
