#include "llama/planning.hpp"

#include "llama/replanning.hpp"
#include "llama/short_number.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/plan/planner.hpp>

#include <array>
#include <cstddef>
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
  explicit Candidates(PlanningOptions const& options) : options_(&options) {}

  /// Adds one for each weight of the probe's. The first weight needs no saying.
  void add(std::string const& name, Calibration const& calibration) {
    for (double const& weight : options_->probe_weights) {
      bool const first = &weight == options_->probe_weights.data();
      errors_.push_back(
          {first ? name : name + ", probe " + short_number(weight),
           ha::weighted_errors(calibration.weighted(weight), options_->guard.plan.measure, options_->guard.plan.fold)});
      calibrations_.push_back(calibration);
    }
  }
  [[nodiscard]] std::vector<NamedErrors> const& errors() const { return errors_; }
  /// The plan that loses least, the first weight given to the probe, whatever the guard's score gives it, so that
  /// another score finds all runs made. What it is made of, and the plan.
  [[nodiscard]] std::pair<Calibration const*, ha::PolicyPlan const*> best(Guarded const& guarded) const {
    std::size_t const others = guarded.tables.size() - errors_.size();
    auto const loss = [&](std::size_t i) {
      auto const& table = guarded.tables[i];
      return table.text_loss + options_->probe_weights.front() * table.probe_loss;
    };
    std::size_t best = others;
    for (std::size_t i = others; i < guarded.tables.size(); ++i) {
      if (loss(i) < loss(best)) best = i;
    }
    return {&calibrations_[best - others], &guarded.tables[best].plan};
  }

 private:
  PlanningOptions const* options_;
  std::vector<NamedErrors> errors_;
  std::vector<Calibration> calibrations_;
};

}  // namespace

Guarded plan_model(PlanningOptions const& options, ha::Budget const& budget) {
  ha::detail::require(!options.probe_weights.empty(), "probe_weights", "at least one", "none", "plan_model");
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
  Guarded guarded = guarded_plan(losses, candidates.errors(), text, budget, guard);
  ha::PolicyTable measured;
  for (std::int32_t round = 1; round <= options.replan; ++round) {
    auto const [calibration, plan] = candidates.best(guarded);
    if (round > 1 && plan->table == measured) break;  // the last round found nothing better
    measured = plan->table;
    LayerGains const gains = layer_gains(losses, text, plan->table, cuts.sensitivity_pieces);
    if (!gains.any()) break;
    // All the way overshoots: gains change with the plan that they lead to.
    std::vector<Calibration> again;
    for (double const step : replan_steps) again.push_back(calibration_at(*calibration, *plan, gains, step));
    for (std::size_t i = 0; i < again.size(); ++i) {
      candidates.add("again " + std::to_string(round) + " by " + short_number(replan_steps[i]), again[i]);
    }
    guarded = guarded_plan(losses, candidates.errors(), text, budget, guard);
  }
  guarded.text = options.text.filename().string();
  write_guarded(options.calibration.output_dir, guarded);
  return guarded;
}

}  // namespace llama_adapter
