// What a model's cache holds, layer by layer, and what a text costs: 09_model_shape [config.json or model.gguf]
// [tokens]

#include <headaware/error.hpp>
#include <headaware/io/gguf.hpp>
#include <headaware/io/model_shape.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace ha = headaware;

namespace {

/// Gemma 4, made small: windows by turns, and a last layer that reads an earlier one's cache.
constexpr std::string_view sample = R"({"text_config": {
  "model_type": "gemma4_text", "num_hidden_layers": 9, "num_attention_heads": 16, "num_key_value_heads": 8,
  "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 2, "attention_k_eq_v": true,
  "sliding_window": 1024, "num_kv_shared_layers": 1,
  "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
                  "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]}})";

ha::ModelShape load(std::string const& path) {
  return path.ends_with(".gguf") ? ha::load_gguf_shape(path) : ha::load_model_shape(path);
}

std::string describe(ha::LayerShape const& layer) {
  std::string text(to_string(layer.kind));
  if (!layer.attends()) return text;
  if (layer.window != 0) text += " over " + std::to_string(layer.window) + " tokens";
  text += ", " + std::to_string(layer.num_query_heads) + " query heads, " + std::to_string(layer.num_kv_heads);
  text += " KV heads, keys of " + std::to_string(layer.head_dim) + " and values of " + std::to_string(layer.value_dim);
  return text + (layer.has_cache() ? "" : ", the cache of layer " + std::to_string(layer.cache_layer));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    // [shape]
    ha::ModelShape const shape = argc > 1 ? load(argv[1]) : ha::parse_model_shape(sample, "sample");
    for (std::int32_t first = 0, next = 0; first < shape.num_layers(); first = next) {
      while (next < shape.num_layers() && shape.layer(next) == shape.layer(first)) ++next;  // a run of equal layers
      std::printf("layers %3d to %3d: %s\n", first, next - 1, describe(shape.layer(first)).c_str());
    }
    long long const tokens = argc > 2 ? std::atoll(argv[2]) : 32768;
    std::printf("%lld bytes per token at 16 bits, %lld at %lld tokens\n", static_cast<long long>(shape.token_bytes(2)),
                static_cast<long long>(shape.bytes(tokens, 2)), tokens);
    // [/shape]
    return 0;
  } catch (ha::Error const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
