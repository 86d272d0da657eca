#pragma once

/// @file
/// One tensor pair to compress: where its keys and values are, how they lie, and where they go.

#include <headaware/cache/destination.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Whether keys may not turn on their way into a form of cache.
template <class Form>
inline constexpr bool keeps_positions = requires {
  requires Form::keeps_positions;
};

}  // namespace detail

/// @brief Keys and values of all layers, on their way into a compressed cache. Made by `transfer`.
///
/// A cache with scales is two transfers of one call: the elements, and the scales as tensors of
/// their own whose "channels" are a token's scales.
template <class T, class Source, class Form, class Rotation = detail::KeepPositions>
struct Transfer {
  std::vector<LayerKv<T const>> layers;  ///< [num_layers] base pointers
  Source source;                         ///< one layout, or `KvLayouts` where keys and values differ
  Destination<T, Form> kept;
  Rotation rotation{};

  /// The same, with keys turned to the positions of their slots. Not into a rolling cache, in which slots and positions
  /// part with the next token.
  ///
  /// For keys that have not been turned before in 16 bits: each turn rounds them, and where a call's output is the next
  /// one's source the errors add up unnoticed (`KeyRotation::evicting` has figures). Turn once, from the cache as the
  /// model wrote it, or keep keys of 32 bits.
  [[nodiscard]] Transfer<T, Source, Form, KeyRotation> rotate_keys(KeyRotation const& key_rotation) const {
    static_assert(!detail::keeps_positions<Form>, "headaware: keys of a rolling cache keep their positions, as new "
                                                  "tokens go on counting them: compress without rotate_keys");
    return {layers, source, kept, key_rotation};
  }
};

/// @brief Describes what to move.
/// @param layers  `std::vector<LayerKv<T const>>` (or of `T`), [num_layers], host or device pointers
/// @param source  how each layer's keys and values lie
/// @param kept    where they go: `ragged`, `padded`, `grouped` or `paged`
template <class U, class Source, class T, class Form>
[[nodiscard]] Transfer<T, Source, Form> transfer(std::vector<LayerKv<U>> const& layers, Source const& source,
                                                 Destination<T, Form> const& kept) {
  static_assert(std::is_same_v<std::remove_const_t<U>, T>,
                "headaware: source and destination hold different element types");
  Transfer<T, Source, Form> result{{}, source, kept, {}};
  for (LayerKv<U> const& layer : layers) result.layers.push_back({layer.keys, layer.values});
  return result;
}

