#pragma once

// A model read through caches that really evict: what it predicts, what it holds and how long it takes, kept on disk by
// what went into it, so that whatever ran once is not run again.

#include "tools/llama/engine.hpp"
#include "tools/llama/saved_losses.hpp"
#include "tools/support/interrupt.hpp"

#include <headaware/format/table.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

struct EvictedOptions {
  std::int32_t chunk = 256;       ///< tokens read at a time, in [1, 256]
  std::int32_t threads = 1;       ///< of the engine, and of the library's attention and `compress`
  bool single_precision = false;  ///< keys and values in 4 bytes per element; else in 2, as engines hold them
};

/// One text to read.
struct EvictedJob {
  std::span<std::int32_t const> tokens;  ///< borrowed; at least two
  headaware::PolicyTable table;
  headaware::FormatTable formats{};  ///< of the same heads; empty: rows as the options say
  std::optional<KvType> engine{};    ///< the engine reads by itself into its own cache; nothing: the table's cache
  std::int64_t decode_tokens = 0;    ///< to decode greedily after it, one at a time
  headaware::RowScorer const* scorer = nullptr;  ///< of tables whose heads keep tokens by scores; borrowed
};

/// Reads texts through evicted caches, or finds that it has.
class EvictedStore {
 public:
  /// @param model  borrowed @param folder  made if it is not there @throws ArgumentError, FileError
  EvictedStore(Model const& model, EvictedOptions const& options, std::filesystem::path folder);

  [[nodiscard]] Model const& model() const { return *model_; }
  [[nodiscard]] EvictedOptions const& options() const { return options_; }
  /// Bytes of an element of keys and values.
  [[nodiscard]] std::int64_t element_bytes() const { return options_.single_precision ? 4 : 2; }

  /// @brief Runs the jobs, showing progress on stderr.
  /// @throws support::Interrupted on Ctrl-C; texts that were whole are kept. ArgumentError if a table's shape is not
  /// the
  ///         model's, FormatError on a file of an earlier run that cannot be read
  [[nodiscard]] std::vector<EvictedText> run(std::string const& what, std::span<EvictedJob const> jobs);

  /// @brief Measures how long `compress` takes to bring a full cache of `context` tokens of the model's shape, all
  /// layers in one call, into a rolling cache of a table (and of formats, if there are any): what an engine pays that
  /// prefills with its own attention. On the CPU; the best of five. @return seconds
  [[nodiscard]] double compaction_seconds(headaware::PolicyTable const& table, headaware::FormatTable const& formats,
                                          std::int64_t context) const;

 private:
  [[nodiscard]] std::filesystem::path path_of(EvictedJob const& job) const;

  Model const* model_;
  EvictedOptions options_;
  std::filesystem::path folder_;
  std::string about_;  ///< tells models and ways to run them apart
};

}  // namespace llama_adapter
