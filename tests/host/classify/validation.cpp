#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/classify/validation.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/io/head_statistics.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

namespace ha = headaware;
using ha::HeadType;

namespace {

ha::HeadStatistics head(std::int32_t index, double entropy, double sink, double local) {
  ha::HeadStatistics s;
  s.head_idx = index;
  s.mean_entropy = entropy;
  s.sink_ratio = s.position_preference.sink = sink;
  s.position_preference.local = local;
  s.uniformity_score = 1;
  s.relative_position_dist = {0.25, 0.25};
  return s;
}

/// Two heads with sinks, one on its neighbours, one that gathers.
ha::ModelStatistics four_heads() {
  ha::ModelStatistics model;
  model.model_info.num_layers = 1;
  model.model_info.num_heads = 4;
  model.heads = {head(0, 1.0, 0.4, 0.2), head(1, 1.2, 0.6, 0.1), head(2, 1.0, 0.1, 0.9), head(3, 3.5, 0.1, 0.1)};
  return model;
}

}  // namespace

TEST_CASE("classes from the classifier are consistent with their statistics", "[classify]") {
  auto const model = four_heads();
  auto classes = ha::classify(model);
  CHECK(ha::check_classifications(model, classes).empty());
  // The order of neither matters.
  std::swap(classes[0], classes[3]);
  CHECK(ha::check_classifications(model, classes).empty());
  CHECK(ha::format_issues({}, 4).find("the rules do not give  :    0 of 4 heads\n") != std::string::npos);
}

TEST_CASE("each kind of inconsistency is found and named", "[classify]") {
  auto model = four_heads();
  auto classes = ha::classify(model);
  auto check = [&](ha::IssueKind kind, std::int32_t index, char const* what, char const* expected, char const* got) {
    auto const issues = ha::check_classifications(model, classes);
    REQUIRE(issues.size() == 1);
    CHECK(issues[0].kind == kind);
    CHECK(issues[0].head_idx == index);
    CHECK(issues[0].what == what);
    CHECK(issues[0].expected == expected);
    CHECK(issues[0].got == got);
  };
  SECTION("another type: one issue, not one for each field") {
    classes[1] = ha::classify(head(1, 3.5, 0, 0));
    check(ha::IssueKind::rules, 1, "head_type", "sink_positional", "gathering");
    CHECK(ha::format_issues(ha::check_classifications(model, classes), 4)
              .find("  layer 0, head 1: head_type: expected sink_positional, got gathering\n") != std::string::npos);
  }
  SECTION("another window") {
    classes[0].recommended_window = 9;
    check(ha::IssueKind::rules, 0, "recommended_window", "8", "9");
  }
  SECTION("another confidence") {
    classes[0].confidence = 0.5;
    check(ha::IssueKind::rules, 0, "confidence", "0.400000", "0.500000");
  }
  SECTION("flags that contradict the strategy") {
    classes[3].can_prune = true;
    check(ha::IssueKind::fields, 3, "can_prune", "false", "true");
  }
  SECTION("a share above 1") {
    model.heads[3].max_attention_mean = 1.5;
    check(ha::IssueKind::statistics, 3, "max_attention_mean", "in [0, 1]", "1.500000");
  }
  SECTION("two values for the sinks") {
    model.heads[3].sink_ratio = 0.2;
    check(ha::IssueKind::statistics, 3, "sink_ratio", "position_preference.sink = 0.100000", "0.200000");
  }
  SECTION("thresholds decide") {
    ha::ClassifierThresholds t;
    t.high_sink = 0.5;
    auto const issues = ha::check_classifications(model, classes, t);
    REQUIRE(issues.size() == 1);
    CHECK(issues[0].expected == "mixed");
  }
}

TEST_CASE("only so many issues are listed, all are counted", "[classify]") {
  auto const model = four_heads();
  auto classes = ha::classify(model);
  for (auto& c : classes) c.confidence = 0.125;
  auto const issues = ha::check_classifications(model, classes);
  REQUIRE(issues.size() == 4);
  std::string const text = ha::format_issues(issues, 4, 3);
  CHECK(text.find("   4 of 4 heads\n") != std::string::npos);
  CHECK(text.find("head 2: confidence") != std::string::npos);
  CHECK(text.find("head 3: confidence") == std::string::npos);
  CHECK(text.find("  and 1 more\n") != std::string::npos);
}

TEST_CASE("statistics and classes of different models are an error", "[classify]") {
  auto const model = four_heads();
  auto classes = ha::classify(model);
  classes.pop_back();
  headaware_test::check_error<ha::ArgumentError>(
      [&] { (void)ha::check_classifications(model, classes); },
      {"missing head", "1 layers x 4 heads", "layer 0, head 3", "check_classifications"});
  CHECK_THROWS_AS(ha::format_validation_report(model, classes), ha::ArgumentError);
}

TEST_CASE("means and deviations are taken over the heads of a type", "[classify]") {
  auto const model = four_heads();
  auto const types = ha::type_statistics(model, ha::classify(model));
  REQUIRE(types.size() == 3);
  CHECK(types[0].type == HeadType::sink_positional);
  CHECK(types[0].heads == 2);
  CHECK(std::abs(types[0].sink.mean - 0.5) < 1e-12);
  CHECK(std::abs(types[0].sink.deviation - 0.1) < 1e-12);
  CHECK(std::abs(types[0].entropy.mean - 1.1) < 1e-12);
  CHECK(types[1].type == HeadType::true_positional);
  CHECK(types[1].local.deviation == 0);
  CHECK(types[2].type == HeadType::gathering);
}

TEST_CASE("the report's remarks hold where their conditions do", "[classify]") {
  auto const model = four_heads();
  std::string const text = ha::format_validation_report(model, ha::classify(model));
  CHECK(text.find("outnumber true-positional by 2.0x\n") != std::string::npos);
  CHECK(text.find("CRITICAL") == std::string::npos);  // 50 % is not most
  CHECK(text.find("sink-mixed heads need") == std::string::npos);
  CHECK(text.find("  • 1 gathering heads need full KV cache\n") != std::string::npos);
  CHECK(ha::format_validation_report({}, {}).find("Total heads: 0\n") != std::string::npos);
}

TEST_CASE("the reference's validation report is reproduced byte for byte", "[classify][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = headaware_test::shared_data() / "pythia-2.8b";
  auto const model = ha::load_statistics(folder / "head_statistics.json");
  auto const expected = ha::read_text_file(folder / "validation_report.txt");
  auto const refined = ha::load_classifications(folder / "refined_classifications.json");
  CHECK(ha::format_validation_report(model, refined) == expected);
  CHECK(ha::format_validation_report(model, ha::classify(model)) == expected);
  CHECK(ha::check_classifications(model, refined).empty());

  // The other file was written by an older rule with one type, `positional`, for all focused heads.
  auto const older = ha::load_classifications(folder / "head_classifications.json");
  CHECK(ha::format_validation_report(model, older) != expected);
  CHECK(ha::check_classifications(model, older).size() == 370 + 452);
}
