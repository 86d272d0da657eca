#include "tools/llama/attention_tap.hpp"

#include "tools/llama/graph_nodes.hpp"
#include "tools/llama/tensor_data.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// The layer of a node that multiplies queries with the key cache; -1 if it is another node.
std::int32_t query_key_layer(ggml_tensor const* node) {
  return node != nullptr && node->op == GGML_OP_MUL_MAT ? cache_layer(node->src[0], key_cache) : -1;
}

/// The layer of a softmax over queries times keys, which may be capped in between; -1 if it is another node.
std::int32_t soft_max_layer(ggml_tensor const* node) {
  if (node == nullptr || node->op != GGML_OP_SOFT_MAX) return -1;
  ggml_tensor const* logits = node->src[0];
  auto const elementwise = [](ggml_tensor const* t) {
    return t->op == GGML_OP_SCALE || t->op == GGML_OP_ADD ||
           (t->op == GGML_OP_UNARY && ggml_get_unary_op(t) == GGML_UNARY_OP_TANH);
  };
  while (logits != nullptr && elementwise(logits)) logits = logits->src[0];
  return query_key_layer(logits);
}

/// Rows [outer, inner, channels] as [inner, outer, channels].
std::vector<float> swapped(std::vector<float> const& rows, std::int64_t outer, std::int64_t inner,
                           std::int64_t channels) {
  std::vector<float> result(rows.size());
  for (std::int64_t i = 0; i < outer; ++i) {
    for (std::int64_t j = 0; j < inner; ++j) {
      std::copy_n(rows.begin() + (i * inner + j) * channels, channels, result.begin() + (j * outer + i) * channels);
    }
  }
  return result;
}

/// The node that a chain of views begins with.
ggml_tensor const* viewed(ggml_tensor const* tensor) {
  return tensor != nullptr && tensor->view_src != nullptr ? tensor->view_src : tensor;
}

}  // namespace

void require_served(ModelInfo const& info, ha::ModelShape const& shape) {
  bool attends = false;
  for (std::int32_t index = 0; index < shape.num_layers(); ++index) {
    ha::LayerShape const& layer = shape.layer(index);
    attends = attends || layer.has_cache();
    if (!layer.attends() || layer.has_cache()) continue;
    throw ha::Error(
        {"kind of layer " + std::to_string(index),
         "one with a cache of its own: shared caches are not served through llama.cpp",
         std::string(to_string(layer.kind)) + ", reading the cache of layer " + std::to_string(layer.cache_layer),
         "architecture '" + info.architecture + "'"});
  }
  if (!attends) {
    throw ha::Error(
        {"layers with keys and values", "at least one", "none", "architecture '" + info.architecture + "'"});
  }
}

AttentionTap::AttentionTap(Model const& model, Handler handler, TapMode mode)
    : architecture_(model.info().architecture), shape_(model.shape()), handler_(std::move(handler)), mode_(mode) {
  require_served(model.info(), shape_);
}

void AttentionTap::skip_own_attention(std::vector<bool> layers) {
  constexpr auto where = "AttentionTap::skip_own_attention";
  auto const count = static_cast<std::int32_t>(layers.size());
  ha::require(count == 0 || count == shape_.num_layers(), "layers", shape_.num_layers(), count, where);
  ha::require(count == 0 || mode_ == TapMode::replace, "mode", "replace", "observe", where);
  skipped_ = std::move(layers);
}

void AttentionTap::begin(std::span<std::int32_t const> positions) {
  positions_.assign(positions.begin(), positions.end());
  layers_.assign(static_cast<std::size_t>(shape_.num_layers()), {});
  windows_.clear();
}

AttentionTap::Found AttentionTap::find(ggml_tensor const* node) {
  switch (node->op) {
    case GGML_OP_SET_ROWS:
      if (auto const layer = cache_layer(node, key_cache); layer >= 0) return {Part::keys, layer};
      if (auto const layer = cache_layer(node, value_cache); layer >= 0) return {Part::values, layer};
      break;
    case GGML_OP_MUL_MAT:
      // First, since the values of a latent are a view of the key cache.
      if (auto const layer = soft_max_layer(node->src[1]); layer >= 0) return {Part::weighted, layer};
      if (auto const layer = query_key_layer(node); layer >= 0) return {Part::queries, layer};
      break;
    case GGML_OP_SOFT_MAX:
      if (auto const layer = soft_max_layer(node); layer >= 0) return {Part::soft_max, layer};
      break;
    case GGML_OP_CONT: {
      // Probabilities times values, heads put side by side again.
      ggml_tensor const* const weighted = viewed(node->src[0]);
      if (weighted == nullptr || weighted->op != GGML_OP_MUL_MAT) break;
      if (auto const layer = soft_max_layer(weighted->src[1]); layer >= 0) return {Part::output, layer};
      break;
    }
    case GGML_OP_FLASH_ATTN_EXT:
      if (auto const layer = cache_layer(node->src[1], key_cache); layer >= 0) return {Part::fused, layer};
      break;
    default: break;
  }
  return {};
}

