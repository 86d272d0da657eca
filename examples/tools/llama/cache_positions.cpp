#include "tools/llama/cache_positions.hpp"

#include <headaware/error.hpp>
#include <headaware/policy/policy_window.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// The keys that one query sees: [first_sink, sinks) and [window, end).
struct Seen {
  std::int64_t first_sink = 0;
  std::int64_t sinks = 0;
  std::int64_t window = 0;
  std::int64_t end = 0;
  std::int64_t moved = 0;  ///< positions that the query stands closer to the sinks than in the text
};

Seen seen_by(std::int64_t query, ha::AnyPolicy<> const& policy, std::int32_t sliding_window) {
  auto const rule = ha::policy_window(policy, "attend_at_cache_positions");
  std::int64_t const length = query + 1;
  std::int64_t const oldest = sliding_window > 0 ? std::max<std::int64_t>(0, length - sliding_window) : 0;
  if (policy.is<ha::Prune>()) return {};
  if (!rule) return {0, 0, oldest, length, 0};
  ha::WindowRange const kept = rule->range(length);
  return {std::min(oldest, kept.sinks), kept.sinks, std::max(kept.begin, oldest), length, length - kept.count()};
}

float product(float const* a, float const* b, std::int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

void turn_back(ha::KeyRotation const& rotation, std::int64_t distance, std::vector<float>& row) {
  if (distance == 0) return;
  for (std::int32_t i = 0; i < rotation.rotary_dim() / 2; ++i) {
    auto const pair = ha::rotary_pair(rotation, i);
    rotation.turn_back(distance, i, row[static_cast<std::size_t>(pair.a)], row[static_cast<std::size_t>(pair.b)]);
  }
}

/// One query row of one head.
class Row {
 public:
  explicit Row(TappedAttention const& attention) : attention_(attention), turned_(size_of(attention.head_dim)) {}

  void run(std::int32_t head, std::int64_t query, Seen const& seen, ha::KeyRotation const& rotation) {
    std::int64_t const width = attention_.head_dim;
    float const* const own = attention_.queries + (query * attention_.num_query_heads + head) * width;
    turned_.assign(own, own + width);
    turn_back(rotation, seen.moved, turned_);
    std::int32_t const kv_head = head / (attention_.num_query_heads / attention_.num_kv_heads);
    weights_.clear();
    add_scores(turned_.data(), kv_head, seen.first_sink, seen.sinks);
    add_scores(own, kv_head, seen.window, seen.end);
    float top = -std::numeric_limits<float>::infinity();
    for (float const score : weights_) top = std::max(top, score);
    double sum = 0;
    for (float& weight : weights_) {
      weight = std::exp(weight - top);
      sum += weight;
    }
    if (attention_.sinks != nullptr && !weights_.empty()) sum += std::exp(attention_.sinks[head] - top);
    std::int64_t const value_width = attention_.value_dim;
    float* const output = attention_.output + (query * attention_.num_query_heads + head) * value_width;
    std::fill_n(output, value_width, 0.0F);
    auto const scale = static_cast<float>(sum > 0 ? 1 / sum : 0);
    std::size_t next = 0;
    auto const add = [&](std::int64_t first, std::int64_t end) {
      for (std::int64_t key = first; key < end; ++key) {
        float const weight = weights_[next++] * scale;
        float const* const value = attention_.values + (key * attention_.num_kv_heads + kv_head) * value_width;
        for (std::int64_t c = 0; c < value_width; ++c) output[c] += weight * value[c];
      }
    };
    add(seen.first_sink, seen.sinks);
    add(seen.window, seen.end);
  }

 private:
  static std::size_t size_of(std::int64_t count) { return static_cast<std::size_t>(count); }

  void add_scores(float const* query, std::int32_t kv_head, std::int64_t first, std::int64_t end) {
    std::int64_t const width = attention_.head_dim;
    for (std::int64_t key = first; key < end; ++key) {
      float score =
          attention_.scale * product(query, attention_.keys + (key * attention_.num_kv_heads + kv_head) * width, width);
      if (attention_.soft_cap > 0) score = attention_.soft_cap * std::tanh(score / attention_.soft_cap);
      weights_.push_back(score);
    }
  }

  TappedAttention const& attention_;
  std::vector<float> turned_;
  std::vector<float> weights_;
};

}  // namespace

void attend_at_cache_positions(TappedAttention const& attention, ha::PolicyTable const& table,
                               ha::KeyRotation const& rotation) {
  constexpr auto where = "attend_at_cache_positions";
  ha::require(attention.output != nullptr, "output", "a pointer", "nullptr", where);
  ha::require(rotation.rotary_dim() <= attention.head_dim, "rotary_dim", {"at most ", attention.head_dim},
              rotation.rotary_dim(), where);
  std::vector<ha::AnyPolicy<>> policies;
  for (std::int32_t kv_head = 0; kv_head < attention.num_kv_heads; ++kv_head) {
    policies.push_back(table.at(attention.layer, kv_head));
    (void)ha::policy_window(policies.back(), where);  // here, not in a thread, which must not throw
  }
  std::int32_t const group = attention.num_query_heads / attention.num_kv_heads;
#pragma omp parallel
  {
    Row row(attention);
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t i = 0; i < attention.tokens * attention.num_query_heads; ++i) {
      std::int64_t const query = i / attention.num_query_heads;
      auto const head = static_cast<std::int32_t>(i % attention.num_query_heads);
      auto const& policy = policies[static_cast<std::size_t>(head / group)];
      row.run(head, query, seen_by(query, policy, attention.sliding_window), rotation);
    }
  }
}

}  // namespace llama_adapter
