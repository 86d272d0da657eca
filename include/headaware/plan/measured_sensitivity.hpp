#pragma once

/// @file
/// Sensitivities from losses measured with one layer, or one KV head, cut at a time.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/sensitivity.hpp>
#include <headaware/plan/weighted_errors.hpp>
#include <headaware/policy/sink_window.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Options of `sensitivities_from_losses`.
struct SensitivityOptions {
  std::optional<ErrorMeasure> measure{};  ///< nothing: the best that the statistics hold; the plan's has to be the same
  GroupFold fold = GroupFold::sum;        ///< as for the plan
  SinkWindow cut{.sink = 4, .window = 60};  ///< what the layer (head) was cut to
  /// Nats that every layer (head) counts for at least: an increase below it, or a decrease, is noise of the
  /// measurement, and must not make a layer free.
  double least_increase = 1e-4;
};

namespace detail {

/// `sensitivities_from_losses` of losses that are told to be of layers or of KV heads.
[[nodiscard]] inline Sensitivities factors_from_losses(RetentionStatistics const& statistics,
                                                       std::span<double const> loss_increase, bool by_head,
                                                       SensitivityOptions const& options) {
  constexpr auto where = "sensitivities_from_losses";
  options.cut.validate();
  bool const least = options.least_increase >= 0 && std::isfinite(options.least_increase);
  require(least, "least_increase", "a finite number >= 0", options.least_increase, where);
  WeightedStatistics const text{&statistics};
  KvErrors const errors = weighted_errors(std::span(&text, 1), options.measure, options.fold);
  auto const layers = static_cast<std::size_t>(errors.num_layers);
  std::size_t const count = by_head ? errors.size() : layers;
  require(loss_increase.size() == count, "losses", "one per layer or one per KV head", loss_increase.size(), where);

  HeadCounts const counts = kv_head_counts(errors);
  LayerHeads const heads = counts.view();
  std::vector<double> values(loss_increase.size());
  double known = 0;
  int measured = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    require(std::isfinite(loss_increase[i]), "loss increase", "a finite number", loss_increase[i], where);
    auto const layer = static_cast<std::int64_t>(i);
    std::size_t const begin = by_head ? i : static_cast<std::size_t>(heads.first(layer));
    std::size_t const end = by_head ? i + 1 : static_cast<std::size_t>(heads.first(layer + 1));
    double error = 0;
    for (std::size_t head = begin; head < end; ++head) {
      error += errors.at(head, options.cut.sink, options.cut.window, std::numeric_limits<std::int32_t>::max());
    }
    values[i] = error > 0 ? std::max(loss_increase[i], options.least_increase) / error : -1;
    if (error > 0) {
      known += values[i];
      ++measured;
    }
  }
  double const mean = measured > 0 ? known / measured : 1;
  for (double& value : values) value = value < 0 ? mean : value;
  return by_head ? Sensitivities::per_head(errors.shape(), std::move(values))
                 : Sensitivities::per_layer(std::move(values));
}

}  // namespace detail

/// @brief c_l = ΔNLL_l / Σ_g E_g(4, 60), so that predicted errors are nats: the increase of the calibration loss with
/// layer l (or one KV head) alone cut, over the error that the statistics tell for that cut.
///
/// E off the grid is interpolated (`KvErrors::at`). Increases below `least_increase` count as `least_increase`. A layer
/// whose error at the cut is 0 tells nothing, nor does one without a cache of its own: it gets the mean of the others,
/// or 1 where there are none. A layer that others read from is cut for all of them.
/// @param statistics     of the same text as the losses
/// @param loss_increase  nats: [layers], or one per KV head, layer by layer, for sensitivities of heads; [layers] where
///                       there are as many of both
/// @throws ArgumentError if their number is another, one is NaN or infinite, or the statistics do not hold the measure
/// @par Source  layers alone cut: as many forward passes as there are layers, no gradients
[[nodiscard]] inline Sensitivities sensitivities_from_losses(RetentionStatistics const& statistics,
                                                             std::span<double const> loss_increase,
                                                             SensitivityOptions const& options = {}) {
  bool const by_head =
      loss_increase.size() != static_cast<std::size_t>(statistics.info.num_layers) &&
      static_cast<std::int64_t>(loss_increase.size()) == detail::kv_head_counts(statistics.info).view().total();
  return detail::factors_from_losses(statistics, loss_increase, by_head, options);
}

HEADAWARE_NAMESPACE_END
