// plan.json, plans as classifications, and sensitivities.json: to a file and back, and broken.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/planned_statistics.hpp"

#include <headaware/compressor.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/io/sensitivities.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/summary.hpp>

#include <array>
#include <initializer_list>
#include <limits>
#include <string>

namespace ha = headaware;
using namespace headaware_test;

namespace {

ha::PolicyPlan planned(ha::PlanOptions const& options = {}) {
  auto statistics = random_statistics(3, 4, 2, ha::RetentionGrid::up_to(256), 17);
  for (std::size_t i = 2; i < 4; ++i) statistics.heads[i].output_metric_squared = 0;
  return ha::plan_policies(statistics, ha::Budget::tokens(100), 256, options);
}

/// One head a policy.
ha::PolicyPlan by_hand(ha::AnyPolicy<> const& third = ha::WindowOnly{31}) {
  ha::KvErrors errors;
  errors.num_layers = 2;
  errors.num_heads = 4;
  errors.num_kv_heads = 2;
  ha::PolicyPlan plan = ha::empty_plan(errors, 100, {});
  plan.heads.resize(4);
  plan.set(0, ha::Full{}, {100, 0});
  plan.set(1, ha::SinkWindow{4, 16}, {20, 0.5});
  plan.set(2, third, {31, 0.25});
  plan.set(3, ha::Prune{}, {0, 1e-9});
  plan.budget_tokens = 160;
  return plan;
}

}  // namespace

TEST_CASE("plans survive a file", "[io]") {
  TemporaryFolder const folder;
  ha::PlanOptions special;
  special.floor = 40;
  special.page_size = 16;
  special.ranks = 2;
  special.layer_shares = true;
  special.fold = ha::GroupFold::maximum;
  special.measure = ha::ErrorMeasure::output;
  special.negligible_output = 0.25;
  special.use_remainder = false;
  ha::PlanOptions skipping;
  skipping.skip_layers = {0, 2};
  for (auto const& plan : {planned(), planned(special), planned(skipping), by_hand()}) {
    ha::save_plan(folder / "plan.json", plan);
    auto const again = ha::load_plan(folder / "plan.json");
    CHECK(again == plan);
    CHECK(again.table == plan.table);
    // Either kind of file gives the same policies.
    ha::save_plan_classifications(folder / "plan_classifications.json", plan);
    ha::ModelConfig model = plan.model();
    model.head_dim = 64;
    CHECK(ha::load_policy_table(folder / "plan.json", model) == plan.table);
    CHECK(ha::load_policy_table(folder / "plan_classifications.json", model) == plan.table);
    CHECK(ha::Compressor::from_policies(folder / "plan.json", model).table() == plan.table);
    CHECK(ha::Compressor::from_policies(folder / "plan_classifications.json", model).table() == plan.table);
    CHECK(ha::Compressor::from_classifications(folder / "plan_classifications.json", model).table() == plan.table);
  }
  CHECK(planned().table.at(0, 1).is<ha::Prune>());
  // Plans of scored tokens are files of their own: classes of heads know none.
  auto const scored = by_hand(ha::SinkWindowScored{.sink = 4, .window = 20, .scored = 7});
  ha::save_plan(folder / "scored.json", scored);
  CHECK(ha::load_plan(folder / "scored.json") == scored);
  CHECK(ha::load_policy_table(folder / "scored.json", scored.model()) == scored.table);
  CHECK(ha::plan_summary(scored).find("sink_window_scored 1") != std::string::npos);
  ha::ModelConfig const other{3, 4, 4, 64};
  ha::save_plan(folder / "plan.json", planned());
  check_error<ha::ArgumentError>([&] { (void)ha::load_policy_table(folder / "plan.json", other); },
                                 {"KV heads of the plan", "4", "2", "plan.json"});
  check_error<ha::FileError>([&] { (void)ha::load_plan(folder / "none.json"); }, {"cannot open file", "", "", "none"});
  check_error<ha::FormatError>([&] { (void)ha::parse_policy_table("3", "file", other); },
                               {"policies", "a plan (", "another value", "file"});
  // Neither a plan nor classes: both are named.
  for (auto const& [text, got] : std::initializer_list<std::array<std::string, 2>>{
           {R"({"format":"headaware.sensitivities", "version": 1})", "\"headaware.sensitivities\""},
           {R"({"format": 1})", "1"},
           {R"({"head_statistics": []})", "an object with neither"}}) {
    check_error<ha::FormatError>([&] { (void)ha::parse_policy_table(text, "file", other); },
                                 {"policies", "headaware.plan\") or classes of heads", got, "file"});
  }
  // Each reader names the other's documents.
  check_error<ha::FormatError>([&] { (void)ha::load_plan(folder / "plan_classifications.json"); },
                               {"another document", "a plan", "classes of heads", "/classifications"});
  check_error<ha::FormatError>([&] { (void)ha::load_classifications(folder / "plan.json"); },
                               {"another document", "classes of heads", "headaware.plan", "/format"});
}

