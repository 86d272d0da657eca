#pragma once

/// @file
/// Attention statistics of a whole model on a GPU: sums on the device, results on the host.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/observe.cuh>
#include <headaware/stats/sums_layout.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

HEADAWARE_NAMESPACE_BEGIN
namespace device {

/// @brief Adds the statistics of some layers to the sums of a whole model, by the parameters of an observer on the
/// host.
///
/// `d_sums` is [num_hidden_layers, num_attention_heads, observer.sums_layout().size()], on the device, zeroed by the
/// caller at first; add any number of texts. Then copy it to the host and pass it to `AttentionObserver::add_sums`,
/// once: the observer itself is not changed here. One observer and one `d_sums` per GPU; observers merge.
/// @param observer     its model and parameters
/// @param first_layer  of the model: the layer of `layers[0]`; the others follow
/// @return cudaErrorInvalidValue where the layers or heads are not the model's, else as `observe`
/// @note   Streams, determinism and cost as `observe`: one launch for all given layers.
template <DeviceQkvRange Layers, class QueryLayout, class KeyLayout, class ValueLayout>
cudaError_t observe(AttentionObserver const& observer, void* d_temp, std::size_t& temp_bytes, std::int32_t first_layer,
                    DeviceQkvShape<QueryLayout, KeyLayout, ValueLayout> const& shape, Layers const& layers,
                    AttentionScore const& score, double* d_sums, cudaStream_t stream) noexcept {
  std::int64_t offset = 0;
  cudaError_t const error = detail::guarded([&] {
    constexpr auto where = "observe";
    auto const last_layer =
        std::int64_t{observer.model().num_layers()} - static_cast<std::int64_t>(std::span(layers).size());
    bool const of_model = first_layer >= 0 && first_layer <= last_layer;
    require(of_model, "first_layer", {"in [0, ", last_layer, "]"}, first_layer, where);
    for (std::size_t i = 0; i < std::span(layers).size(); ++i) {
      detail::check_layer_of(observer.model(), first_layer + static_cast<std::int32_t>(i), shape.num_query_heads,
                             shape.num_kv_heads, shape.head_dim, 0, score.sliding_window, where);
    }
    offset = first_layer < observer.model().num_layers()
                 ? observer.first_head(first_layer) * observer.sums_layout().size()
                 : 0;
  });
  if (error != cudaSuccess) return error;
  return device::observe(d_temp, temp_bytes, shape, layers, score, observer.parameters(),
                         d_sums == nullptr ? nullptr : d_sums + offset, stream);
}

}  // namespace device
HEADAWARE_NAMESPACE_END
