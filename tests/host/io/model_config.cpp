#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/model_config.hpp>

#include <array>
#include <initializer_list>
#include <string>
#include <utility>

namespace ha = headaware;

namespace {

ha::ModelConfig parse(std::string const& text) { return ha::parse_model_config(text, "config.json"); }

void check_rejected(std::string const& text, ha::ErrorDetail const& parts) {
  headaware_test::check_error<ha::FormatError>([&] { (void)parse(text); }, parts);
}

}  // namespace

TEST_CASE("a model's shape is read from its config.json", "[io]") {
  CHECK(
      parse(R"({"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096})") ==
      ha::ModelConfig{32, 32, 8, 128});
  CHECK(parse(R"({"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 1024,
                  "head_dim": 128, "architectures": ["X"]})") == ha::ModelConfig{28, 16, 8, 128});
  CHECK(parse(R"({"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 2560})") ==
        ha::ModelConfig{32, 32, 32, 80});
  CHECK(parse(R"({"num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": null, "head_dim": null})") ==
        ha::ModelConfig{2, 3, 3, 0});
  CHECK(parse(R"({"vision_config": {"num_hidden_layers": 9},
                  "text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                                  "head_dim": 8}})") == ha::ModelConfig{2, 4, 2, 8});
  CHECK(parse(R"({"text_config": {}, "num_hidden_layers": 2, "num_attention_heads": 4})") ==
        ha::ModelConfig{2, 4, 4, 0});

  headaware_test::TemporaryFolder const folder;
  ha::write_file(folder / "config.json", R"({"num_hidden_layers": 1, "num_attention_heads": 1})");
  CHECK(ha::load_model_config(folder / "config.json") == ha::ModelConfig{1, 1, 1, 0});
}

TEST_CASE("a config.json that describes no model is one error", "[io]") {
  check_rejected("{}", {"missing field", "an integer", "nothing", "config.json, line 1, column 1: /num_hidden_layers"});
  check_rejected(R"({"text_config": {}})",
                 {"missing field", "an integer", "nothing", "/text_config/num_hidden_layers"});
  check_rejected(R"({"text_config": 1})", {"wrong type", "an object", "1", "/text_config"});
  check_rejected(R"({"num_hidden_layers": 2})", {"missing field", "an integer", "nothing", "/num_attention_heads"});
  check_rejected(R"({"num_hidden_layers": 0, "num_attention_heads": 4})",
                 {"out of range", "[1, ", "0", "/num_hidden_layers"});
  check_rejected(R"({"num_hidden_layers": "2", "num_attention_heads": 4})",
                 {"wrong type", "an integer", "\"2\"", "/num_hidden_layers"});
  check_rejected(R"({"num_hidden_layers": 2, "num_attention_heads": 4.5})",
                 {"not an integer", "an integer", "4.5", "/num_attention_heads"});
  check_rejected(R"({"num_hidden_layers": 100000, "num_attention_heads": 10000})",
                 {"too many heads", "1048576", "100000 layers x 10000", "config.json"});
  check_rejected(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 3})",
                 {"uneven groups", "a divisor of num_attention_heads (4)", "3", "/num_key_value_heads"});
  check_rejected(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 8})",
                 {"out of range", "[1, 4]", "8", "/num_key_value_heads"});
  check_rejected(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 10})",
                 {"uneven heads", "a multiple of num_attention_heads (4)", "10", "/hidden_size"});
  check_rejected(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": -1})",
                 {"out of range", "[1, ", "-1", "/head_dim"});
  check_rejected(R"({"num_hidden_layers": 2, )",
                 {"malformed JSON", "a key in quotes", "the end of the file", "config.json, line 1"});
}

namespace {

/// A plain model with one field more.
std::string with(std::string const& field) {
  return R"({"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, )" + field +
         "}";
}

}  // namespace

TEST_CASE("a config.json whose layers differ is refused by the first layer that differs", "[io]") {
  for (auto const& [field, what, expected, got] : std::initializer_list<std::array<char const*, 4>>{
           {R"("kv_lora_rank": 512, "qk_rope_head_dim": 64)", "kind of layer 0", "attention", "latent"},
           {R"("layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"])",
            "kind of layer 1", "attention", "none"},
           {R"("layers_block_type": ["mamba", "attention", "mamba", "mamba"])", "kind of layer 0", "attention", "none"},
           {R"("sliding_window": 128, "model_type": "gemma2")", "kind of layer 1", "sliding", "attention"},
           {R"("sliding_window": [128, 256, 128, 128])", "window of layer 1", "128", "256"},
           {R"("use_sliding_window": true, "sliding_window": 128, "max_window_layers": 3)", "kind of layer 3",
            "attention", "sliding"},
           {R"("v_head_dim": 8)", "value_dim of layer 0", "16", "8"},
           {R"("num_key_value_heads_per_layer": [2, 2, 4, 2])", "KV heads of layer 2", "2", "4"},
           {R"("num_attention_heads_per_layer": [8, 4, 8, 8])", "query heads of layer 1", "8", "4"},
           {R"("sliding_window": 9, "hybrid_layer_pattern": [1, 1, 1, 0], "swa_head_dim": 8)", "kind of layer 3",
            "sliding", "attention"},
           {R"("num_kv_shared_layers": 2)", "cache of layer 2", "its own", "that of layer 1"}}) {
    CAPTURE(field);
    check_rejected(with(field), {what, expected, got, "config.json"});
    check_rejected(with(field), {"", "load_model_shape", "", ""});
    check_rejected(R"({"text_config": )" + with(field) + "}", {what, expected, got, ""});
  }
}

