#pragma once

// Random queries, keys and values of some layers, observed on both sides.

#include "support/device_cache.cuh"

#include <headaware/layout/strided.hpp>
#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/observe.cuh>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace headaware_test {

enum class Mode { mass, values, metric };

struct AttentionShape {
  std::int32_t num_query_heads = 2;
  std::int32_t num_kv_heads = 1;
  std::int64_t tokens = 0;
  std::int64_t head_dim = 32;
  std::int32_t layers = 1;
  float spread = 1;
  std::int64_t value_dim = 0;

  [[nodiscard]] std::int64_t output_dim() const { return value_dim != 0 ? value_dim : head_dim; }
};

/// Tensors [layers][heads, tokens, head_dim], the values that E can have. @tparam E  the host's element
template <class E>
struct Attention {
  AttentionShape shape;
  std::vector<std::vector<E>> queries, keys, values;
  std::vector<std::vector<float>> factors;  ///< [layers][num_query_heads, head_dim, head_dim]
  std::vector<std::int64_t> windows;        ///< [layers], or empty
  std::vector<std::vector<float>> sinks;    ///< [layers][num_query_heads], or empty

  explicit Attention(AttentionShape const& s, unsigned seed = 7) : shape(s) {
    std::mt19937 random(seed + static_cast<unsigned>(s.tokens));
    std::normal_distribution<float> normal;
    auto const fill = [&](auto& to, std::int64_t count, float spread) {
      using X = typename std::remove_cvref_t<decltype(to.back())>::value_type;
      to.emplace_back();
      for (std::int64_t i = 0; i < count; ++i) to.back().push_back(ha::from_float<X>(spread * normal(random)));
    };
    for (std::int32_t l = 0; l < s.layers; ++l) {
      fill(queries, s.num_query_heads * s.tokens * s.head_dim, s.spread);
      fill(keys, s.num_kv_heads * s.tokens * s.head_dim, s.spread);
      fill(values, s.num_kv_heads * s.tokens * s.output_dim(), 1);
      fill(factors, s.num_query_heads * s.output_dim() * s.output_dim(), 0.2F);
    }
  }
};

/// A tensor [heads, tokens, head_dim] as a layout has it; the rest of its memory is NaN where E has one.
template <class E, class Layout, class Shape>
std::vector<E> laid_out(std::vector<E> const& tensor, Layout const& layout, std::int64_t extent, std::int64_t heads,
                        std::int64_t tokens, std::int64_t head_dim, Shape const& shape) {
  std::vector<E> result(static_cast<std::size_t>(extent), ha::from_float<E>(std::nanf("")));
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t c = 0; c < head_dim; ++c)
        result[static_cast<std::size_t>(layout.offset(shape.sequence, h, shape.first_token + t, c))] =
            tensor[static_cast<std::size_t>((h * tokens + t) * head_dim + c)];
  return result;
}

/// Makes a layer's shape that of tensors [heads, tokens, channels].
template <class Layer>
void set_bhsd(Layer& layer, AttentionShape const& s) {
  layer.query_layout = ha::strided_bhsd(1, s.num_query_heads, s.tokens, s.head_dim);
  layer.key_layout = ha::strided_bhsd(1, s.num_kv_heads, s.tokens, s.head_dim);
  layer.value_layout = ha::strided_bhsd(1, s.num_kv_heads, s.tokens, s.output_dim());
  layer.num_query_heads = s.num_query_heads;
  layer.num_kv_heads = s.num_kv_heads;
  layer.tokens = s.tokens;
  layer.head_dim = s.head_dim;
  layer.value_dim = s.output_dim();
}

/// The CPU's sums [layers, num_query_heads].
template <class E>
std::vector<ha::ObservedHead> observe_on_host(Attention<E> const& a, Mode mode, ha::AttentionScore const& score,
                                              ha::ObserverParameters const& parameters) {
  AttentionShape const& s = a.shape;
  ha::AttentionObserver observer({s.layers, s.num_query_heads, s.num_kv_heads, 0}, parameters);
  for (std::int32_t l = 0; l < s.layers; ++l) {
    auto const i = static_cast<std::size_t>(l);
    ha::LayerQkv<E, ha::StridedLayout, ha::StridedLayout> layer;
    layer.queries = a.queries[i].data();
    layer.keys = a.keys[i].data();
    set_bhsd(layer, s);
    if (mode != Mode::mass) layer.values = a.values[i].data();
    if (mode == Mode::metric) layer.output_factors = a.factors[i].data();
    if (!a.windows.empty()) layer.window = a.windows[i];
    if (!a.sinks.empty() && !a.sinks[i].empty()) layer.sinks = a.sinks[i].data();
    observer.observe(l, layer, score);
  }
  std::vector<ha::ObservedHead> result;
  for (std::int32_t l = 0; l < s.layers; ++l)
    for (std::int32_t h = 0; h < s.num_query_heads; ++h) result.push_back(observer.head(l, h));
  return result;
}

