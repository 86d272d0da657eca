#pragma once

/// @file
/// What a caller of attention on a device knows of lengths that are there.

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Bounds, known to the host, of lengths that only the device reads.
struct AttentionBounds {
  std::int64_t max_rows = 0;         ///< the most rows of all segments together; decides grid and storage
  std::int32_t* d_status = nullptr;  ///< out, optional: device, one: 0, or 1 if more is held; then nothing is written
};

HEADAWARE_NAMESPACE_END
