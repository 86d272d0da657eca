#include "support/catch.hpp"
#include "support/config_text.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/layer_letters.hpp"

#include <headaware/io/json_tree.hpp>
#include <headaware/io/model_shape.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr ha::LayerShape plain(std::int32_t query_heads, std::int32_t kv_heads, std::int64_t head_dim) {
  return {.num_query_heads = query_heads, .num_kv_heads = kv_heads, .head_dim = head_dim, .value_dim = head_dim};
}

}  // namespace

TEST_CASE("layers of a config.json by the fields that say what they see", "[io]") {
  for (auto const& [field, letters] : std::initializer_list<std::pair<char const*, char const*>>{
           {R"("model_type": "llama")", "FFFF"},
           {R"("sliding_window": 9)", "ssss"},
           {R"("sliding_window": 9, "model_type": "mistral")", "ssss"},
           {R"("sliding_window": null, "model_type": "mistral")", "FFFF"},
           {R"("sliding_window": [9, null, null, 9])", "sFFs"},
           {R"("sliding_window": 9, "model_type": "gemma2")", "sFsF"},
           {R"("sliding_window": 9, "model_type": "gemma3_text")", "ssss"},
           {R"("sliding_window": 9, "model_type": "gemma3_text", "sliding_window_pattern": 2)", "sFsF"},
           {R"("sliding_window": 9, "model_type": "gemma3_text", "_sliding_window_pattern": 3)", "ssFs"},
           {R"("sliding_window": 9, "model_type": "gemma4_text")", "sssF"},
           {R"("sliding_window": 9, "model_type": "cohere2")", "sssF"},
           {R"("sliding_window": 9, "model_type": "gpt_oss")", "sFsF"},
           {R"("sliding_window": 9, "model_type": "exaone4", "sliding_window_pattern": "LG")", "sFsF"},
           {R"("sliding_window": null, "model_type": "exaone4", "sliding_window_pattern": "LG")", "FFFF"},
           {R"("sliding_window": 9, "use_sliding_window": true, "max_window_layers": 3)", "FFFs"},
           {R"("sliding_window": 9, "use_sliding_window": true)", "ssss"},
           {R"("sliding_window": 9, "use_sliding_window": false, "max_window_layers": 3)", "FFFF"},
           {R"("sliding_window": 9, "model_type": "qwen2")", "FFFF"},
           {R"("sliding_window": 9, "layer_types": ["sliding_attention", "full_attention", "conv", "attention"],
               "model_type": "mistral")",
            "sF-s"},
           {R"("layer_types": ["full_attention", "linear_attention", "mamba", "attention"])", "F--F"},
           {R"("layer_types": ["full_attention", "conv", "conv", "attention", "moe"], "num_nextn_predict_layers": 1)",
            "F--F"},
           {R"("layers_block_type": ["attention", "mamba", "moe", "mlp"])", "F---"},
           {R"("hybrid_override_pattern": "M*-E")", "-F--"},
           {R"("hybrid_layer_pattern": [0, 1, 1, 0], "sliding_window": 9, "sliding_window_size": 9,
               "attention_chunk_size": 9)",
            "FssF"},
           {R"("attn_type_list": [0, 1, 0, 1])", "-F-F"},
           {R"("attn_layer_indices": [0, 3])", "F--F"},
           {R"("full_attn_idxs": [2])", "--F-"},
           {R"("full_attn_idxs": [2], "layer_types": ["conv", "conv", "full_attention", "conv"])", "--F-"},
           {R"("full_attention_interval": 2)", "-F-F"},
           {R"("layer_group_size": 4)", "---F"},
           {R"("attn_layer_period": 3, "attn_layer_offset": 1)", "-F--"},
           {R"("linear_attn_config": {"kda_layers": [1, 2], "full_attn_layers": [3, 4], "head_dim": 8})", "--FF"},
           {R"("block_types": ["recurrent", "attention"], "attention_window_size": 9, "model_type": "recurrent_gemma")",
            "-s-s"},
           {R"("attention_layers": ["global", "local", "global", "local"], "window_size": 9)", "FsFs"},
           {R"("block_configs": [{"attention": {"n_heads_in_group": 4, "no_op": false}},
                                 {"attention": {"n_heads_in_group": null, "no_op": true}},
                                 {"attention": {"replace_with_linear": true}},
                                 {"attention": {"num_key_value_heads": 2}}])",
            "F--F"}}) {
    CAPTURE(field);
    // Gemma 4's layers that see all have channels of their own.
    Layers expected = layers_of(letters);
    if (std::string_view(field).find("gemma4") != std::string_view::npos) {
      expected.back().head_dim = expected.back().value_dim = 512;
    }
    CHECK(parse(with(field)) == expected);
    CHECK(parse(R"({"vision_config": {"num_hidden_layers": 9}, "text_config": )" + with(field) + "}") == expected);
  }
}

