#include "tools/analysis/analysis.hpp"

#include "tools/analysis/about.hpp"
#include "tools/report/report.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/interrupt.hpp"
#include "tools/support/json_text.hpp"
#include "tools/support/progress.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/classify/summary.hpp>
#include <headaware/error.hpp>
#include <headaware/io/json.hpp>
#include <headaware/stats/output_metric.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace analysis {

namespace ha = headaware;

std::vector<ha::OutputMetric> output_metrics(AttentionSource const& source, bool wanted) {
  ha::ModelShape const model = source.model();
  std::vector<ha::OutputMetric> result(static_cast<std::size_t>(model.num_layers()));
  if (!wanted) return result;
  for (std::int32_t layer = 0; layer < model.num_layers(); ++layer) {
    ha::LayerShape const& shape = model.layer(layer);
    if (!shape.attends()) continue;
    std::vector<float> const projection = source.output_projection(layer);
    if (projection.empty()) return std::vector<ha::OutputMetric>(result.size());
    std::int64_t const width = shape.num_query_heads * shape.value_dim;
    result[static_cast<std::size_t>(layer)] =
        ha::OutputMetric(projection.data(), static_cast<std::int64_t>(projection.size()) / width, shape.num_query_heads,
                         shape.value_dim);
  }
  return result;
}

namespace {

ha::SavedObserver begin(AttentionSource const& source, AnalysisOptions const& options) {
  ha::SavedObserver fresh{ha::AttentionObserver(source.model(), options.parameters), 0,
                          support::as_written(source.description())};
  auto const path = options.output_dir / "attention_sums.json";
  if (!options.resume) return fresh;
  if (!std::filesystem::exists(path)) {
    std::fprintf(stderr, "nothing to resume in %s: beginning anew\n", options.output_dir.c_str());
    return fresh;
  }
  ha::SavedObserver saved = ha::load_attention_sums(path);
  auto const same = [&](bool is, char const* what, std::string const& expected, std::string const& got) {
    if (!is) throw ha::ArgumentError({what, expected + ", as now", got, path.string()});
  };
  same(saved.source == fresh.source, "observation to resume", fresh.source, saved.source);
  same(saved.observer.model() == fresh.observer.model(), "model to resume", "the same shape", "another");
  auto const texts = static_cast<std::int64_t>(source.texts().size());
  same(saved.position <= texts, "position to resume", "at most " + std::to_string(texts) + " pieces",
       std::to_string(saved.position));
  same(saved.observer.parameters() == fresh.observer.parameters(), "parameters to resume", "the same", "others");
  return saved;
}

/// One text into an observer of its own, so that an interrupted one leaves no trace.
ha::AttentionObserver observe_text(AttentionSource& source, std::size_t text, ha::ObserverParameters const& parameters,
                                   std::vector<ha::OutputMetric> const& metrics, support::Interrupt const& interrupt,
                                   std::function<void(LayerAttention const&)> const& layer_done) {
  ha::AttentionObserver observer(source.model(), parameters);
  source.run(text, [&](LayerAttention const& attention) {
    interrupt.check();
    std::visit(
        [&](auto qkv) {
          qkv.output_factors = metrics[static_cast<std::size_t>(attention.layer)].factors();
          observer.observe(attention.layer, qkv, attention.score);
        },
        attention.qkv);
    layer_done(attention);
  });
  return observer;
}

/// True if a folder's plan.json is the one that its plan_guard.json chose: analyze_attention measured it, and the
/// analysis here is not what it is of. What cannot be read stays.
bool holds_measured_plan(std::filesystem::path const& folder) {
  auto const guard_path = folder / "plan_guard.json";
  auto const plan_path = folder / "plan.json";
  if (!std::filesystem::exists(guard_path)) return false;
  if (!std::filesystem::exists(plan_path)) return true;
  try {
    auto const guard = nlohmann::json::parse(ha::read_text_file(guard_path));
    auto const plan = nlohmann::json::parse(ha::read_text_file(plan_path));
    auto const& tried = guard.at("tried");
    return plan.at("context") == guard.at("context") && plan.at("budget_tokens") == guard.at("budget_tokens") &&
           std::any_of(tried.begin(), tried.end(), [&](nlohmann::json const& table) {
             return table.at("name") == guard.at("chosen") && table.at("predicted_error") == plan.at("predicted_error");
           });
  } catch (nlohmann::json::exception const&) {
    return true;
  }
}

/// Removes what an earlier analysis, or commands that read it, left in a folder and this one does not make anew: it
/// would be taken for this one's.
void remove_outdated(std::filesystem::path const& folder, bool retention) {
  auto const validation = folder / "validation";
  if (std::filesystem::remove(validation / "refined_classifications.json")) {
    std::printf(
        "removed the refined classifications of an earlier analysis: validate_head_classification makes them\n");
  }
  std::filesystem::remove(validation / "validation_report.txt");
  report::remove_report(validation);
  if (!retention && std::filesystem::remove(folder / "retention_statistics.json")) {
    std::printf("removed the retention statistics of an earlier analysis: without --no_retention they are made\n");
  }
  if (holds_measured_plan(folder)) return;
  if (std::filesystem::remove(folder / "plan.json")) {
    std::printf("removed the plan of an earlier analysis: plan_policies makes one\n");
  }
  std::filesystem::remove(folder / "plan_classifications.json");
}

}  // namespace

