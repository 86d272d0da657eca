#pragma once

// Fields of a Hugging Face `config.json` under all the names that models give them.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/json_tree.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

[[nodiscard]] inline bool is_integer(JsonValue const& value, std::int64_t number) {
  using Limits = std::numeric_limits<std::int64_t>;
  return value.kind() == JsonKind::integer && value.integer(Limits::min(), Limits::max()) == number;
}

/// The elements of an array, or the value itself: whether `test` holds for all of them.
template <class Test>
[[nodiscard]] bool every(JsonValue const& value, Test const& test) {
  if (value.kind() != JsonKind::array) return test(value);
  for (JsonValue const element : value.array()) {
    if (!test(element)) return false;
  }
  return true;
}

/// True of values that mean the same as no field: null, false, 0, nothing in quotes, brackets or braces.
[[nodiscard]] inline bool says_nothing(JsonValue const& value) {
  switch (value.kind()) {
    case JsonKind::null: return true;
    case JsonKind::boolean: return !value.boolean();
    case JsonKind::string: return value.string().empty();
    case JsonKind::array: return value.array().size() == 0;
    case JsonKind::object: return value.object().size() == 0;
    default: return is_integer(value, 0);
  }
}

/// A field and the name it has in this document.
struct ConfigField {
  std::string_view name;
  JsonValue value;
};

/// A count of every layer: one number, or one per layer.
class PerLayer {
 public:
  explicit PerLayer(std::int32_t all = 0) : values_{all} {}
  explicit PerLayer(std::vector<std::int32_t> values) : values_(std::move(values)) {}

  /// @param layers  elements of a list. @throws FormatError unless it holds as many numbers, all in [low, high]
  PerLayer(JsonValue const& value, std::int32_t layers, std::int32_t low, std::int32_t high) {
    if (value.kind() != JsonKind::array) {
      values_ = {value.integer(low, high)};
      return;
    }
    JsonArray const list = value.array();
    if (list.size() != static_cast<std::size_t>(layers)) {
      list.fail("number of layers", {layers, ", one per layer"}, list.size());
    }
    for (JsonValue const each : list) values_.push_back(each.integer(low, high));
  }

  [[nodiscard]] bool list() const { return values_.size() > 1; }
  [[nodiscard]] std::int32_t operator()(std::int32_t layer) const {
    return list() ? values_[static_cast<std::size_t>(layer)] : values_.front();
  }

 private:
  std::vector<std::int32_t> values_;
};

template <std::size_t n>
using FieldNames = std::array<std::string_view, n>;

inline constexpr FieldNames<5> layer_count_names{"num_hidden_layers", "n_layer", "num_layers", "n_layers",
                                                 "num_transformer_layers"};
inline constexpr FieldNames<6> query_head_names{
    "num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads", "num_attention_heads_per_layer"};
inline constexpr FieldNames<9> kv_head_names{"num_key_value_heads",
                                             "num_kv_heads",
                                             "n_kv_heads",
                                             "n_head_kv",
                                             "kv_n_heads",
                                             "num_query_groups",
                                             "multi_query_group_num",
                                             "num_attention_groups",
                                             "num_key_value_heads_per_layer"};
inline constexpr FieldNames<7> head_dim_names{"head_dim", "kv_channels", "attention_head_dim", "qk_head_dim", "d_kv",
                                              "d_head",   "dim_head"};
inline constexpr FieldNames<4> hidden_size_names{"hidden_size", "n_embd", "d_model", "model_dim"};
inline constexpr FieldNames<4> window_names{"sliding_window", "sliding_window_size", "attention_window_size",
                                            "window_size"};
inline constexpr FieldNames<4> nested_names{"text_config", "language_config", "llm_config", "thinker_config"};

/// The fields of the language part of a document.
class ConfigFields {
 public:
  ConfigFields(JsonObject const& object, std::string_view model_type) : object_(object), model_type_(model_type) {}

  [[nodiscard]] JsonObject& json() { return object_; }
  /// Empty where the document names none.
  [[nodiscard]] std::string_view model_type() const { return model_type_; }
  template <std::size_t n>
  [[nodiscard]] bool is_one_of(std::array<std::string_view, n> const& types) const {
    for (std::string_view const each : types) {
      if (each == model_type_) return true;
    }
    return false;
  }

