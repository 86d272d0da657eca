#include "llama/planning.hpp"

#include "llama/replanning.hpp"
#include "llama/short_number.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/plan/planner.hpp>

#include <string>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Adds a plan's errors for each weight of the probe's. The first weight needs no saying.
void add_errors(std::vector<NamedErrors>& errors, std::string const& name, Calibration const& calibration,
                PlanningOptions const& options) {
  for (double const& weight : options.probe_weights) {
    bool const first = &weight == options.probe_weights.data();
    errors.push_back(
        {first ? name : name + ", probe " + short_number(weight),
         ha::weighted_errors(calibration.weighted(weight), options.guard.plan.measure, options.guard.plan.fold)});
  }
}

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
  Calibration const calibration = calibrate(losses, text, cuts);
  std::vector<NamedErrors> errors;
  add_errors(errors, "plan", calibration, options);
  if (options.replan) {
    auto const plan = ha::plan_policies(errors.front().errors, budget, guard.context, guard.plan);
    LayerGains const gains = layer_gains(losses, text, plan.table, cuts.sensitivity_pieces);
    // All the way overshoots: gains change with the plan that they lead to.
    for (double const step : {0.25, 0.5}) {
      if (!gains.any()) break;
      add_errors(errors, "again " + short_number(step), calibration_at(calibration, plan, gains, step), options);
    }
  }
  Guarded guarded = guarded_plan(losses, errors, text, budget, guard);
  write_guarded(options.calibration.output_dir, guarded);
  return guarded;
}

}  // namespace llama_adapter
