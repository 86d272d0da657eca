#pragma once

// Checks of single tensors that compaction, in place or not, and appending share.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/intervals.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The sizes that tensors must have, on whichever back end.
struct CacheBounds {
  std::int32_t num_layers = 0;
  std::int32_t num_sequences = 0;
  std::int32_t num_kv_heads = 0;  ///< of every layer, or of the layer that has most
  std::int64_t num_heads = 0;     ///< KV heads of all layers
  std::int64_t max_length = 0;
  std::int64_t max_rows = 0;
};

template <class = void>
CacheBounds bounds_of(CacheSizes const& sizes) {
  return {sizes.num_layers(),    sizes.num_sequences(), sizes.num_kv_heads(),
          sizes.heads().total(), sizes.max_length(),    sizes.kept_total()};
}
template <class Table>
CacheBounds bounds_of(DeviceCompaction<Table> const& d) {
  LayerHeads const heads = layer_heads(d.table);
  return {heads.num_layers, d.num_sequences, heads.num_kv_heads, heads.total(), d.max_length, d.max_rows};
}

/// @param num_kv_heads  of the layer
/// @param channels      0: any
/// @param whose         tensor it is, in messages
template <class Layout>
void check_source_layout(Layout const& layout, CacheBounds const& bounds, std::int32_t num_kv_heads,
                         std::int64_t channels, Text const& where, char const* whose = "source") {
  static_assert(check_layout<Layout>());
  if constexpr (requires { layout.num_sequences(); }) {
    require(layout.num_sequences() == bounds.num_sequences, {whose, " sequences"}, bounds.num_sequences,
            layout.num_sequences(), where);
  }
  if constexpr (requires { layout.num_kv_heads(); }) {
    require(layout.num_kv_heads() == num_kv_heads, {whose, " KV heads"}, num_kv_heads, layout.num_kv_heads(), where);
  }
  if constexpr (requires { layout.num_channels(); }) {
    require(channels == 0 || layout.num_channels() == channels, {whose, " channels"}, channels, layout.num_channels(),
            where);
  }
  if constexpr (requires { layout.token_capacity(); }) {
    require(layout.token_capacity() >= bounds.max_length, {whose, " tokens"},
            {"at least the longest length, ", bounds.max_length}, layout.token_capacity(), where);
  }
}

/// Checks that rows of one tensor do not share memory: each stride steps over all that shorter strides reach.
template <class Layout>
void check_apart_from_itself(Layout const& layout, Text const& where) {
  if constexpr (requires { layout.directions(); }) {
    auto directions = layout.directions();
    std::sort(directions.begin(), directions.end(), [](auto const& x, auto const& y) { return x.stride < y.stride; });
    std::int64_t reach = 0;
    for (LayoutDirection const& d : directions) {
      if (d.count <= 1) continue;
      require(d.stride > reach, "stride of rows", {"above ", reach, ", which shorter strides reach"},
              {d.stride, " (of ", d.count, " steps)"}, where);
      reach += (d.count - 1) * d.stride;
    }
  }
}

/// Throws unless a layer's tensor is aligned, and there if `needed`. Every decoding step checks those of all layers: no
/// text is even begun where all is well.
template <class T>
void check_pointer(T const* data, bool needed, char const* what, char const* where, std::size_t layer) {
  auto const beyond = reinterpret_cast<std::uintptr_t>(data) % alignof(T);
  if (beyond == 0 && (data != nullptr || !needed)) return;
  auto const place = [&] { return Text{where, ", layer ", layer}.str(); };
  if (needed) require_pointer(data, what, place);
  require(beyond == 0, what, {"an address aligned to ", alignof(T), " bytes"}, {"one ", beyond, " bytes beyond"},
          place);
}

/// @param latent  whether the layer's rows are of a latent, whose rotary channels are the last ones
template <class Rotation>
void check_rotation(Rotation const& rotation, CacheBounds const& bounds, std::int64_t channels, bool latent,
                    std::size_t layer) {
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    constexpr auto where = "KeyRotation";
    require(!latent, "keys to rotate", "ones whose first channels are rotary", "a latent's",
            {where, ", layer ", layer});
    require(rotation.rotary_dim() > 0 && rotation.rotary_dim() <= channels, "rotary_dim", {"in [2, ", channels, "]"},
            rotation.rotary_dim(), where);
    require(rotation.positions() == 0 || rotation.positions() >= bounds.max_length, "rotary table positions",
            {"at least the longest length, ", bounds.max_length}, rotation.positions(), where);
    require(rotation.token_positions() == nullptr || rotation.position_stride() >= bounds.max_length,
            "positions' stride", {"at least the longest length, ", bounds.max_length}, rotation.position_stride(),
            where);
    check_position_stride(rotation, bounds.num_sequences);
  }
}

/// Whether a page table says where the tokens of a layout are.
template <class Layout>
inline constexpr bool in_pages = requires(Layout const layout) {
  layout.table().page(0, 0);
};

template <class Layout, class T>
void add_source(Memory& memory, Layout const& layout, T const* data) {
  add_extent(in_pages<Layout> ? memory.paged_sources : memory.sources, layout, data);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
