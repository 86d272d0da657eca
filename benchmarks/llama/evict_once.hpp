#pragma once

// A text's cache compressed once: a model reads a prefix with everything kept, keeps some tokens of every KV head, and
// reads on with nothing evicted. What it then predicts, copies and finds, method beside method at equal size.

#include "llama/passage_spread.hpp"
#include "tools/llama/engine.hpp"

#include <headaware/io/row_scorer.hpp>
#include <headaware/policy/table.hpp>

#include <array>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama_adapter {

inline constexpr std::array<char const*, 10> once_methods{
    "full",  "streaming_llm",  "planned", "snapkv",         "h2o",
    "kvzip", "budget_windows", "learned", "learned_shared", "expected_attention"};
/// Whether a method needs the scores that a calibration has written.
[[nodiscard]] bool needs_scores(std::string const& method);

struct OnceOptions {
  std::int64_t prefix = 1024;        ///< tokens that are read with everything kept
  std::int64_t continuation = 1024;  ///< tokens that are read after them
  std::int32_t threads = 1;          ///< of the engine and of the library
  bool single_precision = false;     ///< keys and values in 4 bytes per element; else in 2, as engines hold them
  headaware::RowScorer const* scorer = nullptr;  ///< borrowed, of methods that need scores
};

/// What a piece of text tells.
enum class OnceKind : std::uint8_t { passage, copy, lookup };

/// A prefix and what is read after it.
struct OncePiece {
  OnceKind kind = OnceKind::passage;
  std::vector<std::int32_t> prefix{};
  std::vector<std::int32_t> continuation{};
  /// Predictions that count: p is that of token p + 1 of the continuation.
  std::vector<std::int64_t> counted{};
};

/// Where the pieces are, and how many.
struct OncePlace {
  std::vector<std::int64_t> passages{};  ///< where they begin, tokens of the text
  std::vector<std::int64_t> copies{};    ///< likewise, of passages that are a prefix and what is read after it
  std::int64_t lookups = 4;              ///< lists of words with numbers
  std::int64_t questions = 10;           ///< after each list
};

/// @throws ArgumentError if a piece reaches beyond the text, or lists have no room
[[nodiscard]] std::vector<OncePiece> once_pieces(Model const& model, std::span<std::int32_t const> tokens,
                                                 OnceOptions const& options, OncePlace const& place);

/// @brief Writes evict_once_pieces.json: kinds, tokens, and predictions that count, for other programs to read the same
/// (benchmarks/peers/kvpress_once.py). @throws FileError
void write_pieces(std::filesystem::path const& folder, std::span<OncePiece const> pieces);

/// Losses of a piece that was read, and costs.
struct OnceText {
  std::vector<double> losses;       ///< −log p(token i + 1 of the continuation | what was kept, its tokens 0 … i)
  std::vector<std::int32_t> right;  ///< whether that token was the likeliest one: 0 or 1
  double mean_kept = 0;             ///< tokens of the prefix per KV head
  double select_seconds = 0;        ///< of `select_tokens`; 0 where there are no scores
  double compress_seconds = 0;      ///< of `compress`

  friend bool operator==(OnceText const&, OnceText const&) = default;
};

/// A measurement of an earlier run from its JSON. @param count  losses that it must have @throws FormatError
[[nodiscard]] OnceText parse_once_text(std::string_view text, std::string const& source, std::int64_t count);

/// A method at a size, to run or that was run. NaN: not measured.
struct OnceRun {
  static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

  std::string method;
  std::string plan{};                   ///< file of the windows, if any
  std::int64_t size = 0;                ///< tokens of the prefix per KV head; 0: all
  headaware::PolicyTable table;         ///< of methods of windows
  std::vector<std::int32_t> budgets{};  ///< [KV heads of all layers] tokens, of methods that have them by head

  double mean_kept = unknown;
  double perplexity = unknown;  ///< of continuations
  double perplexity_error = unknown;
  double copy_nll = unknown;  ///< nats per token of copies
  double copy_nll_error = unknown;
  double lookup = unknown;  ///< share of digits that were the likeliest token
  double lookup_error = unknown;
  GapClosed closed{};  ///< of the gap in NLL of continuations that streaming_llm of this size leaves
  std::vector<double> passage_nll{};
  std::vector<double> copy_nlls{};
  std::vector<double> lookups{};
  double select_seconds = unknown;  ///< means over pieces
  double compress_seconds = unknown;
};

/// @brief The methods at each size. A plan's windows are scaled to it.
/// @param plans    of "planned" @param options  prefix, and scores of methods that need them @throws ArgumentError on
/// plans of other models, sizes that are not positive, or methods
///               that are not known; FormatError, FileError as loaders of plans
[[nodiscard]] std::vector<OnceRun> once_runs(std::vector<std::string> const& methods,
                                             std::vector<std::int64_t> const& sizes,
                                             std::vector<std::filesystem::path> const& plans,
                                             headaware::ModelShape const& shape, OnceOptions const& options);

/// Windows in the proportions of a table's, `size` tokens of a KV head of `length` on average. Sinks stay.
/// @throws ArgumentError on policies that are no windows, or sinks of more than that
[[nodiscard]] headaware::PolicyTable scaled_windows(headaware::PolicyTable const& table, std::int64_t size,
                                                    std::int64_t length);

/// Seconds of reading a prefix and of scoring it. NaN: not measured.
struct OnceCost {
  double prefill_seconds = OnceRun::unknown;       ///< the engine by itself, its own attention, best of two
  double last_queries_seconds = OnceRun::unknown;  ///< `score_keys` of the last queries, all layers, best of three
  double all_queries_seconds = OnceRun::unknown;   ///< of all queries, once
  double learned_seconds = OnceRun::unknown;       ///< `score_rows`, best of three, where there are scores
};

/// @brief Runs the methods over the pieces and fills in what they give; each job is kept in a file of the folder, named
/// by what went into it. Shows progress on stderr.
/// @throws support::Interrupted on Ctrl-C; jobs that were whole are kept
void run_once(Model const& model, OnceOptions const& options, std::filesystem::path const& folder,
              std::span<OncePiece const> pieces, std::vector<OnceRun>& runs);

/// Measures, or finds that an earlier run has. @param prefix  tokens
[[nodiscard]] OnceCost once_cost(Model const& model, OnceOptions const& options, std::filesystem::path const& folder,
                                 std::span<std::int32_t const> prefix);

/// Origin of the runs, for people.
struct OnceAbout {
  std::string model;
  std::string text;
  bool exact = false;
};

/// A table in markdown, and the costs.
[[nodiscard]] std::string once_table(std::vector<OnceRun> const& runs, OnceCost const& cost);

/// @brief Writes evict_once.json and evict_once.csv, and pictures of perplexity, copying and lookup over what is kept
/// into pictures/. @throws FileError
void write_once(std::filesystem::path const& folder, OnceAbout const& about, OnceOptions const& options,
                OncePlace const& place, std::vector<OnceRun> const& runs, OnceCost const& cost);

}  // namespace llama_adapter
