#pragma once

#include <headaware/error.hpp>
#include <headaware/policy/concept.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps the first `sink` and the last `window` tokens; everything while they meet.
/// @par Source  Xiao et al., StreamingLLM, arXiv:2309.17453
struct SinkWindow {
  static constexpr std::string_view name = "sink_window";

  std::int32_t sink = 4;      ///< tokens kept from the start of the sequence
  std::int32_t window = 508;  ///< newest tokens kept, the current one included

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token < sink || token >= length - window;
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token, std::int64_t length) const {
    std::int64_t const start = window_start(length);
    std::int64_t const sinks = token < sink ? token : sink;
    return token <= start ? sinks : (sink < start ? sink : start) + (token - start);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t slot, std::int64_t length) const {
    std::int64_t const start = window_start(length);
    return slot < sink || start <= sink ? slot : slot - sink + start;
  }
  friend constexpr bool operator==(SinkWindow const&, SinkWindow const&) = default;

  /// @throws ArgumentError if `sink` or `window` is negative
  void validate() const {
    require(sink >= 0, "negative sink", "sink >= 0", sink, "SinkWindow");
    require(window >= 0, "negative window", "window >= 0", window, "SinkWindow");
  }

 private:
  HEADAWARE_HOST_DEVICE constexpr std::int64_t window_start(std::int64_t length) const {
    return length > window ? length - window : 0;
  }
};
static_assert(HeadPolicy<SinkWindow>);

HEADAWARE_NAMESPACE_END
