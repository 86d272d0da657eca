#pragma once

// The layers of a model by its `config.json`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/config_fields.hpp>
#include <headaware/io/detail/config_heads.hpp>
#include <headaware/io/detail/config_layers.hpp>
#include <headaware/io/detail/config_unknown.hpp>
#include <headaware/io/detail/config_windows.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Reads the layers by the fields of one object.
class ConfigReader {
 public:
  /// @param needs_channels  false: heads may have 0 channels where no field says how many
  ConfigReader(ConfigFields const& fields, bool needs_channels) : fields_(fields), needs_channels_(needs_channels) {}

  [[nodiscard]] std::vector<LayerShape> read() {
    refuse_unknown_fields(fields_);
    SeenByLayer seen({count_layers(), fields_.number("num_nextn_predict_layers")});
    read_layer_fields(fields_, seen);
    auto const blocks = fields_.said("block_configs");
    std::optional<PerLayer> query;
    std::optional<PerLayer> kv;
    if (blocks) {
      query = read_query_heads(fields_, seen.layers());
      kv = read_blocks(*blocks, *query, seen);
    }
    read_model_type(fields_, seen);
    refuse_unexplained_state(fields_, seen);
    refuse_chunks();
    auto const window = read_window();
    if (window) check_window_layers(fields_, seen);
    settle_windows(fields_, window, seen);
    std::vector<LayerShape> layers(static_cast<std::size_t>(seen.num_layers()), {.kind = LayerKind::none});
    bool attends = false;
    for (std::int32_t i = 0; i < seen.num_layers(); ++i) attends |= seen[i] != Sees::nothing;
    if (!attends) return layers;
    if (!query) query = read_query_heads(fields_, seen.layers());
    fill(layers, seen, window, *query, kv);
    if (auto const own = fields_.said("per_layer_config")) read_layers_own(own->object(), layers);
    share_last(layers);
    share_listed(layers, seen.layers());
    return layers;
  }

 private:
  [[nodiscard]] std::int32_t count_layers() {
    if (auto const layers = fields_.one_of(layer_count_names)) return layers->value.integer(1, max_index);
    if (std::int32_t const listed = count_listed_layers(fields_)) return listed;
    return fields_.json().get(layer_count_names.front(), "an integer").integer(1, max_index);
  }

  /// Chunks of which no field says which layers see no other ones.
  void refuse_chunks() {
    if (fields_.said("layer_types") || fields_.said("hybrid_layer_pattern")) return;
    if (auto const chunk = fields_.said("attention_chunk_size")) {
      chunk->fail("attention_chunk_size", "none: layers that see their chunk alone are not known here");
    }
  }

  /// The window of the layers that slide; nothing where it is switched off.
  [[nodiscard]] std::optional<ConfigField> read_window() {
    auto const twice = fields_.said(twice_window_name);
    if (twice && !is_no_window(*twice) && fields_.model_type() != "modernbert-decoder") {
      twice->fail(twice_window_name,
                  {"none: what it does in the model type ", quoted(fields_.model_type()), " is not known here"});
    }
    bool const qwen = fields_.model_type().starts_with("qwen");  // off unless switched on
    if (fields_.denied("use_sliding_window") || (qwen && !fields_.said("use_sliding_window"))) return std::nullopt;
    auto window = fields_.one_of(window_names);
    if (auto const attention = fields_.said("attn_config");
        !window && attention && attention->kind() == JsonKind::object) {
      JsonObject object = attention->object();  // MPT: -1 is none
      auto const nested = object.find("sliding_window_size");
      if (nested && !says_nothing(*nested) && !is_integer(*nested, -1)) window = {"sliding_window_size", *nested};
    }
    if (twice && !is_no_window(*twice)) {
      std::int32_t const half = twice->integer(2, static_cast<std::int32_t>(max_int32)) / 2;
      if (window && !is_integer(window->value, half)) {
        window->value.fail(window->name, {half, ", half of what ", twice_window_name, " says"});
      }
      if (!window) window = {twice_window_name, *twice};
    }
    bool const none = window && every(window->value, is_no_window);
    return none ? std::nullopt : window;
  }

