// Attention's kernels over encoded rows, instantiated for tests/device_code/spills.cmake.

#include "attention_kernels.cuh"

#include <headaware/attention/attend.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

using Ragged = ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int32_t>>;
using Rolling = ha::PackedCache<ha::DefaultFormats, ha::RollingView>;
HEADAWARE_INSTANTIATE(__half, Ragged);
HEADAWARE_INSTANTIATE(__nv_bfloat16, Rolling);
