#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief End of a padded head at which the kept tokens lie.
enum class Alignment : std::uint8_t { left, right };

/// @brief Rows of a head side by side (ragged, padded and grouped caches): row i is row `first + i` of the tensor.
struct AdjacentRows {
  std::int64_t first = 0;
  std::int64_t held = 0;
  std::int32_t const* positions = nullptr;  ///< of the head's rows; nullptr: row i holds token i

  /// Rows of head number `index` of a tensor `[heads, head_rows, channels]`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE static AdjacentRows padded(std::int64_t index, std::int64_t head_rows,
                                                                 std::int64_t held, Alignment alignment) {
    return {index * head_rows + (alignment == Alignment::right ? head_rows - held : 0), held};
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return held; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return (first + row) * channels;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const {
    return positions != nullptr ? detail::global_pointer(positions)[row] : row;
  }
};

HEADAWARE_NAMESPACE_END
