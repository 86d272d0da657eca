// One unit of a program; each is compiled for another processor, and UNIT names its function.

#include "problem.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/masked.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/stats/attention_observer.hpp>

namespace ha = headaware;

namespace {

template <class T>
std::vector<float> attended(Problem const& problem) {
  std::int64_t const d = problem.head_dim;
  auto const converted = [](std::vector<float> const& from) {
    std::vector<T> to;
    for (float x : from) to.push_back(ha::from_float<T>(x));
    return to;
  };
  std::vector<T> const queries = converted(problem.queries);
  std::vector<T> const keys = converted(problem.keys);
  std::vector<T> const values = converted(problem.values);
  std::vector<std::int64_t> const offsets{0, problem.tokens};
  std::vector<float> output(static_cast<std::size_t>(d));
  auto const row = ha::strided_bhsd(1, 1, 1, d);
  ha::attend({.num_sequences = 1, .num_query_heads = 1, .num_kv_heads = 1, .head_dim = d},
             ha::AttentionQueries{queries.data() + (problem.tokens - 1) * d, row},
             ha::KeptCache{keys.data(), values.data(), ha::RaggedView{offsets.data(), 1}},
             ha::AttentionOutput{output.data(), row});
  return output;
}

}  // namespace

Answer UNIT(Problem const& problem) {
  std::int64_t const d = problem.head_dim;
  Answer answer{attended<float>(problem), attended<ha::float16>(problem), {}, 0};
  auto const rows = ha::strided_bhsd(1, 1, problem.tokens, d);
  ha::LayerQkv<float, ha::StridedLayout, ha::StridedLayout> const layer{.queries = problem.queries.data(),
                                                                        .keys = problem.keys.data(),
                                                                        .values = problem.values.data(),
                                                                        .query_layout = rows,
                                                                        .key_layout = rows,
                                                                        .value_layout = rows,
                                                                        .num_query_heads = 1,
                                                                        .num_kv_heads = 1,
                                                                        .tokens = problem.tokens,
                                                                        .head_dim = d};
  answer.masked.resize(problem.values.size());
  ha::attend_masked(layer, {}, ha::UniformTable(ha::Full{}, 1, 1), 0, answer.masked.data(), rows);
  ha::AttentionObserver observer({.num_hidden_layers = 1, .num_attention_heads = 1, .num_key_value_heads = 1},
                                 {.retention = ha::RetentionGrid{{0, 4}, {8}}});
  observer.observe(0, layer);
  answer.entropy = observer.statistics().heads.front().mean_entropy;
  return answer;
}
