#pragma once

/// @file
/// Checks of classifications against the statistics they come from, and a report.

#include <headaware/classify/classifier.hpp>
#include <headaware/classify/head_type.hpp>
#include <headaware/classify/summary.hpp>
#include <headaware/classify/thresholds.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/stats/head_statistics.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The kinds of inconsistency, the gravest first.
enum class IssueKind : std::uint8_t {
  statistics,  ///< a statistic that no attention can have
  fields,      ///< fields of one class that contradict each other
  rules,       ///< a class that the rules do not give to these statistics
};

inline constexpr std::size_t num_issue_kinds = 3;

/// @brief One thing about one head that does not fit.
struct ClassificationIssue {
  std::int32_t layer_idx = 0;
  std::int32_t head_idx = 0;
  IssueKind kind = IssueKind::statistics;
  std::string what;      ///< the field
  std::string expected;  ///< for example "sink_mixed"
  std::string got;
};

/// @brief Mean and population standard deviation.
struct MeanDeviation {
  double mean = 0;
  double deviation = 0;
};

/// @brief Average attention of the heads of one type.
struct TypeStatistics {
  HeadType type = HeadType::mixed;
  std::int64_t heads = 0;
  MeanDeviation sink;     ///< share of attention
  MeanDeviation local;    ///< share of attention
  MeanDeviation entropy;  ///< nats
};

namespace detail {

/// Statistics may come from half-precision probabilities: what such rounding moves a sum of shares by.
inline constexpr double share_tolerance = 2e-3;

/// Collects the issues of one head.
class IssueList {
 public:
  explicit IssueList(std::vector<ClassificationIssue>& issues) : issues_(&issues) {}

  void begin(std::int32_t layer, std::int32_t head, IssueKind kind) {
    layer_ = layer;
    head_ = head;
    kind_ = kind;
  }
  void require(bool ok, char const* what, Text const& expected, Text const& got) {
    if (!ok) issues_->push_back({layer_, head_, kind_, what, expected.str(), got.str()});
  }
  void same(char const* what, std::string_view expected, std::string_view got) {
    require(expected == got, what, expected, got);
  }
  void same(char const* what, bool expected, bool got) {
    require(expected == got, what, expected ? "true" : "false", got ? "true" : "false");
  }
  void same(char const* what, std::int32_t expected, std::int32_t got) {
    require(expected == got, what, expected, got);
  }

 private:
  std::vector<ClassificationIssue>* issues_;
  std::int32_t layer_ = 0;
  std::int32_t head_ = 0;
  IssueKind kind_ = IssueKind::statistics;
};

inline void check_statistics(HeadStatistics const& s, IssueList& issues) {
  issues.begin(s.layer_idx, s.head_idx, IssueKind::statistics);
  auto share = [&](double value, char const* what) {
    issues.require(value >= -share_tolerance && value <= 1 + share_tolerance, what, "in [0, 1]", value);
  };
  auto not_negative = [&](double value, char const* what) {
    issues.require(value >= -share_tolerance, what, ">= 0", value);
  };
  not_negative(s.mean_entropy, "mean_entropy");
  not_negative(s.std_entropy, "std_entropy");
  not_negative(s.uniformity_score, "uniformity_score");
  share(s.max_attention_mean, "max_attention_mean");
  share(s.position_preference.sink, "position_preference.sink");
  share(s.position_preference.recent, "position_preference.recent");
  share(s.position_preference.local, "position_preference.local");
  share(s.position_preference.global, "position_preference.global");
  issues.require(std::abs(s.sink_ratio - s.position_preference.sink) <= share_tolerance, "sink_ratio",
                 {"position_preference.sink = ", s.position_preference.sink}, s.sink_ratio);
  double distances = 0;
  bool positive = true;
  for (double const p : s.relative_position_dist) {
    distances += p;
    positive = positive && p >= 0;
  }
  issues.require(positive, "relative_position_dist", "all >= 0", "a negative one");
  share(distances, "sum of relative_position_dist");
}

/// Checks the fields against each other, independent of thresholds.
inline void check_fields(HeadClassification const& c, IssueList& issues) {
  issues.begin(c.layer_idx, c.head_idx, IssueKind::fields);
  bool const window = c.compression_strategy == CompressionStrategy::sink_window ||
                      c.compression_strategy == CompressionStrategy::window_only;
  bool const full =
      c.compression_strategy == CompressionStrategy::full || c.compression_strategy == CompressionStrategy::none;
  issues.same("can_limit_window", window, c.can_limit_window);
  issues.require((c.recommended_window > 0) == window, "recommended_window", window ? "> 0" : "-1",
                 c.recommended_window);
  issues.same("keep_sinks", c.compression_strategy == CompressionStrategy::sink_window, c.keep_sinks);
  issues.same("use_full_cache", full, c.use_full_cache);
  issues.same("can_prune", c.compression_strategy == CompressionStrategy::prune, c.can_prune);
}

inline void check_rules(HeadClassification const& c, HeadClassification const& expected, IssueList& issues) {
  issues.begin(c.layer_idx, c.head_idx, IssueKind::rules);
  if (c.head_type != expected.head_type) {
    // All else follows from the type.
    issues.same("head_type", to_string(expected.head_type), to_string(c.head_type));
    return;
  }
  issues.require(std::abs(c.confidence - expected.confidence) <= 1e-6, "confidence", expected.confidence, c.confidence);
  issues.same("recommended_window", expected.recommended_window, c.recommended_window);
  issues.same("sink_size", expected.sink_size, c.sink_size);
  issues.same("compression_strategy", to_string(expected.compression_strategy), to_string(c.compression_strategy));
}

template <class Value>
[[nodiscard]] MeanDeviation mean_deviation(std::span<HeadStatistics const* const> heads, Value const& value) {
  MeanDeviation result;
  auto const n = static_cast<double>(heads.size());
  for (auto const* head : heads) result.mean += value(*head) / n;
  for (auto const* head : heads) {
    double const off = value(*head) - result.mean;
    result.deviation += off * off / n;
  }
  result.deviation = std::sqrt(result.deviation);
  return result;
}

/// Both lists hold the heads of one model, each once. @return places in `classes` by (layer, head)
[[nodiscard]] inline std::vector<HeadClassification> in_model_order(ModelStatistics const& model,
                                                                    std::span<HeadClassification const> classes,
                                                                    char const* where) {
  HeadCounts const heads = query_head_counts(model.model_info);
  require_grid(std::span(model.heads), heads.view(), where);
  require_grid(classes, heads.view(), where);
  std::vector<HeadClassification> ordered(classes.size());
  for (auto const& c : classes) ordered[grid_index(c, heads.view())] = c;
  return ordered;
}

/// printf into a string.
template <class... Values>
[[nodiscard]] std::string print_line(char const* format, Values... values) {
  std::array<char, 160> line{};
  std::snprintf(line.data(), line.size(), format, values...);
  return line.data();
}

}  // namespace detail

