#pragma once

/// @file
/// The KV cache of a model, layer by layer: layers of full attention, of sliding windows, of a latent, without a cache,
/// and those that read another layer's cache.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/token_bytes.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief How a layer attends, as far as its cache is concerned.
enum class LayerKind : std::uint8_t {
  attention,  ///< to all tokens before
  sliding,    ///< to the last `window` tokens
  latent,     ///< multi-head latent attention: one row per token for all query heads, the value within the key
  none,       ///< no keys and values: linear attention, state space, feed-forward
};

inline constexpr std::array<std::string_view, 4> layer_kind_names{"attention", "sliding", "latent", "none"};

/// The name of a kind in files and messages.
[[nodiscard]] constexpr std::string_view to_string(LayerKind kind) {
  return layer_kind_names[static_cast<std::size_t>(kind)];
}

/// @brief The KV cache of one layer. Layers without a cache (`LayerKind::none`) have zeros but for the kind.
struct LayerShape {
  LayerKind kind = LayerKind::attention;
  std::int32_t num_query_heads = 0;  ///< a multiple of `num_kv_heads`
  std::int32_t num_kv_heads = 0;     ///< 1 where the layer holds a latent
  std::int64_t head_dim = 0;         ///< channels of a query and of a key; latent: of the whole row
  /// Channels of a value; latent: the first ones of the row; 0: `head_dim`, once the layer is in a `ModelShape`.
  std::int64_t value_dim = 0;
  std::int64_t window = 0;        ///< sliding: tokens that a query sees, itself included; others: 0
  std::int32_t cache_layer = -1;  ///< an earlier layer, whose cache this one reads; -1: its own

  /// Whether the layer holds rows of its own.
  [[nodiscard]] constexpr bool has_cache() const { return kind != LayerKind::none && cache_layer < 0; }
  /// Whether the layer attends, to whichever cache.
  [[nodiscard]] constexpr bool attends() const { return kind != LayerKind::none; }
  /// Query heads per KV head. @pre attends()
  [[nodiscard]] constexpr std::int32_t group() const { return num_query_heads / num_kv_heads; }
  /// Bytes of one kept token of a KV head; a latent is stored once, as the key. 0 without a cache of its own.
  [[nodiscard]] constexpr TokenBytes token_bytes(std::size_t element_bytes) const {
    auto const bytes = static_cast<std::int64_t>(element_bytes);
    if (!has_cache()) return {};
    return {head_dim * bytes, kind == LayerKind::latent ? 0 : value_dim * bytes};
  }
  /// Tokens of a sequence that the layer can see from its last one.
  [[nodiscard]] constexpr std::int64_t visible(std::int64_t length) const {
    return window != 0 ? std::min(window, length) : length;
  }

  friend constexpr bool operator==(LayerShape const&, LayerShape const&) = default;
};

/// @brief The caches of all layers of a model, under the model's own layer numbers. Made of a `ModelConfig` where all
/// are alike, else of one `LayerShape` per layer; `load_model_shape` reads it from a model's configuration.
class ModelShape {
  // Members that are templates without need cost a unit nothing that does not use them: the front door.
 public:
  static constexpr std::int32_t max_layers = 1 << 20;

