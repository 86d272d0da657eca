#include "llama/ablation_report.hpp"

#include "tools/report/comparison.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/json_text.hpp"

#include <headaware/io/file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <utility>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

using Results = std::vector<AblationResult const*>;

template <class... Values>
std::string print(char const* format, Values... values) {
  char line[512];
  std::snprintf(line, sizeof(line), format, values...);
  return line;
}

template <std::size_t N, class E>
std::string name_of(std::array<std::string_view, N> const& names, E value) {
  return std::string(names[static_cast<std::size_t>(value)]);
}

Results results_of(AblationStudy const& study, std::string const& group) {
  Results results;
  for (auto const& result : study.results) {
    if (result.group == group) results.push_back(&result);
  }
  return results;
}

AblationResult const& reference(AblationStudy const& study, AblationMethod method) {
  return *std::find_if(study.results.begin(), study.results.end(),
                       [&](auto const& result) { return result.setup.method == method; });
}

/// Groups what compares: configurations of one size, tried on one text, that ran.
std::vector<Results> classes_of(AblationGroup const& group, Results const& results) {
  std::vector<Results> classes;
  for (auto const* const result : results) {
    if (!result->ran()) continue;
    auto const same = std::find_if(classes.begin(), classes.end(), [&](Results const& one) {
      return group.comparable(one.front()->setup, result->setup);
    });
    if (same != classes.end()) {
      same->push_back(result);
    } else {
      classes.push_back({result});
    }
  }
  return classes;
}

AblationResult const* best_of(Results const& results) {
  return *std::min_element(results.begin(), results.end(),
                           [](auto const* a, auto const* b) { return a->score() < b->score(); });
}

/// Of the configurations that it compares with, none is better; nothing if it compares with none.
AblationResult const* best_beside(AblationResult const& result, std::vector<Results> const& classes) {
  for (auto const& one : classes) {
    if (one.size() > 1 && std::find(one.begin(), one.end(), &result) != one.end()) return best_of(one);
  }
  return nullptr;
}

std::string figures(AblationResult const& result) {
  return print("perplexity %.2f, copy NLL %.3f", result.perplexity_second_half, result.copy_nll);
}

/// Says in words what one class shows.
std::string finding(Results results) {
  std::sort(results.begin(), results.end(), [](auto const* a, auto const* b) { return a->score() < b->score(); });
  AblationResult const& best = *results.front();
  AblationResult const& next = *results[1];
  AblationResult const& worst = *results.back();
  AblationDifference const lead = difference(best, next);
  bool const by_bytes = std::any_of(results.begin(), results.end(),
                                    [](auto const* result) { return result->setup.precision.by_bytes(); });
  std::string const size = by_bytes ? print("%.2f %% of the bytes", 100 * best.kv_share)
                                    : print("%.1f tokens per head", best.mean_kept_tokens);
  std::string text =
      print("At %s%s `%s` is best (%s), ", size.c_str(), best.setup.on_other_text ? " on the other text" : "",
            best.name.c_str(), figures(best).c_str());
  if (lead.score == 0 && lead.error == 0) {
    text += print("as is `%s`, with the same losses", next.name.c_str());
  } else {
    text += print("%.3f ± %.3f nats ahead of `%s`", lead.score, lead.error, next.name.c_str());
    if (lead.score < 2 * lead.error) text += ", which this much text does not tell apart";
  }
  if (results.size() > 2) {
    AblationDifference const whole = difference(best, worst);
    text += print("; last is `%s` (%s), %.3f ± %.3f behind", worst.name.c_str(), figures(worst).c_str(), whole.score,
                  whole.error);
  }
  return text + ".";
}

