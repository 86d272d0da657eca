#include "decode_loop/prefill.hpp"

#include <headaware/attention/attend.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace decode_loop {

namespace ha = headaware;

Prefilled prefill(Model const& model, std::int32_t tokens, std::uint64_t seed) {
  Shape const& shape = model.shape();
  Prefilled result{.shape = shape, .tokens = tokens, .keys = {}, .values = {}, .hidden = {}};
  auto const layout = result.layout();
  result.keys.resize(static_cast<std::size_t>(shape.layers * layout.required_span_size()));
  result.values.resize(result.keys.size());

  std::mt19937_64 random(seed);
  std::uniform_int_distribution<std::int32_t> any_token(0, Model::vocabulary - 1);
  std::vector<std::vector<float>> hidden;
  for (std::int32_t token = 0; token < tokens; ++token) hidden.push_back(model.embed(any_token(random)));

  std::vector<float> queries(static_cast<std::size_t>(tokens * shape.query_width()));
  std::vector<float> attention(queries.size());
  std::vector<ha::float16> new_keys(static_cast<std::size_t>(shape.kv_width()));
  std::vector<ha::float16> new_values(new_keys.size());
  std::vector<std::int32_t> const held(static_cast<std::size_t>(shape.num_kv_heads), tokens);
  std::int32_t const first_position = 0;
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    ha::float16* const keys = result.keys.data() + layer * layout.required_span_size();
    ha::float16* const values = result.values.data() + layer * layout.required_span_size();
    for (std::int32_t token = 0; token < tokens; ++token) {
      model.before_attention(layer, hidden[static_cast<std::size_t>(token)], token,
                             {queries.data() + token * shape.query_width(), new_keys.data(), new_values.data()});
      for (std::int64_t head = 0; head < shape.num_kv_heads; ++head) {
        std::int64_t const to = layout.offset(0, head, token, 0);
        std::copy_n(new_keys.data() + head * shape.head_dim, shape.head_dim, keys + to);
        std::copy_n(new_values.data() + head * shape.head_dim, shape.head_dim, values + to);
      }
    }
    auto const tokens_first = ha::strided_bshd(1, tokens, shape.num_query_heads, shape.head_dim);
    ha::PaddedView const view{.lengths = held.data(), .num_kv_heads = shape.num_kv_heads, .head_rows = tokens};
    ha::attend(shape.attention(tokens), ha::AttentionQueries{queries.data(), tokens_first},
               ha::KeptCache{keys, values, view}, ha::AttentionOutput{attention.data(), tokens_first},
               {.scale = 0, .soft_cap = 0, .first_positions = &first_position});
    for (std::int32_t token = 0; token < tokens; ++token) {
      model.after_attention(layer, attention.data() + token * shape.query_width(),
                            hidden[static_cast<std::size_t>(token)]);
    }
  }
  result.hidden = hidden.back();
  return result;
}

}  // namespace decode_loop
