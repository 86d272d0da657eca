#pragma once

/// @file
/// Error of each KV head at each (sink, window) pair, and of windows and scored slots.

#include <headaware/config.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/detail/window_part.hpp>
#include <headaware/plan/error_measure.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/policy/sink_window_scored.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Errors of all KV heads on one grid; input of the planner. Heads are numbered layer by layer; layers without a
/// cache of their own have none.
struct KvErrors {
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;     ///< query heads per layer; where they differ, of the layer that has most
  std::int32_t num_kv_heads = 0;  ///< likewise
  ErrorMeasure measure = ErrorMeasure::output;
  GroupFold fold = GroupFold::sum;
  RetentionGrid grid{};
  std::vector<double> cells;    ///< [KV heads, grid]
  std::vector<double> dropped;  ///< [KV heads]: where nothing is kept, and the head's output is zero
  /// [KV heads]: mean ‖W_O o‖² (‖o‖² without W_O) of the head's query heads over the mean of its layer's KV heads; of
  /// several texts the largest. Empty where values were not observed.
  std::vector<double> output_share;
  ModelShape layers{};  ///< where they differ; empty: all alike
  /// Names of row formats whose errors all texts hold; none by mass. What has 16 bits has no error and no need of one.
  std::vector<std::string> formats{};
  std::vector<double> key_errors{};    ///< [KV heads, formats]: where all keys are rounded, and nothing is dropped
  std::vector<double> value_errors{};  ///< [KV heads, formats] the same of values
  /// Pairs of windows and scored slots, where all texts hold errors of the same, of the same scores; nothing: none.
  std::optional<ScoredGrid> scored{};
  std::vector<double> scored_cells{};  ///< [KV heads, scored]; of layers that slide 0, as they have no such slots
  std::string scores{};                ///< `RetentionInfo::scores` of these

