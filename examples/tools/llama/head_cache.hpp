#pragma once

// The per-head cache that an engine's attention runs on: what every KV head keeps of what the model has read so far.
// New keys and values go into their slots, and attention reads the slots that each head's policy shows. Where heads
// keep tokens by scores, rows are scored as they come.

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/row_scoring.hpp"
#include "tools/llama/score_chunk.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/packed_scored.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/scored_append.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/classify/builders.hpp>
#include <headaware/element.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/score/row_scores.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

/// Elements of a cache's buffer. @throws std::runtime_error that says how much could not be had
template <class T>
std::vector<T> kept_elements(std::int64_t elements) {
  try {
    return std::vector<T>(static_cast<std::size_t>(elements));
  } catch (std::exception const&) {  // bad_alloc, length_error
    double const gigabytes = static_cast<double>(elements) * sizeof(T) / (1 << 30);
    throw std::runtime_error("the cache's keys, and its values as well, need " +
                             std::to_string(static_cast<std::int64_t>(gigabytes) + 1) +
                             " GiB, which cannot be allocated: fewer tokens, or smaller windows");
  }
}

/// @tparam T  of the kept keys and values where heads have no formats of their own: float, or headaware::float16 as
///            engines hold them
template <class T>
class HeadCache {
  /// Tokens appended, and attended to, at a time: so many slots more than its window a head owns.
  static constexpr std::int64_t step_tokens = 32;

 public:
  /// @param table       policies, each a sink and a window, and tokens of high scores; within the windows of the
  ///                    model's own
  /// @param formats     of the same heads; empty: all rows are of `T`
  /// @param max_tokens  room of heads that keep everything
  /// @param scoring     of tables whose heads keep tokens by scores
  /// @throws ArgumentError if such a table comes without
  HeadCache(headaware::PolicyTable table, headaware::FormatTable const& formats, headaware::ModelShape const& shape,
            std::int64_t max_tokens, RowScoring scoring = {})
      : slots_(headaware::within_layers(std::move(table), shape, "HeadCache"), 1,
               {.max_tokens = max_tokens, .slack = step_tokens - 1}),
        records_(slots_),
        scoring_(std::move(scoring)),
        state_(1),
        next_state_(1) {
    headaware::require(slots_.view().max_scored == 0 || scoring_.scorer != nullptr, "scores",
                       "some, as heads keep tokens by scores", "none", "HeadCache");
    if (formats.num_layers() > 0) {
      auto const packed = headaware::packed_rolling(slots_, slots_.view(), formats, shape);
      units_ = kept_elements<headaware::RowUnit>(packed.total_units());
      packed_ = packed.with_buffer(units_.data());
      return;
    }
    headaware::RowChannels const elements = headaware::buffer_elements(
        shape, slots_.num_layers(), [&](std::int32_t layer) { return slots_.rows_total(layer); });
    keys_ = kept_elements<T>(elements.head_dim);
    values_ = kept_elements<T>(elements.value_dim);
    plain_ = headaware::rolling(slots_, slots_.view(), keys_.data(), values_.data(), shape);
  }

  /// Appends a layer's new tokens and attends, each token seeing its own sinks and window: as token by token.
  void run(TappedAttention const& attention) {
    namespace ha = headaware;
    next_state_ = state_;  // every layer counts the same tokens
    score(attention);
    if (packed_) {
      ha::require(!attention.latent, "layer's cache", "keys and values: latents have no formats here", "a latent",
                  {"HeadCache::run, layer ", attention.layer});
      auto const layer = static_cast<std::size_t>(attention.layer);
      run_steps(attention, attention.keys, attention.values, *packed_, [&]<class View>(View const& view) {
        return ha::PackedCache<ha::DefaultFormats, View>{packed_->layers[layer], packed_->layer(attention.layer).data(),
                                                         view};
      });
      return;
    }
    std::int64_t const key_width = attention.num_kv_heads * attention.head_dim;
    std::int64_t const value_width = attention.num_kv_heads * attention.value_dim;
    auto const stored = [&](float const* from, std::int64_t width, std::vector<T>& to) {
      to.resize(static_cast<std::size_t>(attention.tokens * width));
      std::transform(from, from + attention.tokens * width, to.begin(), ha::from_float<T>);
    };
    stored(attention.keys, key_width, new_keys_);
    if (!attention.latent) stored(attention.values, value_width, new_values_);
    auto const& kept = plain_->layers[static_cast<std::size_t>(attention.layer)];
    if (attention.latent) {
      run_steps(attention, new_keys_.data(), static_cast<T const*>(nullptr), *plain_, [&](auto const& view) {
        return ha::LatentCache{kept.keys, view};
      });
    } else {
      run_steps(attention, new_keys_.data(), new_values_.data(), *plain_, [&](auto const& view) {
        return ha::KeptCache{kept.keys, kept.values, view};
      });
    }
  }

