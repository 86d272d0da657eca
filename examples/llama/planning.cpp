#include "llama/planning.hpp"

#include <headaware/io/file.hpp>

#include <vector>

namespace llama_adapter {

namespace ha = headaware;

Guarded plan_model(PlanningOptions const& options, ha::Budget const& budget) {
  Model const model(options.model);
  auto const tokens = model.tokenize(ha::read_text_file(options.text), false);
  std::int64_t const context = options.guard.context;
  auto const text = calibration_text(model, tokens, context, options.pieces, options.text.string());
  PolicyRun run(model, {.tokens = static_cast<std::int32_t>(context), .threads = options.threads});
  LossStore losses(run, options.calibration.output_dir / "losses");
  Calibration const calibration = calibrate(losses, text, options.calibration);
  std::vector<double> weights{options.guard.probe_weight};
  weights.insert(weights.end(), options.guard.other_probe_weights.begin(), options.guard.other_probe_weights.end());
  std::vector<ProbedErrors> errors;
  for (double const weight : weights) {
    errors.push_back({weight, ha::weighted_errors(calibration.weighted(weight), options.guard.plan.measure,
                                                  options.guard.plan.fold)});
  }
  Guarded guarded = guarded_plan(losses, errors, text, budget, options.guard);
  write_guarded(options.calibration.output_dir, guarded);
  return guarded;
}

}  // namespace llama_adapter
