#pragma once

/// @file
/// The running sums of one query head: plain sums in double that merge over chunks, texts, processes and GPUs.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/stats/head_statistics.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One chunk of one query head: sums over its query rows.
struct ChunkSums {
  std::int64_t rows = 0;             ///< query rows summed
  std::int64_t invalid_rows = 0;     ///< rows with a NaN or infinite logit, counted here and nowhere else
  std::int64_t uniformity_rows = 0;  ///< rows summed but the first of the chunk
  double entropy = 0;
  double max_attention = 0;
  double sink = 0;
  double recent = 0;
  double local = 0;
  double uniformity = 0;
  std::vector<double> distances;  ///< Σ p[q, q - d]

  explicit ChunkSums(std::size_t num_distances = 0) : distances(num_distances) {}

  friend bool operator==(ChunkSums const&, ChunkSums const&) = default;

  void merge(ChunkSums const& other) {
    require(distances.size() == other.distances.size(), "relative positions", distances.size(), other.distances.size(),
            "ChunkSums::merge");
    for (auto const count : {&ChunkSums::rows, &ChunkSums::invalid_rows, &ChunkSums::uniformity_rows}) {
      this->*count += other.*count;
    }
    for (auto const sum : {&ChunkSums::entropy, &ChunkSums::max_attention, &ChunkSums::sink, &ChunkSums::recent,
                           &ChunkSums::local, &ChunkSums::uniformity}) {
      this->*sum += other.*sum;
    }
    for (std::size_t d = 0; d < distances.size(); ++d) distances[d] += other.distances[d];
  }
};

/// @brief One query head over all chunks seen: sums of the chunks' means, as the reference averages
/// chunks and not rows. Its size does not depend on how much was seen.
struct HeadSums {
  std::int64_t chunks = 0;
  std::int64_t rows = 0;
  std::int64_t invalid_rows = 0;
  double entropy = 0;
  double entropy_squared = 0;
  double max_attention = 0;
  double sink = 0;
  double recent = 0;
  double local = 0;
  double global = 0;
  double uniformity = 0;
  std::vector<double> distances;

  explicit HeadSums(std::size_t num_distances = 0) : distances(num_distances) {}

  /// @brief Adds a chunk. One without a valid row only adds to `invalid_rows`.
  void add(ChunkSums const& chunk) {
    require(distances.size() == chunk.distances.size(), "relative positions", distances.size(), chunk.distances.size(),
            "HeadSums::add");
    invalid_rows += chunk.invalid_rows;
    if (chunk.rows == 0) return;
    auto const n = static_cast<double>(chunk.rows);
    ++chunks;
    rows += chunk.rows;
    entropy += chunk.entropy / n;
    entropy_squared += (chunk.entropy / n) * (chunk.entropy / n);
    max_attention += chunk.max_attention / n;
    sink += chunk.sink / n;
    recent += chunk.recent / n;
    local += chunk.local / n;
    global += std::max(0.0, 1 - chunk.sink / n - chunk.local / n);
    if (chunk.uniformity_rows > 0) uniformity += chunk.uniformity / static_cast<double>(chunk.uniformity_rows);
    for (std::size_t d = 0; d < distances.size(); ++d) distances[d] += chunk.distances[d] / n;
  }

  void merge(HeadSums const& other) {
    require(distances.size() == other.distances.size(), "relative positions", distances.size(), other.distances.size(),
            "HeadSums::merge");
    for (auto const count : {&HeadSums::chunks, &HeadSums::rows, &HeadSums::invalid_rows}) this->*count += other.*count;
    for (auto const sum : {&HeadSums::entropy, &HeadSums::entropy_squared, &HeadSums::max_attention, &HeadSums::sink,
                           &HeadSums::recent, &HeadSums::local, &HeadSums::global, &HeadSums::uniformity}) {
      this->*sum += other.*sum;
    }
    for (std::size_t d = 0; d < distances.size(); ++d) distances[d] += other.distances[d];
  }

  /// @brief Returns the averages over the chunks. @throws ArgumentError if there was none, or none with a valid row
  [[nodiscard]] HeadStatistics statistics(std::int32_t layer, std::int32_t head) const {
    auto const where = [&] { return Text{"layer ", layer, ", head ", head}.str(); };
    require(chunks > 0 || invalid_rows == 0, "valid rows", "at least one",
            {"none: all ", invalid_rows,
             " are invalid (NaN or infinite scores, values that are no numbers, or probabilities that do "
             "not sum to 1)"},
            where);
    require(chunks > 0, "chunks seen", "at least one that is long enough", "none", where);
    auto const n = static_cast<double>(chunks);
    HeadStatistics result;
    result.layer_idx = layer;
    result.head_idx = head;
    result.mean_entropy = entropy / n;
    result.std_entropy =
        chunks == 1 ? 0 : std::sqrt(std::max(0.0, entropy_squared / n - (entropy / n) * (entropy / n)));
    result.max_attention_mean = max_attention / n;
    result.position_preference = {sink / n, recent / n, local / n, global / n};
    result.sink_ratio = sink / n;
    result.uniformity_score = uniformity / n;
    result.relative_position_dist = distances;
    for (double& d : result.relative_position_dist) d /= n;
    return result;
  }
};

HEADAWARE_NAMESPACE_END