  /// All layers have run.
  void advance() { state_ = next_state_; }
  [[nodiscard]] std::int64_t length() const { return state_.length(0); }
  /// Bytes of keys and values, and of scores and records where heads have some, whatever has been read so far.
  [[nodiscard]] std::int64_t bytes() const {
    return static_cast<std::int64_t>((keys_.size() + values_.size()) * sizeof(T) +
                                     units_.size() * sizeof(headaware::RowUnit)) +
           records_.bytes_held();
  }
  /// Bytes of the keys and values of the tokens kept so far, without scores, records and the slots for those read at a
  /// time.
  [[nodiscard]] std::int64_t kept_bytes() const {
    if (packed_) {
      std::int64_t units = 0;
      for (std::int32_t layer = 0; layer < slots_.num_layers(); ++layer) {
        auto const segments = packed_->layer(layer);
        for (std::size_t head = 0; head < segments.size(); ++head) {
          units += kept_rows(layer, static_cast<std::int32_t>(head)) * segments[head].units;
        }
      }
      return units * std::int64_t{sizeof(headaware::RowUnit)};
    }
    auto const kept = headaware::buffer_elements(plain_->channels, slots_.num_layers(),
                                                 [&](std::int32_t layer) { return kept_rows(layer); });
    return (kept.head_dim + kept.value_dim) * std::int64_t{sizeof(T)};
  }
  /// Tokens that a KV head keeps on average.
  [[nodiscard]] double mean_kept() const {
    std::int64_t kept = 0;
    for (std::int32_t layer = 0; layer < slots_.num_layers(); ++layer) kept += kept_rows(layer);
    return static_cast<double>(kept) / static_cast<double>(slots_.heads().total());
  }

 private:
  [[nodiscard]] std::int64_t kept_rows(std::int32_t layer, std::int32_t head) const {
    headaware::RollingHead const& slots = slots_.head(layer, head);
    // Of scored slots all but those for drafts and chunks show something once so many tokens have left the window.
    std::int64_t const scored = slots.scored == 0 ? 0 : slots.scored - (step_tokens - 1);
    return slots.kept(length()).count() + std::min(scored, slots.scored_used(length()));
  }
  /// Tokens that a layer's KV heads keep together.
  [[nodiscard]] std::int64_t kept_rows(std::int32_t layer) const {
    std::int64_t kept = 0;
    for (std::int32_t head = 0; head < slots_.heads().count(layer); ++head) kept += kept_rows(layer, head);
    return kept;
  }

  /// Scores a layer's new rows, if any of its heads needs them.
  void score(TappedAttention const& attention) {
    namespace ha = headaware;
    if (slots_.view().max_scored == 0) return;
    bool scored = false;
    for (std::int32_t head = 0; head < attention.num_kv_heads; ++head) {
      scored = scored || slots_.head(attention.layer, head).scored > 0;
    }
    scores_.assign(static_cast<std::size_t>(attention.num_kv_heads * attention.tokens), 0.0F);
    if (!scored) return;
    ha::require(!attention.latent, "layer's cache", "keys and values: rows of latents have no scores here", "a latent",
                {"HeadCache::run, layer ", attention.layer});
    score_chunk(*scoring_.scorer, scoring_.rotations, attention,
                ha::RowScores::dense(scores_.data(), attention.num_kv_heads, attention.tokens));
  }

