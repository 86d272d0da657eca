#pragma once

// Checks of a compaction into another cache that need no tensor and no table: both back ends run them.

#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Elements of one tensor of a layer's destination, to its last row's end.
template <class Form>
std::int64_t destination_elements(Form const& form, LayerCapacity const& capacity, std::int64_t channels) {
  std::int64_t const rows = capacity.rows;
  if constexpr (std::is_same_v<Form, PagedForm>) {
    // A joined pool: the last page ends before its stride does.
    if (form.page_stride != 0 && rows > 0) {
      std::int64_t const page_size = form.page_size_of(capacity).value();
      return (rows / page_size - 1) * form.page_stride + page_size * channels;
    }
  }
  return rows * channels;
}

/// Checks one layer's source by itself, and notes the memory that is read. @return whether anything is
template <class T, class Source, class Rotation>
bool check_layer_source(CacheBounds const& bounds, std::size_t layer, LayerKv<T const> const& from,
                        Source const& source, Rotation const& rotation, RowChannels const& channels,
                        std::int32_t num_kv_heads, bool has_rows, Memory& memory) {
  constexpr auto where = "compress";
  bool const with_values = channels.value_dim > 0;
  auto const keys = keys_of(layer_source(source, layer));
  auto const values = values_of(layer_source(source, layer));
  check_source_layout(keys, bounds, num_kv_heads, channels.head_dim, {"compress, keys", OfLayer<Source>{layer}});
  if (with_values) {
    check_source_layout(values, bounds, num_kv_heads, channels.value_dim, {"compress, values", OfLayer<Source>{layer}});
  }
  check_rotation(rotation, bounds, channels.head_dim, !with_values, layer);
  bool const some = bounds.max_rows > 0 && has_rows;
  check_pointer(from.keys, some, "source keys", where, layer);
  add_source(memory, keys, from.keys);
  if (!with_values) return some;
  check_pointer(from.values, some, "source values", where, layer);
  add_source(memory, values, from.values);
  return some;
}

/// Checks that a destination is one of the compaction's layers and heads.
template <class Form, class Source>
void check_destination_shape(CacheBounds const& bounds, std::size_t source_layers, Source const& source,
                             std::size_t destination_layers, std::span<LayerCapacity const> capacities,
                             Form const& form) {
  constexpr auto where = "compress";
  auto const num_layers = static_cast<std::size_t>(bounds.num_layers);
  require(source_layers == num_layers, "source layers", num_layers, source_layers, where);
  require(destination_layers == num_layers, "destination layers", num_layers, destination_layers, where);
  require(capacities.size() == num_layers, "destination capacities", num_layers, capacities.size(), where);
  std::int32_t most = 0;
  std::int64_t heads = 0;
  for (LayerCapacity const& capacity : capacities) {
    most = std::max(most, capacity.num_kv_heads);
    heads += capacity.num_kv_heads;
  }
  require(most == bounds.num_kv_heads, "destination KV heads", bounds.num_kv_heads, most, where);
  require(heads == bounds.num_heads, "destination KV heads of all layers", bounds.num_heads, heads, where);
  check_layers_of_source(source, num_layers, where);
  if constexpr (requires { form.num_sequences; }) {
    require(form.num_sequences == bounds.num_sequences, "destination sequences", bounds.num_sequences,
            form.num_sequences, where);
  }
}

/// Checks one transfer by itself, and notes the memory that it touches.
template <class T, class Source, class Form, class Rotation>
void check_transfer(CacheBounds const& bounds, Transfer<T, Source, Form, Rotation> const& transfer, Memory& memory) {
  constexpr auto where = "compress";
  static_assert(!keeps_positions<Form> || std::is_same_v<Rotation, KeepPositions>,
                "headaware: keys of a rolling cache keep their positions");
  Destination<T, Form> const& kept = transfer.kept;
  check_destination_shape(bounds, transfer.layers.size(), transfer.source, kept.layers.size(), kept.capacities,
                          kept.form);
  constexpr bool paged = std::is_same_v<Form, PagedForm>;
  auto& destinations = paged ? memory.paged_destinations : memory.destinations;
  for (std::size_t layer = 0; layer < transfer.layers.size(); ++layer) {
    std::int64_t const rows = kept.capacities[layer].rows;
    std::int32_t const layer_heads = kept.capacities[layer].num_kv_heads;
    if (layer_heads == 0) continue;
    RowChannels const channels = kept.channels.of(layer);
    bool const some = check_layer_source(bounds, layer, transfer.layers[layer], transfer.source, transfer.rotation,
                                         channels, layer_heads, rows > 0 || paged, memory);
    auto const& to = kept.layers[layer];
    check_pointer(to.keys, some, "destination keys", where, layer);
    destinations.push_back(
        interval(to.keys, destination_elements(kept.form, kept.capacities[layer], channels.head_dim)));
    if (channels.value_dim == 0) continue;
    check_pointer(to.values, some, "destination values", where, layer);
    destinations.push_back(
        interval(to.values, destination_elements(kept.form, kept.capacities[layer], channels.value_dim)));
  }
}

/// Checks that nothing that is written is read, or written twice.
/// @param tables_known  host tables tell pages that are read from those that are written, which is checked elsewhere
template <class = void>
void check_memory(Memory& memory, bool tables_known) {
  constexpr auto where = "compress";
  bool const apart =
      !sort_and_overlap(memory.destinations) && !sort_and_overlap(memory.destinations, memory.paged_destinations);
  require(apart, "buffers", "destinations apart from each other", "overlapping destinations", where);
  bool const unread = !sort_and_overlap(memory.sources, memory.destinations) &&
                      !sort_and_overlap(memory.sources, memory.paged_destinations) &&
                      !sort_and_overlap(memory.paged_sources, memory.destinations) &&
                      (tables_known || !sort_and_overlap(memory.paged_sources, memory.paged_destinations));
  require(unread, "buffers", "a destination apart from the source (or compress_in_place)", "overlapping buffers",
          where);
}

template <class... Transfers>
void check_transfers(CacheBounds const& bounds, bool tables_known, Transfers const&... transfers) {
  Memory memory;
  (check_transfer(bounds, transfers, memory), ...);
  check_memory(memory, tables_known);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
