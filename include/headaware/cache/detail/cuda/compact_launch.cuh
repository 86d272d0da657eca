#pragma once

// Checks, kernel parameters and launches of a compaction on the device.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/check_in_place.hpp>
#include <headaware/cache/detail/cuda/gather_kernel.cuh>
#include <headaware/cache/detail/cuda/in_place_kernel.cuh>
#include <headaware/cache/detail/cuda/layer_planes.cuh>
#include <headaware/cache/detail/cuda/sizes_kernel.cuh>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/cache/validate.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Elements in which a form's rows are aligned.
template <class Form>
std::int64_t form_run(Form const& form, std::int64_t channels) {
  if constexpr (std::is_same_v<Form, PagedForm>) return std::gcd(channels, form.page_stride);
  return channels;
}

/// Makes the functor by which kernels move the rows of one tensor.
template <class T, class Layout, class Rotation>
auto make_move(Layout const& layout, Rotation const& rotation, std::int64_t channels, std::int64_t run,
               std::uintptr_t addresses) {
  static_assert(sizeof(T) <= 8 && (sizeof(T) & (sizeof(T) - 1)) == 0, "headaware: elements have 1, 2, 4 or 8 bytes");
  constexpr auto element_bytes = static_cast<std::int64_t>(sizeof(T));
  std::int64_t const width = vector_elements<T>(std::gcd(run, channels), addresses);
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    constexpr std::int64_t widest = 16 / element_bytes;
    bool const wide = width == widest && rotation.rotary_dim() % (2 * widest) == 0 &&
                      (channels - rotation.rotary_dim()) % widest == 0;
    return RotateRows<typename ElementOf<T>::type>{rotation, wide};
  } else {
    std::int64_t const vector_bytes = width * element_bytes;
    return CopyRows{static_cast<std::int32_t>(vector_bytes), tokens_adjacent(layout),
                    vector_bytes == 16 && rows_contiguous(layout, channels)};
  }
}

/// The keys or the values of one transfer; notes their pointers, layer by layer.
/// @param of  (source of a layer, its channels) to `LayoutAndChannels` of the tensor
template <class T, class Source, class Form, class TransferRotation, class Of, class Rotation>
auto make_plane(Transfer<T, Source, Form, TransferRotation> const& transfer, Of const& of,
                T const* LayerKv<T const>::*source, T* LayerKv<T>::*target, Rotation const& rotation,
                PlanePointers& pointers) {
  std::size_t const layers = transfer.layers.size();
  auto const from = [&](std::size_t layer) { return transfer.layers[layer].*source; };
  auto const to = [&](std::size_t layer) { return transfer.kept.layers[layer].*target; };
  for (std::size_t layer = 0; layer < layers; ++layer) {
    pointers.source[layer] = from(layer);
    pointers.kept[layer] = to(layer);
  }
  auto const rows = [&](std::size_t layer) {
    auto const all = of(layer_source(transfer.source, layer), transfer.kept.channels.of(layer));
    bool const none = transfer.kept.capacities[layer].num_kv_heads == 0;
    return LayoutAndChannels<decltype(all.layout)>{all.layout, none ? 0 : all.channels};
  };
  return planes_of<is_layered<Source>>(
      layers, "compress", rows, from, to, [&](auto const& each, std::uintptr_t addresses) {
        std::int64_t const run = std::gcd(channel_run(each.layout), form_run(transfer.kept.form, each.channels));
        auto const move = make_move<T>(each.layout, rotation, each.channels, run, addresses);
        return DevicePlane<decltype(each.layout), Form, std::remove_const_t<decltype(move)>>{
            each.layout, transfer.kept.form, move, static_cast<std::int32_t>(each.channels),
            static_cast<std::int32_t>(sizeof(T))};
      });
}

template <class Keys, class Values, class... Rest>
PlaneList<Keys, Values, Rest...> prepend(Keys const& keys, Values const& values, PlaneList<Rest...> const& rest) {
  return {keys, {values, rest}};
}

/// The planes of all transfers of a launch: keys and values of the first, of the next, ...
inline PlaneList<> make_planes(PlanePointers*) { return {}; }
template <class T, class Source, class Form, class Rotation, class... Rest>
auto make_planes(PlanePointers* pointers, Transfer<T, Source, Form, Rotation> const& transfer, Rest const&... rest) {
  auto const keys =
      make_plane(transfer, KeysOf{}, &LayerKv<T const>::keys, &LayerKv<T>::keys, transfer.rotation, pointers[0]);
  auto const values =
      make_plane(transfer, ValuesOf{}, &LayerKv<T const>::values, &LayerKv<T>::values, KeepPositions{}, pointers[1]);
  return prepend(keys, values, make_planes(pointers + 2, rest...));
}

