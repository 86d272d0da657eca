#pragma once

// A cache that is compressed once: what every KV head keeps of a text that the model has read, and after it every token
// read since.

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/engine.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/dense_views.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/concept.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

/// Keys and values of all tokens of a text that was read in one evaluation, as its attention had them.
/// @tparam T  of an element: float, or headaware::float16 as engines hold them
template <class T>
class PrefixRows {
 public:
  PrefixRows(headaware::ModelShape const& shape, std::int64_t tokens)
      : tokens_(tokens), layers_(static_cast<std::size_t>(shape.num_layers())) {
    for (headaware::LayerShape const& layer : shape.layers()) {
      layouts_.emplace_back();
      if (!layer.has_cache()) continue;
      layouts_.back() = {headaware::strided_bshd(1, tokens, layer.num_kv_heads, layer.head_dim),
                         headaware::strided_bshd(1, tokens, layer.num_kv_heads, layer.value_dim)};
    }
  }

  /// Takes the rows of the first tokens of an evaluation.
  /// @throws ArgumentError for a latent, whose rows are no keys and values
  void take(TappedAttention const& attention) {
    namespace ha = headaware;
    ha::require(!attention.latent, "layer's cache", "keys and values", "a latent",
                {"PrefixRows, layer ", attention.layer});
    Layer& layer = layers_[static_cast<std::size_t>(attention.layer)];
    auto const stored = [&](float const* from, std::int64_t width, std::vector<T>& to) {
      to.resize(static_cast<std::size_t>(tokens_ * width));
      std::transform(from, from + tokens_ * width, to.begin(), ha::from_float<T>);
    };
    stored(attention.keys, attention.num_kv_heads * attention.head_dim, layer.keys);
    stored(attention.values, attention.num_kv_heads * attention.value_dim, layer.values);
  }
  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  [[nodiscard]] std::vector<headaware::LayerKv<T const>> layers() const {
    std::vector<headaware::LayerKv<T const>> result;
    for (Layer const& layer : layers_) result.push_back({layer.keys.data(), layer.values.data()});
    return result;
  }
  [[nodiscard]] auto layouts() const { return headaware::per_layer(layouts_); }

 private:
  struct Layer {
    std::vector<T> keys;  ///< [tokens, num_kv_heads, head_dim]
    std::vector<T> values;
  };
  std::int64_t tokens_;
  std::vector<Layer> layers_;
  std::vector<headaware::KvLayouts<headaware::StridedLayout, headaware::StridedLayout>> layouts_;
};

template <class T>
class CompactCache {
 public:
  /// Compresses a text's rows.
  /// @param compaction  of one sequence of the text's length, of all layers @param room  tokens that are read after it
  template <class Table>
  CompactCache(PrefixRows<T> const& prefix, headaware::ModelShape const& shape,
               headaware::Compaction<Table> const& compaction, std::int64_t room)
      : prefix_(prefix.tokens()), kept_total_(compaction.kept_total()), heads_(compaction.heads().total()) {
    namespace ha = headaware;
    std::vector<ha::LayerKv<T>> buffers;
    for (std::int32_t index = 0; index < shape.num_layers(); ++index) {
      ha::LayerShape const& of = shape.layer(index);
      Layer layer;
      std::int32_t const heads = compaction.num_kv_heads(index);
      layer.head_rows = heads > 0 ? compaction.max_kept(index) + room : 0;
      layer.keys.resize(static_cast<std::size_t>(heads * layer.head_rows * of.head_dim));
      layer.values.resize(static_cast<std::size_t>(heads * layer.head_rows * of.value_dim));
      layer.positions.resize(static_cast<std::size_t>(heads * layer.head_rows));
      for (std::int32_t head = 0; head < heads; ++head) {
        std::int64_t const kept = compaction.kept(index, 0, head);
        layer.lengths.push_back(static_cast<std::int32_t>(kept));
        std::int32_t* const positions = layer.positions.data() + head * layer.head_rows;
        compaction.table().visit(index, 0, head, [&](auto const& policy) {
          for (std::int64_t row = 0; row < kept; ++row) {
            positions[row] = static_cast<std::int32_t>(ha::source_token(policy, row, prefix_));
          }
        });
      }
      layers_.push_back(std::move(layer));
      buffers.push_back({layers_.back().keys.data(), layers_.back().values.data()});
    }
    auto kept = ha::padded(compaction, buffers, shape);
    for (std::size_t i = 0; i < layers_.size(); ++i) {  // with room after what each head keeps
      kept.capacities[i].head_rows = layers_[i].head_rows;
      kept.capacities[i].rows = layers_[i].head_rows * std::ssize(layers_[i].lengths);
    }
    ha::compress(compaction, prefix.layers(), prefix.layouts(), kept);
  }

