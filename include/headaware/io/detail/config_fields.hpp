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

/// True of windows that are switched off: -1 is all tokens in some models.
[[nodiscard]] inline bool is_no_window(JsonValue const& value) { return says_nothing(value) || is_integer(value, -1); }

/// A field and the name it has in this document.
struct ConfigField {
  std::string_view name;
  JsonValue value;
};

/// Layers of a model, and those beyond them that lists of its layers may go on with: they predict further tokens.
struct LayerCount {
  std::int32_t own = 0;
  std::int32_t extra = 0;

  /// Whether a list of so many has an entry per layer.
  [[nodiscard]] bool is_listed(std::size_t entries) const {
    auto const layers = static_cast<std::size_t>(own);
    return entries == layers || (extra > 0 && entries == layers + static_cast<std::size_t>(extra));
  }
};

/// A count of every layer: one number, or one per layer.
class PerLayer {
 public:
  explicit PerLayer(std::int32_t all = 0) : values_{all} {}
  explicit PerLayer(std::vector<std::int32_t> values) : values_(std::move(values)) {}

  /// @throws FormatError unless a list holds a number per layer, all in [low, high]
  PerLayer(JsonValue const& value, LayerCount const& layers, std::int32_t low, std::int32_t high) {
    if (value.kind() != JsonKind::array) {
      values_ = {value.integer(low, high)};
      return;
    }
    JsonArray const list = value.array();
    if (!layers.is_listed(list.size())) {
      list.fail("number of layers", {layers.own, ", one per layer"}, list.size());
    }
    for (JsonValue const each : list) values_.push_back(each.integer(low, high));
    values_.resize(static_cast<std::size_t>(layers.own));
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
    return std::find(types.begin(), types.end(), model_type_) != types.end();
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

template <std::size_t n>
[[nodiscard]] bool is_listed(FieldNames<n> const& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
