#pragma once

/// @file
/// Reads a model's shape from a Hugging Face `config.json`.

#include <headaware/config.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Fields of models whose layers' caches are not all `num_key_value_heads` heads of `head_dim` channels. Their
/// meaning is not known here, so a value is an error.
struct UnknownField {
  enum Kind : std::uint8_t {
    plain,
    ratio,    ///< or period, of which 1 changes nothing
    indices,  ///< of layers: 0 is one, and only an empty list says nothing
  };
  std::string_view name;
  std::string_view reason;
  Kind kind = plain;
  std::string_view switched_by{};  ///< a field that makes this one say nothing where it is there and says nothing
};

inline constexpr std::array<UnknownField, 31> unknown_fields{{
    {"kv_lora_rank", "a latent instead of keys and values"},
    {"block_configs", "blocks that differ"},
    {"layer_types", "layers of several kinds"},
    {"layers_block_type", "layers of several kinds"},
    {"block_types", "layers of several kinds"},
    {"_block_types", "layers of several kinds"},
    {"hybrid_override_pattern", "layers of several kinds"},
    {"hybrid_layer_pattern", "layers of several kinds"},
    {"attn_type_list", "layers of several kinds"},
    {"linear_attn_config", "layers without keys and values"},
    {"attn_layer_indices", "layers without keys and values", UnknownField::indices},
    {"full_attn_idxs", "layers without keys and values", UnknownField::indices},
    {"attn_layer_period", "layers without keys and values", UnknownField::ratio},
    {"full_attention_interval", "layers without keys and values", UnknownField::ratio},
    {"layer_group_size", "layers without keys and values", UnknownField::ratio},
    {"cross_attention_layers", "layers that attend to another input", UnknownField::indices},
    {"sliding_window_pattern", "layers with and without a window", UnknownField::ratio},
    {"_sliding_window_pattern", "layers with and without a window", UnknownField::ratio},
    {"attention_chunk_size", "layers that see their chunk alone"},
    {"num_kv_shared_layers", "layers that share a cache"},
    {"cla_share_factor", "layers that share a cache", UnknownField::ratio},
    {"kv_reuse_group", "layers that share a cache", UnknownField::indices},
    {"kv_reuse_every_i_layer", "layers that share a cache", UnknownField::ratio},
    {"use_yoco", "layers that share a cache"},
    {"yoco_cross_layers", "layers that share a cache", UnknownField::indices, "use_yoco"},
    {"mb_per_layer", "layers without keys and values"},
    {"mamba_enabled", "layers without keys and values"},
    {"mamba_step", "layers without keys and values", UnknownField::plain, "mamba_enabled"},
    {"hybrid_layer_ids", "layers without keys and values", UnknownField::indices},
    {"compress_ratios", "keys and values of several tokens in one", UnknownField::ratio},
    {"n_shared_head", "query heads that share a KV head by this name", UnknownField::ratio},
}};

/// Further names of the number of KV heads: of all layers, or of some.
inline constexpr std::array<std::string_view, 10> kv_head_fields{"num_kv_heads",
                                                                 "num_attention_groups",
                                                                 "multi_query_group_num",
                                                                 "num_global_key_value_heads",
                                                                 "swa_num_key_value_heads",
                                                                 "n_head_kv",
                                                                 "n_kv_heads",
                                                                 "num_query_groups",
                                                                 "kv_n_heads",
                                                                 "num_key_value_heads_per_layer"};

/// Further names of the channels of a head: of values, or of some layers.
inline constexpr std::array<std::string_view, 6> head_dim_fields{"v_head_dim",   "qk_head_dim",    "global_head_dim",
                                                                 "swa_head_dim", "swa_v_head_dim", "kv_channels"};

/// Models whose layers slide by turns although no field says so.
inline constexpr std::array<std::string_view, 5> sliding_by_turns{"gemma2", "gemma3", "gemma3_text", "cohere2",
                                                                  "gpt_oss"};

/// The elements of an array, or the value itself: whether `test` holds for all of them.
template <class Test>
[[nodiscard]] bool every(JsonValue const& value, Test const& test) {
  if (value.kind() != JsonKind::array) return test(value);
  for (JsonValue const element : value.array()) {
    if (!test(element)) return false;
  }
  return true;
}

[[nodiscard]] inline bool is_integer(JsonValue const& value, std::int64_t number) {
  using Limits = std::numeric_limits<std::int64_t>;
  return value.kind() == JsonKind::integer && value.integer(Limits::min(), Limits::max()) == number;
}

