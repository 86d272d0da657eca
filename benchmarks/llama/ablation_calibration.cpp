#include "llama/ablation_calibration.hpp"

#include "tools/analysis/analysis.hpp"
#include "tools/llama/refinement.hpp"
#include "tools/llama/residual_norms.hpp"
#include "tools/llama/token_source.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/interrupt.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/error.hpp>
#include <headaware/io/content_hash.hpp>
#include <headaware/io/sensitivities.hpp>

#include <algorithm>
#include <cstddef>
#include <list>
#include <map>
#include <set>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

constexpr auto norm_file = "sensitivities_norm.json";
constexpr auto statistics_file = "retention_statistics.json";
constexpr auto sums_file = "attention_sums.json";
constexpr auto classes_folder = "classes";

std::size_t index(AblationSensitivity sensitivity) { return static_cast<std::size_t>(sensitivity); }

struct MeasuredByCuts {
  AblationSensitivity sensitivity;
  SensitivityOf of;
  SensitivityBy by;
};
/// Layers last, so that the folder is left as analyze_attention leaves its own.
constexpr std::array<MeasuredByCuts, 3> measured_by_cuts{
    {{AblationSensitivity::layer_losses, SensitivityOf::layer, SensitivityBy::loss},
     {AblationSensitivity::head, SensitivityOf::head, SensitivityBy::divergence},
     {AblationSensitivity::layer, SensitivityOf::layer, SensitivityBy::divergence}}};

CalibrationOptions calibration_options(std::filesystem::path folder, MeasuredByCuts const& measured,
                                       std::int32_t pieces) {
  CalibrationOptions options;
  options.output_dir = std::move(folder);
  options.sensitivity = measured.of;
  options.by = measured.by;
  options.sensitivity_pieces = {pieces, pieces};
  return options;
}

std::int64_t tokens_of(CalibrationText::Pieces const& pieces) {
  std::int64_t tokens = 0;
  for (auto const& piece : pieces) tokens += std::ssize(piece);
  return tokens;
}

/// 1 / median |residual|², from the folder or measured into it.
ha::SavedSensitivities norm_of(Model const& model, CalibrationText::Pieces const& pieces, std::int64_t first_query,
                               std::int32_t threads, std::filesystem::path const& folder) {
  auto const path = folder / norm_file;
  if (std::filesystem::exists(path)) return ha::load_sensitivities(path);
  ha::SavedSensitivities saved;
  saved.num_layers = model.shape().num_layers();
  if (!model.shape().uniform()) saved.layers = model.shape();
  for (double const norm : residual_norms(model, pieces, first_query, threads)) saved.values.push_back(1 / norm);
  ha::save_sensitivities(path, saved);
  return saved;
}

}  // namespace

ha::Sensitivities AblationMeasured::factors(AblationSensitivity sensitivity, ha::ErrorMeasure measure,
                                            ha::GroupFold fold) const {
  if (sensitivity == AblationSensitivity::none) return {};
  auto const& saved = sensitivities[index(sensitivity)];
  ha::require(saved.has_value(), "sensitivities", "measured ones", ablation_sensitivity_names[index(sensitivity)],
              "AblationMeasured::factors");
  ha::SensitivityOptions options;
  options.measure = measure;
  options.fold = fold;
  return saved->factors(statistics, options);
}

std::vector<CalibrationUse> uses_of(CalibrationUse const& use) {
  if (use.domain != AblationDomain::both) return {use};
  CalibrationUse own = use;
  CalibrationUse other = use;
  own.domain = AblationDomain::own;
  other.domain = AblationDomain::other;
  return {own, other};
}

AblationCalibration::AblationCalibration(LossStore& losses, AblationCalibrationOptions options,
                                         std::vector<AblationSetup> const& setups)
    : losses_(&losses), options_(std::move(options)) {
  for (AblationSetup const& setup : setups) {
    needs_classes_ = needs_classes_ || setup.method == AblationMethod::rules || setup.size != AblationSize::budget;
    if (setup.method != AblationMethod::planned) continue;
    if (setup.replan_step > 0) replanned_.push_back(setup.calibration);
    if (setup.refine_levels > 0) refined_.push_back(setup);
    for (CalibrationUse const& use : uses_of(setup.calibration)) {
      needs_[use][index(setup.sensitivity)] = true;
    }
  }
  for (auto const& [use, needs] : needs_) (void)pieces_of(use);  // too short a text is known before anything runs
}

CalibrationUse AblationCalibration::usual() const {
  CalibrationUse use;
  use.pieces = options_.pieces;
  return use;
}