void AttentionTap::set_computed(ggml_tensor* node, Found const& found) const {
  bool const attends = found.part == Part::queries || found.part == Part::soft_max || found.part == Part::weighted ||
                       found.part == Part::output || found.part == Part::fused;
  if (!attends) return;
  auto const index = static_cast<std::size_t>(found.layer);
  bool const skipped = index < skipped_.size() && skipped_[index];
  // Graphs are used again, so the flag is set again too.
  node->flags = skipped ? node->flags & ~GGML_TENSOR_FLAG_COMPUTE : node->flags | GGML_TENSOR_FLAG_COMPUTE;
}

bool AttentionTap::wants(Found const& found) const {
  // Probabilities times values are of use where they are the output already: a latent's, whose heads the graph unpacks
  // next. Its values are no rows of their own.
  bool const latent =
      found.layer >= 0 && found.layer < shape_.num_layers() && shape_.layer(found.layer).kind == ha::LayerKind::latent;
  switch (found.part) {
    case Part::none: return false;
    case Part::weighted: return latent;
    case Part::output: return !latent;
    default: return true;
  }
}

bool AttentionTap::on_node(ggml_tensor* node, bool asking) {
  Found const found = find(node);
  bool const wanted = wants(found);
  if (asking) set_computed(node, found);
  if (asking || !wanted) return wanted;
  if (found.layer >= shape_.num_layers() || !shape_.layer(found.layer).has_cache()) {
    fail("layer", "one of " + std::to_string(shape_.num_layers()) + " with a cache", std::to_string(found.layer), node);
  }
  Layer& layer = layers_[static_cast<std::size_t>(found.layer)];
  switch (found.part) {
    case Part::keys: layer.keys = floats_of(node->src[0]); break;
    case Part::values: layer.values = floats_of(node->src[0]); break;
    case Part::queries: take_queries(node->src[1], layer, found.layer); break;
    case Part::soft_max: take_soft_max(node, layer, found.layer); break;
    case Part::fused:
      take_fused(node, layer, found.layer);
      deliver(node, layer, found.layer, false);
      break;
    case Part::output: deliver(node, layer, found.layer, false); break;
    case Part::weighted: deliver(node, layer, found.layer, true); break;
    case Part::none: break;
  }
  return true;
}

void AttentionTap::take_queries(ggml_tensor const* permuted, Layer& layer, std::int32_t index) {
  // The attention reads them as [head_dim, tokens, heads]; here a token's heads lie side by side.
  auto const tokens = static_cast<std::int64_t>(positions_.size());
  if (permuted->ne[1] != tokens || permuted->ne[3] != 1) {
    fail("queries", "those of " + std::to_string(tokens) + " tokens in one graph", std::to_string(permuted->ne[1]),
         permuted);
  }
  ha::LayerShape const& shape = shape_.layer(index);
  if (permuted->ne[0] != shape.head_dim || permuted->ne[2] != shape.num_query_heads) {
    fail("queries", std::to_string(shape.num_query_heads) + " heads of " + std::to_string(shape.head_dim) + " channels",
         std::to_string(permuted->ne[2]) + " of " + std::to_string(permuted->ne[0]), permuted);
  }
  layer.queries = floats_of(permuted, 1, 2);
}

void AttentionTap::take_sinks(ggml_tensor const* sinks, ggml_tensor const* node, Layer& layer, std::int32_t index) {
  if (parameter(node, 1) != 0) {
    fail("attention", "logits of queries and keys alone", "a bias by distance (ALiBi)", node);
  }
  if (sinks == nullptr) return;
  layer.sinks = floats_of(sinks);
  auto const heads = static_cast<std::size_t>(shape_.layer(index).num_query_heads);
  if (layer.sinks.size() != heads) {
    fail("learned sinks", std::to_string(heads) + ", one per query head", std::to_string(layer.sinks.size()), node);
  }
}

