#pragma once

// Losses of runs under policies, and how far cuts move a model's predictions, kept on disk by what went into them:
// whatever ran once is not run again.

#include "tools/llama/policy_run.hpp"
#include "tools/llama/rounded_kv.hpp"
#include "tools/support/interrupt.hpp"

#include <headaware/format/table.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <filesystem>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

class ReferencePredictions;

/// A model by its size and samples of its bytes: reading all of them would take longer than some runs.
[[nodiscard]] std::string identity_of(Model const& model);

/// Text that tells tables of policies apart.
/// @throws ArgumentError on policies without sinks, window and scored tokens
[[nodiscard]] std::string text_of(headaware::PolicyTable const& table);

/// The same of tables of formats.
[[nodiscard]] std::string text_of(headaware::FormatTable const& formats);

/// The same of all that is rounded; empty: nothing.
[[nodiscard]] std::string text_of(Rounding const& rounding);

/// One run.
struct LossJob {
  std::span<std::int32_t const> tokens;  ///< borrowed
  headaware::PolicyTable table;
  Rounding rounding{};  ///< formats of the same heads
};

/// Runs a model under policies, or finds that it has.
class LossStore {
 public:
  /// @param run  borrowed @param folder  made if it is not there @throws FileError
  LossStore(PolicyRun& run, std::filesystem::path folder);
  ~LossStore();
  LossStore(LossStore const&) = delete;
  LossStore& operator=(LossStore const&) = delete;

  [[nodiscard]] PolicyRun& run() const { return *run_; }

  /// Tokens of the jobs that have not run; equal ones count once. @param divergences  not losses but these, from there
  /// on (the runs with everything kept that they are told from not counted)
  [[nodiscard]] std::int64_t tokens_to_run(std::span<LossJob const> jobs,
                                           std::optional<std::int64_t> divergences = {}) const;

  /// @brief `PolicyRun::losses` of each job, showing progress on stderr while any has to run.
  /// @throws support::Interrupted on Ctrl-C; runs that were whole are kept. What `PolicyRun::losses` throws
  [[nodiscard]] std::vector<std::vector<double>> losses(std::string const& what, std::span<LossJob const> jobs);

  /// @brief The losses through caches of half precision (or of the jobs' formats) that really evict, of tables whose
  /// heads keep tokens by scores, too, which no mask can say; likewise kept on disk. Rounding but formats is not
  /// heeded.
  /// @param threads  of the engine
  /// @throws as `losses`, and as `CachedModel`
  [[nodiscard]] std::vector<std::vector<double>> evicted_losses(std::string const& what, std::span<LossJob const> jobs,
                                                                headaware::RowScorer const& scorer,
                                                                std::int32_t threads);

  /// @brief KL of the predictions with everything kept to those of each job, a token, from token `first` on; likewise
  /// kept on disk. The runs with everything kept of the last few texts stay in memory; jobs over more texts than that
  /// should be in their order.
  /// @throws as `losses`
  [[nodiscard]] std::vector<std::vector<double>> divergences(std::string const& what, std::span<LossJob const> jobs,
                                                             std::int64_t first);

 private:
  [[nodiscard]] std::filesystem::path path_of(LossJob const& job, std::string const& kind) const;
  template <class Run>
  [[nodiscard]] std::vector<std::vector<double>> run_missing(std::string const& what, std::span<LossJob const> jobs,
                                                             std::string const& kind, std::int64_t first,
                                                             Run const& run);

  /// Of a text: found, or made in the place of the oldest ones.
  ReferencePredictions const& reference(std::span<std::int32_t const> tokens, std::int64_t first,
                                        PolicyRun::LayerDone const& layer_done);

  /// Predictions with everything kept, the latest first.
  struct Reference {
    std::vector<std::int32_t> tokens;
    std::int64_t first;
    std::unique_ptr<ReferencePredictions> predictions;
  };

  PolicyRun* run_;
  std::filesystem::path folder_;
  std::list<Reference> references_;
  std::string model_;  ///< tells models and ways to run them apart
};

/// Mean of losses; NaN of none.
[[nodiscard]] double mean_loss(std::span<double const> losses);
/// Mean of losses from `first` on.
[[nodiscard]] double mean_loss(std::span<double const> losses, std::int64_t first);

}  // namespace llama_adapter
