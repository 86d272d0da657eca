// The cache and its attention on the CPU.

#include "decode_loop/backend.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace decode_loop {

namespace ha = headaware;

namespace {

class CpuCache final : public DecodeCache {
 public:
  CpuCache(ha::PolicyTable const& table, Prefilled const& prompt, std::int32_t max_tokens)
      : shape_(prompt.shape),
        plan_(table, 1, {.max_tokens = max_tokens, .slack = 0}),
        keys_(static_cast<std::size_t>(plan_.rows_total() * shape_.head_dim)),
        values_(keys_.size()),
        kept_(ha::rolling(plan_, plan_.view(), keys_.data(), values_.data(), shape_.head_dim)),
        counters_(static_cast<std::size_t>(shape_.layers), ha::RollingState(1)) {
    std::vector<std::int32_t> const lengths{prompt.tokens};
    ha::compress(ha::Compaction(table, lengths), prompt.layers(prompt.keys.data(), prompt.values.data()),
                 prompt.layout(), kept_);
    for (ha::RollingState& layer : counters_) layer.start(plan_.view(), 0, prompt.tokens);
  }

  void step(std::int32_t layer, TokenQkv const& token, float* output) override {
    ha::RollingState& counter = counters_[static_cast<std::size_t>(layer)];
    std::vector<ha::LayerKv<ha::float16 const>> const tokens{{token.keys, token.values}};
    ha::append(plan_.view(), counter, tokens, ha::strided_shd(1, shape_.num_kv_heads, shape_.head_dim), std::array{1},
               kept_, {.first_layer = layer, .advance = true});
    auto const layout = ha::strided_shd(1, shape_.num_query_heads, shape_.head_dim);
    auto const& rows = kept_.layers[static_cast<std::size_t>(layer)];
    ha::RollingView const view{plan_.view(), layer, counter.lengths().data()};
    ha::attend(shape_.attention(1), ha::AttentionQueries{token.queries, layout},
               ha::KeptCache{rows.keys, rows.values, view}, ha::AttentionOutput{output, layout});
  }

  [[nodiscard]] std::int64_t bytes() const override { return plan_.bytes_held(shape_.head_dim, sizeof(ha::float16)); }

 private:
  Shape shape_;
  ha::RollingSlots plan_;
  std::vector<ha::float16> keys_;
  std::vector<ha::float16> values_;
  ha::Destination<ha::float16, ha::RollingForm> kept_;
  /// One a layer: a layer's attention sees the token that the layers behind it have yet to get.
  std::vector<ha::RollingState> counters_;
};

}  // namespace

Backend cpu_backend() {
  return {"cpu", "this machine", [](ha::PolicyTable const& table, Prefilled const& prompt, std::int32_t max_tokens) {
            return std::make_unique<CpuCache>(table, prompt, max_tokens);
          }};
}

}  // namespace decode_loop
