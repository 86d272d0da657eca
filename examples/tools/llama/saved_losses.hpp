#pragma once

// Reads what earlier runs left on disk. Needs no engine.

#include <headaware/error.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/npy.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama_adapter {

/// Losses, times and sizes of a text read through an evicted cache. Seconds are those of reading alone: no losses are
/// computed in them.
struct EvictedText {
  std::vector<double> losses;      ///< −log p(token i + 1 | what was kept of tokens 0 … i), [tokens − 1]
  double read_seconds = 0;         ///< all chunks, with logits of every token
  double first_token_seconds = 0;  ///< the same and the choice of the first new token
  double decode_seconds = 0;       ///< of the tokens decoded
  double mean_kept = 0;            ///< tokens per KV head, after the text
  std::int64_t kv_bytes_peak =
      0;  ///< that the cache allocated: its blocks, with room for all tokens where one keeps all

  friend bool operator==(EvictedText const&, EvictedText const&) = default;
};

/// Runs `read`; what it finds broken is told with what to do.
template <class Read>
auto read_saved(char const* what, std::string const& expected, std::string const& source, Read const& read) {
  try {
    return read();
  } catch (headaware::FormatError const& error) {
    throw headaware::FormatError({what, expected + "; remove the file to measure anew", error.what(), source});
  }
}

/// Values of a text, from the bytes of a .npy file. @param count  how many there have to be
/// @throws FormatError unless they are so many finite numbers
inline std::vector<double> parse_losses(std::span<std::byte const> file, std::string const& source,
                                        std::int64_t count) {
  return read_saved("values of a text", std::to_string(count), source, [&] {
    auto const saved = headaware::parse_npy(file, source);
    auto const values = saved.as<double>();
    bool const finite = std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
    if (std::ssize(values) != count || !finite) {
      throw headaware::FormatError(
          {"values", "finite ones", finite ? std::to_string(values.size()) : "infinity or NaN", source});
    }
    return std::vector<double>(values.begin(), values.end());
  });
}

/// An evicted text from its JSON. @param count  how many losses there have to be @throws FormatError
inline EvictedText parse_evicted_text(std::string_view text, std::string const& source, std::int64_t count) {
  return read_saved("measurements of an earlier run", std::to_string(count) + " losses, and seconds", source, [&] {
    headaware::JsonTree const tree(text, source);
    headaware::JsonObject json = tree.root().object();
    EvictedText result;
    auto const losses = json.get("losses", "an array").array();
    if (static_cast<std::int64_t>(losses.size()) != count) losses.fail("losses", std::to_string(count));
    result.losses.reserve(losses.size());
    for (auto const loss : losses) result.losses.push_back(loss.number());
    auto const amount = [&](char const* key) {
      auto const value = json.get(key, "a number");
      double const number = value.number();
      if (!(number >= 0)) value.fail(key, "a number >= 0");
      return number;
    };
    result.read_seconds = amount("read_seconds");
    result.first_token_seconds = amount("first_token_seconds");
    result.decode_seconds = amount("decode_seconds");
    result.mean_kept = amount("mean_kept");
    result.kv_bytes_peak = json.get("kv_bytes_peak", "an integer").integer<std::int64_t>(0, INT64_MAX);
    return result;
  });
}

}  // namespace llama_adapter