CalibrationText AblationCalibration::pieces_of(CalibrationUse const& use) const {
  AblationText const& text = use.domain == AblationDomain::other ? options_.other : options_.own;
  std::int64_t const length = use.piece_tokens > 0 ? use.piece_tokens : options_.context;
  // One division for all numbers of pieces, so that what is measured over fewer is part of what is over more.
  std::int32_t const most = std::max(8, 2 * options_.pieces);
  CalibrationPieces const division{.text = most, .probe = most / 2, .held_out = 1, .held_out_probes = 1};
  CalibrationText result = calibration_text(losses_->run().model(), text.tokens, length, division, text.name);
  ha::require(use.pieces > 0 && use.pieces <= most, "pieces", {"1 to ", most}, use.pieces, "AblationCalibration");
  result.text.resize(static_cast<std::size_t>(use.pieces));
  result.probe.resize(static_cast<std::size_t>(std::max(1, use.pieces / 2)));
  return result;
}

std::filesystem::path AblationCalibration::folder_of(CalibrationText const& text, CalibrationUse const& use) const {
  Model const& model = losses_->run().model();
  ha::ContentHash hash;
  hash.add(model.path().filename().string() + " " + std::to_string(std::filesystem::file_size(model.path())));
  for (auto const* const pieces : {&text.text, &text.probe}) {
    for (auto const& piece : *pieces) hash.add(piece);
  }
  std::string name(ablation_domain_names[static_cast<std::size_t>(use.domain)]);
  name += "-" + std::to_string(use.pieces) + "x" + std::to_string(text.text.front().size()) + "-" + hash.text();
  return options_.folder / name;
}

std::int64_t AblationCalibration::tokens_to_run() const {
  ha::ModelShape const& shape = losses_->run().model().shape();
  std::int64_t tokens = 0;
  std::list<CalibrationText> texts;  // borrowed by the jobs
  std::vector<LossJob> losses;
  std::map<std::int64_t, std::vector<LossJob>> divergences;  // by their first token
  std::set<std::filesystem::path> missing;
  auto const count = [&](std::filesystem::path const& path, CalibrationText::Pieces const& pieces) {
    if (!std::filesystem::exists(path) && missing.insert(path).second) tokens += tokens_of(pieces);
  };
  auto const add = [&](CalibrationText::Pieces const& pieces, std::filesystem::path const& folder,
                       CalibrationUse const& use, Needs const& needs, std::int64_t first_query) {
    count(folder / statistics_file, pieces);
    if (needs[index(AblationSensitivity::norm)]) count(folder / norm_file, pieces);
    for (auto const& measured : measured_by_cuts) {
      if (!needs[index(measured.sensitivity)]) continue;
      auto const own =
          sensitivity_jobs(shape, first_pieces(pieces, use.sensitivity_pieces, "sensitivity_pieces", "tokens_to_run"),
                           calibration_options(folder, measured, use.sensitivity_pieces));
      auto& jobs = measured.by == SensitivityBy::loss ? losses : divergences[first_query];
      jobs.insert(jobs.end(), own.begin(), own.end());
    }
  };
  for (auto const& [use, needs] : needs_) {
    CalibrationText const& text = texts.emplace_back(pieces_of(use));
    auto const folder = folder_of(text, use);
    add(text.text, folder / "text", use, needs, text.first_query);
    add(text.probe, folder / "probe", use, needs, text.first_query);
  }
  // Plans made again have none yet: at most a run per layer, and one.
  std::set<CalibrationUse> again;
  for (CalibrationUse const& use : replanned_) {
    if (!again.insert(use).second) continue;
    auto const pieces = std::int64_t{2} * use.sensitivity_pieces;
    tokens += pieces * (shape.num_layers() + 1) * (use.piece_tokens > 0 ? use.piece_tokens : options_.context);
  }
  for (AblationSetup const& setup : refined_) {
    // A sweep of trials, as a rule: what is taken saves as many of the others.
    auto const trials = std::min(std::int64_t{2} << setup.refine_levels, std::int64_t{2} * shape.num_layers());
    tokens += 2 * setup.calibration.sensitivity_pieces * 2 * trials * options_.context;
  }
  if (needs_classes_) {
    CalibrationText const text = pieces_of(usual());
    count(folder_of(text, usual()) / classes_folder / sums_file, text.text);
  }
  tokens += losses_->tokens_to_run(losses);
  for (auto const& [first, jobs] : divergences) tokens += losses_->tokens_to_run(jobs, first);
  return tokens;
}

