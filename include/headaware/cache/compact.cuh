#pragma once

/// @file
/// Compaction on CUDA: two launches for a whole model, nothing else. Nothing is allocated, copied
/// from the host or synchronised, so a call may be captured in a graph and replayed with other
/// lengths in `d_lengths`.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/cuda/gather_kernel.cuh>
#include <headaware/cache/detail/cuda/in_place_kernel.cuh>
#include <headaware/cache/detail/cuda/sizes_kernel.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/layout/concept.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// The widest power-of-two access, in elements, that `run` elements and all the addresses allow.
template <class T>
std::int64_t vector_elements(std::int64_t run, std::vector<void const*> const& addresses) {
  std::int64_t width = 16 / static_cast<std::int64_t>(sizeof(T));
  auto const fits = [&](std::int64_t elements) {
    if (run % elements != 0) return false;
    return std::all_of(addresses.begin(), addresses.end(), [&](void const* address) {
      return reinterpret_cast<std::uintptr_t>(address) % (static_cast<std::uintptr_t>(elements) * sizeof(T)) == 0;
    });
  };
  while (width > 1 && !fits(width)) width /= 2;
  return width;
}

/// Elements in which a form's rows are aligned.
template <class Form>
std::int64_t form_run(Form const& form, std::int64_t channels) {
  if constexpr (std::is_same_v<Form, PagedForm>) return std::gcd(channels, form.page_stride);
  return channels;
}

template <class T, class Rotation>
using KeyMove =
    std::conditional_t<std::is_same_v<Rotation, KeyRotation>, RotateRows<typename ElementOf<T>::type>, CopyRows>;

template <class T, class Layout>
CopyRows copy_move(Layout const& layout, std::int64_t run, std::vector<void const*> const& addresses) {
  auto const bytes =
      static_cast<std::int32_t>(vector_elements<T>(run, addresses) * static_cast<std::int64_t>(sizeof(T)));
  return {bytes, tokens_adjacent(layout)};
}

template <class T>
RotateRows<typename ElementOf<T>::type> rotate_move(KeyRotation const& rotation, std::int64_t channels,
                                                    std::int64_t run, std::vector<void const*> const& addresses) {
  std::int64_t const width = 16 / static_cast<std::int64_t>(sizeof(T));
  bool const wide = vector_elements<T>(run, addresses) == width && rotation.rotary_dim() % (2 * width) == 0 &&
                    (channels - rotation.rotary_dim()) % width == 0;
  return {rotation, wide};
}

/// The planes of a launch and their pointers, layer by layer.
template <class... Planes>
struct PlaneSet {
  PlaneList<Planes...> planes;
  std::vector<PlanePointers> pointers;  ///< one a plane
};

/// The keys or the values of one transfer.
template <class T, class Source, class Form, class Rotation, class Layout, class PlaneRotation>
auto make_plane(Transfer<T, Source, Form, Rotation> const& transfer, Layout const& layout, std::int64_t channels,
                T const* LayerKv<T const>::*source, T* LayerKv<T>::*target, PlaneRotation const& rotation,
                std::vector<PlanePointers>& pointers) {
  PlanePointers plane_pointers{};
  std::vector<void const*> addresses;
  for (std::size_t layer = 0; layer < transfer.layers.size(); ++layer) {
    plane_pointers.source[layer] = transfer.layers[layer].*source;
    plane_pointers.kept[layer] = transfer.kept.layers[layer].*target;
    addresses.push_back(plane_pointers.source[layer]);
    addresses.push_back(plane_pointers.kept[layer]);
  }
  pointers.push_back(plane_pointers);
  std::int64_t const run = std::gcd(std::gcd(channel_run(layout), form_run(transfer.kept.form, channels)), channels);
  auto const plane = [&](auto const& move) {
    return DevicePlane<Layout, Form, std::remove_cvref_t<decltype(move)>>{
        layout, transfer.kept.form, move, static_cast<std::int32_t>(channels), static_cast<std::int32_t>(sizeof(T))};
  };
  if constexpr (std::is_same_v<PlaneRotation, KeyRotation>) {
    return plane(rotate_move<T>(rotation, channels, run, addresses));
  } else {
    return plane(copy_move<T>(layout, run, addresses));
  }
}

