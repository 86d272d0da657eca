#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/json.hpp>

#include <nlohmann/json.hpp>

#include <limits>
#include <string>
#include <vector>

namespace ha = headaware;
using ha::CompressionStrategy;
using ha::HeadType;

namespace {

/// 2 layers of 2 heads, all fields away from their defaults somewhere.
std::vector<ha::HeadClassification> small_model() {
  return {{0, 0, HeadType::sink_positional, 0.75, false, true, 8, true, 4, false, CompressionStrategy::sink_window},
          {0, 1, HeadType::true_positional, 0.125, false, true, 12, false, 4, false, CompressionStrategy::window_only},
          {1, 0, HeadType::dead, 1, true, false, -1, false, 0, false, CompressionStrategy::prune},
          {1, 1, HeadType::gathering, 0, false, false, -1, false, 16, true, CompressionStrategy::full}};
}

void check_rejected(std::string const& text, ha::ErrorDetail const& parts) {
  headaware_test::check_error<ha::FormatError>([&] { (void)ha::parse_classifications(text, "heads.json"); }, parts);
}

std::string record(std::string const& layer, std::string const& head, std::string const& type = "mixed") {
  return R"({"layer_idx": )" + layer + R"(, "head_idx": )" + head + R"(, "head_type": ")" + type +
         R"(", "confidence": 0.5, "can_prune": false, "can_limit_window": false, "recommended_window": -1})";
}

}  // namespace

TEST_CASE("classifications are read as they were written, with and without a summary", "[io]") {
  headaware_test::TemporaryFolder const folder;
  auto const heads = small_model();
  ha::save_classifications(folder / "head_classifications.json", heads);
  CHECK(ha::load_classifications(folder / "head_classifications.json") == heads);
  ha::save_refined_classifications(folder / "refined_classifications.json", heads);
  CHECK(ha::load_classifications(folder / "refined_classifications.json") == heads);
  CHECK(folder.entries() == 2);
}

TEST_CASE("classifications have the reference's names, nesting and indent", "[io]") {
  std::vector<ha::HeadClassification> const heads{small_model()[0]};
  CHECK(ha::format_refined_classifications(heads) == R"({
  "classifications": [
    {
      "layer_idx": 0,
      "head_idx": 0,
      "head_type": "sink_positional",
      "confidence": 0.75,
      "can_prune": false,
      "can_limit_window": true,
      "recommended_window": 8,
      "keep_sinks": true,
      "sink_size": 4,
      "use_full_cache": false,
      "compression_strategy": "sink_window"
    }
  ]
})");
}

TEST_CASE("the summary of classifications is written beside them", "[io]") {
  auto const document = nlohmann::json::parse(ha::format_classifications(small_model()));
  auto const& summary = document.at("summary");
  CHECK(summary.at("total_heads") == 4);
  CHECK(summary.at("type_distribution").at("dead") == 1);
  CHECK(summary.at("type_distribution").at("positional") == 0);
  CHECK(summary.at("type_percentages").at("gathering") == 25.0);
  CHECK(summary.at("prunable_heads") == 1);
  CHECK(summary.at("prunable_percentage") == 25.0);
  CHECK(summary.at("limitable_heads") == 2);
  CHECK(summary.at("limitable_percentage") == 50.0);
  CHECK(summary.at("compression_strategies").at("window_only") == 1);
  CHECK(summary.at("strategy_percentages").at("none") == 0.0);
  CHECK(summary.at("sink_heads") == 1);
  CHECK(summary.at("sink_heads_percentage") == 25.0);
  CHECK_FALSE(nlohmann::json::parse(ha::format_refined_classifications(small_model())).contains("summary"));
}

TEST_CASE("a bare array, any order and unknown keys are read", "[io]") {
  auto heads = ha::parse_classifications("[" + record("0", "1") + ", " + record("0", "0", "dead") + "]", "");
  REQUIRE(heads.size() == 2);
  CHECK(heads[0].head_type == HeadType::dead);
  CHECK(heads[1].head_type == HeadType::mixed);
  heads = ha::parse_classifications(
      R"({"version": 2, "classifications": [)" +
          headaware_test::replaced(record("0", "0"), "{", R"({"note": {"by": ["hand"]}, )") + "]}",
      "");
  CHECK(heads.size() == 1);
}

