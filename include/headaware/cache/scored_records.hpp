#pragma once

/// @file
/// What the scored slots of a cache show: a record of every slot, and the scores of the tokens in the rings, for caches
/// whose policies keep tokens of high scores (`SinkWindowScored`).

#include <headaware/cache/rolling_head.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/detail/score_order.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/rolling_policy.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief What a scored slot holds, and which queries see it: those at positions q with `enter <= q + 1 < leave`.
/// All zeroes: nothing yet.
struct alignas(16) ScoredRecord {
  std::int32_t token = 0;
  float score = 0;
  std::int32_t enter = 0;  ///< length of the sequence from which on the token is shown here: token + window + 1
  std::int32_t leave = 0;  ///< length from which on it no longer is; `all_tokens` while it stays

  /// Whether a sequence of `length` tokens shows the slot to its newest one.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr bool is_shown(std::int64_t length) const {
    return enter <= length && length < leave;
  }
};

/// @brief Orders tokens by score, then by position: of equal scores the newer token counts more; NaN is below all
/// others, 0 and -0 are equal. Distinct tokens have distinct ranks.
[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t score_rank(float score, std::int64_t token) {
  std::int64_t const key = std::int64_t{detail::score_key(score)} + INT32_MIN;  // so that ranks use all 64 bits
  return key * (std::int64_t{1} << 32) + token;
}

/// @brief Memory of one head of one sequence.
struct HeadScores {
  float* ring = nullptr;          ///< [RollingHead::ring], scores of the tokens in the ring's slots
  ScoredRecord* slots = nullptr;  ///< [RollingHead::scored]
};

/// @brief `RollingScores` where a back end runs. Borrows its memory.
struct RollingScoresView {
  /// Where a head's units lie: `first + sequence * sequence_units`.
  struct alignas(16) Head {
    std::int64_t first = 0;
    std::int64_t sequence_units = 0;
  };
  /// What memory is counted in: a record, or four scores.
  struct alignas(16) Unit {
    std::uint32_t words[4];
  };
  Unit* memory = nullptr;  ///< a `Head` for each KV head of all layers, then what they hold
  std::uint64_t id = 0;    ///< of the `RollingSlots`

  /// Units of one head of one sequence.
  [[nodiscard]] static HEADAWARE_HOST_DEVICE constexpr std::int64_t units(RollingHead const& head) {
    return head.scored == 0 ? 0 : ring_units(head) + head.scored;
  }
  /// The first unit of a head. @param index  of the KV head, of all layers
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t first_unit(std::int64_t index, std::int64_t sequence) const {
    Head const& head = reinterpret_cast<Head const*>(detail::global_pointer(memory))[index];
    return head.first + sequence * head.sequence_units;
  }
  /// A head of a sequence. @pre it has scored slots
  [[nodiscard]] HEADAWARE_HOST_DEVICE HeadScores of(RollingHead const& head, std::int64_t index,
                                                    std::int64_t sequence) const {
    Unit* const units = memory + first_unit(index, sequence);
    return {reinterpret_cast<float*>(units), reinterpret_cast<ScoredRecord*>(units + ring_units(head))};
  }

 private:
  [[nodiscard]] static HEADAWARE_HOST_DEVICE constexpr std::int64_t ring_units(RollingHead const& head) {
    return (std::int64_t{head.ring} + 3) / 4;
  }
};

/// @brief Scores and records of a rolling cache, or of one in pages of single heads (`PagedHeads::slots`), on the host.
/// Of every (sequence, KV head) with scored slots: 4 bytes
/// a slot of its ring, rounded up to 16, and 16 bytes a scored slot; heads without have none.
class RollingScores {
 public:
  RollingScores() = default;
  /// @brief Records of empty sequences. They serve all layers, and all appends; an emptied sequence
  /// (`RollingState::reset`) needs no clearing.
  explicit RollingScores(RollingSlots const& slots)
      : layers_(static_cast<std::size_t>(slots.num_layers()), 0), id_(slots.view().id) {
    if (slots.view().max_scored == 0) return;
    std::vector<RollingScoresView::Head> heads;
    auto units = static_cast<std::int64_t>(slots.heads().total());
    for (std::int32_t layer = 0; layer < slots.num_layers(); ++layer) {
      std::int32_t const count = slots.heads().count(layer);
      std::int64_t of_sequence = 0;
      for (std::int32_t head = 0; head < count; ++head) {
        heads.push_back({units + of_sequence, 0});
        of_sequence += RollingScoresView::units(slots.head(layer, head));
      }
      for (std::int32_t head = 0; head < count; ++head) {
        heads[heads.size() - 1 - static_cast<std::size_t>(head)].sequence_units = of_sequence;
      }
      layers_[static_cast<std::size_t>(layer)] = slots.num_sequences() * of_sequence;
      units += slots.num_sequences() * of_sequence;
    }
    units_.resize(static_cast<std::size_t>(units));
    static_assert(sizeof(RollingScoresView::Head) == sizeof(RollingScoresView::Unit));
    if (!heads.empty()) std::memcpy(units_.data(), heads.data(), heads.size() * sizeof(heads.front()));
  }

  /// Bytes of a layer's scores and records. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int64_t bytes_held(std::int32_t layer) const {
    require_index(layer, static_cast<std::int64_t>(layers_.size()), "layer", "RollingScores");
    return layers_[static_cast<std::size_t>(layer)] * std::int64_t{sizeof(RollingScoresView::Unit)};
  }
  /// Bytes of all, and of 16 bytes a KV head that say where its records lie: beside those of the rows
  /// (`RollingSlots::bytes_held`).
  [[nodiscard]] std::int64_t bytes_held() const { return std::ssize(units_) * std::int64_t{sizeof(units_.front())}; }
  [[nodiscard]] std::int32_t num_layers() const { return static_cast<std::int32_t>(layers_.size()); }

  /// The records as the CPU back end reads and writes them; valid while these live.
  [[nodiscard]] RollingScoresView view() { return {units_.data(), id_}; }
  /// The bytes to copy to the device once; none where no head has scored slots.
  [[nodiscard]] std::span<std::byte const> bytes() const { return std::as_bytes(std::span(units_)); }
  /// The records as the CUDA back end reads and writes them. @param d_memory  device, a copy of `bytes()`, 16-byte
  /// aligned
  [[nodiscard]] RollingScoresView view_at(void* d_memory) const {
    return {static_cast<RollingScoresView::Unit*>(d_memory), id_};
  }

 private:
  std::vector<RollingScoresView::Unit> units_;
  std::vector<std::int64_t> layers_;  ///< units of each
  std::uint64_t id_ = 0;
};

