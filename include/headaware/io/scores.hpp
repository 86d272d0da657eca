#pragma once

/// @file
/// Reads, checks and writes `scores.json`, which describes the weights of linear scores of rows.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/shape_fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/score/budgets.hpp>
#include <headaware/score/score_features.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief How well one layer's scores predict what the second reading of a text that they were not fitted to looks at.
struct ScoreQuality {
  double r2 = 0;       ///< share of the variance of the logarithm that they explain, mean of the KV heads; may be < 0
  double overlap = 0;  ///< share of the layer's rows among the best of all layers that they choose too

  friend bool operator==(ScoreQuality const&, ScoreQuality const&) = default;
};

/// @brief One `scores.json`.
struct SavedScores {
  std::string model;          ///< its name
  std::string source;         ///< what tells this measurement from others: the model's file, the text's tokens
  ModelShape shape;           ///< with the channels of every layer
  std::string instruction;    ///< between the two readings
  std::int32_t pieces = 0;    ///< of text, that the weights are fitted to
  std::int32_t held_out = 0;  ///< of text, that penalties are chosen by and the qualities are told of
  std::int64_t piece_tokens = 0;
  double floor = 0;                  ///< probabilities below it count as it
  std::vector<ScoreQuality> layers;  ///< [layers]; zeros of layers without a cache
  double overlap_share = 0;          ///< share of all rows that the overlaps are told of
  double overlap = 0;                ///< of all layers together, chosen by one threshold
  double overlap_by_head = 0;        ///< the same, where every head chooses as many as its budget
  ReconstructionBudgets budgets;
  /// Files of float32 weights in the same folder: one, [layers, num_kv_heads, features], or where layers differ one for
  /// each that has a cache, [num_kv_heads, features]; features as `ScoreFeatures`.
  std::vector<std::string> weight_files;
  std::string weight_hash;  ///< of their elements: FNV-1a, 64 bits, hexadecimal

  /// Whether the weights of all layers are in one file.
  [[nodiscard]] bool alike() const { return shape.uniform(); }
  /// Files of weights that there must be.
  [[nodiscard]] std::size_t num_weight_files() const {
    if (alike()) return 1;
    std::size_t count = 0;
    for (LayerShape const& layer : shape.layers()) {
      if (layer.has_cache()) ++count;
    }
    return count;
  }

  friend bool operator==(SavedScores const&, SavedScores const&) = default;
};

namespace detail {

inline constexpr std::string_view scores_format = "headaware.scores";
inline constexpr std::int32_t scores_version = 1;
/// `ScoreFeatures`, in words: a reader that makes other features of a token must not use the weights.
inline constexpr std::string_view scores_features =
    "queries, keys (before rotary embedding), values, ln norms of keys, ln norms of values, 1";

/// Numbers of the document, in its order.
template <class Fields, class Saved>
void score_fields(Fields&& f, Saved& saved) {
  f.integer("pieces", saved.pieces, 1, max_int32);
  f.integer("held_out", saved.held_out, 0, max_int32);
  f.integer("piece_tokens", saved.piece_tokens, 1, max_json_count);
  f.not_negative("floor", saved.floor);
  f.share("overlap_share", saved.overlap_share);
  f.share("overlap", saved.overlap);
  f.share("overlap_by_head", saved.overlap_by_head);
}
template <class Fields, class Quality>
void quality_fields(Fields&& f, Quality& quality) {
  f.number("r2", quality.r2);
  f.share("overlap", quality.overlap);
}

}  // namespace detail

/// @brief Checks that a file can hold scores: `format_scores` does.
/// @throws ArgumentError on a shape without channels, lists of other lengths, and numbers out of range
inline void validate_scores(SavedScores const& saved, Text const& where = "SavedScores") {
  auto const counts = detail::kv_heads_of(saved.shape);
  detail::require_head_count(counts.view().total(), where);
  for (std::int32_t i = 0; i < saved.shape.num_layers(); ++i) {
    LayerShape const& layer = saved.shape.layer(i);
    if (layer.has_cache()) ScoreFeatures::of(layer).validate({where, ", layer ", i});
  }
  detail::score_fields(detail::FieldChecker(where), saved);
  auto const num_layers = static_cast<std::size_t>(saved.shape.num_layers());
  require(saved.layers.size() == num_layers, "qualities of layers", num_layers, saved.layers.size(), where);
  for (ScoreQuality const& quality : saved.layers) detail::quality_fields(detail::FieldChecker(where), quality);
  saved.budgets.validate(where);
  require(
      saved.budgets.shares.empty() || static_cast<std::int64_t>(saved.budgets.num_kv_heads()) == counts.view().total(),
      "KV heads of a budget", counts.view().total(), saved.budgets.num_kv_heads(), where);
  require(saved.weight_files.size() == saved.num_weight_files(), "files of weights", saved.num_weight_files(),
          saved.weight_files.size(), where);
  for (std::string const& file : saved.weight_files) {
    bool const name = !file.empty() && file.find('/') == std::string::npos;
    require(name, "file of weights", "the name of a file in the same folder", file, where);
  }
}