Analysis analyze(AttentionSource& source, AnalysisOptions const& options) {
  support::prepare_results(options.output_dir, {"attention_sums.json"});
  auto const sums_path = options.output_dir / "attention_sums.json";
  ha::SavedObserver saved = begin(source, options);
  std::vector<std::int64_t> const texts = source.texts();
  Analysis result{std::move(saved.observer), saved.position, static_cast<std::int64_t>(texts.size()), 0, 0, 0, {}};
  result.scores.resize(static_cast<std::size_t>(source.model().num_layers()));
  for (std::size_t i = 0; i < texts.size(); ++i) {
    result.tokens += texts[i];
    if (static_cast<std::int64_t>(i) < result.texts_done) result.tokens_done += texts[i];
  }
  if (result.complete()) return result;

  std::vector<ha::OutputMetric> const metrics =
      output_metrics(source, options.output_metric && options.parameters.retention);
  support::Interrupt const interrupt;
  support::Progress progress("observing", "tokens", result.tokens, result.tokens_done);
  auto const layers = static_cast<double>(source.model().num_layers());
  double saved_at = 0;
  try {
    for (auto i = static_cast<std::size_t>(result.texts_done); i < texts.size(); ++i) {
      auto const done = static_cast<double>(result.tokens_done);
      auto const tokens = static_cast<double>(texts[i]);
      result.observer.merge(
          observe_text(source, i, options.parameters, metrics, interrupt, [&](LayerAttention const& attention) {
            result.scores[static_cast<std::size_t>(attention.layer)] = attention.score;
            progress.show(done + tokens * (attention.layer + 1) / layers);
          }));
      result.tokens_done += texts[i];
      ++result.texts_done;
      if (progress.seconds() - saved_at > 10) {
        ha::save_attention_sums(sums_path, result.observer, result.texts_done, source.description());
        saved_at = progress.seconds();
      }
    }
  } catch (support::Interrupted const&) {
    // The texts before it are whole.
  }
  progress.finish(static_cast<double>(result.tokens_done));
  if (result.texts_done == 0) return result;
  ha::save_attention_sums(sums_path, result.observer, result.texts_done, source.description());
  result.seconds = progress.seconds();
  return result;
}

void write_results(Analysis const& analysis, AttentionSource const& source, std::filesystem::path const& output_dir) {
  ha::AttentionObserver const& observer = analysis.observer;
  report::ReportInput input{.title = source.name(),
                            .statistics = observer.statistics(),
                            .classifications = {},
                            .retention = {},
                            .thresholds = {}};
  input.classifications = ha::classify(input.statistics);
  if (observer.parameters().retention) input.retention = observer.retention_statistics();

  remove_outdated(output_dir, input.retention.has_value());
  ha::save_statistics(output_dir / "head_statistics.json", input.statistics);
  ha::save_classifications(output_dir / "head_classifications.json", input.classifications,
                           input.statistics.model_info.layers);
  if (input.retention) ha::save_retention_statistics(output_dir / "retention_statistics.json", *input.retention);

  ha::ModelConfig const model = widest(source.model());
  About const about{source.name(),
                    source.description(),
                    analysis.complete(),
                    std::to_string(analysis.texts_done) + " of " + std::to_string(analysis.texts) +
                        " pieces of text, " + std::to_string(analysis.tokens_done) + " of " +
                        std::to_string(analysis.tokens) + " tokens",
                    model.num_key_value_heads,
                    model.head_dim,
                    observer.invalid_rows(),
                    source.layers()};
  auto scores = nlohmann::ordered_json::array();
  for (ha::AttentionScore const& score : analysis.scores) {
    scores.push_back({{"scale", score.scale}, {"soft_cap", score.soft_cap}, {"sliding_window", score.sliding_window}});
  }
  nlohmann::ordered_json const json = {{"model", about.model},
                                       {"observed", about.observed},
                                       {"complete", about.complete},
                                       {"seen", about.seen},
                                       {"pieces_done", analysis.texts_done},
                                       {"pieces", analysis.texts},
                                       {"tokens_done", analysis.tokens_done},
                                       {"tokens", analysis.tokens},
                                       {"invalid_rows", about.invalid_rows},
                                       {"model_config",
                                        {{"num_hidden_layers", model.num_hidden_layers},
                                         {"num_attention_heads", model.num_attention_heads},
                                         {"num_key_value_heads", model.num_key_value_heads},
                                         {"head_dim", model.head_dim}}},
                                       {"layers", about.layers},
                                       {"attention", scores},
                                       {"seconds", analysis.seconds}};
  support::write_json(output_dir / "analysis.json", json);

  std::printf("%s\n", format_summary(ha::summarize(input.classifications)).c_str());
  if (auto const note = layers_note(about.layers); !note.empty()) std::printf("%s\n", note.c_str());
  if (about.invalid_rows > 0) {
    std::printf("%lld rows of attention held NaN or infinity and were left out\n",
                static_cast<long long>(about.invalid_rows));
  }
  input.parameters = about_rows(about);
  input.notice = partial_notice(about);
  report::write_report(output_dir, input);
  if (!analysis.complete()) {
    std::printf("PARTIAL: interrupted after %s. --resume goes on from there.\n", about.seen.c_str());
  }
}

}  // namespace analysis