TEST_CASE("heads and channels of a config.json by their names in other models", "[io]") {
  auto const uniform = [](std::size_t layers, ha::LayerShape const& shape) { return Layers(layers, shape); };
  CHECK(parse(R"({"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 32})") == uniform(2, plain(4, 4, 8)));
  CHECK(parse(R"({"model_type": "mpt", "n_layers": 2, "n_heads": 4, "d_model": 32,
                  "attn_config": {"kv_n_heads": 2}})") == uniform(2, plain(4, 2, 8)));
  CHECK(parse(R"({"model_type": "gpt_neo", "num_layers": 1, "num_heads": 4, "hidden_size": 32})") ==
        uniform(1, plain(4, 4, 8)));
  CHECK(parse(R"({"model_type": "gpt_bigcode", "n_layer": 1, "n_head": 4, "n_embd": 32})") ==
        uniform(1, plain(4, 1, 8)));
  CHECK(parse(R"({"model_type": "gpt_bigcode", "n_layer": 1, "n_head": 4, "n_embd": 32, "multi_query": false})") ==
        uniform(1, plain(4, 4, 8)));
  // Falcon 7B: the KV heads' field says nothing beside multi_query; 40B: multi_query says nothing.
  CHECK(parse(R"({"model_type": "falcon", "num_hidden_layers": 1, "num_attention_heads": 71, "hidden_size": 4544,
                  "multi_query": true, "new_decoder_architecture": false, "num_kv_heads": 71})") ==
        uniform(1, plain(71, 1, 64)));
  CHECK(parse(R"({"model_type": "falcon", "num_hidden_layers": 1, "num_attention_heads": 128, "hidden_size": 8192,
                  "multi_query": true, "new_decoder_architecture": true, "num_kv_heads": 8})") ==
        uniform(1, plain(128, 8, 64)));
  CHECK(parse(R"({"model_type": "RefinedWeb", "n_layer": 1, "n_head": 128, "hidden_size": 8192, "n_head_kv": 8})") ==
        uniform(1, plain(128, 8, 64)));
  CHECK(parse(R"({"model_type": "chatglm", "num_layers": 1, "num_attention_heads": 32, "hidden_size": 4096,
                  "kv_channels": 128, "multi_query_attention": true, "multi_query_group_num": 2})") ==
        uniform(1, plain(32, 2, 128)));
  CHECK(parse(R"({"model_type": "chatglm", "num_layers": 1, "num_attention_heads": 32, "hidden_size": 4096,
                  "multi_query_attention": false, "multi_query_group_num": 2})") == uniform(1, plain(32, 32, 128)));
  CHECK(parse(R"({"num_layers": 1, "num_attention_heads": 8, "head_dim": 4, "num_query_groups": 2})") ==
        uniform(1, plain(8, 2, 4)));
  // OpenELM counts heads per layer, DeciLM KV heads alone.
  CHECK(parse(R"({"num_transformer_layers": 2, "num_query_heads": [4, 8], "num_kv_heads": [2, 4], "head_dim": 8})") ==
        Layers{plain(4, 2, 8), plain(8, 4, 8)});
  CHECK(parse(R"({"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8,
                  "num_key_value_heads_per_layer": [4, 1]})") == Layers{plain(8, 4, 8), plain(8, 1, 8)});
  // Absent fields are what the model's class has.
  CHECK(parse(R"({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 1,
                  "num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 3840, "sliding_window": null}})") ==
        uniform(1, plain(16, 8, 256)));
  CHECK(parse(R"({"thinker_config": {"text_config": {"num_hidden_layers": 1, "num_attention_heads": 2,
                  "head_dim": 4}}})") == uniform(1, plain(2, 2, 4)));
  for (char const* const nested : {"text_config", "language_config", "llm_config"}) {
    CHECK(parse("{\"" + std::string(nested) + "\": " + with(R"("a": 0)") + "}") == uniform(4, full));
  }
  // Lists count the layers where nothing else does.
  CHECK(parse(R"({"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16,
                  "layers_block_type": ["moe", "attention"]})") == layers_of("-F"));
  CHECK(parse(R"({"layers_block_type": ["mamba", "mamba"]})") == layers_of("--"));
}

