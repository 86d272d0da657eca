#pragma once

// Losses of runs under policies, kept on disk by what went into them: whatever ran once is not run again.

#include "llama/policy_run.hpp"
#include "support/interrupt.hpp"

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

/// One run.
struct LossJob {
  std::span<std::int32_t const> tokens;  ///< borrowed
  headaware::PolicyTable table;
};

/// Runs a model under policies, or finds that it has.
class LossStore {
 public:
  /// @param run  borrowed @param folder  made if it is not there @throws FileError
  LossStore(PolicyRun& run, std::filesystem::path folder);

  [[nodiscard]] PolicyRun& run() const { return *run_; }

  /// Tokens of the jobs that have not run; equal ones count once.
  [[nodiscard]] std::int64_t tokens_to_run(std::span<LossJob const> jobs) const;

  /// @brief `PolicyRun::losses` of each job, showing progress on stderr while any has to run.
  /// @throws support::Interrupted on Ctrl-C; runs that were whole are kept. What `PolicyRun::losses` throws
  [[nodiscard]] std::vector<std::vector<double>> losses(std::string const& what, std::span<LossJob const> jobs);

 private:
  [[nodiscard]] std::filesystem::path path_of(LossJob const& job) const;

  PolicyRun* run_;
  std::filesystem::path folder_;
  std::string model_;  ///< tells models and ways to run them apart
};

/// Mean of losses from `first` on.
[[nodiscard]] double mean_loss(std::span<double const> losses, std::int64_t first);

}  // namespace llama_adapter
