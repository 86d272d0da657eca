#pragma once

// Times of work that is done some times.

#include <algorithm>
#include <chrono>

namespace support {

/// Seconds of the fastest of three rounds: the first also starts the threads and touches the pages.
template <class Work>
double best_of_three(Work const& work) {
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    auto const start = std::chrono::steady_clock::now();
    work();
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = round == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

}  // namespace support
