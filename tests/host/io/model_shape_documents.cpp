#include "support/catch.hpp"
#include "support/config_text.hpp"
#include "support/layer_letters.hpp"

#include <initializer_list>
#include <string>
#include <utility>

using namespace headaware_test;

namespace {

/// A plain model with one object more.
std::string beside(std::string const& name, std::string const& object) { return with('"' + name + "\": " + object); }

}  // namespace

TEST_CASE("objects of a config.json that describe one language model agree", "[io]") {
  std::string const same = with(R"("model_type": "llama")");
  CHECK(parse(beside("text_config", same)) == layers_of("FFFF"));
  CHECK(parse(beside("text_config", beside("text_config", same))) == layers_of("FFFF"));
  CHECK(parse(beside("thinker_config", R"({"text_config": )" + same + "}")) == layers_of("FFFF"));
  CHECK(parse(R"({"text_config": )" + same + R"(, "llm_config": )" + same + "}") == layers_of("FFFF"));
  // By other fields, or with fewer of them.
  CHECK(parse(beside("text_config", with(R"("layer_types": ["full_attention", "full_attention", "full_attention",
                                            "full_attention"])"))) == layers_of("FFFF"));
  CHECK(parse(beside("text_config", "null")) == layers_of("FFFF"));
  CHECK(parse(beside("text_config", "{}")) == layers_of("FFFF"));
  CHECK(parse(beside("text_config", R"({"num_hidden_layers": 4, "num_key_value_heads": 2, "vocab_size": 9})")) ==
        layers_of("FFFF"));
  CHECK(parse(R"({"num_hidden_layers": 4, "text_config": )" + same + "}") == layers_of("FFFF"));
  CHECK(parse(R"({"vision_feature_layer": [-2, -1], "image_token_index": 9, "projector_hidden_act": "gelu",
                  "vision_config": {"num_hidden_layers": 9, "window_size": 8}, "audio_config": {"conv_dim": [1]},
                  "text_config": )" +
              same + "}") == layers_of("FFFF"));

  for (char const* const fields :
       {R"("model_type": "gemma3_text", "sliding_window": 9, "sliding_window_pattern": 2)",
        R"("kv_lora_rank": 32, "qk_rope_head_dim": 8)",
        R"("layer_types": ["full_attention", "full_attention", "full_attention", "linear_attention"])",
        R"("v_head_dim": 8)"}) {
    check_rejected(beside("text_config", with(fields)),
                   {"text_config", "the same layers as the others", "an object", "/text_config"});
    check_rejected(R"({"text_config": )" + same + R"(, "language_config": )" + with(fields) + "}",
                   {"language_config", "the same layers as the others", "an object", "/language_config"});
  }
  check_rejected(beside("thinker_config", R"({"text_config": )" + with(R"("v_head_dim": 8)") + "}"),
                 {"thinker_config", "the same layers", "an object", "/thinker_config"});
  // Fields of an object that does not say all.
  for (auto const& [field, name] : std::initializer_list<std::pair<char const*, char const*>>{
           {R"("num_hidden_layers": 5)", "num_hidden_layers"},
           {R"("num_key_value_heads": 8)", "num_key_value_heads"},
           {R"("sliding_window": 512)", "sliding_window"},
           {R"("kv_lora_rank": 32)", "kv_lora_rank"},
           {R"("layer_types": ["full_attention"])", "layer_types"}}) {
    check_rejected(beside("text_config", '{' + std::string(field) + '}'),
                   {name, "the same in all objects", "", "/text_config/" + std::string(name)});
    check_rejected('{' + std::string(field) + R"(, "text_config": )" + same + "}",
                   {name, "the same in all objects", "", "config.json, line 1, column"});
  }
  check_rejected(beside("text_config", R"({"mamba_layers": [0]})"),
                 {"mamba_layers", "without keys", "", "/text_config"});
  // Around the object that describes it.
  check_rejected(R"({"is_encoder_decoder": true, "text_config": )" + same + "}",
                 {"is_encoder_decoder", "another input", "true", "/is_encoder_decoder"});
  check_rejected(R"({"cross_attention_layers": [0], "text_config": )" + same + "}",
                 {"cross_attention_layers", "another input", "an array of 1", ""});
  check_rejected(R"({"mixer_types": ["x"], "text_config": )" + same + "}",
                 {"mixer_types", "what it does to the cache", "", ""});
  check_rejected(beside("text_config", "1"), {"wrong type", "an object", "1", "/text_config"});
}
