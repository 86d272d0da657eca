#pragma once

// Runs an ablation study: every configuration of some groups, at equal size, on the same text.

#include "llama/ablation_groups.hpp"
#include "tools/llama/engine.hpp"
#include "tools/llama/evaluation_text.hpp"

#include <headaware/classify/head_type.hpp>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

namespace llama_adapter {

struct AblationOptions {
  std::string model_name{};          ///< for people
  std::filesystem::path model;       ///< GGUF file, as it is to run
  std::filesystem::path text;        ///< that plans are made of
  std::filesystem::path eval_text;   ///< that they are tried on; empty: the last quarter of `text`
  std::filesystem::path other_text;  ///< of another kind: its first three quarters and its last; empty: none
  std::filesystem::path output_dir;
  std::vector<std::string> groups{"all"};
  std::string budget = "25%";
  std::int64_t context = 512;
  std::int64_t max_tokens = 2000;                                ///< of each evaluation text
  std::int32_t pieces = 4;                                       ///< of calibration text
  AblationSensitivity sensitivity = AblationSensitivity::layer;  ///< of the usual plan
  std::int32_t threads = 1;
};

/// Of copying beside log perplexity, in scores: as plans weigh the probe.
inline constexpr double ablation_copy_weight = 0.3;

/// One configuration, tried.
struct AblationResult {
  static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

  std::string group;
  std::string name;
  AblationSetup setup;
  std::string left_out{};  ///< why there is no such table; then nothing was run
  double mean_kept_tokens = unknown;
  double kv_share = unknown;  ///< bytes held, of the full cache's in 16 bits
  double perplexity = unknown;
  double perplexity_second_half = unknown;
  double copy_nll = unknown;     ///< nats per token of second copies
  double seconds = 0;            ///< spent on it in this run; 0: an earlier one, or an equal configuration, had run
  std::vector<double> losses{};  ///< of second halves, token by token
  std::vector<double> copy_losses{};

  [[nodiscard]] bool ran() const { return left_out.empty(); }
  /// log perplexity of second halves, and copying at the weight of the probe: less is better.
  [[nodiscard]] double score() const;
};

struct AblationStudy {
  headaware::ModelShape shape;
  AblationOptions options;
  std::int64_t budget_tokens = 0;  ///< a KV head
  EvaluationPlace place{};
  std::vector<AblationGroup> groups{};  ///< references first
  std::vector<AblationResult> results{};
  std::vector<headaware::HeadClassification> classes{};  ///< of query heads, where a configuration needs them
  std::int64_t tokens_run = 0;                           ///< in this run: 0 where all was known
  double seconds = 0;
};

/// Places in a text of `length` tokens that the evaluation reads: as many passages and copies as `max_tokens` of it
/// allow.
/// @throws ArgumentError if that is not one of each
[[nodiscard]] EvaluationPlace ablation_place(std::int64_t length, std::int64_t context, std::int64_t max_tokens,
                                             std::string const& where);

/// Sizes that the groups of these options depend on, known before anything runs. @throws ArgumentError on a bad budget
[[nodiscard]] AblationScale ablation_scale(AblationOptions const& options, headaware::ModelShape const& shape);

/// @brief Calibrates, plans and tries. Says on stderr how long it will take, and how far it is.
/// @throws support::Interrupted on Ctrl-C; what was run is kept, running it again goes on. ArgumentError, FileError
[[nodiscard]] AblationStudy run_ablation(AblationOptions const& options);

/// Advantage of a over b on the same tokens, and its standard error. @pre both ran
struct AblationDifference {
  double score = 0;  ///< of b less that of a
  double error = 0;
};
[[nodiscard]] AblationDifference difference(AblationResult const& a, AblationResult const& b);

}  // namespace llama_adapter
