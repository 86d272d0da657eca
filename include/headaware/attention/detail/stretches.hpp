#pragma once

// The division of attention's work among the blocks of a launch.

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Equal stretches of work, one per block, whatever heads hold. A job is some query rows over all rows of a segment;
/// the tiles of rows of all jobs follow each other on one line, which is cut every `length` tiles. A job that is cut
/// has its parts joined in their order, so that results depend on lengths and on the number of blocks alone.
struct Stretches {
  std::int64_t tiles = 0;   ///< of all jobs
  std::int64_t length = 1;  ///< tiles of a stretch

  /// Tiles of the shortest stretch: enough that queries and partial results cost little beside them.
  static constexpr std::int64_t shortest = 8;

  /// @param least  tiles of a stretch, at least
  [[nodiscard]] HEADAWARE_HOST_DEVICE static Stretches of(std::int64_t tiles, std::int64_t blocks,
                                                          std::int64_t least = shortest) {
    std::int64_t const equal = (tiles + blocks - 1) / blocks;
    return {tiles, equal > least ? equal : least};
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t begin(std::int64_t block) const {
    std::int64_t const at = block * length;
    return at < tiles ? at : tiles;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t end(std::int64_t block) const { return begin(block + 1); }
};

/// The parts of a job's result: one per stretch that the job reaches into. A stretch has at most two parts of jobs that
/// are cut, its first and its last, so that two places per block have room for all.
struct JobParts {
  std::int64_t first_block = 0;
  std::int64_t count = 1;
  bool begins_later = false;  ///< the first stretch begins with another job

  /// @param first, end  the job's tiles on the line
  [[nodiscard]] HEADAWARE_HOST_DEVICE static JobParts of(Stretches const& stretches, std::int64_t first,
                                                         std::int64_t end) {
    std::int64_t const block = first / stretches.length;
    return {block, (end - 1) / stretches.length - block + 1, first != block * stretches.length};
  }
  /// Where part `i` lies, and the tickets of parts that begin with it.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t place(std::int64_t i) const {
    return 2 * (first_block + i) + (i == 0 && begins_later ? 1 : 0);
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
