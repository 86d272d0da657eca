#pragma once

// Heads and channels of a model's layers, by the fields of its `config.json`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/config_defaults.hpp>
#include <headaware/io/detail/config_fields.hpp>
#include <headaware/io/detail/config_layers.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/model_shape.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Query heads of every layer. @throws FormatError if they are absent or no positive numbers
template <class = void>
[[nodiscard]] PerLayer read_query_heads(ConfigFields& fields, LayerCount const& layers) {
  if (auto const heads = fields.one_of(query_head_names)) return {heads->value, layers, 1, max_index};
  if (auto const* const defaults = class_defaults_of(fields.model_type())) return PerLayer(defaults->num_query_heads);
  return {fields.json().get(query_head_names.front(), "an integer"), layers, 1, max_index};
}

/// Whether all query heads share one KV head, by the older fields of Falcon and StarCoder; in those, other fields then
/// say nothing.
template <class = void>
[[nodiscard]] bool is_multi_query(ConfigFields& fields, std::optional<ConfigField> const& heads) {
  bool const falcon = fields.model_type() == "falcon" || fields.model_type().starts_with("RefinedWeb");
  bool const star_coder = fields.model_type() == "gpt_bigcode";
  auto const multi_query = fields.find("multi_query");
  bool const on = multi_query ? !says_nothing(*multi_query) : star_coder || (falcon && !heads);
  if (!on || fields.said("new_decoder_architecture")) return false;
  if (falcon && heads && heads->name == "n_head_kv") return false;
  if (!falcon && !star_coder && heads && !is_integer(heads->value, 1)) {
    multi_query->fail("multi_query", {"false, as ", heads->name, " says other than one KV head"});
  }
  return true;
}

/// @throws FormatError unless `num_key_value_groups` is the number of query heads per KV head of every layer
template <class = void>
void check_groups(ConfigFields& fields, LayerCount const& layers, PerLayer const& query, PerLayer const& kv) {
  auto const groups = fields.said("num_key_value_groups");
  if (!groups) return;
  for (std::int32_t i = 0; i < layers.own; ++i) {
    if (kv(i) != 0 && !is_integer(*groups, query(i) / kv(i))) {
      groups->fail("num_key_value_groups", {query(i) / kv(i), ", the query heads per KV head of layer ", i});
    }
  }
}

/// KV heads of every layer, 0 where it has none. @param query  query heads
/// @throws FormatError if a field names none that the query heads share evenly, or fields contradict each other
template <class = void>
[[nodiscard]] PerLayer read_kv_heads(ConfigFields& fields, LayerCount const& layers, PerLayer const& query) {
  std::optional<ConfigField> heads = fields.one_of(kv_head_names);
  if (heads && heads->name == "multi_query_group_num" && fields.denied("multi_query_attention")) heads.reset();
  bool const dbrx = fields.model_type() == "dbrx";
  if (dbrx) (void)fields.json().get("attn_config", "an object").object();
  if (auto const attention = fields.find("attn_config"); attention && attention->kind() == JsonKind::object) {
    JsonObject object = attention->object();  // DBRX, MPT
    auto const nested = object.find("kv_n_heads");
    if (nested && !says_nothing(*nested)) heads = ConfigField{"kv_n_heads", *nested};
    auto const type = object.find("attn_type");
    bool const fewer = type && type->kind() == JsonKind::string && type->string() != "multihead_attention";
    if (!heads && (dbrx || fewer)) {
      (void)object.get("kv_n_heads", "an integer, as the class of the model type has a default").integer(1, max_index);
    }
  }
  if (is_multi_query(fields, heads)) return PerLayer(1);
  if (!heads) {
    auto const* const defaults = class_defaults_of(fields.model_type());
    auto const kv = fields.json().find(kv_head_names.front());
    if (defaults != nullptr && !kv) return PerLayer(defaults->num_kv_heads);
    require_shown(fields, kv_head_names.front());
    if (fields.said("multi_query_attention")) (void)fields.json().get("multi_query_group_num", "an integer");
    return query;
  }
  bool const list = heads->value.kind() == JsonKind::array || query.list();
  PerLayer kv(heads->value, layers, list ? 0 : 1, list ? max_index : query(0));
  for (std::int32_t i = 0; i < (list ? layers.own : 1); ++i) {
    if (kv(i) == 0 || query(i) % kv(i) == 0) continue;
    heads->value.fail("uneven groups", {"a divisor of num_attention_heads (", query(i), ")"}, kv(i));
  }
  return kv;
}

