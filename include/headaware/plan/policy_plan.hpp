#pragma once

/// @file
/// Options and result of the planner.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/detail/whole_pages.hpp>
#include <headaware/plan/error_measure.hpp>
#include <headaware/plan/format_choice.hpp>
#include <headaware/policy/scored_heads.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Options of the planner.
struct PlanOptions {
  std::optional<ErrorMeasure> measure{};  ///< of errors; nothing: the best that all statistics hold
  GroupFold fold = GroupFold::sum;        ///< of the query heads of a KV head
  std::optional<std::int64_t> floor{};    ///< tokens every KV head keeps at least; nothing: max(32, budget / 4), at
                                          ///< most budget / 2 and the context, less where that does not fit
  std::int64_t page_size = 1;             ///< sizes are multiples of it
  std::int32_t ranks = 1;     ///< tensor-parallel ranks, each with the same share of what its heads cost whole: where
                              ///< all layers are alike equal tokens, to one page
  bool layer_shares = false;  ///< each layer has the same share of what it costs whole, likewise
  double negligible_output = 1e-6;  ///< heads with at most this `KvErrors::output_share` are pruned; 0: none
  bool use_remainder = true;        ///< widen a window by what is left
  bool scored_slots = false;        ///< heads may keep tokens by scores, where errors know what that is worth
  /// Keep everything, beyond the budget: layers that are known to be delicate, for example. Ascending. Layers with
  /// windows of their own need not be named where the statistics say their shape.
  std::vector<std::int32_t> skip_layers{};
  /// Formats to choose among, by bytes: a page then holds as many bytes as `page_size` rows of 16 bits. None: 16 bits
  /// alone, by tokens.
  FormatChoice formats{};

  friend bool operator==(PlanOptions const&, PlanOptions const&) = default;

  /// @throws ArgumentError on values that make no sense for sequences of `context` tokens
  void validate(std::int64_t context) const {
    constexpr auto where = "PlanOptions";
    constexpr std::int64_t most = std::int64_t{1} << 30;
    require(context > 0 && context <= most, "context", "in [1, 2^30] tokens", context, where);
    require(!floor || (*floor >= 0 && *floor <= context), "floor", "in [0, context]", floor.value_or(0), where);
    require(page_size > 0 && page_size <= most, "page_size", "in [1, 2^30]", page_size, where);
    require(ranks > 0, "ranks", "> 0", ranks, where);
    formats.validate();
    require(negligible_output >= 0 && detail::is_finite(negligible_output), "negligible_output", "a finite number >= 0",
            negligible_output, where);
    for (std::size_t i = 0; i < skip_layers.size(); ++i) {
      bool const above = skip_layers[i] > (i == 0 ? -1 : skip_layers[i - 1]);
      require(above, "skip_layers", "layers from 0 on, ascending, each once", skip_layers[i], where);
    }
  }
};

/// @brief Size and predicted error of one KV head.
struct PlannedHead {
  std::int64_t tokens = 0;     ///< held of a sequence of `context` tokens, whole pages
  double predicted_error = 0;  ///< of the pair that it was chosen for; of rounding too
  std::int64_t bytes = 0;      ///< of whole pages; 0 in plans by tokens

  friend bool operator==(PlannedHead const&, PlannedHead const&) = default;
};

/// @brief Returns the layers that a plan chooses for, ascending; those without a cache of their own, too.
/// @param skipped  ascending
/// @throws ArgumentError if there are none, or a skipped one is out of range
template <class = void>
[[nodiscard]] std::vector<std::int32_t> planned_layers(std::int32_t num_layers, std::span<std::int32_t const> skipped) {
  std::vector<std::int32_t> layers;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    if (!std::binary_search(skipped.begin(), skipped.end(), layer)) layers.push_back(layer);
  }
  for (std::int32_t const layer : skipped) require_index(layer, num_layers, "skipped layer", "plan_policies");
  require(!layers.empty(), "layers that are not skipped", "at least one", "none", "plan_policies");
  return layers;
}

/// @brief How many heads have a pair of formats.
struct FormatCount {
  HeadFormats formats{};
  std::int64_t heads = 0;

  friend bool operator==(FormatCount const&, FormatCount const&) = default;
};