TEST_CASE("plans that are broken are named", "[io]") {
  std::string const text = ha::format_plan(by_hand());
  REQUIRE(ha::parse_plan(text, "file") == by_hand());
  auto const refused = [](std::string const& broken, ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>([&] { (void)ha::parse_plan(broken, "file"); }, parts);
  };
  for (std::size_t cut = 0; cut < text.size(); cut += 7) {
    REQUIRE_THROWS_AS(ha::parse_plan(text.substr(0, cut), "file"), ha::FormatError);
  }
  refused("[]", {"wrong type", "an object", "", "file"});
  refused(replaced(text, "headaware.plan", "something"), {"format", "headaware.plan", "something", "/format"});
  refused(replaced(text, "\"version\": 1", "\"version\": 2"), {"version", "1", "2", "/version"});
  refused(replaced(text, "\"num_kv_heads\": 2", "\"num_kv_heads\": 3"),
          {"num_kv_heads", "divisor of 4", "3", "num_kv_heads"});
  refused(replaced(text, "\"num_layers\": 2", "\"num_layers\": 3"), {"missing head", "3 layers", "", "/heads"});
  refused(replaced(text, "\"context\": 100", "\"context\": 0"), {"out of range", "[1, ", "0", "/context"});
  refused(replaced(text, "\"context\": 100", "\"context\": 101"), {"tokens", "101", "100", "/heads/0/tokens"});
  refused(replaced(text, "\"tokens\": 31", "\"tokens\": 32"), {"tokens", "31", "32", "/heads/2/tokens"});
  refused(replaced(text, "\"budget_tokens\": 160", "\"budget_tokens\": 150"),
          {"out of range", "[0, 150]", "151", "/planned_tokens"});
  refused(replaced(text, "\"planned_tokens\": 151", "\"planned_tokens\": 150"),
          {"planned_tokens", "151", "150", "/planned_tokens"});
  refused(replaced(text, "\"measure\": \"output\"", "\"measure\": \"none\""),
          {"unknown error measure", "one of mass, output", "none", "/options/measure"});
  refused(replaced(text, "\"fold\": \"sum\"", "\"fold\": 3"), {"wrong type", "a string", "3", "/options/fold"});
  refused(replaced(text, "\"page_size\": 1", "\"page_size\": 0"), {"out of range", "[1, ", "0", "/options/page_size"});
  refused(replaced(text, "\"ranks\": 1", "\"ranks\": 0"), {"out of range", "", "0", "/options/ranks"});
  refused(replaced(text, "\"policy\": \"sink_window\"", "\"policy\": \"keep_list\""),
          {"unknown policy", "one of full, sink_window", "keep_list", "/heads/1/policy"});
  refused(replaced(text, "\"sink\": 4", "\"sink\": -1"), {"out of range", "[0, ", "-1", "/heads/1/sink"});
  refused(replaced(text, "\"window\": 31", "\"window\": 32"), {"tokens", "32", "31", "/heads/2/tokens"});
  refused(replaced(text, "\"window\": 31", "\"window\": 31.5"), {"not an integer", "", "31.5", "/heads/2/window"});
  refused(replaced(text, "\"policy\": \"window_only\"", "\"policy\": \"prune\""),
          {"out of range", "[-1, -1]", "31", "/heads/2/window"});
  refused(replaced(text, "\"predicted_error\": 0.25", "\"predicted_error\": -0.25"),
          {"negative number", ">= 0", "-0.25", "/heads/2/predicted_error"});

  std::string const options = "\"use_remainder\": true";
  refused(replaced(text, options, options + ", \"skip_layers\": [0]"),
          {"policy of a skipped layer", "full", "sink_window", "/heads"});
  refused(replaced(text, options, options + ", \"skip_layers\": [2]"),
          {"skip_layers", "2 layers", "2", "/skip_layers"});
  refused(replaced(text, options, options + ", \"skip_layers\": [0, 1]"), {"skip_layers", "2 layers", "1", "/options"});

  auto const unsavable = [](auto const& change, ha::ErrorDetail const& parts) {
    auto plan = by_hand();
    change(plan);
    check_error<ha::ArgumentError>([&] { (void)ha::format_plan(plan); }, parts);
  };
  unsavable([](auto& p) { p.budget_tokens = 10; }, {"planned_tokens", "10", "151", "format_plan"});
  unsavable([](auto& p) { p.planned_tokens = 150; }, {"planned_tokens", "151", "150", "format_plan"});
  unsavable([](auto& p) { p.heads[1].tokens = 21; }, {"tokens of a head", "20", "21", "format_plan"});
  unsavable([](auto& p) { p.heads.pop_back(); }, {"planned heads", "4", "3", "format_plan"});
  unsavable([](auto& p) { p.predicted_error = std::numeric_limits<double>::infinity(); },
            {"predicted_error", "finite", "inf", "format_plan"});
  unsavable([](auto& p) { p.options.skip_layers = {1}; }, {"policy of a skipped layer", "full", "", "format_plan"});
  unsavable([](auto& p) { p.options.skip_layers = {2}; }, {"skipped layer", "", "2", "format_plan"});
  unsavable([](auto& p) { p.options.measure.reset(); }, {"measure", "", "none", "format_plan"});
  unsavable([](auto& p) { p.table = ha::PolicyTable(2, 1); }, {"table", "", "another", "format_plan"});
  unsavable(
      [](auto& p) {
        p.table.set(1, 1, ha::KeepList{nullptr, 0});
      },
      {"policy", "sink_window", "keep_list", "format_plan"});
}

