#pragma once

// Host side of the kernel of errors of formats: division of work, launch.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/rounding_kernel.cuh>
#include <headaware/stats/detail/cuda/rounding_parameters.cuh>
#include <headaware/stats/detail/rounding_rows.hpp>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/sums_layout.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A call's errors of formats: what does not depend on the device.
struct RoundingSetup {
  std::int64_t blocks = 0;   ///< of a head; 0: no errors of formats
  std::int64_t samples = 0;  ///< rows of the longest chunk
  std::int64_t sums = 0;     ///< of a block

  /// @param chunks   of the sequence; @param longest  tokens of the longest
  /// @param blocks   that a head may have
  RoundingSetup(ObserverParameters const& parameters, std::int64_t chunks, std::int64_t longest, bool with_values,
                std::int64_t most_blocks) {
    if (chunks == 0 || !with_values || parameters.num_formats() == 0) return;
    samples = SampledRows(longest, parameters.first_query, parameters.query_stride, parameters.rounding_stride).count;
    std::int64_t const tiles = (samples + rounding_rows - 1) / rounding_rows;
    blocks = std::min(tiles * chunks, most_blocks);
    sums = 2 + 4 * static_cast<std::int64_t>(parameters.num_formats());
  }
};

/// Launches the kernel, unless shared memory is too small for one row.
/// @param observed  parameters of the observation's own kernel
/// @param limit_of  (kernel) to the shared memory that its blocks may have
template <class E, class Observed, class LimitOf>
void launch_rounding(RoundingSetup const& setup, Observed const& observed, ObserverParameters const& parameters,
                     ObserveTensors const& tensors, std::int64_t num_layers, double* d_partials,
                     std::int32_t* d_tickets, cudaStream_t stream, LimitOf const& limit_of) {
  constexpr auto where = "observe";
  using Parameters = RoundingParameters<decltype(observed.query_layout), decltype(observed.key_layout),
                                        decltype(observed.value_layout)>;
  static_assert(sizeof(Parameters) + sizeof(tensors) <= max_parameter_bytes);
  auto const kernel = rounding_kernel<E, Parameters>;
  Parameters p{
      .query_layout = observed.query_layout,
      .key_layout = observed.key_layout,
      .value_layout = observed.value_layout,
      .sequence = observed.sequence,
      .first_token = observed.first_token,
      .tokens = observed.tokens,
      .chunk_size = observed.chunk_size,
      .chunks = observed.grid.chunks,
      .first_query = parameters.first_query,
      .query_stride = parameters.query_stride,
      .rounding_stride = parameters.rounding_stride,
      .partials = d_partials,
      .tickets = d_tickets,
      .sums = observed.sums,
      .layout = observed.layout,
      .shared = {},
      .blocks = static_cast<std::int32_t>(setup.blocks),
      .tiles = 0,
      .num_query_heads = observed.num_query_heads,
      .group = observed.group,
      .head_dim = observed.head_dim,
      .value_dim = observed.value_dim,
      .latent = tensors.layers[0].keys == tensors.layers[0].values,
      .scale = observed.scale,
      .cap = observed.cap,
      .formats = {},
  };
  for (std::size_t f = 0; f < parameters.formats.size(); ++f)
    p.formats[f] = AnyFormat<>::of_name(parameters.formats[f]);
  constexpr std::int64_t parameter_bytes = sizeof(Parameters) + sizeof(ObserveTensors::Own);
  if (!fit_rounding(parameter_bytes, p.head_dim, p.value_dim, p.layout.formats, limit_of(kernel), p.shared)) return;
  p.tiles = static_cast<std::int32_t>((setup.samples + p.shared.rows - 1) / p.shared.rows);
  dim3 const grid(static_cast<unsigned>(setup.blocks * p.num_query_heads), static_cast<unsigned>(num_layers));
  launch(where, kernel, grid, observe_threads, p.shared.bytes, stream, p, tensors);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