/// Device memory of all layers by a layout each. @tparam T  the device's element, of the same bits as E
template <class T, class E, class Q, class K, class V>
class DeviceAttention {
 public:
  DeviceAttention(Attention<E> const& a, Mode mode, ha::DeviceQkvShape<Q, K, V> const& host_shape,
                  std::size_t shift = 0) {
    AttentionShape const& s = a.shape;
    auto const upload = [&](std::vector<E> const& tensor, auto const& layout, std::int64_t heads,
                            std::int64_t channels) {
      auto const placed = laid_out(tensor, layout, layout.required_span_size(), heads, s.tokens, channels, host_shape);
      std::vector<T> bits(placed.size() + shift);
      if (!placed.empty())
        std::memcpy(static_cast<void*>(bits.data() + shift), placed.data(), placed.size() * sizeof(T));
      tensors_.emplace_back(bits);
      return tensors_.back().data() + shift;
    };
    for (std::size_t l = 0; l < a.queries.size(); ++l) {
      ha::DeviceQkv<T> layer;
      layer.d_queries = upload(a.queries[l], host_shape.query_layout, s.num_query_heads, s.head_dim);
      layer.d_keys = upload(a.keys[l], host_shape.key_layout, s.num_kv_heads, s.head_dim);
      if (mode != Mode::mass)
        layer.d_values = upload(a.values[l], host_shape.value_layout, s.num_kv_heads, s.output_dim());
      if (mode == Mode::metric) {
        factors_.emplace_back(a.factors[l]);
        layer.d_output_factors = factors_.back().data();
      }
      if (!a.windows.empty()) layer.window = a.windows[l];
      if (!a.sinks.empty() && !a.sinks[l].empty()) {
        factors_.emplace_back(a.sinks[l]);
        layer.d_sinks = factors_.back().data();
      }
      layers.push_back(layer);
    }
  }
  std::vector<ha::DeviceQkv<T>> layers;

 private:
  std::vector<DeviceVector<T>> tensors_;
  std::vector<DeviceVector<float>> factors_;  ///< and sinks
};

/// Runs both calls on a stream of its own and reads the sums.
template <class T, class Shape>
std::vector<ha::ObservedHead> observe_on_device(Shape const& shape, std::vector<ha::DeviceQkv<T>> const& layers,
                                                ha::AttentionScore const& score,
                                                ha::ObserverParameters const& parameters) {
  ha::SumsLayout const layout(parameters);
  auto const size = static_cast<std::size_t>(layout.size());
  std::size_t const heads = layers.size() * static_cast<std::size_t>(shape.num_query_heads);
  Stream const stream;
  DeviceVector<double> const d_sums{std::vector<double>(heads * size)};
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::observe(nullptr, bytes, shape, layers, score, parameters, d_sums.data(), stream));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  REQUIRE_CUDA(ha::device::observe(temp.data(), bytes, shape, layers, score, parameters, d_sums.data(), stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  auto const sums = d_sums.host();
  std::vector<ha::ObservedHead> result(
      heads, {ha::HeadSums(static_cast<std::size_t>(parameters.num_distances)), parameters.empty_sums()});
  for (std::size_t h = 0; h < heads; ++h) layout.add({sums.data() + h * size, size}, result[h]);
  return result;
}

/// The largest difference seen by a program, |got - expected| / (1 + |expected|).
inline double& largest_difference() {
  static double value = 0;
  return value;
}

/// The same of | |Δ| - |Δ expected| | / |o|, each the root of a sum over rows.
inline double& largest_movement() {
  static double value = 0;
  return value;
}

/// @param scale  what |expected| is at least measured against, for sums over rows
inline void require_close(char const* what, double got, double expected, double tolerance, double scale = 1) {
  double const difference = std::abs(got - expected) / (scale + std::abs(expected));
  largest_difference() = std::max(largest_difference(), difference);
  if (!(difference <= tolerance)) {
    INFO(what << ": got " << got << ", expected " << expected);
    REQUIRE(difference <= tolerance);
  }
}

/// Errors of formats, relative to themselves and to outputs in single precision.
/// @param outputs  Σ |o|² of as many rows, after W_O or before
inline void require_errors(char const* what, std::vector<double> const& got, std::vector<double> const& expected,
                           double outputs) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t f = 0; f < got.size(); ++f) {
    INFO(what << ", format " << f << ": got " << got[f] << ", expected " << expected[f] << ", outputs " << outputs);
    REQUIRE(std::abs(got[f] - expected[f]) <=
            1e-3 * expected[f] + 1e-4 * std::sqrt(outputs * expected[f]) + 1e-10 * outputs);
  }
}