  ModelShape() = default;
  /// Every layer alike. Implicit on purpose: a `ModelConfig` is a shape. @throws ArgumentError as `validate`
  template <class Layer = LayerShape>
  ModelShape(ModelConfig const& config) {
    config.validate();
    require(config.num_hidden_layers <= max_layers, "num_hidden_layers", "at most 2^20", config.num_hidden_layers,
            "ModelShape");
    Layer const layer{.num_query_heads = config.num_attention_heads,
                      .num_kv_heads = config.num_key_value_heads,
                      .head_dim = config.head_dim,
                      .value_dim = config.head_dim};
    layers_ = std::vector<Layer>(static_cast<std::size_t>(config.num_hidden_layers), layer);
  }
  /// @throws ArgumentError naming the layer and the field that makes no sense: counts that are not positive, channels
  ///         that are negative (0: not known), query heads that no whole number of them shares a KV head, a window
  ///         where the layer does not slide or none where it does, a latent of several heads or with values wider than
  ///         its row, and a `cache_layer` that is no earlier layer with a cache of its own of this shape
  template <class = void>
  explicit ModelShape(std::vector<LayerShape> layers) : layers_(std::move(layers)) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].value_dim == 0) layers_[i].value_dim = layers_[i].head_dim;
      validate(i);
    }
  }

  [[nodiscard]] std::int32_t num_layers() const { return static_cast<std::int32_t>(layers_.size()); }
  template <class Layer = LayerShape>
  [[nodiscard]] std::span<Layer const> layers() const {
    return {layers_.data(), layers_.size()};
  }
  /// @throws ArgumentError if there is no such layer
  [[nodiscard]] LayerShape const& layer(std::int32_t layer) const {
    require_index(layer, num_layers(), "layer", "ModelShape");
    return layers_[static_cast<std::size_t>(layer)];
  }
  /// The layer whose cache a layer reads: mostly itself. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int32_t cache_layer(std::int32_t layer) const {
    std::int32_t const shared = this->layer(layer).cache_layer;
    return shared < 0 ? layer : shared;
  }
  /// Whether a `ModelConfig` says as much: every layer attends to all tokens, with equal heads.
  [[nodiscard]] bool uniform() const {
    for (LayerShape const& l : layers_) {
      if (l.kind != LayerKind::attention || l.value_dim != l.head_dim || l != layers_.front()) return false;
    }
    return !layers_.empty();
  }

  /// Bytes that one more token adds while no window is full. Keys of its own that an index of a latent's rows keeps
  /// (DeepSeek-V3.2, GLM-5) are not counted: they are no part of the shape. @throws ArgumentError as `bytes`
  template <class = void>
  [[nodiscard]] std::int64_t token_bytes(std::size_t element_bytes) const {
    return bytes(1, element_bytes);
  }
  /// Bytes of the caches of one sequence, nothing evicted but what windows have passed; keys of an index are not
  /// counted.
  /// @param length  tokens, >= 0. @throws ArgumentError beyond 64 bits, or naming a layer of which the channels are not
  ///                known
  template <class = void>
  [[nodiscard]] std::int64_t bytes(std::int64_t length, std::size_t element_bytes) const;

  /// @brief What one rank of tensor parallelism holds: the query heads in equal parts, the KV heads likewise, or one
  /// that several ranks hold each a copy of where there are fewer than ranks. A latent is on every rank.
  /// @throws ArgumentError if the rank is out of range, or heads do not divide
  template <class Shape = ModelShape>
  [[nodiscard]] Shape tensor_parallel(std::int32_t rank, std::int32_t num_ranks) const {
    require_rank(rank, num_ranks, "tensor_parallel");
    Shape result = *this;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      LayerShape& l = result.layers_[i];
      if (!l.attends()) continue;
      require_divides(l, i, num_ranks, "tensor_parallel");
      l.num_query_heads /= num_ranks;
      l.num_kv_heads = std::max(1, l.num_kv_heads / num_ranks);
    }
    return result;
  }

  /// The first of a layer's KV heads that a rank of `tensor_parallel` holds; 0 where the layer has none.
  /// @throws ArgumentError if there is no such layer, the rank is out of range, or the layer's heads do not divide
  template <class = void>
  [[nodiscard]] std::int32_t first_kv_head(std::int32_t layer, std::int32_t rank, std::int32_t num_ranks) const {
    LayerShape const& l = this->layer(layer);
    require_rank(rank, num_ranks, "first_kv_head");
    if (l.attends()) require_divides(l, static_cast<std::size_t>(layer), num_ranks, "first_kv_head");
    return static_cast<std::int32_t>(std::int64_t{rank} * l.num_kv_heads / num_ranks);
  }

  friend bool operator==(ModelShape const&, ModelShape const&) = default;

 private:
  static void require_rank(std::int32_t rank, std::int32_t num_ranks, char const* where) {
    require(num_ranks > 0, "ranks", "> 0", num_ranks, where);
    require_index(rank, num_ranks, "rank", where);
  }
  template <class Layer>
  static void require_divides(Layer const& l, std::size_t i, std::int32_t num_ranks, char const* where) {
    bool const divides =
        l.num_query_heads % num_ranks == 0 && (l.num_kv_heads % num_ranks == 0 || num_ranks % l.num_kv_heads == 0);
    require(divides, "heads of a layer", {"a number that ", num_ranks, " ranks share or repeat evenly"},
            {l.num_query_heads, " query heads, ", l.num_kv_heads, " KV heads"}, {where, ", layer ", i});
  }
  void validate(std::size_t i) const {
    LayerShape const& l = layers_[i];
    auto const where = [&] { return Text{"ModelShape, layer ", i}.str(); };
    if (l.kind == LayerKind::none) {
      require(l == LayerShape{.kind = LayerKind::none}, "layer without a cache", "no heads, channels or window", "some",
              where);
      return;
    }
    require(l.num_kv_heads > 0, "num_kv_heads", "> 0", l.num_kv_heads, where);
    require(l.num_query_heads > 0 && l.num_query_heads % l.num_kv_heads == 0, "num_query_heads",
            {"a multiple of num_kv_heads (", l.num_kv_heads, "), > 0"}, l.num_query_heads, where);
    constexpr std::int64_t most = 0x7fffffff;
    require(l.head_dim >= 0 && l.head_dim <= most, "head_dim", "in [0, 2147483647]", l.head_dim, where);
    require(l.value_dim >= 0 && l.value_dim <= most, "value_dim", "in [0, 2147483647]", l.value_dim, where);
    bool const slides = l.kind == LayerKind::sliding;
    require(slides ? l.window > 0 && l.window <= most : l.window == 0, "window",
            slides ? "in [1, 2147483647], as the layer slides" : "0, as the layer does not slide", l.window, where);
    if (l.kind == LayerKind::latent) {
      require(l.num_kv_heads == 1, "num_kv_heads", "1, as the layer holds a latent", l.num_kv_heads, where);
      require(l.value_dim <= l.head_dim, "value_dim", {"at most the row's ", l.head_dim, " channels"}, l.value_dim,
              where);
    }
    if (l.cache_layer == -1) return;
    bool const earlier = l.cache_layer >= 0 && static_cast<std::size_t>(l.cache_layer) < i;
    require(earlier && layers_[static_cast<std::size_t>(l.cache_layer)].has_cache(), "cache_layer",
            "-1, or an earlier layer with a cache of its own", l.cache_layer, where);
    LayerShape const& of = layers_[static_cast<std::size_t>(l.cache_layer)];
    require(l.kind == of.kind && l.num_kv_heads == of.num_kv_heads && l.head_dim == of.head_dim &&
                l.value_dim == of.value_dim && l.window == of.window,
            "layer", {"the kind, KV heads, channels and window of layer ", l.cache_layer, ", whose cache it reads"},
            "others", where);
  }

  std::vector<LayerShape> layers_;
};

