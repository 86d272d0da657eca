#pragma once

/// @file
/// Reads and writes weights of linear scores of rows, with what describes them: `scores.json` and the `.npy` files that
/// it names.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/content_hash.hpp>
#include <headaware/io/npy.hpp>
#include <headaware/io/scores.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/score/score_features.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The scores of a model's rows, ready for `score_rows`: on the CPU as they are, on CUDA copied to the device.
struct RowScorer {
  SavedScores saved;
  std::vector<std::vector<float>> weights;  ///< [layers], of [num_kv_heads, features]; empty without a cache

  [[nodiscard]] ScoreFeatures features(std::int32_t layer) const { return ScoreFeatures::of(saved.shape.layer(layer)); }
};

namespace detail {

[[nodiscard]] inline std::string weights_hash(std::vector<std::vector<float>> const& weights) {
  ContentHash hash;
  for (auto const& layer : weights) {
    hash.add(std::string_view(reinterpret_cast<char const*>(layer.data()), layer.size() * sizeof(float)));
  }
  return hash.text();
}

/// Extents of one layer's weights.
[[nodiscard]] inline std::vector<std::int64_t> weight_extents(LayerShape const& layer) {
  return {layer.num_kv_heads, ScoreFeatures::of(layer).count()};
}

[[nodiscard]] inline std::string extents_text(std::span<std::int64_t const> extents) {
  std::string text = "[";
  for (std::int64_t const extent : extents) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

/// @throws FormatError unless the array is of these extents, in single precision and finite
[[nodiscard]] inline NpyArray load_weights(std::filesystem::path const& path, std::vector<std::int64_t> const& shape) {
  NpyArray array = load_npy(path);
  if (array.shape != shape) {
    throw FormatError({"shape of weights", extents_text(shape), extents_text(array.shape), path.string()});
  }
  if (array.dtype != NpyType::f4) {
    throw FormatError({"elements of weights", "<f4", std::string(to_string(array.dtype)), path.string()});
  }
  auto const values = array.as<float>();
  auto const bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  if (bad != values.end()) {
    throw FormatError({"weight", "a finite number", std::to_string(*bad),
                       path.string() + ", element " + std::to_string(std::distance(values.begin(), bad))});
  }
  return array;
}

}  // namespace detail

/// @brief Reads `scores.json` of a folder, and the weights that it names.
/// @throws FormatError as `load_scores`, and naming a file whose weights are of another shape or type, truncated, not
///         finite, or not those that the document was written with; FileError if a file cannot be read
[[nodiscard]] inline RowScorer load_row_scorer(std::filesystem::path const& folder) {
  RowScorer result{load_scores(folder / "scores.json"), {}};
  auto const layers = result.saved.shape.layers();
  result.weights.resize(layers.size());
  auto const take = [](std::vector<float>& to, std::span<float const> from) { to.assign(from.begin(), from.end()); };
  if (result.saved.alike()) {
    std::vector<std::int64_t> shape = detail::weight_extents(layers.front());
    auto const each = static_cast<std::size_t>(shape[0] * shape[1]);
    shape.insert(shape.begin(), std::ssize(layers));
    NpyArray const array = detail::load_weights(folder / result.saved.weight_files.front(), shape);
    for (std::size_t i = 0; i < layers.size(); ++i) take(result.weights[i], array.as<float>().subspan(i * each, each));
  } else {
    std::size_t file = 0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!layers[i].has_cache()) continue;
      NpyArray const array =
          detail::load_weights(folder / result.saved.weight_files[file++], detail::weight_extents(layers[i]));
      take(result.weights[i], array.as<float>());
    }
  }
  if (std::string const hash = detail::weights_hash(result.weights); hash != result.saved.weight_hash) {
    throw FormatError({"weights' hash", result.saved.weight_hash + ", as scores.json has it", hash,
                       (folder / result.saved.weight_files.front()).string()});
  }
  return result;
}

/// @brief Writes the weights, then `scores.json`, each whole or not at all; a reader refuses old ones beside new ones.
/// @param scorer  whose names of files and hash are set here
/// @throws ArgumentError if something cannot be in the files, FileError if they cannot be written
inline void save_row_scorer(std::filesystem::path const& folder, RowScorer& scorer) {
  auto const layers = scorer.saved.shape.layers();
  require(scorer.weights.size() == layers.size(), "layers of weights", layers.size(), scorer.weights.size(),
          "save_row_scorer");
  std::vector<NpyArray> arrays;
  scorer.saved.weight_files.clear();
  bool const alike = scorer.saved.alike();
  std::vector<float> all;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    auto const shape = layers[i].has_cache() ? detail::weight_extents(layers[i]) : std::vector<std::int64_t>{0, 0};
    auto const& weights = scorer.weights[i];
    require(std::ssize(weights) == shape[0] * shape[1], "weights", shape[0] * shape[1], weights.size(),
            {"save_row_scorer, layer ", i});
    for (float const weight : weights) {
      require(std::isfinite(weight), "weight", "a finite number", weight, {"save_row_scorer, layer ", i});
    }
    if (alike) {
      all.insert(all.end(), weights.begin(), weights.end());
    } else if (layers[i].has_cache()) {
      arrays.push_back(NpyArray::of<float>(shape, weights));
      scorer.saved.weight_files.push_back("scores_" + std::to_string(i) + ".npy");
    }
  }
  if (alike) {
    std::vector<std::int64_t> shape = detail::weight_extents(layers.front());
    shape.insert(shape.begin(), std::ssize(layers));
    arrays.push_back(NpyArray::of<float>(shape, all));
    scorer.saved.weight_files.emplace_back("scores.npy");
  }
  scorer.saved.weight_hash = detail::weights_hash(scorer.weights);
  validate_scores(scorer.saved, "save_row_scorer");
  for (std::size_t i = 0; i < arrays.size(); ++i) save_npy(folder / scorer.saved.weight_files[i], arrays[i]);
  save_scores(folder / "scores.json", scorer.saved);
}

HEADAWARE_NAMESPACE_END
