#pragma once

// The scores that a plan's caches take.

#include "tools/support/plan_file.hpp"

#include <headaware/error.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/policy/scored_heads.hpp>
#include <headaware/policy/table.hpp>

#include <filesystem>
#include <memory>

namespace support {

/// @brief Finds the scores of policies from a file: those of `--scores`, else those that lie beside the file.
/// @param policies  the file; empty: none
/// @param folder    of scores.json; empty: not given
/// @return nothing where no head keeps tokens by scores
/// @throws ArgumentError if a head does and there are none, or others than the plan was made with; FormatError,
/// FileError
inline std::shared_ptr<headaware::RowScorer const> scores_of(std::filesystem::path const& policies,
                                                             headaware::PolicyTable const& table,
                                                             std::filesystem::path const& folder) {
  namespace ha = headaware;
  if (!ha::has_scored_heads(table)) return nullptr;
  auto const from = folder.empty() ? policies.parent_path() : folder;
  if (!std::filesystem::exists(from / "scores.json")) {
    throw ha::ArgumentError(
        {"scores of " + policies.filename().string() + ", whose heads keep tokens by scores",
         "a folder with scores.json (analyze_attention --scores makes one): --scores FOLDER, or the "
         "plan's own",
         "none", from.string()});
  }
  auto scorer = std::make_shared<ha::RowScorer>(ha::load_row_scorer(from));
  if (!policies.empty() && is_plan(policies)) {
    std::string const made_with = ha::load_plan(policies).scores;
    ha::require(made_with.empty() || made_with == scorer->saved.weight_hash, "scores of the plan",
                {"those that it was made with, of the hash ", made_with}, scorer->saved.weight_hash, from.string());
  }
  return scorer;
}

}  // namespace support
