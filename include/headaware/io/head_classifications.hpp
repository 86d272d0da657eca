#pragma once

/// @file
/// Reads `head_classifications.json` and `refined_classifications.json`.

#include <headaware/classify/head_type.hpp>
#include <headaware/config.hpp>
#include <headaware/io/detail/json_records.hpp>
#include <headaware/io/json_tree.hpp>
#include <headaware/io/file.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// What older files leave to the type.
inline void derive_strategy(HeadClassification& c) {
  switch (c.head_type) {
    case HeadType::sink_positional:
    case HeadType::sink_mixed:
    case HeadType::positional: c.compression_strategy = CompressionStrategy::sink_window; break;
    case HeadType::true_positional: c.compression_strategy = CompressionStrategy::window_only; break;
    case HeadType::gathering: c.compression_strategy = CompressionStrategy::full; break;
    case HeadType::mixed: c.compression_strategy = CompressionStrategy::none; break;
    case HeadType::dead: c.compression_strategy = CompressionStrategy::prune; break;
  }
  c.keep_sinks = c.compression_strategy == CompressionStrategy::sink_window;
  c.use_full_cache =
      c.compression_strategy == CompressionStrategy::full || c.compression_strategy == CompressionStrategy::none;
}

[[nodiscard]] inline HeadClassification read_classification(JsonObject record) {
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  auto flag = [&](char const* key) { return record.get(key, "true or false").boolean(); };
  HeadClassification c;
  c.layer_idx = record.get("layer_idx", "an integer").integer(0, max_index - 1);
  c.head_idx = record.get("head_idx", "an integer").integer(0, max_index - 1);
  c.head_type = record.get("head_type", "a string").name_of<HeadType>(head_type_names, "head type");
  c.confidence = share(record.get("confidence", "a number"));
  c.can_prune = flag("can_prune");
  c.can_limit_window = flag("can_limit_window");
  JsonValue const window = record.get("recommended_window", "an integer");
  c.recommended_window = window.integer(std::numeric_limits<std::int32_t>::min(), most);
  if (c.recommended_window != -1 && c.recommended_window <= 0) window.fail("out of range", "-1 or a window > 0");

  bool const older = !record.find("keep_sinks") && !record.find("sink_size") && !record.find("use_full_cache") &&
                     !record.find("compression_strategy");
  if (older) {
    derive_strategy(c);
    return c;
  }
  c.keep_sinks = flag("keep_sinks");
  c.sink_size = record.get("sink_size", "an integer").integer(0, most);
  c.use_full_cache = flag("use_full_cache");
  c.compression_strategy = record.get("compression_strategy", "a string")
                               .name_of<CompressionStrategy>(compression_strategy_names, "compression strategy");
  return c;
}

}  // namespace detail

/// @brief Classifications from the text of a `head_classifications.json` or `refined_classifications.json`:
/// `{classifications[...]}` or the bare array. Records may stand in any order and may have the legacy type
/// `positional`; what older ones lack (`keep_sinks`, `sink_size`, `use_full_cache`, `compression_strategy`,
/// all four) follows from their type. Keys that are not known, `summary` among them, are passed over.
/// @param source_name  names the text in messages, for example its path
/// @return one entry per query head, by (layer, head); together every head of a model
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, a field is
///         missing, of another type or out of range, a head is missing or double, or there are none or more
///         than `max_heads` heads
/// @par Cost  O(text); 350 kB (1,024 heads) in some 1 ms
[[nodiscard]] inline std::vector<HeadClassification> parse_classifications(std::string_view text,
                                                                           std::string source_name) {
  JsonTree const tree(text, std::move(source_name));
  JsonValue const root = tree.root();
  bool const bare = root.kind() == JsonKind::array;
  if (!bare && root.kind() != JsonKind::object) root.fail("wrong type", "an object or an array");
  if (auto const format = bare ? std::nullopt : root.object().find("format")) {
    if (!root.object().find("classifications"))
      format->fail("another document", "classes of heads (\"classifications\")");
  }
  JsonArray const records =
      bare ? root.array() : root.object().get("classifications", "an array, the classes of heads").array();
  if (records.size() == 0) records.fail("no heads", "at least one head");

  std::vector<HeadClassification> heads;
  heads.reserve(records.size());
  for (JsonValue const record : records) heads.push_back(detail::read_classification(record.object()));
  GridShape const shape = grid_shape(std::span<HeadClassification const>(heads));
  detail::require_head_count(records, shape.layers, shape.heads);
  return detail::in_order(std::move(heads), shape.layers, shape.heads, records);
}

/// @brief `parse_classifications` of a file.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline std::vector<HeadClassification> load_classifications(std::filesystem::path const& path) {
  return parse_classifications(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
