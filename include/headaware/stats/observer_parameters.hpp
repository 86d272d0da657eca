#pragma once

/// @file
/// What an observation of attention measures, and how the engine's attention is defined.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/stats/retention.hpp>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The parameters of the statistics; the defaults are the reference's.
struct ObserverParameters {
  std::int32_t sink_size = 4;       ///< tokens at the start of a chunk that count as sinks
  std::int32_t local_window = 8;    ///< tokens before the query's own that count as local
  double recent_ratio = 0.1;        ///< the last part of a chunk that counts as recent
  std::int32_t num_distances = 64;  ///< relative positions 0 … num_distances - 1 that are told apart

  std::int64_t chunk_size = 0;               ///< tokens after which attention starts anew, as if a text ended; 0: never
  std::int64_t min_chunk = 10;               ///< shorter chunks are skipped
  std::int64_t first_query = 0;              ///< rows of a chunk before it are not observed
  std::int64_t query_stride = 1;             ///< every so many rows of a chunk are observed
  std::optional<RetentionGrid> retention{};  ///< measure these (sink, window) pairs too

  friend bool operator==(ObserverParameters const&, ObserverParameters const&) = default;

  /// @throws ArgumentError on values that make no sense
  void validate() const {
    constexpr auto where = "ObserverParameters";
    constexpr std::int32_t most = RetentionGrid::max_sinks;  // each costs a thread memory for every row of a tile
    std::string const range = "in [0, " + std::to_string(most) + "]";
    bool const sinks_fit = sink_size >= 0 && sink_size <= most;
    bool const local_fits = local_window >= 0 && local_window <= most;
    bool const distances_fit = num_distances > 0 && num_distances <= most;
    detail::require(sinks_fit, "sink_size", range, sink_size, where);
    detail::require(local_fits, "local_window", range, local_window, where);
    detail::require(recent_ratio >= 0 && recent_ratio <= 1, "recent_ratio", "in [0, 1]", recent_ratio, where);
    detail::require(distances_fit, "num_distances", "in [1, " + std::to_string(most) + "]", num_distances, where);
    detail::require(chunk_size >= 0, "chunk_size", ">= 0", chunk_size, where);
    detail::require(min_chunk >= 1, "min_chunk", ">= 1", min_chunk, where);
    detail::require(first_query >= 0, "first_query", ">= 0", first_query, where);
    detail::require(query_stride > 0, "query_stride", "> 0", query_stride, where);
    if (retention) retention->validate();
  }
};

/// @brief How the engine turns queries and keys into logits: causal, `scale · q·k`, then what is asked for here.
struct AttentionScore {
  float scale = 0;                  ///< 0: 1 / sqrt(head_dim), as in `attend`
  float soft_cap = 0;               ///< logits become soft_cap · tanh(logit / soft_cap); 0: none
  std::int32_t sliding_window = 0;  ///< keys that a query sees, its own included; 0: all before it

  /// @throws ArgumentError on a negative scale, cap or window, or one that is not finite
  void validate() const {
    constexpr auto where = "AttentionScore";
    detail::require(scale >= 0 && std::isfinite(scale), "scale", "finite and >= 0", scale, where);
    detail::require(soft_cap >= 0 && std::isfinite(soft_cap), "soft_cap", "finite and >= 0", soft_cap, where);
    detail::require(sliding_window >= 0, "sliding_window", ">= 0", sliding_window, where);
  }
};

HEADAWARE_NAMESPACE_END
