#include "llama/ablation_groups.hpp"

#include "tools/llama/short_number.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Makes the variants of one group, from one setup each.
class Variants {
 public:
  explicit Variants(AblationSetup base) : base_(std::move(base)) {}

  template <class Change>
  Variants& add(std::string name, Change const& change) {
    AblationSetup setup = base_;
    change(setup);
    variants_.push_back({std::move(name), setup});
    return *this;
  }
  [[nodiscard]] std::vector<AblationVariant> take() { return std::move(variants_); }

 private:
  AblationSetup base_;
  std::vector<AblationVariant> variants_;
};

AblationSetup planned(AblationScale const& scale) {
  AblationSetup setup;
  setup.calibration.pieces = scale.pieces;
  setup.sensitivity = scale.sensitivity;
  return setup;
}

AblationSetup uniform(AblationScale const& scale) {
  AblationSetup setup = planned(scale);
  setup.method = AblationMethod::uniform;
  return setup;
}

std::vector<AblationVariant> window_sizes(AblationScale const& scale) {
  Variants variants(uniform(scale));
  for (double const share : {0.25, 0.5, 1.0, 2.0}) {
    auto const tokens = static_cast<std::int64_t>(share * static_cast<double>(scale.budget_tokens));
    if (tokens <= 4 || tokens >= scale.context) continue;
    variants.add("window_" + std::to_string(tokens - 4), [&](AblationSetup& s) { s.size_share = share; });
  }
  return variants.take();
}

std::vector<AblationVariant> sink_sizes(AblationScale const& scale) {
  Variants variants(uniform(scale));
  for (std::int32_t const sink : {0, 1, 2, 4, 8, 16, 64}) {
    if (sink >= scale.budget_tokens) continue;
    variants.add("sinks_" + std::to_string(sink), [&](AblationSetup& s) { s.sink = sink; });
  }
  return variants.take();
}

/// Rules have sizes of their own, so that the others are tried at each of them.
std::vector<AblationVariant> methods(AblationScale const& scale) {
  Variants variants(planned(scale));
  auto const both = [&](std::string const& suffix, AblationSize size) {
    variants.add("uniform" + suffix, [&](AblationSetup& s) {
      s.method = AblationMethod::uniform;
      s.size = size;
    });
    variants.add("planned" + suffix, [&](AblationSetup& s) { s.size = size; });
  };
  both("", AblationSize::budget);
  for (bool const aggressive : {false, true}) {
    auto const size = aggressive ? AblationSize::aggressive_rules : AblationSize::conservative_rules;
    std::string const name = aggressive ? "aggressive_rules" : "conservative_rules";
    variants.add(name, [&](AblationSetup& s) {
      s.method = AblationMethod::rules;
      s.size = size;
      s.aggressive = aggressive;
    });
    both("_as_" + name, size);
  }
  return variants.take();
}

std::vector<AblationVariant> measures(AblationScale const& scale) {
  Variants variants(planned(scale));
  std::vector<AblationSensitivity> tried{scale.sensitivity};
  if (scale.sensitivity != AblationSensitivity::none) tried.push_back(AblationSensitivity::none);
  for (auto const sensitivity : tried) {
    for (auto const measure : {ha::ErrorMeasure::mass, ha::ErrorMeasure::output, ha::ErrorMeasure::output_metric}) {
      std::string const alone = sensitivity != scale.sensitivity ? "_alone" : "";
      variants.add(std::string(ha::to_string(measure)) + alone, [&](AblationSetup& s) {
        s.measure = measure;
        s.sensitivity = sensitivity;
      });
    }
  }
  return variants.take();
}

std::vector<AblationVariant> sensitivities(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (std::size_t i = 0; i < ablation_sensitivity_names.size(); ++i) {
    variants.add(std::string(ablation_sensitivity_names[i]),
                 [&](AblationSetup& s) { s.sensitivity = static_cast<AblationSensitivity>(i); });
  }
  return variants.take();
}

std::vector<AblationVariant> probe_weights(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (double const weight : {0.0, 0.1, 0.3, 0.5, 1.0}) {
    variants.add("probe_" + short_number(weight), [&](AblationSetup& s) { s.probe_weight = weight; });
  }
  return variants.take();
}

std::vector<AblationVariant> floors(AblationScale const& scale) {
  Variants variants(planned(scale));
  std::vector<std::int64_t> sizes{0, 16, 32, scale.budget_tokens / 2, scale.budget_tokens * 3 / 4};
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  for (std::int64_t const floor : sizes) {
    if (floor >= scale.budget_tokens) continue;
    variants.add("floor_" + std::to_string(floor), [&](AblationSetup& s) { s.floor = floor; });
  }
  variants.add("default", [](AblationSetup&) {});
  return variants.take();
}

std::vector<AblationVariant> folds(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (std::size_t i = 0; i < ablation_fold_names.size(); ++i) {
    variants.add(std::string(ablation_fold_names[i]), [&](AblationSetup& s) { s.fold = static_cast<AblationFold>(i); });
  }
  return variants.take();
}

