#pragma once

// Host side of `observe`: checks, division of work, launch.

#include <headaware/attention/layer_attention.hpp>
#include <headaware/attention/score.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/detail/logit_map.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/stats/detail/cuda/observe_kernel.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/detail/cuda/rounding_launch.cuh>
#include <headaware/stats/observer_parameters.hpp>
#include <headaware/stats/sums_layout.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Blocks of a launch with enough work: fill large devices several times, so that the order of sums does not depend
/// on the device.
inline constexpr std::int64_t observe_blocks = 4096;

/// What tiles of 64 rows with values are for: more does not fit into registers and shared memory.
inline constexpr std::int32_t wide_value_dim = 128;
inline constexpr std::int32_t wide_sinks = 64;

/// Sizes and division of work of a call: what does not depend on the device.
struct ObserveSetup {
  ObserveGrid grid;
  RetentionCuts cuts;
  ObserveSizes sizes;
  std::int64_t chunk_size = 0;
  std::int64_t longest = 0;  ///< tokens of the longest chunk
};

/// @param widest  the largest window of all layers; 0: some layer sees all tokens
/// @param metric  whether errors after W_O are measured too
template <class E, class Shape>
ObserveSetup set_up_observation(Shape const& shape, std::int64_t num_layers, bool values, bool metric,
                                std::int64_t widest, ObserverParameters const& parameters,
                                std::int32_t parameter_bytes) {
  ObserveSetup setup;
  setup.chunk_size = parameters.chunk_size > 0 ? std::min(parameters.chunk_size, shape.tokens) : shape.tokens;
  std::int64_t const whole = setup.chunk_size > 0 ? shape.tokens / setup.chunk_size : 0;
  std::int64_t const rest = setup.chunk_size > 0 ? shape.tokens % setup.chunk_size : 0;
  bool const whole_count = setup.chunk_size >= parameters.min_chunk;
  setup.grid.chunks = whole_count ? whole + (rest >= parameters.min_chunk ? 1 : 0) : 0;
  setup.longest = setup.grid.chunks > 0 ? setup.chunk_size : 0;
  if (setup.longest <= parameters.first_query) setup.grid.chunks = 0;

  ObserveSizes& sizes = setup.sizes;
  sizes.with_values = values && parameters.retention.has_value();
  sizes.element_bytes = sizeof(E);
  sizes.padding = WarpProducts<E>::padding;
  sizes.parameter_bytes =
      parameter_bytes + static_cast<std::int32_t>(sizeof(ObserveTensors::Own) + sizeof(ObserveTensors::Layer));
  sizes.head_dim = static_cast<std::int32_t>(shape.head_dim);
  sizes.value_dim = values ? static_cast<std::int32_t>(value_dim(shape)) : 0;
  sizes.sums = static_cast<std::int32_t>(SumsLayout(parameters).size());
  sizes.near = std::max(parameters.num_distances, parameters.local_window + 1);
  sizes.sink_size = parameters.sink_size;
  if (parameters.retention) {
    RetentionGrid const& grid = *parameters.retention;
    RetentionCuts& cuts = setup.cuts;
    cuts.grid_windows = static_cast<std::int32_t>(grid.windows.size());
    cuts.zero_sinks = grid.sinks[0] == 0 ? 1 : 0;
    for (std::int32_t const sink : grid.sinks)
      if (sink < setup.longest) cuts.sinks[cuts.num_sinks++] = sink;
    std::int64_t const visible = widest > 0 ? std::min(widest, setup.longest) : setup.longest;
    for (std::int32_t const window : grid.windows)
      if (window < visible) cuts.windows[cuts.num_windows++] = window;
    sizes.used_cells = cuts.num_sinks * cuts.num_windows;
    sizes.cut_sinks = cuts.num_sinks;
    sizes.cut_windows = cuts.num_windows;
    sizes.intervals = cuts.intervals();
    sizes.last_sink = cuts.num_sinks > 0 ? cuts.sinks[cuts.num_sinks - 1] : 0;
  }
  sizes.wide = sizes.with_values && !std::is_same_v<E, float> && !metric && sizes.value_dim <= wide_value_dim &&
               sizes.last_sink <= wide_sinks;
  sizes.tile_keys = observe_tile_keys(WarpProducts<E>::keys, sizes.shares_rows());
  if (setup.grid.chunks == 0) return setup;
  std::int64_t const heads = std::max<std::int64_t>(1, num_layers * shape.num_query_heads);
  std::int64_t const blocks = (observe_blocks + heads - 1) / heads;
  std::int64_t const queries = (setup.longest - parameters.first_query - 1) / parameters.query_stride + 1;
  std::int64_t const tiles = (queries - 1) / sizes.tile_rows() + 1;
  setup.grid.groups = static_cast<std::int32_t>(std::min(blocks, setup.grid.chunks));
  setup.grid.parts = static_cast<std::int32_t>(
      blocks <= setup.grid.chunks ? 1 : std::min(tiles, (blocks + setup.grid.chunks - 1) / setup.grid.chunks));
  return setup;
}

