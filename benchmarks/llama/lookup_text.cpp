#include "llama/lookup_text.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <iterator>
#include <random>
#include <string_view>

namespace llama_adapter {

namespace ha = headaware;

namespace {

constexpr std::string_view words[] = {
    "apple",   "anchor",  "arrow",    "autumn",  "badge",    "banana", "barrel", "basket",   "beach",  "bell",
    "bench",   "berry",   "bicycle",  "blanket", "boat",     "bottle", "bridge", "brush",    "bucket", "butter",
    "button",  "cabin",   "cake",     "camera",  "candle",   "canyon", "carpet", "castle",   "chair",  "cheese",
    "cherry",  "circle",  "clock",    "cloud",   "coffee",   "copper", "corner", "cotton",   "cousin", "cradle",
    "desert",  "diamond", "doctor",   "dolphin", "dragon",   "drum",   "eagle",  "engine",   "farmer", "feather",
    "fence",   "finger",  "flower",   "forest",  "fountain", "garden", "ghost",  "glass",    "glove",  "grape",
    "guitar",  "hammer",  "harbor",   "helmet",  "honey",    "horse",  "island", "jacket",   "jungle", "kettle",
    "kitchen", "ladder",  "lamp",     "lemon",   "letter",   "lion",   "lizard", "magnet",   "market", "meadow",
    "mirror",  "monkey",  "mountain", "needle",  "nest",     "ocean",  "onion",  "orange",   "oven",   "paint",
    "palace",  "paper",   "parrot",   "pencil",  "pepper",   "piano",  "pillow", "planet",   "pocket", "potato",
    "prince",  "rabbit",  "radio",    "ribbon",  "river",    "rocket", "saddle", "sailor",   "salmon", "school",
    "shadow",  "shelf",   "silver",   "spider",  "spoon",    "spring", "statue", "sugar",    "summer", "table",
    "temple",  "ticket",  "tiger",    "tower",   "train",    "tunnel", "turtle", "umbrella", "valley", "velvet",
    "village", "violin",  "wagon",    "walnut",  "water",    "whale",  "wheel",  "whistle",  "window", "winter"};

/// Uniform in [0, count), the same on every machine.
std::uint32_t drawn(std::mt19937& random, std::uint32_t count) { return static_cast<std::uint32_t>(random() % count); }

/// Shuffles as every machine does.
template <class T>
void shuffle(std::vector<T>& list, std::mt19937& random) {
  for (std::size_t i = list.size(); i > 1; --i)
    std::swap(list[i - 1], list[drawn(random, static_cast<std::uint32_t>(i))]);
}

}  // namespace

std::int64_t lookup_words() { return std::ssize(words); }

std::vector<std::pair<std::string, std::string>> lookup_pairs(std::int64_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::string_view> all(std::begin(words), std::end(words));
  shuffle(all, random);
  std::vector<std::pair<std::string, std::string>> pairs;
  for (std::int64_t i = 0; i < count; ++i) {
    pairs.emplace_back(all[static_cast<std::size_t>(i)], std::to_string(1000 + drawn(random, 9000)));
  }
  return pairs;
}

LookupText lookup_text(Model const& model, std::int64_t tokens, std::int64_t questions, std::uint32_t seed) {
  LookupText result;
  if (model.begins_with_bos()) result.list.push_back(model.bos());
  auto const pairs = lookup_pairs(lookup_words(), seed);
  std::vector<std::vector<std::int32_t>> lines;
  for (auto const& [word, number] : pairs) {
    std::string text = word;
    text.append(": ").append(number).append("\n");
    auto line = model.tokenize(text, false);
    if (std::ssize(result.list) + std::ssize(line) > tokens) break;
    result.list.insert(result.list.end(), line.begin(), line.end());
    lines.push_back(std::move(line));
  }
  ha::require(std::ssize(lines) >= questions, "tokens of a list", {"room for ", questions, " pairs"}, tokens,
              "lookup_text");
  std::mt19937 random(seed + 1);
  shuffle(lines, random);
  lines.resize(static_cast<std::size_t>(questions));
  for (auto const& line : lines) {
    for (std::int32_t const token : line) {
      std::string const piece = model.piece(token);
      bool const digit = std::any_of(piece.begin(), piece.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
      if (digit) result.digits.push_back(std::ssize(result.questions));
      result.questions.push_back(token);
    }
  }
  return result;
}

}  // namespace llama_adapter
