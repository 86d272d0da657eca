#pragma once

// Stands in for a model in the decode examples: queries, keys and values are numbers that depend on layer, head and
// token alone, and every attention output is compared with dense attention over the whole text.

#include <headaware/attention/policy_mask.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace toy {

namespace ha = headaware;

inline constexpr std::int32_t num_sequences = 4;
inline constexpr std::int32_t num_layers = 2;
inline constexpr std::int32_t num_kv_heads = 3;
inline constexpr std::int32_t num_query_heads = 6;
inline constexpr std::int64_t head_dim = 32;

/// Every KV head has its own policy, as in a plan.
inline ha::PolicyTable policies() {
  ha::PolicyTable table(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 28});
  table.set(0, 1, ha::Full{});
  table.set(0, 2, ha::WindowOnly{.window = 33});
  table.set(1, 0, ha::SinkWindow{.sink = 1, .window = 15});
  table.set(1, 1, ha::Prune{});
  return table;
}

/// Pseudo-random in [-1, 1), a multiple of 1/256, so that float16 holds it exactly.
inline float number(std::int32_t kind, std::int64_t layer, std::int64_t head, std::int64_t token,
                    std::int64_t channel) {
  auto x = static_cast<std::uint32_t>((((token * 64 + layer) * 64 + head) * 512 + channel) * 3 + kind);
  for (int round = 0; round < 2; ++round) x = (x ^ x >> 16) * 0x45d9f3bU;
  return static_cast<float>((x ^ x >> 16) % 512) / 256 - 1;
}

/// Of a step's new tokens, [num_sequences, max_count, heads, head_dim].
struct Projections {
  std::span<float const> queries;
  std::span<ha::float16 const> keys;
  std::span<ha::float16 const> values;

  [[nodiscard]] auto cache() const { return std::array{ha::LayerKv{keys.data(), values.data()}}; }
};

class Model {
 public:
  explicit Model(ha::PolicyTable table) : table_(std::move(table)), texts_(num_sequences) {}

  void fork(std::size_t from, std::size_t to) { texts_[to] = texts_[from]; }

  /// Queries, keys and values of a step's new tokens in one layer, valid until the next call.
  Projections project(ha::PageStep const& step, std::int32_t layer) {
    Pause const pause(seconds_);
    if (layer == 0) extend(step);
    fill(queries_, num_query_heads, [&](auto... at) { return 8 * number(0, layer, at...); });
    fill(keys_, num_kv_heads, [&](auto... at) { return ha::from_float<ha::float16>(number(1, layer, at...)); });
    fill(values_, num_kv_heads, [&](auto... at) { return ha::from_float<ha::float16>(number(2, layer, at...)); });
    return {queries_, keys_, values_};
  }

  /// Compares outputs [num_sequences, max_count, num_query_heads, head_dim] with dense attention under the policies'
  /// masks.
  void check(std::int32_t layer, std::vector<float> const& output) {
    Pause const pause(seconds_);
    std::size_t at = 0;
    for (std::size_t s = 0; s < texts_.size(); ++s) {
      for (std::int32_t i = 0; i < max_count_; ++i) {
        for (std::int32_t head = 0; head < num_query_heads; ++head, at += head_dim) {
          if (i >= counts_[s]) continue;
          auto const expected = dense_attention(layer, s, head, lengths_[s] + i);
          for (std::size_t c = 0; c < expected.size(); ++c) {
            double const difference = std::abs(expected[c] - double{output[at + c]});
            ha::require(difference < 1e-5, "attention", expected[c], output[at + c],
                        {"layer ", layer, ", sequence ", s, ", position ", lengths_[s] + i, ", head ", head});
          }
          ++compared_;
        }
      }
    }
  }

  [[nodiscard]] std::int64_t compared() const { return compared_; }  ///< outputs of query heads
  [[nodiscard]] double seconds() const { return seconds_; }          ///< in `project` and `check`

 private:
  /// Adds the time until its end to a sum.
  struct Pause {
    explicit Pause(double& sum) : seconds(sum) {}
    ~Pause() { seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }
    Pause(Pause const&) = delete;
    Pause& operator=(Pause const&) = delete;
    double& seconds;
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  };