TEST_CASE("sensitivities survive a file, as factors and as losses", "[io]") {
  TemporaryFolder const folder;
  auto const statistics = random_statistics(3, 4, 2, ha::RetentionGrid::up_to(256), 17);
  ha::SavedSensitivities saved{3, 0, false, {4, 60}, {1, 2, 0.5}};
  ha::save_sensitivities(folder / "s.json", saved);
  REQUIRE(ha::load_sensitivities(folder / "s.json") == saved);
  CHECK(saved.factors(statistics) == ha::Sensitivities::per_layer({1, 2, 0.5}));
  saved = {3, 2, true, {4, 28}, {1, 2, 0.5, -0.1, 0, 3}};
  ha::save_sensitivities(folder / "s.json", saved);
  REQUIRE(ha::load_sensitivities(folder / "s.json") == saved);
  CHECK(saved.factors(statistics) ==
        ha::sensitivities_from_losses(statistics, saved.values, {.cut = {.sink = 4, .window = 28}}));

  std::string const text = ha::format_sensitivities({3, 0, false, {4, 60}, {1, 2, 0.5}});
  auto const refused = [](std::string const& broken, ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>([&] { (void)ha::parse_sensitivities(broken, "file"); }, parts);
  };
  for (std::size_t cut = 0; cut < text.size(); cut += 5) {
    REQUIRE_THROWS_AS(ha::parse_sensitivities(text.substr(0, cut), "file"), ha::FormatError);
  }
  refused(replaced(text, "\"factor\"", "\"loss\""), {"unknown kind", "one of factor, loss_increase", "loss", "/kind"});
  refused(replaced(text, "\"num_layers\": 3", "\"num_layers\": 4"), {"number of values", "4", "3", "/values"});
  refused(replaced(text, "0.5", "-0.5"), {"negative factor", ">= 0", "-0.5", "/values/2"});
  auto const other = random_statistics(2, 4, 2, ha::RetentionGrid::up_to(256), 17);
  check_error<ha::ArgumentError>([&] { (void)saved.factors(other); }, {"sensitivities' layers", "2", "3", ""});
  saved.values.pop_back();
  check_error<ha::ArgumentError>([&] { (void)ha::format_sensitivities(saved); },
                                 {"number of values", "6", "5", "format_sensitivities"});
}
