// Ablation studies: their groups, and a small one on a real model.

#include "llama/ablation.hpp"

#include "llama/ablation_report.hpp"
#include "llama/ablation_tables.hpp"
#include "llama/models.hpp"
#include "support/errors.hpp"

#include <headaware/io/file.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

TEST_CASE("every configuration of an ablation study has a name of its own and differs from its group's others") {
  for (std::int64_t const budget : {16, 64, 128, 500}) {
    AblationScale const scale{.context = 512, .budget_tokens = budget, .layers = 30};
    auto groups = ablation_groups(scale);
    groups.push_back(reference_group(scale));
    std::set<std::string> names;
    for (auto const& group : groups) {
      CHECK(group.variants.size() >= 2);
      for (auto i = group.variants.begin(); i != group.variants.end(); ++i) {
        CAPTURE(group.name, i->name);
        CHECK(names.insert(group.name + "/" + i->name).second);
        CHECK(std::none_of(group.variants.begin(), i, [&](auto const& other) { return other.setup == i->setup; }));
      }
    }
    for (std::string const name :
         {"window_size", "sink_size", "method", "measure", "sensitivity", "probe_weight", "floor", "fold",
          "candidate_sinks", "calibration_length", "calibration_domain", "re_rotation", "skip_layers", "blend",
          "replan", "refine", "formats", "format_rotation", "exact_ring"}) {
      CHECK(std::any_of(groups.begin(), groups.end(), [&](auto const& group) { return group.name == name; }));
    }
  }
}

TEST_CASE("groups depend on the model, the context and the texts") {
  auto const find = [](AblationScale const& scale, std::string const& name) {
    auto const groups = ablation_groups(scale);
    auto const at = std::find_if(groups.begin(), groups.end(), [&](auto const& group) { return group.name == name; });
    return at == groups.end() ? AblationGroup{} : *at;
  };
  AblationScale const usual{.context = 512, .budget_tokens = 128, .layers = 30};
  CHECK(find({.context = 512, .other_text = false}, "calibration_domain").variants.empty());
  CHECK(find(usual, "calibration_domain").variants.size() == 10);
  CHECK(find({.context = 512, .layers = 2}, "skip_layers").variants.size() == 6);  // one layer has to be cut
  CHECK(find(usual, "skip_layers").variants.size() == 12);
  AblationScale narrow = usual;
  narrow.budget_tokens = 48;
  CHECK(find(usual, "sink_size").variants.size() == 7);
  CHECK(find(narrow, "sink_size").variants.size() == 6);  // 64 sinks are more than the budget
  AblationScale plain = usual;
  plain.sensitivity = AblationSensitivity::none;
  CHECK(find(usual, "measure").variants.size() == 6);
  CHECK(find(plain, "measure").variants.size() == 3);

  auto const groups = ablation_groups(usual);
  std::vector<std::string> const all{"all"};
  std::vector<std::string> const two{"floor", "sink_size"};
  CHECK(choose_groups(groups, all).size() == groups.size());
  REQUIRE(choose_groups(groups, two).size() == 2);
  CHECK(choose_groups(groups, two)[0].name == "sink_size");
  std::vector<std::string> const wrong{"floor", "flour"};
  check_error<ha::ArgumentError>([&] { (void)choose_groups(groups, wrong); },
                                 {"group of the ablation study", "re_rotation", "flour", "--ablation"});
  CHECK(groups_list(groups).find("  blend/plan_share_0.25\n") != std::string::npos);

  AblationSetup const planned;
  AblationSetup windows = planned;
  windows.method = AblationMethod::uniform;
  CHECK(find(usual, "method").comparable(planned, windows));
  CHECK_FALSE(find(usual, "re_rotation").comparable(planned, windows));
  windows.size_share = 0.5;
  CHECK_FALSE(find(usual, "method").comparable(planned, windows));
}