namespace detail {

/// What a plan asks of tensors, whichever back end runs it.
struct CacheBounds {
  std::int32_t num_layers = 0;
  std::int32_t num_sequences = 0;
  std::int32_t num_kv_heads = 0;
  std::int64_t max_length = 0;
  std::int64_t max_rows = 0;
};

template <class Table>
CacheBounds bounds_of(Compaction<Table> const& plan) {
  return {plan.num_layers(), plan.num_sequences(), plan.num_kv_heads(), plan.max_length(), plan.kept_total()};
}
template <class Table>
CacheBounds bounds_of(DeviceCompaction<Table> const& plan) {
  return {plan.table.num_layers(), plan.num_sequences, plan.table.num_kv_heads(), plan.max_length, plan.max_rows};
}

/// Where an error about a segment is.
inline std::string place_of(char const* where, Segment const& segment) {
  return std::string(where) + ", layer " + std::to_string(segment.layer) + ", sequence " +
         std::to_string(segment.sequence) + ", KV head " + std::to_string(segment.kv_head);
}

/// A stretch of memory, for overlap checks.
struct Interval {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
};

template <class T>
Interval interval(T const* data, std::int64_t elements) {
  auto const begin = reinterpret_cast<std::uintptr_t>(data);
  return {begin, begin + static_cast<std::uintptr_t>(elements) * sizeof(T)};
}

/// Sorts intervals by where they begin. @return those that are not empty
inline std::span<Interval> sort_intervals(std::span<Interval> intervals) {
  auto const end =
      std::remove_if(intervals.begin(), intervals.end(), [](Interval const& i) { return i.begin >= i.end; });
  std::sort(intervals.begin(), end, [](auto const& x, auto const& y) { return x.begin < y.begin; });
  return {intervals.begin(), end};
}

/// Whether any interval of `a` meets any of `b`; sorts both. O(n log n).
inline bool sort_and_overlap(std::span<Interval> a, std::span<Interval> b) {
  a = sort_intervals(a);
  b = sort_intervals(b);
  std::size_t j = 0;
  std::uintptr_t reach = 0;  // the furthest end among the intervals of b that begin before a[i] ends
  for (Interval const& each : a) {
    for (; j < b.size() && b[j].begin < each.end; ++j) reach = std::max(reach, b[j].end);
    if (reach > each.begin) return true;
  }
  return false;
}

/// Whether two of the intervals meet; sorts them. O(n log n).
inline bool sort_and_overlap(std::span<Interval> intervals) {
  intervals = sort_intervals(intervals);
  return std::adjacent_find(intervals.begin(), intervals.end(),
                            [](auto const& x, auto const& y) { return y.begin < x.end; }) != intervals.end();
}

inline bool overlap(std::vector<Interval> a, std::vector<Interval> b) { return sort_and_overlap(a, b); }
inline bool overlap_among(std::vector<Interval> intervals) { return sort_and_overlap(intervals); }

template <class Layout>
void check_source_layout(Layout const& layout, CacheBounds const& bounds, std::int64_t channels, char const* where) {
  static_assert(check_layout<Layout>());
  if constexpr (requires { layout.num_sequences(); }) {
    require(layout.num_sequences() == bounds.num_sequences, "source sequences", bounds.num_sequences,
            layout.num_sequences(), where);
  }
  if constexpr (requires { layout.num_kv_heads(); }) {
    require(layout.num_kv_heads() == bounds.num_kv_heads, "source KV heads", bounds.num_kv_heads, layout.num_kv_heads(),
            where);
  }
  if constexpr (requires { layout.num_channels(); }) {
    require(channels == 0 || layout.num_channels() == channels, "source channels", channels, layout.num_channels(),
            where);
  }
  if constexpr (requires { layout.token_capacity(); }) {
    require(layout.token_capacity() >= bounds.max_length, "source tokens",
            {"at least the longest length, ", bounds.max_length}, layout.token_capacity(), where);
  }
}

template <class T>
void check_pointer(T const* data, bool needed, char const* what, Text const& where) {
  require(!needed || data != nullptr, what, "a pointer", "nullptr", where);
  auto const address = reinterpret_cast<std::uintptr_t>(data);
  if (address % alignof(T) != 0) {
    require(false, what, {"an address aligned to ", alignof(T), " bytes"},
            {"one ", address % alignof(T), " bytes beyond"}, where);
  }
}

template <class Layout>
inline constexpr bool has_required_span_size = requires(Layout const layout) {
  layout.required_span_size();
};

/// Intervals of one tensor in all layers; nothing where the layout does not say how far it reaches.
template <class Layout, class T>
void add_extent(std::vector<Interval>& intervals, Layout const& layout, T const* data) {
  if constexpr (has_required_span_size<Layout>) intervals.push_back(interval(data, layout.required_span_size()));
}

template <class Rotation>
void check_rotation(Rotation const& rotation, CacheBounds const& bounds, std::int64_t channels) {
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    require(rotation.rotary_dim() > 0 && rotation.rotary_dim() <= channels, "rotary_dim", {"in [2, ", channels, "]"},
            rotation.rotary_dim(), "KeyRotation");
    require(rotation.positions() == 0 || rotation.positions() >= bounds.max_length, "rotary table positions",
            {"at least the longest length, ", bounds.max_length}, rotation.positions(), "KeyRotation");
    require(rotation.token_positions() == nullptr || rotation.position_stride() >= bounds.max_length,
            "positions' stride", {"at least the longest length, ", bounds.max_length}, rotation.position_stride(),
            "KeyRotation");
    check_position_stride(rotation, bounds.num_sequences);
  }
}

/// The memory that the transfers of a call read and write.
struct Memory {
  std::vector<Interval> sources;
  std::vector<Interval> paged_sources;       ///< whose pages a table tells apart
  std::vector<Interval> destinations;        ///< of forms whose layers must lie apart
  std::vector<Interval> paged_destinations;  ///< pages of one pool are told apart by the block table
};

/// Memory in which this thread notes what a call touches: kept, so that later calls allocate nothing.
inline Memory& thread_memory() {
  thread_local Memory memory;
  memory.sources.clear();
  memory.destinations.clear();
  return memory;
}

