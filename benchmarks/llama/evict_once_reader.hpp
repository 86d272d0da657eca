#pragma once

// Reads prefixes with everything kept, scores their tokens, and reads on from what methods keep of them.

#include "llama/evict_once.hpp"
#include "llama/timing.hpp"
#include "tools/llama/attention_scores.hpp"
#include "tools/llama/compact_cache.hpp"
#include "tools/llama/key_rotations.hpp"
#include "tools/llama/policy_run.hpp"
#include "tools/llama/score_chunk.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/io/row_scorer.hpp>
#include <headaware/policy/with_keep_lists.hpp>
#include <headaware/score/expected_attention.hpp>
#include <headaware/score/query_moments.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/score/select.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

inline constexpr std::int32_t once_chunk = 256;       ///< tokens of a continuation that are read at a time
inline constexpr std::int64_t observed_queries = 64;  ///< of snapkv
inline constexpr std::int64_t pooled_tokens = 5;      ///< likewise
inline constexpr std::int32_t once_sink = 4;          ///< of all methods
inline constexpr char const* repeat_instruction =
    "\n\nRepeat the text above exactly.\n\n";  ///< of kvzip's second reading

/// What tokens are scored by.
enum class OnceSource : std::uint8_t { windows, last_queries, all_queries, second_reading, learned, expected };

/// Which tokens a method scores by, and how many it keeps at a size.
struct OnceSelection {
  OnceSource source = OnceSource::windows;
  std::int32_t window = 0;  ///< newest tokens of each head, where it has no budget
  bool shared = false;  ///< one threshold for all heads; else as many of each, or its budget, a quarter of it newest

  static OnceSelection of(OnceRun const& run) {
    auto const size = static_cast<std::int32_t>(run.size);
    if (run.method == "snapkv") return {OnceSource::last_queries, size / 4, false};
    if (run.method == "h2o") return {OnceSource::all_queries, size / 2, false};
    if (run.method == "kvzip") return {OnceSource::second_reading, 0, true};
    if (run.method == "learned") return {OnceSource::learned, 0, false};
    if (run.method == "learned_shared") return {OnceSource::learned, 16, true};
    if (run.method == "expected_attention") return {OnceSource::expected, 0, false};
    return {};
  }
  /// Tells selections apart in names of files.
  [[nodiscard]] std::string text() const {
    std::string result = "source " + std::to_string(static_cast<int>(source)) + " window " + std::to_string(window);
    if (source == OnceSource::last_queries) {
      result += " " + std::to_string(observed_queries) + " pooled " + std::to_string(pooled_tokens);
    }
    return result + (shared ? " shared" : "");
  }
};

/// Scores of a prefix's tokens by one source, layer by layer as the model reads.
class OnceScores {
 public:
  /// @param first, end  queries that count, of sources that look at attention
  OnceScores(OnceSource source, headaware::ModelShape const& shape, std::int64_t tokens, std::int64_t first,
             std::int64_t end)
      : source_(source), tokens_(tokens) {
    namespace ha = headaware;
    if (source != OnceSource::learned && source != OnceSource::expected) {
      attention_.emplace(
          shape, tokens, first, end,
          source == OnceSource::second_reading ? ha::KeyScoreReduction::max : ha::KeyScoreReduction::sum);
      return;
    }
    for (ha::LayerShape const& layer : shape.layers()) {
      first_heads_.push_back(heads_);
      if (layer.has_cache()) heads_ += layer.num_kv_heads;
    }
    scores_.resize(static_cast<std::size_t>(heads_ * tokens));
  }