/// Order of fetching a tensor whose layers begin at `pointer_of(layer)`.
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

/// Lets the kernel use all shared memory that a block may have: other threads may be about to launch with another size.
/// @return that size. Throws `CudaError` where the kernel has no code for the device
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

template <class E, int ChannelTiles, bool Wide, class Parameters>
void launch_observation(Parameters& parameters, ObserveSizes const& sizes, ObserveTensors const& tensors,
                        std::int64_t num_layers, cudaStream_t stream) {
  constexpr auto where = "observe";
  auto const kernel = observe_kernel<E, ChannelTiles, Wide, Parameters>;
  std::int32_t const limit = allow_shared(kernel, where);
  bool const fits = fit_shared(sizes, limit, parameters.shared);
  require(fits, "shared memory of one query's sums, in bytes", limit, parameters.shared.bytes, where);
  dim3 const grid(static_cast<unsigned>(parameters.grid.blocks() * parameters.num_query_heads),
                  static_cast<unsigned>(num_layers));
  launch(where, kernel, grid, observe_threads, parameters.shared.bytes, stream, parameters, tensors);
}

template <class T>
bool is_aligned(T const* data) {
  return reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0;
}

/// Runs the argument checks of `observe`. @throws ArgumentError
template <class Shape, class Layer>
void check_observation(Shape const& shape, std::span<Layer const> layers, AttentionScore const& score,
                       ObserverParameters const& parameters) {
  constexpr auto where = "observe";
  parameters.validate();
  score.validate();
  require(shape.num_kv_heads > 0, "KV heads", "> 0", shape.num_kv_heads, where);
  bool const grouped = shape.num_query_heads > 0 && shape.num_query_heads % shape.num_kv_heads == 0;
  require(grouped, "query heads", "a multiple of the KV heads", shape.num_query_heads, where);
  bool const countable = shape.tokens >= 0 && shape.tokens <= (1 << 30);
  require(countable, "tokens", "in [0, 2^30]", shape.tokens, where);
  bool const reachable = shape.first_token >= 0 && !sum_overflows(shape.first_token, shape.tokens);
  require(reachable, "first_token", {"in [0, ", largest_int64 - shape.tokens, "]"}, shape.first_token, where);
  require(shape.head_dim > 0 && shape.head_dim <= 1024, "head_dim", "in [1, 1024]", shape.head_dim, where);
  require(layers.size() <= static_cast<std::size_t>(max_layers), "layers", "at most 256", layers.size(), where);
  // Kept scores of a row are in shared memory: this is far beyond any device's.
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
  if (values) {
    require(value_dim(shape) > 0 && value_dim(shape) <= 256, "value_dim",
            "in [1, 256] (of wider values, as a latent's, only masses are measured here: without d_values)",
            value_dim(shape), where);
    bool const latent = layers[0].d_values == layers[0].d_keys;
    check_reach(shape.value_layout, shape, shape.num_kv_heads, value_dim(shape), "values", where, latent);
  }
  for (Layer const& layer : layers) {
    require(layer.window >= 0, "window", ">= 0", layer.window, where);
    require(layer.d_queries != nullptr && layer.d_keys != nullptr, "queries and keys", "pointers", "nullptr", where);
    bool const alike = (layer.d_values != nullptr) == values && (layer.d_output_factors != nullptr) == factors;
    require(alike, "values and output factors", "in all layers or in none", "in some", where);
    bool const aligned = is_aligned(layer.d_queries) && is_aligned(layer.d_keys) && is_aligned(layer.d_values) &&
                         is_aligned(layer.d_output_factors) && is_aligned(layer.d_sinks);
    require(aligned, "queries, keys, values, output factors and sinks", "pointers aligned to their elements",
            "a misaligned one", where);
  }
}

