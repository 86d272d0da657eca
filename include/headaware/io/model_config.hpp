#pragma once

/// @file
/// Reads a model's shape from a Hugging Face `config.json`.

#include <headaware/config.hpp>
#include <headaware/detail/json_records.hpp>
#include <headaware/detail/json_tree.hpp>
#include <headaware/io/file.hpp>
#include <headaware/types.hpp>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A model's shape from the text of its `config.json`. Where the document itself has no
/// `num_hidden_layers`, its `text_config` is read: the language part of a multimodal model.
///
/// `num_key_value_heads` is `num_attention_heads` where absent or null; `head_dim` is then
/// `hidden_size / num_attention_heads`, or 0 where that is absent too.
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, a field is
///         missing, not an integer or out of range, or a division leaves a rest
[[nodiscard]] inline ModelConfig parse_model_config(std::string_view text, std::string source_name) {
  detail::JsonTree const tree(text, std::move(source_name));
  detail::JsonObject config = tree.root().object();
  if (!config.find("num_hidden_layers")) {
    if (auto const nested = config.find("text_config")) config = nested->object();
  }
  auto optional = [&](char const* key) {
    auto const value = config.find(key);
    return value && !value->is_null() ? value : std::nullopt;
  };
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  ModelConfig model;
  model.num_hidden_layers = config.get("num_hidden_layers", "an integer").integer(1, detail::max_index);
  model.num_attention_heads = config.get("num_attention_heads", "an integer").integer(1, detail::max_index);
  detail::require_head_count(config, model.num_hidden_layers, model.num_attention_heads);

  model.num_key_value_heads = model.num_attention_heads;
  if (auto const heads = optional("num_key_value_heads")) {
    model.num_key_value_heads = heads->integer(1, model.num_attention_heads);
    if (model.num_attention_heads % model.num_key_value_heads != 0) {
      heads->fail("uneven groups",
                  "a divisor of num_attention_heads (" + std::to_string(model.num_attention_heads) + ")");
    }
  }
  if (auto const head_dim = optional("head_dim")) {
    model.head_dim = head_dim->integer(1, most);
  } else if (auto const hidden = optional("hidden_size")) {
    std::int32_t const size = hidden->integer(1, most);
    if (size % model.num_attention_heads != 0) {
      hidden->fail("uneven heads",
                   "a multiple of num_attention_heads (" + std::to_string(model.num_attention_heads) + ")");
    }
    model.head_dim = size / model.num_attention_heads;
  }
  return model;
}

/// @brief `parse_model_config` of a file.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline ModelConfig load_model_config(std::filesystem::path const& path) {
  return parse_model_config(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