/// @brief Finds statistics that no attention can have, classes whose fields contradict each other, and
/// classes that the rules do not give to these statistics. A head of another type than the rules' gives one
/// issue of kind `rules`, whatever follows from its type.
/// @return by (layer, head); empty: all is consistent
/// @throws ArgumentError if a statistic is NaN or infinite, a threshold makes no sense, or the two do not hold
///         the same heads, each once
/// @par Cost  O(heads · distances)
[[nodiscard]] inline std::vector<ClassificationIssue> check_classifications(
    ModelStatistics const& model, std::span<HeadClassification const> classifications,
    ClassifierThresholds const& t = {}) {
  constexpr auto where = "check_classifications";
  std::vector<HeadClassification> const got = detail::in_model_order(model, classifications, where);
  std::vector<HeadClassification> const expected = classify(model, t);
  detail::HeadCounts const heads = detail::query_head_counts(model.model_info);
  std::vector<HeadStatistics const*> statistics(got.size());
  for (auto const& s : model.heads) statistics[grid_index(s, heads.view())] = &s;

  std::vector<ClassificationIssue> result;
  detail::IssueList issues(result);
  for (std::size_t i = 0; i < got.size(); ++i) {
    detail::check_statistics(*statistics[i], issues);
    detail::check_fields(got[i], issues);
    detail::check_rules(got[i], expected[i], issues);
  }
  return result;
}

/// @brief Averages the attention of the heads of each type. Types that do not occur are left out.
/// @throws ArgumentError if the two do not hold the same heads, each once
[[nodiscard]] inline std::vector<TypeStatistics> type_statistics(ModelStatistics const& model,
                                                                 std::span<HeadClassification const> classifications) {
  auto const classes = detail::in_model_order(model, classifications, "type_statistics");
  detail::HeadCounts const counts = detail::query_head_counts(model.model_info);
  std::array<std::vector<HeadStatistics const*>, num_head_types> by_type;
  for (auto const& s : model.heads) {
    HeadType const type = classes[grid_index(s, counts.view())].head_type;
    by_type[static_cast<std::size_t>(type)].push_back(&s);
  }
  std::vector<TypeStatistics> result;
  for (std::size_t type = 0; type < num_head_types; ++type) {
    std::span<HeadStatistics const* const> const heads = by_type[type];
    if (heads.empty()) continue;
    result.push_back({.type = static_cast<HeadType>(type),
                      .heads = static_cast<std::int64_t>(heads.size()),
                      .sink = detail::mean_deviation(heads, [](auto const& s) { return s.sink_ratio; }),
                      .local = detail::mean_deviation(heads, [](auto const& s) { return s.position_preference.local; }),
                      .entropy = detail::mean_deviation(heads, [](auto const& s) { return s.mean_entropy; })});
  }
  return result;
}

