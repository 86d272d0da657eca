#pragma once

/// @file
/// Strict parser of JSON (RFC 8259) into one flat array.
///
/// Not nlohmann's event interface: for the 2.5 MB of a 2.8B model's statistics that takes 51 ms for its events alone,
/// this parser and the statistics together 7 ms. A unit that reads classifications compiles in 1.0 s of user time
/// (g++ -O0), one that only calls nlohmann's parser of events in 2.2 s. It also refuses keys that stand twice and
/// nesting beyond 64, and its errors name line, column and JSON pointer also where the text is JSON and a value is
/// wrong; events would have to track these.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/text.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Type of a JSON value; `integer` is a number written with digits alone.
enum class JsonKind : std::uint8_t { null, boolean, integer, number, string, array, object };

/// @brief Treatment of Infinity, -Infinity and NaN, which are no JSON, but which Python writes.
enum class NonFinite : std::uint8_t { refuse, read };

namespace detail {

/// A value. Those inside it follow at once, members of an object as key, value, key, value.
struct JsonNode {
  JsonKind kind = JsonKind::null;
  std::uint32_t begin = 0;  ///< offset of its first byte in the text
  std::uint32_t end = 0;    ///< index after the last node inside it
  std::uint32_t size = 0;   ///< bytes of a string; elements of an array; members of an object
  union {
    std::int64_t integer = 0;  ///< also a boolean
    double number;
    char const* chars;
  };
};

/// The parsed document. Borrows the text. A template, so that units that read no file do not instantiate it.
template <class = void>
class BasicJsonDocument {
 public:
  static constexpr int max_depth = 64;

  /// @param source  names the text in messages
  /// @throws FormatError unless the text is one JSON value with no key twice in an object, nested at most
  ///         `max_depth` deep, shorter than 2^32 bytes, its numbers within double's range
  BasicJsonDocument(std::string_view text, std::string source, NonFinite non_finite = NonFinite::refuse)
      : text_(text), source_(std::move(source)), non_finite_(non_finite) {
    if (text.size() >= std::numeric_limits<std::uint32_t>::max()) {
      throw FormatError({"document too large", "less than 4 GiB", std::to_string(text.size()) + " bytes", source_});
    }
    nodes_.reserve(text.size() / 24 + 16);
    if (text.substr(0, 3) == "\xEF\xBB\xBF") at_ = 3;
    parse_value(0);
    skip_space();
    if (at_ != text_.size()) fail_here("the end of the document", 0);
  }
  BasicJsonDocument(BasicJsonDocument const&) = delete;
  BasicJsonDocument& operator=(BasicJsonDocument const&) = delete;
  ~BasicJsonDocument() = default;

  [[nodiscard]] JsonNode const& node(std::uint32_t index) const { return nodes_[index]; }
  [[nodiscard]] std::string_view text_of(std::uint32_t key) const { return {nodes_[key].chars, nodes_[key].size}; }

  /// True of a number of digits alone; one beyond 64 bits is a `JsonKind::number` all the same.
  [[nodiscard]] bool written_as_integer(std::uint32_t index) const {
    return token(nodes_[index].begin).find_first_not_of("-0123456789") == std::string_view::npos;
  }

  /// Describes a value for messages.
  [[nodiscard]] std::string describe(std::uint32_t index) const {
    JsonNode const& n = nodes_[index];
    switch (n.kind) {
      case JsonKind::null: return "null";
      case JsonKind::boolean: return n.integer != 0 ? "true" : "false";
      case JsonKind::integer:
      case JsonKind::number: return std::string(token(n.begin).substr(0, 40));
      case JsonKind::string: return quoted(text_of(index));
      case JsonKind::array: return "an array of " + std::to_string(n.size);
      default: return "an object";
    }
  }

  /// "file, line, column: pointer". @param index of a value, or one that is about to be parsed
  [[nodiscard]] std::string where(std::size_t offset, std::uint32_t index) const {
    auto const before = text_.substr(0, offset);
    auto const line = 1 + std::count(before.begin(), before.end(), '\n');
    auto const start = before.rfind('\n');
    auto const column = start == std::string_view::npos ? offset + 1 : offset - start;
    std::string const path = pointer(index);
    return source_ + ", line " + std::to_string(line) + ", column " + std::to_string(column) +
           (path.empty() ? "" : ": " + path);
  }

 private:
  static constexpr std::uint32_t open = std::numeric_limits<std::uint32_t>::max();  ///< `end` while a value is parsed

  /// RFC 6901. Walks down from the root, so that parsing need not keep track.
  [[nodiscard]] std::string pointer(std::uint32_t target) const {
    std::string path;
    std::uint32_t at = 0;
    while (at != target && at < nodes_.size()) {
      bool const object = nodes_[at].kind == JsonKind::object;
      std::uint32_t child = at + 1;
      std::size_t count = 0;
      for (;; ++count) {
        std::uint32_t const value = child + (object ? 1 : 0);
        if (child >= target && object) return path;  // a key that is about to be parsed
        if (value >= nodes_.size() || target < nodes_[value].end) {
          path += "/" + (object ? escaped(text_of(child)) : std::to_string(count));
          at = value;
          break;
        }
        child = nodes_[value].end;
      }
    }
    return path;
  }

