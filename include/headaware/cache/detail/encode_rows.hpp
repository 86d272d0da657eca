#pragma once

// Rows on their way into a packed cache, on the CPU.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/concept.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A thread's memory for packing rows.
struct PackBuffers {
  std::vector<std::int64_t> tokens{};
  std::vector<float> key{};
  std::vector<float> value{};
};

/// Turns a key in single precision to its row's position.
template <class Rotation>
void turn_key(Rotation const& rotation, std::int64_t sequence, std::int64_t token, std::int64_t row, float* key) {
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    std::int64_t const distance = rotation.distance(sequence, token, row);
    for (std::int32_t i = 0; i < rotation.rotary_dim() / 2; ++i) {
      RotaryPair const pair = rotary_pair(rotation, i);
      std::int64_t const by = rotation.distance_of_pair(distance, sequence, token, row, i);
      RotatedPair<float> const turned = rotate_pair(rotation, by, i, key[pair.a], key[pair.b]);
      key[pair.a] = turned.a;
      key[pair.b] = turned.b;
    }
  }
}

/// Writes a row: key, value, and zeros to a whole unit.
template <class Registry>
void write_packed(BasicHeadFormats<Registry> const& formats, RowChannels const& channels, float const* key,
                  float const* value, RowUnit* row, std::int32_t units) {
  std::uint32_t* words = row->words;
  std::uint32_t* const end = words + std::int64_t{4} * units;
  formats.key.visit([&](auto const& format) { encode_row(format, key, channels.head_dim, words); });
  words += formats.key_words(channels.head_dim);
  if (channels.value_dim > 0) {
    formats.value.visit([&](auto const& format) { encode_row(format, value, channels.value_dim, words); });
    words += formats.value.row_words(channels.value_dim);
  }
  std::fill(words, end, 0U);
}

/// Reads rows of one segment of a source and encodes them.
template <class T, class Source>
class RowEncoder {
 public:
  /// @param buffers  of the thread, resized
  RowEncoder(Source const& source, LayerKv<T> const& layer, RowChannels const& channels, std::int64_t sequence,
             std::int64_t kv_head, PackBuffers& buffers)
      : source_(source), layer_(layer), channels_(channels), sequence_(sequence), kv_head_(kv_head), buffers_(buffers) {
    buffers.key.resize(static_cast<std::size_t>(channels.head_dim));
    buffers.value.resize(static_cast<std::size_t>(channels.value_dim));
  }

  /// @param turn  (key, [head_dim]) changes the key before it is encoded
  template <class Registry, class Turn>
  void encode(PackedSegment<Registry> const& packed, std::int64_t token, RowUnit* row, Turn const& turn) const {
    read(keys_of(source_), layer_.keys, token, channels_.head_dim, buffers_.key.data());
    turn(buffers_.key.data());
    if (channels_.value_dim > 0) {
      read(values_of(source_), layer_.values, token, channels_.value_dim, buffers_.value.data());
    }
    write_packed(packed.formats, channels_, buffers_.key.data(), buffers_.value.data(), row, packed.units);
  }

 private:
  template <class Layout>
  void read(Layout const& layout, T const* data, std::int64_t token, std::int64_t channels, float* row) const {
    for (std::int64_t c = 0; c < channels; ++c) {
      row[c] = to_float(data[layout.offset(sequence_, kv_head_, token, c)]);
    }
  }

  Source const& source_;  ///< borrowed
  LayerKv<T> layer_;
  RowChannels channels_;
  std::int64_t sequence_;
  std::int64_t kv_head_;
  PackBuffers& buffers_;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
