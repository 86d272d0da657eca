#pragma once

// What the benchmarks that time a device share: rounds timed with events, each after the L2 cache has been filled with
// something else, beside a device-to-device copy that moves as many bytes.

#include "gpu.cuh"

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace bench {

using Clock = std::chrono::steady_clock;

/// What the command line asks for beside Google Benchmark's own options.
struct TimingOptions {
  bool reduced = false;  ///< --reduced: tiny sizes and two rounds, to see that everything runs
  double seconds = 1e9;  ///< --seconds=N: benchmarks that would begin later are left out
  Clock::time_point start = Clock::now();

  [[nodiscard]] bool over() const { return std::chrono::duration<double>(Clock::now() - start).count() > seconds; }
};

inline TimingOptions& options() {
  static TimingOptions instance;
  return instance;
}

/// Reads all of `data`, so that it fills the L2 cache with lines that need not be written back.
static __global__ void read_all(uint4 const* data, std::size_t count, unsigned* never) {
  unsigned sum = 0;
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    uint4 const here = data[i];
    sum |= here.x | here.y | here.z | here.w;
  }
  if (sum != 0) *never = sum;  // all are zero
}

/// Times work on a stream.
class Timer {
 public:
  Timer() : flush_(flush_bytes() / sizeof(uint4)) {
    BENCH_CHECK(cudaMemset(flush_.data(), 0, flush_.size() * sizeof(uint4)));
    BENCH_CHECK(cudaEventCreate(&start_));
    BENCH_CHECK(cudaEventCreate(&stop_));
  }
  ~Timer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  Timer(Timer const&) = delete;
  Timer& operator=(Timer const&) = delete;

  /// @brief The median of up to 50 rounds, or of as many as half a second allows, but at least 5.
  /// @return seconds on the device. The host is ahead of it: it enqueues the work while the cache is being filled.
  template <class Work>
  double median(cudaStream_t stream, Work const& work) const {
    int const warm_ups = options().reduced ? 0 : 3;
    std::size_t const fewest = options().reduced ? 2 : 5;
    std::size_t const most = options().reduced ? 2 : 50;
    constexpr std::chrono::milliseconds enough(500);
    for (int i = 0; i < warm_ups; ++i) work();
    BENCH_CHECK(cudaStreamSynchronize(stream));
    std::vector<double> times;
    auto const begin = Clock::now();
    while (times.size() < fewest || (times.size() < most && Clock::now() - begin < enough)) {
      read_all<<<1024, 256, 0, stream>>>(flush_.data(), flush_.size(), nullptr);
      BENCH_CHECK(cudaGetLastError());
      BENCH_CHECK(cudaEventRecord(start_, stream));
      work();
      BENCH_CHECK(cudaEventRecord(stop_, stream));
      BENCH_CHECK(cudaEventSynchronize(stop_));
      float milliseconds = 0;
      BENCH_CHECK(cudaEventElapsedTime(&milliseconds, start_, stop_));
      times.push_back(milliseconds * 1e-3);
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
  }

  /// @brief Seconds that a device-to-device copy takes which moves `bytes`: half are read, half written.
  ///
  /// Above a gibibyte it is worked out from one that moves a gibibyte.
  [[nodiscard]] double copy(cudaStream_t stream, std::int64_t bytes) {
    std::int64_t const moved = std::min(bytes, std::int64_t{1} << 30);
    double& seconds = copies_[moved];
    if (seconds == 0) {
      auto const half = static_cast<std::size_t>(std::max<std::int64_t>(moved / 2, 1));
      DeviceArray<std::byte> const from(half);
      DeviceArray<std::byte> const to(half);
      BENCH_CHECK(cudaMemset(from.data(), 1, half));
      seconds = median(stream, [&] {
        BENCH_CHECK(cudaMemcpyAsync(to.data(), from.data(), half, cudaMemcpyDeviceToDevice, stream));
      });
    }
    return seconds * (static_cast<double>(bytes) / static_cast<double>(moved));
  }

 private:
  /// Some times the cache, so that nothing else is left in it and the host gets ahead.
  static std::size_t flush_bytes() {
    if (options().reduced) return std::size_t{1} << 16;
    int l2_bytes = 0;
    BENCH_CHECK(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, 0));
    return std::max(std::size_t{6} * static_cast<std::size_t>(l2_bytes), std::size_t{64} << 20) / 16 * 16;
  }

