#pragma once

// The per-head cache that an engine's attention runs on: what every KV head keeps of what the model has read so far.
// New keys and values go into their slots, and attention reads the slots that each head's policy shows. Where heads
// keep tokens by scores, rows are scored as they come.

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/row_scoring.hpp"

#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/scored_records.hpp>
#include <headaware/element.hpp>
#include <headaware/format/table.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace llama_adapter {

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
            std::int64_t max_tokens, RowScoring scoring = {});

  /// Appends a layer's new tokens and attends, each token seeing its own sinks and window: as token by token.
  void run(TappedAttention const& attention);
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
  void score(TappedAttention const& attention);
  /// Appends and attends some tokens at a time. @param cache_of  (view) to the layer's cache
  template <class U, class Buffers, class CacheOf>
  void run_steps(TappedAttention const& attention, U const* keys, U const* values, Buffers const& buffers,
                 CacheOf const& cache_of);

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

// Attention over every form of cache takes long to compile: once, in head_cache.cpp, where the functions are that call
// it.
extern template class HeadCache<float>;
extern template class HeadCache<headaware::float16>;

}  // namespace llama_adapter
