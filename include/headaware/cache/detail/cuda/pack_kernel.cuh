#pragma once

// Encoding of kept rows on the device: a thread has one block of channels of one row, which it reads, turns and
// encodes. Neighbouring threads have neighbouring blocks, which are side by side in memory on both sides.

#include <headaware/cache/pack_plan.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/format/encode_block.cuh>
#include <headaware/format/table.hpp>
#include <headaware/layout/concept.hpp>

#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

inline constexpr std::int32_t pack_threads = 128;

/// @tparam T  element of the source
template <class T, class Table, class Keys, class Values, class Rotation, class Reg, class Form>
struct PackParameters {
  using Element = T;
  using Registry = Reg;

  Table table;
  Keys keys;
  Values values;
  Rotation rotation;
  PackSegment<Registry> const* segments;
  std::int64_t num_segments;
  std::int64_t num_blocks;
  RowChannels channels;
  bool keys_adjacent;  ///< a token's channels lie side by side
  bool values_adjacent;
  Form form;
  T const* source_keys[max_layers];
  T const* source_values[max_layers];
  RowUnit* kept[max_layers];
};

/// Turns a block of a key to its row's position: pairs may lie in two blocks, so partners are read again.
template <std::int32_t Group, class T, class At>
__device__ void turn_block(KeyRotation const& rotation, T const* data, At const& at, std::int64_t first,
                           std::int64_t sequence, std::int64_t token, std::int64_t row, float* x) {
  std::int64_t const distance = rotation.distance(sequence, token, row);
  std::int32_t const half = rotation.rotary_dim() / 2;
  bool const neox = rotation.pairing() == RotaryPairing::neox;
#pragma unroll
  for (std::int32_t i = 0; i < Group; ++i) {
    auto const c = static_cast<std::int32_t>(first) + i;
    if (c >= rotation.rotary_dim()) continue;
    std::int32_t const pair = neox ? (c < half ? c : c - half) : c / 2;
    RotaryPair const of = rotary_pair(rotation, pair);
    float const a = to_float(data[at(of.a)]);
    float const b = to_float(data[at(of.b)]);
    std::int64_t const by = rotation.distance_of_pair(distance, sequence, token, row, pair);
    RotatedPair<float> const turned = rotate_pair(rotation, by, pair, a, b);
    x[i] = c == of.a ? turned.a : turned.b;
  }
}

/// The segment that the `index`-th block, or row, of all is of. @param first  how many there are in the segments before
/// @pre 0 <= index < the number of all
template <class PlannedSegment>
__device__ PlannedSegment const& segment_of(PlannedSegment const* segments, std::int64_t count,
                                            std::int64_t PlannedSegment::*first, std::int64_t index) {
  std::int64_t low = 0;
  std::int64_t high = count;
  while (high - low > 1) {
    std::int64_t const middle = low + (high - low) / 2;
    if (segments[middle].*first <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return segments[low];
}

/// Where a row begins, from its layer's first unit.
/// @param segment     of a plan @param first_unit, units  of its rows, as `PackSegment` has them
template <class Form, class PlannedSegment>
__device__ std::int64_t unit_of_row(Form const& form, PlannedSegment const& segment, std::int64_t first_unit,
                                    std::int32_t units, std::int64_t row) {
  if constexpr (has_adjacent_rows<Form>) {
    return first_unit + row * units;
  } else {
    Segment const place{.layer = segment.layer,
                        .sequence = segment.sequence,
                        .kv_head = segment.kv_head,
                        .length = segment.length,
                        .kept = segment.kept};
    return first_unit + form.rows(place, {}).offset(row, units);
  }
}

template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(pack_threads) pack_kernel(Parameters const __grid_constant__ p) {
  using T = typename Parameters::Element;
  std::int64_t const block = std::int64_t{blockIdx.x} * pack_threads + threadIdx.x;
  if (block >= p.num_blocks) return;
  auto const& segment =
      segment_of(p.segments, p.num_segments, &PackSegment<typename Parameters::Registry>::first_block, block);
  std::int32_t const of_row = segment.key_blocks + segment.value_blocks;
  std::int64_t const local = block - segment.first_block;
  auto const row = local / of_row;
  auto const index = static_cast<std::int32_t>(local - row * of_row);
  if (row >= segment.kept) return;
  std::int64_t const token =
      visit_policy(p.table, segment.layer, segment.sequence, segment.kv_head,
                   [&](auto const& policy) { return source_token(policy, row, segment.length); });
  RowChannels const channels = p.channels;
  std::int64_t const unit = unit_of_row(p.form, segment, segment.first_unit, segment.units, row);
  std::uint32_t* const words = (p.kept[segment.layer] + unit)->words;
  if (index < segment.key_blocks) {
    auto const turn = [&]<std::int32_t Group>(std::integral_constant<std::int32_t, Group>, T const* data,
                                              auto const& at, std::int64_t first, float* x) {
      if constexpr (std::is_same_v<decltype(p.rotation), KeyRotation const> ||
                    std::is_same_v<decltype(p.rotation), KeyRotation>) {
        turn_block<Group>(p.rotation, data, at, first, segment.sequence, token, row, x);
      }
    };
    auto const at = [&](std::int64_t c) { return p.keys.offset(segment.sequence, segment.kv_head, token, c); };
    encode_block(segment.formats.key, p.source_keys[segment.layer], at, p.keys_adjacent, p.channels.head_dim, index,
                 words, turn);
  } else {
    auto const at = [&](std::int64_t c) { return p.values.offset(segment.sequence, segment.kv_head, token, c); };
    encode_block(segment.formats.value, p.source_values[segment.layer], at, p.values_adjacent, p.channels.value_dim,
                 index - segment.key_blocks, words + segment.formats.key_words(p.channels.head_dim), StayInPlace{});
  }
  if (index == of_row - 1)
    clear_row_end(segment.formats, p.channels.head_dim, p.channels.value_dim, segment.units, words);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
