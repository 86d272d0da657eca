#pragma once

// A capture: a folder with arrays of a model's queries, keys and values.
//
//   NAME_k.npy, NAME_v.npy float16, [layers, num_kv_heads, tokens, head_dim], one pair a sequence
//   NAME_q.npy             optional: float16, [layers, num_query_heads, tokens, head_dim]
//   capture.json           optional; what it leaves out is as said here:
//     layers               model layers that the arrays hold; all, in order
//     scale                of q·k; 1 / sqrt(head_dim)
//     soft_cap             logits become soft_cap · tanh(logit / soft_cap); 0: none
//     sliding_windows      of each layer in `layers`, keys that a query sees; 0: all before it
//     first_position       of each sequence; 0
//     model                name, architecture, num_layers; unknown
//   capture.unfinished     while capture_attention writes, and if it never ended: then nothing is read

#include "tools/support/npy.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json_tree.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace capture {

namespace ha = headaware;

/// A file that lies in a folder from before the first array is written until the capture is whole. Arrays without a
/// capture.json may as well be a user's own.
inline constexpr char const* unfinished_name = "capture.unfinished";

struct Sequence {
  std::string name;
  support::NpyArray keys;
  support::NpyArray values;
  std::optional<support::NpyArray> queries{};
  [[nodiscard]] std::int64_t length() const { return keys.shape[2]; }
};

/// Description of the model's attention.
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

/// The text of a capture.json. @param result  what holds where it says nothing
inline void read_description(std::string_view text, std::string const& source, Description& result) {
  using ha::JsonObject;
  using ha::JsonValue;
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  ha::JsonTree const tree(text, source);
  JsonObject json = tree.root().object();
  auto const numbers = [&](char const* key, std::vector<std::int32_t>& list) {
    auto const value = json.find(key);
    if (!value) return;
    list.clear();
    for (JsonValue const number : value->array()) list.push_back(number.integer(0, most));
  };
  auto const real = [&](char const* key, float& number, bool zero) {
    auto const value = json.find(key);
    if (!value) return;
    number = static_cast<float>(value->number());
    bool const fits = std::isfinite(number) && (number > 0 || (zero && value->number() == 0));
    if (!fits) value->fail(key, zero ? "a number >= 0" : "a number > 0");
  };
  auto const words = [](JsonObject& object, char const* key, std::string& into) {
    if (auto const value = object.find(key)) into = value->string();
  };
  numbers("layers", result.layers);
  real("scale", result.scale, false);
  real("soft_cap", result.soft_cap, true);
  numbers("sliding_windows", result.sliding_windows);
  if (auto const position = json.find("first_position")) result.first_position = position->integer(0, most);
  if (auto const value = json.find("model")) {
    JsonObject model = value->object();
    words(model, "name", result.model);
    words(model, "architecture", result.architecture);
    if (auto const layers = model.find("num_layers")) result.num_layers = layers->integer(0, most);
  }
  if (result.sliding_windows.empty()) result.sliding_windows.assign(result.layers.size(), 0);
  if (result.sliding_windows.size() != result.layers.size()) {
    throw ha::FormatError({"sliding_windows", "as many as layers: " + std::to_string(result.layers.size()),
                           std::to_string(result.sliding_windows.size()), source});
  }
}

/// The text of a capture.json; nothing: what holds where there is none.
/// @param arrays  layers that the arrays have
/// @throws FormatError
inline Description parse_description(std::optional<std::string_view> text, std::string const& source,
                                     std::int64_t arrays, std::int64_t head_dim) {
  Description result;
  result.layers.resize(static_cast<std::size_t>(arrays));
  std::iota(result.layers.begin(), result.layers.end(), 0);
  result.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
  result.sliding_windows.assign(result.layers.size(), 0);
  if (!text) return result;
  result.sliding_windows.clear();
  try {
    read_description(*text, source, result);
  } catch (ha::FormatError const& error) {
    throw ha::FormatError(
        {"capture.json: " + error.detail().what, error.detail().expected, error.detail().got, error.detail().where});
  }
  return result;
}

/// The folder's capture.json, where there is one.
inline Description load_description(std::filesystem::path const& folder, std::int64_t arrays, std::int64_t head_dim) {
  auto const path = folder / "capture.json";
  if (!std::filesystem::exists(path)) return parse_description(std::nullopt, path.string(), arrays, head_dim);
  return parse_description(ha::read_text_file(path), path.string(), arrays, head_dim);
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
  Sequence sequence{stem, support::load_npy(folder / (stem + "_k.npy")), support::load_npy(folder / (stem + "_v.npy"))};
  if (auto const path = folder / (stem + "_q.npy"); std::filesystem::exists(path))
    sequence.queries = support::load_npy(path);
  auto const& keys = sequence.keys;
  bool fits = keys.shape.size() == 4 && keys.shape == sequence.values.shape && keys.dtype == support::NpyType::f2 &&
              sequence.values.dtype == support::NpyType::f2;
  if (fits && sequence.queries) {
    auto shape = sequence.queries->shape;
    fits = sequence.queries->dtype == support::NpyType::f2 && shape.size() == 4 && keys.shape[1] > 0 &&
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

/// The arrays of a folder.
/// @throws FileError, FormatError
inline Arrays load_arrays(std::filesystem::path const& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw ha::FileError({"capture", "a folder", "no such folder", folder.string()});
  }
  if (std::filesystem::exists(folder / unfinished_name)) {
    throw ha::FormatError(
        {"capture", "a whole one",
         "one that is being made or was interrupted: capture_attention makes it again into this folder",
         (folder / unfinished_name).string()});
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

}  // namespace capture
