#include "tools/llama/planning.hpp"

#include "tools/llama/replanning.hpp"
#include "tools/llama/short_number.hpp"
#include "tools/support/budget.hpp"
#include "tools/support/folder.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/sensitivities.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/planner.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Steps of sensitivities towards those measured again, as shares of the way in their logarithms.
constexpr std::array<double, 2> replan_steps{0.25, 0.5};

/// The plans to try, and what each is made of.
class Candidates {
 public:
  /// Measurements that a plan is made of.
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
    auto const errors = [&](double probe_weight) {
      return ha::weighted_errors(made.calibration.weighted(probe_weight), options_->guard.plan.measure,
                                 options_->guard.plan.fold);
    };
    errors_.push_back({name, errors(made.probe_weight), made.probe_weight});
    if (options_->guard.scorer != nullptr) {
      for (double const multiple : options_->guard.slot_probe_weights) {
        errors_.back().with_probe.push_back(errors(multiple * made.probe_weight));
      }
    }
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
  [[nodiscard]] GuardedTable const& tried(Guarded const& guarded, std::size_t i) const {
    return guarded.tables[guarded.first_plan + i];
  }

 private:
  PlanningOptions const* options_;
  std::vector<NamedErrors> errors_;
  std::vector<Made> made_;
};

/// To `<what>_N`, N being what is kept per head; nothing of a plan without sensitivities.
void save_factors(PlanningOptions const& options, std::string const& what, ha::PolicyPlan const& plan,
                  Calibration const& calibration) {
  auto const folder = options.calibration.output_dir / (what + std::to_string(std::lround(plan.mean_budget())));
  auto const save = [&](char const* kind, MeasuredText const& measured) {
    if (measured.sensitivities.empty()) return;
    support::make_folder(folder / kind);
    ha::SavedSensitivities saved;
    saved.num_layers = measured.statistics.info.num_layers;
    saved.num_kv_heads = measured.sensitivities.num_kv_heads();
    saved.layers = measured.statistics.info.layers;
    auto const factors = measured.sensitivities.values();
    saved.values.assign(factors.begin(), factors.end());
    ha::save_sensitivities(folder / kind / "sensitivities.json", saved);
  };
  save("text", calibration.text);
  save("probe", calibration.probe);
}

/// Refuses what cannot be planned before anything is measured, by a plan of heads that lose nothing.
void check_plannable(Model const& model, PlanningOptions const& options, ha::Budget const& budget,
                     std::vector<std::string> const& formats) {
  require_served(model.info(), model.shape());
  support::require_within_cache(budget, model.shape(), options.guard.plan.skip_layers, options.guard.context);
  ha::RetentionInfo info;
  info.set_shape(model.shape());
  ha::KvErrors errors;
  errors.num_layers = info.num_layers;
  errors.num_heads = info.num_heads;
  errors.num_kv_heads = info.num_kv_heads;
  errors.layers = info.layers;
  errors.grid = options.calibration.grid.value_or(ha::RetentionGrid::up_to(options.guard.context));
  errors.cells.resize(errors.size() * errors.grid.size());
  errors.dropped.resize(errors.size());
  errors.formats = formats;
  errors.key_errors.resize(errors.size() * formats.size());
  errors.value_errors.resize(errors.size() * formats.size());
  (void)ha::plan_policies(errors, budget, options.guard.context, options.guard.plan);
  (void)ha::uniform_table(errors, budget, options.guard.context, options.guard.plan);
}

/// Some formats, and those that heads are asked to have.
std::vector<std::string> with_wanted(std::vector<std::string> names, support::FormatsWanted const& wanted) {
  for (ha::HeadFormats const& pair : wanted.pairs) {
    for (ha::AnyFormat<> const& format : {pair.key, pair.value}) {
      bool const known = std::find(names.begin(), names.end(), format.name()) != names.end();
      if (!known && !ha::has_sixteen_bits(format)) names.emplace_back(format.name());
    }
  }
  return names;
}

/// Formats whose errors a calibration observes; none of latents, whose rows have 16 bits.
std::vector<std::string> observed_formats(ha::ModelShape const& shape, CalibrationOptions const& options) {
  for (ha::LayerShape const& layer : shape.layers()) {
    if (layer.kind == ha::LayerKind::latent) return {};
  }
  return options.measure == ha::ErrorMeasure::mass ? std::vector<std::string>{} : options.formats;
}

