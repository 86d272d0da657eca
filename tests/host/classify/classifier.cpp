#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/classify/summary.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/io/head_statistics.hpp>

#include <cmath>
#include <limits>
#include <string>

namespace ha = headaware;
using ha::CompressionStrategy;
using ha::HeadType;

namespace {

/// A head whose numbers fit no rule but those that the arguments call for.
ha::HeadStatistics head(double entropy, double sink, double local, double uniformity = 1.0) {
  ha::HeadStatistics s;
  s.layer_idx = 3;
  s.head_idx = 7;
  s.mean_entropy = entropy;
  s.sink_ratio = sink;
  s.position_preference.sink = sink;
  s.position_preference.local = local;
  s.uniformity_score = uniformity;
  return s;
}

}  // namespace

TEST_CASE("each rule of the classifier gives its type and all its flags", "[classify]") {
  ha::HeadClassification expected;
  expected.layer_idx = 3;
  expected.head_idx = 7;

  SECTION("near-uniform is dead, whatever else holds") {
    expected.head_type = HeadType::dead;
    expected.can_prune = true;
    expected.compression_strategy = CompressionStrategy::prune;
    expected.confidence = 1.0 - 0.025 / 0.1;
    CHECK(ha::classify(head(1.0, 0.9, 0.9, 0.025)) == expected);
    expected.confidence = 1;
    CHECK(ha::classify(head(1.0, 0.9, 0.9, -1e-9)) == expected);
  }
  SECTION("focused with sinks") {
    expected.head_type = HeadType::sink_positional;
    expected.can_limit_window = true;
    expected.recommended_window = 8;
    expected.keep_sinks = true;
    expected.compression_strategy = CompressionStrategy::sink_window;
    expected.confidence = 0.4;
    CHECK(ha::classify(head(1.4, 0.4, 0.9)) == expected);
    expected.confidence = 1;
    CHECK(ha::classify(head(1.4, 1.0000001, 0.9)) == expected);
  }
  SECTION("focused on neighbours") {
    expected.head_type = HeadType::true_positional;
    expected.can_limit_window = true;
    expected.compression_strategy = CompressionStrategy::window_only;
    expected.confidence = (1.0 - 1.2 / 1.5) * (0.9 / 0.6);
    ha::HeadStatistics s = head(1.2, 0.1, 0.9);
    expected.recommended_window = 16;  // nowhere covered
    CHECK(ha::classify(s) == expected);
    s.relative_position_dist = {0.5, 0.29, 0.02};  // covered at distance 2
    expected.recommended_window = 8;
    CHECK(ha::classify(s) == expected);
    s.relative_position_dist.assign(64, 0.0);
    s.relative_position_dist[9] = 0.81;
    expected.recommended_window = 13;
    CHECK(ha::classify(s) == expected);
    s.relative_position_dist[9] = 0;
    s.relative_position_dist[15] = 0.81;
    expected.recommended_window = 19;
    CHECK(ha::classify(s) == expected);
    s.relative_position_dist[15] = 0;
    s.relative_position_dist[16] = 0.81;
    expected.recommended_window = 16;
    CHECK(ha::classify(s) == expected);
    expected.confidence = 1;
    s.mean_entropy = 0.1;
    CHECK(ha::classify(s) == expected);
  }
  SECTION("of medium entropy with sinks") {
    expected.head_type = HeadType::sink_mixed;
    expected.can_limit_window = true;
    expected.keep_sinks = true;
    expected.compression_strategy = CompressionStrategy::sink_window;
    expected.recommended_window = 16;
    expected.confidence = 0.4;
    CHECK(ha::classify(head(1.5, 0.4, 0.0)) == expected);
    expected.recommended_window = 23;  // 16 + 16 * 0.4666...
    expected.confidence = 0.4 * (1.0 - (2.2 - 1.5) / 1.5);
    CHECK(ha::classify(head(2.2, 0.4, 0.0)) == expected);
  }
  SECTION("of high entropy") {
    expected.head_type = HeadType::gathering;
    expected.use_full_cache = true;
    expected.compression_strategy = CompressionStrategy::full;
    expected.confidence = 0.25;
    CHECK(ha::classify(head(3.5, 0.9, 0.0)) == expected);
    expected.confidence = 1;
    CHECK(ha::classify(head(9.0, 0.0, 0.0)) == expected);
  }
  SECTION("anything else is mixed") {
    expected.head_type = HeadType::mixed;
    expected.use_full_cache = true;
    expected.confidence = 0.5;
    CHECK(ha::classify(head(1.0, 0.2, 0.5)) == expected);
    CHECK(ha::classify(head(2.0, 0.2, 0.9)) == expected);
  }
}

TEST_CASE("the classifier's comparisons are strict", "[classify]") {
  CHECK(ha::classify(head(1.0, 0.2, 0.5, 0.1)).head_type == HeadType::mixed);
  CHECK(ha::classify(head(1.0, 0.3, 0.5)).head_type == HeadType::mixed);
  CHECK(ha::classify(head(1.0, 0.2, 0.6)).head_type == HeadType::mixed);
  CHECK(ha::classify(head(3.0, 0.9, 0.9)).head_type == HeadType::mixed);
  CHECK(ha::classify(head(1.5, 0.31, 0.9)).head_type == HeadType::sink_mixed);
}

