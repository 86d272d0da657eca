#pragma once

/// @file
/// Function qualifiers and the namespaces of the version and of the target. Types are the same under every compiler;
/// nothing but function qualifiers depends on `__CUDACC__`.

#include <headaware/version.hpp>

#if defined(__CUDACC__)
#define HEADAWARE_HOST_DEVICE __host__ __device__
#else
#define HEADAWARE_HOST_DEVICE
#endif

/// Lets a host-device function call a host function that host code passes to it: turns nvcc's check off.
#if defined(__CUDACC__)
#define HEADAWARE_EXEC_CHECK_DISABLE _Pragma("nv_exec_check_disable")
#else
#define HEADAWARE_EXEC_CHECK_DISABLE
#endif

/// Unrolls the loop that follows, in device code: arrays that it indexes stay in registers.
#if defined(__CUDA_ARCH__)
#define HEADAWARE_UNROLL _Pragma("unroll")
#else
#define HEADAWARE_UNROLL
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

// Features of the target that the vector code uses: vector width, conversion of half floats, fused multiplication.
#if defined(__AVX512F__)
#define HEADAWARE_DETAIL_TARGET_VECTORS avx512
#elif defined(__AVX2__)
#define HEADAWARE_DETAIL_TARGET_VECTORS avx2
#elif defined(__AVX__)
#define HEADAWARE_DETAIL_TARGET_VECTORS avx
#else
#define HEADAWARE_DETAIL_TARGET_VECTORS base
#endif
#if defined(__F16C__)
#define HEADAWARE_DETAIL_TARGET_HALVES _f16c
#else
#define HEADAWARE_DETAIL_TARGET_HALVES
#endif
#if defined(__FMA__)
#define HEADAWARE_DETAIL_TARGET_FUSED _fma
#else
#define HEADAWARE_DETAIL_TARGET_FUSED
#endif
#define HEADAWARE_DETAIL_TARGET_PASTE(vectors, halves, fused) target_##vectors##halves##fused
#define HEADAWARE_DETAIL_TARGET(vectors, halves, fused) HEADAWARE_DETAIL_TARGET_PASTE(vectors, halves, fused)

/// Encloses functions whose code depends on the target, and the functions that call them: the linker keeps one copy per
/// name of an inline function or template, and units of a program may be compiled for different processors.
/// Stands inside the library's namespace, or a namespace in it; inline, so that it need not be written. Types that
/// units of a program hand to each other stay outside.
#define HEADAWARE_TARGET_BEGIN                                                                              \
  inline namespace HEADAWARE_DETAIL_TARGET(HEADAWARE_DETAIL_TARGET_VECTORS, HEADAWARE_DETAIL_TARGET_HALVES, \
                                           HEADAWARE_DETAIL_TARGET_FUSED) {
#define HEADAWARE_TARGET_END }
