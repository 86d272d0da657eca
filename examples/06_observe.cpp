// An engine's queries, keys and values to statistics of its heads: what a few lines in an engine look like.

#include <headaware/classify/classifier.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

int main() {
  ha::ModelConfig const model{
      .num_hidden_layers = 2, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 32};
  constexpr std::int64_t tokens = 300;

  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid::up_to(tokens);  // what sinks and windows would cost, too
  ha::AttentionObserver observer(model, parameters);

  // The engine's tensors: [tokens, heads, head_dim] here; every layout will do.
  std::vector<float> const queries(tokens * 4 * 32, 0.5F);
  std::vector<float> keys(tokens * 2 * 32);
  std::vector<float> const values(tokens * 2 * 32, 1.0F);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::sin(static_cast<float>(i) / 1280);

  ha::LayerQkv<float, ha::StridedLayout, ha::StridedLayout> qkv;
  qkv.queries = queries.data();
  qkv.keys = keys.data();
  qkv.values = values.data();  // without values: masses alone
  qkv.query_layout = ha::strided_bshd(1, tokens, 4, 32);
  qkv.key_layout = ha::strided_bshd(1, tokens, 2, 32);
  qkv.value_layout = qkv.key_layout;
  qkv.num_query_heads = 4;
  qkv.num_kv_heads = 2;
  qkv.tokens = tokens;
  qkv.head_dim = 32;

  // As often as there are texts; observers of several processes or GPUs merge.
  for (std::int32_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    observer.observe(layer, qkv, {.scale = 1 / std::sqrt(32.0F)});
  }

  for (ha::HeadClassification const& head : ha::classify(observer.statistics())) {
    auto const& sums = observer.head(head.layer_idx, head.head_idx);
    std::printf("layer %d, head %d: %s; 4 sinks and a window of 64 lose %.1f %% of the attention\n", head.layer_idx,
                head.head_idx, std::string(to_string(head.head_type)).c_str(),
                100 * sums.retention.mass[parameters.retention->cell(2, 5)] / static_cast<double>(sums.retention.rows));
  }
}
