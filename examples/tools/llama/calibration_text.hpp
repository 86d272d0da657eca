#pragma once

// The pieces of a text that a plan is made of and tried on.

#include "tools/llama/engine.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

/// Counts of pieces of text, and of the probe.
struct PieceCounts {
  std::int32_t text = 1;
  std::int32_t probe = 1;
};

/// Counts of pieces of each kind.
struct CalibrationPieces {
  std::int32_t text = 4;             ///< whose statistics are taken
  std::int32_t probe = 2;            ///< likewise: a passage followed by itself
  std::int32_t held_out = 2;         ///< to try plans on
  std::int32_t held_out_probes = 1;  ///< likewise
};

/// Pieces of one length. Rows of queries before `first_query` have little context, or none of what the probe is about;
/// they count nowhere.
struct CalibrationText {
  using Pieces = std::vector<std::vector<std::int32_t>>;
  std::int64_t first_query = 0;
  Pieces text;
  Pieces probe;
  Pieces held_out;
  Pieces held_out_probes;
};

/// @throws ArgumentError unless so many pieces can be taken of those that there are. @param what  they are for
inline void require_pieces(std::int32_t count, std::int64_t there, std::string const& what, char const* where) {
  headaware::require(count > 0 && count <= there, what, {"1 to ", there}, count, where);
}

/// The first so many pieces. @param what  they are for @throws ArgumentError if there are none or not so many
inline std::span<std::vector<std::int32_t> const> first_pieces(CalibrationText::Pieces const& all, std::int32_t count,
                                                               std::string const& what, char const* where) {
  require_pieces(count, std::ssize(all), what, where);
  return std::span(all).first(static_cast<std::size_t>(count));
}

/// `count` tokens from `first` on, given twice, after what the model wants before any text.
inline std::vector<std::int32_t> passage(Model const& model, std::span<std::int32_t const> tokens, std::int64_t first,
                                         std::int64_t count, bool twice) {
  auto const text = tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  std::vector<std::int32_t> result(model.begins_with_bos() ? 1 : 0, model.bos());
  for (int copy = 0; copy < (twice ? 2 : 1); ++copy) result.insert(result.end(), text.begin(), text.end());
  return result;
}

/// @brief Pieces of `context` tokens, evenly spaced over the text and none in two kinds, the kinds taking turns.
/// @param tokens   of the text, without BOS
/// @param context  even
/// @throws ArgumentError if the text is too short, or numbers make no sense
inline CalibrationText calibration_text(Model const& model, std::span<std::int32_t const> tokens, std::int64_t context,
                                        CalibrationPieces const& pieces, std::string const& where) {
  namespace ha = headaware;
  ha::require(context >= 256 && context % 2 == 0, "context", "an even number of at least 256 tokens", context,
              "calibration_text");
  std::array<std::int32_t, 4> left{pieces.text, pieces.probe, pieces.held_out, pieces.held_out_probes};
  std::int64_t slots = 0;
  for (std::int32_t const count : left) {
    ha::require(count > 0, "pieces of a kind", "> 0", count, "calibration_text");
    slots += count;
  }
  auto const length = static_cast<std::int64_t>(tokens.size());
  ha::require(length >= slots * context, "tokens of the text",
              {"at least ", slots * context, ", for ", slots, " pieces of ", context}, length, where);
  CalibrationText result;
  result.first_query = context / 2;
  std::array<CalibrationText::Pieces*, 4> const kinds{&result.text, &result.probe, &result.held_out,
                                                      &result.held_out_probes};
  std::int64_t const special = model.begins_with_bos() ? 1 : 0;
  std::size_t kind = 0;
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    while (left[kind] == 0) kind = (kind + 1) % kinds.size();
    bool const twice = kind % 2 == 1;
    std::int64_t const first = (length - context) * slot / std::max<std::int64_t>(slots - 1, 1);
    std::int64_t const count = twice ? (context - special) / 2 : context - special;
    kinds[kind]->push_back(passage(model, tokens, first, count, twice));
    --left[kind];
    kind = (kind + 1) % kinds.size();
  }
  return result;
}

}  // namespace llama_adapter