/// @brief Reads the text of a `scores.json`: `{format, version, model, source, features, instruction, pieces, held_out,
/// piece_tokens, floor, overlap_share, overlap, overlap_by_head, num_layers, layers[…], quality[{r2, overlap}],
/// budgets[{share, heads[…]}], weights{files[…], hash}}`.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, of another format,
///         version or other features, a field is missing, of another type or out of range, or lists do not fit the
///         shape
[[nodiscard]] inline SavedScores parse_scores(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();
  detail::read_format(root, detail::scores_format, detail::scores_version);
  SavedScores saved;
  saved.model = root.get("model", "a string").string();
  saved.source = root.get("source", "a string").string();
  JsonValue const features = root.get("features", "a string");
  if (features.string() != detail::scores_features) {
    features.fail("features of a token", detail::scores_features, features.string());
  }
  saved.instruction = root.get("instruction", "a string").string();
  detail::FieldReader fields(root);
  detail::score_fields(fields, saved);
  std::int32_t num_layers = 0;
  fields.integer("num_layers", num_layers, 1, detail::max_index);
  saved.shape = detail::read_layers(fields.json().get("layers", "an array"), num_layers);
  JsonArray const layers = root.get("quality", "an array").array();
  for (JsonValue const value : layers) {
    detail::quality_fields(detail::FieldReader(value.object()), saved.layers.emplace_back());
  }
  JsonArray const budgets = root.get("budgets", "an array").array();
  for (JsonValue const value : budgets) {
    detail::FieldReader budget(value.object());
    budget.share("share", saved.budgets.shares.emplace_back());
    budget.numbers("heads", saved.budgets.heads.emplace_back());
  }
  JsonObject weights = root.get("weights", "an object").object();
  for (JsonValue const value : weights.get("files", "an array").array()) {
    saved.weight_files.emplace_back(value.string());
  }
  saved.weight_hash = weights.get("hash", "a string").string();
  try {
    validate_scores(saved);
  } catch (ArgumentError const& error) {
    ErrorDetail const& d = error.detail();
    throw FormatError({d.what, d.expected, d.got, root.where() + ", " + d.where});
  }
  return saved;
}

/// @brief Returns the text of a `scores.json`; `parse_scores` reads the same back.
/// @throws ArgumentError as `validate_scores`
[[nodiscard]] inline std::string format_scores(SavedScores const& saved) {
  validate_scores(saved, "format_scores");
  JsonWriter json(1);
  json.object([&] {
    detail::write_format(json, detail::scores_format, detail::scores_version);
    json.field("model", saved.model);
    json.field("source", saved.source);
    json.field("features", detail::scores_features);
    json.field("instruction", saved.instruction);
    detail::score_fields(detail::FieldWriter(json), saved);
    json.field("num_layers", saved.shape.num_layers());
    detail::write_layers(json, saved.shape);
    json.key("quality");
    json.array([&] {
      for (ScoreQuality const& quality : saved.layers) {
        json.object([&] { detail::quality_fields(detail::FieldWriter(json), quality); });
      }
    });
    json.key("budgets");
    json.array([&] {
      for (std::size_t i = 0; i < saved.budgets.shares.size(); ++i) {
        json.object([&] {
          json.field("share", saved.budgets.shares[i]);
          json.field("heads", saved.budgets.heads[i]);
        });
      }
    });
    json.field("weights", [&] {
      json.field("files", saved.weight_files);
      json.field("hash", saved.weight_hash);
    });
  });
  return json.text();
}

/// @brief Reads a file by `parse_scores`.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline SavedScores load_scores(FilePath const& path) {
  return parse_scores(read_text_file(path), path.string());
}

/// @brief Writes `format_scores`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_scores(FilePath const& path, SavedScores const& saved) { write_file(path, format_scores(saved)); }

HEADAWARE_NAMESPACE_END