/// Rows that one block moves: about 32 KiB, eight 16-byte accesses per thread, against which finding them costs little;
/// where heads keep as many, a head is a whole number of tiles. @param row_bytes  of the narrowest rows
inline std::int64_t rows_per_tile(std::int64_t max_rows, std::int64_t segments, std::int64_t row_bytes) {
  constexpr std::int64_t tile_bytes = 32768;
  std::int64_t const most = std::clamp<std::int64_t>(tile_bytes / row_bytes, 8, max_tile_rows);
  std::int64_t const mean = (max_rows + segments - 1) / segments;
  std::int64_t const tiles = (mean + most - 1) / most;
  return std::clamp<std::int64_t>((mean + tiles - 1) / tiles, 8, most);
}

/// @param offsets  [segments + 1] in temporary storage, for where the host has none on the device
/// @param planes   of the launch's tensors; `tables` has their pointers
template <class Table, class Form, std::size_t NumPlanes, class... Planes>
void launch_compress(DeviceCompaction<Table> const& compaction, std::int64_t* offsets, Form const& form,
                     std::int64_t row_bytes, LayerTables<NumPlanes> const& tables, PlaneList<Planes...> const& planes,
                     cudaStream_t stream) {
  bool const outputs =
      compaction.d_cu_seqlens != nullptr || compaction.d_kept != nullptr || compaction.d_status != nullptr;
  bool const planned = compaction.d_offsets != nullptr && !outputs;
  if (!planned) {
    SizesParameters<Table, Form> const counting{compaction, offsets, form};
    LayerCapacities capacities;
    std::copy(std::begin(tables.capacities), std::end(tables.capacities), capacities.layers);
    launch("compress", sizes_kernel<Table, Form>, 1, sizes_threads, 0, stream, counting, capacities);
  }
  if (compaction.max_rows == 0) return;

  std::int64_t const rows = rows_per_tile(compaction.max_rows, compaction.num_segments(), row_bytes);
  GatherParameters<Table, Planes...> const gathering{{compaction, planned ? compaction.d_offsets : offsets, rows},
                                                     planes};
  static_assert(sizeof(gathering) + sizeof(tables) <= max_parameter_bytes,
                "headaware: too many tensors for one launch");
  std::int64_t const tiles = (compaction.max_rows + rows - 1) / rows;
  dim3 const grid(static_cast<unsigned>(std::min<std::int64_t>(tiles, max_blocks)), NumPlanes);
  launch("compress", gather_kernel<Table, Planes...>, grid, block_threads, 0, stream, gathering, tables);
}

/// Checks the number of layers and the pointer to lengths, for both calls.
template <class Table>
void check_device_compaction(DeviceCompaction<Table> const& compaction, char const* where) {
  require(compaction.table.num_layers() <= max_layers, "layers", "at most 256", compaction.table.num_layers(), where);
  require(compaction.num_segments() == 0 || compaction.d_lengths != nullptr, "d_lengths", "a pointer", "nullptr",
          where);
}

template <class Table, class First, class... Rest>
void compress_transfers(void* d_temp, std::size_t& temp_bytes, DeviceCompaction<Table> const& compaction,
                        cudaStream_t stream, First const& first, Rest const&... rest) {
  constexpr auto where = "compress";
  std::int64_t const entries = compaction.num_segments() + 1;
  std::int64_t* offsets = nullptr;
  if (!place_buffers(d_temp, temp_bytes, where, TempBuffer{offsets, entries})) return;
  bool const same_capacities = ((first.kept.capacities == rest.kept.capacities) && ...);
  require(same_capacities, "capacities of scales", "those of keys and values", "others", where);
  check_device_compaction(compaction, where);
  validate(compaction, first, rest...);
  if (compaction.num_segments() == 0) return;

  // Of the layer with the narrowest rows: tiles of the others hold more bytes.
  auto const row_bytes = [](auto const& transfer) {
    auto const& channels = transfer.kept.channels;
    auto const widest = [](RowChannels const& rows) { return std::max(rows.head_dim, rows.value_dim); };
    std::int64_t least = widest(channels.common());
    for (RowChannels const& rows : channels.layers()) {
      if (rows.head_dim > 0) least = std::min(least, widest(rows));
    }
    return least * static_cast<std::int64_t>(sizeof(transfer.kept.layers[0].keys[0]));
  };
  std::int64_t const widest = std::max({row_bytes(first), row_bytes(rest)...});
  LayerTables<2 + 2 * sizeof...(Rest)> tables{};
  std::copy(first.kept.capacities.begin(), first.kept.capacities.end(), tables.capacities);
  auto const planes = make_planes(tables.planes, first, rest...);
  launch_compress(compaction, offsets, first.kept.form, widest, tables, planes, stream);
}

