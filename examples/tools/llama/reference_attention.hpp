#pragma once

// Full causal attention by its formula, to prove that the adapter hands over what the engine computes with.

#include "tools/llama/attention_tap.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace llama_adapter {

/// @brief The probabilities of one query over the keys it sees.
/// @param[out] probabilities  [query + 1]; 0 where the sliding window hides a key
inline void attention_probabilities(TappedAttention const& layer, std::int32_t head, std::int64_t query,
                                    std::span<double> probabilities) {
  std::int64_t const dim = layer.head_dim;
  std::int64_t const kv_head = head / (layer.num_query_heads / layer.num_kv_heads);
  std::int64_t const first = layer.sliding_window > 0 ? std::max<std::int64_t>(0, query - layer.sliding_window + 1) : 0;
  std::fill(probabilities.begin(), probabilities.end(), 0.0);
  float const* const q = layer.queries + (query * layer.num_query_heads + head) * dim;
  double top = -HUGE_VAL;
  for (std::int64_t key = first; key <= query; ++key) {
    float const* const k = layer.keys + (key * layer.num_kv_heads + kv_head) * dim;
    double logit = 0;
    for (std::int64_t c = 0; c < dim; ++c) logit += static_cast<double>(q[c]) * k[c];
    logit *= layer.scale;
    if (layer.soft_cap > 0) logit = layer.soft_cap * std::tanh(logit / layer.soft_cap);
    probabilities[static_cast<std::size_t>(key)] = logit;
    top = std::max(top, logit);
  }
  double sum = 0;
  if (layer.sinks != nullptr) sum += std::exp(layer.sinks[head] - top);
  for (std::int64_t key = first; key <= query; ++key) {
    double& p = probabilities[static_cast<std::size_t>(key)];
    p = std::exp(p - top);
    sum += p;
  }
  for (double& p : probabilities) p /= sum;
}

/// @brief Attention's output of a whole layer.
/// @param[out] output  [tokens, num_query_heads · value_dim]
inline void reference_attention(TappedAttention const& layer, float* output) {
  std::int64_t const dim = layer.value_dim;
  std::int64_t const group = layer.num_query_heads / layer.num_kv_heads;
#pragma omp parallel for schedule(dynamic, 16)
  for (std::int64_t query = 0; query < layer.tokens; ++query) {
    std::vector<double> probabilities(static_cast<std::size_t>(query + 1));
    std::vector<double> sums(static_cast<std::size_t>(dim));
    for (std::int32_t head = 0; head < layer.num_query_heads; ++head) {
      attention_probabilities(layer, head, query, probabilities);
      std::fill(sums.begin(), sums.end(), 0.0);
      for (std::int64_t key = 0; key <= query; ++key) {
        double const p = probabilities[static_cast<std::size_t>(key)];
        float const* const v = layer.values + (key * layer.num_kv_heads + head / group) * dim;
        for (std::int64_t c = 0; c < dim; ++c) sums[static_cast<std::size_t>(c)] += p * v[c];
      }
      float* const row = output + (query * layer.num_query_heads + head) * dim;
      for (std::int64_t c = 0; c < dim; ++c) row[c] = static_cast<float>(sums[static_cast<std::size_t>(c)]);
    }
  }
}

}  // namespace llama_adapter
