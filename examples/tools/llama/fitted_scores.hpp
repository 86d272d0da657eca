#pragma once

// Sums over the pieces that scores are fitted to, which a later run goes on with.

#include "tools/llama/ridge.hpp"
#include "tools/llama/score_calibration.hpp"
#include "tools/llama/score_choice.hpp"
#include "tools/llama/second_reading.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/json_text.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/npy.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/score/budgets.hpp>
#include <headaware/score/score_features.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace llama_adapter {

/// ln of probabilities, none below the floor's.
[[nodiscard]] inline std::vector<float> log_of(std::span<float const> probabilities, double floor) {
  std::vector<float> result(probabilities.size());
  std::transform(probabilities.begin(), probabilities.end(), result.begin(),
                 [&](float p) { return std::log(std::max(p, static_cast<float>(floor))); });
  return result;
}

/// What the pieces that weights are fitted to add up to; goes to files after each, and comes from there.
class FittedScores {
 public:
  FittedScores(headaware::ModelShape const& shape, ScoreOptions const& options, std::string source)
      : options_(&options), source_(std::move(source)), folder_(options.output_dir / "scores_state"), heads_(shape) {
    for (std::int32_t i = 0; i < shape.num_layers(); ++i) {
      headaware::LayerShape const& layer = shape.layer(i);
      if (layer.has_cache()) {
        sums_.emplace_back(RidgeSums(headaware::ScoreFeatures::of(layer).count(), layer.num_kv_heads));
      } else {
        sums_.emplace_back(std::nullopt);
      }
    }
    counts_.assign(options.shares.size(), std::vector<double>(num_heads()));
    restore();
  }

  [[nodiscard]] std::int64_t pieces() const { return pieces_; }
  [[nodiscard]] std::size_t num_heads() const { return static_cast<std::size_t>(heads_.heads().total()); }
  [[nodiscard]] std::size_t first_head(std::int32_t layer) const {
    return static_cast<std::size_t>(heads_.heads().first(layer));
  }

  void add(ReadLayer const& layer) {
    sums_[static_cast<std::size_t>(layer.layer)]->add(layer.features, log_of(layer.probabilities, options_->floor));
    probabilities_.insert(probabilities_.end(), layer.probabilities.begin(), layer.probabilities.end());
  }
  /// The layers of a piece are all there.
  void finish_piece() {
    auto const order = best_first(probabilities_);
    for (std::size_t i = 0; i < options_->shares.size(); ++i) {
      auto const counts = count_by_head(chosen(order, rows_of(options_->shares[i], order.size())), num_heads());
      for (std::size_t head = 0; head < counts.size(); ++head) counts_[i][head] += static_cast<double>(counts[head]);
    }
    probabilities_.clear();
    ++pieces_;
    save();
  }

  [[nodiscard]] headaware::ReconstructionBudgets budgets() const {
    headaware::ReconstructionBudgets result{options_->shares, counts_};
    auto const tokens = static_cast<double>(pieces_ * options_->piece_tokens);
    for (auto& counts : result.heads) {
      for (double& count : counts) count /= tokens;
    }
    return result;
  }
  /// [layers], as `headaware::RowScorer` has them.
  [[nodiscard]] std::vector<std::vector<float>> weights(double penalty) const {
    std::vector<std::vector<float>> result;
    for (auto const& sums : sums_) result.push_back(sums ? sums->solve(penalty) : std::vector<float>{});
    return result;
  }
  /// They are as large as the statistics of all layers, and not needed once there are scores.
  void remove_files() const {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

 private:
  [[nodiscard]] std::filesystem::path sums_file(std::int64_t pieces) const {
    return folder_ / ("sums_" + std::to_string(pieces) + ".npy");
  }

  void save() const {
    support::make_folder(folder_);
    std::vector<double> all;
    for (auto const& sums : sums_) {
      if (!sums) continue;
      auto const state = sums->state();
      all.insert(all.end(), state.begin(), state.end());
    }
    headaware::save_npy(sums_file(pieces_), headaware::NpyArray::of<double>({std::ssize(all)}, all));
    support::write_json(folder_ / "state.json",
                        nlohmann::ordered_json{{"source", source_}, {"pieces", pieces_}, {"counts", counts_}});
    std::error_code ignored;
    std::filesystem::remove(sums_file(pieces_ - 1), ignored);
  }

  void restore() {
    if (!std::filesystem::exists(folder_ / "state.json")) return;
    std::string const name = (folder_ / "state.json").string();
    try {
      auto const state = nlohmann::json::parse(headaware::read_text_file(name));
      if (state.at("source") != support::as_written(source_)) return;
      auto const pieces = state.at("pieces").get<std::int64_t>();
      auto counts = state.at("counts").get<std::vector<std::vector<double>>>();
      bool fits = counts.size() == counts_.size() && pieces >= 0 && pieces <= options_->pieces;
      for (auto const& each : counts) fits = fits && each.size() == num_heads();
      if (!fits)
        throw headaware::FormatError({"saved counts", "those of this model and these options", "others", name});
      auto const array = headaware::load_npy(sums_file(pieces));
      std::span<double const> left = array.as<double>();
      for (auto& sums : sums_) {
        if (!sums) continue;
        auto const size = std::min(static_cast<std::size_t>(sums->state_size()), left.size());
        sums->restore(left.first(size));
        left = left.subspan(size);
      }
      pieces_ = pieces;
      counts_ = std::move(counts);
    } catch (nlohmann::json::exception const& error) {
      throw headaware::FormatError(
          {"saved sums", "what an earlier run wrote (remove the folder to begin anew)", error.what(), name});
    }
  }

  ScoreOptions const* options_;
  std::string source_;
  std::filesystem::path folder_;
  headaware::PolicyTable heads_;
  std::vector<std::optional<RidgeSums>> sums_;  ///< [layers]
  std::vector<std::vector<double>> counts_;     ///< [shares][KV heads]
  std::vector<float> probabilities_;            ///< of the piece under way: [KV heads, tokens]
  std::int64_t pieces_ = 0;
};

}  // namespace llama_adapter