void check_pieces(PlanningOptions const& options) {
  auto const check = [&](PieceCounts const& used, std::string const& what, bool one_kind_will_do = false) {
    if (!one_kind_will_do || used.text != 0 || used.probe == 0) {
      require_pieces(used.text, options.pieces.text, what + ", text", "plan_model");
    }
    if (!one_kind_will_do || used.probe != 0) {
      require_pieces(used.probe, options.pieces.probe, what + ", probe", "plan_model");
    }
  };
  check(options.calibration.sensitivity_pieces, "pieces for sensitivities");
  if (options.refine) check(options.refine_pieces, "pieces to refine on");
  if (options.replan > 0) {
    // Nats of the one kind and squared errors of the other would not add up.
    bool const in_nats = options.calibration.sensitivity != SensitivityOf::none;
    check(options.replan_pieces, "pieces to replan on", in_nats);
  }
}

}  // namespace

Guarded plan_model(PlanningOptions const& given, ha::Budget const& budget) {
  PlanningOptions options = given;
  ha::require(!options.probe_weights.empty(), "probe_weights", "at least one", "none", "plan_model");
  if (options.refine) options.refine->validate();
  check_pieces(options);
  Model const model(options.model);
  options.calibration.measure = options.guard.plan.measure;
  options.calibration.formats = with_wanted(std::move(options.calibration.formats), options.formats);
  auto const formats = observed_formats(model.shape(), options.calibration);
  options.guard.plan.formats.pairs = options.formats.of(formats);
  if (options.guard.plan.formats.by_bytes() && model.shape().uniform()) {
    options.guard.plan.formats.head_dim = model.shape().layer(0).head_dim;
  }
  check_plannable(model, options, budget, formats);
  auto const tokens = model.tokenize(ha::read_text_file(options.text), false);
  GuardOptions const& guard = options.guard;
  auto const text = calibration_text(model, tokens, guard.context, options.pieces, options.text.string());
  PolicyRun run(model, {.tokens = static_cast<std::int32_t>(guard.context), .threads = options.threads});
  LossStore losses(run, options.calibration.output_dir / "losses");
  CalibrationOptions cuts = options.calibration;
  cuts.skip_layers = guard.plan.skip_layers;
  cuts.fold = guard.plan.fold;
  bool const slots = guard.scorer != nullptr && options.calibration.measure != ha::ErrorMeasure::mass;
  cuts.scorer = slots ? guard.scorer : nullptr;
  if (guard.scorer != nullptr && !slots) {
    std::fprintf(stderr, "note: no plans with scored slots, whose errors are not measured by mass\n");
  }
  Candidates candidates(options);
  candidates.add("plan", calibrate(losses, text, cuts));
  GuardOptions without_blends = guard;  // which are tried of the best plan, last
  without_blends.blends.clear();
  without_blends.scorer = nullptr;
  auto const tried = [&] { return guarded_plan(losses, candidates.errors(), text, budget, without_blends); };
  Guarded guarded = tried();
  std::optional<ha::PolicyPlan> measured;
  for (std::int32_t round = 1; round <= options.replan; ++round) {
    // With the first weight given, whatever the guard's score is, so that another score finds all runs made.
    std::size_t const best = candidates.best(guarded, options.probe_weights.front());
    Calibration const calibration = candidates.made(best).calibration;
    ha::PolicyPlan const plan = candidates.tried(guarded, best).plan;
    if (measured && plan.table == measured->table && plan.formats == measured->formats) {
      std::fprintf(stderr, "replanning ends: round %d found no better plan to measure at\n", round - 1);
      break;
    }
    measured = plan;
    PlanGains const gains =
        plan_gains(losses, text, plan.table, plan.formats, options.replan_pieces, options.replan_by);
    if (!gains.any()) {
      std::fprintf(stderr, "replanning ends: in round %d no layer or KV head gains by keeping everything; costs stay\n",
                   round);
      break;
    }
    // All the way overshoots: gains change with the plan that they lead to.
    for (double const step : replan_steps) {
      candidates.add("again " + std::to_string(round) + " by " + short_number(step),
                     calibration_at(calibration, plan, gains, step));
    }
    guarded = tried();
  }
  std::size_t const best = candidates.best(guarded, guard.probe_weight);
  if (options.replan > 0) {
    save_factors(options, "replanned_", candidates.tried(guarded, best).plan, candidates.made(best).calibration);
  }
  if (options.refine) {
    Candidates::Made made = candidates.made(best);
    auto const refined =
        refined_plan(losses, text, candidates.errors()[best].errors, budget, guard.context, guard.plan,
                     {.pieces = options.refine_pieces, .probe_weight = guard.probe_weight, .refine = *options.refine});
    made.calibration = calibration_scaled(std::move(made.calibration), refined.factors);
    save_factors(options, "refined_", refined.plan, made.calibration);
    candidates.add("refined", std::move(made));
  }
  guarded = guarded_plan(losses, candidates.errors(), text, budget, guard);
  guarded.text = options.text.filename().string();
  write_guarded(options.calibration.output_dir, guarded);
  return guarded;
}

}  // namespace llama_adapter