template <class Layout, class T>
void add_source(Memory& memory, Layout const& layout, T const* data) {
  constexpr bool in_pages = requires { layout.table().page(0, 0); };
  add_extent(in_pages ? memory.paged_sources : memory.sources, layout, data);
}

/// Checks all that can be checked of one transfer alone without reading any tensor, and notes what it touches.
template <class T, class Source, class Form, class Rotation>
void check_transfer(CacheBounds const& bounds, Transfer<T, Source, Form, Rotation> const& transfer, Memory& memory) {
  constexpr auto where = "compress";
  static_assert(!keeps_positions<Form> || std::is_same_v<Rotation, KeepPositions>,
                "headaware: keys of a rolling cache keep their positions");
  auto const num_layers = static_cast<std::size_t>(bounds.num_layers);
  require(transfer.layers.size() == num_layers, "source layers", num_layers, transfer.layers.size(), where);
  require(transfer.kept.layers.size() == num_layers, "destination layers", num_layers, transfer.kept.layers.size(),
          where);
  require(transfer.kept.capacities.size() == num_layers, "destination capacities", num_layers,
          transfer.kept.capacities.size(), where);
  if constexpr (requires { transfer.kept.form.num_kv_heads; }) {
    require(transfer.kept.form.num_kv_heads == bounds.num_kv_heads, "destination KV heads", bounds.num_kv_heads,
            transfer.kept.form.num_kv_heads, where);
  }
  if constexpr (requires { transfer.kept.form.num_sequences; }) {
    require(transfer.kept.form.num_sequences == bounds.num_sequences, "destination sequences", bounds.num_sequences,
            transfer.kept.form.num_sequences, where);
  }
  auto const keys = keys_of(transfer.source);
  auto const values = values_of(transfer.source);
  check_source_layout(keys, bounds, transfer.kept.head_dim, "compress, keys");
  check_source_layout(values, bounds, transfer.kept.value_dim, "compress, values");
  check_rotation(transfer.rotation, bounds, transfer.kept.head_dim);

  auto& destinations = std::is_same_v<Form, PagedForm> ? memory.paged_destinations : memory.destinations;
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    std::string const place = "compress, layer " + std::to_string(layer);
    std::int64_t rows = transfer.kept.capacities[layer].rows;
    bool const some = bounds.max_rows > 0 && (rows > 0 || std::is_same_v<Form, PagedForm>);
    check_pointer(transfer.layers[layer].keys, some, "source keys", place);
    check_pointer(transfer.layers[layer].values, some, "source values", place);
    check_pointer(transfer.kept.layers[layer].keys, some, "destination keys", place);
    check_pointer(transfer.kept.layers[layer].values, some, "destination values", place);
    add_source(memory, keys, transfer.layers[layer].keys);
    add_source(memory, values, transfer.layers[layer].values);
    std::int64_t key_elements = rows * transfer.kept.head_dim;
    std::int64_t value_elements = rows * transfer.kept.value_dim;
    if constexpr (std::is_same_v<Form, PagedForm>) {
      if (transfer.kept.form.page_stride != 0 && rows > 0) {
        // A joined pool: the last page ends before its stride does.
        std::int64_t const pages = rows / transfer.kept.form.page_size - 1;
        key_elements = pages * transfer.kept.form.page_stride + transfer.kept.form.page_size * transfer.kept.head_dim;
        value_elements =
            pages * transfer.kept.form.page_stride + transfer.kept.form.page_size * transfer.kept.value_dim;
      }
    }
    destinations.push_back(interval(transfer.kept.layers[layer].keys, key_elements));
    destinations.push_back(interval(transfer.kept.layers[layer].values, value_elements));
  }
}

/// Nothing that is written may be read, or written twice.
/// @param tables_known  host tables tell pages that are read from those that are written, which is checked elsewhere
inline void check_memory(Memory const& memory, bool tables_known) {
  constexpr auto where = "compress";
  if (overlap_among(memory.destinations) || overlap(memory.destinations, memory.paged_destinations)) {
    require(false, "buffers", "destinations apart from each other", "overlapping destinations", where);
  }
  if (overlap(memory.sources, memory.destinations) || overlap(memory.sources, memory.paged_destinations) ||
      overlap(memory.paged_sources, memory.destinations) ||
      (!tables_known && overlap(memory.paged_sources, memory.paged_destinations))) {
    require(false, "buffers", "a destination apart from the source (or compress_in_place)", "overlapping buffers",
            where);
  }
}

