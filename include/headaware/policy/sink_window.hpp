#pragma once

#include <headaware/error.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/window_rule.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps the first `sink` and the last `window` tokens; everything while they meet.
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453
struct SinkWindow {
  static constexpr std::string_view name = "sink_window";

  std::int32_t sink = 4;      ///< tokens kept from the start of the sequence
  std::int32_t window = 508;  ///< newest tokens kept, the current one included

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return WindowRule{sink, window}.keeps(token, length);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token, std::int64_t length) const {
    return WindowRule{sink, window}.range(length).kept_before(token);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t row, std::int64_t length) const {
    return WindowRule{sink, window}.range(length).token(row);
  }
  friend constexpr bool operator==(SinkWindow const&, SinkWindow const&) = default;

  /// @throws ArgumentError if `sink` or `window` is negative
  void validate() const {
    require(sink >= 0, "negative sink", "sink >= 0", sink, "SinkWindow");
    require(window >= 0, "negative window", "window >= 0", window, "SinkWindow");
  }
};
static_assert(HeadPolicy<SinkWindow>);

HEADAWARE_NAMESPACE_END
