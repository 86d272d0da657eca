#pragma once

// Reads prefixes with everything kept, scores their tokens, and reads on from what methods keep of them.

#include "llama/evict_once.hpp"
#include "llama/timing.hpp"
#include "tools/llama/attention_scores.hpp"
#include "tools/llama/compact_cache.hpp"
#include "tools/llama/policy_run.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/policy/with_keep_lists.hpp>
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
enum class OnceSource : std::uint8_t { windows, last_queries, all_queries, second_reading };

/// Which tokens a method scores by, and how many it keeps at a size.
struct OnceSelection {
  OnceSource source = OnceSource::windows;
  std::int32_t window = 0;  ///< newest tokens of each head
  bool shared = false;      ///< one threshold for all heads

  static OnceSelection of(OnceRun const& run) {
    auto const size = static_cast<std::int32_t>(run.size);
    if (run.method == "snapkv") return {OnceSource::last_queries, size / 4, false};
    if (run.method == "h2o") return {OnceSource::all_queries, size / 2, false};
    if (run.method == "kvzip") return {OnceSource::second_reading, 0, true};
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

/// Reads prefixes with everything kept, hands their rows and scores out, and reads on.
template <class T>
class OnceReader {
 public:
  using Check = std::function<void()>;  ///< called between layers; may throw to leave

  /// @param most  tokens of the longest prefix, its second reading included
  OnceReader(Model const& model, OnceOptions const& options, std::int64_t most, Check check)
      : model_(&model),
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
      auto const reduction =
          source == OnceSource::second_reading ? headaware::KeyScoreReduction::max : headaware::KeyScoreReduction::sum;
      scorers_.emplace(source, AttentionScores(shape, count, first, end, reduction));
    }
    context_.evaluate(tokens);
  }
  /// Spent on scores of the last prefix that was read.
  [[nodiscard]] double seconds(OnceSource source) const { return scorers_.at(source).seconds(); }

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
      auto const& scorer = scorers_.at(selection.source);
      auto const scores = selection.source == OnceSource::last_queries ? scorer.pooled(pooled_tokens) : scorer.scores();
      result.select_seconds = seconds_of([&] { selected.emplace(select(selection, run.size, lengths, scores)); });
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
    for (auto& [source, scorer] : scorers_) scorer.take(attention);
  }

  headaware::TokenLists select(OnceSelection const& selection, std::int64_t size, std::span<std::int32_t const> lengths,
                               std::vector<float> const& scores) const {
    headaware::SelectionShape const from{table_.heads(), 1, lengths.data(), lengths[0]};
    headaware::SelectionRule rule{.sink = once_sink, .window = selection.window};
    std::int64_t const others = std::max<std::int64_t>(0, size - once_sink - selection.window);
    std::vector<std::int32_t> const budgets(static_cast<std::size_t>(table_.heads().total()),
                                            static_cast<std::int32_t>(others));
    if (selection.shared) {
      rule.shared = others * table_.heads().total();
    } else {
      rule.budgets = budgets.data();
    }
    return headaware::select_tokens(from, {scores.data(), lengths[0]}, rule);
  }

  Model const* model_;
  Check check_;
  headaware::PolicyTable table_;  ///< that keeps everything
  std::optional<PrefixRows<T>> rows_;
  std::map<OnceSource, AttentionScores> scorers_;
  AttentionTap tap_;
  Context context_;
  ContinuedModel<T> continued_;
};

}  // namespace llama_adapter