TEST_CASE("thresholds move the classifier's limits", "[classify]") {
  ha::ClassifierThresholds t;
  t.low_entropy = 0.5;
  t.sink_size = 2;
  t.small_window = 32;
  auto const c = ha::classify(head(1.0, 0.9, 0.9), t);
  CHECK(c.head_type == HeadType::sink_mixed);
  CHECK(c.sink_size == 2);
  CHECK(ha::classify(head(0.4, 0.9, 0.9), t).recommended_window == 32);

  t.high_entropy = 0.4;
  headaware_test::check_error<ha::ArgumentError>(
      [&] { (void)ha::classify(head(1, 1, 1), t); },
      {"low_entropy", "at most high_entropy", "0.5", "ClassifierThresholds"});
  t = {};
  t.high_sink = std::nan("");
  headaware_test::check_error<ha::ArgumentError>([&] { (void)ha::classify(head(1, 1, 1), t); },
                                                 {"high_sink", "finite", "nan", "ClassifierThresholds"});
}

TEST_CASE("statistics that are no numbers are an error", "[classify]") {
  double const wrong = GENERATE(std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                                -std::numeric_limits<double>::infinity());
  auto check = [&](ha::HeadStatistics const& s, char const* field) {
    headaware_test::check_error<ha::ArgumentError>(
        [&] { (void)ha::classify(s); }, {field, "a finite number", std::to_string(wrong), "layer 3, head 7"});
  };
  ha::HeadStatistics s = head(1.0, 0.2, 0.5);
  s.mean_entropy = wrong;
  check(s, "mean_entropy");
  s = head(1.0, 0.2, 0.5);
  s.sink_ratio = wrong;
  check(s, "sink_ratio");
  s = head(1.0, 0.2, 0.5);
  s.position_preference.local = wrong;
  check(s, "position_preference.local");
  s = head(1.0, 0.2, 0.5);
  s.uniformity_score = wrong;
  check(s, "uniformity_score");
  s = head(1.0, 0.2, 0.5);
  s.std_entropy = wrong;
  check(s, "std_entropy");
  s = head(1.0, 0.2, 0.5);
  s.relative_position_dist = {0.1, wrong};
  check(s, "relative_position_dist[1]");

  // Of a model's heads, too.
  ha::ModelStatistics model;
  model.model_info.num_layers = 1;
  model.model_info.num_heads = 2;
  model.heads = {head(1.0, 0.2, 0.5), head(1.0, 0.2, 0.5)};
  model.heads[0].layer_idx = model.heads[1].layer_idx = 0;
  model.heads[0].head_idx = 0;
  model.heads[1].head_idx = 1;
  (void)ha::classify(model);
  model.heads[1].uniformity_score = wrong;
  headaware_test::check_error<ha::ArgumentError>(
      [&] { (void)ha::classify(model); },
      {"uniformity_score", "a finite number", std::to_string(wrong), "layer 0, head 1"});
}

TEST_CASE("a positional window ends where attention is covered by more than the limit", "[classify]") {
  ha::HeadStatistics s = head(1.0, 0.0, 0.9);
  s.relative_position_dist = {0.5, 0, 0, 0, 0, 0.25, 0.125};
  ha::ClassifierThresholds thresholds;
  thresholds.coverage = 0.75;  // as much as the first six distances have, exactly
  CHECK(ha::classify(s, thresholds).recommended_window == 10);
  thresholds.coverage = 0.7;
  CHECK(ha::classify(s, thresholds).recommended_window == 9);
}

TEST_CASE("a model's heads are classified in order, each once", "[classify]") {
  ha::ModelStatistics model;
  model.model_info.num_layers = 1;
  model.model_info.num_heads = 2;
  CHECK_THROWS_AS(ha::classify(model), ha::ArgumentError);
  model.heads = {head(3.5, 0, 0), head(1.0, 0.4, 0)};
  model.heads[0].layer_idx = model.heads[1].layer_idx = 0;
  model.heads[0].head_idx = 1;
  model.heads[1].head_idx = 0;
  auto const classes = ha::classify(model);
  REQUIRE(classes.size() == 2);
  CHECK(classes[0].head_type == HeadType::sink_positional);
  CHECK(classes[1].head_type == HeadType::gathering);

  model.heads[1].head_idx = 1;
  headaware_test::check_error<ha::ArgumentError>([&] { (void)ha::classify(model); },
                                                 {"duplicate head", "each head once", "layer 0, head 1", "classify"});
  CHECK(ha::classify(ha::ModelStatistics{}).empty());
}

TEST_CASE("the reference's 1,024 heads fall into the reference's classes", "[classify][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = headaware_test::shared_data() / "pythia-2.8b";
  auto const expected = ha::load_classifications(folder / "refined_classifications.json");
  auto const got = ha::classify(ha::load_statistics(folder / "head_statistics.json"));
  REQUIRE(got.size() == 1024);
  REQUIRE(expected.size() == got.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(got[i].confidence - expected[i].confidence) <= 1e-12);
    ha::HeadClassification same = got[i];
    same.confidence = expected[i].confidence;
    CHECK(same == expected[i]);
  }
}
