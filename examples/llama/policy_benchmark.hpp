#pragma once

// How well a model predicts text under tables of policies, side by side.

#include "llama/calibration_text.hpp"
#include "llama/loss_store.hpp"

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

/// What is run.
struct BenchmarkText {
  std::int64_t context = 2048;         ///< tokens of a passage; of a copy probe too
  std::vector<std::int64_t> passages;  ///< where they begin in the text, tokens
  std::vector<std::int64_t> copies;    ///< where the passages of context / 2 tokens begin that are given twice
};

/// One table to run, or that was run.
struct BenchmarkRun {
  std::string method;
  std::string plan{};              ///< file of the table, if any
  std::int64_t budget_tokens = 0;  ///< a KV head; 0: none asked for
  headaware::PolicyTable table;

  double mean_kept_tokens = 0;    ///< of `context`, a KV head
  std::int64_t kv_bytes_end = 0;  ///< keys and values of `context` tokens, 2 bytes an element
  std::int64_t tokens = 0;        ///< predicted, of all passages
  double perplexity = 0;
  double perplexity_second_half = 0;
  double copy_nll = 0;  ///< mean over the tokens of second copies; NaN without copy probes
};

/// @brief Fills in what the runs give. Policies are masks: equal to eviction at every step, in one pass a passage.
/// @param tokens  of the text, without BOS
/// @throws ArgumentError if a passage reaches beyond the text, support::Interrupted
void run_benchmark(LossStore& losses, std::span<std::int32_t const> tokens, BenchmarkText const& text,
                   std::vector<BenchmarkRun>& runs);

/// For a person.
[[nodiscard]] std::string benchmark_table(std::vector<BenchmarkRun> const& runs);

/// @brief Writes benchmark.json and benchmark.csv. @param about  what was run, in words @throws FileError
void write_benchmark(std::filesystem::path const& folder, std::string const& about, BenchmarkText const& text,
                     std::vector<BenchmarkRun> const& runs);

}  // namespace llama_adapter