  [[nodiscard]] static std::string escaped(std::string_view key) {
    std::string result;
    std::string const printable = quoted(key);
    for (char const c : std::string_view(printable).substr(1, printable.size() - 2)) {
      result += c == '~' ? std::string("~0") : c == '/' ? std::string("~1") : std::string(1, c);
    }
    return result;
  }

  /// True of characters that can belong to a number or a word.
  [[nodiscard]] static bool wordy(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '+' || c == '-' ||
           c == '.' || c == '_';
  }
  /// A number or word, or one other character.
  [[nodiscard]] std::string_view token(std::size_t begin) const {
    std::size_t end = begin;
    while (end < text_.size() && wordy(text_[end])) ++end;
    return text_.substr(begin, std::max<std::size_t>(end - begin, 1));
  }

  [[noreturn]] void fail(std::string what, std::string expected, std::string got, std::size_t offset,
                         std::uint32_t index) const {
    throw FormatError({std::move(what), std::move(expected), std::move(got), where(offset, index)});
  }
  [[noreturn]] void fail_here(std::string expected, std::uint32_t index) const {
    std::string got = at_ < text_.size() ? quoted(token(at_), '\'') : "the end of the file";
    fail("malformed JSON", std::move(expected), std::move(got), at_, index);
  }

  [[nodiscard]] std::uint32_t next_index() const { return static_cast<std::uint32_t>(nodes_.size()); }
  [[nodiscard]] bool ends() const { return at_ >= text_.size(); }
  [[nodiscard]] bool consume(char c) {
    if (ends() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void skip_space() {
    while (at_ < text_.size()) {
      char const c = text_[at_];
      if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
      ++at_;
    }
  }

  JsonNode& add(JsonKind kind, std::size_t begin) {
    JsonNode& n = nodes_.emplace_back();
    n.kind = kind;
    n.begin = static_cast<std::uint32_t>(begin);
    n.end = next_index();
    return n;
  }

  void parse_value(int depth) {
    skip_space();
    if (ends()) fail_here("a value", next_index());
    switch (text_[at_]) {
      case '{': return parse_container(JsonKind::object, depth);
      case '[': return parse_container(JsonKind::array, depth);
      case '"': return parse_string();
      case 't': return parse_word("true", JsonKind::boolean, 1);
      case 'f': return parse_word("false", JsonKind::boolean, 0);
      case 'n': return parse_word("null", JsonKind::null, 0);
      default: break;
    }
    if (non_finite_ == NonFinite::read && parse_non_finite()) return;
    parse_number();
  }

  [[nodiscard]] bool parse_non_finite() {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    std::string_view const word = token(at_);
    double value = std::numeric_limits<double>::quiet_NaN();
    if (word == "Infinity" || word == "-Infinity") {
      value = word.front() == '-' ? -infinity : infinity;
    } else if (word != "NaN") {
      return false;
    }
    add(JsonKind::number, at_).number = value;
    at_ += word.size();
    return true;
  }

  void parse_word(std::string_view word, JsonKind kind, std::int64_t value) {
    if (token(at_) != word) fail_here("a value", next_index());
    add(kind, at_).integer = value;
    at_ += word.size();
  }

  void parse_container(JsonKind kind, int depth) {
    if (depth == max_depth) {
      fail("nesting too deep", "at most " + std::to_string(max_depth) + " levels", "one more", at_, next_index());
    }
    bool const object = kind == JsonKind::object;
    char const closing = object ? '}' : ']';
    std::uint32_t const self = next_index();
    add(kind, at_++).end = open;
    std::uint32_t count = 0;
    skip_space();
    if (!consume(closing)) {
      for (;;) {
        if (object) {
          skip_space();
          if (ends() || text_[at_] != '"') fail_here("a key in quotes", self);
          parse_string();
          skip_space();
          if (!consume(':')) fail_here("':'", next_index());
        }
        parse_value(depth + 1);
        ++count;
        skip_space();
        if (consume(',')) continue;
        if (consume(closing)) break;
        fail_here(object ? "',' or '}'" : "',' or ']'", self);
      }
    }
    nodes_[self].end = next_index();
    nodes_[self].size = count;
    if (object) reject_duplicates(self);
  }

  void reject_duplicates(std::uint32_t object) {
    keys_.clear();
    for (std::uint32_t key = object + 1; key < nodes_[object].end; key = nodes_[key + 1].end) keys_.push_back(key);
    auto duplicate = [&](std::uint32_t key) {
      fail("duplicate key", "each key once", quoted(text_of(key)) + " again", nodes_[key].begin, key + 1);
    };
    // Comparing pairs is faster than sorting as long as there are few.
    if (keys_.size() <= 16) {
      for (std::size_t i = 1; i < keys_.size(); ++i) {
        for (std::size_t j = 0; j < i; ++j) {
          if (text_of(keys_[i]) == text_of(keys_[j])) duplicate(keys_[i]);
        }
      }
      return;
    }
    std::sort(keys_.begin(), keys_.end(), [&](std::uint32_t a, std::uint32_t b) {
      auto const order = text_of(a).compare(text_of(b));
      return order != 0 ? order < 0 : a < b;
    });
    for (std::size_t i = 1; i < keys_.size(); ++i) {
      if (text_of(keys_[i]) == text_of(keys_[i - 1])) duplicate(keys_[i]);
    }
  }

  [[nodiscard]] bool skip_digits() {
    std::size_t const first = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ != first;
  }

  void parse_number() {
    std::size_t const begin = at_;
    auto malformed = [&] {
      at_ = begin;
      fail_here("a value", next_index());
    };
    (void)consume('-');
    if (!consume('0') && !skip_digits()) malformed();
    std::size_t const integer_end = at_;
    if (consume('.') && !skip_digits()) malformed();
    if (consume('e') || consume('E')) {
      if (!consume('+')) (void)consume('-');
      if (!skip_digits()) malformed();
    }
    if (!ends() && wordy(text_[at_])) malformed();  // 01, 1.2.3, 1x
    char const* const first = text_.data() + begin;
    char const* const last = text_.data() + at_;
    JsonNode& n = add(JsonKind::number, begin);
    if (at_ == integer_end) {
      if (std::from_chars(first, last, n.integer).ec == std::errc{}) {
        n.kind = JsonKind::integer;
        return;
      }
    }
    double value = 0;
    if (std::from_chars(first, last, value).ec != std::errc{}) {
      fail("number out of range", "a number that a double can hold", describe(next_index() - 1), begin,
           next_index() - 1);
    }
    n.number = value;
  }

  /// Four hexadecimal digits of an escape.
  [[nodiscard]] std::uint32_t parse_hex(std::uint32_t index) {
    std::uint32_t value = 0;
    char const* const first = text_.data() + at_;
    std::size_t const digits = std::min<std::size_t>(4, text_.size() - at_);
    auto const [last, error] = std::from_chars(first, first + digits, value, 16);
    if (error != std::errc{} || last - first != 4) fail_here("four hexadecimal digits", index);
    at_ += 4;
    return value;
  }

  void parse_string() {
    std::uint32_t const index = next_index();
    std::size_t const begin = at_++;
    for (std::size_t const first = at_;; ++at_) {
      if (ends()) fail_here("'\"'", index);
      char const c = text_[at_];
      if (c == '"') {
        // Without escapes the text itself is the string.
        JsonNode& n = add(JsonKind::string, begin);
        n.chars = text_.data() + first;
        n.size = static_cast<std::uint32_t>(at_ - first);
        ++at_;
        return;
      }
      if (static_cast<unsigned char>(c) < 0x20) fail_here("no control character in a string", index);
      if (c == '\\') break;
    }

    std::string decoded(text_.substr(begin + 1, at_ - begin - 1));
    for (;;) {
      if (ends()) fail_here("'\"'", index);
      char const c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) fail_here("no control character in a string", index);
      ++at_;
      if (c == '"') break;
      if (c != '\\') {
        decoded += c;
        continue;
      }
      append_escape(decoded, index);
    }
    // Nodes point into the reserved text: what is decoded is no longer than what it was decoded from.
    if (decoded_.capacity() < text_.size()) decoded_.reserve(text_.size());
    JsonNode& n = add(JsonKind::string, begin);
    n.chars = decoded_.data() + decoded_.size();
    n.size = static_cast<std::uint32_t>(decoded.size());
    decoded_ += decoded;
  }

  void append_escape(std::string& decoded, std::uint32_t index) {
    constexpr std::string_view letters = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (consume('u')) {
      std::uint32_t code = parse_hex(index);
      if (code >= 0xd800 && code < 0xdc00) {
        bool const pair = text_.substr(at_, 2) == "\\u";
        if (pair) at_ += 2;
        std::uint32_t const low = pair ? parse_hex(index) : 0;
        if (low < 0xdc00 || low >= 0xe000) fail_here("the second half of a surrogate pair", index);
        code = 0x10000 + ((code - 0xd800) << 10U) + (low - 0xdc00);
      } else if (code >= 0xdc00 && code < 0xe000) {
        fail_here("the first half of a surrogate pair before the second", index);
      }
      append_utf8(decoded, code);
      return;
    }
    std::size_t const which = ends() ? std::string_view::npos : letters.find(text_[at_]);
    if (which == std::string_view::npos) fail_here("an escape sequence", index);
    decoded += meanings[which];
    ++at_;
  }

  std::string_view text_;
  std::string source_;
  NonFinite non_finite_;
  std::size_t at_ = 0;
  std::vector<JsonNode> nodes_;
  std::vector<std::uint32_t> keys_;  ///< reused by reject_duplicates
  std::string decoded_;              ///< strings that had escapes, one after the other
};

using JsonDocument = BasicJsonDocument<>;

}  // namespace detail
HEADAWARE_NAMESPACE_END