/// The two planes of one transfer.
template <class T, class Source, class Form, class Rotation>
auto make_planes(Transfer<T, Source, Form, Rotation> const& transfer) {
  static_assert(sizeof(T) <= 8 && (sizeof(T) & (sizeof(T) - 1)) == 0, "headaware: elements have 1, 2, 4 or 8 bytes");
  std::vector<PlanePointers> pointers;
  auto const keys = make_plane(transfer, keys_of(transfer.source), transfer.kept.head_dim, &LayerKv<T const>::keys,
                               &LayerKv<T>::keys, transfer.rotation, pointers);
  auto const values = make_plane(transfer, values_of(transfer.source), transfer.kept.value_dim,
                                 &LayerKv<T const>::values, &LayerKv<T>::values, KeepPositions{}, pointers);
  using Keys = std::remove_const_t<decltype(keys)>;
  using Values = std::remove_const_t<decltype(values)>;
  return PlaneSet<Keys, Values>{{keys, {values, {}}}, pointers};
}

/// Two transfers in one launch.
template <class A, class B, class C, class D>
PlaneSet<A, B, C, D> concatenate(PlaneSet<A, B> const& head, PlaneSet<C, D> const& tail) {
  std::vector<PlanePointers> pointers = head.pointers;
  pointers.insert(pointers.end(), tail.pointers.begin(), tail.pointers.end());
  return {{head.planes.first, {head.planes.rest.first, tail.planes}}, pointers};
}

template <class Table, class Form, class... Planes>
void launch_compress(DeviceCompaction<Table> const& plan, PlanArrays const& arrays, Form const& form,
                     std::vector<LayerCapacity> const& capacities, std::int64_t row_bytes,
                     PlaneSet<Planes...> const& planes, cudaStream_t stream) {
  // About 32 KiB a tile: eight 16-byte accesses a thread, against which finding the tile costs little.
  constexpr std::int64_t tile_bytes = 32768;
  std::int64_t const segments = std::int64_t{plan.table.num_layers()} * plan.num_sequences * plan.table.num_kv_heads();
  auto const rows = static_cast<std::int32_t>(std::clamp<std::int64_t>(tile_bytes / row_bytes, 8, max_tile_rows));

  PlanParameters<Table, Form> const counting{plan, arrays, form, rows};
  LayerCapacities layer_capacities{};
  std::copy(capacities.begin(), capacities.end(), layer_capacities.layers);
  launch("compress", plan_kernel<Table, Form>, 1, plan_threads, 0, stream, counting, layer_capacities);
  if (plan.max_rows == 0) return;

  GatherParameters<Table, Planes...> const gathering{plan, arrays, rows, planes.planes};
  LayerTables<sizeof...(Planes)> tables{};
  static_assert(sizeof(gathering) + sizeof(tables) <= max_parameter_bytes,
                "headaware: too many tensors for one launch");
  std::copy(capacities.begin(), capacities.end(), tables.capacities);
  std::copy(planes.pointers.begin(), planes.pointers.end(), tables.planes);
  std::int64_t const tiles = plan.max_rows / rows + std::min(segments, plan.max_rows);
  dim3 const grid(static_cast<unsigned>(std::min<std::int64_t>(tiles, max_blocks)), sizeof...(Planes));
  launch("compress", gather_kernel<Table, Planes...>, grid, block_threads, 0, stream, gathering, tables);
}

template <class Table, class First, class... Rest>
void compress_transfers(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& plan, cudaStream_t stream,
                        First const& first, Rest const&... rest) {
  constexpr auto where = "compress";
  std::int64_t const segments = std::int64_t{plan.table.num_layers()} * plan.num_sequences * plan.table.num_kv_heads();
  PlanArrays arrays;
  bool const placed = place_buffers(d_temp, temp_bytes, where, TempBuffer{arrays.row_offsets, segments + 1},
                                    TempBuffer{arrays.tile_offsets, segments + 1});
  if (!placed) return;
  bool const same_capacities = ((first.kept.capacities == rest.kept.capacities) && ...);
  require(same_capacities, "capacities of scales", "those of keys and values", "others", where);
  require(plan.table.num_layers() <= max_layers, "layers", "at most 256", plan.table.num_layers(), where);
  require(segments == 0 || plan.d_lengths != nullptr, "d_lengths", "a pointer", "nullptr", where);
  validate(plan, first, rest...);
  if (segments == 0) return;

  auto const row_bytes = [](auto const& transfer) {
    return std::max(transfer.kept.head_dim, transfer.kept.value_dim) *
           static_cast<std::int64_t>(sizeof(transfer.kept.layers[0].keys[0]));
  };
  std::int64_t const widest = std::max({row_bytes(first), row_bytes(rest)...});
  if constexpr (sizeof...(Rest) == 0) {
    launch_compress(plan, arrays, first.kept.form, first.kept.capacities, widest, make_planes(first), stream);
  } else {
    launch_compress(plan, arrays, first.kept.form, first.kept.capacities, widest,
                    concatenate(make_planes(first), make_planes(rest...)), stream);
  }
}

}  // namespace detail

