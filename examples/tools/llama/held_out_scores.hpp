#pragma once

// How well fitted scores predict the pieces that were held out, and with which penalty.

#include "tools/llama/fitted_scores.hpp"
#include "tools/llama/score_calibration.hpp"
#include "tools/llama/score_choice.hpp"
#include "tools/llama/second_reading.hpp"

#include <headaware/io/row_scorer.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama_adapter {

/// Predictions of the pieces that are held out, by the weights of every penalty.
class HeldOutScores {
 public:
  HeldOutScores(FittedScores const& sums, ScoreOptions const& options) : sums_(&sums), options_(&options) {
    for (double const penalty : options.penalties) weights_.push_back(sums.weights(penalty));
    errors_.assign(options.penalties.size(), std::vector<double>(sums.num_heads()));
    moments_.resize(sums.num_heads());
  }

  void add(ReadLayer const& layer) {
    auto const tokens = static_cast<std::size_t>(options_->piece_tokens);
    auto const targets = log_of(layer.probabilities, options_->floor);
    std::size_t const heads = targets.size() / tokens;
    std::size_t const features = layer.features.size() / tokens;
    Piece& piece = pieces_.back();
    piece.targets.insert(piece.targets.end(), targets.begin(), targets.end());
    std::size_t const first = sums_->first_head(layer.layer);
    for (std::size_t head = 0; head < heads; ++head) {
      for (std::size_t t = 0; t < tokens; ++t) moments_[first + head].add(targets[head * tokens + t]);
    }
    for (std::size_t penalty = 0; penalty < weights_.size(); ++penalty) {
      float const* const weights = weights_[penalty][static_cast<std::size_t>(layer.layer)].data();
      for (std::size_t head = 0; head < heads; ++head) {
        for (std::size_t t = 0; t < tokens; ++t) {
          double score = 0;
          for (std::size_t i = 0; i < features; ++i) {
            score += double{weights[head * features + i]} * layer.features[t * features + i];
          }
          piece.scores[penalty].push_back(static_cast<float>(score));
          double const error = score - targets[head * tokens + t];
          errors_[penalty][first + head] += error * error;
        }
      }
    }
  }
  /// Another piece follows.
  void begin_piece() {
    pieces_.emplace_back();
    pieces_.back().scores.resize(weights_.size());
  }

  /// Sets weights and qualities. @param scorer  whose shape and budgets are known
  void choose(headaware::RowScorer& scorer) const {
    std::size_t const heads = sums_->num_heads();
    std::vector<std::size_t> best(heads);
    std::vector<double> r2(heads);
    for (std::size_t head = 0; head < heads; ++head) {
      for (std::size_t p = 1; p < weights_.size(); ++p) {
        if (errors_[p][head] < errors_[best[head]][head]) best[head] = p;
      }
      double const variance = moments_[head].squared_deviations();
      r2[head] = variance > 0 ? 1 - errors_[best[head]][head] / variance : 0;
    }
    headaware::SavedScores& saved = scorer.saved;
    auto const num_layers = static_cast<std::size_t>(saved.shape.num_layers());
    std::vector<Overlap> of_layers(num_layers);
    Overlap all;
    Overlap by_head;
    auto const tokens = static_cast<std::size_t>(options_->piece_tokens);
    double const mean = options_->overlap_share * static_cast<double>(tokens);
    auto const budgets =
        saved.budgets.tokens(mean, options_->piece_tokens, std::min<std::int64_t>(8, static_cast<std::int64_t>(mean)));
    for (Piece const& piece : pieces_) {
      std::vector<float> scores(piece.targets.size());
      for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = piece.scores[best[i / tokens]][i];
      std::size_t const count = rows_of(options_->overlap_share, scores.size());
      auto const wanted = chosen(best_first(piece.targets), count);
      auto const got = chosen(best_first(scores), count);
      all.add(wanted, got, 0, wanted.size());
      by_head.add(wanted, chosen_by_head(scores, budgets), 0, wanted.size());
      for_each_layer(saved.shape, [&](std::size_t layer, std::size_t first, std::size_t end) {
        of_layers[layer].add(wanted, got, first * tokens, end * tokens);
      });
    }
    saved.overlap = all.share();
    saved.overlap_by_head = by_head.share();
    saved.layers.assign(num_layers, {});
    scorer.weights.assign(num_layers, {});
    for_each_layer(saved.shape, [&](std::size_t layer, std::size_t first, std::size_t end) {
      saved.layers[layer].overlap = of_layers[layer].share();
      for (std::size_t head = first; head < end; ++head) {
        saved.layers[layer].r2 += r2[head] / static_cast<double>(end - first);
        auto const& from = weights_[best[head]][layer];
        std::size_t const each = from.size() / (end - first);
        auto const begin = from.begin() + static_cast<std::ptrdiff_t>((head - first) * each);
        scorer.weights[layer].insert(scorer.weights[layer].end(), begin, begin + static_cast<std::ptrdiff_t>(each));
      }
    });
  }

 private:
  struct Piece {
    std::vector<float> targets;              ///< [KV heads, tokens]
    std::vector<std::vector<float>> scores;  ///< [penalties], of [KV heads, tokens]
  };
  struct Moments {
    double count = 0;
    double sum = 0;
    double squares = 0;
    void add(double x) {
      count += 1;
      sum += x;
      squares += x * x;
    }
    /// Less than rounding leaves is nothing: targets that are all the floor.
    [[nodiscard]] double squared_deviations() const {
      double const result = squares - sum * sum / count;
      return result > 1e-9 * squares ? result : 0;
    }
  };

  /// @param body  (layer, its first KV head, the one after its last), of layers with a cache
  template <class Body>
  void for_each_layer(headaware::ModelShape const& shape, Body const& body) const {
    for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
      if (!shape.layer(layer).has_cache()) continue;
      std::size_t const first = sums_->first_head(layer);
      body(static_cast<std::size_t>(layer), first, first + static_cast<std::size_t>(shape.layer(layer).num_kv_heads));
    }
  }

  FittedScores const* sums_;
  ScoreOptions const* options_;
  std::vector<std::vector<std::vector<float>>> weights_;  ///< [penalties][layers], of [num_kv_heads, features]
  std::vector<std::vector<double>> errors_;               ///< [penalties][KV heads], squared
  std::vector<Moments> moments_;                          ///< [KV heads], of the targets
  std::vector<Piece> pieces_;
};

}  // namespace llama_adapter