/// One direction in which two tensors of the same strides lie.
struct SharedDirection {
  std::int64_t stride = 0;
  std::int64_t forward = 0;   ///< steps that the first tensor has
  std::int64_t backward = 0;  ///< and the second
  bool by_table = false;
};

/// @brief Whether two tensors that may be threaded through each other have an element in common: one whose steps in all
/// directions, first tensor's less second's, add up to `distance`. Whole pages are told apart by tables.
/// @param directions  strides descending, none 0
inline bool have_common_element(std::span<SharedDirection const> directions, std::int64_t distance, bool pages_apart,
                                bool apart_in_page) {
  if (directions.empty()) return distance == 0 && (!pages_apart || apart_in_page);
  SharedDirection const& d = directions.front();
  std::int64_t forward = 0;  // how far the other directions reach
  std::int64_t backward = 0;
  std::int64_t common = d.stride;
  for (SharedDirection const& other : directions.subspan(1)) {
    forward += other.forward * other.stride;
    backward += other.backward * other.stride;
    common = std::gcd(common, other.stride);
  }
  if (distance % common != 0) return false;
  std::int64_t const low = std::max(-d.backward, (distance - forward) / d.stride - 1);
  std::int64_t const high = std::min(d.forward, (distance + backward) / d.stride + 1);
  for (std::int64_t step = low; step <= high; ++step) {
    std::int64_t const rest = distance - step * d.stride;
    if (rest > forward || rest < -backward) continue;
    bool const stepped = step != 0;
    if (have_common_element(directions.subspan(1), rest, pages_apart || (stepped && d.by_table),
                            apart_in_page || (stepped && !d.by_table))) {
      return true;
    }
  }
  return false;
}

/// The same of two tensors by their layouts. @param distance  elements from the first one's base pointer to the
/// second's
template <class A, class B>
bool tensors_meet(A const& a, B const& b, std::int64_t distance) {
  auto const plane = [](auto const& layout) {
    if constexpr (requires { layout.plane(); }) return layout.plane();
    return std::int64_t{0};
  };
  distance += plane(b) - plane(a);
  bool pages_apart = false;  // two tables may name pages of one pool
  if constexpr (requires {
                  a.table().pages;
                  b.table().pages;
                }) {
    pages_apart = a.table().pages != b.table().pages;
  }
  if (distance == 0) return !pages_apart;
  if constexpr (std::is_same_v<A, B> && requires { a.directions(); }) {
    std::vector<SharedDirection> directions;
    auto const of_a = a.directions();
    auto const of_b = b.directions();
    for (std::size_t i = 0; i < of_a.size(); ++i) {
      if (of_a[i].count <= 1 && of_b[i].count <= 1) continue;
      if (of_a[i].stride != of_b[i].stride) return false;  // who lays them out so knows why
      if (of_a[i].stride == 0) continue;
      directions.push_back({of_a[i].stride, of_a[i].count - 1, of_b[i].count - 1, of_a[i].by_table});
    }
    std::sort(directions.begin(), directions.end(), [](auto const& x, auto const& y) { return x.stride > y.stride; });
    return have_common_element(directions, distance, pages_apart, false);
  } else {
    return false;
  }
}

/// In place, no element may be compacted twice.
template <class T, class Keys, class Values>
void check_tensors_apart(std::vector<LayerKv<T>> const& layers, Keys const& keys, Values const& values) {
  if constexpr (has_required_span_size<Keys> && has_required_span_size<Values>) {
    struct Tensor {
      Interval memory;
      std::size_t layer;
      bool is_key;
    };
    std::vector<Tensor> tensors;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      tensors.push_back({interval(layers[l].keys, keys.required_span_size()), l, true});
      tensors.push_back({interval(layers[l].values, values.required_span_size()), l, false});
    }
    std::erase_if(tensors, [](Tensor const& t) { return t.memory.begin >= t.memory.end; });
    std::sort(tensors.begin(), tensors.end(),
              [](auto const& x, auto const& y) { return x.memory.begin < y.memory.begin; });
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      for (std::size_t j = i + 1; j < tensors.size() && tensors[j].memory.begin < tensors[i].memory.end; ++j) {
        Tensor const& a = tensors[i];
        Tensor const& b = tensors[j];
        auto const distance = static_cast<std::int64_t>((b.memory.begin - a.memory.begin) / sizeof(T));
        bool const meet =
            a.is_key ? (b.is_key ? tensors_meet(keys, keys, distance) : tensors_meet(keys, values, distance))
                     : (b.is_key ? tensors_meet(values, keys, distance) : tensors_meet(values, values, distance));
        if (!meet) continue;
        auto const name = [](Tensor const& t) {
          return "layer " + std::to_string(t.layer) + (t.is_key ? "'s keys" : "'s values");
        };
        require(false, "tensors", "ones apart from each other", {name(a), " and ", name(b), " overlapping"},
                "compress_in_place");
      }
    }
  }
}

