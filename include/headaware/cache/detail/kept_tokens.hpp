#pragma once

// The tokens that policies keep, and that a call therefore reads.

#include <headaware/cache/compaction.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/rolling_policy.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/window_only.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The tokens of each sequence that some head keeps, and that a call reads: pages of the others may be gone. Known of
/// heads that keep sinks and a window; if one keeps others, all. Of all layers, or of one. Worked out when first asked
/// for.
template <class Table>
class KeptTokens {
 public:
  explicit KeptTokens(Compaction<Table> const& compaction) : KeptTokens(compaction, 0, compaction.num_layers()) {}
  KeptTokens(Compaction<Table> const& compaction, std::int32_t first_layer, std::int32_t end_layer)
      : compaction_(compaction), first_layer_(first_layer), end_layer_(end_layer) {}

  /// The ranges of one sequence.
  std::array<TokenRange, 2> operator()(std::int64_t sequence) const {
    if (ranges_.empty()) {
      for (std::int32_t s = 0; s < compaction_.num_sequences(); ++s) ranges_.push_back(ranges_of(s));
    }
    return ranges_[static_cast<std::size_t>(sequence)];
  }

 private:
  [[nodiscard]] std::array<TokenRange, 2> ranges_of(std::int32_t sequence) const {
    WindowRule widest;
    for (std::int32_t layer = first_layer_; layer < end_layer_; ++layer) {
      for (std::int32_t head = 0; head < compaction_.num_kv_heads(layer); ++head) {
        visit_policy(compaction_.table(), layer, sequence, head, [&]<class P>(P const& policy) {
          WindowRule rule{all_tokens, 0};
          if constexpr (RollingPolicy<P>) rule = window_rule(policy);
          widest = {std::max(widest.sink, rule.sink), std::max(widest.window, rule.window)};
        });
      }
    }
    WindowRange const tokens = widest.range(compaction_.lengths()[static_cast<std::size_t>(sequence)]);
    return {TokenRange{tokens.begin, tokens.length}, TokenRange{0, tokens.sinks}};
  }

  Compaction<Table> const& compaction_;
  std::int32_t first_layer_;
  std::int32_t end_layer_;
  mutable std::vector<std::array<TokenRange, 2>> ranges_;
};

/// Fills in the tokens of a segment's rows from `begin` on.
template <class Table>
void stage_tokens(Table const& table, Segment const& segment, std::int64_t begin, std::span<std::int64_t> tokens) {
  visit_policy(table, segment.layer, segment.sequence, segment.kv_head, [&]<class P>(P const& policy) {
    if constexpr (has_source_token<P> || has_kept_before<P>) {
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        tokens[i] = source_token(policy, begin + static_cast<std::int64_t>(i), segment.length);
      }
    } else if (!tokens.empty()) {
      // Searched once; then the sequence is walked.
      std::int64_t token = source_token(policy, begin, segment.length);
      for (std::size_t i = 0; i < tokens.size(); ++i, ++token) {
        while (!policy.keeps(token, segment.length)) ++token;
        tokens[i] = token;
      }
    }
  });
}

/// Policies of this library, whose tokens are known to be right.
template <class P>
inline constexpr bool is_known_policy =
    std::is_same_v<P, Full> || std::is_same_v<P, SinkWindow> || std::is_same_v<P, WindowOnly> ||
    std::is_same_v<P, Prune> || std::is_same_v<P, SinkWindowScored>;

/// Checks the tokens of keep-lists and of a caller's own policies before the first row moves: an error later would
/// leave the cache half-compressed.
template <class Table>
void check_policies(Compaction<Table> const& compaction, char const* where) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
    Segment const segment = compaction.segment(s);
    visit_policy(compaction.table(), segment.layer, segment.sequence, segment.kv_head, [&]<class P>(P const& policy) {
      if constexpr (std::is_same_v<P, KeepList>) {
        policy.validate_entries(segment.length);
      } else if constexpr (!is_known_policy<P>) {
        tokens.resize(static_cast<std::size_t>(segment.kept));
        stage_tokens(compaction.table(), segment, 0, tokens);
        std::int64_t before = -1;
        for (std::size_t row = 0; row < tokens.size(); before = tokens[row++]) {
          bool const ascends = tokens[row] > before && tokens[row] < segment.length;
          auto const above = [&] {
            return row == 0 ? "at least 0" : "above the row before, " + std::to_string(before) + ",";
          };
          require(ascends, {"token of policy '", P::name, "'"}, {above, " and below ", segment.length}, tokens[row],
                  {PlaceOf{where, segment}, ", row ", row});
        }
      }
    });
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