std::vector<AblationVariant> candidate_sinks(AblationScale const& scale) {
  Variants variants(planned(scale));
  variants.add("all_measured", [](AblationSetup&) {});
  using Sinks = std::vector<std::int32_t>;
  for (Sinks const& sinks : {Sinks{0}, Sinks{4}, Sinks{0, 4}, Sinks{0, 1, 4, 16}, Sinks{4, 64}}) {
    std::string name = "sinks";
    for (std::int32_t const sink : sinks) name += "_" + std::to_string(sink);
    variants.add(name, [&](AblationSetup& s) { s.candidate_sinks = sinks; });
  }
  return variants.take();
}

std::vector<AblationVariant> lengths(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (std::int32_t pieces = 1; pieces <= 2 * scale.pieces; pieces *= 2) {
    variants.add("pieces_" + std::to_string(pieces), [&](AblationSetup& s) { s.calibration.pieces = pieces; });
  }
  if (scale.pieces >= 2) {
    variants.add("sensitivity_pieces_2", [&](AblationSetup& s) {
      s.calibration.sensitivity_pieces = 2;
      s.calibration.pieces = std::max(4, scale.pieces);
    });
  }
  // Shorter pieces than these hold no context.
  if (scale.context >= 512) {
    variants.add("pieces_of_half_the_context", [&](AblationSetup& s) {
      s.calibration.pieces = 2 * scale.pieces;
      s.calibration.piece_tokens = scale.context / 2;
    });
  }
  return variants.take();
}

std::vector<AblationVariant> domains(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (bool const other : {false, true}) {
    std::string const suffix = other ? "_on_other" : "_on_own";
    variants.add("full" + suffix, [&](AblationSetup& s) {
      s.method = AblationMethod::full;
      s.on_other_text = other;
    });
    variants.add("uniform" + suffix, [&](AblationSetup& s) {
      s.method = AblationMethod::uniform;
      s.on_other_text = other;
    });
    for (std::size_t i = 0; i < ablation_domain_names.size(); ++i) {
      variants.add("plan_of_" + std::string(ablation_domain_names[i]) + suffix, [&](AblationSetup& s) {
        s.calibration.domain = static_cast<AblationDomain>(i);
        s.on_other_text = other;
      });
    }
  }
  return variants.take();
}

std::vector<AblationVariant> positions(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (auto const method : {AblationMethod::uniform, AblationMethod::planned}) {
    for (bool const cache : {false, true}) {
      std::string const name(ablation_method_names[static_cast<std::size_t>(method)]);
      variants.add(name + (cache ? "_cache_positions" : "_text_positions"), [&](AblationSetup& s) {
        s.method = method;
        s.positions = cache ? KeyPositions::cache : KeyPositions::text;
      });
    }
  }
  return variants.take();
}

std::vector<AblationVariant> skipped_layers(AblationScale const& scale) {
  Variants variants(planned(scale));
  struct Ends {
    std::int32_t first;
    std::int32_t last;
  };
  for (auto const method : {AblationMethod::uniform, AblationMethod::planned}) {
    for (Ends const ends : {Ends{0, 0}, Ends{1, 0}, Ends{2, 0}, Ends{0, 1}, Ends{0, 2}, Ends{1, 1}}) {
      if (ends.first + ends.last >= scale.layers) continue;
      std::string name(ablation_method_names[static_cast<std::size_t>(method)]);
      name += "_full_first_" + std::to_string(ends.first) + "_last_" + std::to_string(ends.last);
      variants.add(name, [&](AblationSetup& s) {
        s.method = method;
        s.full_first = ends.first;
        s.full_last = ends.last;
      });
    }
  }
  return variants.take();
}

std::vector<AblationVariant> blends(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (double const share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    variants.add("plan_share_" + short_number(share), [&](AblationSetup& s) { s.plan_share = share; });
  }
  return variants.take();
}

std::vector<AblationVariant> replans(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (double const step : {0.0, 0.25, 0.5, 1.0}) {
    variants.add("step_" + short_number(step), [&](AblationSetup& s) { s.replan_step = step; });
  }
  return variants.take();
}

std::vector<AblationVariant> refinements(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (std::int32_t const levels : {0, 2, 4}) {
    variants.add("levels_" + std::to_string(levels), [&](AblationSetup& s) { s.refine_levels = levels; });
  }
  return variants.take();
}

/// Names of a pair's variants: "plan_packed5/packed4", "uniform_packed5/packed4".
std::vector<AblationVariant> formats(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (bool const uniform : {true, false}) {
    for (char const* const pair :
         {"", "int8/int8", "packed6/packed6", "packed6/packed5", "packed5/packed4", "packed4/packed4"}) {
      std::string const name = std::string(uniform ? "uniform_" : "plan_") + (*pair == 0 ? "16" : pair);
      variants.add(name, [&](AblationSetup& s) {
        if (uniform) s.method = AblationMethod::uniform;
        s.precision.formats = pair;
      });
    }
  }
  variants.add("plan_of_any", [](AblationSetup& s) { s.precision.formats = "measured"; });
  return variants.take();
}

