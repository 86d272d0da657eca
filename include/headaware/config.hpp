#pragma once

/// @file
/// Function qualifiers and the versioned namespace. Types are the same under every compiler;
/// nothing but function qualifiers depends on `__CUDACC__`.

#include <headaware/version.hpp>

#if defined(__CUDACC__)
#define HEADAWARE_HOST_DEVICE __host__ __device__
#else
#define HEADAWARE_HOST_DEVICE
#endif

/// Stands before a host-device function that calls whatever its caller hands it, so that nvcc lets
/// host code hand it a host function.
#if defined(__CUDACC__)
#define HEADAWARE_EXEC_CHECK_DISABLE _Pragma("nv_exec_check_disable")
#else
#define HEADAWARE_EXEC_CHECK_DISABLE
#endif

// Two levels, so that the version macros are expanded before they are pasted.
#define HEADAWARE_DETAIL_ABI_PASTE(major, minor) v##major##_##minor
#define HEADAWARE_DETAIL_ABI(major, minor) HEADAWARE_DETAIL_ABI_PASTE(major, minor)

/// Opens `headaware::vMAJOR_MINOR`; the inner namespace is inline, so users write `headaware::`.
#define HEADAWARE_NAMESPACE_BEGIN \
  namespace headaware {           \
  inline namespace HEADAWARE_DETAIL_ABI(HEADAWARE_VERSION_MAJOR, HEADAWARE_VERSION_MINOR) {
#define HEADAWARE_NAMESPACE_END \
  }                             \
  }