void AttentionTap::take_soft_max(ggml_tensor const* node, Layer& layer, std::int32_t index) {
  float const scale = parameter(node, 0);
  take_sinks(node->src[2], node, layer, index);
  ggml_tensor const* logits = node->src[0];
  if (logits->op == GGML_OP_MUL_MAT) {
    layer.scale = scale;
  } else {
    // cap · tanh(factor · q·k): three nodes; the softmax's own scale would come after the cap.
    ggml_tensor const* const hyperbolic = logits->op == GGML_OP_SCALE ? logits->src[0] : nullptr;
    ggml_tensor const* const scaled =
        hyperbolic != nullptr && hyperbolic->op == GGML_OP_UNARY ? hyperbolic->src[0] : nullptr;
    bool const capped = scaled != nullptr && scaled->op == GGML_OP_SCALE && scaled->src[0]->op == GGML_OP_MUL_MAT;
    if (!capped || scale != 1) {
      fail("logits", "scale · q·k, with or without a soft cap around it", "something else", node);
    }
    layer.soft_cap = parameter(logits, 0);
    layer.scale = parameter(scaled, 0) * layer.soft_cap;
  }
  check_mask(node->src[1], node, index);
  layer.scored = true;
}

void AttentionTap::take_fused(ggml_tensor const* node, Layer& layer, std::int32_t index) {
  take_sinks(node->src[4], node, layer, index);
  take_queries(node->src[0], layer, index);
  layer.scale = parameter(node, 0);
  layer.soft_cap = parameter(node, 2);
  check_mask(node->src[3], node, index);
  layer.scored = true;
}

void AttentionTap::check_mask(ggml_tensor const* mask, ggml_tensor const* node, std::int32_t index) {
  if (mask == nullptr || (mask->type != GGML_TYPE_F32 && mask->type != GGML_TYPE_F16)) {
    fail("mask", "one of 0 and -inf for each query and key", mask == nullptr ? "none" : ggml_type_name(mask->type),
         node);
  }
  auto const tokens = static_cast<std::int64_t>(positions_.size());
  std::int64_t const own = shape_.layer(index).window;
  std::int64_t const window = own > 0 && own < tokens ? own : 0;  // as far as a mask of these tokens shows it
  auto const known = windows_.find(mask);
  if (known != windows_.end() && known->second == window) return;
  TensorBytes const bytes(mask);
  if (mask->ne[0] < tokens || mask->ne[1] < tokens || mask->ne[3] != 1) {
    fail("mask", std::to_string(tokens) + " queries and as many keys",
         std::to_string(mask->ne[1]) + " and " + std::to_string(mask->ne[0]), node);
  }
  // Not -inf: what a query sees. Minus infinity is the one value with these bits.
  auto const sees = [&](std::int64_t query, std::int64_t key) {
    std::byte const* const at =
        bytes.data() + static_cast<std::size_t>(query) * mask->nb[1] + static_cast<std::size_t>(key) * mask->nb[0];
    if (mask->type == GGML_TYPE_F16) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, at, sizeof(bits));
      return bits != 0xfc00U;
    }
    float value = 0;
    std::memcpy(&value, at, sizeof(value));
    return std::isfinite(value);
  };
  for (std::int64_t query = 0; query < tokens; ++query) {
    std::int64_t const first = window > 0 ? std::max<std::int64_t>(0, query - window + 1) : 0;
    std::int64_t seen = 0;
    std::int64_t oldest = -1;
    bool fits = true;
    for (std::int64_t key = 0; key < mask->ne[0]; ++key) {
      bool const is = sees(query, key);
      fits = fits && is == (key >= first && key <= query);
      seen += is ? 1 : 0;
      if (is && oldest < 0) oldest = key;
    }
    if (!fits) {
      fail("mask of layer " + std::to_string(index),
           "query " + std::to_string(query) + " to see " + std::to_string(query - first + 1) + " keys from " +
               std::to_string(first) + " on" + (own > 0 ? ", a window of " + std::to_string(own) : ""),
           std::to_string(seen) + " keys from " + std::to_string(oldest) + " on", node);
    }
  }
  windows_[mask] = window;
}

void AttentionTap::unpad(std::vector<float>& values, std::int64_t width) const {
  std::int64_t widest = 0;
  for (ha::LayerShape const& layer : shape_.layers()) widest = std::max(widest, layer.num_kv_heads * layer.value_dim);
  auto const tokens = static_cast<std::int64_t>(positions_.size());
  if (width == widest || std::ssize(values) != tokens * widest) return;
  for (std::int64_t token = 1; token < tokens; ++token) {
    std::copy_n(values.begin() + token * widest, width, values.begin() + token * width);
  }
  values.resize(static_cast<std::size_t>(tokens * width));
}

