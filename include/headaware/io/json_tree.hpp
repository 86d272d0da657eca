#pragma once

/// @file
/// Strict reader of JSON (RFC 8259): cursors into a parsed document that know where they are. Errors name source, line,
/// column and JSON pointer.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/json_document.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

class JsonArray;
class JsonObject;

/// @brief One value of a document. Valid while its tree is.
class JsonValue {
 public:
  [[nodiscard]] JsonKind kind() const { return node().kind; }
  [[nodiscard]] bool is_null() const { return kind() == JsonKind::null; }

  /// Any number, also one written as an integer. @throws FormatError if it is none
  [[nodiscard]] double number() const {
    if (kind() == JsonKind::number) return node().number;
    expect(JsonKind::integer, "a number");
    return static_cast<double>(node().integer);
  }
  /// A number written as an integer, in [low, high]. @throws FormatError if it is none
  template <class Integer>
  [[nodiscard]] Integer integer(Integer low, Integer high) const {
    auto const check = [&](bool ok, Text const& what) {
      if (!ok) fail(what, {"an integer in [", low, ", ", high, "]"});
    };
    detail::JsonNode const& n = node();
    check(n.kind != JsonKind::number, document_->written_as_integer(index_) ? "out of range" : "not an integer");
    check(n.kind == JsonKind::integer, "wrong type");
    check(n.integer >= std::int64_t{low} && n.integer <= std::int64_t{high}, "out of range");
    return static_cast<Integer>(n.integer);
  }
  /// @throws FormatError if it is none
  [[nodiscard]] bool boolean() const {
    expect(JsonKind::boolean, "true or false");
    return node().integer != 0;
  }
  /// @throws FormatError if it is none
  [[nodiscard]] std::string_view string() const {
    expect(JsonKind::string, "a string");
    return document_->text_of(index_);
  }
  /// @throws FormatError if it is none
  [[nodiscard]] JsonArray array() const;
  /// @throws FormatError if it is none
  [[nodiscard]] JsonObject object() const;

  /// Enumerator whose name in `names` this string spells. @throws FormatError if it spells none of them
  template <class Enum, std::size_t n>
  [[nodiscard]] Enum name_of(std::array<std::string_view, n> const& names, char const* what) const {
    std::string_view const name = string();
    std::size_t found = 0;
    while (found < n && names[found] != name) ++found;
    if (found == n) {
      std::string known;
      for (std::string_view const each : names) (known += known.empty() ? "one of " : ", ") += each;
      fail({"unknown ", what}, known);
    }
    return static_cast<Enum>(found);
  }

  /// Throws `FormatError`: something else than this value was expected here.
  [[noreturn]] void fail(Text const& what, Text const& expected) const {
    fail(what, expected, document_->describe(index_));
  }
  [[noreturn]] void fail(Text const& what, Text const& expected, Text const& got) const {
    throw FormatError({what.str(), expected.str(), got.str(), where()});
  }
  /// "source, line 3, column 7: /pointer" of this value, for messages.
  [[nodiscard]] std::string where() const { return document_->where(node().begin, index_); }

 protected:
  JsonValue(detail::JsonDocument const& document, std::uint32_t index) : document_(&document), index_(index) {}
  friend class JsonTree;
  friend class JsonArray;
  friend class JsonObject;

  [[nodiscard]] detail::JsonNode const& node() const { return document_->node(index_); }
  void expect(JsonKind wanted, char const* expected) const {
    if (kind() != wanted) fail("wrong type", expected);
  }

  detail::JsonDocument const* document_;
  std::uint32_t index_;
};

/// @brief An array, to be walked once through.
class JsonArray : public JsonValue {
 public:
  class Iterator {
   public:
    JsonValue operator*() const { return value_; }
    Iterator& operator++() {
      value_.index_ = value_.node().end;
      return *this;
    }
    bool operator!=(Iterator const& other) const { return value_.index_ != other.value_.index_; }

   private:
    explicit Iterator(JsonValue const& value) : value_(value) {}
    friend class JsonArray;
    JsonValue value_;
  };
  [[nodiscard]] std::size_t size() const { return node().size; }
  [[nodiscard]] Iterator begin() const { return Iterator(JsonValue(*document_, index_ + 1)); }
  [[nodiscard]] Iterator end() const { return Iterator(JsonValue(*document_, node().end)); }

 private:
  using JsonValue::JsonValue;
  friend class JsonValue;
};

/// @brief An object. Looking members up in the order of the file costs O(1) each.
class JsonObject : public JsonValue {
 public:
  [[nodiscard]] std::optional<JsonValue> find(std::string_view key) {
    std::uint32_t const start = next_;
    if (auto const found = search(key, start, node().end)) return found;
    return search(key, index_ + 1, start);
  }
  [[nodiscard]] std::size_t size() const { return node().size; }
  /// Calls `body(key, value)` for every member, in the order of the file.
  template <class Body>
  void for_each(Body const& body) const {
    for (std::uint32_t at = index_ + 1; at < node().end; at = document_->node(at + 1).end) {
      body(document_->text_of(at), JsonValue(*document_, at + 1));
    }
  }
  /// Like `find`. @throws FormatError if the member is missing, with `expected` as what it should be
  [[nodiscard]] JsonValue get(std::string_view key, char const* expected) {
    if (auto const found = find(key)) return *found;
    // The place of the object, followed by the pointer of the member.
    bool const root = index_ == 0;
    throw FormatError({"missing field", expected, "nothing", where() + (root ? ": /" : "/") + std::string(key)});
  }

 private:
  JsonObject(detail::JsonDocument const& document, std::uint32_t index)
      : JsonValue(document, index), next_(index + 1) {}
  friend class JsonValue;

  [[nodiscard]] std::optional<JsonValue> search(std::string_view key, std::uint32_t begin, std::uint32_t end) {
    for (std::uint32_t at = begin; at < end; at = document_->node(at + 1).end) {
      if (document_->text_of(at) != key) continue;
      next_ = document_->node(at + 1).end;
      return JsonValue(*document_, at + 1);
    }
    return std::nullopt;
  }

  std::uint32_t next_;  ///< where the search begins: after the member found last
};

inline JsonArray JsonValue::array() const {
  expect(JsonKind::array, "an array");
  return {*document_, index_};
}

inline JsonObject JsonValue::object() const {
  expect(JsonKind::object, "an object");
  return {*document_, index_};
}

/// @brief A parsed document. Borrows its text.
class JsonTree {
 public:
  /// @param source  names the text in messages
  /// @throws FormatError unless the text is one JSON value with no key twice in an object, nested at most 64 deep,
  ///         shorter than 4 GiB, its numbers within double's range
  template <class = void>
  explicit JsonTree(std::string_view text, std::string source, NonFinite non_finite = NonFinite::refuse)
      : document_(text, std::move(source), non_finite) {}

  [[nodiscard]] JsonValue root() const { return {document_, 0}; }

 private:
  detail::JsonDocument document_;
};

HEADAWARE_NAMESPACE_END
