#pragma once

// What a `plan.json` says of formats: those to choose among, those of each head, and bytes. Only plans by bytes have
// it.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/format/table.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/json_writer.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Turns what is wrong with arguments into what is wrong with a file. @param at  names the place
template <class F>
decltype(auto) as_format_error(JsonValue const& at, F&& f) {
  try {
    return f();
  } catch (ArgumentError const& error) {
    ErrorDetail const& d = error.detail();
    throw FormatError({d.what, d.expected, d.got, at.where() + ", " + d.where});
  }
}

/// Reads a format: its name, or `{name, scale}`.
template <class = void>
[[nodiscard]] AnyFormat<> read_row_format(JsonValue const& json) {
  bool const scaled = json.kind() == JsonKind::object;
  JsonValue const name = scaled ? json.object().get("name", "a string") : json;
  auto const format =
      AnyFormat<>::of_name(DefaultFormats::names[name.name_of<std::uint8_t>(DefaultFormats::names, "format")]);
  if (!scaled) return format;
  JsonValue const scale = json.object().get("scale", "a number");
  double const number = scale.number();
  if (!(number > 0 && number <= 3e38)) scale.fail("scale", "> 0 and finite", number);
  return as_format_error(scale, [&] { return format.with_scale(static_cast<float>(number)); });
}
/// Writes its name; where it has a scale other than 1, which a name alone means, `{name, scale}`.
template <class = void>
void write_row_format(JsonWriter& json, AnyFormat<> const& format) {
  if (format.scale() == 1) {
    json.value(format.name());
    return;
  }
  json.object([&] {
    json.field("name", format.name());
    json.field("scale", static_cast<double>(format.scale()));
  });
}
/// Reads `[key, value]`.
template <class = void>
[[nodiscard]] HeadFormats read_format_pair(JsonValue const& json) {
  JsonArray const array = json.array();
  if (array.size() != 2) array.fail("formats", "[of keys, of values]", {array.size(), " names"});
  auto at = array.begin();
  AnyFormat<> const key = read_row_format<>(*at);
  return {key, read_row_format<>(*++at)};
}
template <class = void>
void write_format_pair(JsonWriter& json, HeadFormats const& pair) {
  json.array([&] {
    write_row_format(json, pair.key);
    write_row_format(json, pair.value);
  });
}

/// Reads `formats{head_dim, sixteen_bits[2], pairs[[2]…]}` of a plan's options, if there are any.
/// @param alike  whether all layers are alike, so that `head_dim` is needed
template <class = void>
[[nodiscard]] FormatChoice read_format_choice(JsonObject& options, bool alike) {
  FormatChoice choice;
  auto const found = options.find("formats");
  if (!found) return choice;
  FieldReader fields(found->object());
  fields.integer("head_dim", choice.head_dim, alike ? 1 : 0, max_int32);
  JsonValue const sixteen = fields.json().get("sixteen_bits", "an array of two names");
  choice.sixteen_bits = read_format_pair<>(sixteen);
  if (!has_sixteen_bits(choice.sixteen_bits)) sixteen.fail("formats of 16 bits", "fp16 or bf16");
  JsonArray const pairs = fields.json().get("pairs", "an array of [of keys, of values]").array();
  for (JsonValue const pair : pairs) choice.pairs.push_back(read_format_pair<>(pair));
  if (choice.pairs.empty()) pairs.fail("empty list", "at least one pair of formats", "none");
  return choice;
}
template <class = void>
void write_format_choice(JsonWriter& json, FormatChoice const& choice) {
  if (!choice.by_bytes()) return;
  json.field("formats", [&] {
    json.field("head_dim", choice.head_dim);
    json.key("sixteen_bits");
    write_format_pair(json, choice.sixteen_bits);
    json.key("pairs");
    json.array([&] {
      for (HeadFormats const& pair : choice.pairs) write_format_pair(json, pair);
    });
  });
}

/// Rows and pages of a plan's heads: of plans by tokens pages of so many tokens, without bytes.
class PlanPages {
 public:
  /// @throws ArgumentError if channels are not known
  template <class = void>
  explicit PlanPages(PolicyPlan const& plan, char const* where) : options_(&plan.options) {
    FormatChoice const& choice = plan.options.formats;
    if (choice.by_bytes()) channels_ = known_channels(plan.layers, plan.num_layers, choice.head_dim, where);
  }
  /// @throws ArgumentError if a page holds no row
  [[nodiscard]] RowPages of(std::int32_t layer, HeadFormats const& formats) const {
    auto const l = static_cast<std::size_t>(layer);
    if (l >= channels_.size()) return {options_->page_size, 0};
    return options_->formats.pages(formats, channels_[l], options_->page_size);
  }
  /// Bytes of a row of 16 bits, [num_layers]; empty in plans by tokens.
  [[nodiscard]] std::vector<std::int64_t> row_costs() const {
    FormatChoice const& choice = options_->formats;
    std::vector<std::int64_t> costs;
    for (RowChannels const& rows : channels_) costs.push_back(choice.pages(choice.sixteen_bits, rows, 1).bytes);
    return costs;
  }

 private:
  PlanOptions const* options_;
  std::vector<RowChannels> channels_;  ///< [num_layers]; empty in plans by tokens
};

/// Reads `key_format` and `value_format` of a head, which it has where they are not `sixteen`.
template <class = void>
[[nodiscard]] HeadFormats read_head_formats(JsonObject& head, HeadFormats sixteen) {
  if (auto const key = head.find("key_format")) sixteen.key = read_row_format<>(*key);
  if (auto const value = head.find("value_format")) sixteen.value = read_row_format<>(*value);
  return sixteen;
}
/// Writes them, and `bytes`.
template <class = void>
void write_head_formats(JsonWriter& json, HeadFormats const& formats, HeadFormats const& sixteen, std::int64_t bytes) {
  auto const write = [&](char const* key, AnyFormat<> const& format, AnyFormat<> const& usual) {
    if (format == usual) return;
    json.key(key);
    write_row_format(json, format);
  };
  write("key_format", formats.key, sixteen.key);
  write("value_format", formats.value, sixteen.value);
  json.field("bytes", bytes);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
