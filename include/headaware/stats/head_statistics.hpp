#pragma once

/// @file
/// Statistics of one query head's attention, as `head_statistics.json` holds them.

#include <headaware/config.hpp>
#include <headaware/model_shape.hpp>

#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Attention of a head by position, as shares of its probability mass.
struct PositionPreference {
  double sink = 0;    ///< on the first `sink_size` tokens
  double recent = 0;  ///< on the last `recent_ratio` of the chunk
  double local = 0;   ///< on the query's own and the `local_window` tokens before it
  double global = 0;  ///< the rest: max(0, 1 - sink - local)

  friend bool operator==(PositionPreference const&, PositionPreference const&) = default;
};

/// @brief The averages of one query head over the chunks of a text. Entropies in nats.
struct HeadStatistics {
  std::int32_t layer_idx = 0;
  std::int32_t head_idx = 0;  ///< query head
  double mean_entropy = 0;
  double std_entropy = 0;  ///< population standard deviation of the chunks' mean entropies
  double max_attention_mean = 0;
  PositionPreference position_preference;
  double sink_ratio = 0;                       ///< equals position_preference.sink
  double uniformity_score = 0;                 ///< Kullback-Leibler divergence from uniform attention
  std::vector<double> relative_position_dist;  ///< mean probability at distance 0, 1, ... (64 by default)

  friend bool operator==(HeadStatistics const&, HeadStatistics const&) = default;
};

namespace detail {

/// The numbers of a head, in the order of files; for FieldChecker and those that read and write files.
template <class Fields, class Statistics>
void statistics_fields(Fields&& f, Statistics& s) {
  f.number("mean_entropy", s.mean_entropy);
  f.number("std_entropy", s.std_entropy);
  f.number("max_attention_mean", s.max_attention_mean);
  f.object("position_preference", [&](auto&& preference) {
    preference.number("sink", s.position_preference.sink);
    preference.number("recent", s.position_preference.recent);
    preference.number("local", s.position_preference.local);
    preference.number("global", s.position_preference.global);
  });
  f.number("sink_ratio", s.sink_ratio);
  f.number("uniformity_score", s.uniformity_score);
  f.numbers("relative_position_dist", s.relative_position_dist);
}

}  // namespace detail

/// @brief The shape and parameters that a set of statistics was taken with.
struct StatisticsInfo {
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;  ///< query heads per layer; where they differ, of the layer that has most
  std::int32_t sink_size = 4;
  std::int32_t local_window = 8;
  double recent_ratio = 0.1;
  ModelShape layers{};  ///< where they differ; empty: all alike

  friend bool operator==(StatisticsInfo const&, StatisticsInfo const&) = default;
};

/// @brief One `head_statistics.json`: every query head of every layer that attends, layer by layer.
struct ModelStatistics {
  StatisticsInfo model_info;
  std::vector<HeadStatistics> heads;

  friend bool operator==(ModelStatistics const&, ModelStatistics const&) = default;
};

HEADAWARE_NAMESPACE_END
