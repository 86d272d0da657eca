#pragma once

// Fields of a Hugging Face `config.json` that change the cache in a way that is not known here: by their names, or by
// words in them.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/config_fields.hpp>
#include <headaware/io/detail/config_layers.hpp>
#include <headaware/io/detail/text.hpp>
#include <headaware/io/json_tree.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

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

inline constexpr std::array<UnknownField, 28> unknown_fields{{
    {"compress_ratios", "keys and values of several tokens in one", UnknownField::ratio},
    {"cross_attention_layers", "layers that attend to another input", UnknownField::indices},
    {"is_encoder_decoder", "layers that attend to another input"},
    {"add_cross_attention", "layers that attend to another input"},
    {"use_cla", "layers that share a cache"},
    {"cla_share_factor", "layers that share a cache", UnknownField::ratio, "use_cla"},
    {"layer_sharing", "layers that share a cache"},
    {"kv_reuse_group", "layers that share a cache", UnknownField::indices},
    {"kv_reuse_every_i_layer", "layers that share a cache", UnknownField::ratio},
    {"use_yoco", "layers that share a cache"},
    {"yoco_cross_layers", "layers that share a cache", UnknownField::indices, "use_yoco"},
    {"mb_per_layer", "layers without keys and values"},
    {"mamba_enabled", "layers without keys and values"},
    {"mamba_step", "layers without keys and values", UnknownField::plain, "mamba_enabled"},
    {"mamba_layers", "layers without keys and values", UnknownField::indices},
    {"hybrid_layer_ids", "layers without keys and values", UnknownField::indices},
    {"mla_layers", "layers of which only some hold a latent", UnknownField::indices},
    {"num_meta_tokens", "tokens that every sequence begins with"},
    {"n_shared_head", "query heads that share a KV head by this name", UnknownField::ratio},
    {"proj_groups", "query heads that share a KV head by this name", UnknownField::ratio},
    {"swa_kv_lora_rank", "latents of several widths"},
    {"kv_lora_rank_swa", "latents of several widths"},
    {"n_recurrent_loops", "layers that run several times", UnknownField::ratio},
    {"num_loops", "layers that run several times", UnknownField::ratio},
    {"total_ut_steps", "layers that run several times", UnknownField::ratio},
    {"cross_layer_interval", "layers that attend to another input"},
    {"full_attn_mod", "layers that see less", UnknownField::ratio},
    {"block_overrides", "layers with fields of their own"},
}};

/// Model types whose layers hold more than one cache.
inline constexpr FieldNames<3> several_caches_per_layer{"longcat_flash", "longcat_flash_ngram", "zamba2"};

/// Words, each between spaces, in the names of fields that change the cache whatever is in them.
inline constexpr std::string_view cache_words =
    "window sliding key_value kv_ _kv swa_ _swa mixer layout sharing share_layer shared_layer reuse meta_token "
    "sink_token num_sink memory_token global_att global_layer local_att local_layer local_block blocksparse "
    "block_sparse sparse_att sparse_block sparse_config dense_att cross_att cross_layer full_att linear_att attn_type "
    "attention_type attn_layer attention_layer attn_idx attn_interval block_type layer_type layers_type pattern "
    "schedule hybrid recurr rwkv retention lightning mla loop cycle compress chunk_att attention_chunk attn_chunk "
    "landmark mamba_layer lsh_ yoco";
/// Words of lists and objects, which may say something else of every layer.
inline constexpr std::string_view list_words = "layer attn attention block idx index indices type per_head head";
/// Words of integers, by which layers may be counted off, or heads.
inline constexpr std::string_view number_words = "attn attention every interval period n_layers";
/// Words of layers' states without keys and values.
inline constexpr std::string_view state_words =
    "mamba ssm conv hyena linear_num linear_key linear_value kda delta_rule d_state state_size time_step dt_rank "
    "gla_ expand_k expand_v short_filter";
/// Words of what is no part of the cache.
inline constexpr std::string_view other_words =
    "qkv norm bias quant dtype scal cache_implementation drop rope rotary vocab token_id token_index expert moe "
    "router mlp ffn ff_dim logit init _eps loss vision visual image audio video speech mm_ projector mtp nextn "
    "attn_impl attn_implementation multiplier temperature factor relative_attention label embed embd epsilon";