TEST_CASE("what older records lack follows from their type", "[io]") {
  auto check = [](std::string const& type, bool keep_sinks, bool full, CompressionStrategy strategy) {
    CAPTURE(type);
    auto const c = ha::parse_classifications("[" + record("0", "0", type) + "]", "").front();
    CHECK(to_string(c.head_type) == type);
    CHECK(c.keep_sinks == keep_sinks);
    CHECK(c.sink_size == 4);
    CHECK(c.use_full_cache == full);
    CHECK(c.compression_strategy == strategy);
  };
  check("positional", true, false, CompressionStrategy::sink_window);
  check("sink_positional", true, false, CompressionStrategy::sink_window);
  check("sink_mixed", true, false, CompressionStrategy::sink_window);
  check("true_positional", false, false, CompressionStrategy::window_only);
  check("gathering", false, true, CompressionStrategy::full);
  check("mixed", false, true, CompressionStrategy::none);
  check("dead", false, false, CompressionStrategy::prune);
}

TEST_CASE("classifications that are not what they should be are one error", "[io]") {
  auto const text = ha::format_classifications(small_model());
  auto changed = [&](std::string_view from, std::string_view to) { return headaware_test::replaced(text, from, to); };
  auto const at = [](std::string const& field) { return ": /classifications/1/" + field; };

  check_rejected(text.substr(0, text.size() - 2), {"malformed JSON", "", "the end of the file", "heads.json, line "});
  check_rejected("", {"malformed JSON", "a value", "the end of the file", "heads.json, line 1, column 1"});
  check_rejected("3", {"wrong type", "an object or an array", "3", "heads.json, line 1, column 1"});
  check_rejected("{}", {"missing field", "an array", "nothing", ": /classifications"});
  check_rejected(R"({"classifications": {}})", {"wrong type", "an array", "an object", ": /classifications"});
  check_rejected("[]", {"no heads", "at least one head", "an array of 0", "heads.json"});
  check_rejected("[7]", {"wrong type", "an object", "7", ": /0"});
  check_rejected(changed("\"confidence\": 0.125,", ""), {"missing field", "a number", "nothing", at("confidence")});
  check_rejected(changed("0.125", "1.125"), {"out of range", "a number in [0, 1]", "1.125", at("confidence")});
  check_rejected(changed("0.125", "-0.125"), {"out of range", "a number in [0, 1]", "-0.125", at("confidence")});
  check_rejected(changed("0.125", "null"), {"wrong type", "a number", "null", at("confidence")});
  check_rejected(changed("0.125", "NaN"), {"malformed JSON", "a value", "NaN", at("confidence")});
  check_rejected(changed("0.125", "1e999"), {"number out of range", "a double", "1e999", at("confidence")});
  check_rejected(changed("\"recommended_window\": 12", "\"recommended_window\": 0"),
                 {"out of range", "-1 or a window > 0", "0", at("recommended_window")});
  check_rejected(changed("\"recommended_window\": 12", "\"recommended_window\": -2"),
                 {"out of range", "-1 or a window > 0", "-2", at("recommended_window")});
  check_rejected(changed("\"recommended_window\": 12", "\"recommended_window\": 1.5"),
                 {"not an integer", "an integer", "1.5", at("recommended_window")});
  check_rejected(changed("\"recommended_window\": 12", "\"recommended_window\": \"12\""),
                 {"wrong type", "an integer", "\"12\"", at("recommended_window")});
  check_rejected(changed("\"recommended_window\": 12", "\"recommended_window\": 3000000000"),
                 {"out of range", "an integer", "3000000000", at("recommended_window")});
  check_rejected(changed("\"sink_size\": 16", "\"sink_size\": -16"),
                 {"out of range", "[0, ", "-16", ": /classifications/3/sink_size"});
  check_rejected(changed("\"sink_size\": 16,", ""),
                 {"missing field", "an integer", "nothing", ": /classifications/3/sink_size"});
  check_rejected(changed("\"compression_strategy\": \"window_only\"", "\"compression_strategy\": \"window\""),
                 {"unknown compression strategy", "one of sink_window, window_only, full, none, prune", "\"window\"",
                  at("compression_strategy")});
  check_rejected(changed("\"head_type\": \"true_positional\"", "\"head_type\": \"local\""),
                 {"unknown head type", "one of sink_positional", "\"local\"", at("head_type")});
  check_rejected(changed("\"head_type\": \"true_positional\"", "\"head_type\": 1"),
                 {"wrong type", "a string", "1", at("head_type")});
  check_rejected(changed("\"can_prune\": true", "\"can_prune\": 1"),
                 {"wrong type", "true or false", "1", ": /classifications/2/can_prune"});
  check_rejected(changed("\"head_type\": \"true_positional\"", "\"head_type\": \"dead\", \"head_type\": \"dead\""),
                 {"duplicate key", "each key once", "\"head_type\"", at("head_type")});
}