  /// A field that is there and not null.
  [[nodiscard]] std::optional<JsonValue> find(std::string_view name) {
    auto const value = object_.find(name);
    return value && !value->is_null() ? value : std::nullopt;
  }
  /// A field that says something.
  [[nodiscard]] std::optional<JsonValue> said(std::string_view name) {
    auto const value = object_.find(name);
    return value && !says_nothing(*value) ? value : std::nullopt;
  }
  /// Whether a field is there and says that something is not so.
  [[nodiscard]] bool denied(std::string_view name) {
    auto const value = find(name);
    return value && says_nothing(*value);
  }
  /// A number from 1 on; 0 where the field is absent or says nothing.
  [[nodiscard]] std::int32_t number(std::string_view name) {
    auto const value = said(name);
    return value ? value->integer(1, static_cast<std::int32_t>(max_int32)) : 0;
  }

  /// The first of several names that the document has. @throws FormatError if another one says something else
  template <std::size_t n>
  [[nodiscard]] std::optional<ConfigField> one_of(FieldNames<n> const& names) {
    std::optional<ConfigField> first;
    for (std::string_view const name : names) {
      auto const value = name == names.front() ? find(name) : said(name);
      if (!value) continue;
      if (!first) {
        first = ConfigField{name, *value};
      } else if (name.ends_with("_per_layer")) {
        return ConfigField{name, *value};
      } else {
        require_same(*first, {name, *value});
      }
    }
    return first;
  }

 private:
  static void require_same(ConfigField const& first, ConfigField const& other) {
    if (first.value.kind() != JsonKind::integer) return;  // a list, or refused as soon as it is read
    auto const number = first.value.integer(std::int64_t{INT64_MIN}, std::int64_t{INT64_MAX});
    if (every(other.value, [&](JsonValue const& v) { return is_integer(v, number); })) return;
    other.value.fail(other.name, {number, ", as ", first.name, " says"});
  }

  JsonObject object_;
  std::string_view model_type_;
};

/// A field that only models have whose cache is not known here, or not what the other fields say.
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

inline constexpr std::array<UnknownField, 21> unknown_fields{{
    {"compress_ratios", "keys and values of several tokens in one", UnknownField::ratio},
    {"cross_attention_layers", "layers that attend to another input", UnknownField::indices},
    {"is_encoder_decoder", "layers that attend to another input"},
    {"add_cross_attention", "layers that attend to another input"},
    {"cla_share_factor", "layers that share a cache", UnknownField::ratio},
    {"kv_reuse_group", "layers that share a cache", UnknownField::indices},
    {"kv_reuse_every_i_layer", "layers that share a cache", UnknownField::ratio},
    {"use_yoco", "layers that share a cache"},
    {"yoco_cross_layers", "layers that share a cache", UnknownField::indices, "use_yoco"},
    {"mb_per_layer", "layers without keys and values"},
    {"mamba_enabled", "layers without keys and values"},
    {"mamba_step", "layers without keys and values", UnknownField::plain, "mamba_enabled"},
    {"hybrid_layer_ids", "layers without keys and values", UnknownField::indices},
    {"n_shared_head", "query heads that share a KV head by this name", UnknownField::ratio},
    {"swa_kv_lora_rank", "latents of several widths"},
    {"kv_lora_rank_swa", "latents of several widths"},
    {"n_recurrent_loops", "layers that run several times", UnknownField::ratio},
    {"num_loops", "layers that run several times", UnknownField::ratio},
    {"total_ut_steps", "layers that run several times", UnknownField::ratio},
    {"cross_layer_interval", "layers that attend to another input"},
    {"block_overrides", "layers with fields of their own"},
}};

/// Model types whose layers hold more than one cache.
inline constexpr FieldNames<2> several_caches_per_layer{"longcat_flash", "zamba2"};

/// Words in the names of fields that change the cache, and of such that do not.
inline constexpr FieldNames<5> cache_words{"window", "sliding", "key_value", "kv_", "_kv"};
inline constexpr FieldNames<7> other_words{"qkv", "norm", "bias", "quant", "dtype", "scal", "cache_implementation"};