/// True of values that mean the same as no field.
[[nodiscard]] inline bool says_nothing(JsonValue const& value) {
  switch (value.kind()) {
    case JsonKind::null: return true;
    case JsonKind::boolean: return !value.boolean();
    case JsonKind::string: return value.string().empty();
    default: return is_integer(value, 0);
  }
}

/// True of plain attention as a layer's kind, over everything before it; in `hybrid_override_pattern` one letter per
/// layer.
[[nodiscard]] inline bool attends_to_all(JsonValue const& value) {
  if (value.kind() != JsonKind::string) return false;
  std::string_view const kind = value.string();
  return kind == "full_attention" || kind == "attention" || kind.find_first_not_of('*') == std::string_view::npos;
}

/// @throws FormatError naming the field and why it is refused
template <class = void>
void refuse_unknown_layers(JsonObject& config) {
  for (UnknownField const& field : unknown_fields) {
    auto const value = config.find(field.name);
    if (!value) continue;
    auto const harmless = [&](JsonValue const& v) {
      return says_nothing(v) || attends_to_all(v) || (field.kind == UnknownField::ratio && is_integer(v, 1));
    };
    bool const lists_layers =
        field.kind == UnknownField::indices && value->kind() == JsonKind::array && value->array().size() > 0;
    if (!lists_layers && every(*value, harmless)) continue;
    auto const needed = field.switched_by.empty() ? std::nullopt : config.find(field.switched_by);
    if (needed && says_nothing(*needed)) continue;
    // All alike: a window that every layer has is no part of the shape.
    bool const all_slide = field.name == "layer_types" && every(*value, [](JsonValue const& v) {
                             return v.kind() == JsonKind::string && v.string() == "sliding_attention";
                           });
    if (all_slide) continue;
    value->fail(std::string(field.name), "none: " + std::string(field.reason) + " are not known here");
  }
  auto const window = config.find("sliding_window");
  auto const type = config.find("model_type");
  if (window && window->kind() == JsonKind::array && !every(*window, says_nothing)) {
    window->fail("sliding_window", "a number: layers with and without a window are not known here");
  }
  if (!window || says_nothing(*window) || !type || type->kind() != JsonKind::string || config.find("layer_types"))
    return;
  if (std::find(sliding_by_turns.begin(), sliding_by_turns.end(), type->string()) != sliding_by_turns.end()) {
    window->fail("sliding_window", "none: layers with and without a window are not known here");
  }
}

/// @param read  KV heads, nothing where they are not known
/// @param from  the field that says so
/// @throws FormatError naming a field that says another number of KV heads
template <class = void>
void require_kv_heads(JsonObject& config, std::optional<std::int64_t> read, std::string const& from) {
  auto const expected = [&] {
    if (!read) return std::string("none: only num_key_value_heads is known here");
    return std::to_string(*read) + ", as " + from + " says: KV heads by another name are not known here";
  };
  auto const multi_query = config.find("multi_query");
  if (multi_query && !says_nothing(*multi_query) && read != 1) {
    multi_query->fail("multi_query",
                      read ? "false, as " + from + " says " + std::to_string(*read) + " KV heads: one is not known here"
                           : expected());
  }
  auto const grouped = config.find("multi_query_attention");
  for (std::string_view const name : kv_head_fields) {
    auto const value = config.find(name);
    if (!value || every(*value, says_nothing)) continue;
    if (name == "multi_query_group_num" && grouped && says_nothing(*grouped)) continue;
    if (!read || !every(*value, [&](JsonValue const& v) { return is_integer(v, *read); })) {
      value->fail(std::string(name), expected);
    }
  }
}

/// @throws FormatError naming a field that says another number of channels, or that only some layers have a window
template <class = void>
void require_shape(JsonObject& config, ModelConfig const& model) {
  for (std::string_view const name : head_dim_fields) {
    auto const value = config.find(name);
    if (!value || every(*value, says_nothing)) continue;
    if (!every(*value, [&](JsonValue const& v) { return is_integer(v, model.head_dim); })) {
      value->fail(std::string(name),
                  std::to_string(model.head_dim) + ", the channels of a key: heads of other sizes are not known here");
    }
  }
  auto const part = [&](char const* name) -> std::int64_t {
    auto const value = config.find(name);
    return value && !says_nothing(*value) ? value->integer(0, std::numeric_limits<std::int32_t>::max()) : 0;
  };
  std::int64_t const parts = part("qk_nope_head_dim") + part("qk_rope_head_dim");
  if (parts != 0 && parts != model.head_dim) {
    char const* const name = part("qk_rope_head_dim") != 0 ? "qk_rope_head_dim" : "qk_nope_head_dim";
    config.find(name)->fail(name, "with the other part " + std::to_string(model.head_dim) +
                                      ", the channels of a key: heads of other sizes are not known here");
  }
  auto const slides = config.find("use_sliding_window");
  auto const from = config.find("max_window_layers");
  if (!slides || says_nothing(*slides) || !from || from->kind() != JsonKind::integer) return;
  auto const first = from->integer(std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max());
  if (first > 0 && first < model.num_hidden_layers) {
    from->fail("max_window_layers", "0 or at least the layers, " + std::to_string(model.num_hidden_layers) +
                                        ": layers with and without a window are not known here");
  }
}

}  // namespace detail