/// @brief Contents of a `plan.json`: policies, the budget and options of the plan, and its predicted error.
struct PolicyPlan {
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;       ///< query heads per layer; where they differ, of the layer that has most
  std::int32_t num_kv_heads = 0;    ///< likewise
  std::int64_t context = 0;         ///< tokens of the sequences that it is for
  std::int64_t budget_tokens = 0;   ///< of all heads together, those of skipped layers included
  std::int64_t planned_tokens = 0;  ///< sum over heads, exact; at most the budget where tokens cost the same everywhere
  std::int64_t floor = 0;           ///< floor that was used
  double predicted_error = 0;       ///< sum over heads; in nats where sensitivities are
  PlanOptions options{};            ///< `measure` is the one that was used
  PolicyTable table{};
  std::vector<PlannedHead> heads{};  ///< of the KV heads, layer by layer
  ModelShape layers{};               ///< where they differ; empty: all alike
  /// [num_layers], where tokens of layers cost differently: of one token of a KV head, in bytes, or in channels where
  /// the budget was in tokens or a share. Empty: 1. In plans by bytes those of 16 bits.
  std::vector<std::int64_t> row_costs{};
  std::int64_t budget_cost = 0;  ///< of all heads together, where there are `row_costs`; `budget_tokens` are then those
                                 ///< of equal sizes of all heads
  FormatTable formats{};         ///< of a plan by bytes; empty: 16 bits, by tokens
  /// Of a plan with scored slots, the weights' hash (`SavedScores::weight_hash`) of the scores that it was made with.
  std::string scores{};

  /// Whether heads have formats of their own: sizes are in bytes.
  [[nodiscard]] bool by_bytes() const { return formats.num_layers() > 0; }
  /// Formats of a head; 16 bits in plans by tokens.
  [[nodiscard]] HeadFormats formats_of(std::int32_t layer, std::int32_t kv_head) const {
    return by_bytes() ? formats.at(layer, kv_head) : options.formats.sixteen_bits;
  }
  /// Sets a head that has not been set. @param head  number of the KV head, layer by layer
  template <class = void>
  void set(std::size_t head, AnyPolicy<> const& policy, PlannedHead const& planned) {
    auto const number = static_cast<std::int64_t>(head);
    std::int32_t const layer = table.heads().layer_of(number, 1);
    table.set(layer, static_cast<std::int32_t>(number - table.heads().first(layer)), policy);
    heads[head] = planned;
    planned_tokens += planned.tokens;
    predicted_error += planned.predicted_error;
  }

  /// Every layer's shape, also where all are alike. @throws ArgumentError if a count is not positive
  template <class = void>
  [[nodiscard]] ModelShape shape() const {
    return detail::shape_of(*this);
  }
  /// The same of a model whose layers are all alike; `head_dim` is not known here.
  [[nodiscard]] ModelConfig model() const { return {num_layers, num_heads, num_kv_heads, 0}; }
  /// What the budget leaves: tokens; where there are `row_costs`, in their unit, `planned_record_bytes` not taken off.
  [[nodiscard]] std::int64_t left() const {
    return row_costs.empty() ? budget_tokens - planned_tokens : budget_cost - planned_cost();
  }
  /// What the planned tokens cost: their number; where there are `row_costs`, in their unit.
  [[nodiscard]] std::int64_t planned_cost() const {
    if (row_costs.empty()) return planned_tokens;
    std::int64_t sum = 0;
    for (PlannedHead const& head : heads) sum += head.bytes;
    if (by_bytes()) return sum;
    for (std::size_t head = 0; head < heads.size(); ++head) {
      std::int32_t const layer = table.heads().layer_of(static_cast<std::int64_t>(head), 1);
      sum += heads[head].tokens * row_costs[static_cast<std::size_t>(layer)];
    }
    return sum;
  }
  /// Tokens that a head of a layer holds where it keeps everything, in whole pages (of 16-bit rows).
  [[nodiscard]] std::int64_t full_tokens(std::int32_t layer) const {
    std::int64_t const window = table.window(layer);
    return detail::whole_pages(window != 0 ? std::min(window, context) : context, options.page_size);
  }
  /// Whether a head keeps all that its layer sees.
  [[nodiscard]] bool keeps_all(std::int32_t layer, std::int32_t kv_head) const {
    AnyPolicy<> const& policy = table.at(layer, kv_head);
    std::int32_t const window = table.window(layer);
    return policy.is<Full>() || (window != 0 && policy.is<WindowOnly>() && policy.get<WindowOnly>().window == window);
  }
  /// KV heads of layers that are not skipped.
  [[nodiscard]] std::int64_t planned_heads() const {
    std::int64_t count = table.heads().total();
    for (std::int32_t const layer : options.skip_layers) count -= table.num_kv_heads(layer);
    return count;
  }
  /// Tokens of the others, which hold everything.
  [[nodiscard]] std::int64_t skipped_tokens() const {
    std::int64_t tokens = 0;
    for (std::int32_t const layer : options.skip_layers) tokens += table.num_kv_heads(layer) * full_tokens(layer);
    return tokens;
  }
  /// Tokens that a planned head keeps, on average.
  [[nodiscard]] double mean_tokens() const { return of_each(planned_tokens); }
  /// Tokens that a planned head may keep, on average; by bytes in 16 bits.
  [[nodiscard]] double mean_budget() const { return of_each(budget_tokens); }
  /// Bytes that all heads may hold; 0 in plans by tokens.
  [[nodiscard]] std::int64_t budget_bytes() const { return by_bytes() ? budget_cost : 0; }
  /// Bytes that all heads hold; 0 in plans by tokens.
  [[nodiscard]] std::int64_t planned_bytes() const { return by_bytes() ? planned_cost() : 0; }
  /// Bytes that scores and records of scored slots hold beside the rows, in plans by bytes; 0 in others, which do not
  /// count them.
  template <class = void>
  [[nodiscard]] std::int64_t planned_record_bytes() const {
    return by_bytes() ? record_bytes(table) : 0;
  }
  /// What the planned heads hold, as a share of what they would hold of everything in 16 bits: in bytes, or in what
  /// tokens cost.
  template <class = void>
  [[nodiscard]] double share_held() const {
    double held = 0;
    double full = 0;
    for (std::int32_t const layer : planned_layers(num_layers, options.skip_layers)) {
      double const row = row_costs.empty() ? 1 : static_cast<double>(row_costs[static_cast<std::size_t>(layer)]);
      std::int64_t const window = table.window(layer);
      double const visible = static_cast<double>(window != 0 ? std::min(window, context) : context);
      for (std::int32_t kv = 0; kv < table.num_kv_heads(layer); ++kv) {
        PlannedHead const& head = heads[static_cast<std::size_t>(table.heads().first(layer) + kv)];
        held += by_bytes() ? static_cast<double>(head.bytes) : row * static_cast<double>(head.tokens);
        full += row * visible;
      }
    }
    return full > 0 ? held / full : 0;
  }
  /// Formats of the planned heads that hold rows, those of most heads first; of scales that differ, the first head's.
  template <class = void>
  [[nodiscard]] std::vector<FormatCount> format_counts() const {
    std::vector<FormatCount> counts;
    for (std::int32_t const layer : planned_layers(num_layers, options.skip_layers)) {
      for (std::int32_t kv = 0; kv < table.num_kv_heads(layer); ++kv) {
        if (heads[static_cast<std::size_t>(table.heads().first(layer) + kv)].tokens == 0) continue;
        HeadFormats const pair = formats_of(layer, kv);
        auto const same = [&](FormatCount const& count) {
          return count.formats.key.id() == pair.key.id() && count.formats.value.id() == pair.value.id();
        };
        auto const found = std::find_if(counts.begin(), counts.end(), same);
        found == counts.end() ? counts.push_back({pair, 1}) : void(++found->heads);
      }
    }
    std::stable_sort(counts.begin(), counts.end(), [](auto const& a, auto const& b) { return a.heads > b.heads; });
    return counts;
  }

