#pragma once

// Compares tables of policies: how well a model predicts text under them, what its cache holds and how fast it is.

#include "llama/evicted_run.hpp"
#include "llama/passage_spread.hpp"
#include "tools/llama/evaluation_text.hpp"
#include "tools/llama/loss_store.hpp"

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

/// The text that runs read.
struct BenchmarkText {
  EvaluationPlace place{};
  std::int64_t decode_tokens = 64;  ///< after the first passage, where caches really evict
};

/// One table to run, or that was run. NaN and nothing: not measured.
struct BenchmarkRun {
  static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

  std::string method;
  std::string plan{};              ///< file of the table, if any
  std::int64_t budget_tokens = 0;  ///< a KV head; 0: none asked for
  headaware::PolicyTable table;
  headaware::FormatTable formats{};  ///< of the same heads; empty: 16 bits
  std::optional<KvType> engine{};    ///< the engine by itself, all tokens in its own cache; nothing: the table
  std::shared_ptr<headaware::RowScorer const> scorer{};  ///< of tables whose heads keep tokens by scores

  double mean_kept_tokens = 0;                    ///< per KV head, after `context` tokens
  std::int64_t tokens = 0;                        ///< predicted, of all passages
  double perplexity = unknown;                    ///< of all passages
  double perplexity_second_half = unknown;        ///< of tokens after the first half of their passage
  double copy_nll = unknown;                      ///< nats per token, mean over the tokens of second copies
  std::vector<double> passage_nll{};              ///< mean over the second half of each passage, nats per token
  std::vector<double> copy_nlls{};                ///< mean over each second copy
  double perplexity_second_half_error = unknown;  ///< standard error over passages
  double copy_nll_error = unknown;                ///< likewise over copies
  GapClosed closed{};                             ///< of the gap in NLL that uniform windows of this size leave
  std::int64_t kv_bytes_end = 0;  ///< of the keys and values kept after `context` tokens; where they have no formats,
                                  ///< as if they had 16 bits, whatever the cache holds
  std::int64_t record_bytes_end = 0;  ///< of scores and records, where heads keep tokens by scores; plans by bytes
                                      ///< count them, and `kv_bytes_end` does too there
  double kv_share = unknown;          ///< of the bytes of the full cache in 16 bits

  // Measured where caches really evict.
  std::optional<std::int64_t> kv_bytes_peak{};  ///< most that the cache allocated: its blocks, with room for `context`
                                                ///< and the tokens decoded in heads that keep everything
  double prefill_tokens_per_s =
      unknown;                           ///< of all passages and copies, read in chunks, logits of every token included
  double decode_tokens_per_s = unknown;  ///< of the tokens decoded one at a time after the first passage
  double time_to_first_token_s = unknown;  ///< reading the first passage and choosing the token after it
  double compaction_s = unknown;           ///< `EvictedStore::compaction_seconds`
};

/// @brief Fills in what the runs give. Policies are masks: equal to eviction at every step, in one pass per passage.
/// @param tokens  of the text, without BOS
/// @throws ArgumentError if a passage reaches beyond the text, support::Interrupted
void run_benchmark(LossStore& losses, std::span<std::int32_t const> tokens, BenchmarkText const& text,
                   std::vector<BenchmarkRun>& runs);

/// The same with caches that really evict.
void run_benchmark(EvictedStore& evicted, std::span<std::int32_t const> tokens, BenchmarkText const& text,
                   std::vector<BenchmarkRun>& runs);

/// @brief Fills in `closed` of every run that has a full cache and StreamingLLM's windows of its size beside it.
void measure_gaps(std::vector<BenchmarkRun>& runs);

/// @brief Finds StreamingLLM's windows, in 16 bits, of the bytes of `run` (to 1 % and a token); nullptr if there are
/// none.
[[nodiscard]] BenchmarkRun const* uniform_beside(std::vector<BenchmarkRun> const& runs, BenchmarkRun const& run);

/// Origin and options of the runs.
struct BenchmarkAbout {
  std::string model;
  std::string text;
  bool masked = false;
  bool exact = false;              ///< weights in single precision
  std::int64_t element_bytes = 2;  ///< of keys and values
  std::int32_t chunk = 256;        ///< tokens read at a time, where caches evict
  std::int32_t threads = 1;

  [[nodiscard]] std::string title() const { return model + " over " + text; }
};

/// For a person.
[[nodiscard]] std::string benchmark_table(std::vector<BenchmarkRun> const& runs);

/// @brief Writes benchmark.json, benchmark.csv and the folder pictures: perplexity and copying over the bytes held, a
/// line per method. @throws FileError
void write_benchmark(std::filesystem::path const& folder, BenchmarkAbout const& about, BenchmarkText const& text,
                     std::vector<BenchmarkRun> const& runs);

}  // namespace llama_adapter
