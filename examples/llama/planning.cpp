#include "llama/planning.hpp"

#include "llama/replanning.hpp"

#include <headaware/io/file.hpp>

#include <cstdio>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// One plan's errors for each weight of the probe's.
std::vector<NamedErrors> errors_of(Calibration const& calibration, GuardOptions const& options,
                                   std::string const& name) {
  auto const with = [&](double weight, std::string named) {
    return NamedErrors{std::move(named),
                       ha::weighted_errors(calibration.weighted(weight), options.plan.measure, options.plan.fold)};
  };
  std::vector<NamedErrors> errors{with(options.probe_weight, name)};
  for (double const weight : options.other_probe_weights) {
    char number[32];
    std::snprintf(number, sizeof(number), "%g", weight);
    errors.push_back(with(weight, name + ", probe " + number));
  }
  return errors;
}

}  // namespace

Guarded plan_model(PlanningOptions const& options, ha::Budget const& budget) {
  Model const model(options.model);
  auto const tokens = model.tokenize(ha::read_text_file(options.text), false);
  GuardOptions const& guard = options.guard;
  auto const text = calibration_text(model, tokens, guard.context, options.pieces, options.text.string());
  PolicyRun run(model, {.tokens = static_cast<std::int32_t>(guard.context), .threads = options.threads});
  LossStore losses(run, options.calibration.output_dir / "losses");
  CalibrationOptions cuts = options.calibration;
  cuts.skip_layers = guard.plan.skip_layers;
  Calibration const calibration = calibrate(losses, text, cuts);
  auto errors = errors_of(calibration, guard, "plan");
  Guarded guarded = guarded_plan(losses, errors, text, budget, guard);
  for (std::int32_t round = 0; round < options.replan; ++round) {
    auto const& plan = guarded.chosen().plan.table;
    ReplanOptions const replan{.context = guard.context,
                               .pieces = options.calibration.sensitivity_pieces,
                               .measure = guard.plan.measure,
                               .fold = guard.plan.fold};
    LayerGains const gains = layer_gains(losses, text, plan, replan.pieces);
    for (double const step : {0.5, 1.0}) {
      auto const again = calibrated_at(calibration, plan, gains, step, replan);
      auto more = errors_of(again, guard, step < 1 ? "again, halfway" : "again");
      errors.insert(errors.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    }
    guarded = guarded_plan(losses, errors, text, budget, guard);
  }
  write_guarded(options.calibration.output_dir, guarded);
  return guarded;
}

}  // namespace llama_adapter
