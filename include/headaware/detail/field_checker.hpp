#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks the fields of a record for what a file cannot hold. A record describes its fields once, by a function that
/// calls one member per field: of this class, or of those that read and write files (io/detail/fields.hpp).
class FieldChecker {
 public:
  /// @param where   for messages; borrowed
  /// @param prefix  of the fields' names
  explicit FieldChecker(Text const& where, Text const& prefix = "") : where_(where), prefix_(prefix) {}

  template <class T>
  void integer(char const* key, T value, std::int64_t low, std::int64_t high) const {
    auto const range = [&] {
      bool const limited = high < std::int64_t{std::numeric_limits<T>::max()};
      return limited ? Text{"in [", low, ", ", high, "]"}.str() : Text{">= ", low}.str();
    };
    require(value >= low && value <= high, {prefix_, key}, range, value, where_);
  }
  template <class T>
  void divisor(char const* key, T value, T of) const {
    require(value > 0 && of % value == 0, {prefix_, key}, {"a divisor of ", of}, value, where_);
  }
  void number(char const* key, double value) const {
    require(detail::is_finite(value), {prefix_, key}, "a finite number", value, where_);
  }
  void not_negative(char const* key, double value) const {
    require(detail::is_finite(value) && value >= 0, {prefix_, key}, "a finite number >= 0", value, where_);
  }
  void share(char const* key, double value) const {
    require(value >= 0 && value <= 1, {prefix_, key}, "in [0, 1]", value, where_);
  }
  void window(char const* key, std::int32_t value) const {
    require(value == -1 || value > 0, {prefix_, key}, "-1 or > 0", value, where_);
  }
  void boolean(char const*, bool) const {}
  template <class Enum, class Names>
  void name(char const*, Enum, Names const&, char const*) const {}
  void numbers(char const* key, std::vector<double> const& values) const {
    for (std::size_t i = 0; i < values.size(); ++i) {
      require(detail::is_finite(values[i]), {prefix_, key, "[", i, "]"}, "a finite number", values[i], where_);
    }
  }
  void sums(char const* key, std::vector<double> const& values, std::size_t count) const {
    require(values.size() == count, {prefix_, key}, {count, " sums"}, values.size(), where_);
    bool valid = true;
    for (double const x : values) valid = valid && detail::is_finite(x) && x >= 0;
    require(valid, {prefix_, key}, "finite sums >= 0", "others", where_);
  }
  template <class Body>
  void object(char const* key, Body const& body) const {
    auto const prefix = [&] { return prefix_.str() + key + "."; };
    body(FieldChecker(where_, prefix));
  }

 private:
  Text where_;
  Text prefix_;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
