#pragma once

// What model types and windows say about layers of which no field of a `config.json` says everything.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/config_defaults.hpp>
#include <headaware/io/detail/config_fields.hpp>
#include <headaware/io/detail/config_layers.hpp>
#include <headaware/io/detail/recurrent_names.hpp>
#include <headaware/io/json_tree.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

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

/// Twice the window (ModernBERT).
inline constexpr std::string_view twice_window_name = "local_attention";
/// The first layer that slides.
inline constexpr std::string_view window_layers_name = "max_window_layers";

/// Applies what a model type says by itself. @throws FormatError if no field says which layers of a hybrid model attend
template <class = void>
void read_model_type(ConfigFields& fields, SeenByLayer& seen) {
  if (fields.is_one_of(attention_free_types)) {
    for (std::int32_t i = 0; i < seen.num_layers(); ++i) seen.set(i, Sees::nothing);
  } else if (seen.none_said() && (fields.is_one_of(hybrid_types) || is_recurrent(fields.model_type()))) {
    fields.json().fail("layers of the model type",
                       "a field that says which of them have keys and values, such as layer_types",
                       quoted(fields.model_type()));
  }
}

/// The first layer that slides in models that say where windows begin. Nothing: this one does not, or not in a way
/// that is known here
template <class = void>
[[nodiscard]] std::optional<std::int32_t> first_window_layer(ConfigFields& fields) {
  std::string_view const type = fields.model_type();
  bool const moe = type.find("moe") != std::string_view::npos && type != "phimoe";
  if (type != "dots1" && (!fields.said("use_sliding_window") || moe)) return std::nullopt;
  auto const from = fields.find(window_layers_name);
  return from ? from->integer(0, static_cast<std::int32_t>(max_int32)) : 0;
}

/// @throws FormatError unless layers of which fields say what they see slide from `max_window_layers` on
template <class = void>
void check_window_layers(ConfigFields& fields, SeenByLayer& seen) {
  auto const from = fields.find(window_layers_name);
  auto const first = first_window_layer(fields);
  if (!from || !first) return;
  for (std::int32_t i = 0; i < seen.num_layers(); ++i) {
    if (seen[i] != Sees::window && seen[i] != Sees::everything) continue;
    seen.say(i, i >= *first ? Sees::window : Sees::everything, window_layers_name, *from);
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
    bool const off = fields.denied("use_sliding_window") || fields.one_of(window_names);
    if (!off) require_shown(fields, window_names.front());
    settle([](std::int32_t) { return Sees::everything; });
    return;
  }
  if (window->value.kind() == JsonKind::array) {  // one per layer, null for none
    JsonArray const list = window->value.array();
    seen.require_size(window->name, list, list.size());
    std::int32_t i = 0;
    for (JsonValue const each : list) {
      if (i == seen.num_layers()) break;
      seen.say(i++, is_no_window(each) ? Sees::everything : Sees::window, window->name, each);
    }
    return;
  }
  if (turns != nullptr) {
    settle([&](std::int32_t i) { return (i + 1) % turns->period == 0 ? Sees::everything : Sees::window; });
    // Gemma 4 ends with such a layer whatever its number.
    if (turns->model_type.starts_with("gemma4")) seen.set(seen.num_layers() - 1, Sees::everything);
    return;
  }
  auto const first = first_window_layer(fields);
  if (first || fields.model_type().empty() || fields.is_one_of(sliding_types)) {
    settle([&](std::int32_t i) { return i >= first.value_or(0) ? Sees::window : Sees::everything; });
    return;
  }
  window->value.fail(window->name, {"none: which layers of the model type ", quoted(fields.model_type()),
                                    " have a window is not known here"});
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
