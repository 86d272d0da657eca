#pragma once

/// @file
/// What the readers of per-head records have in common.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/json_tree.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Layers, or heads a layer, may be as many as heads in all.
inline constexpr auto max_index = static_cast<std::int32_t>(max_heads);

/// A number in [0, 1].
[[nodiscard]] inline double share(JsonValue const& value) {
  double const number = value.number();
  if (!(number >= 0 && number <= 1)) value.fail("out of range", "a number in [0, 1]");
  return number;
}

/// @throws FormatError at `place` if there are more than `max_heads`
inline void require_head_count(JsonValue const& place, std::int32_t layers, std::int32_t heads) {
  if (std::int64_t{layers} * heads <= max_heads) return;
  place.fail("too many heads", "at most " + std::to_string(max_heads),
             std::to_string(layers) + " layers x " + std::to_string(heads) + " heads");
}

/// The records by (layer, head). @param array  where they were read from, one by one
/// @throws FormatError unless they are exactly the heads of [layers, heads]
template <class Record>
[[nodiscard]] std::vector<Record> in_order(std::vector<Record> records, std::int32_t layers, std::int32_t heads,
                                           JsonArray const& array) {
  GridFault const fault = find_grid_fault(std::span<Record const>(records), layers, heads);
  if (fault.kind != GridFault::Kind::none) {
    std::string where = array.where();
    if (fault.kind != GridFault::Kind::missing) {
      auto culprit = array.begin();
      for (std::size_t i = 0; i < fault.record; ++i) ++culprit;
      where = (*culprit).where();
    }
    throw FormatError(fault.describe(layers, heads, std::move(where)));
  }
  std::vector<Record> sorted(records.size());
  for (auto& record : records) sorted[grid_index(record, heads)] = std::move(record);
  return sorted;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
