#pragma once

// The part of a sequence that each layer of a model sees, by the fields of its `config.json`: everything before a
// token, a window, or nothing.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/config_fields.hpp>
#include <headaware/io/json_tree.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// The part of a sequence that a layer sees, as far as fields have said.
enum class Sees : std::uint8_t {
  unsaid,
  nothing,    ///< no cache
  something,  ///< it attends; whether to all tokens or to a window is for other fields to say
  window,
  everything,
};

inline constexpr FieldNames<5> sees_names{"nothing said", "no keys and values", "attention", "attention to a window",
                                          "attention to all tokens"};

/// A word of a document for what a layer sees.
struct LayerWord {
  std::string_view word;
  Sees sees;
};

inline constexpr std::array<LayerWord, 22> layer_words{{
    {"full_attention", Sees::everything},
    {"global", Sees::everything},
    {"indexed_attention", Sees::everything},
    {"deepseek_sparse_attention", Sees::everything},
    {"attention", Sees::something},
    {"sliding_attention", Sees::window},
    {"local", Sees::window},
    {"linear_attention", Sees::nothing},
    {"mamba", Sees::nothing},
    {"mamba2", Sees::nothing},
    {"conv", Sees::nothing},
    {"recurrent", Sees::nothing},
    {"moe", Sees::nothing},
    {"mlp", Sees::nothing},
    {"*", Sees::something},
    {"M", Sees::nothing},
    {"E", Sees::nothing},
    {"-", Sees::nothing},
    {"t", Sees::something},
    {"m", Sees::nothing},
    {"m2", Sees::nothing},
    {"m2d", Sees::nothing},
}};

[[nodiscard]] inline std::optional<Sees> sees_of(std::string_view word) {
  for (LayerWord const& each : layer_words) {
    if (each.word == word) return each.sees;
  }
  return std::nullopt;
}

/// Collects the statements of fields about the layers, one field after the other; they have to agree.
class SeenByLayer {
 public:
  explicit SeenByLayer(LayerCount const& layers) : said_(static_cast<std::size_t>(layers.own)), layers_(layers) {}

  [[nodiscard]] LayerCount const& layers() const { return layers_; }
  [[nodiscard]] std::int32_t num_layers() const { return layers_.own; }
  [[nodiscard]] Sees operator[](std::int32_t layer) const { return said_[static_cast<std::size_t>(layer)].sees; }
  void set(std::int32_t layer, Sees sees) { said_[static_cast<std::size_t>(layer)].sees = sees; }
  [[nodiscard]] bool none_said() const {
    for (Said const& each : said_) {
      if (each.sees != Sees::unsaid) return false;
    }
    return true;
  }

  /// @param place  where the document says so. @throws FormatError if another field has said something else
  void say(std::int32_t layer, Sees sees, std::string_view field, JsonValue const& place) {
    Said& said = said_[static_cast<std::size_t>(layer)];
    auto const attends = [](Sees s) { return s == Sees::window || s == Sees::everything; };
    if (said.sees == sees || (sees == Sees::something && attends(said.sees))) return;
    if (said.sees != Sees::unsaid && !(said.sees == Sees::something && attends(sees))) {
      place.fail(field,
                 {sees_names[static_cast<std::size_t>(said.sees)], " in layer ", layer, ", as ", said.field, " says"},
                 sees_names[static_cast<std::size_t>(sees)]);
    }
    said = {sees, field};
  }
  /// The same for every layer, by its number.
  template <class SeesOf>
  void say_all(std::string_view field, JsonValue const& place, SeesOf const& sees_of_layer) {
    for (std::int32_t i = 0; i < num_layers(); ++i) say(i, sees_of_layer(i), field, place);
  }

  /// @throws FormatError unless a list of `size` has an entry per layer
  void require_size(std::string_view field, JsonValue const& place, std::size_t size) const {
    if (!layers_.is_listed(size)) place.fail(field, {layers_.own, " entries, one per layer"}, {size, " entries"});
  }

 private:
  struct Said {
    Sees sees = Sees::unsaid;
    std::string_view field{};
  };
  std::vector<Said> said_;
  LayerCount layers_;
};

/// A field that says what layers see.
struct LayerField {
  std::string_view name;
  void (*read)(ConfigField const&, ConfigFields&, SeenByLayer&);
};

/// A word per layer.
template <class = void>
void read_layer_words(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  JsonArray const list = field.value.array();
  seen.require_size(field.name, list, list.size());
  std::int32_t layer = 0;
  for (JsonValue const each : list) {
    if (layer == seen.num_layers()) break;
    auto const sees = sees_of(each.string());
    if (!sees) each.fail(field.name, "kinds of layers that are known here");
    seen.say(layer++, *sees, field.name, each);
  }
}

