#include "tools/llama/second_reading.hpp"

#include "tools/llama/attention_scores.hpp"
#include "tools/llama/key_rotations.hpp"

#include <headaware/attention/key_scores.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/score/linear_score.hpp>

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
  scores_.resize(static_cast<std::size_t>(heads * tokens_));
  score_tapped_keys(attention, tokens_ + std::ssize(instruction_), rows, ha::KeyScoreReduction::max, all_, tokens_,
                    scores_.data());

  ha::LayerShape const& shape = model_->shape().layer(attention.layer);
  auto const features = ha::ScoreFeatures::of(shape);
  features_.resize(static_cast<std::size_t>(tokens_ * features.count()));
  ha::score_features(
      features, {1, tokens_},
      ha::TokenRows{
          attention.queries, ha::strided_shd(rows, attention.num_query_heads, dim), attention.keys, attention.values,
          ha::KvLayouts{ha::strided_shd(rows, heads, dim), ha::strided_shd(rows, heads, attention.value_dim)}},
      features_.data(), rotations_[static_cast<std::size_t>(attention.layer)]);
  (*handler_)({attention.layer, features_, scores_});
}

}  // namespace llama_adapter
