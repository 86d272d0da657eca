#pragma once

#include <headaware/error.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/window_rule.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps the first `sink` and the last `window` tokens, and of those between them the `scored` of the highest
/// scores; everything while there are no more.
///
/// Scores belong to tokens, not to policies: caches that decode (`cache/scored_append.hpp`, `cache/paged_scored.hpp`)
/// take them with the tokens. Where none are at hand (sizes, masks, `compress`) the policy keeps as many tokens, the
/// newest ones: `keeps` is that of `SinkWindow{sink, window + scored}`. Counts are right either way.
/// @par Source  Zhang et al., H2O, arXiv:2306.14048 (tokens of high scores beside the newest); Xiao et al.,
///              StreamingLLM, arXiv:2309.17453 (sinks)
struct SinkWindowScored {
  static constexpr std::string_view name = "sink_window_scored";

  std::int32_t sink = 4;      ///< tokens kept from the start of the sequence
  std::int32_t window = 252;  ///< newest tokens kept, the current one included
  std::int32_t scored = 256;  ///< tokens kept of those between, by their scores

  /// Without scores: sinks, and the newest `window + scored`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr WindowRule without_scores() const { return {sink, window + scored}; }
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return without_scores().keeps(token, length);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token, std::int64_t length) const {
    return without_scores().range(length).kept_before(token);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t row, std::int64_t length) const {
    return without_scores().range(length).token(row);
  }
  /// Bytes that a cache holds beside the rows of a head, without slack: a score of each token of the window, 4 bytes
  /// rounded up to 16, and a record of 16 of each scored one.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t record_bytes() const {
    return scored == 0 ? 0 : 16 * ((std::int64_t{window} + 3) / 4 + scored);
  }
  friend constexpr bool operator==(SinkWindowScored const&, SinkWindowScored const&) = default;

  /// @throws ArgumentError if a field is negative, or `window + scored` is not below 2^31
  void validate() const {
    require(sink >= 0, "negative sink", "sink >= 0", sink, "SinkWindowScored");
    require(window >= 0, "negative window", "window >= 0", window, "SinkWindowScored");
    require(scored >= 0 && scored <= INT32_MAX - window, "scored", "scored >= 0, with window below 2^31", scored,
            "SinkWindowScored");
  }
};
static_assert(HeadPolicy<SinkWindowScored>);

HEADAWARE_NAMESPACE_END
