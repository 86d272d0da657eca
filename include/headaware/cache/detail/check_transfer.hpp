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

/// Checks one transfer by itself, and notes the memory that it touches.
template <class T, class Source, class Form, class Rotation>
void check_transfer(CacheBounds const& bounds, Transfer<T, Source, Form, Rotation> const& transfer, Memory& memory) {
  constexpr auto where = "compress";
  static_assert(!keeps_positions<Form> || std::is_same_v<Rotation, KeepPositions>,
                "headaware: keys of a rolling cache keep their positions");
  Destination<T, Form> const& kept = transfer.kept;
  auto const num_layers = static_cast<std::size_t>(bounds.num_layers);
  require(transfer.layers.size() == num_layers, "source layers", num_layers, transfer.layers.size(), where);
  require(kept.layers.size() == num_layers, "destination layers", num_layers, kept.layers.size(), where);
  require(kept.capacities.size() == num_layers, "destination capacities", num_layers, kept.capacities.size(), where);
  std::int32_t most = 0;
  std::int64_t heads = 0;
  for (LayerCapacity const& capacity : kept.capacities) {
    most = std::max(most, capacity.num_kv_heads);
    heads += capacity.num_kv_heads;
  }
  require(most == bounds.num_kv_heads, "destination KV heads", bounds.num_kv_heads, most, where);
  require(heads == bounds.num_heads, "destination KV heads of all layers", bounds.num_heads, heads, where);
  check_layers_of_source(transfer.source, num_layers, where);
  if constexpr (requires { kept.form.num_sequences; }) {
    require(kept.form.num_sequences == bounds.num_sequences, "destination sequences", bounds.num_sequences,
            kept.form.num_sequences, where);
  }

  constexpr bool paged = std::is_same_v<Form, PagedForm>;
  auto& destinations = paged ? memory.paged_destinations : memory.destinations;
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    std::int64_t const rows = kept.capacities[layer].rows;
    std::int32_t const layer_heads = kept.capacities[layer].num_kv_heads;
    if (layer_heads == 0) continue;
    RowChannels const channels = kept.channels.of(layer);
    bool const with_values = channels.value_dim > 0;
    auto const keys = keys_of(layer_source(transfer.source, layer));
    auto const values = values_of(layer_source(transfer.source, layer));
    check_source_layout(keys, bounds, layer_heads, channels.head_dim, {"compress, keys", OfLayer<Source>{layer}});
    if (with_values) {
      check_source_layout(values, bounds, layer_heads, channels.value_dim,
                          {"compress, values", OfLayer<Source>{layer}});
    }
    check_rotation(transfer.rotation, bounds, channels.head_dim, !with_values, layer);
    bool const some = bounds.max_rows > 0 && (rows > 0 || paged);
    auto const& from = transfer.layers[layer];
    auto const& to = kept.layers[layer];
    check_pointer(from.keys, some, "source keys", where, layer);
    check_pointer(to.keys, some, "destination keys", where, layer);
    add_source(memory, keys, from.keys);
    destinations.push_back(
        interval(to.keys, destination_elements(kept.form, kept.capacities[layer], channels.head_dim)));
    if (!with_values) continue;
    check_pointer(from.values, some, "source values", where, layer);
    check_pointer(to.values, some, "destination values", where, layer);
    add_source(memory, values, from.values);
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
