#pragma once

// A batch of sequences as an engine holds it, to compress: captured, or one whose every element tells its place.

#include "tools/support/capture.hpp"

#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace support {

/// Keys and values in tensors of single layers, [sequences, KV heads, longest, channels].
class CacheBatch {
 public:
  using Layouts = headaware::KvLayouts<headaware::StridedLayout, headaware::StridedLayout>;

  /// @param shape  of the batch's layers; those without a cache of their own have empty tensors
  CacheBatch(headaware::ModelShape shape, std::vector<std::int32_t> lengths)
      : lengths_(std::move(lengths)), shape_(std::move(shape)), channels_(shape_) {
    auto const sequences = static_cast<std::int64_t>(lengths_.size());
    std::int64_t const longest = *std::max_element(lengths_.begin(), lengths_.end());
    for (headaware::LayerShape const& layer : shape_.layers()) {
      headaware::RowChannels const& rows = channels_.of(layouts_.size());
      std::int64_t const heads = layer.has_cache() ? layer.num_kv_heads : 0;
      layouts_.push_back({headaware::strided_bhsd(sequences, heads, longest, rows.head_dim),
                          headaware::strided_bhsd(sequences, heads, longest, rows.value_dim)});
      keys_.emplace_back(static_cast<std::size_t>(layouts_.back().keys.required_span_size()));
      values_.emplace_back(static_cast<std::size_t>(layouts_.back().values.required_span_size()));
    }
  }

  /// The captured sequences. @pre  at least one
  static CacheBatch captured(capture::Arrays const& arrays) {
    std::vector<std::int32_t> lengths;
    for (capture::Sequence const& sequence : arrays.sequences) {
      lengths.push_back(static_cast<std::int32_t>(sequence.length()));
    }
    CacheBatch batch(arrays.shape(), std::move(lengths));
    for (std::size_t s = 0; s < arrays.sequences.size(); ++s) {
      std::int64_t const tokens = arrays.sequences[s].length();
      for (std::size_t layer = 0; layer < batch.layouts_.size(); ++layer) {
        auto const rows = arrays.sequences[s].rows<std::uint16_t>(layer);
        auto const copy = [&](std::uint16_t const* from, headaware::StridedLayout const& layout, std::int64_t channels,
                              std::vector<std::uint16_t>& to) {
          for (std::int32_t head = 0; head < arrays.each[layer].shape.num_kv_heads; ++head) {
            std::copy_n(from + head * tokens * channels, tokens * channels,
                        to.data() + layout.offset(static_cast<std::int64_t>(s), head, 0, 0));
          }
        };
        headaware::RowChannels const& channels = batch.channels_.of(layer);
        copy(rows.keys, batch.layouts_[layer].keys, channels.head_dim, batch.keys_[layer]);
        if (channels.value_dim == 0) continue;  // a latent's are in the keys
        copy(rows.values, batch.layouts_[layer].values, channels.value_dim, batch.values_[layer]);
      }
    }
    return batch;
  }

  /// One sequence whose every element tells its place.
  static CacheBatch numbered(headaware::ModelShape const& shape, std::int32_t tokens) {
    CacheBatch batch(shape, {tokens});
    auto const number = [](std::vector<std::vector<std::uint16_t>>& layers, std::uint32_t factor, int shift) {
      std::size_t place = 0;
      for (auto& layer : layers) {
        for (std::uint16_t& element : layer) element = static_cast<std::uint16_t>(place++ * factor >> shift);
      }
    };
    number(batch.keys_, 2654435761U, 7);
    number(batch.values_, 2246822519U, 5);
    return batch;
  }

  [[nodiscard]] std::vector<std::int32_t> const& lengths() const { return lengths_; }
  [[nodiscard]] headaware::ModelShape const& shape() const { return shape_; }
  [[nodiscard]] headaware::LayerChannels const& channels() const { return channels_; }
  /// Of each layer, for `headaware::per_layer`.
  [[nodiscard]] std::vector<Layouts> const& layouts() const { return layouts_; }
  [[nodiscard]] std::vector<headaware::LayerKv<std::uint16_t>> layers() {
    std::vector<headaware::LayerKv<std::uint16_t>> result;
    for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
      result.push_back({keys_[layer].data(), values_[layer].data()});
    }
    return result;
  }
  /// The same as numbers, to encode.
  [[nodiscard]] std::vector<headaware::LayerKv<headaware::float16 const>> float_layers() const {
    std::vector<headaware::LayerKv<headaware::float16 const>> result;
    auto const halves = [](std::vector<std::uint16_t> const& bits) {
      return reinterpret_cast<headaware::float16 const*>(bits.data());
    };
    for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
      result.push_back({halves(keys_[layer]), halves(values_[layer])});
    }
    return result;
  }
  /// The rows of a token and those after it. @pre  the layer has values of its own, if they are asked for
  [[nodiscard]] std::uint16_t const* key(std::int32_t layer, std::int32_t sequence, std::int32_t head,
                                         std::int64_t token) const {
    auto const at = static_cast<std::size_t>(layer);
    return keys_[at].data() + layouts_[at].keys.offset(sequence, head, token, 0);
  }
  [[nodiscard]] std::uint16_t const* value(std::int32_t layer, std::int32_t sequence, std::int32_t head,
                                           std::int64_t token) const {
    auto const at = static_cast<std::size_t>(layer);
    return values_[at].data() + layouts_[at].values.offset(sequence, head, token, 0);
  }

 private:
  std::vector<std::int32_t> lengths_;
  headaware::ModelShape shape_;
  headaware::LayerChannels channels_;
  std::vector<Layouts> layouts_{};
  std::vector<std::vector<std::uint16_t>> keys_{};
  std::vector<std::vector<std::uint16_t>> values_{};
};

}  // namespace support