std::vector<AblationVariant> format_rotations(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (char const* const pair : {"packed6/packed6", "packed5/packed4", "packed4/packed4"}) {
    for (bool const rotated : {true, false}) {
      variants.add(pair + std::string(rotated ? "" : "_not_rotated"), [&](AblationSetup& s) {
        s.precision.formats = pair;
        s.precision.rotated = rotated;
      });
    }
  }
  return variants.take();
}

std::vector<AblationVariant> exact_rings(AblationScale const& scale) {
  Variants variants(planned(scale));
  for (char const* const pair : {"packed6/packed5", "packed5/packed4", "packed4/packed4"}) {
    for (std::int32_t const exact : {0, 16, 32}) {
      if (4 * exact > scale.budget_tokens) continue;
      variants.add(pair + std::string("_exact_") + std::to_string(exact), [&](AblationSetup& s) {
        s.precision.formats = pair;
        s.precision.exact = exact;
      });
    }
  }
  return variants.take();
}

}  // namespace

AblationGroup reference_group(AblationScale const& scale) {
  Variants variants(planned(scale));
  variants.add("full", [](AblationSetup& s) { s.method = AblationMethod::full; });
  variants.add("uniform", [](AblationSetup& s) { s.method = AblationMethod::uniform; });
  variants.add("planned", [](AblationSetup&) {});
  return {"reference", "everything kept, uniform windows of the budget, and the usual plan", variants.take()};
}

std::vector<AblationGroup> ablation_groups(AblationScale const& scale) {
  std::vector<AblationGroup> groups{
      {"window_size", "size of uniform windows after 4 sinks, tokens", window_sizes(scale)},
      {"sink_size", "sinks of uniform windows, tokens of an equal budget", sink_sizes(scale)},
      {"method", "uniform windows, rules of the six head types, plan, each at the sizes of the rules too",
       methods(scale)},
      {"measure", "the error that is planned by, with the usual sensitivities and alone", measures(scale)},
      {"sensitivity", "what makes errors of layers comparable", sensitivities(scale)},
      {"probe_weight", "weight of the probe beside natural text", probe_weights(scale)},
      {"floor", "tokens that every head keeps at least", floors(scale)},
      {"fold", "how query heads share a KV head", folds(scale)},
      {"candidate_sinks", "sinks that the planner may give a head", candidate_sinks(scale)},
      {"calibration_length", "pieces of calibration text, their length, and pieces over which losses are measured",
       lengths(scale)}};
  if (scale.other_text) {
    groups.push_back(
        {"calibration_domain", "text that the plan is made of, and text that it is tried on", domains(scale)});
  }
  groups.push_back({"re_rotation", "positions of kept keys: those of the text, or of their slots in the cache",
                    positions(scale), true});
  groups.push_back(
      {"skip_layers", "first and last layers that keep everything, the others less", skipped_layers(scale), true});
  groups.push_back({"blend", "share of the plan in a blend with uniform windows", blends(scale)});
  groups.push_back({"replan", "how far costs of layers go to those measured again at the plan", replans(scale)});
  groups.push_back(
      {"refine", "levels of cuts between which plans are refined, tried on calibration text", refinements(scale)});
  groups.push_back(
      {"formats", "formats of keys and values, as many tokens as the bytes hold: one pair for all heads, or any a head",
       formats(scale), true});
  groups.push_back({"format_rotation", "whether rows of codes are rotated", format_rotations(scale)});
  groups.push_back({"exact_ring",
                    "newest tokens that stay in 16 bits beside 4 sinks and their codes, of the same bytes",
                    exact_rings(scale)});
  return groups;
}

std::vector<AblationGroup> choose_groups(std::vector<AblationGroup> const& groups, std::span<std::string const> names) {
  if (std::find(names.begin(), names.end(), "all") != names.end()) return groups;
  std::string known = "all";
  for (auto const& group : groups) known += ", " + group.name;
  for (std::string const& name : names) {
    bool const found = std::any_of(groups.begin(), groups.end(), [&](auto const& group) { return group.name == name; });
    ha::require(found, "group of the ablation study", {"one of ", known}, name, "--ablation");
  }
  ha::require(!names.empty(), "groups of the ablation study", {"some of ", known}, "none", "--ablation");
  std::vector<AblationGroup> chosen;
  for (auto const& group : groups) {
    if (std::find(names.begin(), names.end(), group.name) != names.end()) chosen.push_back(group);
  }
  return chosen;
}

std::string groups_list(std::vector<AblationGroup> const& groups) {
  std::string text;
  for (auto const& group : groups) {
    text += group.name + ": " + group.varies + "\n";
    for (auto const& variant : group.variants) text += "  " + group.name + "/" + variant.name + "\n";
  }
  return text;
}

bool AblationGroup::comparable(AblationSetup const& a, AblationSetup const& b) const {
  auto const full = [](AblationSetup const& s) { return s.method == AblationMethod::full; };
  return full(a) == full(b) && (!by_method || a.method == b.method) && a.size == b.size &&
         a.size_share == b.size_share && a.on_other_text == b.on_other_text;
}

}  // namespace llama_adapter
