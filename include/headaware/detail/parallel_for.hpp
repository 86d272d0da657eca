#pragma once

#include <headaware/config.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @brief Runs work(state, i) for i in [0, count): on all cores where the compiler has OpenMP, else in order.
///
/// Rethrows here what a step throws, after the steps under way: an exception that left an OpenMP thread would end the
/// process.
/// @param grain  steps that a thread takes at a time
/// @param share  false: not worth the time that it takes to wake other threads
/// @param make   () to a thread's state: buffers that its steps reuse, and whose destructor ends them
template <class Make, class Work>
void parallel_for(std::int64_t count, std::int64_t grain, bool share, Make const& make, Work const& work) {
  if (count <= 0) return;
  if (!share || count <= grain) {  // nothing to count or to catch
    auto state = make();
    for (std::int64_t i = 0; i < count; ++i) work(state, i);
    return;
  }
  // By the compiler's builtins: <atomic> would be an eighth of what the front door costs to compile.
  std::int64_t next = 0;
  bool failed = false;
  std::exception_ptr failure;
  auto const run = [&] {
    try {
      auto state = make();
      while (!__atomic_load_n(&failed, __ATOMIC_RELAXED)) {
        std::int64_t const begin = __atomic_fetch_add(&next, grain, __ATOMIC_RELAXED);
        if (begin >= count) break;
        std::int64_t const end = std::min(count, begin + grain);
        for (std::int64_t i = begin; i < end; ++i) work(state, i);
      }
    } catch (...) {
      if (!__atomic_exchange_n(&failed, true, __ATOMIC_ACQ_REL)) failure = std::current_exception();
    }
  };
#if defined(_OPENMP)
#pragma omp parallel
#endif
  run();
  if (failure) std::rethrow_exception(failure);
}

/// The same for steps without a state.
template <class Work>
void parallel_for(std::int64_t count, std::int64_t grain, Work const& work) {
  struct None {};
  parallel_for(
      count, grain, true, [] { return None{}; }, [&](None, std::int64_t i) { work(i); });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
