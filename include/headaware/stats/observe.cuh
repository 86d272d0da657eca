#pragma once

/// @file
/// Attention statistics on CUDA: sums of all heads of all given layers in one launch, without an S×S buffer. Nothing is
/// allocated, copied from the host or synchronised, so a call may be captured in a graph.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/stats/detail/cuda/observe_launch.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/observer_parameters.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Device pointers of one layer.
/// @tparam T  float, float16 or bfloat16 of this library or of CUDA
template <class T>
struct DeviceQkv {
  T const* d_queries = nullptr;  ///< by the query layout
  T const* d_keys = nullptr;     ///< by the key layout
  T const* d_values = nullptr;   ///< by the value layout; nullptr: mass only
  /// `OutputMetric::factors()`, [num_query_heads, value_dim, value_dim]; nullptr: errors before W_O alone
  float const* d_output_factors = nullptr;
  std::int64_t window = 0;         ///< tokens that a query sees, its own included; 0: all before it
  float const* d_sinks = nullptr;  ///< logits of learned sinks, [num_query_heads], as `LayerQkv::sinks`; nullptr: none
};

/// @brief Shape of all layers of a launch: one sequence, positions 0 … tokens - 1.
template <class QueryLayout, class KeyLayout = QueryLayout, class ValueLayout = KeyLayout>
struct DeviceQkvShape {
  QueryLayout query_layout{};  ///< over query heads
  KeyLayout key_layout{};      ///< over KV heads
  ValueLayout value_layout{};  ///< over KV heads
  std::int32_t num_query_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int64_t tokens = 0;
  std::int64_t head_dim = 0;
  std::int64_t sequence = 0;     ///< index of the sequence in the layouts
  std::int64_t first_token = 0;  ///< index in the layouts of the token at position 0
  std::int64_t value_dim = 0;    ///< channels of a value; 0: head_dim
};

/// @brief Anything that holds `DeviceQkv<T>` side by side, one per layer: a vector, an array, a span.
template <class Layers>
concept DeviceQkvRange = detail::RangeOf<Layers, DeviceQkv>;

namespace device {

/// @brief Query rows of a tile of `observe`, which share each load of a key, without output factors: fewer where shared
/// memory is small.
/// @tparam T  of the queries, as `observe`
/// @param values        whether there are values
/// @param shared_bytes  shared memory that a block may have
/// @return 0 where not even one row fits
template <class T, class QueryLayout, class KeyLayout, class ValueLayout>
[[nodiscard]] std::int32_t observe_tile_rows(DeviceQkvShape<QueryLayout, KeyLayout, ValueLayout> const& shape,
                                             bool values, ObserverParameters const& parameters,
                                             std::int32_t shared_bytes) {
  using Parameters = detail::ObserveParameters<QueryLayout, KeyLayout, ValueLayout>;
  using E = typename detail::ElementOf<T>::type;
  auto const setup = detail::set_up_observation<E>(shape, 1, values, false, 0, parameters, sizeof(Parameters));
  detail::ObserveShared shared;
  return detail::fit_shared(setup.sizes, shared_bytes, shared) ? shared.rows : 0;
}

/// @brief Adds the attention statistics of these layers' heads to their sums: `AttentionObserver::observe` on the
/// device.
///
/// Two calls, as in CUB: with `d_temp == nullptr` the first only sets `temp_bytes`.
/// @param[in]     d_temp      device, at least `temp_bytes`, of any alignment; nullptr: size query
/// @param[in,out] temp_bytes  bytes: 8 · SumsLayout::size() per block, some 4,096 of them, and 4 per head; with formats
///                            twice as many blocks and bytes per head
/// @param[in]     shape       shape of all layers; a head_dim of at most 1,024, less where shared memory is small, and,
///                            where there are values, a value_dim of at most 256. Of a latent with wider values only
///                            masses are measured: leave `d_values` out
/// @param[in]     layer_range host, [num_layers], at most 256; values and output factors in all of them or in none;
///                            windows and learned sinks are each layer's own
/// @param[in]     score       how the engine turns queries and keys into logits
/// @param[in]     parameters  a retention grid has at most 32 sinks and 64 windows; `chunk_size` cuts the
///                            sequence into texts of their own. Errors of formats are of rows that fit into shared
///                            memory, some 20 · head_dim · 32 bytes; of wider ones no row is sampled
/// @param[in,out] d_sums      device, [num_layers, num_query_heads, SumsLayout(parameters).size()]: added to, so
///                            zeroed by the caller at first; read with `AttentionObserver::add_sums`
/// @param[in]     stream      enqueued here, not synchronised
/// @return cudaErrorInvalidValue on arguments that make no sense, on too little temporary storage, and where not
///         even one row's sums fit into the device's shared memory; cudaErrorNotSupported on
///         devices, and in programs built for devices, before compute capability 8.0; launch errors
/// @pre    values are finite: one that is not makes sums NaN, which `AttentionObserver::add_sums` refuses
/// @note   Rows with a NaN or infinite score or learned sink are counted as invalid and nowhere else. Deterministic on
///         devices of the same shared memory; graph-capturable: a memset of 4 bytes per head, then one launch, and
///         another where there are errors of formats. Empty input succeeds without one. Values are not read where
///         no sums of them are asked for.
/// @par Cost  Reads each query once and, for every 64 queries observed (fewer where shared memory is small), the keys
///            up to them, in a window from the oldest they see, once. With values of 16 bits, of up to 128 channels,
///            sink sizes of up to 64 and no output factors: keys and values once, and then once or twice again as far
///            as windows end there. With other values: both once, for every 16 queries or fewer. Errors after W_O cost
///            value_dim² multiplications for each of some 20 sums of a row.
/// @par Source  Milakov and Gimelshein, online softmax, arXiv:1805.02867; Dao, FlashAttention-2, arXiv:2307.08691
template <DeviceQkvRange Layers, class QueryLayout, class KeyLayout, class ValueLayout>
cudaError_t observe(void* d_temp, std::size_t& temp_bytes,
                    DeviceQkvShape<QueryLayout, KeyLayout, ValueLayout> const& shape, Layers const& layer_range,
                    AttentionScore const& score, ObserverParameters const& parameters, double* d_sums,
                    cudaStream_t stream) noexcept {
  using Layer = std::remove_cv_t<typename decltype(std::span(layer_range))::element_type>;
  return detail::guarded([&] {
    std::span<Layer const> const layers(layer_range);
    detail::observe_layers(d_temp, temp_bytes, shape, layers, score, parameters, d_sums, stream, [&](std::size_t i) {
      std::int64_t const window = detail::common_window(layers[i].window, score.sliding_window, "observe");
      return detail::ObservedPlace{static_cast<std::int64_t>(i) * shape.num_query_heads, window};
    });
  });
}

}  // namespace device
HEADAWARE_NAMESPACE_END