/// Channels of a key. 0: no field says. @throws FormatError if fields contradict each other
template <class = void>
[[nodiscard]] std::int32_t read_head_dim(ConfigFields& fields, PerLayer const& query) {
  constexpr auto most = static_cast<std::int32_t>(max_int32);
  std::int32_t head_dim = 0;
  if (auto const given = fields.one_of(head_dim_names)) {
    head_dim = given->value.integer(1, most);
  } else if (auto const* const defaults = class_defaults_of(fields.model_type())) {
    head_dim = defaults->head_dim;
  } else if (require_shown(fields, head_dim_names.front()); fields.one_of(hidden_size_names) && !query.list()) {
    auto const hidden = fields.one_of(hidden_size_names);
    std::int32_t const size = hidden->value.integer(1, most);
    if (size % query(0) != 0) {
      hidden->value.fail("uneven heads", {"a multiple of num_attention_heads (", query(0), ")"});
    }
    head_dim = size / query(0);
  }
  std::int64_t const parts = std::int64_t{fields.number("qk_nope_head_dim")} + fields.number("qk_rope_head_dim");
  if (parts != 0 && parts != head_dim) {
    auto const name = fields.number("qk_rope_head_dim") != 0 ? "qk_rope_head_dim" : "qk_nope_head_dim";
    fields.json().find(name)->fail(name, {"with the other part ", head_dim, ", the channels of a key"});
  }
  return head_dim;
}

/// Heads of the layers that see all tokens, or of those that slide, where fields tell them apart.
struct HeadOverride {
  LayerShape shape;
  std::optional<ConfigField> first;  ///< the first field that says something else than the model's others
};

/// Reads fields of one kind of layers over what holds for all.
class HeadOverrides {
 public:
  HeadOverrides(LayerShape const& shape, ConfigFields& fields) : result_{shape, std::nullopt}, fields_(&fields) {}

  template <class Integer>
  void read(std::string_view name, Integer& field, Integer otherwise) {
    auto const value = fields_->said(name);
    Integer const old = field;
    field = value ? value->integer(Integer{1}, static_cast<Integer>(max_int32)) : otherwise;
    if (value && field != old && !result_.first) result_.first = ConfigField{name, *value};
  }
  LayerShape& shape() { return result_.shape; }
  [[nodiscard]] HeadOverride const& result() const { return result_; }

 private:
  HeadOverride result_;
  ConfigFields* fields_;
};

/// Layers that see all tokens in models of which others slide (Gemma 4).
template <class = void>
[[nodiscard]] HeadOverride read_full_override(ConfigFields& fields, LayerShape const& shape) {
  HeadOverrides read(shape, fields);
  LayerShape& s = read.shape();
  bool const gemma4 = fields.model_type().starts_with("gemma4");
  std::int64_t const head_dim = s.head_dim;
  read.read<std::int64_t>("global_head_dim", s.head_dim, gemma4 && !fields.said("per_layer_config") ? 512 : head_dim);
  if (s.head_dim != head_dim) s.value_dim = s.head_dim;
  // Without keys that are the values, too, Gemma 4 has the KV heads of other layers.
  bool const counts = gemma4 ? fields.said("attention_k_eq_v").has_value() : !fields.denied("attention_k_eq_v");
  if (counts) read.read("num_global_key_value_heads", s.num_kv_heads, s.num_kv_heads);
  return read.result();
}