  DeviceArray<uint4> flush_;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
  std::map<std::int64_t, double> copies_;  ///< seconds by bytes moved
};

/// Of the whole program, made when it is first needed.
inline std::unique_ptr<Timer> kept_timer;
inline Timer& timer() {
  if (kept_timer == nullptr) kept_timer = std::make_unique<Timer>();
  return *kept_timer;
}

/// @brief Reports the median time of `work`, the bytes that it reads and writes, and the time of a copy of as many.
/// @param bytes  read and written, the least that the work can do with
template <class Work>
void timed(benchmark::State& state, cudaStream_t stream, std::int64_t bytes, Work const& work) {
  for (auto _ : state) state.SetIterationTime(timer().median(stream, work));
  state.counters["moved_bytes"] = static_cast<double>(bytes);
  state.counters["copy_us"] = 1e6 * timer().copy(stream, bytes);
}

/// The same of a call that takes temporary storage. @param call  as of `storage_for`
template <class Call>
void timed_with_storage(benchmark::State& state, cudaStream_t stream, std::int64_t bytes, Call const& call) {
  auto const temp = storage_for(call);
  std::size_t temp_bytes = temp.size();
  timed(state, stream, bytes, [&] { call(temp.data(), temp_bytes); });
}

/// Whether a benchmark may begin that needs so much device memory; if not, it says why.
inline bool can_begin(benchmark::State& state, std::int64_t device_bytes) {
  if (options().over()) {
    state.SkipWithError("no time left");
    return false;
  }
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  BENCH_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  constexpr std::int64_t for_copies = std::int64_t{1} << 30;
  bool const fits = static_cast<std::int64_t>(free_bytes) >= device_bytes + for_copies;
  if (!fits) state.SkipWithError("too little device memory");
  return fits;
}

/// Registers a benchmark that calls `body(state)` once.
/// @param device_bytes  that it needs at most
template <class Body>
void add(std::string const& name, std::int64_t device_bytes, Body const& body) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) {
                                 if (can_begin(state, device_bytes)) body(state);
                               })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

/// Notes in the results what they were measured on.
inline void add_device_context() {
  cudaDeviceProp properties{};
  BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  auto const attribute = [](cudaDeviceAttr which) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, which, 0) == cudaSuccess ? value : 0;
  };
  auto const version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  int driver = 0;
  int runtime = 0;
  BENCH_CHECK(cudaDriverGetVersion(&driver));
  BENCH_CHECK(cudaRuntimeGetVersion(&runtime));
  benchmark::AddCustomContext("device", properties.name);
  benchmark::AddCustomContext("compute_capability",
                              std::to_string(properties.major) + "." + std::to_string(properties.minor));
  benchmark::AddCustomContext("multiprocessors", std::to_string(properties.multiProcessorCount));
  benchmark::AddCustomContext("memory_mib", std::to_string(properties.totalGlobalMem >> 20));
  benchmark::AddCustomContext("l2_kib", std::to_string(properties.l2CacheSize >> 10));
  benchmark::AddCustomContext("clock_mhz", std::to_string(attribute(cudaDevAttrClockRate) / 1000));
  benchmark::AddCustomContext("memory_clock_mhz", std::to_string(attribute(cudaDevAttrMemoryClockRate) / 1000));
  benchmark::AddCustomContext("cuda_of_driver", version(driver));
  benchmark::AddCustomContext("cuda_runtime", version(runtime));
  benchmark::AddCustomContext("sizes", options().reduced ? "reduced" : "full");
}

/// Runs the benchmarks of a program where there is a device. @param register_all  called once options are known
template <class Register>
int run(int argc, char** argv, Register const& register_all) {
  std::vector<char*> others;
  for (int i = 0; i < argc; ++i) {
    if (std::strcmp(argv[i], "--reduced") == 0) {
      options().reduced = true;
    } else if (std::strncmp(argv[i], "--seconds=", 10) == 0) {
      options().seconds = std::atof(argv[i] + 10);
    } else {
      others.push_back(argv[i]);
    }
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  add_device_context();
  auto count = static_cast<int>(others.size());
  benchmark::Initialize(&count, others.data());
  if (benchmark::ReportUnrecognizedArguments(count, others.data())) return 2;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  kept_timer.reset();  // while there still is a device
  return 0;
}

}  // namespace bench