/// @brief Bytes of one kept token of a KV head, in every layer: one number where all are alike, or a model's shape.
class LayerBytes {
 public:
  /// Implicit on purpose: all layers alike.
  LayerBytes(TokenBytes const& token) : common_(token) {}
  LayerBytes(std::int64_t key, std::int64_t value) : common_{key, value} {}
  /// @param element_bytes  of every key and value
  template <class Layer = LayerShape>
  LayerBytes(ModelShape const& shape, std::size_t element_bytes) {
    for (Layer const& layer : shape.layers()) layers_.push_back(layer.token_bytes(element_bytes));
  }
  /// @param layers  [num_layers]
  explicit LayerBytes(std::vector<TokenBytes> layers) : layers_(std::move(layers)) {}
  /// @throws ArgumentError if there is no such layer
  [[nodiscard]] TokenBytes of(std::int32_t layer) const {
    if (layers_.empty()) return common_;
    require_index(layer, static_cast<std::int64_t>(layers_.size()), "layer", "LayerBytes");
    return layers_[static_cast<std::size_t>(layer)];
  }
  /// [num_layers]; empty where one number is of all.
  template <class Bytes = TokenBytes>
  [[nodiscard]] std::span<Bytes const> layers() const {
    return {layers_.data(), layers_.size()};
  }

 private:
  TokenBytes common_;
  std::vector<TokenBytes> layers_;  ///< empty where all are alike
};

namespace detail {

/// Σ over layers of rows times bytes. @param rows  (layer) to rows of single KV heads
template <class Rows>
std::int64_t sum_layer_bytes(char const* where, std::int32_t num_layers, LayerBytes const& bytes, Rows const& rows) {
  std::int64_t total = 0;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    std::int64_t const more = elements(where, {rows(layer), bytes.of(layer).total()});
    if (sum_overflows(total, more)) refuse_size(std::to_string(total) + " + " + std::to_string(more), where);
    total += more;
  }
  return total;
}

}  // namespace detail

template <class>
std::int64_t ModelShape::bytes(std::int64_t length, std::size_t element_bytes) const {
  require(length >= 0, "length", ">= 0", length, "ModelShape::bytes");
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    bool const known = !layers_[i].has_cache() || layers_[i].head_dim > 0;
    require(known, "head_dim", "> 0: the channels of a layer that holds a cache", 0, {"ModelShape::bytes, layer ", i});
  }
  return detail::sum_layer_bytes("ModelShape::bytes", num_layers(), {*this, element_bytes}, [&](std::int32_t l) {
    return detail::elements("ModelShape::bytes", {layer(l).num_kv_heads, layer(l).visible(length)});
  });
}

HEADAWARE_NAMESPACE_END