  void fill(std::vector<LayerShape>& layers, SeenByLayer const& seen, std::optional<ConfigField> const& window,
            PerLayer const& query, std::optional<PerLayer> kv) {
    auto const num_layers = seen.num_layers();
    std::int32_t most = 0;
    for (std::int32_t i = 0; i < num_layers; ++i) most = std::max(most, query(i));
    require_head_count(fields_.json(), num_layers, most);
    auto latent = read_latent(fields_);
    LayerShape plain{.num_query_heads = query(0)};
    if (!latent) {
      if (!kv) kv = read_kv_heads(fields_, seen.layers(), query);
      check_groups(fields_, seen.layers(), query, *kv);
      plain.head_dim = read_head_dim(fields_, query);
      if (plain.head_dim == 0 && needs_channels_)
        (void)fields_.json().get(head_dim_names.front(), "an integer").integer(1, 1);
      require_shown(fields_, "v_head_dim");
      std::int32_t const value_dim = fields_.number("v_head_dim");
      plain.value_dim = value_dim == 0 ? plain.head_dim : value_dim;
      plain.num_kv_heads = (*kv)(0);
    }
    HeadOverride const full = read_full_override(fields_, plain);
    HeadOverride const slides = read_sliding_override(fields_, plain);
    bool used[2] = {};
    for (std::int32_t i = 0; i < num_layers; ++i) {
      LayerShape& layer = layers[static_cast<std::size_t>(i)];
      Sees const sees = seen[i];
      if (sees == Sees::nothing) continue;
      used[sees == Sees::window] = true;
      if (latent) {
        if (sees == Sees::window) refuse_sliding_latent(window);
        layer = *latent;
        layer.num_query_heads = query(i);
        continue;
      }
      HeadOverride const& of = sees == Sees::window ? slides : full;
      layer = of.shape;
      layer.kind = sees == Sees::window ? LayerKind::sliding : LayerKind::attention;
      layer.window = sees == Sees::window ? window_of(window, i) : 0;
      if (query.list() && of.shape.num_query_heads == plain.num_query_heads) layer.num_query_heads = query(i);
      if (kv->list() && of.shape.num_kv_heads == plain.num_kv_heads) layer.num_kv_heads = (*kv)(i);
      if (layer.num_kv_heads == 0) {
        layer = {.kind = LayerKind::none};
      } else if (layer.num_query_heads % layer.num_kv_heads != 0) {
        JsonValue const& place = of.first ? of.first->value : fields_.json();
        place.fail("uneven groups", {"KV heads that divide ", layer.num_query_heads, " query heads, layer ", i},
                   layer.num_kv_heads);
      }
    }
    if (latent) return;
    refuse_unused(full, used[0] && used[1], "see all tokens");
    refuse_unused(slides, used[1], "slide");
  }

  static void refuse_unused(HeadOverride const& of, bool used, std::string_view kind) {
    if (used || !of.first) return;
    of.first->value.fail(of.first->name, {"the same as of all layers: which layers ", kind, " is not known here"});
  }
  void refuse_sliding_latent(std::optional<ConfigField> const& window) {
    JsonValue const& place = window ? window->value : fields_.json();
    place.fail("sliding_window", "none: latents with a window are not known here");
  }

  [[nodiscard]] std::int64_t window_of(std::optional<ConfigField> const& window, std::int32_t layer) {
    constexpr auto most = static_cast<std::int32_t>(max_int32);
    if (!window) {
      if (auto const off = fields_.json().find("use_sliding_window"); off && says_nothing(*off)) {
        off->fail("use_sliding_window", {"true, as layer ", layer, " slides"});
      }
      JsonValue const value = fields_.json().get(window_names.front(), "an integer");
      return value.integer(1, most);
    }
    if (window->name == twice_window_name) return window->value.integer(2, most) / 2;
    if (window->value.kind() != JsonKind::array) return window->value.integer(1, most);
    std::int32_t i = 0;
    for (JsonValue const each : window->value.array()) {
      if (i++ == layer) return each.integer(1, most);
    }
    window->value.fail(window->name, {"a window of layer ", layer}, "none");
  }