/// Says in words what configurations of different sizes show.
std::string size_finding(Results results) {
  std::sort(results.begin(), results.end(),
            [](auto const* a, auto const* b) { return a->mean_kept_tokens < b->mean_kept_tokens; });
  AblationResult const& least = *results.front();
  AblationResult const& most = *results.back();
  return print("From %.1f to %.1f tokens per head perplexity goes from %.2f to %.2f, copy NLL from %.3f to %.3f.",
               least.mean_kept_tokens, most.mean_kept_tokens, least.perplexity_second_half, most.perplexity_second_half,
               least.copy_nll, most.copy_nll);
}

std::string findings(std::vector<Results> const& classes) {
  std::string text;
  Results alone;
  for (auto const& one : classes) {
    bool const full = one.front()->setup.method == AblationMethod::full;
    if (one.size() > 1) text += (text.empty() ? "" : " ") + finding(one);
    if (one.size() == 1 && !full) alone.push_back(one.front());
  }
  if (text.empty() && alone.size() > 1) text = size_finding(alone);
  return text;
}

/// Counts the query heads of each type that occurs.
std::vector<std::pair<std::string, std::int64_t>> head_types(AblationStudy const& study) {
  std::vector<std::pair<std::string, std::int64_t>> types;
  for (std::size_t i = 0; i < ha::num_head_types; ++i) {
    auto const type = static_cast<ha::HeadType>(i);
    auto const count = std::count_if(study.classes.begin(), study.classes.end(),
                                     [&](auto const& head) { return head.head_type == type; });
    if (count > 0) types.emplace_back(std::string(to_string(type)), count);
  }
  return types;
}

std::string row(AblationResult const& result, std::vector<Results> const& classes) {
  if (!result.ran()) return "| " + result.name + " | left out | | | | | |\n";
  auto const* const best = best_beside(result, classes);
  std::string behind;
  if (best == &result) {
    behind = "**best**";
  } else if (best != nullptr) {
    AblationDifference const d = difference(*best, result);
    behind = print("%.3f ± %.3f", d.score, d.error);
  }
  std::string const mark = best == &result ? "**" : "";
  return print("| %s%s%s | %.1f | %.2f %% | %.2f | %.2f | %.3f | ", mark.c_str(), result.name.c_str(), mark.c_str(),
               result.mean_kept_tokens, 100 * result.kv_share, result.perplexity, result.perplexity_second_half,
               result.copy_nll) +
         behind + " |\n";
}

nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

nlohmann::ordered_json parameters(AblationSetup const& s) {
  nlohmann::ordered_json result{{"method", name_of(ablation_method_names, s.method)},
                                {"size", name_of(ablation_size_names, s.size)},
                                {"size_share", s.size_share},
                                {"evaluated_on", s.on_other_text ? "other" : "own"},
                                {"positions", s.positions == KeyPositions::cache ? "cache" : "text"}};
  if (s.method == AblationMethod::uniform) result["sink"] = s.sink;
  if (s.precision.by_bytes()) {
    result["formats"] = s.precision.formats;
    result["rotated"] = s.precision.rotated;
    result["exact_tokens"] = s.precision.exact;
  }
  if (s.method == AblationMethod::rules) result["mapping"] = s.aggressive ? "aggressive" : "conservative";
  if (s.method == AblationMethod::uniform || s.method == AblationMethod::planned) {
    result["full_first"] = s.full_first;
    result["full_last"] = s.full_last;
  }
  if (s.method != AblationMethod::planned) return result;
  result["measure"] = ha::to_string(s.measure);
  result["sensitivity"] = name_of(ablation_sensitivity_names, s.sensitivity);
  result["probe_weight"] = s.probe_weight;
  result["floor"] = s.floor ? nlohmann::ordered_json(*s.floor) : nlohmann::ordered_json("default");
  result["fold"] = name_of(ablation_fold_names, s.fold);
  result["candidate_sinks"] =
      s.candidate_sinks.empty() ? nlohmann::ordered_json("all") : nlohmann::ordered_json(s.candidate_sinks);
  result["plan_share"] = s.plan_share;
  result["replan_step"] = s.replan_step;
  result["refine_levels"] = s.refine_levels;
  result["calibration"] = {{"text", name_of(ablation_domain_names, s.calibration.domain)},
                           {"pieces", s.calibration.pieces},
                           {"piece_tokens", s.calibration.piece_tokens},
                           {"sensitivity_pieces", s.calibration.sensitivity_pieces}};
  return result;
}

