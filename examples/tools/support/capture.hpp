#pragma once

// A capture: a folder with arrays of a model's queries, keys and values.
//
//   NAME_k.npy, NAME_v.npy float16, [layers, num_kv_heads, tokens, head_dim], one pair a sequence
//   NAME_q.npy             optional: float16, [layers, num_query_heads, tokens, head_dim]
//   layerL_sinks.npy       learned sinks of the model's layer L, if `sinks` names it: float32, [num_query_heads]
//   capture.json           optional; what it leaves out is as said here:
//     layers               model layers that the arrays hold; all, in order
//     scale                of q·k; 1 / sqrt(head_dim)
//     soft_cap             logits become soft_cap · tanh(logit / soft_cap); 0: none
//     sliding_windows      of each layer in `layers`, keys that a query sees; 0: all before it
//     sinks                those of `layers` that have learned sinks; none
//     first_position       of each sequence; 0
//     model                name, architecture, num_layers; unknown
//     shapes               of layers that differ in heads or channels, or hold a latent: of each layer in `layers`
//     kind,
//                          num_query_heads, num_kv_heads, head_dim, value_dim, window (sliding layers), scale,
//                          soft_cap. Then each layer has arrays of its own, of L its number in the model:
//   NAME_layerL_k.npy      float16, [num_kv_heads, tokens, head_dim]
//   NAME_layerL_v.npy      float16, [num_kv_heads, tokens, value_dim]; of a latent none: its keys begin with the values
//   NAME_layerL_q.npy      optional: float16, [num_query_heads, tokens, head_dim]
//   capture.unfinished     while capture_attention writes, and if it never ended: then nothing is read

#include "tools/support/capture_description.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/npy.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace capture {

namespace ha = headaware;

/// A file that lies in a folder from before the first array is written until the capture is whole. Arrays without a
/// capture.json may as well be a user's own.
inline constexpr char const* unfinished_name = "capture.unfinished";

/// The arrays of one layer that has its own.
struct LayerArrays {
  ha::NpyArray keys;
  std::optional<ha::NpyArray> values{};  ///< of a latent none
  std::optional<ha::NpyArray> queries{};
};

/// One layer's rows, [heads, tokens, channels]; borrowed.
template <class T>
struct LayerRows {
  T const* queries = nullptr;  ///< nullptr: none were captured
  T const* keys = nullptr;
  T const* values = nullptr;  ///< of a latent the keys
};

struct Sequence {
  std::string name;
  ha::NpyArray keys{};  ///< of all layers, as values and queries, unless layers have arrays of their own
  ha::NpyArray values{};
  std::optional<ha::NpyArray> queries{};
  std::vector<LayerArrays> layers{};
  [[nodiscard]] std::int64_t length() const { return layers.empty() ? keys.shape[2] : layers.front().keys.shape[1]; }
  [[nodiscard]] bool has_queries() const {
    if (layers.empty()) return queries.has_value();
    return std::all_of(layers.begin(), layers.end(),
                       [](LayerArrays const& layer) { return layer.queries.has_value(); });
  }
  /// @tparam T  float16, or uint16_t: its bits  @param layer  of those captured
  template <class T>
  [[nodiscard]] LayerRows<T> rows(std::size_t layer) const {
    if (layers.empty()) {
      auto const of = [&](ha::NpyArray const& array) {
        return array.as<T>().data() + layer * (array.as<T>().size() / static_cast<std::size_t>(array.shape[0]));
      };
      return {queries ? of(*queries) : nullptr, of(keys), of(values)};
    }
    LayerArrays const& of = layers[layer];
    T const* const own = of.keys.as<T>().data();
    return {of.queries ? of.queries->as<T>().data() : nullptr, own, of.values ? of.values->as<T>().data() : own};
  }
};

/// The arrays of a capture and what is said about them.
struct Arrays : Description {
  std::vector<Sequence> sequences;  ///< empty: none
};

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

/// An array of float16 of a shape. @throws FormatError if it is another, FileError
inline ha::NpyArray load_rows(std::filesystem::path const& path, std::int64_t heads, std::int64_t tokens,
                              std::int64_t channels) {
  ha::NpyArray array = ha::load_npy(path);
  bool const fits = array.dtype == ha::NpyType::f2 && array.shape.size() == 3 && array.shape[0] == heads &&
                    (tokens < 0 || array.shape[1] == tokens) && array.shape[2] == channels;
  if (!fits) {
    throw ha::FormatError({"captured arrays of a layer",
                           "float16 [" + std::to_string(heads) + " heads, " +
                               (tokens < 0 ? "tokens" : std::to_string(tokens) + " tokens") + ", " +
                               std::to_string(channels) + " channels], as capture.json says",
                           "another shape or type", path.string()});
  }
  return array;
}

