#pragma once

// Hulls over windows and formats together: the lower hull of a head's window hulls, one per pair of formats.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/plan/detail/cache_costs.hpp>
#include <headaware/plan/detail/hulls.hpp>
#include <headaware/plan/detail/lower_hull.hpp>
#include <headaware/plan/detail/scored_candidates.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/kv_errors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @brief Hulls of heads over their bytes. The windows' hull of a head is the same in all formats but for the bytes of
/// a row and the error of rounding, which adds to that of dropping; it is made once (and once more for each number of
/// rows per page).
class PairHulls {
 public:
  /// @param errors, choice  borrowed
  /// @param scored          whether heads may have scored slots
  /// @throws ArgumentError naming the formats whose errors are known, if one is chosen whose are not
  PairHulls(KvErrors const& errors, FormatChoice const& choice, std::int64_t page_size, bool scored, char const* where)
      : errors_(&errors), choice_(&choice), page_size_(page_size), scored_(scored) {
    for (HeadFormats const& pair : choice.pairs) {
      places_.push_back({errors.format_place(pair.key, where), errors.format_place(pair.value, where)});
    }
  }

  /// Goes on with the heads of a layer. @param slides  whether a window of its own bounds what they see
  void of_layer(RowChannels const& channels, std::int64_t visible, bool slides) {
    Layer const layer{channels, visible, slides};
    if (layer == layer_) return;
    layer_ = layer;
    pairs_.clear();
    for (std::size_t i = 0; i < places_.size(); ++i) {
      Places const places{places_[i].key, channels.value_dim > 0 ? places_[i].value : -1};
      RowPages const pages = choice_->pages(choice_->pairs[i], channels, page_size_);
      pairs_.push_back({static_cast<std::int32_t>(i), places, pages, 0, {}});
      if (scored_ && !slides) pairs_.back().with_slots = scored_candidates(*errors_->scored, visible, pages, true);
    }
    std::stable_sort(pairs_.begin(), pairs_.end(), [](Pair const& a, Pair const& b) {
      return a.pages.rows != b.pages.rows ? a.pages.rows > b.pages.rows : a.pages.bytes < b.pages.bytes;
    });
    sizes_.clear();
    for (Pair& pair : pairs_) {
      std::int64_t const rows = pair.pages.rows;
      if (sizes_.empty() || sizes_.back().rows != rows) {
        sizes_.push_back({rows, whole_pages(visible, rows), head_candidates(errors_->grid, visible, slides, rows)});
      }
      pair.sizes = sizes_.size() - 1;
    }
  }

  /// Appends a head's hull. @param head  of the layer
  void append(std::size_t head, std::int64_t floor, std::vector<HullPoint>& hull) {
    merged_.clear();
    double least = std::numeric_limits<double>::infinity();
    std::size_t sizes = sizes_.size();  // that `windows_` are of
    for (Pair const& pair : pairs_) {
      double const rounding = errors_->rounding_error(head, pair.places.key, pair.places.value);
      if (rounding >= least) continue;  // costs no less than another and loses no less
      least = rounding;
      if (pair.sizes != sizes) {
        sizes = pair.sizes;
        windows_.clear();
        append_hull(sizes_[sizes].candidates, errors_->of(head), floor, sizes_[sizes].full, windows_);
      }
      merge(pair, rounding);
      if (pair.with_slots.empty()) continue;
      scored_points(pair.with_slots, errors_->scored_of(head), floor, rounding, pair.number, points_);
      merge_into_hull(merged_, points_, next_);
    }
    hull.insert(hull.end(), merged_.begin(), merged_.end());
  }

 private:
  struct Layer {
    RowChannels channels;
    std::int64_t visible = -1;
    bool slides = false;
    friend bool operator==(Layer const&, Layer const&) = default;
  };
  struct Places {  ///< of errors in `KvErrors`
    std::int32_t key;
    std::int32_t value;
  };
  struct Pair {
    std::int32_t number;  ///< in the choice
    Places places;
    RowPages pages;
    std::size_t sizes;  ///< in `sizes_`
    std::vector<ScoredCandidate> with_slots;
  };
  struct Sizes {
    std::int64_t rows;  ///< per page
    std::int64_t full;
    std::vector<Candidate> candidates;
  };

  /// The hull of what is merged and of the windows in one more pair of formats.
  void merge(Pair const& pair, double rounding) {
    points_.assign(windows_.begin(), windows_.end());
    for (HullPoint& point : points_) {
      point.error += rounding;
      point.pair = pair.number;
      point.cost = pair.pages.bytes_of(point.tokens);
    }
    merge_into_hull(merged_, points_, next_);
  }

  KvErrors const* errors_;
  FormatChoice const* choice_;
  std::int64_t page_size_;
  bool scored_;
  std::vector<Places> places_;  ///< [pairs of the choice]
  Layer layer_{};
  std::vector<Pair> pairs_;  ///< of the layer, by the cost of a row
  std::vector<Sizes> sizes_;
  std::vector<HullPoint> windows_;
  std::vector<HullPoint> points_;  ///< to be merged
  std::vector<HullPoint> merged_;
  std::vector<HullPoint> next_;
};

/// The hulls where heads choose among formats. @param channels  [num_layers]
[[nodiscard]] inline Hulls all_hulls(KvErrors const& errors, CacheCosts const& costs, std::vector<bool> const& pruned,
                                     std::int64_t floor, std::int64_t page_size, bool scored,
                                     FormatChoice const& choice, std::span<RowChannels const> channels) {
  if (!choice.by_bytes()) return all_hulls(errors, costs, pruned, floor, page_size, scored);
  Hulls hulls;
  hulls.first.reserve(pruned.size() + 1);
  PairHulls pairs(errors, choice, page_size, scored, "plan_policies");
  std::size_t head = 0;
  for (std::int32_t layer = 0; layer < costs.heads().num_layers; ++layer) {
    if (costs.heads().count(layer) == 0) continue;
    pairs.of_layer(channels[static_cast<std::size_t>(layer)], costs.visible(layer), costs.window(layer) != 0);
    for (std::int32_t i = 0; i < costs.heads().count(layer); ++i, ++head) {
      hulls.first.push_back(hulls.points.size());
      if (!pruned[head]) pairs.append(head, floor, hulls.points);
    }
  }
  hulls.first.push_back(hulls.points.size());
  return hulls;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