  /// KV heads of all layers.
  [[nodiscard]] std::size_t size() const {
    if (layers.num_layers() > 0) return static_cast<std::size_t>(detail::kv_heads_of(layers).view().total());
    return static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_kv_heads);
  }
  /// Every layer's shape, also where all are alike. @throws ArgumentError if a count is not positive
  [[nodiscard]] ModelShape shape() const { return detail::shape_of(*this); }
  [[nodiscard]] std::span<double const> of(std::size_t head) const {
    return std::span(cells).subspan(head * grid.size(), grid.size());
  }

  /// The same on the grid of scored slots.
  [[nodiscard]] std::span<double const> scored_of(std::size_t head) const {
    return std::span(scored_cells).subspan(head * scored->size(), scored->size());
  }

  /// @brief Returns the errors of the named layers alone, in the order named. Layers that read another's cache have
  /// none.
  /// @throws ArgumentError if no layer is named or one is out of range
  [[nodiscard]] KvErrors select_layers(std::span<std::int32_t const> selected) const {
    constexpr auto where = "KvErrors::select_layers";
    require(!selected.empty(), "layers", "at least one", "none", where);
    KvErrors result = *this;
    detail::HeadCounts const counts = detail::kv_head_counts(*this);
    LayerHeads const heads = counts.view();
    auto const select = [&](std::vector<double> const& from, std::vector<double>& to, std::size_t each) {
      if (from.empty()) return;
      to.clear();
      for (std::int32_t const layer : selected) {
        require_index(layer, num_layers, "layer", where);
        auto const at = [&](std::int32_t l) {
          return from.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(heads.first(l)) * each);
        };
        to.insert(to.end(), at(layer), at(layer + 1));
      }
    };
    select(cells, result.cells, grid.size());
    select(dropped, result.dropped, 1);
    select(output_share, result.output_share, 1);
    select(key_errors, result.key_errors, formats.size());
    select(value_errors, result.value_errors, formats.size());
    select(scored_cells, result.scored_cells, scored ? scored->size() : 0);
    result.num_layers = static_cast<std::int32_t>(selected.size());
    if (layers.num_layers() == 0) return result;
    std::vector<LayerShape> shapes;
    for (std::int32_t const layer : selected) {
      LayerShape const& l = layers.layer(layer);
      shapes.push_back(l.has_cache() ? l : LayerShape{.kind = LayerKind::none});
    }
    detail::set_shape(result, ModelShape(std::move(shapes)));
    return result;
  }

  /// @brief The error of keeping `sink` and `window` of `context` tokens, also off the grid: linear in the logarithm
  /// of the window (from the largest one on down to 0 where all is kept), linear in the sink, constant below and
  /// beside the grid. Where the layer slides, sinks are as many tokens of window, and all is its window.
  /// @param head  number of the KV head, layer by layer
  [[nodiscard]] double at(std::size_t head, std::int64_t sink, std::int64_t window, std::int64_t context) const {
    if (layers.num_layers() > 0) {
      detail::HeadCounts const counts = detail::kv_heads_of(layers);
      LayerShape const& layer = layers.layer(counts.view().layer_of(static_cast<std::int64_t>(head), 1));
      if (layer.window != 0) {
        window += sink;
        sink = 0;
        context = layer.visible(context);
      }
    }
    if (sink + window >= context) return 0;
    auto const& sinks = grid.sinks;
    auto const above = static_cast<std::size_t>(std::lower_bound(sinks.begin(), sinks.end(), sink) - sinks.begin());
    if (above == sinks.size()) return in_row(head, above - 1, sink, window, context);
    double const right = in_row(head, above, sink, window, context);
    if (above == 0 || sinks[above] == sink) return right;
    double const left = in_row(head, above - 1, sink, window, context);
    double const part = static_cast<double>(sink - sinks[above - 1]) / (sinks[above] - sinks[above - 1]);
    return left + (right - left) * part;
  }

  /// @brief The error of a head that keeps tokens by scores: that of the largest pair of the grid that is no larger, or
  /// of its windows alone, whichever is less. Of layers that slide that of windows. @param head  number of the KV head,
  /// layer by layer
  [[nodiscard]] double scored_at(std::size_t head, SinkWindowScored const& policy, std::int64_t context) const {
    if (std::int64_t{policy.sink} + policy.window + policy.scored >= context) return 0;
    double const windows = at(head, policy.sink, policy.window, context);
    if (!scored || policy.sink < scored->sink || slides(head)) return windows;
    auto const places_below = [](std::vector<std::int32_t> const& values, std::int64_t value) {
      return static_cast<std::size_t>(std::upper_bound(values.begin(), values.end(), value) - values.begin());
    };
    std::size_t const window = places_below(scored->windows, policy.window);
    std::size_t const slots = places_below(scored->slots, policy.scored);
    if (window == 0 || slots == 0) return windows;
    return std::min(windows, scored_of(head)[scored->cell(window - 1, slots - 1)]);
  }

  /// @brief The place of a format in `formats`; -1: none, as 16 bits have no error.
  /// @throws ArgumentError naming the formats that there are, or on a scale other than 1: errors are of that
  [[nodiscard]] std::int32_t format_place(AnyFormat<> const& format, Text const& where) const {
    if (has_sixteen_bits(format)) return -1;
    auto const found = std::find(formats.begin(), formats.end(), format.name());
    auto const known = [&] {
      std::string names = "fp16, bf16";
      for (std::string const& name : formats) names += ", " + name;
      return names + (formats.empty() ? ", as the errors hold no others" : ", whose errors are known");
    };
    require(found != formats.end(), "format", {"one of ", known}, format.name(), where);
    require(format.scale() == 1, "scale of a format", "1, of which errors are known", format.scale(), where);
    return static_cast<std::int32_t>(found - formats.begin());
  }
  /// @brief The error of keys and values rounded, nothing dropped; where a layer holds a latent, of its keys.
  /// @param head  number of the KV head, layer by layer
  /// @throws ArgumentError naming the formats whose errors are known
  [[nodiscard]] double rounding_error(std::size_t head, HeadFormats const& of) const {
    constexpr auto where = "KvErrors::rounding_error";
    std::int32_t const value = holds_latent(head) ? -1 : format_place(of.value, where);
    return rounding_error(head, format_place(of.key, where), value);
  }
  /// The same by places, of `format_place`.
  [[nodiscard]] double rounding_error(std::size_t head, std::int32_t key, std::int32_t value) const {
    auto const at = [&](std::vector<double> const& errors, std::int32_t place) {
      return place < 0 ? 0 : errors[head * formats.size() + static_cast<std::size_t>(place)];
    };
    return at(key_errors, key) + at(value_errors, value);
  }

 private:
  [[nodiscard]] LayerShape const& layer_of(std::size_t head) const {
    detail::HeadCounts const counts = detail::kv_heads_of(layers);
    return layers.layer(counts.view().layer_of(static_cast<std::int64_t>(head), 1));
  }
  [[nodiscard]] bool slides(std::size_t head) const { return layers.num_layers() > 0 && layer_of(head).window != 0; }
  [[nodiscard]] bool holds_latent(std::size_t head) const {
    return layers.num_layers() > 0 && layer_of(head).kind == LayerKind::latent;
  }
  [[nodiscard]] double in_row(std::size_t head, std::size_t row, std::int64_t sink, std::int64_t window,
                              std::int64_t context) const {
    auto const& windows = grid.windows;
    double const* const errors = of(head).data() + row * windows.size();
    // Pairs that keep all are not looked up: `context` may be shorter than the texts.
    std::int64_t const whole = context - sink;
    std::size_t above = 0;
    while (above < windows.size() && windows[above] < window && windows[above] < whole) ++above;
    bool const known = above < windows.size() && windows[above] < whole;
    if (above == 0) return errors[0];
    if (known && windows[above] == window) return errors[above];
    double const far = known ? errors[above] : 0;
    double const part = detail::window_part(window, windows[above - 1], known ? windows[above] : whole);
    return errors[above - 1] + (far - errors[above - 1]) * part;
  }
};

HEADAWARE_NAMESPACE_END
