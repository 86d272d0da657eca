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

inline constexpr std::array<LayerWord, 18> layer_words{{
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
  /// @param extra  layers beyond the model's own that a list may go on with: those that predict further tokens
  SeenByLayer(std::int32_t layers, std::int32_t extra) : said_(static_cast<std::size_t>(layers)), extra_(extra) {}

  [[nodiscard]] std::int32_t num_layers() const { return static_cast<std::int32_t>(said_.size()); }
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
    std::size_t const layers = said_.size();
    if (size == layers || (extra_ > 0 && size == layers + static_cast<std::size_t>(extra_))) return;
    place.fail(field, {layers, " entries, one per layer"}, {size, " entries"});
  }

 private:
  struct Said {
    Sees sees = Sees::unsaid;
    std::string_view field{};
  };
  std::vector<Said> said_;
  std::int32_t extra_;
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

inline constexpr std::array<LayerField, 17> layer_fields{{
    {"layer_types", read_layer_words<>},
    {"layers_block_type", read_layer_words<>},
    {"attention_layers", read_layer_words<>},
    {"block_types", read_cyclic_words<>},
    {"_block_types", read_cyclic_words<>},
    {"hybrid_override_pattern", read_layer_letters<>},
    {"hybrid_layer_pattern", read_layer_flags<Sees::everything, Sees::window>},
    {"attn_type_list", read_layer_flags<Sees::nothing, Sees::something>},
    {"attn_layer_indices", read_attending_layers<>},
    {"full_attn_idxs", read_attending_layers<>},
    {"linear_attn_config", read_linear_attention<>},
    {"full_attention_interval", read_attention_interval<>},
    {"layer_group_size", read_layer_groups<>},
    {"attn_layer_period", read_attention_period<>},
    {"sliding_window_pattern", read_window_pattern<>},
    {"_sliding_window_pattern", read_window_pattern<>},
    {"global_attn_every_n_layers", read_window_pattern<>},
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

/// Model types whose layers slide by turns although no field says so: the last of so many sees all tokens.
/// @par Source  configuration_*.py of Hugging Face transformers
struct SlidingTurns {
  std::string_view model_type;
  std::int32_t period;
};
inline constexpr std::array<SlidingTurns, 16> sliding_turns{{{"gemma2", 2},
                                                             {"gemma3", 6},
                                                             {"gemma3_text", 6},
                                                             {"gemma3n", 5},
                                                             {"gemma3n_text", 5},
                                                             {"gemma4", 6},
                                                             {"gemma4_text", 6},
                                                             {"gemma4_unified_text", 6},
                                                             {"vaultgemma", 2},
                                                             {"cohere2", 4},
                                                             {"gpt_oss", 2},
                                                             {"olmo3", 4},
                                                             {"exaone4", 4},
                                                             {"exaone_moe", 4},
                                                             {"afmoe", 4},
                                                             {"kolibri1", 5}}};

/// Model types of which every layer that attends slides, where there is a window.
inline constexpr FieldNames<10> sliding_types{"mistral", "mixtral", "ministral",       "phi3",       "phi3_v",
                                              "phimoe",  "phi4mm",  "phi4_multimodal", "starcoder2", "recurrent_gemma"};

/// Model types without attention, and those of which only some layers attend: which, is not for the type to say.
inline constexpr FieldNames<10> attention_free_types{"mamba", "mamba2", "falcon_mamba", "rwkv",  "rwkv5",
                                                     "rwkv6", "rwkv7",  "rwkv6qwen2",   "xlstm", "mamba_ssm"};
inline constexpr FieldNames<14> hybrid_types{"bamba",           "jamba",         "granitemoehybrid", "qwen3_next",
                                             "qwen3_5_text",    "nemotron_h",    "qwen3_5_moe_text", "kimi_linear",
                                             "recurrent_gemma", "lfm2",          "lfm2_moe",         "minimax",
                                             "olmo_hybrid",     "bailing_hybrid"};

/// Applies what a model type says by itself. @throws FormatError if no field says which layers of a hybrid model attend
template <class = void>
void read_model_type(ConfigFields& fields, SeenByLayer& seen) {
  if (fields.is_one_of(attention_free_types)) {
    for (std::int32_t i = 0; i < seen.num_layers(); ++i) seen.set(i, Sees::nothing);
  } else if (fields.is_one_of(hybrid_types) && seen.none_said()) {
    fields.json().fail("layers of the model type",
                       "a field that says which of them have keys and values, such as layer_types",
                       quoted(fields.model_type()));
  }
}

/// Decides for the layers of which fields say that they attend, or nothing at all.
/// @param window  the field of the window, if there is one that is not switched off
/// @throws FormatError if the model has a window, and it is not known here which layers
template <class = void>
void settle_windows(ConfigFields& fields, std::optional<ConfigField> const& window, SeenByLayer& seen) {
  auto const settle = [&](auto const& sees_of_layer) {
    for (std::int32_t i = 0; i < seen.num_layers(); ++i) {
      if (seen[i] == Sees::unsaid || seen[i] == Sees::something) seen.set(i, sees_of_layer(i));
    }
  };
  bool open = false;
  for (std::int32_t i = 0; i < seen.num_layers(); ++i) open |= seen[i] == Sees::unsaid || seen[i] == Sees::something;
  if (!open) return;
  SlidingTurns const* turns = nullptr;
  for (SlidingTurns const& each : sliding_turns) {
    if (each.model_type == fields.model_type() && seen.none_said()) turns = &each;
  }
  if (!window) {
    // Only null says that they do not slide: an absent window is the one of the model's class.
    if (turns != nullptr) (void)fields.json().get(window_names.front(), "an integer or null");
    settle([](std::int32_t) { return Sees::everything; });
    return;
  }
  if (window->value.kind() == JsonKind::array) {  // one per layer, null for none
    JsonArray const list = window->value.array();
    seen.require_size(window->name, list, list.size());
    std::int32_t i = 0;
    for (JsonValue const each : list) {
      if (i == seen.num_layers()) break;
      seen.say(i++, says_nothing(each) ? Sees::everything : Sees::window, window->name, each);
    }
    return;
  }
  if (turns != nullptr) {
    settle([&](std::int32_t i) { return (i + 1) % turns->period == 0 ? Sees::everything : Sees::window; });
    // Gemma 4 ends with such a layer whatever its number.
    if (turns->model_type.starts_with("gemma4")) seen.set(seen.num_layers() - 1, Sees::everything);
    return;
  }
  bool const switched_on = fields.said("use_sliding_window").has_value();
  std::int32_t first = 0;
  if (auto const from = fields.find("max_window_layers"); from && (switched_on || fields.model_type() == "dots1")) {
    first = from->integer(0, static_cast<std::int32_t>(max_int32));
  }
  bool const moe = fields.model_type().find("moe") != std::string_view::npos && fields.model_type() != "phimoe";
  if ((switched_on && !moe) || fields.model_type().empty() || fields.model_type() == "dots1" ||
      fields.is_one_of(sliding_types)) {
    settle([&](std::int32_t i) { return i >= first ? Sees::window : Sees::everything; });
    return;
  }
  window->value.fail(window->name, {"none: which layers of the model type ", quoted(fields.model_type()),
                                    " have a window is not known here"});
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