TEST_CASE("heads that differ between the layers of a config.json", "[io]") {
  // MiMo
  ha::LayerShape wide = sliding(9);
  wide.num_query_heads = 12;
  wide.num_kv_heads = 4;
  wide.head_dim = 24;
  wide.value_dim = 8;
  CHECK(parse(with(R"("sliding_window": 9, "hybrid_layer_pattern": [0, 1, 1, 0], "swa_num_attention_heads": 12,
                      "swa_num_key_value_heads": 4, "swa_head_dim": 24, "swa_v_head_dim": 8)")) ==
        Layers{full, wide, wide, full});
  // Step: 12 query heads where layers slide
  ha::LayerShape step = sliding(9);
  step.num_query_heads = 12;
  step.num_kv_heads = 4;
  CHECK(parse(with(R"("sliding_window": 9, "layer_types": ["full_attention", "sliding_attention", "sliding_attention",
                      "full_attention"], "attention_other_setting": {"attention_type": "sliding_attention",
                      "num_attention_heads": 12, "num_attention_groups": 4, "head_dim": 16})")) ==
        Layers{full, step, step, full});
  step.num_kv_heads = 2;
  CHECK(
      parse(with(R"("sliding_window": 9, "hybrid_layer_pattern": [0, 1, 1, 0], "num_sliding_attention_heads": 12)")) ==
      Layers{full, step, step, full});
  // Gemma 4, whose last layers read the cache of the last ones of their kind
  std::string const gemma = R"("model_type": "gemma4_text", "sliding_window": 9, "global_head_dim": 32,
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
      "num_global_key_value_heads": 1)";
  ha::LayerShape const global = plain(8, 1, 32);
  ha::LayerShape const others = plain(8, 2, 32);
  CHECK(parse(with(gemma + R"(, "attention_k_eq_v": true)")) == Layers{sliding(9), global, sliding(9), global});
  CHECK(parse(with(gemma)) == Layers{sliding(9), others, sliding(9), others});
  Layers shared{sliding(9), others, sliding(9), others};
  shared[2].cache_layer = 0;
  shared[3].cache_layer = 1;
  CHECK(parse(with(gemma + R"(, "num_kv_shared_layers": 2)")) == shared);
  // A latent; layers beside it without any cache (Kimi)
  ha::LayerShape const latent{
      .kind = ha::LayerKind::latent, .num_query_heads = 8, .num_kv_heads = 1, .head_dim = 40, .value_dim = 32};
  CHECK(parse(with(R"("kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 99, "v_head_dim": 7)")) ==
        Layers(4, latent));
  CHECK(parse(with(R"("kv_lora_rank": 32, "qk_rope_head_dim": 8, "index_topk": 2048,
                      "linear_attn_config": {"kda_layers": [1, 2, 3], "full_attn_layers": [4]})")) ==
        Layers{none, none, none, latent});
}

TEST_CASE("fields of single layers of a config.json", "[io]") {
  std::string const layers = R"("sliding_window": 9, "layer_types": ["sliding_attention", "full_attention",
                                "linear_attention", "full_attention"])";
  ha::LayerShape wide = plain(4, 1, 32);
  ha::LayerShape near = sliding(5);
  near.value_dim = 8;
  CHECK(parse(with(layers + R"(, "per_layer_config": {"00": {"sliding_window": 5, "v_head_dim": 8},
                 "1": {"head_dim": 32, "num_key_value_heads": 1, "num_attention_heads": 4, "rope_theta": null}})")) ==
        Layers{near, wide, none, full});
  CHECK(parse(with(R"("per_layer_config": {})")) == layers_of("FFFF"));
  check_rejected(with(layers + R"(, "per_layer_config": {"4": {"head_dim": 8}})"),
                 {"per_layer_config", "numbers of the 4 layers", "\"4\"", "/per_layer_config/4"});
  check_rejected(with(layers + R"(, "per_layer_config": {"full_attention": {"head_dim": 8}})"),
                 {"per_layer_config", "numbers of the 4 layers", "\"full_attention\"", ""});
  check_rejected(with(layers + R"(, "per_layer_config": {"2": {"head_dim": 8}})"),
                 {"head_dim", "what it does to layer 2 is not known here", "8", "/per_layer_config/2/head_dim"});
  check_rejected(with(layers + R"(, "per_layer_config": {"1": {"kv_lora_rank": 8}})"),
                 {"kv_lora_rank", "layer 1", "8", ""});
  check_rejected(with(layers + R"(, "per_layer_config": {"1": {"num_key_value_heads": 3}})"),
                 {"uneven groups", "divide 8 query heads", "3", "/per_layer_config/1"});

  Layers shared = layers_of("FFFF");
  shared[1].cache_layer = 0;
  shared[3].cache_layer = 2;
  CHECK(parse(with(R"("kv_source_layers": [0, 0, 2, 2])")) == shared);
  CHECK(parse(with(R"("kv_source_layers": [0, 1, 2, 3])")) == layers_of("FFFF"));
}