/// @brief The reference's `validation_report.txt`, byte for byte where the thresholds are its own: counts,
/// statistics of each type, and its remarks and configuration.
/// @throws ArgumentError if the two do not hold the same heads, each once
/// @note   Remarks and configuration are the reference's reading; windows planned by output error keep more
///         at the same size.
[[nodiscard]] inline std::string format_validation_report(ModelStatistics const& model,
                                                          std::span<HeadClassification const> classifications,
                                                          ClassifierThresholds const& t = {}) {
  using detail::print_line;
  ClassificationSummary const summary = summarize(classifications);
  std::string const rule(80, '=');
  std::string text = rule + "\nHEAD CLASSIFICATION VALIDATION REPORT\n" + rule + "\n\n" + format_summary(summary);
  auto title = [&](std::string_view name) { text.append("\n").append(name).append("\n").append(40, '-').append("\n"); };

  title("DETAILED STATISTICS BY TYPE");
  for (auto const& type : type_statistics(model, classifications)) {
    std::string name(to_string(type.type));
    for (char& letter : name) letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
    text += "\n  " + name + "\n    Count: " + std::to_string(type.heads) + "\n";
    text += print_line("    Sink ratio: %.3f ± %.3f\n", type.sink.mean, type.sink.deviation);
    text += print_line("    Local ratio: %.3f ± %.3f\n", type.local.mean, type.local.deviation);
    text += print_line("    Entropy: %.3f ± %.3f\n", type.entropy.mean, type.entropy.deviation);
  }

  title("KEY INSIGHTS");
  std::int64_t const sinks = summary.count(HeadType::sink_positional);
  std::int64_t const positions = summary.count(HeadType::true_positional);
  if (sinks > 0 && positions > 0) {
    text += print_line("  • Sink-positional heads outnumber true-positional by %.1fx\n",
                       static_cast<double>(sinks) / static_cast<double>(positions));
  }
  if (summary.percentage(summary.sink_heads) > 50) {
    text += print_line("  • CRITICAL: %.1f%% of heads require sink tokens!\n", summary.percentage(summary.sink_heads));
    text += "    -> StreamingLLM-style (sink + window) is essential\n";
  }
  if (auto const heads = summary.count(HeadType::sink_mixed); heads > 0) {
    text += "  • " + std::to_string(heads) + " sink-mixed heads need larger windows (" +
            std::to_string(t.large_window) + "-" + std::to_string(2 * t.large_window) + ")\n";
  }
  if (auto const heads = summary.count(HeadType::gathering); heads > 0) {
    text += "  • " + std::to_string(heads) + " gathering heads need full KV cache\n";
    text += "    -> These cannot be compressed without quality loss\n";
  }

  title("RECOMMENDED COMPRESSION CONFIG");
  auto config = [&](char const* type, std::int32_t sink, std::int32_t window) {
    text += print_line("    \"%s\": {\"sink_size\": %d, \"window_size\": %d},\n", type, sink, window);
  };
  text += "  {\n";
  config("sink_positional", t.sink_size, t.small_window);
  config("true_positional", 0, t.small_window);
  config("sink_mixed", t.sink_size, t.large_window + t.large_window / 2);
  text += "    \"gathering\": {\"use_full_cache\": true},\n";
  config("mixed", t.sink_size, 2 * t.large_window);
  text += "    \"dead\": {\"prune\": true}\n  }\n\n" + rule;
  return text;
}

/// @brief The issues as text: how many heads have some of each kind, and the first `most` of them (0: the counts
/// alone).
[[nodiscard]] inline std::string format_issues(std::span<ClassificationIssue const> issues, std::int64_t heads,
                                               std::size_t most = 20) {
  constexpr std::array<char const*, num_issue_kinds> names{
      "statistics that no attention has", "fields that contradict each other", "classes that the rules do not give"};
  std::array<std::int64_t, num_issue_kinds> counts{};
  std::array<std::int64_t, num_issue_kinds> last{-1, -1, -1};
  for (auto const& issue : issues) {
    auto const kind = static_cast<std::size_t>(issue.kind);
    std::int64_t const head = (std::int64_t{issue.layer_idx} << 32) + issue.head_idx;
    if (last[kind] != head) ++counts[kind];
    last[kind] = head;
  }
  std::string text;
  for (std::size_t kind = 0; kind < num_issue_kinds; ++kind) {
    text += detail::print_line("  %-36s: %4lld of %lld heads\n", names[kind], static_cast<long long>(counts[kind]),
                               static_cast<long long>(heads));
  }
  for (std::size_t i = 0; i < std::min(most, issues.size()); ++i) {
    auto const& issue = issues[i];
    text += "  layer " + std::to_string(issue.layer_idx) + ", head " + std::to_string(issue.head_idx) + ": " +
            issue.what + ": expected " + issue.expected + ", got " + issue.got + "\n";
  }
  if (most > 0 && issues.size() > most) text += "  and " + std::to_string(issues.size() - most) + " more\n";
  return text;
}

HEADAWARE_NAMESPACE_END