TEST_CASE("fields that say nothing, or what is known, are no reason to refuse a config.json", "[io]") {
  for (char const* const field : {R"("kv_lora_rank": null)",
                                  R"("kv_lora_rank": 0)",
                                  R"("kv_lora_rank": 512, "use_mla": false)",
                                  R"("block_configs": [])",
                                  R"("multi_query": false)",
                                  R"("num_kv_heads": 2)",
                                  R"("multi_query_group_num": 2)",
                                  R"("swa_num_key_value_heads": 2)",
                                  R"("num_key_value_heads_per_layer": [2, 2, 2, 2])",
                                  R"("num_global_key_value_heads": null)",
                                  R"("full_attention_interval": 1)",
                                  R"("hybrid_override_pattern": "****")",
                                  R"("hybrid_layer_pattern": [0, 0, 0, 0])",
                                  R"("layers_block_type": ["attention", "attention", "attention", "attention"])",
                                  R"("attn_type_list": [1, 1, 1, 1])",
                                  R"("attn_layer_period": 1)",
                                  R"("attn_layer_indices": [0, 1, 2, 3])",
                                  R"("sliding_window": 9, "hybrid_layer_pattern": [1, 1, 1, 1])",
                                  R"("num_kv_shared_layers": 0)",
                                  R"("compress_ratios": [0, 1])",
                                  R"("mamba_enabled": false, "mamba_step": 2)",
                                  R"("use_yoco": false, "yoco_cross_layers": 16)",
                                  R"("mb_per_layer": 0, "hybrid_layer_ids": [], "kv_reuse_group": null)",
                                  R"("_block_types": ["attention"])",
                                  R"("sliding_window": [null, null, null, null])",
                                  R"("sliding_window": null, "sliding_window_pattern": 6)",
                                  R"("num_attention_groups": 2, "n_shared_head": 1)",
                                  R"("qk_nope_head_dim": 8, "qk_rope_head_dim": 8)",
                                  R"("v_head_dim": 16)",
                                  R"("kv_channels": 16)",
                                  R"("sliding_window": 4096, "model_type": "mistral")",
                                  R"("sliding_window": null, "model_type": "gemma2")",
                                  R"("use_sliding_window": false, "max_window_layers": 3)",
                                  R"("max_window_layers": 3)",
                                  R"("use_sliding_window": true, "max_window_layers": 4)",
                                  R"("text_config": {"num_hidden_layers": 4})",
                                  R"("beta": Infinity, "gamma": [-Infinity, NaN])"}) {
    CAPTURE(field);
    CHECK(parse(with(field)) == ha::ModelConfig{4, 8, 2, 16});
  }
  CHECK(parse(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "multi_query": true})") ==
        ha::ModelConfig{2, 4, 1, 0});
  // They are no numbers of layers, and no JSON elsewhere.
  check_rejected(R"({"num_hidden_layers": Infinity, "num_attention_heads": 4})",
                 {"not an integer", "[1, ", "Infinity", "/num_hidden_layers"});
  check_rejected(with(R"("beta": Infinite)"), {"malformed JSON", "a value", "'Infinite'", "/beta"});
  check_rejected(R"({"num_hidden_layers": 99999999999999999999, "num_attention_heads": 4})",
                 {"out of range", "[1, ", "99999999999999999999", "/num_hidden_layers"});
}

TEST_CASE("current models are a ModelConfig, or refused by the layer that differs", "[io][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = headaware_test::shared_data() / "model-configs";
  for (auto const& [model, shape] :
       std::initializer_list<std::pair<char const*, ha::ModelConfig>>{{"llama-3.1-8b", {32, 32, 8, 128}},
                                                                      {"qwen3-8b", {36, 32, 8, 128}},
                                                                      {"falcon-7b", {32, 71, 1, 64}},
                                                                      {"falcon-40b", {60, 128, 8, 64}},
                                                                      {"glm-4-9b", {40, 32, 2, 128}}}) {
    CAPTURE(model);
    CHECK(ha::load_model_config(folder / (std::string(model) + ".json")) == shape);
  }
  for (auto const& [model, what] :
       std::initializer_list<std::pair<char const*, char const*>>{{"deepseek-v3", "kind of layer 0"},
                                                                  {"gemma-4-26b", "kind of layer 5"},
                                                                  {"gpt-oss-20b", "kind of layer 1"},
                                                                  {"mimo-v2-flash", "value_dim of layer 0"},
                                                                  {"nemotron-3-nano", "kind of layer 0"},
                                                                  {"nemotron-3-ultra", "kind of layer 0"},
                                                                  {"nemotron-super-49b", "kind of layer 6"},
                                                                  {"qwen3.5-27b", "kind of layer 0"},
                                                                  {"refuse-deepseek-v4-flash", "compress_ratios"}}) {
    CAPTURE(model);
    headaware_test::check_error<ha::FormatError>(
        [&] { (void)ha::load_model_config(folder / (std::string(model) + ".json")); }, {what, "", "", model});
  }
}
