#pragma once

/// @file
/// Counts of the classes of a model's heads.

#include <headaware/classify/head_type.hpp>
#include <headaware/config.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Counts over the heads of a model, the `summary` of `head_classifications.json`.
struct ClassificationSummary {
  std::int64_t total_heads = 0;
  std::array<std::int64_t, num_head_types> type_counts{};                  ///< by HeadType
  std::array<std::int64_t, num_compression_strategies> strategy_counts{};  ///< by CompressionStrategy
  std::int64_t prunable_heads = 0;
  std::int64_t limitable_heads = 0;     ///< heads with a recommended window
  std::int64_t compressible_heads = 0;  ///< heads that need no full cache
  std::int64_t sink_heads = 0;          ///< heads that need their sinks

  [[nodiscard]] std::int64_t count(HeadType type) const { return type_counts[static_cast<std::size_t>(type)]; }
  [[nodiscard]] std::int64_t count(CompressionStrategy strategy) const {
    return strategy_counts[static_cast<std::size_t>(strategy)];
  }
  /// `heads` in per cent of all; 0 where there are none.
  [[nodiscard]] double percentage(std::int64_t heads) const {
    return total_heads == 0 ? 0 : static_cast<double>(heads) / static_cast<double>(total_heads) * 100;
  }

  friend bool operator==(ClassificationSummary const&, ClassificationSummary const&) = default;
};

/// @brief Counts the classes. @par Cost O(heads)
template <class = void>
[[nodiscard]] ClassificationSummary summarize(std::span<HeadClassification const> classifications) {
  ClassificationSummary s;
  s.total_heads = static_cast<std::int64_t>(classifications.size());
  for (auto const& c : classifications) {
    ++s.type_counts[static_cast<std::size_t>(c.head_type)];
    ++s.strategy_counts[static_cast<std::size_t>(c.compression_strategy)];
    s.prunable_heads += c.can_prune ? 1 : 0;
    s.limitable_heads += c.can_limit_window ? 1 : 0;
    s.compressible_heads += c.use_full_cache ? 0 : 1;
    s.sink_heads += c.keep_sinks ? 1 : 0;
  }
  return s;
}

/// @brief The summary as text: types, strategies and what compression can reach, in the layout of the
/// reference's validation report. The legacy type has a line only where it occurs.
template <class = void>
[[nodiscard]] std::string format_summary(ClassificationSummary const& s) {
  std::string text;
  auto title = [&](std::string_view name) {
    text.append(text.empty() ? "" : "\n").append(name).append("\n").append(40, '-').append("\n");
  };
  auto row = [&](std::string_view name, std::int64_t heads) {
    std::array<char, 96> line{};
    std::snprintf(line.data(), line.size(), "  %-20.*s: %4lld heads (%5.1f%%)\n", static_cast<int>(name.size()),
                  name.data(), static_cast<long long>(heads), s.percentage(heads));
    text += line.data();
  };
  auto total = [&](char const* name, std::int64_t heads) {
    std::array<char, 96> line{};
    std::snprintf(line.data(), line.size(), "  %s: %lld (%.1f%%)\n", name, static_cast<long long>(heads),
                  s.percentage(heads));
    text += line.data();
  };

  title("CLASSIFICATION SUMMARY");
  for (std::size_t i = 0; i < num_head_types; ++i) {
    bool const legacy = i == static_cast<std::size_t>(HeadType::positional);
    if (!legacy || s.type_counts[i] > 0) row(head_type_names[i], s.type_counts[i]);
  }
  title("COMPRESSION STRATEGY SUMMARY");
  for (std::size_t i = 0; i < num_compression_strategies; ++i) {
    row(compression_strategy_names[i], s.strategy_counts[i]);
  }
  title("COMPRESSION POTENTIAL");
  text += "  Total heads: " + std::to_string(s.total_heads) + "\n";
  total("Compressible (not full cache)", s.compressible_heads);
  total("Require sink tokens", s.sink_heads);
  return text;
}

HEADAWARE_NAMESPACE_END
