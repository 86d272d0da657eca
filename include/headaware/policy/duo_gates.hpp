#pragma once

#include <headaware/config.hpp>

#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Trained gates, one per KV head: how much a head needs the whole cache, and what the others keep.
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819
struct DuoGates {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::vector<double> gates;       ///< [num_layers, num_kv_heads]; trained towards 0 or 1, not clipped
  std::int32_t sink_size = 128;    ///< tokens that streaming heads keep from the start
  std::int32_t recent_size = 256;  ///< newest tokens that streaming heads keep

  friend bool operator==(DuoGates const&, DuoGates const&) = default;
};

/// @brief How many KV heads keep everything, as a share of all: those of the largest gates, the nearest whole number of
/// them; of equal gates those of earlier layers first, then of smaller KV heads.
///
/// This is how the gates are published: DuoAttention's paper keeps one half of the heads of models with grouped queries
/// and a quarter of others (its `sparsity` is the share of the other heads; its quantile of gates with noise may take
/// one head more or less, and breaks ties by chance).
struct FullHeadShare {
  double share = 0.5;  ///< in [0, 1]

  friend bool operator==(FullHeadShare const&, FullHeadShare const&) = default;
};

HEADAWARE_NAMESPACE_END
