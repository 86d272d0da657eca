#pragma once

// What a plan may do, as options of a command.

#include "tools/support/validators.hpp"

#include <headaware/plan/policy_plan.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace support {

/// The options of a plan, as they are typed.
class PlanArguments {
 public:
  /// @param only_with  what they need beside them; nothing: nothing
  void add_to(CLI::App& app, CLI::Option* only_with = nullptr) {
    auto const added = [&](CLI::Option* option) {
      if (only_with != nullptr) option->needs(only_with);
      return option;
    };
    added(app.add_option("--floor", plan_.floor,
                         "tokens every KV head keeps at least; default: 32 or a quarter of the budget, at most half of "
                         "it"))
        ->check(support::non_negative);
    added(app.add_option("--page_size", plan_.page_size, "sizes are whole pages of so many tokens"))
        ->capture_default_str()
        ->check(support::positive);
    added(app.add_option("--ranks", plan_.ranks, "tensor-parallel ranks; each gets an equal share"))
        ->capture_default_str()
        ->check(support::positive);
    added(app.add_flag("--layer_shares", plan_.layer_shares, "each layer gets an equal share"));
    added(app.add_option("--skip_layers", plan_.skip_layers,
                         "layers that keep everything, beyond the budget: those with sliding windows of the model's "
                         "own, say"))
        ->check(CLI::Range(0, 1 << 20))
        ->delimiter(',');
    added(app.add_option("--negligible_output", plan_.negligible_output,
                         "prune KV heads whose squared output is at most this share of their layer's mean; 0: none"))
        ->capture_default_str()
        ->check(support::non_negative);
    added(app.add_option("--measure", measure_, "error: mass, output or output_metric; default: the last one measured"))
        ->check(CLI::IsMember({"mass", "output", "output_metric"}));
    added(app.add_option("--fold", fold_, "of the query heads of a KV head: sum or max"))
        ->capture_default_str()
        ->check(CLI::IsMember({"sum", "max"}));
  }

  /// @pre  the command line has been read
  [[nodiscard]] headaware::PlanOptions options() const {
    headaware::PlanOptions result = plan_;
    auto const& names = headaware::error_measure_names;
    auto const measure = std::find(names.begin(), names.end(), std::string_view(measure_));
    if (measure != names.end()) result.measure = static_cast<headaware::ErrorMeasure>(measure - names.begin());
    if (fold_ == "max") result.fold = headaware::GroupFold::maximum;
    std::sort(result.skip_layers.begin(), result.skip_layers.end());
    return result;
  }

 private:
  headaware::PlanOptions plan_;
  std::string measure_;
  std::string fold_ = "sum";
};

}  // namespace support
