#include "tools/llama/scored_statistics.hpp"

#include "tools/llama/key_rotations.hpp"
#include "tools/llama/score_chunk.hpp"
#include "tools/llama/tapped_qkv.hpp"
#include "tools/support/interrupt.hpp"
#include "tools/support/progress.hpp"

#include <headaware/score/row_scores.hpp>
#include <headaware/stats/observe_scored.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <cstddef>
#include <span>

namespace llama_adapter {

namespace ha = headaware;

namespace {

constexpr std::int64_t sample_stride = 4;

}  // namespace

void observe_scored_slots(PolicyRun& run, std::vector<std::vector<std::int32_t>> const& pieces,
                          std::span<ha::OutputMetric const> metrics, ha::RowScorer const& scorer,
                          ha::ScoredGrid const& grid, ha::RetentionStatistics& statistics) {
  ha::RetentionInfo& info = statistics.info;
  for (ha::RetentionSums& head : statistics.heads) head.scored = ha::ScoredSums(grid);
  info.scored = grid;
  info.scores = scorer.saved.weight_hash;

  auto const rotations = key_rotations(run.model());
  std::vector<float> scores;
  std::vector<ha::ScoredSums> sums;
  support::Interrupt const interrupt;
  std::int64_t tokens = 0;
  for (auto const& piece : pieces) tokens += std::ssize(piece);
  support::Progress progress("observing scored slots", "tokens", tokens);
  std::int64_t done = 0;
  for (auto const& piece : pieces) {
    std::size_t first = 0;  // query head of the layer: statistics have those of all layers that attend, in their order
    run.observe(piece, [&](TappedAttention const& attention) {
      interrupt.check();
      progress.show(static_cast<double>(done) +
                    static_cast<double>(attention.tokens) * (attention.layer + 1) / info.num_layers);
      std::span<ha::RetentionSums> const heads =
          std::span(statistics.heads).subspan(first, static_cast<std::size_t>(attention.num_query_heads));
      first += heads.size();
      if (attention.sliding_window != 0) return;
      scores.resize(static_cast<std::size_t>(attention.num_kv_heads * attention.tokens));
      auto const of_rows = ha::RowScores::dense(scores.data(), attention.num_kv_heads, attention.tokens);
      score_chunk(scorer, rotations, attention, of_rows);
      auto qkv = qkv_of(attention);
      qkv.output_factors = metrics[static_cast<std::size_t>(attention.layer)].factors();
      sums.assign(static_cast<std::size_t>(attention.num_query_heads), ha::ScoredSums(grid));
      ha::observe_scored(qkv, score_of(attention), of_rows, grid, info.first_query, info.query_stride, sample_stride,
                         sums);
      for (std::size_t head = 0; head < sums.size(); ++head) heads[head].scored.merge(sums[head]);
    });
    done += std::ssize(piece);
  }
  progress.finish(static_cast<double>(done));
}

}  // namespace llama_adapter