  /// Appends a layer's new tokens and attends to what is kept and to them.
  void run(TappedAttention const& attention) {
    namespace ha = headaware;
    Layer& layer = layers_[static_cast<std::size_t>(attention.layer)];
    append(attention, attention.keys, attention.head_dim, layer, layer.keys);
    append(attention, attention.values, attention.value_dim, layer, layer.values);
    for (std::int32_t head = 0; head < attention.num_kv_heads; ++head) {
      std::int32_t& held = layer.lengths[static_cast<std::size_t>(head)];
      std::int32_t* const positions = layer.positions.data() + head * layer.head_rows + held;
      for (std::int64_t i = 0; i < attention.tokens; ++i) positions[i] = static_cast<std::int32_t>(length() + i);
      held += static_cast<std::int32_t>(attention.tokens);
    }
    ha::AttentionShape const shape{1,
                                   attention.num_query_heads,
                                   attention.num_kv_heads,
                                   attention.tokens,
                                   attention.head_dim,
                                   attention.value_dim};
    std::array<std::int32_t, 1> const first{static_cast<std::int32_t>(length())};
    ha::PaddedView const view{layer.lengths.data(), attention.num_kv_heads, layer.head_rows, ha::Alignment::left,
                              layer.positions.data()};
    auto const rows = [&](std::int64_t channels) {
      return ha::strided_bshd(1, attention.tokens, attention.num_query_heads, channels);
    };
    ha::attend(shape, ha::AttentionQueries{attention.queries, rows(attention.head_dim)},
               ha::KeptCache{layer.keys.data(), layer.values.data(), view},
               ha::AttentionOutput{attention.output, rows(attention.value_dim)},
               {.scale = attention.scale,
                .soft_cap = attention.soft_cap,
                .first_positions = first.data(),
                .window = attention.sliding_window,
                .sinks = attention.sinks});
  }
  /// All layers have run so many tokens.
  void advance(std::int64_t tokens) { read_ += tokens; }
  /// The position of the next token.
  [[nodiscard]] std::int64_t length() const { return prefix_ + read_; }
  /// Tokens of the text that a KV head keeps on average.
  [[nodiscard]] double mean_kept() const { return static_cast<double>(kept_total_) / static_cast<double>(heads_); }

 private:
  struct Layer {
    std::vector<T> keys;  ///< [num_kv_heads, head_rows, head_dim]
    std::vector<T> values;
    std::vector<std::int32_t> lengths;    ///< [num_kv_heads], rows held
    std::vector<std::int32_t> positions;  ///< [num_kv_heads, head_rows]
    std::int64_t head_rows = 0;
  };

  static void append(TappedAttention const& attention, float const* from, std::int64_t channels, Layer const& layer,
                     std::vector<T>& to) {
    for (std::int64_t token = 0; token < attention.tokens; ++token) {
      for (std::int32_t head = 0; head < attention.num_kv_heads; ++head) {
        std::int64_t const row = head * layer.head_rows + layer.lengths[static_cast<std::size_t>(head)] + token;
        std::transform(from, from + channels, to.begin() + row * channels, headaware::from_float<T>);
        from += channels;
      }
    }
  }

  std::int64_t prefix_;
  std::int64_t read_ = 0;
  std::int64_t kept_total_;
  std::int64_t heads_;
  std::vector<Layer> layers_;
};

/// A model that reads on after a text, whose cache was compressed.
template <class T>
class ContinuedModel {
 public:
  /// @param model  borrowed @param chunk  most tokens of a read @param threads  of the engine
  /// @throws Error as `require_served`, and for recurrent layers, whose states a second reading could not begin from
  ContinuedModel(Model const& model, std::int32_t chunk, std::int32_t threads)
      : tap_(
            served(model), [this](TappedAttention const& attention) { cache_->run(attention); }, TapMode::replace),
        context_(model, {.tokens = chunk, .threads = threads, .observer = &tap_}) {
    tap_.skip_own_attention(std::vector<bool>(static_cast<std::size_t>(model.shape().num_layers()), true));
  }
  ContinuedModel(ContinuedModel const&) = delete;
  ContinuedModel& operator=(ContinuedModel const&) = delete;

  /// @param cache  borrowed, that the next reads go on from
  void go_on_from(CompactCache<T>& cache) { cache_ = &cache; }
  /// Reads tokens after those read before, at most a chunk of them.
  void read(std::span<std::int32_t const> tokens) {
    context_.evaluate(tokens, static_cast<std::int32_t>(cache_->length()));
    cache_->advance(std::ssize(tokens));
  }
  /// Logits [vocabulary] after a token of the last read. @return borrowed; valid until the next one
  [[nodiscard]] std::span<float const> logits(std::size_t index) const {
    return context_.logits(static_cast<std::int32_t>(index));
  }

 private:
  static Model const& served(Model const& model) {
    require_served(model.info(), model.shape());
    headaware::require(!model.info().recurrent, "model", "one without recurrent layers", model.info().architecture,
                       "ContinuedModel");
    return model;
  }

  CompactCache<T>* cache_ = nullptr;
  AttentionTap tap_;
  Context context_;
};

}  // namespace llama_adapter