/// Fields with such words that are read, or do nothing to the cache.
inline constexpr FieldNames<15> cache_fields{"use_sliding_window",
                                             "max_window_layers",
                                             "sliding_window_pattern",
                                             "_sliding_window_pattern",
                                             "num_kv_shared_layers",
                                             "kv_source_layers",
                                             "num_global_key_value_heads",
                                             "swa_num_key_value_heads",
                                             "kv_lora_rank",
                                             "kv_channels",
                                             "keep_window_size",
                                             "prefix_dense_sliding_window_pattern",
                                             "recurrent_kv_cache_mode",
                                             "num_sliding_attention_heads",
                                             "kv_cache"};

template <std::size_t n>
[[nodiscard]] bool is_listed(FieldNames<n> const& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// @throws FormatError naming a field that is not known here, by its name one that changes the cache
template <class = void>
void refuse_suspicious_fields(ConfigFields& fields) {
  fields.json().for_each([](std::string_view name, JsonValue const& value) {
    auto const holds = [&](std::string_view word) { return name.find(word) != std::string_view::npos; };
    if (std::none_of(cache_words.begin(), cache_words.end(), holds) ||
        std::any_of(other_words.begin(), other_words.end(), holds) || every(value, says_nothing)) {
      return;
    }
    bool const refused_by_name = std::any_of(unknown_fields.begin(), unknown_fields.end(),
                                             [&](UnknownField const& field) { return field.name == name; });
    if (refused_by_name || is_listed(cache_fields, name) || is_listed(window_names, name) ||
        is_listed(kv_head_names, name)) {
      return;
    }
    value.fail(name, "none: what it does to the cache is not known here");
  });
}

/// @throws FormatError naming the first field that is not known here, and why it is refused
template <class = void>
void refuse_unknown_fields(ConfigFields& fields) {
  for (UnknownField const& field : unknown_fields) {
    auto const value = fields.json().find(field.name);
    if (!value) continue;
    auto const harmless = [&](JsonValue const& v) {
      return says_nothing(v) || (field.kind == UnknownField::ratio && is_integer(v, 1));
    };
    bool const lists_layers =
        field.kind == UnknownField::indices && value->kind() == JsonKind::array && value->array().size() > 0;
    if (!lists_layers && every(*value, harmless)) continue;
    if (!field.switched_by.empty() && fields.denied(field.switched_by)) continue;
    value->fail(field.name, {"none: ", field.reason, " are not known here"});
  }
  refuse_suspicious_fields(fields);
  if (fields.is_one_of(several_caches_per_layer)) {
    fields.json()
        .get("model_type", "a string")
        .fail("model_type", "another one: several caches in a layer are not known here");
  }
}

/// The object that describes the language part: the document itself, or one in it.
/// @throws FormatError if both name numbers of layers, and others
template <class = void>
[[nodiscard]] ConfigFields language_fields(JsonObject document) {
  auto const type_of = [](JsonObject& object, std::string_view otherwise) {
    auto const type = object.find("model_type");
    return type && type->kind() == JsonKind::string ? type->string() : otherwise;
  };
  std::string_view type = type_of(document, "");
  for (int depth = 0; depth < 4; ++depth) {
    bool const counts = ConfigFields(document, type).one_of(layer_count_names).has_value();
    bool const lists = document.find("layers_block_type") || document.find("hybrid_override_pattern");
    std::optional<JsonValue> nested;
    for (std::string_view const name : nested_names) {
      if (!nested) nested = document.find(name);
    }
    if (!nested) break;
    if (counts || lists) {
      // Both may describe the language part, but then the same one.
      auto const layers = document.find(layer_count_names.front());
      auto const again =
          nested->kind() == JsonKind::object ? nested->object().find(layer_count_names.front()) : std::nullopt;
      bool const differ = layers && again && layers->kind() == JsonKind::integer &&
                          !is_integer(*again, layers->integer(std::int64_t{INT64_MIN}, std::int64_t{INT64_MAX}));
      if (differ) again->fail("num_hidden_layers", "the same as in the document itself");
      break;
    }
    document = nested->object();
    type = type_of(document, type);
  }
  return {document, type};
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
