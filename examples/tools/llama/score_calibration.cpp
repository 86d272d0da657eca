#include "tools/llama/score_calibration.hpp"

#include "tools/llama/calibration_text.hpp"
#include "tools/llama/fitted_scores.hpp"
#include "tools/llama/held_out_scores.hpp"
#include "tools/llama/second_reading.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/interrupt.hpp"
#include "tools/support/json_text.hpp"
#include "tools/support/progress.hpp"

#include <headaware/error.hpp>
#include <headaware/io/content_hash.hpp>
#include <headaware/score/budgets.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>

namespace llama_adapter {

namespace ha = headaware;

namespace {

using Pieces = std::vector<std::vector<std::int32_t>>;

/// Pieces to fit to, and those held out between them, evenly spaced over the text.
struct ScorePieces {
  Pieces fitted;
  Pieces held_out;
};

void check_options(ScoreOptions const& options) {
  constexpr auto where = "calibrate_scores";
  ha::require(options.pieces > 0, "pieces", "> 0", options.pieces, where);
  ha::require(options.held_out > 0, "pieces held out", "> 0", options.held_out, where);
  ha::require(options.piece_tokens >= 32, "tokens of a piece", ">= 32", options.piece_tokens, where);
  ha::require(options.floor > 0 && options.floor < 1, "floor of probabilities", "in (0, 1)", options.floor, where);
  ha::require(!options.penalties.empty(), "penalties", "at least one", "none", where);
  for (double const penalty : options.penalties) ha::require(penalty > 0, "penalty", "> 0", penalty, where);
  std::vector<std::vector<double>> const heads(options.shares.size(), {0});
  ha::ReconstructionBudgets{options.shares, heads}.validate(where);
  double const share = options.overlap_share;
  ha::require(share > 0 && share < 1, "share of the overlap", "in (0, 1)", share, where);
}

ScorePieces pieces_of(Model const& model, std::span<std::int32_t const> tokens, ScoreOptions const& options) {
  std::int64_t const slots = std::int64_t{options.pieces} + options.held_out;
  auto const length = std::ssize(tokens);
  ha::require(length >= slots * options.piece_tokens, "tokens of the text",
              {"at least ", slots * options.piece_tokens, ", for ", slots, " pieces of ", options.piece_tokens}, length,
              "calibrate_scores");
  std::int64_t const count = options.piece_tokens - (model.begins_with_bos() ? 1 : 0);
  ScorePieces result;
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    std::int64_t const first = (length - options.piece_tokens) * slot / std::max<std::int64_t>(slots - 1, 1);
    // Those held out lie in the middles of as many equal parts.
    std::int64_t const part = slot * options.held_out / slots;
    bool const held = slot == (2 * part + 1) * slots / (2 * options.held_out);
    (held ? result.held_out : result.fitted).push_back(passage(model, tokens, first, count, false));
  }
  return result;
}

/// Tells a measurement from others: what it is made of.
std::string source_of(Model const& model, ScorePieces const& pieces, ScoreOptions const& options) {
  ha::ContentHash hash;
  for (auto const* const kind : {&pieces.fitted, &pieces.held_out}) {
    for (auto const& piece : *kind) hash.add(piece);
    hash.add("/");
  }
  hash.add(options.instruction);
  for (auto const* const numbers : {&options.penalties, &options.shares}) {
    for (double const number : *numbers) hash.add(std::to_string(number) + ",");
  }
  hash.add(std::to_string(std::log(options.floor)) + "," + std::to_string(options.overlap_share));
  return model.path().filename().string() + ", " + std::to_string(std::filesystem::file_size(model.path())) +
         " bytes; " + std::to_string(pieces.fitted.size()) + " and " + std::to_string(pieces.held_out.size()) +
         " pieces of " + std::to_string(options.piece_tokens) + " tokens, " + hash.text();
}

}  // namespace

ha::RowScorer calibrate_scores(Model const& model, std::span<std::int32_t const> tokens, ScoreOptions const& options) {
  check_options(options);
  ScorePieces const pieces = pieces_of(model, tokens, options);
  std::string const source = source_of(model, pieces, options);
  if (std::filesystem::exists(options.output_dir / "scores.json")) {
    auto saved = ha::load_row_scorer(options.output_dir);
    if (saved.saved.source == support::as_written(source)) return saved;
  }
  support::make_folder(options.output_dir);
  FittedScores sums(model.shape(), options, source);
  SecondReading reading(model, options.instruction, options.piece_tokens, options.threads);
  support::Interrupt const interrupt;
  auto const num_layers = static_cast<double>(model.shape().num_layers());
  auto const all = std::ssize(pieces.fitted) + std::ssize(pieces.held_out);
  auto const tokens_read = [&](double pieces_read) { return pieces_read * static_cast<double>(reading.tokens_read()); };
  std::int64_t done = sums.pieces();
  support::Progress progress("second readings", "tokens", all * reading.tokens_read(), done * reading.tokens_read());
  auto const read = [&](std::vector<std::int32_t> const& piece, auto const& add) {
    reading.read(piece, [&](ReadLayer const& layer) {
      interrupt.check();
      add(layer);
      progress.show(tokens_read(static_cast<double>(done) + (layer.layer + 1) / num_layers));
    });
    ++done;
  };
  while (sums.pieces() < std::ssize(pieces.fitted)) {
    read(pieces.fitted[static_cast<std::size_t>(sums.pieces())], [&](ReadLayer const& layer) { sums.add(layer); });
    sums.finish_piece();
  }
  HeldOutScores held_out(sums, options);
  for (auto const& piece : pieces.held_out) {
    held_out.begin_piece();
    read(piece, [&](ReadLayer const& layer) { held_out.add(layer); });
  }
  progress.finish(tokens_read(static_cast<double>(done)));

  ha::RowScorer result;
  ha::SavedScores& saved = result.saved;
  saved.model = model.info().name;
  saved.source = source;
  saved.shape = model.shape();
  saved.instruction = options.instruction;
  saved.pieces = options.pieces;
  saved.held_out = options.held_out;
  saved.piece_tokens = options.piece_tokens;
  saved.floor = options.floor;
  saved.overlap_share = options.overlap_share;
  saved.budgets = sums.budgets();
  held_out.choose(result);
  ha::save_row_scorer(options.output_dir, result);
  sums.remove_files();
  return result;
}

std::string score_summary(ha::SavedScores const& saved) {
  double mean = 0;
  double least = 0;
  double most = 0;
  std::int32_t layers = 0;
  for (std::int32_t i = 0; i < saved.shape.num_layers(); ++i) {
    if (!saved.shape.layer(i).has_cache()) continue;
    double const r2 = saved.layers[static_cast<std::size_t>(i)].r2;
    least = layers == 0 ? r2 : std::min(least, r2);
    most = layers == 0 ? r2 : std::max(most, r2);
    mean += r2;
    ++layers;
  }
  char text[400];
  std::snprintf(
      text, sizeof(text),
      "scores of rows, fitted to %d pieces of %lld tokens; of %d held out: R² %.2f (layers: %.2f to %.2f); of "
      "the %.4g %% of rows that a second reading looks at most %.1f %% are chosen by one threshold, %.1f %% by "
      "head budgets",
      saved.pieces, static_cast<long long>(saved.piece_tokens), saved.held_out, mean / std::max(layers, 1), least, most,
      100 * saved.overlap_share, 100 * saved.overlap, 100 * saved.overlap_by_head);
  return text;
}

}  // namespace llama_adapter