/// @brief A model's shape from the text of its `config.json`. Where the document itself has no
/// `num_hidden_layers`, its `text_config` is read: the language part of a multimodal model.
///
/// `num_key_value_heads` is `num_attention_heads` where absent or null; `head_dim` is then
/// `hidden_size / num_attention_heads`, or 0 where that is absent too.
///
/// Models whose cache is not that of every layer alike are refused, with the field that says so: latents, layers
/// without keys and values, with windows of their own or of other sizes, shared or compressed caches, other names of
/// the KV heads. A `ModelConfig` made by hand can describe those whose layers are alike after all. A sliding window
/// that all layers have is not looked at. `Infinity` and `NaN`, which Python writes, are read as numbers.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, a field is
///         missing, not an integer, out of range or not known, or a division leaves a rest
template <class = void>
[[nodiscard]] ModelConfig parse_model_config(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name), NonFinite::read);
  JsonObject config = tree.root().object();
  auto const layers = config.find("num_hidden_layers");
  if (auto const nested = config.find("text_config")) {
    if (!layers) config = nested->object();
    // Both may describe the language part, but then the same one.
    auto const again = nested->kind() == JsonKind::object ? nested->object().find("num_hidden_layers") : std::nullopt;
    bool const differ = layers && again && layers->kind() == JsonKind::integer &&
                        !detail::is_integer(*again, layers->integer(std::int64_t{INT64_MIN}, INT64_MAX));
    if (differ) again->fail("num_hidden_layers", "the same as in the document itself");
  }
  auto optional = [&](char const* key) {
    auto const value = config.find(key);
    return value && !value->is_null() ? value : std::nullopt;
  };
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  // First what is not known: models that say such things may lack the usual fields.
  detail::refuse_unknown_layers(config);
  std::optional<std::int64_t> num_kv_heads;
  std::string kv_heads_from;
  for (char const* const name : {"num_attention_heads", "num_key_value_heads"}) {
    auto const value = optional(name);
    if (!value || value->kind() != JsonKind::integer) continue;
    num_kv_heads = value->integer(std::int64_t{INT64_MIN}, INT64_MAX);
    kv_heads_from = name;
  }
  detail::require_kv_heads(config, num_kv_heads, kv_heads_from);

  ModelConfig model;
  model.num_hidden_layers = config.get("num_hidden_layers", "an integer").integer(1, detail::max_index);
  model.num_attention_heads = config.get("num_attention_heads", "an integer").integer(1, detail::max_index);
  detail::require_head_count(config, model.num_hidden_layers, model.num_attention_heads);

  model.num_key_value_heads = model.num_attention_heads;
  if (auto const heads = optional("num_key_value_heads")) {
    model.num_key_value_heads = heads->integer(1, model.num_attention_heads);
    if (model.num_attention_heads % model.num_key_value_heads != 0) {
      heads->fail("uneven groups",
                  "a divisor of num_attention_heads (" + std::to_string(model.num_attention_heads) + ")");
    }
  }
  if (auto const head_dim = optional("head_dim")) {
    model.head_dim = head_dim->integer(1, most);
  } else if (auto const hidden = optional("hidden_size")) {
    std::int32_t const size = hidden->integer(1, most);
    if (size % model.num_attention_heads != 0) {
      hidden->fail("uneven heads",
                   "a multiple of num_attention_heads (" + std::to_string(model.num_attention_heads) + ")");
    }
    model.head_dim = size / model.num_attention_heads;
  }
  detail::require_shape(config, model);
  return model;
}

/// @brief Reads a file by `parse_model_config`.
/// @throws FormatError as there, FileError if the file cannot be read
template <class = void>
[[nodiscard]] ModelConfig load_model_config(FilePath const& path) {
  return parse_model_config(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