  /// `num_kv_shared_layers`: the last layers read the cache of the last layer before them that is of their kind.
  void share_last(std::vector<LayerShape>& layers) {
    require_shown(fields_, "num_kv_shared_layers");
    auto const field = fields_.said("num_kv_shared_layers");
    if (!field) return;
    if (!fields_.model_type().empty() && !fields_.model_type().starts_with("gemma")) {
      field->fail("num_kv_shared_layers", {"none: whose cache layers of the model type ", quoted(fields_.model_type()),
                                           " share is not known here"});
    }
    auto const num_layers = static_cast<std::int32_t>(layers.size());
    std::int32_t const first = num_layers - field->integer(1, num_layers - 1);
    for (auto i = static_cast<std::size_t>(first); i < layers.size(); ++i) {
      if (!layers[i].attends()) continue;
      std::int32_t of = first - 1;
      while (of >= 0 && layers[static_cast<std::size_t>(of)] != layers[i]) --of;
      if (of < 0)
        field->fail("num_kv_shared_layers", {"a layer before layer ", first, " of the shape of layer ", i}, "none");
      layers[i].cache_layer = of;
    }
  }

  /// `kv_source_layers`: the layer whose cache each layer reads, mostly its own (Mistral Large 4).
  void share_listed(std::vector<LayerShape>& layers, LayerCount const& count) {
    auto const field = fields_.said("kv_source_layers");
    if (!field) return;
    PerLayer const source(*field, count, 0, max_index);
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(layers.size()); ++i) {
      LayerShape& layer = layers[static_cast<std::size_t>(i)];
      std::int32_t const of = source(i);
      if (of == i || !layer.attends()) continue;
      if (of > i || source(of) != of || layers[static_cast<std::size_t>(of)] != layer) {
        field->fail("kv_source_layers", {"an earlier layer of the shape of layer ", i, ", with a cache of its own"},
                    of);
      }
      layer.cache_layer = of;
    }
  }

  /// `per_layer_config`: fields of single layers, by their numbers.
  static void read_layers_own(JsonObject const& all, std::vector<LayerShape>& layers) {
    all.for_each([&](std::string_view key, JsonValue const& value) {
      std::size_t layer = 0;
      bool number = !key.empty() && key.size() < 8;
      for (char const digit : key) {
        number = number && digit >= '0' && digit <= '9';
        layer = layer * 10 + static_cast<std::size_t>(digit - '0');
        if (!number) break;
      }
      if (!number || layer >= layers.size())
        value.fail("per_layer_config", {"numbers of the ", layers.size(), " layers"}, quoted(key));
      LayerShape& shape = layers[layer];
      bool const same_dims = shape.value_dim == shape.head_dim;
      bool values = false;
      value.object().for_each([&](std::string_view name, JsonValue const& field) {
        auto const count = [&] { return field.integer(1, static_cast<std::int32_t>(max_int32)); };
        bool const plain = shape.attends() && shape.kind != LayerKind::latent;
        if (plain && name == "num_attention_heads") {
          shape.num_query_heads = count();
        } else if (plain && name == "num_key_value_heads") {
          shape.num_kv_heads = count();
        } else if (plain && name == "head_dim") {
          shape.head_dim = count();
        } else if (plain && name == "v_head_dim") {
          shape.value_dim = count();
          values = true;
        } else if (name == "sliding_window" && shape.kind == LayerKind::sliding) {
          shape.window = count();
        } else if (!says_nothing(field)) {
          field.fail(name, {"none: what it does to layer ", layer, " is not known here"});
        }
      });
      if (same_dims && !values) shape.value_dim = shape.head_dim;
      if (shape.attends() && shape.num_query_heads % shape.num_kv_heads != 0) {
        value.fail("uneven groups", {"KV heads that divide ", shape.num_query_heads, " query heads"},
                   shape.num_kv_heads);
      }
    });
  }

  ConfigFields fields_;
  bool needs_channels_;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