/// Fields that are read beside those that are in lists of names.
inline constexpr std::string_view other_read_fields =
    "use_sliding_window max_window_layers local_attention num_kv_shared_layers kv_source_layers "
    "num_global_key_value_heads global_head_dim attention_k_eq_v swa_num_attention_heads "
    "num_sliding_attention_heads swa_num_key_value_heads swa_head_dim swa_v_head_dim attention_other_setting "
    "kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim use_mla multi_query multi_query_attention "
    "attn_config attn_layer_offset attention_chunk_size block_configs per_layer_config num_key_value_groups";
/// Fields with words of the cache that do nothing to it.
inline constexpr std::string_view harmless_fields =
    "keep_window_size prefix_dense_sliding_window_pattern recurrent_kv_cache_mode kv_cache use_kv_cache "
    "activation_sparsity_pattern num_ln_in_parallel_attn ple_layer_ids num_hash_layers num_dense_layers "
    "n_dense_layers num_nextn_predict_layers mla_use_nope dual_chunk_attention_config compression_ratio model_type "
    "pruned_heads attention_dtype block_auto_adjust_ff_dim auto_map task_specific_params";

/// Whether a field is refused by its name, or has been found harmless.
[[nodiscard]] inline bool is_unknown(std::string_view name) {
  return std::any_of(unknown_fields.begin(), unknown_fields.end(),
                     [&](auto const& field) { return field.name == name; });
}

/// Whether a field is read here.
[[nodiscard]] inline bool is_read(std::string_view name) {
  auto const named = [&](auto const& each) { return each.name == name; };
  return is_any(name, other_read_fields) || is_listed(layer_count_names, name) || is_listed(query_head_names, name) ||
         is_listed(kv_head_names, name) || is_listed(head_dim_names, name) || is_listed(window_names, name) ||
         std::any_of(layer_fields.begin(), layer_fields.end(), named);
}

/// The same as `says_nothing` of a list's elements, but for a list of layer 0 alone.
[[nodiscard]] inline bool is_empty(JsonValue const& value) {
  bool const one = value.kind() == JsonKind::array && value.array().size() == 1;
  return !(one && is_integer(*value.array().begin(), 0)) && every(value, says_nothing);
}

/// Whether a field that is not known here changes the cache, by its name.
template <class = void>
[[nodiscard]] bool is_suspicious(std::string_view name, JsonValue const& value) {
  if (is_empty(value) || is_unknown(name) || is_read(name) || is_any(name, harmless_fields) ||
      is_listed(nested_names, name)) {
    return false;
  }
  // What an index of a latent's rows keeps for itself is no part of the cache's shape.
  if (name.starts_with("index") || holds_any(name, other_words)) return false;
  if (holds_any(name, cache_words)) return true;
  switch (value.kind()) {
    case JsonKind::array:
    case JsonKind::object: return holds_any(name, list_words);
    case JsonKind::integer: return holds_any(name, number_words) || name.ends_with("_layers");
    default: return false;
  }
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
  auto const refuse = [](std::string_view name, JsonValue const& value) {
    if (is_suspicious(name, value)) value.fail(name, "none: what it does to the cache is not known here");
  };
  fields.json().for_each(refuse);
  if (auto const attention = fields.said("attn_config"); attention && attention->kind() == JsonKind::object) {
    attention->object().for_each([&](std::string_view name, JsonValue const& value) {
      if (name != "attn_type") refuse(name, value);  // read with the KV heads
    });
  }
  if (fields.is_one_of(several_caches_per_layer)) {
    fields.json()
        .get("model_type", "a string")
        .fail("model_type", "another one: several caches in a layer are not known here");
  }
}

/// @throws FormatError naming a field of layers without keys and values, of which none says which they are
template <class = void>
void refuse_unexplained_state(ConfigFields& fields, SeenByLayer const& seen) {
  // Every layer of Falcon-H1 has both.
  if (!seen.none_said() || fields.model_type() == "falcon_h1") return;
  fields.json().for_each([](std::string_view name, JsonValue const& value) {
    if (is_empty(value) || is_unknown(name) || !holds_any(name, state_words) || holds_any(name, other_words)) return;
    value.fail(name, "none: which layers have no keys and values is not known here");
  });
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