  friend bool operator==(PolicyPlan const&, PolicyPlan const&) = default;

 private:
  [[nodiscard]] double of_each(std::int64_t tokens) const {
    std::int64_t const count = planned_heads();
    return count > 0 ? static_cast<double>(tokens - skipped_tokens()) / static_cast<double>(count) : 0;
  }
};

/// @brief Returns the tokens that a policy holds of a sequence, in whole pages.
template <class = void>
[[nodiscard]] std::int64_t held_tokens(AnyPolicy<> const& policy, std::int64_t context, std::int64_t page_size = 1) {
  std::int64_t const kept = policy.visit([&](auto const& p) { return kept_count(p, context); });
  return detail::whole_pages(kept, page_size);
}

/// @brief The tokens that all heads of a table hold of a sequence, in whole pages per head.
/// @par Cost  O(heads)
template <class = void>
[[nodiscard]] std::int64_t held_tokens(PolicyTable const& table, std::int64_t context, std::int64_t page_size = 1) {
  std::int64_t held = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      held += held_tokens(table.at(layer, head), context, page_size);
    }
  }
  return held;
}

/// @brief The bytes that all heads of a table hold of a sequence in their formats, in whole pages per head: pages have
/// as many bytes as `page_size` rows of 16 bits of their layer.
/// @param formats    of the same heads
/// @param channels   of rows: head_dim where all layers are alike, or a `ModelShape`
/// @param page_size  1: no pages; rows are whole units of 16 bytes
/// @throws ArgumentError if the formats are those of other heads, or a page holds no row
/// @par Cost  O(heads)
template <class = void>
[[nodiscard]] std::int64_t held_bytes(PolicyTable const& table, FormatTable const& formats,
                                      LayerChannels const& channels, std::int64_t context, std::int64_t page_size = 1,
                                      HeadFormats const& sixteen_bits = {}) {
  detail::require_formats_of(formats, table.heads(), "held_bytes");
  FormatChoice const choice{.sixteen_bits = sixteen_bits};
  std::int64_t held = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      RowPages const pages =
          choice.pages(formats.at(layer, head), channels.of(static_cast<std::size_t>(layer)), page_size);
      held += pages.bytes_of(held_tokens(table.at(layer, head), context));
    }
  }
  return held;
}

HEADAWARE_NAMESPACE_END
