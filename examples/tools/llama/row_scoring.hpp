#pragma once

// Scores of the rows that a model brings, for caches whose heads keep tokens by them.

#include "tools/llama/engine.hpp"
#include "tools/llama/key_rotations.hpp"

#include <headaware/cache/rotation.hpp>
#include <headaware/classify/builders.hpp>
#include <headaware/error.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/policy/scored_heads.hpp>
#include <headaware/policy/table.hpp>

#include <vector>

namespace llama_adapter {

/// What scores of a model's rows are made with.
struct RowScoring {
  headaware::RowScorer const* scorer = nullptr;     ///< borrowed; nullptr: no head needs scores
  std::vector<headaware::KeyRotation> rotations{};  ///< [layers]

  /// @brief For a cache of a table. @param scorer  borrowed; may be nullptr where no head needs scores
  /// @throws ArgumentError if a head does and there is none; Error as `key_rotations`
  [[nodiscard]] static RowScoring of(Model const& model, headaware::PolicyTable const& table,
                                     headaware::RowScorer const* scorer) {
    namespace ha = headaware;
    if (!ha::has_scored_heads(ha::within_layers(table, model.shape()))) return {};
    ha::require(scorer != nullptr, "scores", "some, as heads of the policies keep tokens by scores (--scores FOLDER)",
                "none", "CachedModel");
    return {scorer, key_rotations(model)};
  }
};

}  // namespace llama_adapter
