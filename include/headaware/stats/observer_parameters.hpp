#pragma once

/// @file
/// The parameters of an observation of attention.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The parameters of the statistics; the defaults are the reference's.
struct ObserverParameters {
  std::int32_t sink_size = 4;       ///< tokens at the start of a chunk that count as sinks
  std::int32_t local_window = 8;    ///< tokens before the query's own that count as local
  double recent_ratio = 0.1;        ///< the last part of a chunk that counts as recent
  std::int32_t num_distances = 64;  ///< relative positions 0 … num_distances - 1 that are told apart

  std::int64_t chunk_size = 0;               ///< tokens after which attention starts anew, as if a text ended; 0: never
  std::int64_t min_chunk = 10;               ///< shorter chunks are skipped
  std::int64_t first_query = 0;              ///< rows of a chunk before it are not observed
  std::int64_t query_stride = 1;             ///< every so many rows of a chunk are observed
  std::optional<RetentionGrid> retention{};  ///< measure these (sink, window) pairs too
  /// Measure errors of keys and of values that go through these formats too, by name (`DefaultFormats::names`), each
  /// with its default fields; empty: none. Only where there is a retention grid and where there are values
  std::vector<std::string> formats{"fp8_e4m3", "int8", "packed6", "packed5", "packed4"};
  /// Of the rows observed, every so many count in errors of formats: the last of a chunk, and from it backwards
  std::int64_t rounding_stride = 16;

  /// Formats whose errors have sums: none without a retention grid.
  [[nodiscard]] std::size_t num_formats() const { return retention ? formats.size() : 0; }

  /// The sums of a head of which nothing was seen.
  [[nodiscard]] RetentionSums empty_sums() const {
    return retention ? RetentionSums(*retention, num_formats()) : RetentionSums();
  }

  friend bool operator==(ObserverParameters const&, ObserverParameters const&) = default;

  /// @throws ArgumentError on values that make no sense
  void validate() const {
    constexpr auto where = "ObserverParameters";
    constexpr std::int32_t most = RetentionGrid::max_sinks;  // each costs memory per thread and row of a tile
    auto const in_range = [&](std::int32_t value, std::int32_t low, char const* what) {
      require(value >= low && value <= most, what, {"in [", low, ", ", most, "]"}, value, where);
    };
    in_range(sink_size, 0, "sink_size");
    in_range(local_window, 0, "local_window");
    require(recent_ratio >= 0 && recent_ratio <= 1, "recent_ratio", "in [0, 1]", recent_ratio, where);
    in_range(num_distances, 1, "num_distances");
    require(chunk_size >= 0, "chunk_size", ">= 0", chunk_size, where);
    require(min_chunk >= 1, "min_chunk", ">= 1", min_chunk, where);
    require(first_query >= 0, "first_query", ">= 0", first_query, where);
    require(query_stride > 0, "query_stride", "> 0", query_stride, where);
    if (retention) retention->validate();
    require(rounding_stride > 0, "rounding_stride", "> 0", rounding_stride, where);
    for (auto format = formats.begin(); format != formats.end(); ++format) {
      (void)DefaultFormats::id_of_name(*format);
      bool const first = std::find(formats.begin(), format, *format) == format;
      require(first, "formats", "each once", {"'", *format, "' twice"}, where);
    }
  }
};

HEADAWARE_NAMESPACE_END