TEST_CASE("the evaluation of an ablation study uses no more tokens than it may") {
  for (std::int64_t const context : {256, 512, 1024}) {
    for (std::int64_t const most : {1536, 2000, 5000}) {
      auto const place = ablation_place(100'000, context, most, "text");
      auto const passages = std::ssize(place.passages);
      auto const copies = std::ssize(place.copies);
      CAPTURE(context, most, passages, copies);
      CHECK(passages >= 1);
      CHECK(copies >= 1);
      std::int64_t const used = passages * context + copies * context / 2;
      CHECK(used <= most);
      CHECK(used > most - context / 2);
      CHECK(place.passages.back() + context <= 100'000);
      CHECK(place.copies.back() + context / 2 <= 100'000);
    }
  }
  check_error<ha::ArgumentError>([] { (void)ablation_place(100'000, 512, 700, "text"); },
                                 {"--max_tokens", "768", "700", ""});
  check_error<ha::ArgumentError>([] { (void)ablation_place(700, 512, 2000, "text"); },
                                 {"evaluation text", "768", "700", "text"});
  check_error<ha::ArgumentError>([] { (void)ablation_place(100'000, 255, 2000, "text"); },
                                 {"--context", "even", "255", ""});
}

TEST_CASE("windows fill what a budget leaves") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 4, .window = 10});
  table.set(0, 1, ha::Full{});
  table.set(1, 1, ha::WindowOnly{.window = 98});
  fill_up(table, 100 + 14 + 14 + 98 + 8, 100);
  CHECK(ha::held_tokens(table, 100) == 234);
  CHECK(table.at(0, 0).get<ha::SinkWindow>().window == 13);
  CHECK(table.at(1, 0).get<ha::SinkWindow>().window == 13);
  CHECK(table.at(1, 1).get<ha::WindowOnly>().window == 100);
  fill_up(table, 1000, 100);
  CHECK(ha::held_tokens(table, 100) == 400);
}

TEST_CASE("an ablation study compares at equal size, and runs nothing twice") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  TemporaryFolder const folder;
  AblationOptions options;
  options.model = exact_model_path(smollm2);
  options.model_name = "SmolLM2";
  options.text = HEADAWARE_EXAMPLE_DATA "/text/alice.txt";
  options.output_dir = folder.path();
  options.groups = {"fold", "re_rotation", "exact_ring"};
  options.context = 256;
  options.max_tokens = 384;
  options.pieces = 1;
  options.sensitivity = AblationSensitivity::none;  // one pass per layer would take a minute
  auto const study = run_ablation(options);
  REQUIRE(study.results.size() == 3 + 3 + 4 + 6);
  CHECK(study.budget_tokens == 64);
  for (auto const& result : study.results) {
    CAPTURE(result.group, result.name);
    CHECK(result.ran());
    bool const full = result.setup.method == AblationMethod::full;
    if (result.setup.precision.by_bytes()) {
      CHECK(result.mean_kept_tokens > 100);
      CHECK((result.kv_share <= 0.25 && result.kv_share > 0.249));
    } else {
      CHECK(result.mean_kept_tokens == (full ? 256 : 64));
      CHECK(result.kv_share == (full ? 1 : 0.25));
    }
    CHECK(result.perplexity_second_half >= study.results[0].perplexity_second_half * 0.99);
    CHECK(std::isfinite(result.copy_nll));
  }
  auto const& planned = study.results[2];
  CHECK(planned.name == "planned");
  CHECK(planned.score() < study.results[1].score());
  // Equal configurations of several groups are one.
  CHECK(study.results[3].losses == planned.losses);
  CHECK(study.results[3].seconds == 0);
  CHECK(difference(planned, study.results[3]).score == 0);
  auto const behind = difference(planned, study.results[1]);
  CHECK(std::abs(behind.score - (study.results[1].score() - planned.score())) < 1e-9);
  CHECK(behind.error > 0);
  // At the positions of the cache something else comes out, but not by much.
  CHECK(study.results[6].name == "uniform_text_positions");
  CHECK(study.results[7].losses != study.results[6].losses);
  CHECK(std::abs(difference(study.results[6], study.results[7]).score) < 0.3);

  // Rows of 80 bytes instead of 256, beside 20 of 16 bits or none.
  CHECK(study.results[12].name == "packed5/packed4_exact_0");
  CHECK(std::abs(study.results[12].mean_kept_tokens - 64 * 256 / 80.0) < 1);
  CHECK(study.results[13].name == "packed5/packed4_exact_16");
  CHECK(std::abs(study.results[13].mean_kept_tokens - (64 - 20) * 256 / 80.0) < 1);
  CHECK(study.results[13].losses != study.results[12].losses);

  write_ablation(folder.path(), study);
  auto const json = nlohmann::json::parse(ha::read_text_file(folder / "results.json"));
  REQUIRE(json["configurations"].size() == study.results.size());
  CHECK(json["configurations"][2]["name"] == "planned");
  CHECK(json["configurations"][2]["perplexity"] == planned.perplexity);
  CHECK(json["configurations"][5]["parameters"]["fold"] == "union");
  auto const summary = ha::read_text_file(folder / "summary.md");
  CHECK(summary.find("| **planned** | 64.0 |") != std::string::npos);
  CHECK(summary.find("`planned` is best") != std::string::npos);
  CHECK(std::filesystem::exists(folder / "pictures" / "re_rotation.gp"));

  // A second time nothing runs; what is missing, as after an interruption, runs alone.
  auto const again = run_ablation(options);
  CHECK(study.tokens_run > 0);
  CHECK(again.tokens_run == 0);
  for (std::size_t i = 0; i < study.results.size(); ++i) CHECK(again.results[i].losses == study.results[i].losses);
  for (auto const& entry : std::filesystem::directory_iterator(folder / "losses")) {
    std::filesystem::remove(entry.path());
    break;
  }
  auto const resumed = run_ablation(options);
  CHECK(resumed.tokens_run == 256);
  CHECK(resumed.results[5].losses == study.results[5].losses);
}