inline void require_same(std::vector<ha::ObservedHead> const& got, std::vector<ha::ObservedHead> const& expected,
                         double tolerance = 1e-5) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    INFO("head " << i);
    ha::HeadSums const& g = got[i].head;
    ha::HeadSums const& e = expected[i].head;
    REQUIRE(g.chunks == e.chunks);
    REQUIRE(g.rows == e.rows);
    REQUIRE(g.invalid_rows == e.invalid_rows);
    require_close("entropy", g.entropy, e.entropy, tolerance);
    require_close("entropy squared", g.entropy_squared, e.entropy_squared, tolerance);
    require_close("max attention", g.max_attention, e.max_attention, tolerance);
    require_close("sink", g.sink, e.sink, tolerance);
    require_close("recent", g.recent, e.recent, tolerance);
    require_close("local", g.local, e.local, tolerance);
    require_close("global", g.global, e.global, tolerance);
    require_close("uniformity", g.uniformity, e.uniformity, tolerance);
    for (std::size_t d = 0; d < e.distances.size(); ++d) {
      INFO("distance " << d);
      require_close("p", g.distances[d], e.distances[d], tolerance);
    }
    ha::RetentionSums const& gr = got[i].retention;
    ha::RetentionSums const& er = expected[i].retention;
    REQUIRE(gr.rows == er.rows);
    REQUIRE(gr.value_rows == er.value_rows);
    REQUIRE(gr.metric_rows == er.metric_rows);
    require_close("output squared", gr.output_squared, er.output_squared, tolerance);
    require_close("output metric squared", gr.output_metric_squared, er.output_metric_squared, tolerance);
    ha::RoundingSums const& gf = gr.rounding;
    ha::RoundingSums const& ef = er.rounding;
    REQUIRE(gf.rows == ef.rows);
    REQUIRE(gf.metric_rows == ef.metric_rows);
    require_errors("keys", gf.key_error_squared, ef.key_error_squared, er.output_squared);
    require_errors("values", gf.value_error_squared, ef.value_error_squared, er.output_squared);
    require_errors("keys after W_O", gf.key_metric_error_squared, ef.key_metric_error_squared,
                   er.output_metric_squared);
    require_errors("values after W_O", gf.value_metric_error_squared, ef.value_metric_error_squared,
                   er.output_metric_squared);
    for (std::size_t c = 0; c < er.mass.size(); ++c) {
      INFO("cell " << c);
      require_close("mass", gr.mass[c], er.mass[c], tolerance);
      require_close("mass squared", gr.mass_squared[c], er.mass_squared[c], tolerance);
      require_close("error squared", gr.error_squared[c], er.error_squared[c], tolerance);
      require_close("metric error squared", gr.metric_error_squared[c], er.metric_error_squared[c], tolerance);
      if (er.output_squared > 0) {
        double const moved = std::abs(std::sqrt(gr.error_squared[c]) - std::sqrt(er.error_squared[c]));
        largest_movement() = std::max(largest_movement(), moved / std::sqrt(er.output_squared));
      }
    }
  }
}

/// Both sides, the device's tensors by any layouts. @param host_shape, shape  the same, tables on either side
template <class T, class E, class Q, class K, class V>
void compare_layouts(Attention<E> const& a, Mode mode, ha::DeviceQkvShape<Q, K, V> const& host_shape,
                     ha::DeviceQkvShape<Q, K, V> const& shape, ha::AttentionScore const& score,
                     ha::ObserverParameters const& parameters, double tolerance = 1e-5, std::size_t shift = 0) {
  AttentionShape const& s = a.shape;
  INFO("tokens " << s.tokens << ", head_dim " << s.head_dim << ", mode " << static_cast<int>(mode));
  DeviceAttention<T, E, Q, K, V> const device(a, mode, host_shape, shift);
  require_same(observe_on_device(shape, device.layers, score, parameters), observe_on_host(a, mode, score, parameters),
               tolerance);
}

/// The shape of tensors [heads, tokens, channels].
inline ha::DeviceQkvShape<ha::StridedLayout> bhsd_shape(AttentionShape const& s) {
  ha::DeviceQkvShape<ha::StridedLayout> shape;
  set_bhsd(shape, s);
  return shape;
}

template <class T, class E>
void compare_bhsd(Attention<E> const& a, Mode mode, ha::AttentionScore const& score,
                  ha::ObserverParameters const& parameters, double tolerance = 1e-5) {
  compare_layouts<T>(a, mode, bhsd_shape(a.shape), bhsd_shape(a.shape), score, parameters, tolerance);
}

}  // namespace headaware_test
