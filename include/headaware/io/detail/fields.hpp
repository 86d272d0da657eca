#pragma once

// Reads and writes the fields of records, which each record describes once; see detail/field_checker.hpp.

#include <headaware/config.hpp>
#include <headaware/detail/field_checker.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/json_writer.hpp>
#include <headaware/layer_heads.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Layers, or heads per layer, may be as many as heads in all.
inline constexpr auto max_index = static_cast<std::int32_t>(max_heads);
inline constexpr std::int64_t max_int32 = std::numeric_limits<std::int32_t>::max();
/// Counts are exact in double, in which processes add them up.
inline constexpr std::int64_t max_json_count = std::int64_t{1} << 53;

/// Reads fields of an object. @throws FormatError naming the place of what is missing, of another type or out of range
class FieldReader {
 public:
  explicit FieldReader(JsonObject const& object) : object_(object) {}

  [[nodiscard]] JsonObject& json() { return object_; }

  template <class T>
  void integer(char const* key, T& value, std::int64_t low, std::int64_t high) {
    value = static_cast<T>(object_.get(key, "an integer").integer(low, high));
  }
  template <class T>
  void divisor(char const* key, T& value, T of) {
    JsonValue const json = object_.get(key, "an integer");
    value = static_cast<T>(json.integer<std::int64_t>(1, of));
    if (of % value != 0) json.fail(key, {"a divisor of ", of}, value);
  }
  void number(char const* key, double& value) { value = object_.get(key, "a number").number(); }
  void not_negative(char const* key, double& value) {
    JsonValue const json = object_.get(key, "a number");
    value = json.number();
    if (!(value >= 0)) json.fail("negative number", ">= 0");
  }
  void share(char const* key, double& value) {
    JsonValue const json = object_.get(key, "a number");
    value = json.number();
    if (!(value >= 0 && value <= 1)) json.fail("out of range", "a number in [0, 1]");
  }
  /// Tokens, or -1.
  void window(char const* key, std::int32_t& value) {
    JsonValue const json = object_.get(key, "an integer");
    value = json.integer(std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max());
    if (value != -1 && value <= 0) json.fail("out of range", "-1 or a window > 0");
  }
  void boolean(char const* key, bool& value) { value = object_.get(key, "true or false").boolean(); }
  template <class Enum, class Names>
  void name(char const* key, Enum& value, Names const& names, char const* what) {
    value = object_.get(key, "a string").template name_of<Enum>(names, what);
  }
  template <class T>
  void numbers(char const* key, std::vector<T>& values) {
    JsonArray const array = object_.get(key, "an array").array();
    values.reserve(array.size());
    for (JsonValue const value : array) values.push_back(value.number());
  }
  template <class T>
  void sums(char const* key, std::vector<T>& values, std::size_t count) {
    JsonArray const array = object_.get(key, "an array").array();
    if (array.size() != count) array.fail("number of sums", count, array.size());
    values.clear();
    values.reserve(count);
    for (JsonValue const value : array) {
      values.push_back(value.number());
      if (!(values.back() >= 0)) value.fail("negative sum", ">= 0");
    }
  }
  /// Whole numbers that ascend strictly from `least` on.
  template <class T>
  void ascending(char const* key, std::vector<T>& values, T least) {
    JsonArray const array = object_.get(key, "an array").array();
    values.clear();
    for (JsonValue const value : array) {
      std::int64_t const low = values.empty() ? least : std::int64_t{values.back()} + 1;
      values.push_back(static_cast<std::int32_t>(value.integer(low, max_int32 - 1)));
    }
    if (values.empty()) array.fail("empty list", "at least one number", "none");
  }
  template <class Body>
  void object(char const* key, Body const& body) {
    body(FieldReader(object_.get(key, "an object").object()));
  }

 private:
  JsonObject object_;
};

/// Writes the fields of an object that is open.
class FieldWriter {
 public:
  explicit FieldWriter(JsonWriter& json) : json_(&json) {}

  template <class T>
  void integer(char const* key, T value, std::int64_t, std::int64_t) const {
    json_->field(key, value);
  }
  template <class T>
  void divisor(char const* key, T value, T) const {
    json_->field(key, value);
  }
  void number(char const* key, double value) const { json_->field(key, value); }
  void not_negative(char const* key, double value) const { json_->field(key, value); }
  void share(char const* key, double value) const { json_->field(key, value); }
  void window(char const* key, std::int32_t value) const { json_->field(key, value); }
  void boolean(char const* key, bool value) const { json_->field(key, value); }
  template <class Enum, class Names>
  void name(char const* key, Enum value, Names const& names, char const*) const {
    json_->field(key, names[static_cast<std::size_t>(value)]);
  }
  template <class T>
  void numbers(char const* key, std::vector<T> const& values) const {
    json_->field(key, values);
  }
  template <class T>
  void sums(char const* key, std::vector<T> const& values, std::size_t) const {
    json_->field(key, values);
  }
  template <class T>
  void ascending(char const* key, std::vector<T> const& values, T) const {
    json_->field(key, values);
  }
  template <class Body>
  void object(char const* key, Body const& body) const {
    json_->field(key, [&] { body(*this); });
  }

 private:
  JsonWriter* json_;
};

/// Layer and head of a record.
template <class Fields, class Record>
void head_fields(Fields&& f, Record& record) {
  f.integer("layer_idx", record.layer_idx, 0, max_index - 1);
  f.integer("head_idx", record.head_idx, 0, max_index - 1);
}

/// @throws FormatError at `place` if there are more than `max_heads`
template <class = void>
void require_head_count(JsonValue const& place, std::int32_t layers, std::int32_t heads) {
  if (std::int64_t{layers} * heads <= max_heads) return;
  place.fail("too many heads", {"at most ", max_heads}, {layers, " layers x ", heads, " heads"});
}
/// @throws ArgumentError unless there are 1 to `max_heads`
template <class = void>
void require_head_count(std::int64_t heads, Text const& where) {
  require(heads > 0 && heads <= max_heads, "number of heads", "in [1, 2^20]", heads, where);
}

/// @throws FormatError unless the document says that it is of this format and version
template <class = void>
void read_format(JsonObject& root, std::string_view format, std::int32_t version) {
  JsonValue const name = root.get("format", "a string");
  if (name.string() != format) name.fail("format", quoted(format), quoted(name.string()));
  JsonValue const number = root.get("version", "an integer");
  auto const found = number.integer<std::int64_t>(0, max_int32);
  if (found != version) number.fail("version", version, found);
}
template <class = void>
void write_format(JsonWriter& json, std::string_view format, std::int32_t version) {
  json.field("format", format);
  json.field("version", version);
}

/// The records by (layer, head). @param array  where they were read from, one by one
/// @throws FormatError unless they are exactly the heads of all layers
template <class Record>
[[nodiscard]] std::vector<Record> in_order(std::vector<Record> records, LayerHeads const& heads,
                                           JsonArray const& array) {
  GridFault const fault = find_grid_fault(std::span<Record const>(records), heads);
  if (fault.kind != GridFault::Kind::none) {
    std::string where = array.where();
    if (fault.kind != GridFault::Kind::missing) {
      auto culprit = array.begin();
      for (std::size_t i = 0; i < fault.record; ++i) ++culprit;
      where = (*culprit).where();
    }
    throw FormatError(fault.describe(heads, std::move(where)));
  }
  std::vector<Record> sorted(records.size());
  for (auto& record : records) sorted[grid_index(record, heads)] = std::move(record);
  return sorted;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
