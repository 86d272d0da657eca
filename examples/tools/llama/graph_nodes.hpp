#pragma once

// Reads what nodes of the engine's graph are.

#include <ggml.h>

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <system_error>

namespace llama_adapter {

inline constexpr std::string_view key_cache = "cache_k_l";
inline constexpr std::string_view value_cache = "cache_v_l";

/// A parameter of a node's operation.
inline float parameter(ggml_tensor const* node, int index) {
  float value = 0;
  std::memcpy(&value, node->op_params + index, sizeof(value));
  return value;
}

/// The layer whose cache a tensor is, looked at through views and copies to another type; -1 if it is none.
inline std::int32_t cache_layer(ggml_tensor const* tensor, std::string_view cache) {
  while (tensor != nullptr) {
    if (tensor->view_src != nullptr) {
      tensor = tensor->view_src;
    } else if (tensor->op == GGML_OP_CPY || tensor->op == GGML_OP_CONT) {
      tensor = tensor->src[0];
    } else {
      break;
    }
  }
  if (tensor == nullptr) return -1;
  std::string_view const name(tensor->name);
  if (!name.starts_with(cache)) return -1;
  std::int32_t layer = -1;
  char const* const end = name.data() + name.size();
  auto const [last, error] = std::from_chars(name.data() + cache.size(), end, layer);
  return error == std::errc{} && last == end ? layer : -1;
}

}  // namespace llama_adapter