  /// @param scorer, rotations  of sources that have them
  void take(TappedAttention attention, headaware::RowScorer const* scorer,
            std::span<headaware::KeyRotation const> rotations) {
    namespace ha = headaware;
    if (attention_) return attention_->take(attention);
    attention.tokens = tokens_;  // without those of a second reading
    auto const layer = static_cast<std::size_t>(attention.layer);
    auto const to =
        ha::RowScores::dense(scores_.data() + first_heads_[layer] * tokens_, attention.num_kv_heads, tokens_);
    seconds_ += seconds_of([&] {
      if (source_ == OnceSource::learned) return score_chunk(*scorer, rotations, attention, to);
      auto const rows = [&](std::int64_t heads, std::int64_t channels) {
        return ha::strided_shd(tokens_, heads, channels);
      };
      ha::QueryMoments moments(attention.num_query_heads, attention.head_dim);
      moments.add(attention.queries, rows(attention.num_query_heads, attention.head_dim), 0, 0, tokens_,
                  rotations[layer]);
      ha::expected_attention(
          {attention.num_query_heads, attention.num_kv_heads, attention.head_dim, attention.value_dim}, {1, tokens_},
          moments, {.next_position = tokens_, .scale = attention.scale}, attention.keys, attention.values,
          ha::KvLayouts{rows(attention.num_kv_heads, attention.head_dim),
                        rows(attention.num_kv_heads, attention.value_dim)},
          to, rotations[layer]);
    });
  }
  /// [KV heads of all layers, tokens].
  [[nodiscard]] std::vector<float> scores() const {
    if (!attention_) return scores_;
    return source_ == OnceSource::last_queries ? attention_->pooled(pooled_tokens) : attention_->scores();
  }
  [[nodiscard]] double seconds() const { return attention_ ? attention_->seconds() : seconds_; }

 private:
  OnceSource source_;
  std::int64_t tokens_;
  std::optional<AttentionScores> attention_;
  std::vector<std::int64_t> first_heads_;  ///< of each layer
  std::int64_t heads_ = 0;
  std::vector<float> scores_;
  double seconds_ = 0;
};

/// How a model's keys are rotated, where a method asks. @return [layers], or none
[[nodiscard]] inline std::vector<headaware::KeyRotation> once_rotations(Model const& model,
                                                                        OnceOptions const& options) {
  return options.scorer != nullptr ? key_rotations(model) : std::vector<headaware::KeyRotation>();
}

/// Reads prefixes with everything kept, hands their rows and scores out, and reads on.
template <class T>
class OnceReader {
 public:
  using Check = std::function<void()>;  ///< called between layers; may throw to leave

  /// @param most  tokens of the longest prefix, its second reading included
  OnceReader(Model const& model, OnceOptions const& options, std::int64_t most, Check check)
      : model_(&model),
        scorer_(options.scorer),
        rotations_(once_rotations(model, options)),
        check_(std::move(check)),
        table_(headaware::table_from_model_config(model.shape(), headaware::Full{})),
        tap_(model, [this](TappedAttention const& attention) { take(attention); }),
        context_(model, {.tokens = static_cast<std::int32_t>(most),
                         .flash_attention = wants_fused(model.shape(), most),
                         .all_logits = false,
                         .threads = options.threads,
                         .observer = &tap_}),
        continued_(model, once_chunk, options.threads) {}

  /// Tokens of a second reading, the instruction before it included.
  static std::vector<std::int32_t> second_reading(Model const& model, std::span<std::int32_t const> prefix) {
    auto tokens = model.tokenize(repeat_instruction, false);
    tokens.insert(tokens.end(), prefix.begin() + (model.begins_with_bos() ? 1 : 0), prefix.end());
    return tokens;
  }

