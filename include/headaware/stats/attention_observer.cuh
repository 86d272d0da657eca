#pragma once

/// @file
/// Attention statistics of a whole model on a GPU: sums on the device, results on the host.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/error.hpp>
#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/detail/cuda/observe_launch.cuh>
#include <headaware/stats/observe.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Runs either call of `observe` of a model's layers. @param number_of  (index of a layer) to its number in the model
template <class Layer, class Shape, class NumberOf>
void observe_layers_of(AttentionObserver const& observer, void* d_temp, std::size_t& temp_bytes, Shape const& shape,
                       std::span<Layer const> layers, AttentionScore const& score, double* d_sums, cudaStream_t stream,
                       NumberOf const& number_of) {
  ModelShape const& model = observer.model();
  bool const alike = model.uniform();
  auto const place_of = [&](std::size_t i) {
    std::int32_t const number = number_of(i);
    std::int64_t const window = common_window(layers[i].window, score.sliding_window, "observe");
    std::int64_t const values = layers[i].d_values != nullptr ? value_dim(shape) : 0;
    check_layer_of(model, alike, number, shape.num_query_heads, shape.num_kv_heads, shape.head_dim, values, window,
                   "observe");
    return ObservedPlace{observer.first_head(number), window != 0 ? window : model.layer(number).window};
  };
  observe_layers(d_temp, temp_bytes, shape, layers, score, observer.parameters(), d_sums, stream, place_of);
}

}  // namespace detail

namespace device {

/// @brief Adds the statistics of some layers to the sums of a whole model, by the parameters of an observer on the
/// host.
///
/// `d_sums` is [query heads of all layers, observer.sums_layout().size()], on the device, zeroed by the caller at
/// first, a layer's from `observer.first_head(layer)` on; add any number of texts. Then copy it to the host and pass it
/// to `AttentionObserver::add_sums`, once: the observer itself is not changed here. One observer and one `d_sums` per
/// GPU; observers merge. Windows are those of the model, where layers or score leave them out.
/// @param observer     its model and parameters
/// @param first_layer  of the model: the layer of `layers[0]`; the others follow
/// @return cudaErrorInvalidValue where the layers, heads, channels or windows are not the model's, else as `observe`
/// @note   Streams, determinism and cost as `observe`: one launch for all given layers.
template <DeviceQkvRange Layers, class QueryLayout, class KeyLayout, class ValueLayout>
cudaError_t observe(AttentionObserver const& observer, void* d_temp, std::size_t& temp_bytes, std::int32_t first_layer,
                    DeviceQkvShape<QueryLayout, KeyLayout, ValueLayout> const& shape, Layers const& layers,
                    AttentionScore const& score, double* d_sums, cudaStream_t stream) noexcept {
  using Layer = std::remove_cv_t<typename decltype(std::span(layers))::element_type>;
  return detail::guarded([&] {
    std::span<Layer const> const given(layers);
    std::int64_t const last = std::int64_t{observer.model().num_layers()} - static_cast<std::int64_t>(given.size());
    require(first_layer >= 0 && first_layer <= last, "first_layer", {"in [0, ", last, "]"}, first_layer, "observe");
    detail::observe_layers_of(observer, d_temp, temp_bytes, shape, given, score, d_sums, stream,
                              [&](std::size_t i) { return first_layer + static_cast<std::int32_t>(i); });
  });
}

/// @brief Adds the statistics of layers that are alike but do not follow each other: one call per kind of layer.
/// @param layer_numbers  host, [layers]: their numbers in the model, ascending
/// @return cudaErrorInvalidValue also where the numbers are not as many as the layers, or do not ascend
template <DeviceQkvRange Layers, class QueryLayout, class KeyLayout, class ValueLayout>
cudaError_t observe(AttentionObserver const& observer, void* d_temp, std::size_t& temp_bytes,
                    std::span<std::int32_t const> layer_numbers,
                    DeviceQkvShape<QueryLayout, KeyLayout, ValueLayout> const& shape, Layers const& layers,
                    AttentionScore const& score, double* d_sums, cudaStream_t stream) noexcept {
  using Layer = std::remove_cv_t<typename decltype(std::span(layers))::element_type>;
  return detail::guarded([&] {
    constexpr auto where = "observe";
    std::span<Layer const> const given(layers);
    require(layer_numbers.size() == given.size(), "layer_numbers", given.size(), layer_numbers.size(), where);
    for (std::size_t i = 0; i < layer_numbers.size(); ++i) {
      require_index(layer_numbers[i], observer.model().num_layers(), "layer", where);
      bool const ascends = i == 0 || layer_numbers[i - 1] < layer_numbers[i];
      require(ascends, "layer_numbers", "in ascending order", layer_numbers[i], where);
    }
    detail::observe_layers_of(observer, d_temp, temp_bytes, shape, given, score, d_sums, stream,
                              [&](std::size_t i) { return layer_numbers[i]; });
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
