#pragma once

// How long a call takes, and on how many cores.

#include <chrono>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace llama_adapter {

/// Seconds that a call takes.
template <class Call>
[[nodiscard]] double seconds_of(Call const& call) {
  auto const start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Holds the library's loops to as many cores as the engine has: else figures would depend on what other cores do.
class Cores {
 public:
#ifdef _OPENMP
  explicit Cores(std::int32_t threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~Cores() { omp_set_num_threads(before_); }
#else
  explicit Cores(std::int32_t) {}
  ~Cores() {}
#endif
  Cores(Cores const&) = delete;
  Cores& operator=(Cores const&) = delete;

 private:
  [[maybe_unused]] int before_ = 1;
};

}  // namespace llama_adapter
