#pragma once

/// @file
/// Reads, checks and writes `sensitivities.json`.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/shape_fields.hpp>
#include <headaware/io/file.hpp>
#include <headaware/plan/measured_sensitivity.hpp>
#include <headaware/plan/sensitivity.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief One `sensitivities.json`: either factors of errors, or the losses to make them of.
struct SavedSensitivities {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;  ///< 0: one number per layer; where layers differ, of the layer that has most
  bool losses = false;            ///< `values` are increases of the loss (nats) with one layer or head alone cut
  SinkWindow cut{.sink = 4, .window = 60};  ///< to this
  std::vector<double> values;               ///< [layers], or of the KV heads, layer by layer
  ModelShape layers{};                      ///< where they differ; empty: all alike

  /// Numbers that there must be.
  [[nodiscard]] std::int64_t count() const {
    return num_kv_heads == 0 ? num_layers : detail::kv_head_counts(*this).view().total();
  }

  /// @throws ArgumentError unless they are of a model of this shape
  void require_shape(std::int32_t model_layers, std::int32_t layer_heads, Text const& where) const {
    require(num_layers == model_layers, "sensitivities' layers", model_layers, num_layers, where);
    bool const heads = num_kv_heads == 0 || num_kv_heads == layer_heads;
    require(heads, "sensitivities' KV heads", layer_heads, num_kv_heads, where);
  }
  /// The same of the model of these statistics.
  void require_shape(RetentionInfo const& info, Text const& where) const {
    require_shape(info.num_layers, info.num_kv_heads, where);
    if (layers == info.layers) return;
    if (layers.num_layers() > 0) return detail::require_same_shape(info.shape(), layers, false, "sensitivities", where);
    if (num_kv_heads == 0) return;
    detail::HeadCounts const expected = detail::kv_head_counts(info);
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      require(expected.view().count(layer) == num_kv_heads, "sensitivities' KV heads", expected.view().count(layer),
              num_kv_heads, {where, ", layer ", layer});
    }
  }

  /// @brief The factors; from losses as `sensitivities_from_losses` makes them with this cut.
  /// @throws ArgumentError if the model is another, or as there
  [[nodiscard]] Sensitivities factors(RetentionStatistics const& statistics, SensitivityOptions options = {}) const {
    require_shape(statistics.info, "SavedSensitivities::factors");
    options.cut = cut;
    if (losses) return detail::factors_from_losses(statistics, values, num_kv_heads != 0, options);
    return num_kv_heads == 0 ? Sensitivities::per_layer(values)
                             : Sensitivities::per_head(statistics.info.shape(), values);
  }

  friend bool operator==(SavedSensitivities const&, SavedSensitivities const&) = default;
};

namespace detail {

inline constexpr std::string_view sensitivities_format = "headaware.sensitivities";
inline constexpr std::int32_t sensitivities_version = 1;

enum class SensitivityKind : std::uint8_t { factor, loss_increase };
inline constexpr std::array<std::string_view, 2> sensitivity_kind_names{"factor", "loss_increase"};

/// All but the values.
template <class Fields, class Saved>
void sensitivity_fields(Fields&& f, Saved& saved, SensitivityKind& kind) {
  f.integer("num_layers", saved.num_layers, 1, max_index);
  f.integer("num_kv_heads", saved.num_kv_heads, 0, max_index);
  f.name("kind", kind, sensitivity_kind_names, "kind");
  f.object("cut", [&](auto&& cut) {
    constexpr std::int64_t most = std::int64_t{1} << 30;
    cut.integer("sink", saved.cut.sink, 0, most);
    cut.integer("window", saved.cut.window, 0, most);
  });
}

}  // namespace detail

