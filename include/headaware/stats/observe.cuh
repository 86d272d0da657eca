#pragma once

/// @file
/// Attention statistics on CUDA: the sums of all heads of all layers handed over in one launch, without an
/// S×S buffer. Nothing is allocated, copied from the host or synchronised, so a call may be captured in a graph.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/stats/detail/cuda/observe_kernel.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/sums_layout.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The pointers of one layer, on the device.
/// @tparam T  float, float16 or bfloat16 of this library or of CUDA
template <class T>
struct DeviceQkv {
  T const* d_queries = nullptr;  ///< by the query layout
  T const* d_keys = nullptr;     ///< by the key layout
  T const* d_values = nullptr;   ///< by the value layout; nullptr: mass only
  /// `OutputMetric::factors()`, [num_query_heads, value_dim, value_dim]; nullptr: errors before W_O alone
  float const* d_output_factors = nullptr;
};

/// @brief The shape that all layers of a launch share: one sequence, positions 0 … tokens - 1.
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

namespace detail {

/// Blocks that are asked for where there is work enough: fills large devices several times over, so that what
/// a device has does not decide the order of sums.
inline constexpr std::int64_t observe_blocks = 4096;

/// Everything about a call that does not depend on the device.
struct ObservePlan {
  ObserveGrid grid;
  RetentionCuts cuts;
  ObserveSizes sizes;
  std::int64_t chunk_size = 0;
  std::int64_t longest = 0;  ///< tokens of the longest chunk
};

template <class E, class Shape>
ObservePlan plan_observation(Shape const& shape, std::int64_t num_layers, bool values,
                             ObserverParameters const& parameters, std::int32_t parameter_bytes) {
  ObservePlan plan;
  plan.chunk_size = parameters.chunk_size > 0 ? std::min(parameters.chunk_size, shape.tokens) : shape.tokens;
  std::int64_t const whole = plan.chunk_size > 0 ? shape.tokens / plan.chunk_size : 0;
  std::int64_t const rest = plan.chunk_size > 0 ? shape.tokens % plan.chunk_size : 0;
  bool const whole_count = plan.chunk_size >= parameters.min_chunk;
  plan.grid.chunks = whole_count ? whole + (rest >= parameters.min_chunk ? 1 : 0) : 0;
  plan.longest = plan.grid.chunks > 0 ? plan.chunk_size : 0;
  if (plan.longest <= parameters.first_query) plan.grid.chunks = 0;

  ObserveSizes& sizes = plan.sizes;
  sizes.with_values = values && parameters.retention.has_value();
  sizes.element_bytes = sizeof(E);
  sizes.padding = WarpProducts<E>::padding;
  sizes.tile_keys = WarpProducts<E>::keys;
  sizes.parameter_bytes = parameter_bytes;
  sizes.head_dim = static_cast<std::int32_t>(shape.head_dim);
  sizes.value_dim = static_cast<std::int32_t>(value_dim(shape));
  sizes.sums = static_cast<std::int32_t>(SumsLayout(parameters).size());
  sizes.near = std::max(parameters.num_distances, parameters.local_window + 1);
  sizes.sink_size = parameters.sink_size;
  if (parameters.retention) {
    RetentionGrid const& grid = *parameters.retention;
    RetentionCuts& cuts = plan.cuts;
    cuts.grid_windows = static_cast<std::int32_t>(grid.windows.size());
    cuts.zero_sinks = grid.sinks[0] == 0 ? 1 : 0;
    for (std::int32_t const sink : grid.sinks)
      if (sink < plan.longest) cuts.sinks[cuts.num_sinks++] = sink;
    for (std::int32_t const window : grid.windows)
      if (window < plan.longest) cuts.windows[cuts.num_windows++] = window;
    sizes.used_cells = cuts.num_sinks * cuts.num_windows;
    sizes.cut_sinks = cuts.num_sinks;
    sizes.cut_windows = cuts.num_windows;
    sizes.slots = cuts.slots();
  }
  if (plan.grid.chunks == 0) return plan;
  std::int64_t const heads = std::max<std::int64_t>(1, num_layers * shape.num_query_heads);
  std::int64_t const blocks = (observe_blocks + heads - 1) / heads;
  std::int64_t const queries = (plan.longest - parameters.first_query - 1) / parameters.query_stride + 1;
  std::int64_t const tiles = (queries - 1) / sizes.tile_rows() + 1;
  plan.grid.groups = static_cast<std::int32_t>(std::min(blocks, plan.grid.chunks));
  plan.grid.parts = static_cast<std::int32_t>(
      blocks <= plan.grid.chunks ? 1 : std::min(tiles, (blocks + plan.grid.chunks - 1) / plan.grid.chunks));
  return plan;
}

/// How a tensor whose layers begin at `pointer_of(layer)` is fetched.
template <class E, class Layout, class Layers, class PointerOf>
FetchOrder fetch_order(Layout const& layout, std::int64_t head_dim, Layers const& layers, PointerOf const& pointer_of) {
  constexpr std::int64_t width = 16 / sizeof(E);
  bool const aligned = std::all_of(layers.begin(), layers.end(), [&](auto const& layer) {
    return reinterpret_cast<std::uintptr_t>(pointer_of(layer)) % 16 == 0;
  });
  if (aligned && head_dim % width == 0 && channel_run(layout) % width == 0)
    return rows_contiguous(layout, head_dim) ? FetchOrder::rows : FetchOrder::wide;
  return tokens_adjacent(layout) ? FetchOrder::tokens : FetchOrder::channels;
}

/// Shared memory that a block of the kernel may ask for, and now is allowed to: always as much as there is, since other
/// threads may be about to launch with another size. Throws `CudaError` where the kernel's code is none.
template <class Kernel>
std::int32_t allow_shared(Kernel const& kernel, char const* where) {
  int device = 0;
  int limit = 0;
  int generation = 0;
  cudaFuncAttributes attributes{};
  auto const refuse = [&](std::int32_t got) {
    auto const version = std::to_string(got / 10) + "." + std::to_string(got % 10);
    throw CudaError(cudaErrorNotSupported, {"compute capability of device and code", ">= 8.0", version, where});
  };
  require_cuda(cudaGetDevice(&device), "the current device", where);
  require_cuda(cudaDeviceGetAttribute(&generation, cudaDevAttrComputeCapabilityMajor, device), "the device", where);
  if (generation < 8) refuse(10 * generation);
  require_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "the device", where);
  require_cuda(cudaFuncGetAttributes(&attributes, kernel), "the kernel", where);
  // A program built for older devices runs on this one, but without what the kernel needs.
  if (attributes.ptxVersion < 80) refuse(attributes.ptxVersion);
  limit -= static_cast<int>(attributes.sharedSizeBytes);
  if (attributes.maxDynamicSharedSizeBytes < limit) {
    require_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit), "shared memory",
                 where);
  }
  return limit;
}

