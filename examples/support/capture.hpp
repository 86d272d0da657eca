#pragma once

// A capture: a folder with a model's statistics and, if it has them, arrays of queries, keys and values.
//
//   head_statistics.json   all query heads of the model
//   NAME_k.npy, NAME_v.npy float16, [layers, kv_heads, tokens, head_dim], one pair a sequence
//   NAME_q.npy             optional: float16, [layers, query_heads, tokens, head_dim]
//   capture.json           optional; what it leaves out is as said here:
//     layers               model layers that the arrays hold; all, in order
//     scale                of q·k; 1 / sqrt(head_dim)
//     soft_cap             logits become soft_cap · tanh(logit / soft_cap); 0: none
//     sliding_windows      of each layer in `layers`, keys that a query sees; 0: all before it
//     first_position       of each sequence; 0
//     model                name, architecture, num_layers; unknown

#include <headaware/compressor.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json.hpp>
#include <headaware/io/npy.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace capture {

namespace ha = headaware;

struct Sequence {
  std::string name;
  ha::NpyArray keys;
  ha::NpyArray values;
  std::optional<ha::NpyArray> queries{};
  [[nodiscard]] std::int64_t length() const { return keys.shape[2]; }
};

/// What a capture says about the model's attention.
struct Description {
  std::vector<std::int32_t> layers;  ///< model layers that the arrays hold
  float scale = 1;
  float soft_cap = 0;
  std::vector<std::int32_t> sliding_windows;  ///< of each of `layers`
  std::int32_t first_position = 0;
  std::string model;            ///< name; may be empty
  std::string architecture;     ///< may be empty
  std::int32_t num_layers = 0;  ///< of the model; 0: unknown
};

/// The arrays of a capture and what is said about them.
struct Arrays : Description {
  std::vector<Sequence> sequences;  ///< empty: none
};

struct Capture : Arrays {
  ha::ModelStatistics statistics;
};

/// capture.json, where there is one, and what holds where it says nothing.
/// @param arrays  layers that the arrays have
inline Description load_description(std::filesystem::path const& folder, std::int64_t arrays, std::int64_t head_dim) {
  Description result;
  result.layers.resize(static_cast<std::size_t>(arrays));
  std::iota(result.layers.begin(), result.layers.end(), 0);
  result.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
  auto const path = folder / "capture.json";
  if (!std::filesystem::exists(path) && arrays != num_layers) {
    throw ha::FormatError({"captured layers", "all " + std::to_string(num_layers) + ", or capture.json to name them",
                           std::to_string(arrays) + " layers and no capture.json", folder.string()});
  }
  if (std::filesystem::exists(path)) {
    try {
      auto const json = nlohmann::json::parse(ha::read_text_file(path));
      result.layers = json.value("layers", result.layers);
      result.scale = json.value("scale", result.scale);
      result.soft_cap = json.value("soft_cap", result.soft_cap);
      result.sliding_windows = json.value("sliding_windows", result.sliding_windows);
      result.first_position = json.value("first_position", result.first_position);
      auto const model = json.value("model", nlohmann::json::object());
      result.model = model.value("name", "");
      result.architecture = model.value("architecture", "");
      result.num_layers = model.value("num_layers", 0);
    } catch (nlohmann::json::exception const& error) {
      throw ha::FormatError({"capture.json", "an object such as {\"layers\": [numbers]}", error.what(), path.string()});
    }
  }
  if (result.sliding_windows.empty()) result.sliding_windows.assign(result.layers.size(), 0);
  if (result.sliding_windows.size() != result.layers.size()) {
    throw ha::FormatError({"sliding_windows", "as many as layers: " + std::to_string(result.layers.size()),
                           std::to_string(result.sliding_windows.size()), path.string()});
  }
  bool const scored =
      result.scale > 0 && result.soft_cap >= 0 && result.first_position >= 0 &&
      std::all_of(result.sliding_windows.begin(), result.sliding_windows.end(), [](auto w) { return w >= 0; });
  if (!scored) {
    throw ha::FormatError(
        {"capture.json", "scale > 0; soft_cap, sliding_windows and first_position >= 0", "others", path.string()});
  }
  return result;
}