/// @brief Compresses a cache on the device: every head's kept tokens go to their slots.
///
/// Two calls, as in CUB: with `d_temp == nullptr` the first only sets `temp_bytes`.
/// @param[in]     d_temp      device, at least `temp_bytes`, of any alignment; nullptr: size query
/// @param[in,out] temp_bytes  bytes: some 12 · (layers · sequences · num_kv_heads + 1)
/// @param[in]     plan        `Compaction::on_device`; its optional outputs are written too
/// @param[in]     transfer    keys and values of all layers, device pointers, at most 256 layers
/// @param[in]     stream      enqueued here, not synchronised
/// @pre    d_lengths keep no more than was planned: else nothing moves and `d_status` says so. Tables of the source and
///         of pages, and positions, are right, and pages that are written apart from those that are read, which the
///         host cannot see: `validate_tables` checks copies of them
/// @return cudaErrorInvalidValue where `validate(plan, transfer)` throws, on too little temporary storage and on more
/// than 256 layers; launch errors
/// @note   Deterministic; graph-capturable. At most 2 launches. Without segments (no sequence, layer or head)
///         nothing is launched and no output written.
/// @par Cost  Each kept byte is read once and written once, in 16-byte accesses where the layout's
///            runs and all pointers are aligned to it
template <class Table, class T, class Source, class Form, class Rotation>
cudaError_t compress(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& plan,
                     Transfer<T, Source, Form, Rotation> const& transfer, cudaStream_t stream) noexcept {
  return detail::guarded([&] { detail::compress_transfers(d_temp, temp_bytes, plan, stream, transfer); });
}

/// @brief The same for a cache whose tokens have scales, moved in the same launch.
/// @param scales  the scales of keys and values as tensors of their own, into the same form of cache
template <class Table, class T, class Source, class Form, class Rotation, class S, class ScaleSource>
cudaError_t compress(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& plan,
                     Transfer<T, Source, Form, Rotation> const& transfer, Transfer<S, ScaleSource, Form> const& scales,
                     cudaStream_t stream) noexcept {
  return detail::guarded([&] { detail::compress_transfers(d_temp, temp_bytes, plan, stream, transfer, scales); });
}

/// @brief The same for keys and values alone.
/// @param layers  [num_layers], device pointers
/// @param source  how each layer's keys and values lie
/// @param kept    `ragged`, `padded`, `grouped`, `paged` or `rolling`
template <class Table, class U, class Source, class T, class Form>
cudaError_t compress(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& plan,
                     std::vector<LayerKv<U>> const& layers, Source const& source, Destination<T, Form> const& kept,
                     cudaStream_t stream) noexcept {
  return detail::guarded(
      [&] { detail::compress_transfers(d_temp, temp_bytes, plan, stream, transfer(layers, source, kept)); });
}