  /// Appends and attends some tokens at a time. @param cache_of  (view) to the layer's cache
  template <class U, class Buffers, class CacheOf>
  void run_steps(TappedAttention const& attention, U const* keys, U const* values, Buffers const& buffers,
                 CacheOf const& cache_of) {
    namespace ha = headaware;
    std::int64_t const key_width = attention.num_kv_heads * attention.head_dim;
    std::int64_t const value_width = attention.num_kv_heads * attention.value_dim;
    for (std::int64_t token = 0; token < attention.tokens; token += step_tokens) {
      std::int64_t const count = std::min(step_tokens, attention.tokens - token);
      std::array<std::int32_t, 1> const counts{static_cast<std::int32_t>(count)};
      std::array<std::int32_t, 1> const before{static_cast<std::int32_t>(next_state_.length(0))};
      std::vector<ha::LayerKv<U const>> const step{
          {keys + token * key_width, values == nullptr ? nullptr : values + token * value_width}};
      ha::KvLayouts const layouts{ha::strided_bshd(1, count, attention.num_kv_heads, attention.head_dim),
                                  ha::strided_bshd(1, count, attention.num_kv_heads, attention.value_dim)};
      ha::AppendOptions const to_layer{.first_layer = attention.layer, .advance = true};
      bool const scored = slots_.view().max_scored > 0;
      if (scored) {
        auto scores = ha::TokenScores::contiguous(scores_.data(), 1, attention.num_kv_heads, attention.tokens);
        scores.data += token;
        ha::append(slots_.view(), next_state_, step, layouts, counts, buffers, records_.view(), scores, to_layer);
      } else {
        ha::append(slots_.view(), next_state_, step, layouts, counts, buffers, to_layer);
      }
      ha::AttentionShape const shape{1,     attention.num_query_heads, attention.num_kv_heads,
                                     count, attention.head_dim,        attention.value_dim};
      auto const queries = ha::strided_bshd(1, count, attention.num_query_heads, attention.head_dim);
      auto const output = ha::strided_bshd(1, count, attention.num_query_heads, attention.value_dim);
      std::int64_t const row = token * attention.num_query_heads;
      auto const attend = [&](auto const& view) {
        ha::attend(shape, ha::AttentionQueries{attention.queries + row * attention.head_dim, queries}, cache_of(view),
                   ha::AttentionOutput{attention.output + row * attention.value_dim, output},
                   {.scale = attention.scale,
                    .soft_cap = attention.soft_cap,
                    .first_positions = before.data(),
                    .sinks = attention.sinks});
      };
      std::int32_t const* const lengths = next_state_.lengths().data();
      if (scored) {
        attend(ha::ScoredView::of_chunk(slots_.view(), records_.view(), attention.layer, lengths, count));
      } else {
        attend(ha::RollingView::of_chunk(slots_.view(), attention.layer, lengths, count));
      }
    }
  }

  headaware::RollingSlots slots_;
  headaware::RollingScores records_;
  RowScoring scoring_;
  std::vector<float> scores_;  ///< [num_kv_heads, tokens] of the layer that runs
  std::vector<T> keys_;
  std::vector<T> values_;
  std::vector<headaware::RowUnit> units_;
  std::optional<headaware::Destination<T, headaware::RollingSlotsView>> plain_;
  std::optional<headaware::PackedDestination<headaware::RollingSlotsView, headaware::DefaultFormats>> packed_;
  headaware::RollingState state_;
  headaware::RollingState next_state_;
  std::vector<T> new_keys_;
  std::vector<T> new_values_;
};

// Attention over every form of cache takes long to compile: once, in head_cache.cpp.
extern template class HeadCache<float>;
extern template class HeadCache<headaware::float16>;

}  // namespace llama_adapter