/// @throws FormatError unless the arrays hold the layers named, each one of the model's `num_layers` (0: unknown)
inline void require_layers(Description const& description, std::int64_t arrays, std::int32_t num_layers,
                           std::filesystem::path const& folder) {
  auto const& layers = description.layers;
  bool const fits =
      static_cast<std::int64_t>(layers.size()) == arrays &&
      std::all_of(layers.begin(), layers.end(), [&](auto l) { return l >= 0 && (num_layers == 0 || l < num_layers); });
  if (!fits) {
    std::string const of_model = num_layers > 0 ? " layers of " + std::to_string(num_layers) : " layers";
    throw ha::FormatError({"captured layers", std::to_string(arrays) + of_model,
                           std::to_string(layers.size()) + " named", (folder / "capture.json").string()});
  }
}

/// The arrays named `stem`; queries where there are some.
inline Sequence load_sequence(std::filesystem::path const& folder, std::string const& stem) {
  Sequence sequence{stem, ha::load_npy(folder / (stem + "_k.npy")), ha::load_npy(folder / (stem + "_v.npy"))};
  if (auto const path = folder / (stem + "_q.npy"); std::filesystem::exists(path))
    sequence.queries = ha::load_npy(path);
  auto const& keys = sequence.keys;
  bool fits = keys.shape.size() == 4 && keys.shape == sequence.values.shape && keys.dtype == ha::NpyType::f2 &&
              sequence.values.dtype == ha::NpyType::f2;
  if (fits && sequence.queries) {
    auto shape = sequence.queries->shape;
    fits = sequence.queries->dtype == ha::NpyType::f2 && shape.size() == 4 && keys.shape[1] > 0 &&
           shape[1] % keys.shape[1] == 0;
    if (fits) {
      shape[1] = keys.shape[1];
      fits = shape == keys.shape;
    }
  }
  if (!fits) {
    throw ha::FormatError({"captured arrays",
                           "float16 [layers, kv_heads, tokens, head_dim], queries with a multiple of the KV heads",
                           "other shapes or types", (folder / (stem + "_k.npy")).string()});
  }
  return sequence;
}

/// The arrays of a folder, without statistics.
/// @throws FileError, FormatError
inline Arrays load_arrays(std::filesystem::path const& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw ha::FileError({"capture", "a folder", "no such folder", folder.string()});
  }
  std::vector<std::string> stems;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    std::string const name = entry.path().filename().string();
    if (name.ends_with("_k.npy")) stems.push_back(name.substr(0, name.size() - std::string("_k.npy").size()));
  }
  // chunk2 before chunk10.
  std::sort(stems.begin(), stems.end(),
            [](auto const& a, auto const& b) { return std::pair(a.size(), a) < std::pair(b.size(), b); });
  Arrays result;
  for (auto const& stem : stems) {
    result.sequences.push_back(load_sequence(folder, stem));
    auto const& first = result.sequences.front();
    auto const& last = result.sequences.back();
    auto const heads = [](Sequence const& s) { return s.queries ? s.queries->shape[1] : 0; };
    bool const alike = last.keys.shape[0] == first.keys.shape[0] && last.keys.shape[1] == first.keys.shape[1] &&
                       last.keys.shape[3] == first.keys.shape[3] && heads(last) == heads(first);
    if (!alike) {
      throw ha::FormatError({"captured arrays", "those of " + first.name + " but for the tokens", "other shapes",
                             (folder / (stem + "_k.npy")).string()});
    }
  }
  if (!result.sequences.empty()) {
    auto const& shape = result.sequences.front().keys.shape;
    static_cast<Description&>(result) = load_description(folder, shape[0], shape[3]);
    require_layers(result, shape[0], result.num_layers, folder);
  }
  return result;
}

/// @throws FileError, FormatError
inline Capture load(std::filesystem::path const& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw ha::FileError({"capture", "a folder with head_statistics.json", "no such folder", folder.string()});
  }
  Capture result;
  result.statistics = ha::load_statistics(folder / "head_statistics.json");
  static_cast<Arrays&>(result) = load_arrays(folder);
  if (!result.sequences.empty()) {
    require_layers(result, result.sequences.front().keys.shape[0], result.statistics.model_info.num_layers, folder);
  }
  return result;
}

}  // namespace capture