TEST_CASE("model types that say which layers attend, or cannot", "[io]") {
  CHECK(parse(R"({"model_type": "mamba2", "num_hidden_layers": 2, "num_heads": 128, "head_dim": 64})") ==
        layers_of("--"));
  CHECK(parse(with(R"("model_type": "falcon_h1", "mamba_d_ssm": 64)")) == layers_of("FFFF"));
  for (char const* const type : {"bamba", "qwen3_next", "kimi_linear"}) {
    check_rejected(with(R"("model_type": ")" + std::string(type) + '"'),
                   {"layers of the model type", "layer_types", type, ""});
  }
}

TEST_CASE("a config.json that changes the cache in an unknown way is refused by field and reason", "[io]") {
  for (auto const& [name, value, reason] : std::initializer_list<std::array<char const*, 3>>{
           {"compress_ratios", "[0, 4]", "several tokens in one"},
           {"cross_attention_layers", "[0]", "another input"},
           {"is_encoder_decoder", "true", "another input"},
           {"cla_share_factor", "2", "share a cache"},
           {"kv_reuse_group", "[[1, 2], [3, 4]]", "share a cache"},
           {"kv_reuse_every_i_layer", "2", "share a cache"},
           {"use_yoco", "true", "share a cache"},
           {"yoco_cross_layers", "16", "share a cache"},
           {"mb_per_layer", "2", "without keys"},
           {"mamba_step", "2", "without keys"},
           {"mamba_enabled", "true", "without keys"},
           {"hybrid_layer_ids", "[0]", "without keys"},
           {"n_shared_head", "2", "query heads that share"},
           {"n_recurrent_loops", "2", "run several times"},
           {"total_ut_steps", "4", "run several times"},
           {"kv_source_layers", "[0, 0, 1, 3]", "a cache of its own"},
           {"kv_source_layers", "[0, 2, 2, 3]", "an earlier layer"},
           {"attention_chunk_size", "8192", "chunk"},
           {"num_attention_groups", "1", "2, as num_key_value_heads"},
           {"qk_rope_head_dim", "8", "16, the channels of a key"},
           {"qk_nope_head_dim", "8", "16, the channels of a key"},
           {"multi_query", "true", "false, as num_key_value_heads says"},
           {"num_kv_heads", "4", "2, as num_key_value_heads"},
           {"num_kv_heads", "[2, 4]", "2, as num_key_value_heads"},
           {"multi_query_group_num", "4", "2, as num_key_value_heads"},
           {"num_layers", "5", "4, as num_hidden_layers"},
           {"n_head", "4", "8, as num_attention_heads"},
           {"kv_channels", "32", "16, as head_dim"},
           {"num_global_key_value_heads", "1", "the same as of all layers"},
           {"swa_num_key_value_heads", "4", "which layers slide"},
           {"layer_types", R"(["full_attention"])", "4 entries, one per layer"},
           {"layers_block_type", R"(["mamba", "mamba", "mamba", "mamba", "mamba"])", "4 entries"},
           {"hybrid_override_pattern", R"("M*")", "4 entries"},
           {"hybrid_layer_pattern", "[0, 1]", "4 entries"},
           {"attn_type_list", "[1]", "4 entries"},
           {"block_configs", R"([{"attention": {"no_op": true}}])", "4 entries"},
           {"sliding_window", "[512, null]", "4 entries"},
           {"layer_group_size", "3", "a divisor of the 4 layers"},
           {"linear_attn_config", R"({"kda_layers": [1, 2], "full_attn_layers": [3]})", "every layer"}}) {
    CAPTURE(name, value);
    std::string const field = "\"" + std::string(name) + "\": " + value;
    check_rejected(with(field), {name, reason, "", "/" + std::string(name)});
    check_rejected(R"({"text_config": )" + with(field) + "}", {name, reason, "", "/text_config/" + std::string(name)});
  }
  check_rejected(with(R"("layer_types": ["full_attention", "chunked_attention", "conv", "conv"])"),
                 {"layer_types", "known here", "chunked_attention", "/layer_types/1"});
  check_rejected(with(R"("hybrid_override_pattern": "*MX*")"), {"hybrid_override_pattern", "known here", "", ""});
  check_rejected(with(R"("sliding_window": 9, "sliding_window_pattern": "LLX")"),
                 {"sliding_window_pattern", "L and G", "", ""});
  check_rejected(with(R"("sliding_window": 9, "model_type": "odd")"),
                 {"sliding_window", "model type \"odd\"", "9", ""});
  check_rejected(with(R"("sliding_window": 9, "model_type": "qwen2_moe", "use_sliding_window": true)"),
                 {"sliding_window", "not known here", "9", ""});
  check_rejected(with(R"("sliding_window": 9, "sliding_window_size": 8)"),
                 {"sliding_window_size", "9, as sliding_window", "8", ""});
  for (char const* const name : {"local_window_sizes", "num_shared_kv_layers", "sliding_period", "key_value_heads"}) {
    check_rejected(with('"' + std::string(name) + R"(": 3)"), {name, "what it does to the cache", "3", name});
    CHECK(parse(with('"' + std::string(name) + R"(": null)")) == layers_of("FFFF"));
  }
  CHECK(parse(with(R"("qkv_bias": true, "kv_layernorm": true, "max_position_embeddings": 9)")) == layers_of("FFFF"));
  check_rejected(with(R"("model_type": "longcat_flash")"), {"model_type", "several caches", "longcat", ""});
  check_rejected(with(R"("kv_lora_rank": 8, "qk_rope_head_dim": 8, "sliding_window": 9)"),
                 {"sliding_window", "latents with a window", "9", ""});
  check_rejected(with(R"("num_kv_shared_layers": 2, "model_type": "odd")"),
                 {"num_kv_shared_layers", "\"odd\"", "2", ""});
  check_rejected(with(R"("num_kv_shared_layers": 1,
                         "layer_types": ["conv", "conv", "conv", "full_attention"])"),
                 {"num_kv_shared_layers", "of the shape of layer 3", "none", ""});
  check_rejected(with(R"("block_configs": [{"attention": {"n_heads_in_group": 4, "window_length": 9}}, {}, {}, {}])"),
                 {"window_length", "not known here", "9", "/block_configs/0/attention/window_length"});
  check_rejected(with(R"("sliding_window": 9, "layer_types": ["full_attention", "sliding_attention",
                         "full_attention", "full_attention"], "swa_num_key_value_heads": 3)"),
                 {"uneven groups", "divide 8 query heads, layer 1", "3", "/swa_num_key_value_heads"});
}

TEST_CASE("fields of a config.json that contradict each other, or leave something open", "[io]") {
  check_rejected(with(R"("layer_types": ["full_attention", "conv", "conv", "conv"], "full_attention_interval": 4)"),
                 {"full_attention_interval", "attention to all tokens in layer 0, as layer_types", "no keys and values",
                  "/full_attention_interval"});
  check_rejected(with(R"("sliding_window": 9, "hybrid_layer_pattern": [0, 0, 0, 1], "sliding_window_pattern": 4)"),
                 {"sliding_window_pattern", "as hybrid_layer_pattern says", "", ""});
  check_rejected(with(R"("layer_types": ["sliding_attention", "conv", "conv", "conv"])"),
                 {"missing field", "an integer", "nothing", "/sliding_window"});
  check_rejected(with(R"("layer_types": ["sliding_attention", "conv", "conv", "conv"], "sliding_window": 9,
                         "use_sliding_window": false)"),
                 {"use_sliding_window", "true, as layer 0 slides", "false", ""});
  check_rejected(with(R"("model_type": "gemma2")"),
                 {"missing field", "an integer or null", "nothing", "/sliding_window"});
  check_rejected(with(R"("kv_lora_rank": 8)"), {"missing field", "an integer", "nothing", "/qk_rope_head_dim"});
  check_rejected(with(R"("attn_layer_period": 2)"), {"missing field", "an integer", "nothing", "/attn_layer_offset"});
  check_rejected(with(R"("attn_layer_indices": [4])"), {"out of range", "[0, 3]", "4", "/attn_layer_indices/0"});
  check_rejected(R"({"num_hidden_layers": 2, "num_attention_heads": 4})",
                 {"missing field", "an integer", "nothing", "/head_dim"});
  check_rejected(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": null})",
                 {"wrong type", "an integer", "null", "/head_dim"});
  check_rejected(R"({"num_hidden_layers": 2, "layers_block_type": ["attention", "mamba"], "head_dim": 4})",
                 {"missing field", "an integer", "nothing", "/num_attention_heads"});
  check_rejected(with(R"("text_config": {"num_hidden_layers": 5})"),
                 {"num_hidden_layers", "the same", "5", "/text_config/num_hidden_layers"});
}

TEST_CASE("current models' caches, layer by layer, are read as published", "[io][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = headaware_test::shared_data() / "model-configs";
  std::string const text = ha::read_text_file(folder / "expected.json");
  ha::JsonTree const tree(text, "expected.json");
  ha::JsonObject expected = tree.root().object();
  int models = 0;
  constexpr std::int64_t most = INT32_MAX;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    std::string const name = entry.path().stem().string();
    CAPTURE(name);
    if (name == "expected") continue;
    if (name.starts_with("refuse-")) {
      headaware_test::check_error<ha::FormatError>([&] { (void)ha::load_model_shape(entry.path()); },
                                                   {"compress_ratios", "several tokens in one", "an array", "line"});
      continue;
    }
    ++models;
    auto const shape = ha::load_model_shape(entry.path());
    ha::JsonObject model = expected.get(name, "a model").object();
    CHECK(shape.num_layers() == model.get("num_layers", "an integer").integer<std::int64_t>(0, most));
    CHECK(shape.token_bytes(2) == model.get("kv_bytes_per_token_16bit", "an integer").integer<std::int64_t>(0, most));
    std::int64_t next = 0;
    for (ha::JsonValue const run : model.get("layers", "an array").array()) {
      ha::JsonObject fields = run.object();
      auto const number = [&](char const* field) {
        auto const value = fields.find(field);
        return value ? value->integer<std::int64_t>(0, most) : 0;
      };
      std::vector<std::int64_t> ends;
      for (ha::JsonValue const end : fields.get("layers", "an array").array()) {
        ends.push_back(end.integer<std::int64_t>(0, most));
      }
      REQUIRE(ends.size() == 2);
      CHECK(ends[0] == next);
      for (; next <= ends[1]; ++next) {
        CAPTURE(next);
        ha::LayerShape const& layer = shape.layer(static_cast<std::int32_t>(next));
        CHECK(to_string(layer.kind) == fields.get("kind", "a string").string());
        CHECK(layer.num_kv_heads == number("kv_heads"));
        CHECK(layer.head_dim == number("head_dim"));
        CHECK(layer.value_dim == number("value_dim"));
        CHECK(layer.window == number("window"));
      }
    }
    CHECK(next == shape.num_layers());
  }
  CHECK(models == 13);
}