void AblationCalibration::measure() {
  for (auto const& [use, needs] : needs_) measure_use(use, needs);
  if (needs_classes_) classify();
}

void AblationCalibration::measure_at_plan(AblationSetup const& first, ha::PolicyTable const& plan) {
  auto const known = std::find_if(gains_.begin(), gains_.end(), [&](auto const& one) { return one.first == first; });
  if (known != gains_.end()) return;
  ha::require(first.calibration.domain != AblationDomain::both, "domain of a plan made again", "one", "both",
              "AblationCalibration::measure_at_plan");
  std::int32_t const pieces = first.calibration.sensitivity_pieces;
  gains_.emplace_back(
      first, plan_gains(*losses_, pieces_of(first.calibration), plan, {}, {pieces, pieces}, SensitivityOf::layer));
}

PlanGains const& AblationCalibration::gains_at_plan(AblationSetup const& first) const {
  auto const known = std::find_if(gains_.begin(), gains_.end(), [&](auto const& one) { return one.first == first; });
  ha::require(known != gains_.end(), "gains of layers at a plan", "measured ones", "none",
              "AblationCalibration::gains_at_plan");
  return known->second;
}

void AblationCalibration::refine(AblationSetup const& setup, PlannerInput const& input) {
  ha::require(setup.calibration.domain != AblationDomain::both, "domain of a plan to refine", "one", "both",
              "AblationCalibration::refine");
  std::int32_t const pieces = setup.calibration.sensitivity_pieces;
  RefinementOptions options{.pieces = {pieces, pieces}, .probe_weight = setup.probe_weight};
  options.refine.levels = setup.refine_levels;
  auto refined = refined_plan(*losses_, pieces_of(setup.calibration), input.errors, input.budget, options_.context,
                              input.options, options);
  factors_.emplace_back(setup, std::move(refined.factors));
}

std::vector<double> const& AblationCalibration::refined_factors(AblationSetup const& setup) const {
  auto const known =
      std::find_if(factors_.begin(), factors_.end(), [&](auto const& one) { return one.first == setup; });
  ha::require(known != factors_.end(), "factors of a refined plan", "found ones", "none",
              "AblationCalibration::refined_factors");
  return known->second;
}

void AblationCalibration::measure_use(CalibrationUse const& use, Needs const& needs) {
  CalibrationText const text = pieces_of(use);
  auto const folder = folder_of(text, use);
  Model const& model = losses_->run().model();
  auto const calibrated = [&](MeasuredByCuts const& measured) {
    return calibrate(*losses_, text, calibration_options(folder, measured, use.sensitivity_pieces));
  };
  Calibration calibration = calibrated({AblationSensitivity::none, SensitivityOf::none, SensitivityBy::divergence});
  AblationKinds kinds{{std::move(calibration.text.statistics)}, {std::move(calibration.probe.statistics)}};
  // What was observed is kept, so that calibrating once for each kind of sensitivity repeats nothing.
  for (auto const& measured : measured_by_cuts) {
    auto const which = index(measured.sensitivity);
    if (!needs[which]) continue;
    (void)calibrated(measured);
    kinds.text.sensitivities[which] = ha::load_sensitivities(folder / "text" / "sensitivities.json");
    kinds.probe.sensitivities[which] = ha::load_sensitivities(folder / "probe" / "sensitivities.json");
  }
  if (auto const norm = index(AblationSensitivity::norm); needs[norm]) {
    auto const measured = [&](CalibrationText::Pieces const& pieces, char const* name) {
      return norm_of(model, pieces, text.first_query, options_.threads, folder / name);
    };
    kinds.text.sensitivities[norm] = measured(text.text, "text");
    kinds.probe.sensitivities[norm] = measured(text.probe, "probe");
  }
  measured_.insert_or_assign(use, std::move(kinds));
}

void AblationCalibration::classify() {
  CalibrationText const text = pieces_of(usual());
  auto const folder = folder_of(text, usual()) / classes_folder;
  TokenSource source(losses_->run(), text.text, folder.parent_path().filename().string());
  // As analyze_attention classifies: all rows, in chunks of 512 tokens.
  analysis::AnalysisOptions options{.output_dir = folder, .parameters = {}};
  options.parameters.chunk_size = 512;
  options.resume = std::filesystem::exists(folder / sums_file);
  auto const result = analysis::analyze(source, options);
  if (!result.complete()) throw support::Interrupted{};
  classes_ = ha::classify(result.observer.statistics());
}

}  // namespace llama_adapter
