#pragma once

// Checks of a compaction in place: no element may be moved twice.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/intervals.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// One direction in which two tensors of the same strides lie.
struct SharedDirection {
  std::int64_t stride = 0;
  std::int64_t forward = 0;   ///< steps that the first tensor has
  std::int64_t backward = 0;  ///< and the second
  bool by_table = false;
};

/// @brief Tests whether two tensors that may be threaded through each other have an element in common: one whose steps
/// in all directions, first tensor's less second's, add up to `distance`. Whole pages are told apart by tables.
/// @param directions  [count] strides descending, none 0
template <class = void>
bool have_common_element(SharedDirection const* directions, std::size_t count, std::int64_t distance, bool pages_apart,
                         bool apart_in_page) {
  if (count == 0) return distance == 0 && (!pages_apart || apart_in_page);
  SharedDirection const& d = directions[0];
  std::int64_t forward = 0;  // how far the other directions reach
  std::int64_t backward = 0;
  std::int64_t common = d.stride;
  for (std::size_t i = 1; i < count; ++i) {
    SharedDirection const& other = directions[i];
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
    if (have_common_element(directions + 1, count - 1, rest, pages_apart || (stepped && d.by_table),
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
    return have_common_element(directions.data(), directions.size(), distance, pages_apart, false);
  } else {
    return false;
  }
}

/// In place, no element may be compacted twice.
template <class T, class Source>
void check_tensors_apart(std::span<LayerKv<T> const> layers, Source const& source) {
  using Keys = std::remove_cvref_t<decltype(keys_of(layer_source(source, 0)))>;
  using Values = std::remove_cvref_t<decltype(values_of(layer_source(source, 0)))>;
  if constexpr (has_required_span_size<Keys> && has_required_span_size<Values>) {
    struct Tensor {
      Interval memory;
      std::size_t layer;
      bool is_key;
    };
    std::vector<Tensor> tensors;
    auto const keys = [&](Tensor const& t) { return keys_of(layer_source(source, t.layer)); };
    auto const values = [&](Tensor const& t) { return values_of(layer_source(source, t.layer)); };
    for (std::size_t l = 0; l < layers.size(); ++l) {
      Tensor const of_keys{{}, l, true};
      if (layers[l].keys != nullptr) {
        tensors.push_back({interval(layers[l].keys, keys(of_keys).required_span_size()), l, true});
      }
      if (layers[l].values != nullptr) {
        tensors.push_back({interval(layers[l].values, values(of_keys).required_span_size()), l, false});
      }
    }
    std::erase_if(tensors, [](Tensor const& t) { return t.memory.begin >= t.memory.end; });
    std::sort(tensors.begin(), tensors.end(),
              [](auto const& x, auto const& y) { return x.memory.begin < y.memory.begin; });
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      for (std::size_t j = i + 1; j < tensors.size() && tensors[j].memory.begin < tensors[i].memory.end; ++j) {
        Tensor const& a = tensors[i];
        Tensor const& b = tensors[j];
        auto const distance = static_cast<std::int64_t>((b.memory.begin - a.memory.begin) / sizeof(T));
        bool const meet = a.is_key ? (b.is_key ? tensors_meet(keys(a), keys(b), distance)
                                               : tensors_meet(keys(a), values(b), distance))
                                   : (b.is_key ? tensors_meet(values(a), keys(b), distance)
                                               : tensors_meet(values(a), values(b), distance));
        auto const kind = [](Tensor const& t) { return t.is_key ? "'s keys" : "'s values"; };
        require(!meet, "tensors", "ones apart from each other",
                {"layer ", a.layer, kind(a), " and layer ", b.layer, kind(b), " overlapping"}, "compress_in_place");
      }
    }
  }
}

/// Checks a compaction in place as far as neither tensors nor tables need to be read.
/// @param heads_of  (layer) to its KV heads
template <class T, class Source, class Rotation, class HeadsOf>
void check_in_place(CacheBounds const& bounds, std::span<LayerKv<T> const> layers, Source const& source,
                    Rotation const& rotation, HeadsOf const& heads_of) {
  constexpr auto where = "compress_in_place";
  using Layout = std::remove_cvref_t<decltype(layer_source(source, 0))>;
  static_assert(
      requires(Layout const& layout) {
        keys_of(layout).num_channels();
        values_of(layout).num_channels();
      },
      "headaware: compress_in_place needs layouts with 'int64_t num_channels() const'");
  auto const num_layers = static_cast<std::size_t>(bounds.num_layers);
  require(layers.size() == num_layers, "layers", num_layers, layers.size(), where);
  check_layers_of_source(source, num_layers, where);
  bool const some = bounds.max_rows > 0;
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    std::int32_t const heads = heads_of(layer);
    if (heads == 0) continue;
    auto const keys = keys_of(layer_source(source, layer));
    auto const values = values_of(layer_source(source, layer));
    bool const latent = values.num_channels() == 0;
    OfLayer<Source> const of_layer{layer};
    check_source_layout(keys, bounds, heads, 0, {where, ", keys", of_layer});
    if (!latent) check_source_layout(values, bounds, heads, 0, {where, ", values", of_layer});
    check_rotation(rotation, bounds, keys.num_channels(), latent, layer);
    check_pointer(layers[layer].keys, some, "keys", where, layer);
    check_pointer(layers[layer].values, some && !latent, "values, as their layout has channels (a latent's has none)",
                  where, layer);
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(keys)>, Layout>) {
      // With one layout for both, one pointer would be one tensor, compacted twice.
      require(!some || layers[layer].keys != layers[layer].values, "keys and values", "two tensors", "one",
              {where, ", layer ", layer});
    }
    if (!some) continue;
    check_apart_from_itself(keys, "compress_in_place, keys");
    if (!latent) check_apart_from_itself(values, "compress_in_place, values");
  }
  if (some) check_tensors_apart(layers, source);
}

/// Checks that keys of 16 bits turn for enough evicted tokens to be worth the rounding, see `KeyRotation::evicting`.
/// @param segment  the one that evicts the fewest tokens
template <class T, class Rotation>
void check_evictions(Rotation const& rotation, std::int64_t evicted, SegmentName const& segment) {
  if constexpr (rounds_in_place<T, Rotation>) {
    std::int64_t const fewest = rotation.min_evicted();
    require(evicted == 0 || evicted >= fewest, "evicted tokens",
            {"none or at least ", fewest,
             ", as turning keys of 16 bits in place rounds them each time: KeyRotation::evicting(1) if these keys have "
             "never been turned"},
            evicted, PlaceOf{"compress_in_place", segment});
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
