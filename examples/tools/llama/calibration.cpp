#include "tools/llama/calibration.hpp"

#include "tools/analysis/analysis.hpp"
#include "tools/llama/scored_statistics.hpp"
#include "tools/llama/token_source.hpp"
#include "tools/support/folder.hpp"

#include <headaware/error.hpp>
#include <headaware/io/attention_sums.hpp>
#include <headaware/io/content_hash.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/io/sensitivities.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/plan/refine.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

namespace llama_adapter {

namespace ha = headaware;

namespace {

std::string describe(Model const& model, CalibrationText::Pieces const& pieces) {
  ha::ContentHash tokens;
  for (auto const& piece : pieces) tokens.add(piece);
  return model.path().filename().string() + ", " + std::to_string(std::filesystem::file_size(model.path())) +
         " bytes; " + std::to_string(pieces.size()) + " pieces of " + std::to_string(pieces.front().size()) +
         " tokens, " + tokens.text();
}

/// True if a folder holds a part of this very observation.
bool resumable(std::filesystem::path const& folder, analysis::AttentionSource const& source,
               ha::ObserverParameters const& parameters) {
  auto const path = folder / "attention_sums.json";
  if (!std::filesystem::exists(path)) return false;
  auto const saved = ha::load_attention_sums(path);
  return saved.source == source.description() && saved.observer.parameters() == parameters &&
         saved.observer.model() == source.model();
}

/// Statistics of an earlier run that hold scored slots, of this grid and these scores if some are given; nothing: none.
std::optional<ha::RetentionStatistics> with_scored_slots(std::filesystem::path const& folder,
                                                         CalibrationOptions const& options,
                                                         ha::ScoredGrid const& grid) {
  auto const path = folder / "retention_statistics.json";
  if (!std::filesystem::exists(path)) return std::nullopt;
  try {
    auto statistics = ha::load_retention_statistics(path);
    bool const same = options.scorer == nullptr ||
                      (statistics.info.scores == options.scorer->saved.weight_hash && statistics.info.scored == grid);
    if (statistics.info.scored && same) return statistics;
  } catch (ha::FormatError const&) {  // of an older version, say: measured anew
  }
  return std::nullopt;
}

ha::RetentionStatistics without_scored_slots(ha::RetentionStatistics statistics) {
  statistics.info.scored.reset();
  statistics.info.scores.clear();
  for (ha::RetentionSums& head : statistics.heads) head.scored = {};
  return statistics;
}

/// @param slots  pairs of windows and scored slots, the same for all kinds of text: their errors add up
ha::RetentionStatistics observe(PolicyRun& run, CalibrationText::Pieces const& pieces, std::int64_t first_query,
                                CalibrationOptions const& options, ha::ScoredGrid const& slots,
                                std::filesystem::path const& folder) {
  TokenSource source(run, pieces, describe(run.model(), pieces));
  analysis::AnalysisOptions analysis{.output_dir = folder, .parameters = {}};
  analysis.parameters.first_query = first_query;
  analysis.parameters.query_stride = options.query_stride;
  analysis.parameters.formats = options.formats;
  analysis.parameters.retention = options.grid.value_or(ha::RetentionGrid::up_to(std::ssize(pieces.front())));
  support::make_folder(folder);
  auto const earlier = with_scored_slots(folder, options, slots);
  analysis.resume = resumable(folder, source, analysis.parameters);
  auto const result = analysis::analyze(source, analysis);
  if (!result.complete()) throw support::Interrupted{};
  auto statistics = result.observer.retention_statistics();
  if (earlier && without_scored_slots(*earlier) == statistics) {
    statistics = *earlier;
  } else if (options.scorer != nullptr) {
    observe_scored_slots(run, pieces, analysis::output_metrics(source, statistics.info.with_output_metric),
                         *options.scorer, slots, statistics);
  }
  ha::save_retention_statistics(folder / "retention_statistics.json", statistics);
  return statistics;
}

/// The increase of the mean loss, but at least one standard error of it: what is not told from noise must not make a
/// layer free.
double loss_increase(std::span<std::vector<double> const> cut, std::span<std::vector<double> const> full,
                     std::int64_t first) {
  std::vector<double> with_cut;
  std::vector<double> without;
  for (std::size_t piece = 0; piece < full.size(); ++piece) {
    with_cut.insert(with_cut.end(), cut[piece].begin() + first, cut[piece].end());
    without.insert(without.end(), full[piece].begin() + first, full[piece].end());
  }
  auto const increase = ha::paired_gain(with_cut, without);
  return std::max(increase.mean, increase.standard_error);
}

/// Cost of each layer (head), nats per token. @param jobs  of `sensitivity_jobs`, of so many pieces
std::vector<double> costs(LossStore& losses, std::span<LossJob const> jobs, std::size_t used, std::int64_t first_query,
                          SensitivityBy by, std::string const& what) {
  if (by == SensitivityBy::loss) {
    std::vector<double> result(jobs.size() / used - 1);
    auto const all = losses.losses(what, jobs);
    std::span<std::vector<double> const> const values(all);
    for (std::size_t i = 0; i < result.size(); ++i) {
      result[i] = loss_increase(values.subspan((i + 1) * used, used), values.first(used), first_query);
    }
    return result;
  }
  std::vector<double> result(jobs.size() / used);
  auto const all = losses.divergences(what, jobs, first_query);
  for (std::size_t i = 0; i < all.size(); ++i) {
    result[i % result.size()] += mean_loss(all[i]) / static_cast<double>(used);
  }
  return result;
}

/// Layers of a model that can be cut.
std::vector<std::int32_t> cut_layers(ha::ModelShape const& shape, std::vector<std::int32_t> const& skipped) {
  auto layers = ha::planned_layers(shape.num_layers(), skipped);
  std::erase_if(layers, [&](std::int32_t layer) { return !shape.layer(layer).has_cache(); });
  return layers;
}

/// Costs that another calibration measured for this kind of text; nothing if they are to be measured.
std::optional<ha::SavedSensitivities> taken_sensitivities(ha::ModelShape const& shape,
                                                          CalibrationOptions const& options, std::string const& name) {
  if (options.sensitivities_from.empty()) return std::nullopt;
  ha::require(options.sensitivity != SensitivityOf::none, "sensitivity where sensitivities_from is given",
              "layer or head", "none", "calibrate");
  auto result = ha::load_sensitivities(options.sensitivities_from / name / "sensitivities.json");
  ha::RetentionInfo info;
  info.set_shape(shape);
  result.require_shape(info, "calibrate");
  return result;
}

ha::Sensitivities sensitivities(LossStore& losses, std::span<std::vector<std::int32_t> const> pieces,
                                std::int64_t first_query, ha::RetentionStatistics const& statistics,
                                std::optional<ha::SavedSensitivities> const& taken, CalibrationOptions const& options,
                                std::filesystem::path const& folder, std::string const& what) {
  if (options.sensitivity == SensitivityOf::none) return {};
  ha::SensitivityOptions const errors{.measure = options.measure, .fold = options.fold};
  if (taken) {
    ha::save_sensitivities(folder / "sensitivities.json", *taken);
    return taken->factors(statistics, errors);
  }
  ha::ModelShape const& shape = losses.run().model().shape();
  bool const by_head = options.sensitivity == SensitivityOf::head;
  ha::PolicyTable const heads(shape);
  ha::SavedSensitivities saved;
  saved.num_layers = shape.num_layers();
  saved.num_kv_heads = by_head ? heads.num_kv_heads() : 0;
  saved.layers = statistics.info.layers;
  saved.losses = true;
  saved.cut = options.cut;

  auto const measured = costs(losses, sensitivity_jobs(shape, pieces, options), pieces.size(), first_query, options.by,
                              "sensitivities to cuts, " + what);
  // Layers that were skipped get the others' mean, for whoever plans them after all.
  saved.values.assign(static_cast<std::size_t>(saved.count()), mean_loss(measured));
  std::size_t next = 0;
  for (std::int32_t const layer : cut_layers(shape, options.skip_layers)) {
    auto const first = static_cast<std::size_t>(by_head ? heads.heads().first(layer) : layer);
    std::size_t const each = by_head ? static_cast<std::size_t>(heads.num_kv_heads(layer)) : 1;
    for (std::size_t i = 0; i < each; ++i) saved.values[first + i] = measured[next++];
  }
  ha::save_sensitivities(folder / "sensitivities.json", saved);
  return saved.factors(statistics, errors);
}

}  // namespace

std::vector<ha::WeightedStatistics> Calibration::weighted(double probe_weight) const {
  return {{&text.statistics, text.sensitivities, 1}, {&probe.statistics, probe.sensitivities, probe_weight}};
}

std::vector<LossJob> sensitivity_jobs(ha::ModelShape const& shape, std::span<std::vector<std::int32_t> const> pieces,
                                      CalibrationOptions const& options) {
  if (options.sensitivity == SensitivityOf::none) return {};
  bool const by_head = options.sensitivity == SensitivityOf::head;
  ha::PolicyTable const full(shape, ha::Full{});
  std::vector<ha::PolicyTable> tables{full};
  for (std::int32_t const layer : cut_layers(shape, options.skip_layers)) {
    ha::PolicyTable table = full;
    for (std::int32_t head = 0; head < full.num_kv_heads(layer); ++head) {
      table.set(layer, head, options.cut);
      if (by_head) {
        tables.push_back(table);
        table = full;
      }
    }
    if (!by_head) tables.push_back(table);
  }
  std::vector<LossJob> jobs;
  if (options.by == SensitivityBy::loss) {
    for (auto const& table : tables) {
      for (auto const& piece : pieces) jobs.push_back({piece, table});
    }
  } else {
    // One piece after the other, for divergences are told from one run with everything kept for each.
    for (auto const& piece : pieces) {
      for (auto const& table : std::span(tables).subspan(1)) jobs.push_back({piece, table});
    }
  }
  return jobs;
}

Calibration calibrate(LossStore& losses, CalibrationText const& text, CalibrationOptions const& options) {
  std::int64_t longest = 0;
  for (auto const* const pieces : {&text.text, &text.probe}) {
    for (auto const& piece : *pieces) longest = std::max(longest, std::ssize(piece));
  }
  auto const slots = ha::ScoredGrid::up_to(longest);
  auto const measure = [&](CalibrationText::Pieces const& pieces, std::int32_t cut,
                           std::optional<ha::SavedSensitivities> const& taken, std::string const& name) {
    auto const used = first_pieces(pieces, cut, "sensitivity_pieces, " + name, "calibrate");
    auto const folder = options.output_dir / name;
    MeasuredText result;
    result.statistics = observe(losses.run(), pieces, text.first_query, options, slots, folder);
    result.sensitivities =
        sensitivities(losses, used, text.first_query, result.statistics, taken, options, folder, name);
    return result;
  };
  // Before anything is measured, for that takes minutes.
  auto const taken_text = taken_sensitivities(losses.run().model().shape(), options, "text");
  auto const taken_probe = taken_sensitivities(losses.run().model().shape(), options, "probe");
  Calibration result;
  result.text = measure(text.text, options.sensitivity_pieces.text, taken_text, "text");
  result.probe = measure(text.probe, options.sensitivity_pieces.probe, taken_probe, "probe");
  return result;
}

}  // namespace llama_adapter
