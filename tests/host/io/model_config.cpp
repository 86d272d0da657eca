#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/model_config.hpp>

#include <string>

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
