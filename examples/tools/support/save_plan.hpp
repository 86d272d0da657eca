#pragma once

// The files of a plan.

#include <headaware/io/plan.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/scored_heads.hpp>

#include <cstdint>
#include <filesystem>

namespace support {

/// Whether classifications of heads can say what a plan says: they know neither scored slots nor formats.
inline bool has_classes(headaware::PolicyPlan const& plan) {
  if (headaware::has_scored_heads(plan.table)) return false;
  for (std::int32_t layer = 0; layer < plan.num_layers; ++layer) {
    for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv) {
      if (!headaware::has_sixteen_bits(plan.formats_of(layer, kv))) return false;
    }
  }
  return true;
}

/// @brief Writes plan.json, after plan_classifications.json where classes say the same; where they do not, an earlier
/// plan's are removed.
/// @throws headaware::FileError
inline void save_plan_files(std::filesystem::path const& folder, headaware::PolicyPlan const& plan) {
  std::filesystem::path const classes = folder / "plan_classifications.json";
  if (has_classes(plan)) {
    headaware::save_plan_classifications(classes, plan);
  } else {
    std::filesystem::remove(classes);
  }
  headaware::save_plan(folder / "plan.json", plan);
}

}  // namespace support