/// Words that layers take in turn (RecurrentGemma).
template <class = void>
void read_cyclic_words(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  std::vector<Sees> words;
  for (JsonValue const each : field.value.array()) {
    auto const sees = sees_of(each.string());
    if (!sees) each.fail(field.name, "kinds of layers that are known here");
    words.push_back(*sees);
  }
  seen.say_all(field.name, field.value,
               [&](std::int32_t i) { return words[static_cast<std::size_t>(i) % words.size()]; });
}

/// Words that so many layers in a row take in turn: [[words, times], ...] (GPT-Neo).
template <class = void>
void read_repeated_words(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  std::int32_t layer = 0;
  for (JsonValue const each : field.value.array()) {
    JsonArray const run = each.array();
    if (run.size() != 2) run.fail(field.name, "words, and how often they come");
    JsonArray const words = (*run.begin()).array();
    std::int32_t const times = (*++run.begin()).integer(1, max_index);
    if (words.size() == 0) words.fail(field.name, "words");
    for (std::int32_t i = 0; i < times; ++i) {
      for (JsonValue const word : words) {
        auto const sees = sees_of(word.string());
        if (!sees || layer == seen.num_layers()) {
          word.fail(field.name, {"kinds of the ", seen.num_layers(), " layers, known here"});
        }
        seen.say(layer++, *sees, field.name, word);
      }
    }
  }
  seen.require_size(field.name, field.value, static_cast<std::size_t>(layer));
}

/// A letter per layer (Nemotron-H).
template <class = void>
void read_layer_letters(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  std::string_view const letters = field.value.string();
  seen.require_size(field.name, field.value, letters.size());
  seen.say_all(field.name, field.value, [&](std::int32_t i) {
    auto const sees = sees_of(letters.substr(static_cast<std::size_t>(i), 1));
    if (!sees) field.value.fail(field.name, "letters of layers that are known here: M, E, - and *");
    return *sees;
  });
}

/// 0 or 1 per layer. @tparam zero, one  their meaning
template <Sees zero, Sees one>
void read_layer_flags(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  JsonArray const list = field.value.array();
  seen.require_size(field.name, list, list.size());
  std::int32_t layer = 0;
  for (JsonValue const each : list) {
    if (layer == seen.num_layers()) break;
    seen.say(layer++, each.integer(0, 1) == 0 ? zero : one, field.name, each);
  }
}

/// The layers that attend, by number. @param first  the number of the first layer
template <class = void>
void say_listed(std::string_view name, JsonValue const& value, std::int32_t first, Sees sees, SeenByLayer& seen) {
  for (JsonValue const each : value.array()) {
    seen.say(each.integer(first, seen.num_layers() - 1 + first) - first, sees, name, each);
  }
}
template <class = void>
void read_attending_layers(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  std::vector<bool> attends(static_cast<std::size_t>(seen.num_layers()));
  for (JsonValue const each : field.value.array()) {
    attends[static_cast<std::size_t>(each.integer(0, seen.num_layers() - 1))] = true;
  }
  seen.say_all(field.name, field.value,
               [&](std::int32_t i) { return attends[static_cast<std::size_t>(i)] ? Sees::something : Sees::nothing; });
}

/// The layers without keys and values, by number; the others are listed as well (StripedHyena).
template <class = void>
void read_recurrent_layers(ConfigField const& field, ConfigFields& fields, SeenByLayer& seen) {
  (void)fields.json().get("attn_layer_idxs", "an array");
  say_listed(field.name, field.value, 0, Sees::nothing, seen);
}

/// Numbers of layers of both kinds, from 1 on (Kimi Linear).
template <class = void>
void read_linear_attention(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  JsonObject object = field.value.object();
  say_listed(field.name, object.get("kda_layers", "an array"), 1, Sees::nothing, seen);
  say_listed(field.name, object.get("full_attn_layers", "an array"), 1, Sees::something, seen);
  for (std::int32_t i = 0; i < seen.num_layers(); ++i) {
    if (seen[i] == Sees::unsaid)
      field.value.fail(field.name, "every layer in one of its lists", {"none with layer ", i + 1});
  }
}

/// The last layer of every so many attends, the others have no cache (Qwen3-Next).
template <class = void>
void read_attention_interval(ConfigField const& field, ConfigFields&, SeenByLayer& seen) {
  std::int32_t const period = field.value.integer(1, max_index);
  seen.say_all(field.name, field.value,
               [&](std::int32_t i) { return (i + 1) % period == 0 ? Sees::something : Sees::nothing; });
}
/// The same; where the layers are no multiple, models differ in those that are left.
template <class = void>
void read_layer_groups(ConfigField const& field, ConfigFields& fields, SeenByLayer& seen) {
  std::int32_t const period = field.value.integer(1, max_index);
  if (seen.num_layers() % period != 0)
    field.value.fail(field.name, {"a divisor of the ", seen.num_layers(), " layers"});
  read_attention_interval(field, fields, seen);
}
/// One layer of every so many attends (Jamba).
template <class = void>
void read_attention_period(ConfigField const& field, ConfigFields& fields, SeenByLayer& seen) {
  std::int32_t const period = field.value.integer(1, max_index);
  std::int32_t const offset =
      period > 1 ? fields.json().get("attn_layer_offset", "an integer").integer(0, period - 1) : 0;
  seen.say_all(field.name, field.value,
               [&](std::int32_t i) { return i % period == offset ? Sees::something : Sees::nothing; });
}

