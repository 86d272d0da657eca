#pragma once

// A capture: a folder with a model's statistics and, if it has them, arrays of keys and values.
//
//   head_statistics.json   all query heads of the model
//   NAME_k.npy, NAME_v.npy float16, [layers, kv_heads, tokens, head_dim], one pair a sequence
//   capture.json           optional: which layers the arrays hold, {"layers": [...]}; else all, in order

#include <headaware/compressor.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json.hpp>
#include <headaware/io/npy.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

namespace capture {

namespace ha = headaware;

struct Sequence {
  std::string name;
  ha::NpyArray keys;
  ha::NpyArray values;
  [[nodiscard]] std::int64_t length() const { return keys.shape[2]; }
};

struct Capture {
  ha::ModelStatistics statistics;
  std::vector<std::int32_t> layers;  ///< model layers that the arrays hold
  std::vector<Sequence> sequences;   ///< empty: statistics alone
};

/// The layers named by capture.json, or all of them.
inline std::vector<std::int32_t> captured_layers(std::filesystem::path const& folder, std::int64_t arrays,
                                                 std::int32_t num_layers) {
  std::vector<std::int32_t> layers(static_cast<std::size_t>(arrays));
  std::iota(layers.begin(), layers.end(), 0);
  auto const path = folder / "capture.json";
  if (!std::filesystem::exists(path) && arrays != num_layers) {
    throw ha::FormatError({"captured layers", "all " + std::to_string(num_layers) + ", or capture.json to name them",
                           std::to_string(arrays) + " layers and no capture.json", folder.string()});
  }
  if (std::filesystem::exists(path)) {
    try {
      layers = nlohmann::json::parse(ha::read_text_file(path)).at("layers").get<std::vector<std::int32_t>>();
    } catch (nlohmann::json::exception const& error) {
      throw ha::FormatError({"capture.json", "{\"layers\": [numbers]}", error.what(), path.string()});
    }
  }
  bool const fits = static_cast<std::int64_t>(layers.size()) == arrays &&
                    std::all_of(layers.begin(), layers.end(), [&](auto l) { return l >= 0 && l < num_layers; });
  if (!fits) {
    throw ha::FormatError({"captured layers", std::to_string(arrays) + " layers of " + std::to_string(num_layers),
                           std::to_string(layers.size()) + " named", path.string()});
  }
  return layers;
}

/// @throws FileError, FormatError
inline Capture load(std::filesystem::path const& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw ha::FileError({"capture", "a folder with head_statistics.json", "no such folder", folder.string()});
  }
  Capture result;
  result.statistics = ha::load_statistics(folder / "head_statistics.json");
  std::vector<std::filesystem::path> keys;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().ends_with("_k.npy")) keys.push_back(entry.path());
  }
  std::sort(keys.begin(), keys.end());
  for (auto const& path : keys) {
    std::string const name = path.filename().string();
    std::string const stem = name.substr(0, name.size() - std::string("_k.npy").size());
    Sequence sequence{stem, ha::load_npy(path), ha::load_npy(folder / (stem + "_v.npy"))};
    bool const first = result.sequences.empty();
    bool fits = sequence.keys.shape.size() == 4 && sequence.keys.shape == sequence.values.shape &&
                sequence.keys.dtype == ha::NpyType::f2 && sequence.values.dtype == ha::NpyType::f2;
    if (fits && !first) {
      auto const& other = result.sequences.front().keys.shape;
      fits = sequence.keys.shape[0] == other[0] && sequence.keys.shape[1] == other[1] &&
             sequence.keys.shape[3] == other[3];
    }
    if (!fits) {
      throw ha::FormatError({"captured arrays", "float16 [layers, kv_heads, tokens, head_dim], alike in all but tokens",
                             "other shapes or types", path.string()});
    }
    result.sequences.push_back(std::move(sequence));
  }
  if (!result.sequences.empty()) {
    result.layers =
        captured_layers(folder, result.sequences.front().keys.shape[0], result.statistics.model_info.num_layers);
  }
  return result;
}

}  // namespace capture