/// @brief Moves what every head keeps to the head's first `kept` tokens, in the cache it is in.
/// @param plan      `Compaction::on_device`; of its outputs `d_kept` and `d_status` are written (the
///                  latter 1 if a length is out of range or a head evicts too few tokens to turn its keys of 16 bits,
///                  see `KeyRotation::evicting`; such heads stay as they are; else 0). `d_kept` of a head that evicts
///                  too few is its length, as all its tokens are still there; of a length out of range it is not
///                  written
/// @param layers    [num_layers], device pointers, at most 256 layers
/// @param source    how each layer's keys and values lie; no two heads may share memory
/// @param rotation  `KeyRotation`, or `{}` to keep positions. Behind the call a key's position is its slot
/// @param stream    enqueued here, not synchronised
/// @pre    tables of the source, positions and keep-lists are right, which the host cannot see: `validate_tables`
/// @return cudaErrorInvalidValue where the CPU's `compress_in_place` throws, but for what tables say; launch errors
/// @note   Deterministic; graph-capturable. One launch, no temporary storage. Without segments (no sequence, layer
///         or head) nothing is launched and no output written.
/// @par Cost  Moves only tokens whose place changes; one block a (head, tensor)
template <class Table, class T, class Source, class Rotation = detail::KeepPositions>
cudaError_t compress_in_place(DeviceCompaction<Table> const& plan, std::vector<LayerKv<T>> const& layers,
                              Source const& source, Rotation const& rotation, cudaStream_t stream) noexcept {
  static_assert(sizeof(T) <= 8 && (sizeof(T) & (sizeof(T) - 1)) == 0, "headaware: elements have 1, 2, 4 or 8 bytes");
  return detail::guarded([&] {
    constexpr auto where = "compress_in_place";
    std::int64_t const segments =
        std::int64_t{plan.table.num_layers()} * plan.num_sequences * plan.table.num_kv_heads();
    auto const keys = detail::keys_of(source);
    auto const values = detail::values_of(source);
    detail::check_in_place(detail::bounds_of(plan), layers, source, rotation);
    if constexpr (detail::rounds_in_place<T, Rotation>) {
      if (plan.min_evicted != 0 && plan.min_evicted < rotation.min_evicted()) {
        std::int64_t const head = plan.min_evicted_segment / plan.table.num_kv_heads();
        Segment segment;
        segment.kv_head = static_cast<std::int32_t>(plan.min_evicted_segment % plan.table.num_kv_heads());
        segment.sequence = static_cast<std::int32_t>(head % plan.num_sequences);
        segment.layer = static_cast<std::int32_t>(head / plan.num_sequences);
        require(false, "evicted tokens", detail::enough_evictions(rotation.min_evicted()), plan.min_evicted,
                detail::place_of(where, segment));
      }
    }
    require(plan.table.num_layers() <= detail::max_layers, "layers", "at most 256", plan.table.num_layers(), where);
    require(segments == 0 || plan.d_lengths != nullptr, "d_lengths", "a pointer", "nullptr", where);
    require(segments <= detail::max_blocks, "heads", detail::max_blocks_text, segments, where);
    if (segments == 0) return;

    std::int64_t min_evicted = 0;
    if constexpr (detail::rounds_in_place<T, Rotation>) min_evicted = rotation.min_evicted();
    detail::InPlaceTensors<2> tensors{};
    auto const plane = [&](auto const& layout, T* LayerKv<T>::*tensor, void** layer_tensors,
                           auto const& plane_rotation) {
      std::vector<void const*> addresses;
      for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        layer_tensors[layer] = layers[layer].*tensor;
        addresses.push_back(layer_tensors[layer]);
      }
      std::int64_t const channels = layout.num_channels();
      std::int64_t const run = std::gcd(detail::channel_run(layout), channels);
      auto const with = [&](auto const& move) {
        return detail::InPlacePlane<std::remove_cvref_t<decltype(layout)>, std::remove_cvref_t<decltype(move)>>{
            layout, move, static_cast<std::int32_t>(channels), static_cast<std::int32_t>(sizeof(T))};
      };
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(plane_rotation)>, KeyRotation>) {
        return with(detail::rotate_move<T>(plane_rotation, channels, run, addresses));
      } else {
        return with(detail::copy_move<T>(layout, run, addresses));
      }
    };
    auto const key_plane = plane(keys, &LayerKv<T>::keys, tensors.planes[0], rotation);
    auto const value_plane = plane(values, &LayerKv<T>::values, tensors.planes[1], detail::KeepPositions{});
    using KeyPlane = std::remove_cvref_t<decltype(key_plane)>;
    using ValuePlane = std::remove_cvref_t<decltype(value_plane)>;
    detail::InPlaceParameters<Table, KeyPlane, ValuePlane> const parameters{
        plan, {key_plane, {value_plane, {}}}, min_evicted};
    static_assert(sizeof(parameters) + sizeof(tensors) <= detail::max_parameter_bytes);
    detail::launch(where, detail::in_place_kernel<Table, KeyPlane, ValuePlane>,
                   dim3(static_cast<unsigned>(segments), 2), detail::block_threads, 0, stream, parameters, tensors);
  });
}

HEADAWARE_NAMESPACE_END