  void read(std::span<std::int32_t const> prefix, std::vector<OnceSource> const& sources) {
    headaware::ModelShape const& shape = model_->shape();
    std::int64_t const count = std::ssize(prefix);
    std::vector<std::int32_t> tokens(prefix.begin(), prefix.end());
    rows_.emplace(shape, count);
    scorers_.clear();
    for (OnceSource const source : sources) {
      if (source == OnceSource::windows || scorers_.contains(source)) continue;
      std::int64_t first = 0;
      std::int64_t end = count;
      if (source == OnceSource::last_queries) first = std::max<std::int64_t>(0, count - observed_queries);
      if (source == OnceSource::second_reading) {
        auto const again = second_reading(*model_, prefix);
        tokens.insert(tokens.end(), again.begin(), again.end());
        end = std::ssize(tokens);
        first = end - (count - (model_->begins_with_bos() ? 1 : 0));
      }
      scorers_.emplace(source, OnceScores(source, shape, count, first, end));
    }
    context_.evaluate(tokens);
  }
  /// Keeps what a method keeps of the prefix, and reads on. @param advanced  (tokens read so far)
  template <class Advanced>
  OnceText go_on(OnceRun const& run, std::span<std::int32_t const> continuation, Advanced const& advanced) {
    OnceText result;
    headaware::ModelShape const& shape = model_->shape();
    std::array<std::int32_t, 1> const lengths{static_cast<std::int32_t>(rows_->tokens())};
    std::optional<headaware::TokenLists> selected;
    std::vector<headaware::KeepList> const none(static_cast<std::size_t>(table_.heads().total()));
    auto const selection = OnceSelection::of(run);
    if (selection.source != OnceSource::windows) {
      auto const scores = scorers_.at(selection.source).scores();
      result.select_seconds = seconds_of([&] { selected.emplace(select(selection, run, lengths, scores)); });
    }
    headaware::PolicyTable const table = headaware::within_layers(run.table, shape);
    headaware::Compaction const compaction(
        headaware::WithKeepLists(table.view(), selected ? selected->lists().data() : none.data(), 1), lengths);
    std::optional<CompactCache<T>> cache;
    result.compress_seconds = seconds_of([&] { cache.emplace(*rows_, shape, compaction, std::ssize(continuation)); });
    result.mean_kept = cache->mean_kept();
    continued_.go_on_from(*cache);
    for (std::size_t at = 0; at < continuation.size();) {
      std::size_t const count = std::min<std::size_t>(once_chunk, continuation.size() - at);
      continued_.read(continuation.subspan(at, count));
      for (std::size_t i = 0; i < count && at + i + 1 < continuation.size(); ++i) {
        std::int32_t const next = continuation[at + i + 1];
        result.losses.push_back(loss_of(continued_.logits(i), next));
        result.right.push_back(greedy_token(continued_.logits(i)) == next ? 1 : 0);
      }
      at += count;
      advanced(static_cast<std::int64_t>(at));
    }
    return result;
  }

 private:
  void take(TappedAttention const& attention) {
    check_();
    rows_->take(attention);
    for (auto& [source, scorer] : scorers_) scorer.take(attention, scorer_, rotations_);
  }

  headaware::TokenLists select(OnceSelection const& selection, OnceRun const& run,
                               std::span<std::int32_t const> lengths, std::vector<float> const& scores) const {
    headaware::SelectionShape const from{table_.heads(), 1, lengths.data(), lengths[0]};
    headaware::SelectionRule rule{.sink = once_sink, .window = selection.window};
    std::int64_t const heads = table_.heads().total();
    std::int64_t const others = std::max<std::int64_t>(0, run.size - once_sink - selection.window);
    std::vector<std::int32_t> budgets(static_cast<std::size_t>(heads), static_cast<std::int32_t>(others));
    std::vector<std::int32_t> windows;
    for (std::size_t head = 0; head < run.budgets.size(); ++head) {
      windows.push_back(run.budgets[head] / 4);
      budgets[head] = std::max(0, run.budgets[head] - once_sink - windows.back());
    }
    if (!windows.empty()) rule.windows = windows.data();
    if (selection.shared) {
      rule.shared = others * heads;
    } else {
      rule.budgets = budgets.data();
    }
    return headaware::select_tokens(from, {scores.data(), lengths[0]}, rule);
  }

  Model const* model_;
  headaware::RowScorer const* scorer_;
  std::vector<headaware::KeyRotation> rotations_;
  Check check_;
  headaware::PolicyTable table_;  ///< that keeps everything
  std::optional<PrefixRows<T>> rows_;
  std::map<OnceSource, OnceScores> scorers_;
  AttentionTap tap_;
  Context context_;
  ContinuedModel<T> continued_;
};

}  // namespace llama_adapter
