#pragma once

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/last_error.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// An error that has a code of CUDA's, on its way out of a function that returns one.
class CudaError : public Error {
 public:
  CudaError(cudaError_t code, ErrorDetail const& detail) : Error(detail), code_(code) {}
  [[nodiscard]] cudaError_t code() const noexcept { return code_; }

 private:
  cudaError_t code_;
};

/// Throws `CudaError` unless a call of CUDA's runtime has succeeded.
inline void require_cuda(cudaError_t error, char const* what, char const* where) {
  if (error == cudaSuccess) return;
  throw CudaError(
      error, {what, "cudaSuccess", std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error), where});
}

/// Keeps the text of the exception that is being handled. @return its code
inline cudaError_t keep_exception() noexcept {
  auto const keep = [](cudaError_t code, char const* text) {
    keep_last_error(text);
    return code;
  };
  try {
    throw;
  } catch (CudaError const& error) {
    return keep(error.code(), error.what());
  } catch (ArgumentError const& error) {
    return keep(cudaErrorInvalidValue, error.what());
  } catch (CapacityError const& error) {
    return keep(cudaErrorMemoryAllocation, error.what());
  } catch (std::bad_alloc const& error) {
    return keep(cudaErrorMemoryAllocation, error.what());
  } catch (std::exception const& error) {
    return keep(cudaErrorUnknown, error.what());
  } catch (...) {
    return keep(cudaErrorUnknown, "headaware: an exception without a text");
  }
}

/// Runs the body of a public function: whatever it throws becomes an error code, and its text the last error's.
template <class Body>
cudaError_t guarded(Body const& body) noexcept {
  try {
    body();
  } catch (...) {
    return keep_exception();
  }
  return cudaSuccess;
}

/// The most blocks of a grid's first dimension.
inline constexpr std::int64_t max_blocks = 0x7fffffff;
inline constexpr auto max_blocks_text = "at most 2^31 - 1";

/// Clears the counters of `is_last_block` for the next launch.
inline void clear_tickets(std::int32_t* tickets, std::int64_t count, char const* where, cudaStream_t stream) {
  require_cuda(cudaMemsetAsync(tickets, 0, static_cast<std::size_t>(count) * sizeof(*tickets), stream),
               "clearing counts of blocks", where);
}

/// When a kernel may begin: after the launch before it in the stream, or while that ends (programmatic dependent
/// launch), which only a kernel may that calls `await_launch_before`, in code for compute capability 9.0 or later.
enum class LaunchOrder : std::uint8_t { after, overlapping };

/// Launches a kernel through the function that reports this launch's error: the last error may be another's.
/// @param shared_bytes  dynamic shared memory
template <class... Parameters>
void launch(LaunchOrder order, char const* where, void (*kernel)(Parameters...), dim3 grid, std::int32_t threads,
            std::int32_t shared_bytes, cudaStream_t stream, std::type_identity_t<Parameters> const&... parameters) {
  void const* pointers[] = {&parameters...};
  auto const* const function = reinterpret_cast<void const*>(kernel);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = order == LaunchOrder::overlapping ? 1 : 0;
  require_cuda(cudaLaunchKernelExC(&config, function, const_cast<void**>(pointers)), "launch of a kernel", where);
}
template <class... Parameters>
void launch(char const* where, void (*kernel)(Parameters...), dim3 grid, std::int32_t threads,
            std::int32_t shared_bytes, cudaStream_t stream, std::type_identity_t<Parameters> const&... parameters) {
  launch(LaunchOrder::after, where, kernel, grid, threads, shared_bytes, stream, parameters...);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
