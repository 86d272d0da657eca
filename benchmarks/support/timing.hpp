#pragma once

// Shared by the CPU benchmarks: a clock, and how many cores they use.

#include <chrono>
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace bench {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// @param threads  of OpenMP; 0: all cores @return how many that is
inline int set_threads(std::int64_t threads) {
#ifdef _OPENMP
  int const count = threads == 0 ? omp_get_num_procs() : static_cast<int>(threads);
  omp_set_num_threads(count);
  return count;
#else
  (void)threads;
  return 1;
#endif
}

}  // namespace bench
