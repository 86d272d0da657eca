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

HEADAWARE_NAMESPACE_END