constexpr std::string_view uniform_color = "#B0B0B0";
constexpr std::string_view rules_color = "#D55E00";
constexpr std::string_view planned_color = "#56B4E9";
constexpr std::string_view best_color = "#009E73";

std::string color_of(AblationResult const& result, std::vector<Results> const& classes) {
  if (best_beside(result, classes) == &result) return std::string(best_color);
  if (result.setup.method == AblationMethod::uniform) return std::string(uniform_color);
  return std::string(result.setup.method == AblationMethod::rules ? rules_color : planned_color);
}

report::ComparisonPicture picture_of(AblationStudy const& study, AblationGroup const& group) {
  auto const results = results_of(study, group.name);
  auto const classes = classes_of(group, results);
  report::ComparisonPicture picture;
  picture.name = group.name;
  picture.title = group.name + ": " + group.varies;
  picture.reading = "A bar begins where everything is kept and ends where the configuration is: the shorter, the "
                    "less is lost.";
  picture.figures = {"perplexity of second halves", "copy NLL (nats per token)"};
  auto const& uniform = reference(study, AblationMethod::uniform);
  bool sizes_differ = false;
  bool other_text = false;
  for (auto const* const result : results) {
    if (!result->ran() || result->setup.method == AblationMethod::full) continue;
    sizes_differ = sizes_differ || std::abs(result->mean_kept_tokens - uniform.mean_kept_tokens) >= 1;
    other_text = other_text || result->setup.on_other_text;
  }
  for (auto const* const result : results) {
    if (!result->ran() || result->setup.method == AblationMethod::full) continue;
    auto const full = std::find_if(study.results.begin(), study.results.end(), [&](auto const& one) {
      return one.setup.method == AblationMethod::full && one.setup.on_other_text == result->setup.on_other_text;
    });
    std::string label = result->name;
    if (sizes_differ) label += print(" (%.0f)", result->mean_kept_tokens);
    picture.bars.push_back({label,
                            color_of(*result, classes),
                            {full->perplexity_second_half, full->copy_nll},
                            {result->perplexity_second_half, result->copy_nll}});
  }
  using Entry = std::pair<std::string, std::string>;
  for (Entry const& entry : {Entry("uniform", uniform_color), Entry("rules", rules_color),
                             Entry("planned", planned_color), Entry("best", best_color)}) {
    bool const drawn = std::any_of(picture.bars.begin(), picture.bars.end(),
                                   [&](auto const& bar) { return bar.color == entry.second; });
    if (drawn) picture.colors.push_back(entry);
  }
  if (!other_text && uniform.ran()) {
    picture.reference = {uniform.perplexity_second_half, uniform.copy_nll};
    picture.reference_name = print("uniform windows, %.0f tokens per head", uniform.mean_kept_tokens);
  }
  return picture;
}

std::string file_name(std::filesystem::path const& path) { return path.filename().string(); }

}  // namespace