/// The arrays named `stem`, of layers that have their own.
inline Sequence load_layers(std::filesystem::path const& folder, std::string const& stem,
                            Description const& description) {
  Sequence sequence{.name = stem};
  for (std::size_t i = 0; i < description.layers.size(); ++i) {
    std::string const name = stem + "_layer" + std::to_string(description.layers[i]);
    ha::LayerShape const& shape = description.each[i].shape;
    std::int64_t const tokens = i == 0 ? -1 : sequence.length();
    LayerArrays arrays{load_rows(folder / (name + "_k.npy"), shape.num_kv_heads, tokens, shape.head_dim)};
    std::int64_t const length = arrays.keys.shape[1];
    if (shape.kind != ha::LayerKind::latent) {
      arrays.values = load_rows(folder / (name + "_v.npy"), shape.num_kv_heads, length, shape.value_dim);
    }
    if (auto const path = folder / (name + "_q.npy"); std::filesystem::exists(path)) {
      arrays.queries = load_rows(path, shape.num_query_heads, length, shape.head_dim);
    }
    sequence.layers.push_back(std::move(arrays));
  }
  return sequence;
}

/// The learned sinks of every layer that has some.
inline void load_sinks(std::filesystem::path const& folder, Description& description) {
  for (std::int32_t const number : description.layers_with_sinks) {
    auto const path = folder / ("layer" + std::to_string(number) + "_sinks.npy");
    auto const place = std::find(description.layers.begin(), description.layers.end(), number);
    if (place == description.layers.end()) {
      throw ha::FormatError(
          {"layers with learned sinks", "captured ones", std::to_string(number), (folder / "capture.json").string()});
    }
    auto const i = static_cast<std::size_t>(place - description.layers.begin());
    ha::NpyArray const array = ha::load_npy(path);
    LayerDescription& layer = description.each[i];
    bool const fits =
        array.dtype == ha::NpyType::f4 && array.shape.size() == 1 && array.shape[0] == layer.shape.num_query_heads;
    if (!fits) {
      throw ha::FormatError({"learned sinks of a layer",
                             "float32 [" + std::to_string(layer.shape.num_query_heads) + " query heads]",
                             "another shape or type", path.string()});
    }
    layer.sinks.assign(array.as<float>().begin(), array.as<float>().end());
  }
}

/// Whether a folder's capture.json says that layers have arrays of their own.
inline bool has_layers_of_their_own(std::filesystem::path const& folder) {
  auto const path = folder / "capture.json";
  if (!std::filesystem::exists(path)) return false;
  try {
    std::string const text = ha::read_text_file(path);
    ha::JsonTree const tree(text, path.string());
    return tree.root().object().find("shapes").has_value();
  } catch (ha::FormatError const&) {
    return false;  // what is wrong with it is said where it is read
  }
}

/// The arrays of layers that have their own. @param stems  of files of keys
inline Arrays load_layered(std::filesystem::path const& folder, std::vector<std::string> const& stems) {
  Arrays result;
  static_cast<Description&>(result) = load_description(folder, 0, 1);
  require_layers(result, static_cast<std::int64_t>(result.each.size()), result.num_layers, folder);
  std::string const of_first = "_layer" + std::to_string(result.layers.front());
  for (std::string const& stem : stems) {
    if (!stem.ends_with(of_first)) continue;
    result.sequences.push_back(load_layers(folder, stem.substr(0, stem.size() - of_first.size()), result));
  }
  load_sinks(folder, result);
  return result;
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
  if (!stems.empty() && has_layers_of_their_own(folder)) return load_layered(folder, stems);
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
    auto const& queries = result.sequences.front().queries;
    for (std::int32_t const window : result.sliding_windows) {
      ha::LayerShape const layer{.kind = window > 0 ? ha::LayerKind::sliding : ha::LayerKind::attention,
                                 .num_query_heads = static_cast<std::int32_t>(queries ? queries->shape[1] : shape[1]),
                                 .num_kv_heads = static_cast<std::int32_t>(shape[1]),
                                 .head_dim = shape[3],
                                 .value_dim = shape[3],
                                 .window = window};
      result.each.push_back({layer, result.scale, result.soft_cap});
    }
    if (queries) load_sinks(folder, result);
  }
  return result;
}

}  // namespace capture