template <class E, int ChannelTiles, class Parameters>
void launch_observation(Parameters& parameters, ObserveSizes const& sizes, ObserveTensors const& tensors,
                        std::int64_t num_layers, cudaStream_t stream) {
  constexpr auto where = "observe";
  auto const kernel = observe_kernel<E, ChannelTiles, Parameters>;
  std::int32_t const limit = allow_shared(kernel, where);
  bool const fits = fit_shared(sizes, limit, parameters.shared);
  require(fits, "shared memory of one query's sums, in bytes", limit, parameters.shared.bytes, where);
  std::int64_t const heads = num_layers * parameters.num_query_heads;
  require_cuda(cudaMemsetAsync(parameters.tickets, 0, static_cast<std::size_t>(heads) * sizeof(std::uint32_t), stream),
               "clearing counts of blocks", where);
  dim3 const grid(static_cast<unsigned>(parameters.grid.blocks() * parameters.num_query_heads),
                  static_cast<unsigned>(num_layers));
  launch(where, kernel, grid, observe_threads, parameters.shared.bytes, stream, parameters, tensors);
}

template <class T>
bool is_aligned(T const* data) {
  return reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0;
}

/// The checks of `observe`. @throws ArgumentError
template <class T, class Q, class K, class V>
void check_observation(DeviceQkvShape<Q, K, V> const& shape, std::vector<DeviceQkv<T>> const& layers,
                       AttentionScore const& score, ObserverParameters const& parameters) {
  constexpr auto where = "observe";
  parameters.validate();
  score.validate();
  require(shape.num_kv_heads > 0, "kv_heads", "> 0", shape.num_kv_heads, where);
  bool const grouped = shape.num_query_heads > 0 && shape.num_query_heads % shape.num_kv_heads == 0;
  require(grouped, "query_heads", "a multiple of the KV heads", shape.num_query_heads, where);
  bool const countable = shape.tokens >= 0 && shape.tokens <= (1 << 30);
  require(countable, "tokens", "in [0, 2^30]", shape.tokens, where);
  bool const reachable = shape.first_token >= 0 && !sum_overflows(shape.first_token, shape.tokens);
  require(reachable, "first_token", {"in [0, ", largest_int64 - shape.tokens, "]"}, shape.first_token, where);
  require(shape.head_dim > 0 && shape.head_dim <= 256, "head_dim", "in [1, 256]", shape.head_dim, where);
  require(value_dim(shape) > 0 && value_dim(shape) <= 256, "value_dim", "in [1, 256]", value_dim(shape), where);
  require(layers.size() <= static_cast<std::size_t>(max_layers), "layers", "at most 256", layers.size(), where);
  // What is kept of a row lies in shared memory: far beyond any device's.
  require(parameters.sink_size <= 65536, "sink_size", "<= 65536", parameters.sink_size, where);
  require(parameters.num_distances <= 65536, "num_distances", "<= 65536", parameters.num_distances, where);
  require(parameters.local_window < 65536, "local_window", "< 65536", parameters.local_window, where);
  if (parameters.retention) {
    require(parameters.retention->sinks.size() <= static_cast<std::size_t>(max_grid_sinks), "sinks", "at most 32",
            parameters.retention->sinks.size(), where);
    require(parameters.retention->windows.size() <= static_cast<std::size_t>(max_grid_windows), "windows", "at most 64",
            parameters.retention->windows.size(), where);
  }
  if (layers.empty() || shape.tokens == 0) return;
  check_reach(shape.query_layout, shape, shape.num_query_heads, shape.head_dim, "queries", where);
  check_reach(shape.key_layout, shape, shape.num_kv_heads, shape.head_dim, "keys", where);
  bool const values = layers[0].d_values != nullptr;
  bool const factors = layers[0].d_output_factors != nullptr;
  require(values || !factors, "output factors", "values beside them", "none", where);
  if (values) check_reach(shape.value_layout, shape, shape.num_kv_heads, value_dim(shape), "values", where);
  for (DeviceQkv<T> const& layer : layers) {
    require(layer.d_queries != nullptr && layer.d_keys != nullptr, "queries and keys", "pointers", "nullptr", where);
    bool const alike = (layer.d_values != nullptr) == values && (layer.d_output_factors != nullptr) == factors;
    require(alike, "values and output factors", "in all layers or in none", "in some", where);
    bool const aligned = is_aligned(layer.d_queries) && is_aligned(layer.d_keys) && is_aligned(layer.d_values) &&
                         is_aligned(layer.d_output_factors);
    require(aligned, "queries, keys, values and output factors", "pointers aligned to their elements",
            "a misaligned one", where);
  }
}

}  // namespace detail

