#pragma once

/// @file
/// The rolling cache of `cache/rolling.hpp` as attention reads it.

#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/rolling_plan.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The slots that one head of one sequence shows: sinks, then the window from its oldest token on.
struct RollingRows {
  RollingHead head;
  std::int64_t sequence = 0;
  std::int64_t length = 0;  ///< tokens seen
  SlotRuns runs;

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return runs.total(); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return head.row(sequence, runs.slot(row)) * channels;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t row) const {
    return row < runs.sinks ? row : length - runs.total() + row;
  }
};

/// @brief One layer of a rolling cache: from its layer's base pointers, whatever slack its rings have.
struct RollingView {
  RollingPlanView plan;  ///< `RollingPlan::view()` or `view_at`, where the back end runs
  std::int32_t layer = 0;
  std::int32_t const* lengths = nullptr;  ///< [num_sequences], tokens seen; host or device

  [[nodiscard]] HEADAWARE_HOST_DEVICE RollingRows segment(std::int64_t sequence, std::int64_t kv_head) const {
    RollingHead const& head = plan.head(layer, kv_head);
    std::int64_t const length = lengths[sequence];
    return {head, sequence, length, head.visible(length)};
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }
};
static_assert(KeptView<RollingView>);

HEADAWARE_NAMESPACE_END