TEST_CASE("classifications that are no full rectangle are one error", "[io]") {
  auto list = [](std::vector<std::string> const& records) {
    std::string text = "[";
    for (auto const& each : records) text += (text.size() > 1 ? "," : "") + each;
    return text + "]";
  };
  check_rejected(list({record("0", "0"), record("0", "0")}),
                 {"duplicate head", "each head once", "layer 0, head 0 again", ": /1"});
  check_rejected(list({record("0", "0"), record("1", "1"), record("0", "1")}),
                 {"missing head", "2 layers x 2 heads", "none for layer 1, head 0", "heads.json"});
  check_rejected(list({record("1", "0")}),
                 {"missing head", "2 layers x 1 heads", "none for layer 0, head 0", "heads.json"});
  check_rejected(list({record("-1", "0")}), {"out of range", "an integer in [0, ", "-1", ": /0/layer_idx"});
  check_rejected(list({record("0", "-1")}), {"out of range", "an integer in [0, ", "-1", ": /0/head_idx"});
  check_rejected(list({record("0", "1000000000")}),
                 {"out of range", "an integer in [0, 1048575]", "1000000000", ": /0/head_idx"});
  check_rejected(list({record("99999", "9999")}),
                 {"too many heads", "at most 1048576", "100000 layers x 10000 heads", "heads.json"});
  check_rejected(list({record("1023", "1023")}),
                 {"missing head", "1024 layers x 1024 heads", "none for layer 0, head 0", "heads.json"});
}

TEST_CASE("classifications that could not be read again are not written", "[io]") {
  headaware_test::TemporaryFolder const folder;
  auto check = [&](std::vector<ha::HeadClassification> const& heads, ha::ErrorDetail const& parts) {
    headaware_test::check_error<ha::ArgumentError>([&] { ha::save_classifications(folder / "file", heads); }, parts);
    headaware_test::check_error<ha::ArgumentError>([&] { ha::save_refined_classifications(folder / "file", heads); },
                                                   parts);
  };
  auto heads = small_model();
  heads[1].confidence = std::numeric_limits<double>::quiet_NaN();
  check(heads, {"confidence", "[0, 1]", "nan", "layer 0, head 1"});
  heads = small_model();
  heads[1].recommended_window = 0;
  check(heads, {"recommended_window", "-1 or > 0", "0", "layer 0, head 1"});
  heads = small_model();
  heads[1].sink_size = -4;
  check(heads, {"sink_size", ">= 0", "-4", "layer 0, head 1"});
  heads = small_model();
  heads[1].head_idx = -1;
  check(heads, {"head_idx", "[0, ", "-1", "format_"});
  heads = small_model();
  heads.pop_back();
  check(heads, {"missing head", "2 layers x 2 heads", "layer 1, head 1", "format_"});
  check({}, {"number of heads", "[1, ", "0", "format_"});
  CHECK(folder.entries() == 0);
}

TEST_CASE("a missing file is an error that names it", "[io]") {
  headaware_test::check_error<ha::FileError>([] { (void)ha::load_classifications("/nonexistent/heads.json"); },
                                             {"cannot open", "readable", "No such file", "/nonexistent/heads.json"});
}

TEST_CASE("the reference's classifications are read, the older ones too", "[io][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = headaware_test::shared_data() / "pythia-2.8b";
  auto const refined = ha::load_classifications(folder / "refined_classifications.json");
  CHECK(refined.size() == 1024);
  CHECK(ha::parse_classifications(ha::format_classifications(refined), "again") == refined);
  CHECK(ha::summarize(refined).sink_heads == 813);

  auto const older = ha::load_classifications(folder / "head_classifications.json");
  auto const summary = ha::summarize(older);
  auto const document = nlohmann::json::parse(ha::read_text_file(folder / "head_classifications.json")).at("summary");
  CHECK(summary.count(HeadType::positional) == document.at("type_distribution").at("positional"));
  CHECK(summary.count(HeadType::mixed) == document.at("type_distribution").at("mixed"));
  CHECK(summary.limitable_heads == document.at("limitable_heads"));
  CHECK(summary.percentage(summary.limitable_heads) == document.at("limitable_percentage"));
}

TEST_CASE("every cut through a file is one error", "[io]") {
  auto const text = ha::format_classifications(small_model());
  for (std::size_t length = 0; length < text.size(); ++length) {
    CHECK_THROWS_AS(ha::parse_classifications(std::string_view(text).substr(0, length), "cut"), ha::FormatError);
  }
}
