#pragma once

// Options about plans: what a plan may do, and what is measured for one.

#include "tools/support/options.hpp"

#include <headaware/plan/policy_plan.hpp>
#include <headaware/plan/refine.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace support {

/// Declares what a plan may do.
/// @param only_with  option that all of them need; nullptr: none
inline void add_plan_options(CLI::App& app, headaware::PlanOptions& plan, CLI::Option* only_with = nullptr) {
  std::vector<CLI::Option*> const added{
      app.add_option("--floor", plan.floor,
                     "tokens every KV head keeps at least; default: 32 or a quarter of the budget, at most half of it")
          ->check(non_negative),
      app.add_option("--page_size", plan.page_size, "sizes are whole pages of so many tokens")
          ->capture_default_str()
          ->check(positive),
      app.add_option("--ranks", plan.ranks,
                     "tensor-parallel ranks; each gets the budget's share of what it holds whole")
          ->capture_default_str()
          ->check(positive),
      app.add_flag("--layer_shares", plan.layer_shares, "each layer gets the budget's share of what it holds whole"),
      add_skip_layers(
          app, plan.skip_layers,
          "layers that keep everything, beyond the budget; sliding windows of the model's own hold without it"),
      app.add_option("--negligible_output", plan.negligible_output,
                     "prune KV heads whose squared output is at most this share of their layer's mean; 0: none")
          ->capture_default_str()
          ->check(non_negative),
      app.add_option_function<std::string>(
             "--measure",
             [&plan](std::string const& name) {
               auto const& names = headaware::error_measure_names;
               plan.measure =
                   static_cast<headaware::ErrorMeasure>(std::find(names.begin(), names.end(), name) - names.begin());
             },
             "error: mass, output or output_metric; default: the last one measured")
          ->check(CLI::IsMember({"mass", "output", "output_metric"})),
      app.add_option_function<std::string>(
             "--fold",
             [&plan](std::string const& name) {
               plan.fold = name == "max" ? headaware::GroupFold::maximum : headaware::GroupFold::sum;
             },
             "of the query heads of a KV head: sum or max")
          ->default_str("sum")
          ->check(CLI::IsMember({"sum", "max"}))};
  for (auto* const option : added) {
    if (only_with != nullptr) option->needs(only_with);
  }
}

/// Measurements and search of analyze_attention --plan. Counts of pieces are of text and of the probe; one
/// number stands for both.
struct MeasuringOptions {
  std::int64_t context = 2048;
  std::string sensitivity = "layer";
  std::string sensitivity_by = "divergence";
  std::vector<std::int32_t> sensitivity_pieces{1, 1};
  std::filesystem::path sensitivities_from;
  std::int32_t replan = 0;
  std::vector<std::int32_t> replan_pieces;  ///< none: `sensitivity_pieces`
  std::string replan_by = "layer";
  std::int32_t refine = 0;
  std::vector<std::int32_t> refine_pieces{2, 1};
  std::int32_t refine_trials = headaware::RefineOptions{}.most_trials;
  std::vector<double> refine_steps = headaware::RefineOptions{}.steps;
  std::vector<std::int32_t> pieces;  ///< of text, of the probe, held out of either; none: usual numbers
  std::vector<double> probe_weights{0.3};
  std::optional<double> score_weight;
  std::int32_t fixed_pairs = 2;

  /// @param plan  option that all of them need
  void add_to(CLI::App& app, CLI::Option* plan) {
    add_context(app, context, "tokens of the sequences that the plan is for")->needs(plan);
    add_choice(app, "--sensitivity", sensitivity, "what is cut alone to see what it costs", {"none", "layer", "head"})
        ->needs(plan);
    add_piece_counts(app, "--sensitivity_pieces", sensitivity_pieces,
                     "over which the cost of a cut is measured: each is a run per layer (head)", plan);
    add_choice(app, "--sensitivity_by", sensitivity_by,
               "the cost of a cut: how far it moves predictions, or how much it raises the loss",
               {"divergence", "loss"})
        ->needs(plan);
    app.add_option(
           "--sensitivities_from", sensitivities_from,
           "folder of another --plan of the model, at a shorter --context, say: costs of cuts are taken from there")
        ->check(CLI::ExistingDirectory)
        ->needs(plan);
    auto* const again =
        app.add_option("--replan", replan,
                       "times that the costs of layers are measured again at the best plan so far, everything cut at "
                       "once, and plans made of them tried too: each a run per layer (head), and one, for each of "
                       "--replan_pieces")
            ->capture_default_str()
            ->check(non_negative)
            ->needs(plan);
    add_piece_counts(app, "--replan_pieces", replan_pieces,
                     "that --replan measures on, 0: these costs stay; default: those of --sensitivity_pieces", again,
                     non_negative);
    add_choice(app, "--replan_by", replan_by, "what --replan gives everything back alone to see what that gains",
               {"layer", "head"})
        ->needs(again);
    auto* const refined =
        app.add_option("--refine", refine,
                       "try the best plan on the text that it was made of with more tokens in one half of the layers "
                       "and fewer in the other, then between quarters and so on, so many levels down, and keep what "
                       "loses less; 0: not. Each trial is a run for each of --refine_pieces")
            ->capture_default_str()
            ->check(non_negative)
            ->needs(plan);
    add_piece_counts(app, "--refine_pieces", refine_pieces, "that --refine tries plans on", refined);
    app.add_option("--refine_trials", refine_trials, "most plans that --refine tries")
        ->capture_default_str()
        ->check(positive)
        ->needs(refined);
    app.add_option("--refine_steps", refine_steps,
                   "binary logarithms of how far --refine scales one half against the other, a sweep each")
        ->delimiter(',')
        ->capture_default_str()
        ->check(positive)
        ->needs(refined);
    add_pieces(app, pieces, "pieces of text, of the probe, and held out of either to try plans on; default: 4,2,2,1")
        ->delimiter(',')
        ->expected(4)
        ->needs(plan);
    add_probe_weight(app, probe_weights,
                     "of a passage followed by itself, beside natural text, which has 1. Of several, each makes a plan "
                     "to try")
        ->delimiter(',')
        ->needs(plan);
    app.add_option("--score_weight", score_weight,
                   "of what is lost of such a passage, beside what is lost of text, where plans are tried; default: "
                   "the first --probe_weight")
        ->check(non_negative)
        ->needs(plan);
    app.add_option("--fixed_pairs", fixed_pairs,
                   "of plans by bytes: so many pairs of formats are tried by themselves, in uniform windows and in a "
                   "plan, those that are predicted to lose least")
        ->capture_default_str()
        ->check(non_negative)
        ->needs(plan);
  }

 private:
  static void add_piece_counts(CLI::App& app, char const* name, std::vector<std::int32_t>& counts, char const* what,
                               CLI::Option* needed, CLI::Validator const& allowed = positive) {
    auto* const option =
        app.add_option(name, counts, std::string("pieces of text and of the probe (one number: as many) ") + what)
            ->delimiter(',')
            ->expected(1, 2)
            ->check(allowed)
            ->needs(needed);
    if (!counts.empty()) option->capture_default_str();
  }
};

}  // namespace support