/// The last layer of every so many sees all, the others a window: a period, or letters such as LLLG.
template <class = void>
void read_window_pattern(ConfigField const& field, ConfigFields& fields, SeenByLayer& seen) {
  if (!fields.one_of(window_names)) return;  // no window: nothing to take turns with
  if (field.value.kind() == JsonKind::string) {
    std::string_view const letters = field.value.string();
    bool const known = letters.find_first_not_of("LG") == std::string_view::npos;
    if (!known) field.value.fail(field.name, "the letters L and G");
    seen.say_all(field.name, field.value, [&](std::int32_t i) {
      return letters[static_cast<std::size_t>(i) % letters.size()] == 'G' ? Sees::everything : Sees::window;
    });
    return;
  }
  std::int32_t const period = field.value.integer(1, max_index);
  seen.say_all(field.name, field.value,
               [&](std::int32_t i) { return (i + 1) % period == 0 ? Sees::everything : Sees::window; });
}

/// One layer of every so many sees all, the others a window: the first one (ModernBERT), or the last one (AFMoE).
template <class = void>
void read_global_interval(ConfigField const& field, ConfigFields& fields, SeenByLayer& seen) {
  bool const first = fields.model_type() == "modernbert-decoder";
  if (!first && fields.model_type() == "afmoe") return read_window_pattern(field, fields, seen);
  std::int32_t const period = field.value.integer(1, max_index);
  if (!first && period != 1) {
    field.value.fail(field.name, {"1: which layer of every so many sees all tokens is not known of the model type ",
                                  quoted(fields.model_type())});
  }
  seen.say_all(field.name, field.value,
               [&](std::int32_t i) { return i % period == 0 ? Sees::everything : Sees::window; });
}

inline constexpr std::array<LayerField, 24> layer_fields{{
    {"layer_types", read_layer_words<>},
    {"layers_block_type", read_layer_words<>},
    {"attention_layers", read_layer_words<>},
    {"attention_types", read_repeated_words<>},
    {"hybrid_block_layout", read_layer_words<>},
    {"block_types", read_cyclic_words<>},
    {"_block_types", read_cyclic_words<>},
    {"hybrid_override_pattern", read_layer_letters<>},
    {"hybrid_layer_pattern", read_layer_flags<Sees::everything, Sees::window>},
    {"attn_type_list", read_layer_flags<Sees::nothing, Sees::something>},
    {"attn_layer_indices", read_attending_layers<>},
    {"attn_layer_idxs", read_attending_layers<>},
    {"hyena_layer_idxs", read_recurrent_layers<>},
    {"hcl_layer_idxs", read_recurrent_layers<>},
    {"hcm_layer_idxs", read_recurrent_layers<>},
    {"hcs_layer_idxs", read_recurrent_layers<>},
    {"full_attn_idxs", read_attending_layers<>},
    {"linear_attn_config", read_linear_attention<>},
    {"full_attention_interval", read_attention_interval<>},
    {"layer_group_size", read_layer_groups<>},
    {"attn_layer_period", read_attention_period<>},
    {"sliding_window_pattern", read_window_pattern<>},
    {"_sliding_window_pattern", read_window_pattern<>},
    {"global_attn_every_n_layers", read_global_interval<>},
}};

/// The layers that a list of one entry per layer has, where no field counts them. 0: there is no such list
template <class = void>
[[nodiscard]] std::int32_t count_listed_layers(ConfigFields& fields) {
  for (std::string_view const name : {"layers_block_type", "layer_types", "block_configs", "hybrid_override_pattern"}) {
    auto const value = fields.said(name);
    if (!value) continue;
    std::size_t const size = value->kind() == JsonKind::string ? value->string().size() : value->array().size();
    if (size > static_cast<std::size_t>(max_index)) value->fail(name, {"at most ", max_index, " layers"}, size);
    return static_cast<std::int32_t>(size);
  }
  return 0;
}

/// Reads all fields of `layer_fields`. @throws FormatError as the fields' readers, or if they contradict
/// each other
template <class = void>
void read_layer_fields(ConfigFields& fields, SeenByLayer& seen) {
  for (LayerField const& field : layer_fields) {
    if (auto const value = fields.said(field.name)) field.read({field.name, *value}, fields, seen);
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
