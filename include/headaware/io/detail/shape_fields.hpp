#pragma once

// Reads, checks and writes the shape of a model in a document: numbers of layers and heads, and where layers differ a
// list of runs of equal ones.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/json_writer.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Of one layer all but `window` and `cache_layer`, which it has where they say something.
template <class Fields, class Layer>
void layer_shape_fields(Fields&& f, Layer& layer) {
  f.name("kind", layer.kind, layer_kind_names, "kind of layer");
  if (layer.kind == LayerKind::none) return;
  f.integer("num_query_heads", layer.num_query_heads, 1, max_index);
  f.integer("num_kv_heads", layer.num_kv_heads, 1, max_index);
  f.integer("head_dim", layer.head_dim, 0, max_int32);
  f.integer("value_dim", layer.value_dim, 0, max_int32);
  if (layer.kind == LayerKind::sliding) f.integer("window", layer.window, 1, max_int32);
}

/// Reads runs of layers: `[{kind, num_query_heads, num_kv_heads, head_dim, value_dim, window, cache_layer,
/// layers[first, last]}]`, from layer 0 on.
template <class Layer = LayerShape>
[[nodiscard]] ModelShape read_layers(JsonValue const& value, std::int32_t num_layers) {
  std::vector<Layer> layers;
  JsonArray const array = value.array();
  for (JsonValue const run : array) {
    FieldReader fields(run.object());
    Layer layer;
    layer_shape_fields(fields, layer);
    if (auto const cache = fields.json().find("cache_layer")) {
      layer.cache_layer = static_cast<std::int32_t>(cache->integer<std::int64_t>(0, max_index));
    }
    JsonArray const range = fields.json().get("layers", "an array, [first, last]").array();
    if (range.size() != 2) range.fail("layers of a run", "[first, last]", {range.size(), " numbers"});
    auto const next = static_cast<std::int64_t>(layers.size());
    std::int64_t const first = (*range.begin()).integer(next, next);
    std::int64_t const last = (*++range.begin()).integer<std::int64_t>(first, num_layers - 1);
    layers.resize(static_cast<std::size_t>(last) + 1, layer);
  }
  auto const count = static_cast<std::int64_t>(layers.size());
  if (count != num_layers) array.fail("layers of the runs", num_layers, count);
  try {
    return ModelShape(std::move(layers));
  } catch (ArgumentError const& error) {
    ErrorDetail const& d = error.detail();
    throw FormatError({d.what, d.expected, d.got, array.where() + ", " + d.where});
  }
}

template <class = void>
void write_layers(JsonWriter& json, ModelShape const& shape) {
  FieldWriter const fields(json);
  auto const layers = shape.layers();
  json.key("layers");
  json.array([&] {
    for (std::size_t first = 0; first < layers.size();) {
      std::size_t end = first + 1;
      while (end < layers.size() && layers[end] == layers[first]) ++end;
      json.object([&] {
        layer_shape_fields(fields, layers[first]);
        if (layers[first].cache_layer >= 0) json.field("cache_layer", layers[first].cache_layer);
        json.field("layers",
                   std::vector<std::int64_t>{static_cast<std::int64_t>(first), static_cast<std::int64_t>(end) - 1});
      });
      first = end;
    }
  });
}

/// Checks that a record's counts are those of its layers. @throws FormatError at `object`
template <class Record>
void read_differing_layers(JsonObject& object, Record& record) {
  auto const value = object.find("layers");
  if (!value) return;
  record.layers = read_layers(*value, record.num_layers);
  MostHeads const most(record.layers);
  if (most.query != record.num_heads) value->fail("most query heads of a layer", record.num_heads, most.query);
  if constexpr (requires { record.num_kv_heads; }) {
    if (most.kv != record.num_kv_heads) value->fail("most KV heads of a layer", record.num_kv_heads, most.kv);
  }
  if (record.layers.uniform()) record.layers = {};
}

/// Numbers of layers and heads; of layers that differ, the most of any.
template <class Fields, class Integer>
void count_fields(Fields&& f, Integer& layers, Integer& heads, Integer& kv_heads, bool alike) {
  f.integer("num_layers", layers, 1, max_index);
  f.integer("num_heads", heads, 1, max_index);
  alike ? f.divisor("num_kv_heads", kv_heads, heads) : f.integer("num_kv_heads", kv_heads, 1, max_index);
}

/// Reads `{num_layers, num_heads, num_kv_heads, layers[…] or nothing}`.
template <class Record>
void read_shape(JsonObject object, Record& record) {
  bool const alike = !object.find("layers");
  count_fields(FieldReader(object), record.num_layers, record.num_heads, record.num_kv_heads, alike);
  require_head_count(object, record.num_layers, record.num_heads);
  read_differing_layers(object, record);
}
template <class Record>
void write_shape(JsonWriter& json, Record const& record) {
  bool const alike = record.layers.num_layers() == 0;
  count_fields(FieldWriter(json), record.num_layers, record.num_heads, record.num_kv_heads, alike);
  if (!alike) write_layers(json, record.layers);
}
/// @throws ArgumentError if a file cannot hold the shape
template <class Record>
void check_shape(Record const& record, Text const& where) {
  bool const alike = record.layers.num_layers() == 0;
  count_fields(FieldChecker(where), record.num_layers, record.num_heads, record.num_kv_heads, alike);
  require_shape(record, where);
  require_head_count(query_head_counts(record).view().total(), where);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
