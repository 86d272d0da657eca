#include "llama/planning.hpp"

#include "llama/replanning.hpp"
#include "llama/short_number.hpp"
#include "support/folder.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/save_sensitivities.hpp>
#include <headaware/plan/planner.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// How far sensitivities go to those measured again, in their logarithms.
constexpr std::array<double, 2> replan_steps{0.25, 0.5};

/// The plans to try, and what each is made of.
class Candidates {
 public:
  /// What a plan is made of.
  struct Made {
    Calibration calibration;
    double probe_weight = 0;
  };

  explicit Candidates(PlanningOptions const& options) : options_(&options) {}

  /// Adds one for each weight of the probe's. The first weight needs no saying.
  void add(std::string const& name, Calibration const& calibration) {
    for (double const& weight : options_->probe_weights) {
      bool const first = &weight == options_->probe_weights.data();
      add(first ? name : name + ", probe " + short_number(weight), {calibration, weight});
    }
  }
  void add(std::string const& name, Made made) {
    errors_.push_back({name, ha::weighted_errors(made.calibration.weighted(made.probe_weight),
                                                 options_->guard.plan.measure, options_->guard.plan.fold)});
    made_.push_back(std::move(made));
  }
  [[nodiscard]] std::vector<NamedErrors> const& errors() const { return errors_; }
  [[nodiscard]] Made const& made(std::size_t i) const { return made_[i]; }
  /// The plan that loses least with so much of the probe's loss.
  [[nodiscard]] std::size_t best(Guarded const& guarded, double probe_weight) const {
    auto const loss = [&](std::size_t i) {
      auto const& table = tried(guarded, i);
      return table.text_loss + probe_weight * table.probe_loss;
    };
    std::size_t best = 0;
    for (std::size_t i = 0; i < errors_.size(); ++i) {
      if (loss(i) < loss(best)) best = i;
    }
    return best;
  }
  /// As it was tried.
  [[nodiscard]] GuardedTable const& tried(Guarded const& guarded, std::size_t i) const { return guarded.tables[i + 1]; }

 private:
  PlanningOptions const* options_;
  std::vector<NamedErrors> errors_;
  std::vector<Made> made_;
};

void save_refined(std::filesystem::path const& folder, Calibration const& calibration) {
  auto const save = [&](char const* kind, MeasuredText const& measured) {
    support::make_folder(folder / kind);
    ha::SavedSensitivities saved;
    saved.num_layers = measured.statistics.info.num_layers;
    saved.num_kv_heads = measured.sensitivities.num_kv_heads();
    saved.values = measured.sensitivities.values();
    ha::save_sensitivities(folder / kind / "sensitivities.json", saved);
  };
  save("text", calibration.text);
  save("probe", calibration.probe);
}

}  // namespace

Guarded plan_model(PlanningOptions const& options, ha::Budget const& budget) {
  ha::detail::require(!options.probe_weights.empty(), "probe_weights", "at least one", "none", "plan_model");
  if (options.refine) options.refine->validate();  // before anything is measured
  Model const model(options.model);
  auto const tokens = model.tokenize(ha::read_text_file(options.text), false);
  GuardOptions const& guard = options.guard;
  auto const text = calibration_text(model, tokens, guard.context, options.pieces, options.text.string());
  PolicyRun run(model, {.tokens = static_cast<std::int32_t>(guard.context), .threads = options.threads});
  LossStore losses(run, options.calibration.output_dir / "losses");
  CalibrationOptions cuts = options.calibration;
  cuts.skip_layers = guard.plan.skip_layers;
  cuts.measure = guard.plan.measure;
  cuts.fold = guard.plan.fold;
  Candidates candidates(options);
  candidates.add("plan", calibrate(losses, text, cuts));
  GuardOptions without_blends = guard;  // which are tried of the best plan, last
  without_blends.blends.clear();
  auto const tried = [&] { return guarded_plan(losses, candidates.errors(), text, budget, without_blends); };
  Guarded guarded = tried();
  ha::PolicyTable measured;
  for (std::int32_t round = 1; round <= options.replan; ++round) {
    // With the first weight given, whatever the guard's score is, so that another score finds all runs made.
    std::size_t const best = candidates.best(guarded, options.probe_weights.front());
    Calibration const calibration = candidates.made(best).calibration;
    ha::PolicyPlan const plan = candidates.tried(guarded, best).plan;
    if (round > 1 && plan.table == measured) break;  // the last round found nothing better
    measured = plan.table;
    LayerGains const gains = layer_gains(losses, text, plan.table, cuts.sensitivity_pieces);
    if (!gains.any()) break;
    // All the way overshoots: gains change with the plan that they lead to.
    for (double const step : replan_steps) {
      candidates.add("again " + std::to_string(round) + " by " + short_number(step),
                     calibration_at(calibration, plan, gains, step));
    }
    guarded = tried();
  }
  if (options.refine) {
    std::size_t const best = candidates.best(guarded, guard.probe_weight);
    Candidates::Made made = candidates.made(best);
    auto const refined = refined_plan(losses, text, candidates.errors()[best].errors, budget, guard.context, guard.plan,
                                      {.pieces = options.refine_text,
                                       .probe_pieces = options.refine_probe,
                                       .probe_weight = guard.probe_weight,
                                       .refine = *options.refine});
    std::string const name = "refined_" + std::to_string(std::lround(refined.plan.mean_budget()));
    made.calibration = calibration_scaled(std::move(made.calibration), refined.factors);
    save_refined(options.calibration.output_dir / name, made.calibration);
    candidates.add("refined", std::move(made));
  }
  guarded = guarded_plan(losses, candidates.errors(), text, budget, guard);
  guarded.text = options.text.filename().string();
  write_guarded(options.calibration.output_dir, guarded);
  return guarded;
}

}  // namespace llama_adapter
