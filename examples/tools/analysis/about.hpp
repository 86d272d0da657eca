#pragma once

// analysis.json: what the files of a results folder were taken from, and whether they are whole.

#include <headaware/io/file.hpp>
#include <headaware/io/json_tree.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace analysis {

struct About {
  std::string model;
  std::string observed;  ///< model, text, sizes
  bool complete = true;
  std::string seen;  ///< how much of the text
  std::int32_t num_key_value_heads = 0;
  std::int32_t head_dim = 0;
  std::int64_t invalid_rows = 0;     ///< of all heads
  std::vector<std::int32_t> layers;  ///< which of the model's layers; empty: all
};

/// The text of an analysis.json. @throws FormatError if it is broken
inline About parse_about(std::string_view text, std::string source_name) {
  using headaware::JsonObject;
  headaware::JsonTree const tree(text, std::move(source_name));
  JsonObject json = tree.root().object();
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  About about;
  about.model = json.get("model", "a string").string();
  about.observed = json.get("observed", "a string").string();
  about.complete = json.get("complete", "true or false").boolean();
  about.seen = json.get("seen", "a string").string();
  JsonObject shape = json.get("model_config", "an object").object();
  about.num_key_value_heads = shape.get("num_key_value_heads", "an integer").integer(1, most);
  about.head_dim = shape.get("head_dim", "an integer").integer(1, most);
  about.invalid_rows = json.get("invalid_rows", "an integer").integer<std::int64_t>(0, INT64_MAX);
  for (auto const layer : json.get("layers", "an array").array()) about.layers.push_back(layer.integer(0, most));
  return about;
}

/// Nothing where the folder has no such file. @throws FormatError on one that is broken
inline std::optional<About> load_about(std::filesystem::path const& folder) {
  auto const path = folder / "analysis.json";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return parse_about(headaware::read_text_file(path), path.string());
}

/// "layers 0 to 3 here are the model's layers 0, 10, 18, 29", or nothing where they are all, in order.
inline std::string layers_note(std::vector<std::int32_t> const& layers) {
  bool all = true;
  std::string list;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    all = all && layers[i] == static_cast<std::int32_t>(i);
    list += (i == 0 ? "" : ", ") + std::to_string(layers[i]);
  }
  if (all) return {};
  return "layers 0 to " + std::to_string(layers.size() - 1) + " here are the model's layers " + list;
}

/// The parts of a page about it: the rows of its table, and whether it is partial.
inline std::vector<std::pair<std::string, std::string>> about_rows(About const& about) {
  std::vector<std::pair<std::string, std::string>> rows;
  if (auto const note = layers_note(about.layers); !note.empty()) rows.emplace_back("layers", note);
  rows.emplace_back("observed", about.seen + (about.complete ? "" : " (partial)"));
  if (about.invalid_rows > 0) {
    rows.emplace_back("left out", std::to_string(about.invalid_rows) + " rows of attention with NaN or infinity");
  }
  rows.emplace_back("source", about.observed);
  return rows;
}
inline std::string partial_notice(About const& about) {
  return about.complete ? std::string() : "Partial: the observation was interrupted after " + about.seen + ".";
}

/// Says on stderr if the results are of a part of the text.
inline void warn_if_partial(std::filesystem::path const& folder) {
  auto const about = load_about(folder);
  if (about && !about->complete) {
    std::fprintf(stderr, "note: PARTIAL results in %s: %s\n", folder.c_str(), about->seen.c_str());
  }
}

}  // namespace analysis
