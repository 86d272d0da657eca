#include "decode_loop/dense_check.hpp"

#include <headaware/attention/policy_mask.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace decode_loop {

namespace ha = headaware;

namespace {

/// One layer's keys and values since the prompt's first token, never evicted: memory that no cache has a part in.
class DenseHistory {
 public:
  DenseHistory(Prefilled const& prompt, std::int32_t layer, std::int64_t max_tokens)
      : shape_(prompt.shape),
        max_tokens_(max_tokens),
        keys_(static_cast<std::size_t>(shape_.num_kv_heads * max_tokens * shape_.head_dim)),
        values_(keys_.size()) {
    auto const layout = prompt.layout();
    std::int64_t const first = layer * layout.required_span_size();
    for (; tokens_ < prompt.tokens; ++tokens_) {
      for (std::int64_t head = 0; head < shape_.num_kv_heads; ++head) {
        std::int64_t const from = first + layout.offset(0, head, tokens_, 0);
        put(head, prompt.keys.data() + from, prompt.values.data() + from);
      }
    }
  }

  void append(TokenQkv const& token) {
    for (std::int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      put(head, token.keys + head * shape_.head_dim, token.values + head * shape_.head_dim);
    }
    ++tokens_;
  }

  [[nodiscard]] std::int64_t tokens() const { return tokens_; }

  /// Attention of one query over a head's tokens.
  /// @param mask  [tokens], added to the logits: 0 or -inf
  /// @return [head_dim]; zeros where the mask hides all
  [[nodiscard]] std::vector<double> attend(float const* query, std::int64_t kv_head, float const* mask) const {
    std::int64_t const dim = shape_.head_dim;
    std::vector<double> logits(static_cast<std::size_t>(tokens_), -std::numeric_limits<double>::infinity());
    for (std::int64_t token = 0; token < tokens_; ++token) {
      if (mask[token] == -std::numeric_limits<float>::infinity()) continue;  // it would weigh nothing
      float const* const key = keys_.data() + row(kv_head, token);
      double product = 0;
#pragma omp simd reduction(+ : product)
      for (std::int64_t c = 0; c < dim; ++c) product += double{query[c]} * double{key[c]};
      logits[static_cast<std::size_t>(token)] = product / std::sqrt(static_cast<double>(dim)) + mask[token];
    }
    std::vector<double> result(static_cast<std::size_t>(dim));
    double const largest = *std::max_element(logits.begin(), logits.end());
    if (largest == -std::numeric_limits<double>::infinity()) return result;
    double total = 0;
    for (std::int64_t token = 0; token < tokens_; ++token) {
      double const weight = std::exp(logits[static_cast<std::size_t>(token)] - largest);
      if (weight == 0) continue;
      total += weight;
      float const* const value = values_.data() + row(kv_head, token);
      for (std::size_t c = 0; c < result.size(); ++c) result[c] += weight * double{value[c]};
    }
    for (double& channel : result) channel /= total;
    return result;
  }

 private:
  [[nodiscard]] std::int64_t row(std::int64_t head, std::int64_t token) const {
    return (head * max_tokens_ + token) * shape_.head_dim;
  }
  void put(std::int64_t head, ha::float16 const* key, ha::float16 const* value) {
    auto const to_float = [](ha::float16 element) { return ha::to_float(element); };
    std::transform(key, key + shape_.head_dim, keys_.data() + row(head, tokens_), to_float);
    std::transform(value, value + shape_.head_dim, values_.data() + row(head, tokens_), to_float);
  }

  Shape shape_;
  std::int64_t max_tokens_;
  std::int64_t tokens_ = 0;
  std::vector<float> keys_;  ///< [num_kv_heads, max_tokens, head_dim]
  std::vector<float> values_;
};

/// The largest absolute difference of each query head's output in one step.
std::vector<double> differences(Shape const& shape, DenseHistory const& history, TokenQkv const& token,
                                float const* output, std::vector<float> const& mask) {
  std::vector<double> result(static_cast<std::size_t>(shape.num_query_heads));
  std::int64_t const group = shape.num_query_heads / shape.num_kv_heads;
#pragma omp parallel for
  for (std::int64_t head = 0; head < shape.num_query_heads; ++head) {
    std::int64_t const kv_head = head / group;
    std::vector<double> const expected =
        history.attend(token.queries + head * shape.head_dim, kv_head, mask.data() + kv_head * history.tokens());
    double& difference = result[static_cast<std::size_t>(head)];
    for (std::int64_t c = 0; c < shape.head_dim; ++c) {
      double const here = std::abs(double{output[head * shape.head_dim + c]} - expected[static_cast<std::size_t>(c)]);
      if (here > difference || std::isnan(here)) difference = here;  // and a NaN stays
    }
  }
  return result;
}

}  // namespace

double check_against_dense(ha::PolicyTable const& table, Prefilled const& prompt, Trace const& trace, double tolerance,
                           std::string const& name) {
  Shape const& shape = prompt.shape;
  std::vector<DenseHistory> histories;
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    histories.emplace_back(prompt, layer, std::int64_t{prompt.tokens} + trace.steps());
  }
  std::vector<float> mask;
  double largest = 0;
  for (std::int32_t step = 0; step < trace.steps(); ++step) {
    for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
      DenseHistory& history = histories[static_cast<std::size_t>(layer)];
      TokenQkv const token = trace.token(step, layer);
      history.append(token);
      // The newest token's row of the mask, for each KV head.
      ha::MaskShape row{.layer = layer};
      row.first_query = history.tokens() - 1;
      row.queries = 1;
      row.keys = history.tokens();
      mask.resize(static_cast<std::size_t>(shape.num_kv_heads * row.keys));
      ha::fill_policy_mask(table, row, mask.data());

      auto const off = differences(shape, history, token, trace.output(step, layer), mask);
      for (std::size_t head = 0; head < off.size(); ++head) {
        if (!(off[head] <= tolerance)) {
          std::ostringstream expected, got, where;
          expected << "dense masked attention within " << tolerance;
          got << "a difference of " << off[head];
          where << name << ", step " << step << ", layer " << layer << ", query head " << head;
          throw ha::Error({"attention", expected.str(), got.str(), where.str()});
        }
        largest = std::max(largest, off[head]);
      }
    }
  }
  return largest;
}

}  // namespace decode_loop
