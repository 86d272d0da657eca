#pragma once

#include <headaware/config.hpp>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Says of a pointer that kernels find in their parameters' copy that it leads to global memory, so that they load
/// through it without finding that out.
template <class T>
HEADAWARE_HOST_DEVICE T* global_pointer(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