/// The keys or the values of a compaction in place; notes their pointers, layer by layer. @param layout  of a layer
template <bool Layered, class T, class LayoutOf, class Rotation>
auto make_in_place_plane(std::span<LayerKv<T> const> layers, LayoutOf const& layout, T* LayerKv<T>::*tensor,
                         Rotation const& rotation, void** pointers) {
  auto const data = [&](std::size_t layer) { return layers[layer].*tensor; };
  for (std::size_t layer = 0; layer < layers.size(); ++layer) pointers[layer] = data(layer);
  auto const rows = [&](std::size_t layer) {
    auto const of = layout(layer);
    return LayoutAndChannels<std::remove_const_t<decltype(of)>>{of, data(layer) == nullptr ? 0 : of.num_channels()};
  };
  return planes_of<Layered>(
      layers.size(), "compress_in_place", rows, data, data, [&](auto const& each, std::uintptr_t addresses) {
        auto const move = make_move<T>(each.layout, rotation, each.channels, channel_run(each.layout), addresses);
        return InPlacePlane<decltype(each.layout), std::remove_const_t<decltype(move)>>{
            each.layout, move, static_cast<std::int32_t>(each.channels), static_cast<std::int32_t>(sizeof(T))};
      });
}

/// Blocks that share a segment's keys, or its values, in place: enough for the longest one, without many that have
/// nothing to do.
template <class Table>
std::int64_t in_place_parts(DeviceCompaction<Table> const& compaction) {
  constexpr std::int64_t most_blocks = 4096;  // some waves of any device
  std::int64_t const most = std::max<std::int64_t>(1, most_blocks / (2 * compaction.num_segments()));
  return std::clamp<std::int64_t>(compaction.max_kept / (2 * min_part_rows), 1, most);
}

template <class Table, class T, class Source, class Rotation>
void compress_layers_in_place(DeviceCompaction<Table> const& compaction, std::span<LayerKv<T> const> layers,
                              Source const& source, Rotation const& rotation, cudaStream_t stream) {
  constexpr auto where = "compress_in_place";
  std::int64_t const segments = compaction.num_segments();
  // How many heads each layer has, only the device knows; it is what the layouts say.
  LayerHeads const all_heads = layer_heads(compaction.table);
  bool const alike = all_heads.first_heads == nullptr;
  std::int64_t heads = 0;
  auto const heads_of = [&](std::size_t layer) {
    std::int32_t count = alike || layers[layer].keys != nullptr ? all_heads.num_kv_heads : 0;
    auto const keys = keys_of(layer_source(source, layer));
    if constexpr (requires { keys.num_kv_heads(); }) {
      if (count != 0 && !alike) count = static_cast<std::int32_t>(keys.num_kv_heads());
    }
    heads += count;
    return count;
  };
  check_in_place(bounds_of(compaction), layers, source, rotation, heads_of);
  require(heads == all_heads.total(), "KV heads of all layouts", all_heads.total(), heads, where);
  if (compaction.min_evicted != 0) {
    check_evictions<T>(rotation, compaction.min_evicted, compaction.min_evicted_segment);
  }
  check_device_compaction(compaction, where);
  require(segments <= max_blocks, "heads", max_blocks_text, segments, where);
  if (segments == 0) return;

  std::int64_t min_evicted = 0;
  if constexpr (rounds_in_place<T, Rotation>) min_evicted = rotation.min_evicted();
  InPlaceTensors<2> tensors{};
  auto const keys_at = [&](std::size_t layer) { return keys_of(layer_source(source, layer)); };
  auto const values_at = [&](std::size_t layer) { return values_of(layer_source(source, layer)); };
  auto const keys =
      make_in_place_plane<is_layered<Source>>(layers, keys_at, &LayerKv<T>::keys, rotation, tensors.planes[0]);
  auto const values = make_in_place_plane<is_layered<Source>>(layers, values_at, &LayerKv<T>::values, KeepPositions{},
                                                              tensors.planes[1]);
  using Keys = std::remove_const_t<decltype(keys)>;
  using Values = std::remove_const_t<decltype(values)>;
  InPlaceParameters<Table, Keys, Values> const parameters{compaction, {keys, {values, {}}}, min_evicted};
  static_assert(sizeof(parameters) + sizeof(tensors) <= max_parameter_bytes);
  dim3 const grid(static_cast<unsigned>(segments), 2, static_cast<unsigned>(in_place_parts(compaction)));
  launch(where, in_place_kernel<Table, Keys, Values>, grid, block_threads, 0, stream, parameters, tensors);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
