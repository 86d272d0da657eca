#pragma once

/// @file
/// Lists of per-head records as grids of [layers, heads of the layer]. A record is anything with `layer_idx` and
/// `head_idx`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// Heads per file at most, layers times heads per layer: a thousand times what models have.
inline constexpr std::int64_t max_heads = std::int64_t{1} << 20;

/// @brief Smallest [layers, heads] that holds all records.
struct GridShape {
  std::int32_t layers = 0;
  std::int32_t heads = 0;
};

/// @brief Computes the smallest grid that holds all records.
/// @pre  indices in [0, INT32_MAX)
template <class Record>
[[nodiscard]] GridShape grid_shape(std::span<Record const> records) {
  GridShape shape;
  for (auto const& r : records) {
    shape.layers = std::max(shape.layers, r.layer_idx + 1);
    shape.heads = std::max(shape.heads, r.head_idx + 1);
  }
  return shape;
}

/// @brief Index of a record in [layers, heads], row-major.
template <class Record>
[[nodiscard]] std::size_t grid_index(Record const& record, std::int32_t heads) {
  return static_cast<std::size_t>(std::int64_t{record.layer_idx} * heads + record.head_idx);
}
/// @brief The same where layers have different numbers of heads.
template <class Record>
[[nodiscard]] std::size_t grid_index(Record const& record, LayerHeads const& heads) {
  return static_cast<std::size_t>(heads.first(record.layer_idx) + record.head_idx);
}

namespace detail {

/// First error in a list of heads.
struct GridFault {
  enum class Kind { none, outside, duplicate, missing };
  Kind kind = Kind::none;
  std::size_t record = 0;  ///< the record at fault; unused for `missing`
  std::int32_t layer = 0;
  std::int32_t head = 0;

  /// Text for the user. @pre kind != none
  [[nodiscard]] ErrorDetail describe(LayerHeads const& heads, std::string where) const {
    std::string const name = "layer " + std::to_string(layer) + ", head " + std::to_string(head);
    std::string shape = std::to_string(heads.num_layers) + " layers x " + std::to_string(heads.num_kv_heads) + " heads";
    if (heads.first_heads != nullptr) {
      bool const inside = layer >= 0 && layer < heads.num_layers;
      std::int32_t const count = inside ? heads.count(layer) : 0;
      shape = inside ? (count > 0 ? std::to_string(count) + " heads in layer " : "no heads in layer ") +
                           std::to_string(layer)
                     : std::to_string(heads.num_layers) + " layers";
    }
    switch (kind) {
      case Kind::outside: return {"head out of range", shape, name, std::move(where)};
      case Kind::duplicate: return {"duplicate head", "each head once", name + " again", std::move(where)};
      default: return {"missing head", shape + ", each head once", "none for " + name, std::move(where)};
    }
  }
};

/// @brief Looks for records of layers or heads that there are not, duplicates and gaps, in this order.
/// @par Cost  time and memory O(records), however many heads are claimed
template <class Record>
[[nodiscard]] GridFault find_grid_fault(std::span<Record const> records, LayerHeads const& heads) {
  for (std::size_t i = 0; i < records.size(); ++i) {
    auto const& r = records[i];
    bool const inside =
        r.layer_idx >= 0 && r.layer_idx < heads.num_layers && r.head_idx >= 0 && r.head_idx < heads.count(r.layer_idx);
    if (!inside) return {GridFault::Kind::outside, i, r.layer_idx, r.head_idx};
  }
  // One cell more than there are records is enough to find a gap where there must be one.
  auto const cells = std::min(heads.total(), static_cast<std::int64_t>(records.size()) + 1);
  std::vector<bool> seen(static_cast<std::size_t>(cells));
  for (std::size_t i = 0; i < records.size(); ++i) {
    std::size_t const cell = grid_index(records[i], heads);
    if (cell >= seen.size()) continue;
    if (seen[cell]) return {GridFault::Kind::duplicate, i, records[i].layer_idx, records[i].head_idx};
    seen[cell] = true;
  }
  auto const gap = static_cast<std::int64_t>(std::find(seen.begin(), seen.end(), false) - seen.begin());
  if (gap == cells) return {};
  std::int32_t const layer = heads.layer_of(gap, 1);
  return {GridFault::Kind::missing, 0, layer, static_cast<std::int32_t>(gap - heads.first(layer))};
}

}  // namespace detail

/// @brief Checks that a list holds every head of every layer once, in any order.
/// @throws ArgumentError naming the first head that is out of range, duplicate or missing
template <class Record>
void require_grid(std::span<Record const> records, LayerHeads const& heads, Text const& where) {
  auto const fault = detail::find_grid_fault(records, heads);
  if (fault.kind != detail::GridFault::Kind::none) throw ArgumentError(fault.describe(heads, where.str()));
}

/// @brief The same where every layer has as many heads.
template <class Record>
void require_grid(std::span<Record const> records, std::int32_t layers, std::int32_t heads, Text const& where) {
  require(layers >= 0, "num_layers", ">= 0", layers, where);
  require(heads >= 0, "num_heads", ">= 0", heads, where);
  require_grid(records, LayerHeads{layers, heads}, where);
}

HEADAWARE_NAMESPACE_END