/// Layers that slide in models of which others do not (MiMo, Step).
template <class = void>
[[nodiscard]] HeadOverride read_sliding_override(ConfigFields& fields, LayerShape const& shape) {
  HeadOverrides read(shape, fields);
  LayerShape& s = read.shape();
  read.read("swa_num_attention_heads", s.num_query_heads, s.num_query_heads);
  read.read("num_sliding_attention_heads", s.num_query_heads, s.num_query_heads);
  read.read("swa_num_key_value_heads", s.num_kv_heads, s.num_kv_heads);
  std::int64_t const head_dim = s.head_dim;
  read.read("swa_head_dim", s.head_dim, s.head_dim);
  if (s.value_dim == head_dim) s.value_dim = s.head_dim;
  read.read("swa_v_head_dim", s.value_dim, s.value_dim);
  auto const other = fields.said("attention_other_setting");
  if (!other) return read.result();
  JsonObject object = other->object();
  JsonValue const type = object.get("attention_type", "a string");
  if (type.string() != "sliding_attention") type.fail("attention_type", quoted("sliding_attention"));
  ConfigFields nested(object, fields.model_type());
  HeadOverrides step(s, nested);
  LayerShape& o = step.shape();
  step.read("num_attention_heads", o.num_query_heads, o.num_query_heads);
  step.read("num_attention_groups", o.num_kv_heads, o.num_kv_heads);
  step.read("head_dim", o.head_dim, o.head_dim);
  o.value_dim = o.head_dim;
  return step.result();
}

/// Row of a latent: the compressed keys and values, then the rotated channels that all heads share. Nothing: no latent
/// @par Source  DeepSeek-V2, arXiv:2405.04434
template <class = void>
[[nodiscard]] std::optional<LayerShape> read_latent(ConfigFields& fields) {
  require_shown(fields, "kv_lora_rank");
  std::int32_t const rank = fields.number("kv_lora_rank");
  if (rank == 0 && fields.said("use_mla")) (void)fields.json().get("kv_lora_rank", "an integer").integer(1, 1);
  if (rank == 0 || fields.denied("use_mla")) return std::nullopt;
  auto const rope =
      fields.json().get("qk_rope_head_dim", "an integer").integer(0, static_cast<std::int32_t>(max_int32));
  return LayerShape{
      .kind = LayerKind::latent, .num_kv_heads = 1, .head_dim = std::int64_t{rank} + rope, .value_dim = rank};
}

/// `block_configs` (Nemotron-NAS): KV heads of every layer, 0 without attention; says so to `seen`.
/// @throws FormatError naming a field of a block that is not known here
template <class = void>
[[nodiscard]] PerLayer read_blocks(JsonValue const& blocks, PerLayer const& query, SeenByLayer& seen) {
  constexpr std::string_view name = "block_configs";
  JsonArray const list = blocks.array();
  seen.require_size(name, list, list.size());
  std::vector<std::int32_t> kv_heads;
  for (JsonValue const each : list) {
    auto const layer = static_cast<std::int32_t>(kv_heads.size());
    if (layer == seen.num_layers()) break;
    JsonObject block = each.object();
    JsonValue const place = block.get("attention", "an object");
    ConfigFields attention(place.object(), "");
    bool const none = attention.said("no_op") || attention.said("replace_with_linear");
    seen.say(layer, none ? Sees::nothing : Sees::something, name, each);
    kv_heads.push_back(0);
    if (none) continue;
    for (std::string_view const unknown :
         {"window_length", "num_sink_tokens", "sparsify", "llama4", "parallel_blocks"}) {
      if (auto const value = attention.said(unknown))
        value->fail(unknown, "none: blocks that see less are not known here");
    }
    std::int32_t const heads = query(layer);
    if (auto const kv = attention.find("num_key_value_heads")) {
      kv_heads.back() = kv->integer(1, heads);
      if (heads % kv_heads.back() != 0) kv->fail("uneven groups", {"a divisor of num_attention_heads (", heads, ")"});
      continue;
    }
    JsonValue const group = attention.json().get("n_heads_in_group", "an integer");
    std::int32_t const size = group.integer(1, heads);
    if (heads % size != 0) group.fail("uneven groups", {"a divisor of num_attention_heads (", heads, ")"});
    kv_heads.back() = heads / size;
  }
  return PerLayer(std::move(kv_heads));
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