/// @brief Adds what the heads of these layers attend to, to their sums: on the device what
/// `AttentionObserver::observe` is on the CPU.
///
/// Two calls, as in CUB: with `d_temp == nullptr` the first only sets `temp_bytes`.
/// @param[in]     d_temp      device, at least `temp_bytes`, 8-byte aligned; nullptr: size query
/// @param[in,out] temp_bytes  bytes: 8 · SumsLayout::size() for each of some 4,096 blocks and more
/// @param[in]     shape       what all layers share
/// @param[in]     layers      host, [num_layers], at most 256; values and output factors in all of them or in none
/// @param[in]     score       how the engine turns queries and keys into logits
/// @param[in]     parameters  a retention grid has at most 32 sinks and 64 windows; `chunk_size` cuts the
///                            sequence into texts of their own
/// @param[in,out] d_sums      device, [num_layers, num_query_heads, SumsLayout(parameters).size()]: added to, so
///                            zeroed by the caller at first; read with `AttentionObserver::add_sums`
/// @param[in]     stream      enqueued here, not synchronised
/// @return cudaErrorInvalidValue on arguments that make no sense, on too small or misaligned temporary storage,
///         and where not even one row's sums fit into the device's shared memory; cudaErrorNotSupported on
///         devices, and in programs built for devices, before compute capability 8.0; launch errors
/// @pre    values are finite: one that is not makes sums NaN, which `AttentionObserver::add_sums` refuses
/// @note   Rows with a NaN or infinite score are counted as invalid and nowhere else. Deterministic on devices
///         of the same shared memory; graph-capturable: a memset of 4 bytes a head, then one launch. Empty input
///         succeeds without one. Values behind which no sums are wanted are not read.
/// @par Cost  Reads each query once and, for every 64 queries observed (16 with values, fewer where shared memory
///            is small), the keys and values up to them once. Errors behind W_O cost value_dim² multiplications for
///            each of some 20 sums of a row.
/// @par Source  Milakov and Gimelshein, online softmax, arXiv:1805.02867; Dao, FlashAttention-2, arXiv:2307.08691
template <class T, class QueryLayout, class KeyLayout, class ValueLayout>
cudaError_t observe(void* d_temp, std::size_t& temp_bytes,
                    DeviceQkvShape<QueryLayout, KeyLayout, ValueLayout> const& shape,
                    std::vector<DeviceQkv<T>> const& layers, AttentionScore const& score,
                    ObserverParameters const& parameters, double* d_sums, cudaStream_t stream) noexcept {
  static_assert(check_layout<QueryLayout>() && check_layout<KeyLayout>() && check_layout<ValueLayout>());
  using E = typename detail::ElementOf<T>::type;
  static_assert(std::is_same_v<E, float> || std::is_same_v<E, float16> || std::is_same_v<E, bfloat16>,
                "headaware: queries, keys and values are float, float16 or bfloat16");
  using Parameters = detail::ObserveParameters<QueryLayout, KeyLayout, ValueLayout>;
  return detail::guarded([&] {
    constexpr auto where = "observe";
    detail::check_observation(shape, layers, score, parameters);
    auto const num_layers = static_cast<std::int64_t>(layers.size());
    bool const values = num_layers > 0 && layers[0].d_values != nullptr;
    auto const plan = detail::plan_observation<E>(shape, num_layers, values, parameters, sizeof(Parameters));
    std::int64_t const heads = num_layers * shape.num_query_heads;
    std::int64_t const partials = heads * plan.grid.blocks() * plan.sizes.sums;
    std::size_t const needed =
        static_cast<std::size_t>(partials) * sizeof(double) + static_cast<std::size_t>(heads) * sizeof(std::uint32_t);
    if (d_temp == nullptr) {
      temp_bytes = needed;
      return;
    }
    detail::require_storage(d_temp, temp_bytes, needed, alignof(double), where);
    if (plan.grid.chunks == 0 || num_layers == 0) return;
    bool const sums = d_sums != nullptr && detail::is_aligned(d_sums);
    require(sums, "d_sums", "a pointer aligned to 8 bytes", d_sums == nullptr ? "nullptr" : "another", where);
    std::int64_t const blocks = std::int64_t{plan.grid.blocks()} * shape.num_query_heads;
    require(blocks <= detail::max_blocks, "blocks", detail::max_blocks_text, blocks, where);

    detail::ObserveTensors tensors{};
    for (std::size_t i = 0; i < layers.size(); ++i)
      tensors.layers[i] = {layers[i].d_queries, layers[i].d_keys, layers[i].d_values, layers[i].d_output_factors};
    auto const clamped = [&](std::int64_t value) { return static_cast<std::int32_t>(std::min(value, plan.longest)); };
    auto const map = detail::LogitMap::of(score.scale, score.soft_cap, shape.head_dim);
    Parameters kernel_parameters{
        .query_layout = shape.query_layout,
        .key_layout = shape.key_layout,
        .value_layout = shape.value_layout,
        .sequence = shape.sequence,
        .first_token = shape.first_token,
        .tokens = shape.tokens,
        .chunk_size = plan.chunk_size,
        .recent_ratio = parameters.recent_ratio,
        .partials = static_cast<double*>(d_temp),
        .tickets = reinterpret_cast<std::uint32_t*>(static_cast<double*>(d_temp) + partials),
        .sums = d_sums,
        .grid = plan.grid,
        .shared = {},
        .layout = SumsLayout(parameters),
        .cuts = plan.cuts,
        .num_query_heads = shape.num_query_heads,
        .group = shape.num_query_heads / shape.num_kv_heads,
        .head_dim = static_cast<std::int32_t>(shape.head_dim),
        .value_dim = plan.sizes.value_dim,
        .first_query = clamped(parameters.first_query),
        .query_stride = clamped(parameters.query_stride),
        .sliding_window = clamped(score.sliding_window),
        .sink_size = parameters.sink_size,
        .local_window = parameters.local_window,
        .near = plan.sizes.near,
        .scale = map.factor(),
        .cap = map.capped() ? map.outer : 0,
        .query_fetch = detail::fetch_order<E>(shape.query_layout, shape.head_dim, layers,
                                              [](auto const& layer) { return layer.d_queries; }),
        .key_fetch = detail::fetch_order<E>(shape.key_layout, shape.head_dim, layers,
                                            [](auto const& layer) { return layer.d_keys; }),
        .value_fetch = !plan.sizes.with_values
                           ? detail::FetchOrder::channels
                           : detail::fetch_order<E>(shape.value_layout, plan.sizes.value_dim, layers,
                                                    [](auto const& layer) { return layer.d_values; }),
    };
    static_assert(sizeof(Parameters) + sizeof(tensors) <= detail::max_parameter_bytes);
    auto const launch = [&]<int ChannelTiles>() {
      detail::launch_observation<E, ChannelTiles>(kernel_parameters, plan.sizes, tensors, num_layers, stream);
    };
    if (!plan.sizes.with_values) return launch.template operator()<0>();
    if (plan.sizes.value_dim <= 64) return launch.template operator()<2>();
    if (plan.sizes.value_dim <= 128) return launch.template operator()<4>();
    return launch.template operator()<8>();
  });
}

HEADAWARE_NAMESPACE_END
