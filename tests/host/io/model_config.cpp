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

TEST_CASE("a config.json whose cache is not the same in every layer is refused by the field that says so", "[io]") {
  for (auto const& [name, value, reason] : std::initializer_list<std::array<char const*, 3>>{
           {"kv_lora_rank", "512", "latent"},
           {"block_configs", R"([{"attention": {"n_heads_in_group": 4}}])", "blocks"},
           {"layer_types", R"(["full_attention", "sliding_attention"])", "several kinds"},
           {"layer_types", R"(["linear_attention"])", "several kinds"},
           {"layers_block_type", R"(["attention", "mamba"])", "several kinds"},
           {"hybrid_override_pattern", R"("M*-*")", "several kinds"},
           {"hybrid_layer_pattern", "[0, 1]", "several kinds"},
           {"full_attention_interval", "4", "without keys"},
           {"attn_layer_period", "8", "without keys"},
           {"sliding_window_pattern", "6", "with and without a window"},
           {"attention_chunk_size", "8192", "chunk"},
           {"num_kv_shared_layers", "2", "share a cache"},
           {"compress_ratios", "[0, 4]", "several tokens in one"},
           {"kv_reuse_group", "[[1, 2], [3, 4]]", "share a cache"},
           {"kv_reuse_every_i_layer", "2", "share a cache"},
           {"use_yoco", "true", "share a cache"},
           {"yoco_cross_layers", "16", "share a cache"},
           {"mb_per_layer", "2", "without keys"},
           {"mamba_step", "2", "without keys"},
           {"mamba_enabled", "true", "without keys"},
           {"hybrid_layer_ids", "[0]", "without keys"},
           {"attn_layer_indices", "[0]", "without keys"},
           {"_block_types", R"(["recurrent", "attention"])", "several kinds"},
           {"sliding_window", "[512, null]", "a number: layers with and without"},
           {"n_shared_head", "2", "query heads that share"},
           {"num_attention_groups", "1", "2, as num_key_value_heads"},
           {"qk_rope_head_dim", "8", "16, the channels of a key"},
           {"qk_nope_head_dim", "8", "16, the channels of a key"},
           {"multi_query", "true", "false, as num_key_value_heads says 2"},
           {"num_kv_heads", "4", "2, as num_key_value_heads"},
           {"num_kv_heads", "[2, 4]", "2, as num_key_value_heads"},
           {"multi_query_group_num", "4", "2, as num_key_value_heads"},
           {"num_global_key_value_heads", "1", "2, as num_key_value_heads"},
           {"swa_num_key_value_heads", "4", "2, as num_key_value_heads"},
           {"v_head_dim", "8", "16, the channels of a key"},
           {"global_head_dim", "32", "16, the channels of a key"}}) {
    CAPTURE(name, value);
    std::string const field = "\"" + std::string(name) + "\": " + value;
    check_rejected(with(field), {name, reason, "", "/" + std::string(name)});
    check_rejected(R"({"text_config": )" + with(field) + "}", {name, reason, "", "/text_config/" + std::string(name)});
  }
  check_rejected(with(R"("sliding_window": 128, "model_type": "gemma2")"), {"sliding_window", "none", "128", ""});
  check_rejected(with(R"("use_sliding_window": true, "sliding_window": 128, "max_window_layers": 3)"),
                 {"max_window_layers", "at least the layers, 4", "3", ""});
  check_rejected(with(R"("text_config": {"num_hidden_layers": 5})"),
                 {"num_hidden_layers", "the same", "5", "/text_config/num_hidden_layers"});
  // Without the usual fields, too, the reason is named.
  check_rejected(R"({"num_layers": 40, "num_attention_heads": 32, "multi_query_group_num": 2})",
                 {"multi_query_group_num", "32, as num_attention_heads", "2", ""});
  check_rejected(R"({"num_attention_heads": 64, "layers_block_type": ["mamba"]})",
                 {"layers_block_type", "none", "an array of 1", ""});
}

TEST_CASE("fields that say nothing, or what is known, are no reason to refuse a config.json", "[io]") {
  for (char const* const field : {R"("kv_lora_rank": null)",
                                  R"("kv_lora_rank": 0)",
                                  R"("block_configs": [])",
                                  R"("multi_query": false)",
                                  R"("num_kv_heads": 2)",
                                  R"("multi_query_group_num": 2)",
                                  R"("multi_query_group_num": 1, "multi_query_attention": false)",
                                  R"("swa_num_key_value_heads": 2)",
                                  R"("num_key_value_heads_per_layer": [2, 2, 2, 2])",
                                  R"("num_global_key_value_heads": null)",
                                  R"("full_attention_interval": 1)",
                                  R"("hybrid_override_pattern": "****")",
                                  R"("hybrid_layer_pattern": [0, 0, 0, 0])",
                                  R"("layers_block_type": ["attention", "attention"])",
                                  R"("layer_types": ["full_attention", "full_attention"])",
                                  R"("layer_types": ["sliding_attention"])",
                                  R"("num_kv_shared_layers": 0)",
                                  R"("compress_ratios": [0, 1])",
                                  R"("mamba_enabled": false, "mamba_step": 2)",
                                  R"("use_yoco": false, "yoco_cross_layers": 16)",
                                  R"("mb_per_layer": 0, "hybrid_layer_ids": [], "kv_reuse_group": null)",
                                  R"("_block_types": ["attention"])",
                                  R"("sliding_window": [null, null])",
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

TEST_CASE("current models are read right or refused by name", "[io][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = headaware_test::shared_data() / "model-configs";
  CHECK(ha::load_model_config(folder / "llama-3.1-8b.json") == ha::ModelConfig{32, 32, 8, 128});
  CHECK(ha::load_model_config(folder / "qwen3-8b.json") == ha::ModelConfig{36, 32, 8, 128});
  for (auto const& [model, field] :
       std::initializer_list<std::pair<char const*, char const*>>{{"deepseek-v3", "kv_lora_rank"},
                                                                  {"falcon-40b", "num_kv_heads"},
                                                                  {"falcon-7b", "multi_query"},
                                                                  {"gemma-4-26b", "layer_types"},
                                                                  {"glm-4-9b", "multi_query_group_num"},
                                                                  {"gpt-oss-20b", "layer_types"},
                                                                  {"mimo-v2-flash", "hybrid_layer_pattern"},
                                                                  {"nemotron-3-nano", "hybrid_override_pattern"},
                                                                  {"nemotron-3-ultra", "layers_block_type"},
                                                                  {"nemotron-super-49b", "block_configs"},
                                                                  {"qwen3.5-27b", "layer_types"},
                                                                  {"refuse-deepseek-v4-flash", "compress_ratios"}}) {
    CAPTURE(model);
    headaware_test::check_error<ha::FormatError>(
        [&] { (void)ha::load_model_config(folder / (std::string(model) + ".json")); },
        {field, "known here", "", "/" + std::string(field)});
  }
}
