// Stands in for cuda_cache.cu where there is no nvcc.

#include "decode_loop/backend.hpp"

namespace decode_loop {

Backend cuda_backend() { return {"cuda", "built without CUDA", {}}; }

}  // namespace decode_loop