void AttentionTap::deliver(ggml_tensor* node, Layer& layer, std::int32_t index, bool by_heads) {
  auto const cell = [&](std::string_view cache) { return std::string(cache) + std::to_string(index); };
  if (layer.keys.empty()) fail("keys", "a SET_ROWS node that stores them in " + cell(key_cache), "none", node);
  bool const latent = shape_.layer(index).kind == ha::LayerKind::latent;
  if (layer.values.empty() && !latent)
    fail("values", "a SET_ROWS node that stores them in " + cell(value_cache), "none", node);
  if (layer.queries.empty()) fail("queries", "a MUL_MAT node with " + cell(key_cache), "none", node);
  if (!layer.scored) fail("scale and mask", "a SOFT_MAX node", "none", node);

  ha::LayerShape const& shape = shape_.layer(index);
  auto const tokens = static_cast<std::int64_t>(positions_.size());
  auto const check = [&](std::vector<float> const& rows, std::int64_t channels, char const* what) {
    if (std::ssize(rows) == tokens * shape.num_kv_heads * channels) return;
    fail(what, std::to_string(shape.num_kv_heads) + " KV heads of " + std::to_string(channels) + " channels per token",
         std::to_string(rows.size()) + " elements of " + std::to_string(tokens) + " tokens", node);
  };
  check(layer.keys, shape.head_dim, "keys");
  if (latent) {
    for (std::int64_t token = 0; token < tokens; ++token) {
      auto const row = layer.keys.begin() + token * shape.head_dim;
      layer.values.insert(layer.values.end(), row, row + shape.value_dim);
    }
  }
  unpad(layer.values, shape.num_kv_heads * shape.value_dim);
  check(layer.values, shape.value_dim, "values");
  bool const replaced = mode_ == TapMode::replace;
  bool const skipped = !skipped_.empty() && skipped_[static_cast<std::size_t>(index)];
  if (replaced) {
    if (node->type != GGML_TYPE_F32 || !ggml_is_contiguous(node) ||
        ggml_nelements(node) != tokens * shape.num_query_heads * shape.value_dim) {
      fail("attention's output", "single precision, [tokens, query heads · channels of a value]",
           ggml_type_name(node->type), node);
    }
    output_.resize(static_cast<std::size_t>(ggml_nelements(node)));
    if (skipped) {
      // So that what a handler forgets is seen.
      std::fill(output_.begin(), output_.end(), std::numeric_limits<float>::quiet_NaN());
    } else {
      ggml_backend_tensor_get(node, output_.data(), 0, ggml_nbytes(node));
      if (by_heads) output_ = swapped(output_, shape.num_query_heads, tokens, shape.value_dim);
    }
  }
  handler_({.layer = index,
            .queries = layer.queries.data(),
            .keys = layer.keys.data(),
            .values = layer.values.data(),
            .latent = latent,
            .num_query_heads = shape.num_query_heads,
            .num_kv_heads = shape.num_kv_heads,
            .tokens = tokens,
            .head_dim = shape.head_dim,
            .value_dim = shape.value_dim,
            .positions = positions_,
            .scale = layer.scale,
            .soft_cap = layer.soft_cap,
            .sliding_window = static_cast<std::int32_t>(shape.window),
            .sinks = layer.sinks.empty() ? nullptr : layer.sinks.data(),
            .output = replaced ? output_.data() : nullptr});
  if (replaced && by_heads) output_ = swapped(output_, tokens, shape.num_query_heads, shape.value_dim);
  if (replaced) ggml_backend_tensor_set(node, output_.data(), 0, ggml_nbytes(node));
  // A layer's tensors are large, and none but this one is looked at.
  layer = Layer{};
  layer.delivered = true;
}

void AttentionTap::finish() {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer const& layer = layers_[i];
    if (layer.delivered || !shape_.layer(static_cast<std::int32_t>(i)).has_cache()) continue;
    std::string const number = std::to_string(i);
    std::string missing = "CONT, of probabilities times values";
    if (!layer.scored) missing = "SOFT_MAX of queries times keys, or FLASH_ATTN_EXT";
    if (layer.queries.empty()) missing = "MUL_MAT with " + std::string(key_cache) + number + ", or FLASH_ATTN_EXT";
    if (layer.keys.empty()) missing = "SET_ROWS into " + std::string(key_cache) + number;
    fail("attention of layer " + number, "a node " + missing, "none in the whole graph", nullptr);
  }
}

void AttentionTap::fail(std::string what, std::string expected, std::string got, ggml_tensor const* node) const {
  std::string where = "architecture '" + architecture_ + "'";
  if (node != nullptr) where += ", node " + std::string(ggml_op_desc(node)) + " '" + node->name + "'";
  throw ha::Error({std::move(what), std::move(expected), std::move(got), std::move(where)});
}

}  // namespace llama_adapter
