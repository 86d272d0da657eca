#pragma once

/// @file
/// Weights of the errors of layers, or of KV heads.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Factors of errors: none (1 everywhere), one per layer, or one per (layer, KV head).
///
/// Errors of different layers do not count alike: the residual stream grows by orders of magnitude with depth.
/// `sensitivities_from_losses` makes them of measured losses.
class Sensitivities {
 public:
  Sensitivities() = default;

  /// @param factors  [layers]
  /// @throws ArgumentError if there is none or one is negative, NaN or infinite
  [[nodiscard]] static Sensitivities per_layer(std::vector<double> factors) {
    auto const layers = static_cast<std::int32_t>(factors.size());
    return {layers, 0, std::move(factors)};
  }
  /// @param factors  [layers, num_kv_heads]
  /// @throws ArgumentError as `per_layer`, or if their number is another
  [[nodiscard]] static Sensitivities per_head(std::int32_t layers, std::int32_t num_kv_heads,
                                              std::vector<double> factors) {
    require(num_kv_heads > 0, "KV heads", "> 0", num_kv_heads, "Sensitivities");
    return {layers, num_kv_heads, std::move(factors)};
  }

  [[nodiscard]] bool empty() const { return values_.empty(); }
  [[nodiscard]] std::int32_t num_layers() const { return layers_; }
  /// 0: one per layer.
  [[nodiscard]] std::int32_t num_kv_heads() const { return num_kv_heads_; }
  [[nodiscard]] std::span<double const> values() const { return values_; }

  /// @pre the layer and head are the model's
  [[nodiscard]] double at(std::int32_t layer, std::int32_t kv_head) const {
    if (values_.empty()) return 1;
    return values_[num_kv_heads_ == 0 ? static_cast<std::size_t>(layer)
                                      : static_cast<std::size_t>(layer) * static_cast<std::size_t>(num_kv_heads_) +
                                            static_cast<std::size_t>(kv_head)];
  }

  /// @throws ArgumentError unless they are of a model of this shape
  void require_shape(std::int32_t layers, std::int32_t num_kv_heads, char const* where) const {
    if (values_.empty()) return;
    require(layers_ == layers, "sensitivities' layers", layers, layers_, where);
    if (num_kv_heads_ == 0) return;
    require(num_kv_heads_ == num_kv_heads, "sensitivities' KV heads", num_kv_heads, num_kv_heads_, where);
  }

  friend bool operator==(Sensitivities const&, Sensitivities const&) = default;

 private:
  Sensitivities(std::int32_t layers, std::int32_t num_kv_heads, std::vector<double> values)
      : layers_(layers), num_kv_heads_(num_kv_heads), values_(std::move(values)) {
    constexpr auto where = "Sensitivities";
    require(layers > 0, "layers", "> 0", layers, where);
    auto const count = std::int64_t{layers} * std::max(num_kv_heads, 1);
    require(static_cast<std::int64_t>(values_.size()) == count, "number of sensitivities", count, values_.size(),
            where);
    for (double const value : values_) {
      require(value >= 0 && std::isfinite(value), "sensitivity", "a finite number >= 0", value, where);
    }
  }

  std::int32_t layers_ = 0;
  std::int32_t num_kv_heads_ = 0;
  std::vector<double> values_;
};

HEADAWARE_NAMESPACE_END
