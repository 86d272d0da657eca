#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/error.hpp>

#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Trained gates, one per KV head: how much a head needs the whole cache; and the sizes of heads that stream.
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819
struct DuoGates {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::vector<double> gates;       ///< [num_layers, num_kv_heads]; trained towards 0 or 1, not clipped
  std::int32_t sink_size = 128;    ///< tokens that streaming heads keep from the start
  std::int32_t recent_size = 256;  ///< newest tokens that streaming heads keep

  friend bool operator==(DuoGates const&, DuoGates const&) = default;

  /// @throws ArgumentError if there are no heads, not one gate per head, or a gate is NaN or infinite
  void validate(Text const& where = "DuoGates") const {
    require(num_layers > 0, "num_layers", "> 0", num_layers, where);
    require(num_kv_heads > 0, "num_kv_heads", "> 0", num_kv_heads, where);
    auto const count = std::int64_t{num_layers} * num_kv_heads;
    require(static_cast<std::int64_t>(gates.size()) == count, "number of gates", count, gates.size(), where);
    for (double const gate : gates) require(detail::is_finite(gate), "gate", "a finite number", gate, where);
  }
};

/// @brief Share of the KV heads that keep everything: those with the largest gates, rounded to the nearest whole number
/// of heads; equal gates go by layer, then by KV head.
///
/// This is how the gates are published: DuoAttention's paper keeps one half of the heads of models with grouped queries
/// and a quarter of others (its `sparsity` is the share of the other heads; its quantile of gates with noise may take
/// one head more or less, and breaks ties by chance).
struct FullHeadShare {
  double share = 0.5;  ///< in [0, 1]

  friend bool operator==(FullHeadShare const&, FullHeadShare const&) = default;
};

HEADAWARE_NAMESPACE_END