/// The same within one tensor, whose heads may not share memory: each direction steps over all that shorter steps
/// reach.
template <class Layout>
void check_apart_from_itself(Layout const& layout, char const* where) {
  if constexpr (requires { layout.directions(); }) {
    auto directions = layout.directions();
    std::sort(directions.begin(), directions.end(), [](auto const& x, auto const& y) { return x.stride < y.stride; });
    std::int64_t reach = 0;
    for (Direction const& d : directions) {
      if (d.count <= 1) continue;
      if (d.stride <= reach) {
        require(false, "stride in place", {"above ", reach, ", which shorter strides reach"},
                {d.stride, " (of ", d.count, " steps)"}, where);
      }
      reach += (d.count - 1) * d.stride;
    }
  }
}

/// Checks all that can be checked of a compaction in place.
template <class T, class Source, class Rotation>
void check_in_place(CacheBounds const& bounds, std::vector<LayerKv<T>> const& layers, Source const& source,
                    Rotation const& rotation) {
  constexpr auto where = "compress_in_place";
  auto const keys = keys_of(source);
  auto const values = values_of(source);
  static_assert(
      requires {
        keys.num_channels();
        values.num_channels();
      },
      "headaware: compress_in_place needs layouts with 'int64_t num_channels() const'");
  auto const num_layers = static_cast<std::size_t>(bounds.num_layers);
  require(layers.size() == num_layers, "layers", num_layers, layers.size(), where);
  check_source_layout(keys, bounds, 0, "compress_in_place, keys");
  check_source_layout(values, bounds, 0, "compress_in_place, values");
  check_rotation(rotation, bounds, keys.num_channels());
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    std::string const place = std::string(where) + ", layer " + std::to_string(layer);
    check_pointer(layers[layer].keys, bounds.max_rows > 0, "keys", place);
    check_pointer(layers[layer].values, bounds.max_rows > 0, "values", place);
    if constexpr (std::is_same_v<decltype(keys), Source const>) {
      // With one layout for both, one pointer would be one tensor, compacted twice.
      bool const same = bounds.max_rows > 0 && layers[layer].keys == layers[layer].values;
      if (same) require(false, "keys and values", "two tensors", "one", place);
    }
  }
  if (bounds.max_rows > 0) {
    check_apart_from_itself(keys, "compress_in_place, keys");
    check_apart_from_itself(values, "compress_in_place, values");
    check_tensors_apart(layers, keys, values);
  }
}

}  // namespace detail

/// @brief Runs the argument checks of `compress` without moving data. The CUDA back end runs the same and returns
/// `cudaErrorInvalidValue`; `last_error_message` then has the text.
/// @param plan       a cache plan or a device plan
/// @param transfers  made by `transfer`
/// @throws ArgumentError on missing layers, shapes that disagree with the plan, lengths beyond the
///         source, null or misaligned pointers, and destinations that overlap a source or each other, of whichever
///         of the transfers. Pages of a source and of a destination may lie in one pool where host tables tell them
///         apart (`compress` on the CPU checks that); with a device plan such pools are refused, if `paged` was told
///         their `num_pages`
template <class Plan, class... Transfers>
void validate(Plan const& plan, Transfers const&... transfers) {
  detail::Memory memory;
  (detail::check_transfer(detail::bounds_of(plan), transfers, memory), ...);
  constexpr bool on_host = requires { plan.offsets(); };
  detail::check_memory(memory, on_host);
}

HEADAWARE_NAMESPACE_END
