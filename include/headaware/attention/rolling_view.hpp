#pragma once

/// @file
/// Rolling caches as attention reads them: blocks of slots that decoding overwrites in turn.

#include <headaware/attention/kept_view.hpp>
#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief What a head's block of slots holds: the first `sink` tokens, and behind them the newest `window` ones,
/// token t in slot `sink + (t - sink) mod window`. `WindowOnly` has no sinks, `Prune` neither.
struct RollingSlots {
  std::int32_t sink = 0;
  std::int32_t window = 0;  ///< -1: all tokens in order (`Full`), the block long enough for them
};

/// The slots of one head of one sequence.
struct RollingRows {
  std::int64_t first = 0;
  std::int64_t length = 0;  ///< tokens seen
  RollingSlots head;

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const {
    std::int64_t const slots = std::int64_t{head.sink} + head.window;
    return head.window < 0 || length < slots ? length : slots;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return (first + row) * channels;
  }
  /// The newest token that the slot was written with.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const {
    if (head.window < 0 || row < head.sink) return row;
    std::int64_t const newest = length - 1 - head.sink;
    return head.sink + newest - (newest - (row - head.sink)) % head.window;
  }
};

/// @brief A rolling cache: a block of slots a head of a sequence, anywhere in the tensor.
struct RollingView {
  std::int64_t const* first_rows = nullptr;  ///< [sequences, kv_heads], first row of each block; host or device
  RollingSlots const* heads = nullptr;       ///< [kv_heads], the layer's; host or device
  std::int32_t const* lengths = nullptr;     ///< [sequences], tokens seen so far; host or device
  std::int32_t kv_heads = 0;

  [[nodiscard]] HEADAWARE_HOST_DEVICE RollingRows segment(std::int64_t sequence, std::int64_t kv_head) const {
    return {first_rows[sequence * kv_heads + kv_head], lengths[sequence], heads[kv_head]};
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }
};
static_assert(KeptView<RollingView>);

HEADAWARE_NAMESPACE_END
