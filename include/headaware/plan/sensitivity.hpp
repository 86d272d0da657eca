#pragma once

/// @file
/// Weights of the errors of layers, or of KV heads.

#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/stats/retention.hpp>

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
    detail::HeadCounts const layers(static_cast<std::int32_t>(factors.size()), 1);
    return {layers, false, std::move(factors)};
  }
  /// @param factors  [layers, num_kv_heads]
  /// @throws ArgumentError as `per_layer`, or if their number is another
  [[nodiscard]] static Sensitivities per_head(std::int32_t layers, std::int32_t num_kv_heads,
                                              std::vector<double> factors) {
    require(num_kv_heads > 0, "KV heads", "> 0", num_kv_heads, "Sensitivities");
    return {detail::HeadCounts(layers, num_kv_heads), true, std::move(factors)};
  }
  /// @param factors  of the KV heads of the layers that have a cache of their own, layer by layer
  [[nodiscard]] static Sensitivities per_head(ModelShape const& shape, std::vector<double> factors) {
    return {detail::kv_heads_of(shape), true, std::move(factors)};
  }

  [[nodiscard]] bool empty() const { return values_.empty(); }
  [[nodiscard]] std::int32_t num_layers() const { return heads().num_layers; }
  /// 0: one per layer; where layers have different numbers, of the layer that has most.
  [[nodiscard]] std::int32_t num_kv_heads() const { return by_head_ ? heads().num_kv_heads : 0; }
  [[nodiscard]] std::span<double const> values() const { return values_; }

  /// @pre the layer and head are the model's
  [[nodiscard]] double at(std::int32_t layer, std::int32_t kv_head) const {
    if (values_.empty()) return 1;
    return values_[by_head_ ? static_cast<std::size_t>(heads().first(layer) + kv_head)
                            : static_cast<std::size_t>(layer)];
  }

  /// @throws ArgumentError unless they are of a model of this shape
  void require_shape(std::int32_t layers, std::int32_t num_kv_heads, char const* where) const {
    require_heads(detail::HeadCounts(layers, num_kv_heads), where);
  }
  void require_shape(RetentionInfo const& info, char const* where) const {
    require_heads(detail::kv_head_counts(info), where);
  }

  friend bool operator==(Sensitivities const&, Sensitivities const&) = default;

 private:
  Sensitivities(detail::HeadCounts heads, bool by_head, std::vector<double> values)
      : heads_(std::move(heads)), by_head_(by_head), values_(std::move(values)) {
    constexpr auto where = "Sensitivities";
    require(num_layers() > 0, "layers", "> 0", num_layers(), where);
    std::int64_t const count = this->heads().total();
    require(static_cast<std::int64_t>(values_.size()) == count, "number of sensitivities", count, values_.size(),
            where);
    for (double const value : values_) {
      require(value >= 0 && std::isfinite(value), "sensitivity", "a finite number >= 0", value, where);
    }
  }
  [[nodiscard]] LayerHeads heads() const { return heads_.view(); }
  void require_heads(detail::HeadCounts const& of, char const* where) const {
    if (values_.empty()) return;
    require(num_layers() == of.view().num_layers, "sensitivities' layers", of.view().num_layers, num_layers(), where);
    if (!by_head_) return;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
      bool const alike = of.first_heads().empty();
      require(heads().count(layer) == of.view().count(layer), "sensitivities' KV heads", of.view().count(layer),
              heads().count(layer), [&] {
                return alike ? where : Text{where, ", layer ", layer}.str();
              });
    }
  }

  detail::HeadCounts heads_;  ///< one per layer unless `by_head_`
  bool by_head_ = false;
  std::vector<double> values_;
};

HEADAWARE_NAMESPACE_END