std::string ablation_summary(AblationStudy const& study) {
  auto const& options = study.options;
  std::string text = "# Ablation study: " + options.model_name + "\n\n";
  text +=
      "Plans are made of " + file_name(options.text) +
      (options.eval_text.empty() ? " (its first three quarters)" : "") + " and tried on " +
      (options.eval_text.empty() ? std::string("its last quarter") : file_name(options.eval_text)) +
      print(". Perplexity: of passages of %lld tokens (%zu), and of their second halves. Copy NLL: of passages of %lld "
            "tokens given twice (%zu), nats per token of the second copies. ",
            static_cast<long long>(study.place.context), study.place.passages.size(),
            static_cast<long long>(study.place.context / 2), study.place.copies.size()) +
      print("Where a group does not vary the size, every configuration keeps %lld tokens per KV head on average, as "
            "masks that equal eviction at every step; where rows have formats, as many tokens as the bytes of these in "
            "16 "
            "bits hold. Bytes are of the full cache's in 16 bits. ",
            static_cast<long long>(study.budget_tokens)) +
      print("The best of what keeps as much has the least log perplexity of second halves + %g · copy NLL; after it "
            "stands by how many nats, ",
            ablation_copy_weight) +
      "± one standard error, tokens taken as independent. What is said below each table is computed from it.\n";
  for (auto const& group : study.groups) {
    auto const results = results_of(study, group.name);
    auto const classes = classes_of(group, results);
    text += "\n## " + group.name + "\n\n" + group.varies + "\n\n";
    bool const has_rules = std::any_of(results.begin(), results.end(), [](auto const* result) {
      return result->setup.method == AblationMethod::rules;
    });
    if (has_rules) {
      text += "Query heads by type:";
      for (auto const& [type, count] : head_types(study))
        text += print(" %s %lld,", type.c_str(), static_cast<long long>(count));
      text.back() = '.';
      text += "\n\n";
    }
    text +=
        "| configuration | tokens per head | bytes | perplexity | of second halves | copy NLL | behind the best |\n";
    text += "|---|---|---|---|---|---|---|\n";
    for (auto const* const result : results) text += row(*result, classes);
    if (auto const found = findings(classes); !found.empty()) text += "\n" + found + "\n";
    for (auto const* const result : results) {
      if (!result->ran()) text += "\nLeft out: `" + result->name + "`: " + result->left_out + "\n";
    }
  }
  return text;
}

std::string ablation_json(AblationStudy const& study) {
  auto const& options = study.options;
  nlohmann::ordered_json document{
      {"model", file_name(options.model)},
      {"text", file_name(options.text)},
      {"eval_text", file_name(options.eval_text.empty() ? options.text : options.eval_text)},
      {"other_text", file_name(options.other_text)},
      {"context", options.context},
      {"budget_tokens", study.budget_tokens},
      {"max_tokens", options.max_tokens},
      {"passages", study.place.passages},
      {"copies", study.place.copies},
      {"tokens_run", study.tokens_run},
      {"seconds", study.seconds}};
  if (!study.classes.empty()) {
    for (auto const& [type, count] : head_types(study)) document["head_types"][type] = count;
  }
  auto& configurations = document["configurations"] = nlohmann::ordered_json::array();
  for (auto const& result : study.results) {
    nlohmann::ordered_json one{{"group", result.group},
                               {"name", result.name},
                               {"parameters", parameters(result.setup)},
                               {"mean_kept_tokens", number(result.mean_kept_tokens)},
                               {"kv_share", number(result.kv_share)},
                               {"perplexity", number(result.perplexity)},
                               {"perplexity_second_half", number(result.perplexity_second_half)},
                               {"copy_nll", number(result.copy_nll)},
                               {"score", result.ran() ? number(result.score()) : nlohmann::ordered_json()},
                               {"seconds", result.seconds}};
    if (!result.ran()) one["left_out"] = result.left_out;
    configurations.push_back(std::move(one));
  }
  return support::json_text(document, 2) + "\n";
}

void write_ablation(std::filesystem::path const& folder, AblationStudy const& study) {
  support::make_folder(folder);
  report::Gallery gallery;
  for (auto const& group : study.groups) report::add_comparison(picture_of(study, group), gallery);
  (void)report::write_pictures(folder / "pictures", gallery);
  ha::write_file(folder / "summary.md", ablation_summary(study));
  ha::write_file(folder / "results.json", ablation_json(study));
}

}  // namespace llama_adapter