  /// Brings texts to the lengths before a step, which drops rolled back tokens, and adds the step's new tokens.
  void extend(ha::PageStep const& step) {
    lengths_ = step.lengths;
    counts_ = step.counts;
    max_count_ = step.max_count;
    for (std::size_t s = 0; s < texts_.size(); ++s) {
      texts_[s].resize(static_cast<std::size_t>(lengths_[s]));
      for (std::int32_t i = 0; i < counts_[s]; ++i) texts_[s].push_back(next_token_++);
    }
  }

  /// Fills [num_sequences, max_count, heads, head_dim]; no tokens: zeros.
  template <class T, class F>
  void fill(std::vector<T>& tensor, std::int64_t heads, F const& element) const {
    tensor.assign(static_cast<std::size_t>(num_sequences * max_count_ * heads * head_dim), T{});
    for (std::size_t s = 0; s < texts_.size(); ++s) {
      T* to = tensor.data() + static_cast<std::int64_t>(s) * max_count_ * heads * head_dim;
      for (std::int64_t token = lengths_[s]; token < static_cast<std::int64_t>(texts_[s].size()); ++token) {
        for (std::int64_t head = 0; head < heads; ++head) {
          for (std::int64_t c = 0; c < head_dim; ++c)
            *to++ = element(head, texts_[s][static_cast<std::size_t>(token)], c);
        }
      }
    }
  }

  /// One query's attention over all tokens of its sequence, in double precision; zeros where its policy hides all.
  [[nodiscard]] std::vector<double> dense_attention(std::int32_t layer, std::size_t sequence, std::int32_t head,
                                                    std::int64_t position) const {
    std::vector<std::int64_t> const& text = texts_[sequence];
    std::int32_t const kv_head = head / (num_query_heads / num_kv_heads);
    constexpr double hidden = -std::numeric_limits<double>::infinity();
    std::vector<double> logits(static_cast<std::size_t>(position + 1), hidden);
    for (std::int64_t t = 0; t <= position; ++t) {
      bool const seen = table_.visit(layer, kv_head, [&](auto const& policy) { return ha::sees(policy, position, t); });
      if (!seen) continue;
      double product = 0;
      for (std::int64_t c = 0; c < head_dim; ++c) {
        product += 8 * double{number(0, layer, head, text[static_cast<std::size_t>(position)], c)} *
                   double{number(1, layer, kv_head, text[static_cast<std::size_t>(t)], c)};
      }
      logits[static_cast<std::size_t>(t)] = product / std::sqrt(static_cast<double>(head_dim));
    }
    std::vector<double> result(head_dim);
    double const largest = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (std::size_t t = 0; t < logits.size(); ++t) {
      if (logits[t] == hidden) continue;
      double const weight = std::exp(logits[t] - largest);
      total += weight;
      for (std::size_t c = 0; c < result.size(); ++c) {
        result[c] += weight * double{number(2, layer, kv_head, text[t], static_cast<std::int64_t>(c))};
      }
    }
    for (double& channel : result) channel = total > 0 ? channel / total : 0;
    return result;
  }

  ha::PolicyTable table_;
  std::vector<std::vector<std::int64_t>> texts_;  ///< the sequences' tokens; no two new tokens are alike
  std::int64_t next_token_ = 0;
  std::vector<std::int32_t> lengths_, counts_;  ///< of the step
  std::int32_t max_count_ = 0;
  std::vector<float> queries_;
  std::vector<ha::float16> keys_, values_;
  std::int64_t compared_ = 0;
  double seconds_ = 0;
};

/// What a loop costs under some policies.
struct Cost {
  double kibibytes = 0;       ///< of the pages in use
  double microseconds = 0;    ///< of a step's cache and attention, all layers and sequences
  std::int64_t compared = 0;  ///< outputs of query heads
};

/// Of one call, on average.
template <class F>
double microseconds(int calls, F const& call) {
  auto const start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) call();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / calls;
}

inline void print(Cost const& full, Cost const& by_head) {
  std::printf("%-10s%12s%12s\n", "policies", "KiB held", "us a step");
  std::printf("%-10s%12.0f%12.1f\n", "full", full.kibibytes, full.microseconds);
  std::printf("%-10s%12.0f%12.1f\n", "by head", by_head.kibibytes, by_head.microseconds);
  std::printf("every step compared with dense masked attention: %lld outputs of query heads are right\n",
              static_cast<long long>(full.compared + by_head.compared));
}

}  // namespace toy
