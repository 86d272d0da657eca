#pragma once

// A step's attention in every layer of the model of mixed_model.hpp, and the same in plain double-precision loops that
// know of nothing but tokens: those that a head keeps by its policy, or all that the layer's own window shows.

#include "support/differences.hpp"
#include "support/kept_rows.hpp"
#include "support/mixed_model.hpp"

#include <headaware/attention/attend.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

/// The newest tokens of every sequence attend: one to decode, several as a chunk.
struct MixedStep {
  ha::ModelShape shape = mixed_shape();
  ha::PolicyTable table = mixed_table(shape);
  std::vector<std::int32_t> lengths;  ///< [sequences], the queries' own tokens included
  std::int64_t query_tokens = 1;
  std::vector<float> sinks{0.5F, -1, 2, -20, 0, 1, -3, 4};  ///< of the sliding layers' query heads

  [[nodiscard]] ha::AttentionShape of(std::int32_t layer) const {
    return ha::AttentionShape::of(shape.layer(layer), static_cast<std::int32_t>(lengths.size()), query_tokens);
  }
  [[nodiscard]] bool latent(std::int32_t layer) const { return shape.layer(layer).kind == ha::LayerKind::latent; }
  [[nodiscard]] bool has_sinks(std::int32_t layer) const { return shape.layer(layer).kind == ha::LayerKind::sliding; }
  [[nodiscard]] ha::StridedLayout query_layout(std::int32_t layer) const {
    ha::AttentionShape const s = of(layer);
    return ha::strided_bhsd(s.num_sequences, s.num_query_heads, query_tokens, s.head_dim);
  }
  [[nodiscard]] ha::StridedLayout output_layout(std::int32_t layer) const {
    ha::AttentionShape const s = of(layer);
    return ha::strided_bhsd(s.num_sequences, s.num_query_heads, query_tokens, s.output_dim());
  }
  /// Positions of the first queries; those of sequences shorter than the chunk are before their first token.
  [[nodiscard]] std::vector<std::int32_t> first_positions() const {
    std::vector<std::int32_t> result;
    for (std::int32_t const length : lengths) result.push_back(length - static_cast<std::int32_t>(query_tokens));
    return result;
  }
  [[nodiscard]] std::vector<float> queries(std::int32_t layer) const {
    return random_elements<float>(query_layout(layer).required_span_size(), 100 + static_cast<unsigned>(layer));
  }

  /// Whether a query sees a token: by the layer's window where the head's policy is `Full`, else by the policy.
  [[nodiscard]] bool sees(std::int32_t cache_layer, std::int32_t kv_head, std::int64_t query,
                          std::int64_t token) const {
    std::int64_t const window = shape.layer(cache_layer).window;
    if (token > query || (window != 0 && token <= query - window)) return false;
    if (table.at(cache_layer, kv_head) == ha::PolicyTable(shape).at(cache_layer, kv_head)) return true;
    return table.visit(cache_layer, kv_head, [&](auto const& policy) { return policy.keeps(token, query + 1); });
  }

  /// The first difference of a layer's output from the plain loops; empty if there is none.
  [[nodiscard]] std::string difference(std::int32_t layer, std::vector<float> const& output) const {
    FirstDifference result;
    ha::AttentionShape const s = of(layer);
    std::int32_t const cache = shape.cache_layer(layer);
    std::vector<float> const q = queries(layer);
    for (std::int32_t b = 0; b < s.num_sequences; ++b) {
      for (std::int32_t h = 0; h < s.num_query_heads; ++h) {
        std::int32_t const kv_head = h / s.group();
        for (std::int64_t t = 0; t < query_tokens; ++t) {
          std::int64_t const position = lengths[at(b)] - query_tokens + t;
          double z = has_sinks(layer) ? std::exp(double(sinks[at(h)])) : 0;
          std::vector<double> sums(at(s.output_dim()));
          for (std::int64_t token = 0; token <= position; ++token) {
            if (!sees(cache, kv_head, position, token)) continue;
            double x = 0;
            for (std::int64_t c = 0; c < s.head_dim; ++c) {
              x += double(q[at(query_layout(layer).offset(b, h, t, c))]) *
                   double(mixed_element(cache, false, b, kv_head, token, c));
            }
            x = std::exp(x / std::sqrt(double(s.head_dim)));
            z += x;
            for (std::int64_t c = 0; c < s.output_dim(); ++c) {
              sums[at(c)] += x * double(mixed_element(cache, !latent(cache), b, kv_head, token, c));
            }
          }
          for (std::int64_t c = 0; c < s.output_dim(); ++c) {
            double const expected = z > 0 ? sums[at(c)] / z : 0;
            auto const got = double(output[at(output_layout(layer).offset(b, h, t, c))]);
            result.expect_that(std::abs(got - expected) < 3e-6, got, expected, "layer ", layer, ", sequence ", b,
                               ", query head ", h, ", token ", t, ", channel ", c);
          }
        }
      }
    }
    return result.text();
  }

  /// Attends in every layer that does, and compares. @param attend  (layer, layer of the cache) to the layer's output
  template <class Attend>
  void check(Attend const& attend) const {
    for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
      if (!shape.layer(layer).attends()) continue;
      INFO("layer " << layer);
      CHECK(difference(layer, attend(layer, shape.cache_layer(layer))) == "");
    }
  }
};

/// Calls `f` with the cache that a layer's kind has.
template <class View, class F>
void with_cache(MixedStep const& step, std::int32_t layer, ha::LayerKv<float> const& kv, View const& view, F const& f) {
  if (step.latent(layer)) {
    f(ha::LatentCache{kv.keys, view});
  } else {
    f(ha::KeptCache{kv.keys, kv.values, view});
  }
}

}  // namespace headaware_test
