#pragma once

/// @file
/// The sizes of a compressed cache, known before anything moves.

#include <headaware/cache/page_sizes.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/token_bytes.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Number of pages of `page_size` tokens for so many tokens, without overflow. @pre  tokens >= 0, page_size > 0
[[nodiscard]] constexpr std::int64_t pages_for(std::int64_t tokens, std::int64_t page_size) {
  return tokens / page_size + (tokens % page_size != 0 ? 1 : 0);
}

/// Place of an error about a segment; builds its text only on failure.
struct PlaceOf {
  char const* where;
  SegmentName segment;
  PlaceOf(char const* place, SegmentName const& name) : where(place), segment(name) {}
  PlaceOf(char const* place, Segment const& of) : where(place), segment(of.name()) {}
  std::string operator()() const {
    return Text({where, ", layer ", segment.layer, ", sequence ", segment.sequence, ", KV head ", segment.kv_head})
        .str();
  }
};

}  // namespace detail

/// @brief Kept tokens of every (layer, sequence, KV head), and the rows, pages and bytes that follow.
///
/// The base of `Compaction`, which makes it. Copies stand alone: they hold no policies. Empty once moved from.
class CacheSizes {
 public:
  /// No layer, no sequence.
  CacheSizes() = default;

  [[nodiscard]] std::int32_t num_layers() const { return heads().num_layers; }
  /// KV heads of every layer; where they differ, of the layer that has most.
  [[nodiscard]] std::int32_t num_kv_heads() const { return heads().num_kv_heads; }
  /// KV heads of one layer. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int32_t num_kv_heads(std::int32_t layer) const {
    check_layer(layer);
    return heads().count(layer);
  }
  /// Numbers of KV heads of all layers; valid while these live unchanged.
  [[nodiscard]] LayerHeads heads() const { return counts_.view(); }
  [[nodiscard]] std::int32_t num_sequences() const { return static_cast<std::int32_t>(lengths_.size()); }
  /// Segments of one layer. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int64_t layer_segments(std::int32_t layer) const {
    return std::int64_t{num_sequences()} * num_kv_heads(layer);
  }
  /// The number of a layer's first segment. @pre 0 <= layer <= num_layers
  [[nodiscard]] std::int64_t first_segment(std::int32_t layer) const { return num_sequences() * heads().first(layer); }
  [[nodiscard]] std::int64_t num_segments() const { return num_sequences() * heads().total(); }
  /// Tokens of each sequence before compression, [num_sequences].
  [[nodiscard]] std::span<std::int32_t const> lengths() const { return {lengths_.data(), lengths_.size()}; }
  [[nodiscard]] std::int64_t max_length() const {
    return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
  }

  /// One segment with all its sizes. @throws ArgumentError if there is no such segment
  [[nodiscard]] Segment segment(std::int64_t s) const {
    require_index(s, num_segments(), "segment", "CacheSizes::segment");
    Segment result = detail::segment_at(s, num_sequences(), heads());
    HeadPlace const& head = places_[index(heads().first(result.layer) + result.kv_head)];
    result.length = lengths_[index(result.sequence)];
    result.kept = offset(s + 1) - offset(s);
    result.first_row = offset(s) - offset(first_segment(result.layer));
    result.group_head = head.rank;
    result.full_group = head.group == detail::HeadGroup::full;
    return result;
  }

  /// Tokens that a segment keeps. @throws ArgumentError if there is no such segment
  [[nodiscard]] std::int64_t kept(std::int64_t s) const {
    require_index(s, num_segments(), "segment", "CacheSizes::kept");
    return offset(s + 1) - offset(s);
  }
  /// Tokens that one head of one sequence keeps. @throws ArgumentError if it is out of range
  [[nodiscard]] std::int64_t kept(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head) const {
    check_layer(layer);
    require_index(sequence, num_sequences(), "sequence", "CacheSizes::kept");
    require_index(kv_head, num_kv_heads(layer), "KV head", "CacheSizes::kept");
    return kept(first_segment(layer) + std::int64_t{sequence} * num_kv_heads(layer) + kv_head);
  }

  /// Rows (tokens of a head) that the whole model keeps.
  [[nodiscard]] std::int64_t kept_total() const { return offset(num_segments()); }
  /// Rows that one layer keeps.
  [[nodiscard]] std::int64_t kept_total(std::int32_t layer) const {
    return layer_begin(layer + 1) - layer_begin(layer);
  }
  /// Rows before compression: every head holds every token that its layer sees.
  [[nodiscard]] std::int64_t full_total() const {
    std::int64_t rows = 0;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
      std::int64_t const more = full_rows(layer);
      if (detail::sum_overflows(rows, more)) detail::refuse_size("rows of all layers", "CacheSizes::full_total");
      rows += more;
    }
    return rows;
  }
  /// Rows of one layer before compression.
  [[nodiscard]] std::int64_t full_rows(std::int32_t layer) const {
    std::int64_t tokens = 0;
    for (std::int32_t sequence = 0; sequence < num_sequences(); ++sequence) tokens += full_length(layer, sequence);
    return detail::elements("CacheSizes::full_rows", {tokens, num_kv_heads(layer)});
  }
  /// Tokens that a layer's heads hold of a sequence before compression: all, or in a layer that slides those within its
  /// window. @throws ArgumentError if layer or sequence is out of range
  [[nodiscard]] std::int64_t full_length(std::int32_t layer, std::int32_t sequence) const {
    check_layer(layer);
    require_index(sequence, num_sequences(), "sequence", "CacheSizes::full_length");
    std::int32_t const window = windows_.empty() ? 0 : windows_[index(layer)];
    std::int32_t const length = lengths_[index(sequence)];
    return window != 0 ? std::min(window, length) : length;
  }
  /// The most tokens that any head keeps.
  [[nodiscard]] std::int64_t max_kept() const {
    std::int64_t most = 0;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) most = std::max(most, max_kept(layer));
    return most;
  }
  /// The most tokens that any head of the layer keeps.
  [[nodiscard]] std::int64_t max_kept(std::int32_t layer) const {
    check_layer(layer);
    std::int64_t most = 0;
    for (std::int64_t s = first_segment(layer); s < first_segment(layer + 1); ++s) {
      most = std::max(most, kept(s));
    }
    return most;
  }

  /// Prefix sums of kept rows over all segments, [num_segments + 1].
  [[nodiscard]] std::span<std::int64_t const> offsets() const { return {offsets_.data(), offsets_.size()}; }
  /// The first row of a layer when all layers lie back to back. @pre 0 <= layer <= num_layers
  [[nodiscard]] std::int64_t layer_begin(std::int32_t layer) const {
    if (layer != num_layers()) check_layer(layer);
    return offset(first_segment(layer));
  }
  /// @brief A layer's offsets as FlashAttention takes them, heads folded into the batch:
  /// [num_sequences * num_kv_heads(layer) + 1].
  /// @throws ArgumentError if the layer keeps more rows than int32 counts
  [[nodiscard]] std::vector<std::int32_t> cu_seqlens(std::int32_t layer) const {
    require(kept_total(layer) <= std::numeric_limits<std::int32_t>::max(), "rows of a layer",
            "at most 2147483647 for 32-bit cu_seqlens", kept_total(layer), "CacheSizes::cu_seqlens");
    std::vector<std::int32_t> result;
    for (std::int64_t s = 0; s <= layer_segments(layer); ++s) {
      result.push_back(static_cast<std::int32_t>(offset(first_segment(layer) + s) - layer_begin(layer)));
    }
    return result;
  }

  /// Where a layer's entries begin in `DeviceCompaction::d_cu_seqlens`, which has one more per layer than segments.
  /// @pre 0 <= layer <= num_layers
  [[nodiscard]] std::int64_t cu_seqlens_begin(std::int32_t layer) const { return first_segment(layer) + layer; }

  /// Pages that the whole model keeps when every head owns its pages. Bytes of a pool that all layers share:
  /// `page_bytes` each.
  [[nodiscard]] std::int64_t pages_total(PageSizes const& page_sizes) const {
    page_sizes.check(num_layers(), "CacheSizes::pages_total");
    std::int64_t pages = 0;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) pages += pages_total(layer, page_sizes.of(layer));
    return pages;
  }
  /// The same of one layer.
  [[nodiscard]] std::int64_t pages_total(std::int32_t layer, std::int64_t page_size) const {
    require(page_size > 0, "page size", "> 0", page_size, "CacheSizes::pages_total");
    check_layer(layer);
    std::int64_t pages = 0;
    for (std::int64_t s = first_segment(layer); s < first_segment(layer + 1); ++s) {
      pages += detail::pages_for(kept(s), page_size);
    }
    return pages;
  }
  /// @brief Leading pages that a sequence still needs after compaction in place, where a page holds
  /// all heads of all layers' tensors: the rest may go back to the allocator.
  [[nodiscard]] std::int64_t pages_needed(std::int32_t sequence, std::int64_t page_size) const {
    require(page_size > 0, "page size", "> 0", page_size, "CacheSizes::pages_needed");
    std::int64_t most = 0;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
      for (std::int32_t head = 0; head < num_kv_heads(layer); ++head)
        most = std::max(most, kept(layer, sequence, head));
    }
    return detail::pages_for(most, page_size);
  }

  /// Bytes of the kept keys and values; exact for ragged caches. @throws ArgumentError beyond 64 bits, like all bytes
  /// here
  [[nodiscard]] std::int64_t bytes_held(LayerBytes const& token) const {
    return detail::sum_layer_bytes("CacheSizes::bytes_held", num_layers(), token,
                                   [&](std::int32_t layer) { return kept_total(layer); });
  }
  /// The same for keys and values alike. @param head_dim channels; @param element_bytes bytes per element
  [[nodiscard]] std::int64_t bytes_held(std::int64_t head_dim, std::size_t element_bytes) const {
    return bytes_held(TokenBytes::of(head_dim, element_bytes));
  }
  /// Bytes of the pages that hold them when every head owns its pages, and these are as wide as their layer's rows.
  [[nodiscard]] std::int64_t bytes_held_paged(PageSizes const& page_sizes, LayerBytes const& token) const {
    page_sizes.check(num_layers(), "CacheSizes::bytes_held_paged");
    return detail::sum_layer_bytes("CacheSizes::bytes_held_paged", num_layers(), token, [&](std::int32_t layer) {
      return detail::elements("CacheSizes::bytes_held_paged",
                              {pages_total(layer, page_sizes.of(layer)), page_sizes.of(layer)});
    });
  }
  /// Bytes before compression: all tokens, or of layers that slide those within their windows (where the policies come
  /// as a `PolicyTable`, which knows them).
  [[nodiscard]] std::int64_t bytes_full(LayerBytes const& token) const {
    return detail::sum_layer_bytes("CacheSizes::bytes_full", num_layers(), token,
                                   [&](std::int32_t layer) { return full_rows(layer); });
  }

  /// Whether a head has a place in a grouped cache: pruned heads have none.
  [[nodiscard]] bool has_group(std::int32_t layer, std::int32_t kv_head) const {
    return places_[index(heads().first(layer) + kv_head)].group != detail::HeadGroup::none;
  }
  /// @brief Divides a layer's heads into the full and the streaming group of a grouped cache, and sizes both dense
  /// tensors. Pruned heads are in neither.
  [[nodiscard]] LayerCapacity grouped_capacity(std::int32_t layer) const {
    check_layer(layer);
    LayerCapacity capacity{.num_kv_heads = num_kv_heads(layer)};
    for (std::int64_t s = first_segment(layer); s < first_segment(layer + 1); ++s) {
      Segment const segment = this->segment(s);
      auto const group = places_[index(heads().first(layer) + segment.kv_head)].group;
      std::int32_t const counted = segment.sequence == 0 ? 1 : 0;
      if (group == detail::HeadGroup::full) {
        capacity.full_heads += counted;
        capacity.full_head_rows = std::max(capacity.full_head_rows, segment.kept);
      } else if (group == detail::HeadGroup::window) {
        capacity.window_heads += counted;
        capacity.head_rows = std::max(capacity.head_rows, segment.kept);
      }
    }
    capacity.rows =
        num_sequences() * (capacity.full_heads * capacity.full_head_rows + capacity.window_heads * capacity.head_rows);
    return capacity;
  }

 protected:
  /// @param kept   (segment number) to the tokens that it keeps
  /// @param group  (layer, KV head) to the head's group in grouped caches
  /// @param window  (layer) to the tokens that it sees at most; 0: all
  template <class Kept, class Group, class Window>
  CacheSizes(LayerHeads const& heads, std::span<std::int32_t const> lengths, Kept const& kept, Group const& group,
             Window const& window)
      : counts_(heads), lengths_(lengths.begin(), lengths.end()) {
    bool slides = false;
    for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
      windows_.push_back(window(layer));
      slides = slides || windows_.back() != 0;
    }
    if (!slides) windows_.clear();
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      require(lengths[i] >= 0, "negative length", "tokens >= 0", lengths[i], {"Compaction, sequence ", i});
    }
    offsets_.resize(index(num_segments()) + 1);
    for (std::int64_t s = 0; s < num_segments(); ++s) {
      Segment const segment = detail::segment_at(s, num_sequences(), heads);
      std::int64_t const length = lengths[index(segment.sequence)];
      std::int64_t const tokens = kept(s);
      require(tokens >= 0 && tokens <= length, "kept tokens", {"in [0, ", length, "]"}, tokens,
              detail::PlaceOf{"Compaction", segment});
      offsets_[index(s) + 1] = offsets_[index(s)] + tokens;
    }
    for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
      std::int32_t ranks[3] = {};
      for (std::int32_t head = 0; head < heads.count(layer); ++head) {
        detail::HeadGroup const of_head = group(layer, head);
        places_.push_back({of_head, ranks[static_cast<std::size_t>(of_head)]++});
      }
    }
  }

 private:
  /// Place of a head in a grouped cache.
  struct HeadPlace {
    detail::HeadGroup group;
    std::int32_t rank;  ///< heads of its group before it
  };

  template <class I>
  static std::size_t index(I i) {
    return static_cast<std::size_t>(i);
  }
  /// Rows before a segment; 0 once moved from.
  [[nodiscard]] std::int64_t offset(std::int64_t s) const { return offsets_.empty() ? 0 : offsets_[index(s)]; }
  void check_layer(std::int32_t layer) const { require_index(layer, num_layers(), "layer", "CacheSizes"); }

  detail::HeadCounts counts_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::int64_t> offsets_;
  std::vector<HeadPlace> places_;        ///< one per KV head of every layer
  std::vector<std::int32_t> windows_{};  ///< [num_layers]; empty where none slides
};

HEADAWARE_NAMESPACE_END
