#pragma once

#include <headaware/config.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

/// Kernels are hidden symbols: two libraries built with different versions must not share one. A kernel over a policy
/// or layout from an unnamed namespace has internal linkage anyway; nvcc would warn that the attribute then adds
/// nothing.
#define HEADAWARE_KERNEL                                                                               \
  _Pragma("nv_diagnostic push") _Pragma("nv_diag_suppress 1407") __attribute__((visibility("hidden"))) \
  _Pragma("nv_diagnostic pop") __global__

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Layers whose pointers one launch takes, as kernel parameters.
inline constexpr std::int32_t max_layers = 256;
/// Kernel parameters of the devices and drivers that CUDA 13 serves.
inline constexpr std::size_t max_parameter_bytes = 32764;
inline constexpr std::int32_t warp_threads = 32;
inline constexpr std::int32_t block_threads = 256;
/// Blocks that a multiprocessor must have room for: allows 128 registers per thread, which no kernel here exceeds.
inline constexpr std::int32_t min_blocks = 2;

/// Shared memory for a type with default member initialisers, which `__shared__` variables may not run.
template <class T>
struct SharedStorage {
  alignas(T) unsigned char bytes[sizeof(T)];
  __device__ T& get() { return *reinterpret_cast<T*>(bytes); }
};

/// Copies parameters, or some of them, word by word, by all threads of the block.
template <class T>
__device__ void share_words(T const& from, T& to) {
  static_assert(sizeof(T) % 4 == 0 && alignof(T) >= 4);
  auto const* const source = reinterpret_cast<std::uint32_t const*>(&from);
  auto* const target = reinterpret_cast<std::uint32_t*>(&to);
  for (auto i = threadIdx.x; i < sizeof(T) / 4; i += blockDim.x) target[i] = source[i];
}

/// @brief Copies a kernel's parameters to shared memory, once per block. Synchronises the block.
///
/// Parameters that kernels read through a reference are loaded where they are used, by every warp again; this way a
/// block loads each word once.
template <class T>
__device__ T const& share_parameters(T const& parameters, SharedStorage<T>& storage) {
  if constexpr (requires { T::share(parameters, storage.get()); }) {
    T::share(parameters, storage.get());
  } else {
    share_words(parameters, storage.get());
  }
  __syncthreads();
  return storage.get();
}

/// Waits for the launch before, if this one may have begun while that ends (`LaunchOrder::overlapping`), and lets the
/// next one begin. Before the kernel reads memory that others write
__device__ inline void await_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// The base pointers of one tensor in all layers.
struct PlanePointers {
  void const* source[max_layers];
  void* kept[max_layers];
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
