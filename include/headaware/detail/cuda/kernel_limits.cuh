#pragma once

// What a device has for a kernel, asked once per kernel and device: asking takes longer than all checks of a call.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// What a device has for a kernel.
struct KernelLimits {
  std::int32_t block_bytes = 0;      ///< dynamic shared memory that a block may have
  std::int32_t processor_bytes = 0;  ///< shared memory of a multiprocessor
  std::int32_t fixed_bytes = 0;      ///< of a block, beside the dynamic
  std::int32_t processors = 0;
  std::int32_t ptx_version = 0;  ///< architecture that the kernel's code is for, such as 80

  /// Dynamic shared memory that each of some blocks on a multiprocessor may have.
  [[nodiscard]] std::int32_t bytes_of(std::int32_t blocks) const {
    return std::min(block_bytes, processor_bytes / blocks - fixed_bytes);
  }
  /// Asks the driver, and allows the kernel as much shared memory as a block may have.
  template <class Kernel>
  static KernelLimits ask(Kernel kernel, int device, char const* where) {
    constexpr std::int32_t reserved = 1024;  // by CUDA, per block
    KernelLimits limits;
    cudaFuncAttributes attributes{};
    auto const ask_device = [&](int& value, cudaDeviceAttr attribute) {
      require_cuda(cudaDeviceGetAttribute(&value, attribute, device), "the device", where);
    };
    ask_device(limits.block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask_device(limits.processor_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask_device(limits.processors, cudaDevAttrMultiProcessorCount);
    require_cuda(cudaFuncGetAttributes(&attributes, kernel), "the kernel", where);
    auto const fixed = static_cast<std::int32_t>(attributes.sharedSizeBytes);
    limits.block_bytes -= fixed;
    limits.fixed_bytes = fixed + reserved;
    limits.ptx_version = attributes.ptxVersion;
    if (attributes.maxDynamicSharedSizeBytes < limits.block_bytes) {
      require_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.block_bytes),
                   "shared memory", where);
    }
    return limits;
  }
};

/// How a kernel that calls `await_launch_before` is launched: code for older devices cannot wait.
inline LaunchOrder launch_order(KernelLimits const& limits, bool overlap) {
  return overlap && limits.ptx_version >= 90 ? LaunchOrder::overlapping : LaunchOrder::after;
}

/// The limits of one kernel on all devices; a variable with static storage.
class KernelLimitsByDevice {
 public:
  /// The limits on the current device.
  template <class Kernel>
  KernelLimits of(Kernel kernel, char const* where) {
    int device = 0;
    require_cuda(cudaGetDevice(&device), "the current device", where);
    if (device >= max_devices) return KernelLimits::ask(kernel, device, where);
    Entry& entry = entries_[device];
    if (!entry.known.load(std::memory_order_acquire)) {
      std::lock_guard<std::mutex> const lock(mutex_);
      if (!entry.known.load(std::memory_order_relaxed)) {
        entry.limits = KernelLimits::ask(kernel, device, where);
        entry.known.store(true, std::memory_order_release);
      }
    }
    return entry.limits;
  }

 private:
  static constexpr int max_devices = 64;
  struct Entry {
    std::atomic<bool> known{false};
    KernelLimits limits;
  };
  std::mutex mutex_;
  Entry entries_[max_devices];
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
