#pragma once

// Numbers of heads of a model's layers, and shapes of records that say one number where all layers are alike: they have
// `num_layers`, `num_heads` (query heads), `num_kv_heads`, and `layers`, a ModelShape, empty where all are alike.

#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// KV heads of the layers' own caches.
template <class Count = std::int32_t>
[[nodiscard]] HeadCounts kv_heads_of(ModelShape const& shape) {
  std::vector<Count> counts;
  for (LayerShape const& l : shape.layers()) counts.push_back(l.has_cache() ? l.num_kv_heads : 0);
  return HeadCounts(counts);
}
/// Query heads of the layers that attend.
template <class Count = std::int32_t>
[[nodiscard]] HeadCounts query_heads_of(ModelShape const& shape) {
  std::vector<Count> counts;
  for (LayerShape const& l : shape.layers()) counts.push_back(l.num_query_heads);
  return HeadCounts(counts);
}

/// KV heads that a record's layers have.
template <class Record>
[[nodiscard]] HeadCounts kv_head_counts(Record const& record) {
  bool const alike = record.layers.num_layers() == 0;
  return alike ? HeadCounts(record.num_layers, record.num_kv_heads) : kv_heads_of(record.layers);
}
/// Query heads that a record's layers have.
template <class Record>
[[nodiscard]] HeadCounts query_head_counts(Record const& record) {
  bool const alike = record.layers.num_layers() == 0;
  return alike ? HeadCounts(record.num_layers, record.num_heads) : query_heads_of(record.layers);
}
/// The shape that a record says; channels are 0 where it does not know them. @throws ArgumentError as ModelShape
template <class Record>
[[nodiscard]] ModelShape shape_of(Record const& record) {
  if (record.layers.num_layers() > 0) return record.layers;
  return ModelConfig{record.num_layers, record.num_heads, record.num_kv_heads, 0};
}

/// Most query heads, and most KV heads, of any layer.
struct MostHeads {
  std::int32_t query = 0;
  std::int32_t kv = 0;
  template <class = void>
  explicit MostHeads(ModelShape const& shape) {
    for (LayerShape const& l : shape.layers()) {
      query = std::max(query, l.num_query_heads);
      kv = std::max(kv, l.num_kv_heads);
    }
  }
};

/// Makes a record one of this shape.
template <class Record>
void set_shape(Record& record, ModelShape const& shape) {
  MostHeads const most(shape);
  record.num_layers = shape.num_layers();
  record.num_heads = most.query;
  if constexpr (requires { record.num_kv_heads; }) record.num_kv_heads = most.kv;
  record.layers = shape.uniform() ? ModelShape{} : shape;
}

/// @throws ArgumentError if a record's counts are not those of its `layers`, where it has some
template <class Record>
void require_shape(Record const& record, Text const& where) {
  if (record.layers.num_layers() == 0) return;
  Record same = record;
  set_shape(same, record.layers);
  bool const counts = same.num_layers == record.num_layers && same.num_heads == record.num_heads;
  require(counts, "layers", "as many, and with as many heads, as the counts beside them", "others", where);
  if constexpr (requires { record.num_kv_heads; }) {
    require(same.num_kv_heads == record.num_kv_heads, "layers", "with as many KV heads as the count beside them",
            "others", where);
  }
}

/// @throws ArgumentError unless a table has as many KV heads in every layer as the model's own caches
template <class Table>
void require_table_of(Table const& table, ModelShape const& model, Text const& where) {
  require(table.num_layers() == model.num_layers(), "table's layers", model.num_layers(), table.num_layers(), where);
  HeadCounts const counts = kv_heads_of(model);
  bool const alike = counts.first_heads().empty();
  for (std::int32_t layer = 0; layer < model.num_layers(); ++layer) {
    auto const place = [&] { return alike ? where.str() : Text{where, ", layer ", layer}.str(); };
    require(table.num_kv_heads(layer) == counts.view().count(layer), "table's KV heads", counts.view().count(layer),
            table.num_kv_heads(layer), place);
    require(table.window(layer) == model.layer(layer).window, "table's window", model.layer(layer).window,
            table.window(layer), place);
  }
}

/// @brief Checks that two shapes are of one model, as far as both say. Channels of 0 are not known.
/// @param counts_alone  compare numbers of heads alone: `got` says no more
/// @param of            what `got` is the shape of, for example "the plan"
/// @throws ArgumentError naming the first layer and field that differ
template <class = void>
void require_same_shape(ModelShape const& expected, ModelShape const& got, bool counts_alone, Text const& of,
                        Text const& where) {
  require(got.num_layers() == expected.num_layers(), {"layers of ", of}, expected.num_layers(), got.num_layers(),
          where);
  bool const alike = expected.uniform() && got.uniform();
  for (std::int32_t i = 0; i < expected.num_layers(); ++i) {
    LayerShape const& a = expected.layer(i);
    LayerShape const& b = got.layer(i);
    auto const place = [&] { return alike ? where.str() : Text{where, ", layer ", i}.str(); };
    auto const same = [&](auto const& want, auto const& have, char const* field) {
      require(want == have, {field, " of ", of}, want, have, place);
    };
    auto const known = [&](std::int64_t want, std::int64_t have, char const* field) {
      if (want > 0 && have > 0) same(want, have, field);
    };
    if (!counts_alone) same(to_string(a.kind), to_string(b.kind), "kind");
    same(a.num_query_heads, b.num_query_heads, "query heads");
    same(a.num_kv_heads, b.num_kv_heads, "KV heads");
    auto const cache = [](LayerShape const& l) { return l.cache_layer < 0 ? "its own" : "another layer's"; };
    require(a.cache_layer == b.cache_layer, {"cache of ", of},
            {cache(a), [&] { return a.cache_layer < 0 ? std::string() : ", " + std::to_string(a.cache_layer); }},
            {cache(b), [&] { return b.cache_layer < 0 ? std::string() : ", " + std::to_string(b.cache_layer); }},
            place);
    if (counts_alone) continue;
    known(a.head_dim, b.head_dim, "channels of a key");
    known(a.value_dim, b.value_dim, "channels of a value");
    same(a.window, b.window, "window");
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