/// Where the sums of a layer begin, in heads, and its window; 0: none.
struct ObservedPlace {
  std::int64_t first_head = 0;
  std::int64_t window = 0;
};

/// Runs either call of `observe`. @param place_of  (index of a layer) to its place. @throws ArgumentError, CudaError
template <class Layer, class Shape, class PlaceOf>
void observe_layers(void* d_temp, std::size_t& temp_bytes, Shape const& shape, std::span<Layer const> layers,
                    AttentionScore const& score, ObserverParameters const& parameters, double* d_sums,
                    cudaStream_t stream, PlaceOf const& place_of) {
  using QueryLayout = decltype(Shape::query_layout);
  using KeyLayout = decltype(Shape::key_layout);
  using ValueLayout = decltype(Shape::value_layout);
  static_assert(check_layout<QueryLayout>() && check_layout<KeyLayout>() && check_layout<ValueLayout>());
  using E = typename ElementOf<std::remove_cvref_t<decltype(*Layer::d_queries)>>::type;
  static_assert(std::is_same_v<E, float> || std::is_same_v<E, float16> || std::is_same_v<E, bfloat16>,
                "headaware: queries, keys and values are float, float16 or bfloat16");
  using Parameters = ObserveParameters<QueryLayout, KeyLayout, ValueLayout>;
  constexpr auto where = "observe";
  check_observation(shape, layers, score, parameters);
  auto const num_layers = static_cast<std::int64_t>(layers.size());
  bool const values = num_layers > 0 && layers[0].d_values != nullptr;
  bool const factors = num_layers > 0 && layers[0].d_output_factors != nullptr;
  std::int64_t widest = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    std::int64_t const window = place_of(i).window;
    widest = window == 0 || (i > 0 && widest == 0) ? 0 : std::max(widest, window);
  }
  auto const setup = set_up_observation<E>(shape, num_layers, values, factors, widest, parameters, sizeof(Parameters));
  std::int64_t const heads = num_layers * shape.num_query_heads;
  RoundingSetup const rounding(parameters, setup.grid.chunks, setup.longest, setup.sizes.with_values,
                               (observe_blocks + heads - 1) / std::max<std::int64_t>(1, heads));
  std::int64_t const tickets = rounding.blocks > 0 ? 2 * heads : heads;
  double* d_partials = nullptr;
  double* d_rounding = nullptr;
  std::int32_t* d_tickets = nullptr;
  bool const placed =
      place_buffers(d_temp, temp_bytes, where, TempBuffer{d_partials, heads * setup.grid.blocks() * setup.sizes.sums},
                    TempBuffer{d_rounding, heads * rounding.blocks * rounding.sums}, TempBuffer{d_tickets, tickets});
  if (!placed) return;
  if (setup.grid.chunks == 0 || num_layers == 0) return;
  bool const sums = d_sums != nullptr && is_aligned(d_sums);
  require(sums, "d_sums", "a pointer aligned to 8 bytes", d_sums == nullptr ? "nullptr" : "another", where);
  std::int64_t const blocks = std::int64_t{setup.grid.blocks()} * shape.num_query_heads;
  require(blocks <= max_blocks, "blocks", max_blocks_text, blocks, where);

  ObserveTensors tensors{};
  auto const clamped = [&](std::int64_t value) { return static_cast<std::int32_t>(std::min(value, setup.longest)); };
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Layer const& layer = layers[i];
    ObservedPlace const place = place_of(i);
    tensors.layers[i] = {layer.d_queries, layer.d_keys, layer.d_values, layer.d_output_factors};
    tensors.own[i] = {layer.d_sinks, place.first_head, clamped(place.window)};
  }
  auto const map = LogitMap::of(score.scale, score.soft_cap, shape.head_dim);
  Parameters kernel_parameters{
      .query_layout = shape.query_layout,
      .key_layout = shape.key_layout,
      .value_layout = shape.value_layout,
      .sequence = shape.sequence,
      .first_token = shape.first_token,
      .tokens = shape.tokens,
      .chunk_size = setup.chunk_size,
      .recent_ratio = parameters.recent_ratio,
      .partials = d_partials,
      .tickets = d_tickets,
      .sums = d_sums,
      .grid = setup.grid,
      .shared = {},
      .layout = SumsLayout(parameters),
      .cuts = setup.cuts,
      .num_query_heads = shape.num_query_heads,
      .group = shape.num_query_heads / shape.num_kv_heads,
      .head_dim = static_cast<std::int32_t>(shape.head_dim),
      .value_dim = setup.sizes.value_dim,
      .first_query = clamped(parameters.first_query),
      .query_stride = clamped(parameters.query_stride),
      .sink_size = parameters.sink_size,
      .local_window = parameters.local_window,
      .near = setup.sizes.near,
      .scale = map.factor(),
      .cap = map.capped() ? map.outer : 0,
      .query_fetch =
          fetch_order<E>(shape.query_layout, shape.head_dim, layers, [](auto const& layer) { return layer.d_queries; }),
      .key_fetch =
          fetch_order<E>(shape.key_layout, shape.head_dim, layers, [](auto const& layer) { return layer.d_keys; }),
      .value_fetch = !setup.sizes.with_values ? FetchOrder::channels
                                              : fetch_order<E>(shape.value_layout, setup.sizes.value_dim, layers,
                                                               [](auto const& layer) { return layer.d_values; }),
  };
  static_assert(sizeof(Parameters) + sizeof(tensors) <= max_parameter_bytes);
  clear_tickets(d_tickets, tickets, where, stream);
  auto const launch = [&]<int ChannelTiles, bool Wide>() {
    launch_observation<E, ChannelTiles, Wide>(kernel_parameters, setup.sizes, tensors, num_layers, stream);
  };
  if (!setup.sizes.with_values) return launch.template operator()<0, false>();
  constexpr bool has_wide = !std::is_same_v<E, float>;
  if (setup.sizes.wide) {
    if constexpr (has_wide) {
      setup.sizes.value_dim <= 64 ? launch.template operator()<8, true>() : launch.template operator()<16, true>();
    }
  } else if (setup.sizes.value_dim <= 64 && !has_wide) {
    if constexpr (!has_wide) launch.template operator()<2, false>();
  } else if (setup.sizes.value_dim <= 128) {
    launch.template operator()<4, false>();
  } else {
    launch.template operator()<8, false>();
  }
  if (rounding.blocks == 0) return;
  launch_rounding<E>(rounding, kernel_parameters, parameters, tensors, num_layers, d_rounding, d_tickets + heads,
                     stream, [&](auto const& kernel) { return allow_shared(kernel, where); });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
