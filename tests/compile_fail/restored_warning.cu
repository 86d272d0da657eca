// What the library's kernels silence, a user's still say.
#pragma nv_diag_error 1407

#include <headaware/detail/cuda/kernel.cuh>

namespace {
__attribute__((visibility("hidden"))) __global__ void own() {}
}  // namespace
