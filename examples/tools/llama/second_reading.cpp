#include "tools/llama/second_reading.hpp"

#include "tools/llama/key_rotations.hpp"

#include <headaware/attention/dense_views.hpp>
#include <headaware/attention/key_scores.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/score/linear_score.hpp>

#include <algorithm>
#include <cstddef>

namespace llama_adapter {

namespace ha = headaware;

namespace {

std::int32_t context_tokens(Model const& model, std::int64_t piece, std::int64_t instruction) {
  std::int64_t const all = 2 * piece + instruction;
  std::int32_t const most = model.info().trained_tokens;
  ha::require(piece > 1 && (most <= 0 || all <= most), "tokens of a piece",
              {"2 to ", (most - instruction) / 2, ", so that the model can read two with an instruction between"},
              piece, "SecondReading");
  return static_cast<std::int32_t>(all);
}

}  // namespace

SecondReading::SecondReading(Model const& model, std::string const& instruction, std::int64_t tokens,
                             std::int32_t threads)
    : model_(&model),
      tokens_(tokens),
      bos_(model.begins_with_bos() ? 1 : 0),
      instruction_(model.tokenize(instruction, false)),
      rotations_(key_rotations(model)),
      tap_(model, [this](TappedAttention const& attention) { score(attention); }),
      context_(model, {.tokens = context_tokens(model, tokens, std::ssize(instruction_)),
                       .all_logits = false,
                       .threads = threads,
                       .observer = &tap_}) {}

void SecondReading::read(std::span<std::int32_t const> piece, Handler const& handler) {
  ha::require(std::ssize(piece) == tokens_, "tokens of a piece", tokens_, piece.size(), "SecondReading::read");
  std::vector<std::int32_t> text(piece.begin(), piece.end());
  text.insert(text.end(), instruction_.begin(), instruction_.end());
  text.insert(text.end(), piece.begin() + bos_, piece.end());
  handler_ = &handler;
  context_.evaluate(text);
}

void SecondReading::score(TappedAttention const& attention) {
  std::int64_t const rows = attention.tokens;
  std::int64_t const dim = attention.head_dim;
  std::int32_t const heads = attention.num_kv_heads;
  keys_.resize(static_cast<std::size_t>(heads * rows * dim));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      std::copy_n(attention.keys + (row * heads + head) * dim, dim, keys_.data() + (head * rows + row) * dim);
    }
  }
  auto const first = static_cast<std::int32_t>(tokens_ + std::ssize(instruction_));
  std::int64_t const queries = rows - first;
  std::vector<std::int32_t> const held(static_cast<std::size_t>(heads), static_cast<std::int32_t>(rows));
  scores_.assign(static_cast<std::size_t>(heads * rows), 0);
  ha::score_keys({1, attention.num_query_heads, heads, queries, dim, attention.value_dim},
                 ha::AttentionQueries{attention.queries + first * attention.num_query_heads * dim,
                                      ha::strided_shd(queries, attention.num_query_heads, dim)},
                 ha::KeptCache{static_cast<float const*>(keys_.data()), static_cast<float const*>(nullptr),
                               ha::PaddedView{held.data(), heads, rows}},
                 {.scale = attention.scale,
                  .soft_cap = attention.soft_cap,
                  .first_positions = &first,
                  .window = attention.sliding_window,
                  .sinks = attention.sinks},
                 ha::KeyScoreReduction::max, {scores_.data(), rows});
  for (std::int64_t head = 1; head < heads; ++head) {
    std::copy_n(scores_.begin() + head * rows, tokens_, scores_.begin() + head * tokens_);
  }

  ha::LayerShape const& shape = model_->shape().layer(attention.layer);
  auto const features = ha::ScoreFeatures::of(shape);
  features_.resize(static_cast<std::size_t>(tokens_ * features.count()));
  ha::score_features(
      features, {1, tokens_},
      ha::TokenRows{
          attention.queries, ha::strided_shd(rows, attention.num_query_heads, dim), attention.keys, attention.values,
          ha::KvLayouts{ha::strided_shd(rows, heads, dim), ha::strided_shd(rows, heads, attention.value_dim)}},
      features_.data(), rotations_[static_cast<std::size_t>(attention.layer)]);
  (*handler_)(
      {attention.layer, features_, std::span<float const>(scores_).first(static_cast<std::size_t>(heads * tokens_))});
}

}  // namespace llama_adapter