/// @brief Scores of new tokens: that of token t of a head of a sequence of a layer is at `layer * layer_stride +
/// sequence * sequence_stride + kv_head * head_stride + t`. Host or device, as the back end; heads without scored slots
/// read none.
struct TokenScores {
  float const* data = nullptr;
  std::int64_t layer_stride = 0;  ///< of the new tokens' layers
  std::int64_t sequence_stride = 0;
  std::int64_t head_stride = 0;

  /// @brief Scores [layers, num_sequences, num_kv_heads, max_count], back to back.
  [[nodiscard]] static constexpr TokenScores contiguous(float const* data, std::int64_t num_sequences,
                                                        std::int64_t num_kv_heads, std::int64_t max_count) {
    return {data, num_sequences * num_kv_heads * max_count, num_kv_heads * max_count, max_count};
  }
  /// The scores of a head's new tokens.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr float const* of(std::int64_t layer, std::int64_t sequence,
                                                                std::int64_t kv_head) const {
    return data + layer * layer_stride + sequence * sequence_stride + kv_head * head_stride;
  }
};

namespace detail {

/// @param max_scored, id  of the slots. @throws ArgumentError unless these are records of these slots
inline void check_scores(std::int32_t max_scored, std::uint64_t id, RollingScoresView const& scores,
                         char const* where) {
  if (max_scored == 0) return;
  require_pointer(scores.memory, "scores", where);
  require_aligned(scores.memory, "scores", where);
  require(scores.id == id, "scores", "records made for these slots", "those of other slots", where);
}
inline void check_scores(RollingSlotsView const& slots, RollingScoresView const& scores, char const* where) {
  check_scores(slots.max_scored, slots.id, scores, where);
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