/// @brief Reads sensitivities from the text of a `sensitivities.json`: `{format, version, num_layers, num_kv_heads,
/// kind, cut{sink, window}, values[…], layers[…] or nothing}`; kind is `factor` or `loss_increase`, num_kv_heads 0 if
/// there is one number per layer.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, of another format or
///         version, a field is missing, of another type or out of range, or a factor is negative
[[nodiscard]] inline SavedSensitivities parse_sensitivities(std::string_view text, std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonObject root = tree.root().object();
  detail::read_format(root, detail::sensitivities_format, detail::sensitivities_version);
  SavedSensitivities saved;
  detail::SensitivityKind kind{};
  detail::sensitivity_fields(detail::FieldReader(root), saved, kind);
  saved.losses = kind == detail::SensitivityKind::loss_increase;
  JsonArray const array = root.get("values", "an array").array();
  if (auto const layers = root.find("layers")) {
    detail::require_head_count(*layers, saved.num_layers, std::max(saved.num_kv_heads, 1));
    saved.layers = detail::read_layers(*layers, saved.num_layers);
    std::int32_t const most = detail::MostHeads(saved.layers).kv;
    bool const same = saved.num_kv_heads == 0 || saved.num_kv_heads == most;
    if (!same) layers->fail("most KV heads of a layer", saved.num_kv_heads, most);
    if (saved.layers.uniform()) saved.layers = {};
  }
  std::int64_t const count = saved.count();
  if (static_cast<std::int64_t>(array.size()) != count) array.fail("number of values", count, array.size());
  for (JsonValue const value : array) {
    saved.values.push_back(value.number());
    if (!saved.losses && !(saved.values.back() >= 0)) value.fail("negative factor", ">= 0");
  }
  return saved;
}

/// @brief Checks that a file can hold sensitivities: `format_sensitivities` does.
/// @throws ArgumentError if the number of values is another, or a field or value is out of range
inline void validate_sensitivities(SavedSensitivities const& saved, Text const& where = "SavedSensitivities") {
  detail::SensitivityKind kind{};
  detail::sensitivity_fields(detail::FieldChecker(where), saved, kind);
  if (saved.layers.num_layers() > 0) {
    std::int32_t const most = detail::MostHeads(saved.layers).kv;
    bool const same =
        saved.layers.num_layers() == saved.num_layers && (saved.num_kv_heads == 0 || saved.num_kv_heads == most);
    require(same, "layers", "as many, and with as many KV heads, as the counts beside them", "others", where);
  }
  std::int64_t const count = saved.count();
  require(static_cast<std::int64_t>(saved.values.size()) == count, "number of values", count, saved.values.size(),
          where);
  for (double const value : saved.values) {
    require(std::isfinite(value) && (saved.losses || value >= 0), "value", "a finite number, a factor >= 0", value,
            where);
  }
}

/// @brief Returns the text of a `sensitivities.json`; `parse_sensitivities` reads the same values back.
/// @throws ArgumentError as `validate_sensitivities`
[[nodiscard]] inline std::string format_sensitivities(SavedSensitivities const& saved) {
  validate_sensitivities(saved, "format_sensitivities");
  JsonWriter json(1);
  json.object([&] {
    detail::write_format(json, detail::sensitivities_format, detail::sensitivities_version);
    auto kind = saved.losses ? detail::SensitivityKind::loss_increase : detail::SensitivityKind::factor;
    detail::sensitivity_fields(detail::FieldWriter(json), saved, kind);
    json.field("values", saved.values);
    if (saved.layers.num_layers() > 0) detail::write_layers(json, saved.layers);
  });
  return json.text();
}

/// @brief Reads a file by `parse_sensitivities`.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline SavedSensitivities load_sensitivities(FilePath const& path) {
  return parse_sensitivities(read_text_file(path), path.string());
}

/// @brief Writes `format_sensitivities`, whole or not at all.
/// @throws ArgumentError as there, FileError if the file cannot be written
inline void save_sensitivities(FilePath const& path, SavedSensitivities const& saved) {
  write_file(path, format_sensitivities(saved));
}

HEADAWARE_NAMESPACE_END
