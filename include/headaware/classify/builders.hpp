#pragma once

/// @file
/// Policy tables from the types of a model's heads, its shape alone, or trained gates.

#include <headaware/classify/head_type.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/policy/duo_gates.hpp>
#include <headaware/policy/fold.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The policy of each head type. Replace any entry: `policies[HeadType::mixed] = SinkWindow{4, 256};`
/// Of a classified head its type, its window and its sinks are looked at.
template <class Registry = DefaultRegistry>
struct BasicTypePolicies {
  using Policy = AnyPolicy<Registry>;

  std::array<Policy, num_head_types> by_type{};  ///< by HeadType
  /// If true, a positive `recommended_window` replaces the `window` of policies that have one.
  bool use_recommended_window = true;
  /// Whether, of heads with `keep_sinks`, `sink_size` replaces the `sink` of policies that have one.
  bool use_sink_size = true;

  [[nodiscard]] Policy& operator[](HeadType type) { return by_type[static_cast<std::size_t>(type)]; }
  [[nodiscard]] Policy const& operator[](HeadType type) const { return by_type[static_cast<std::size_t>(type)]; }

  /// Heads of type `mixed` keep everything.
  [[nodiscard]] static BasicTypePolicies conservative() {
    BasicTypePolicies result;
    result[HeadType::sink_positional] = SinkWindow{.sink = 4, .window = 8};
    result[HeadType::true_positional] = WindowOnly{.window = 8};
    result[HeadType::sink_mixed] = SinkWindow{.sink = 4, .window = 24};
    result[HeadType::gathering] = Full{};
    result[HeadType::mixed] = Full{};
    result[HeadType::dead] = Prune{};
    result[HeadType::positional] = SinkWindow{.sink = 4, .window = 8};
    return result;
  }

  /// Heads of type `mixed` keep 4 sinks and the last 64 tokens; the rest as `conservative`.
  [[nodiscard]] static BasicTypePolicies aggressive() {
    BasicTypePolicies result = conservative();
    result[HeadType::mixed] = SinkWindow{.sink = 4, .window = 64};
    return result;
  }

  /// The policy of one classified head.
  [[nodiscard]] Policy policy_of(HeadClassification const& head) const {
    bool const window = use_recommended_window && head.recommended_window > 0;
    bool const sinks = use_sink_size && head.keep_sinks;
    return (*this)[head.head_type].visit([&](auto p) -> Policy {
      if constexpr (requires { p.window = head.recommended_window; }) {
        if (window) p.window = head.recommended_window;
      }
      if constexpr (requires { p.sink = head.sink_size; }) {
        if (sinks) p.sink = head.sink_size;
      }
      return p;
    });
  }

  friend bool operator==(BasicTypePolicies const&, BasicTypePolicies const&) = default;
};

using TypePolicies = BasicTypePolicies<>;

/// @brief Makes a table from the types of query heads; `fold` merges the policies of those that share a KV head, by
/// default so that it keeps what any of them needs.
/// @param classifications  every head of [num_hidden_layers, num_attention_heads] once, in any order
/// @param type_policies    the policy of each type
/// @param fold             `AnyPolicy<Registry> fold(std::span<AnyPolicy<Registry> const>)`, called with the policies
///                         of the query heads that share a KV head, in their order
/// @throws ArgumentError if the classifications are of a model of another shape, a head is missing or double,
///         or the policies of a group do not fold
/// @par Cost  O(query heads)
template <class Registry = DefaultRegistry, class Fold = FoldUnion>
[[nodiscard]] BasicPolicyTable<Registry> table_from_classifications(
    std::span<HeadClassification const> classifications, ModelConfig const& model,
    BasicTypePolicies<Registry> const& type_policies = BasicTypePolicies<Registry>::conservative(),
    Fold const& fold = {}) {
  constexpr auto where = "table_from_classifications";
  model.validate();
  std::int32_t const layers = model.num_hidden_layers;
  std::int32_t const heads = model.num_attention_heads;
  for (auto const& c : classifications) {
    require_index(c.layer_idx, layers, "classified layer", where);
    require_index(c.head_idx, heads, "classified query head", where);
  }
  auto const expected = std::int64_t{layers} * heads;
  require(static_cast<std::int64_t>(classifications.size()) == expected, "classifications",
          {layers, " layers x ", heads, " query heads"}, classifications.size(), where);
  require_grid(classifications, layers, heads, where);

  std::vector<AnyPolicy<Registry>> policies(classifications.size());
  for (auto const& c : classifications) policies[grid_index(c, heads)] = type_policies.policy_of(c);

  BasicPolicyTable<Registry> table(layers, model.num_key_value_heads, policies.front());
  auto const group = static_cast<std::size_t>(model.group());
  std::size_t first = 0;
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    for (std::int32_t kv_head = 0; kv_head < model.num_key_value_heads; ++kv_head, first += group) {
      table.set(layer, kv_head, fold(std::span<AnyPolicy<Registry> const>(policies).subspan(first, group)));
    }
  }
  return table;
}

/// @brief Makes a table that gives every KV head one policy, for example StreamingLLM's `SinkWindow{4, 508}`.
/// @throws ArgumentError if a count of the model is not positive or the policy's fields make no sense
template <class Registry = DefaultRegistry>
[[nodiscard]] BasicPolicyTable<Registry> table_from_model_config(
    ModelConfig const& model, std::type_identity_t<AnyPolicy<Registry>> const& policy) {
  model.validate();
  return {model.num_hidden_layers, model.num_key_value_heads, policy};
}

/// @brief Makes a table from DuoAttention's gates: heads whose gate is above `threshold` keep everything, the others
/// `sink_size` sinks and the last `recent_size` tokens.
/// @param gate_threshold  a number; in braces, `{0.5}`, it is a share
/// @note   Published gates do not lie evenly around 0.5: above it are 43 % of those of Llama-2-7B-32K, but 91 and 94 %
///         of those of Llama-3.1-8B and Mistral-7B-v0.3, of which the paper keeps one half. `FullHeadShare` says so.
/// @throws ArgumentError if there are no heads, not one gate per head, or a gate or the threshold is not finite
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819
template <class Registry = DefaultRegistry, std::convertible_to<double> Threshold>
[[nodiscard]] BasicPolicyTable<Registry> table_from_duo_gates(DuoGates const& gates, Threshold gate_threshold) {
  constexpr auto where = "table_from_duo_gates";
  auto const threshold = static_cast<double>(gate_threshold);
  gates.validate(where);
  require(detail::is_finite(threshold), "threshold", "a finite number", threshold, where);
  BasicPolicyTable<Registry> table(gates.num_layers, gates.num_kv_heads,
                                   SinkWindow{.sink = gates.sink_size, .window = gates.recent_size});
  std::size_t at = 0;
  for (std::int32_t layer = 0; layer < gates.num_layers; ++layer) {
    for (std::int32_t kv_head = 0; kv_head < gates.num_kv_heads; ++kv_head, ++at) {
      if (gates.gates[at] > threshold) table.set(layer, kv_head, Full{});
    }
  }
  return table;
}

/// @brief The same by share: as many heads as `full.share` says keep everything, those of the largest gates.
/// @throws ArgumentError if there are no heads, not one gate per head, a gate is not finite, or the share is not in [0,
/// 1]
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819
template <class Registry = DefaultRegistry>
[[nodiscard]] BasicPolicyTable<Registry> table_from_duo_gates(DuoGates const& gates, FullHeadShare full) {
  constexpr auto where = "table_from_duo_gates";
  gates.validate(where);
  require(full.share >= 0 && full.share <= 1, "share", "in [0, 1]", full.share, where);
  std::vector<std::size_t> order(gates.gates.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return gates.gates[a] > gates.gates[b]; });
  order.resize(static_cast<std::size_t>(__builtin_llround(full.share * static_cast<double>(order.size()))));
  BasicPolicyTable<Registry> table(gates.num_layers, gates.num_kv_heads,
                                   SinkWindow{.sink = gates.sink_size, .window = gates.recent_size});
  auto const num_kv_heads = static_cast<std::size_t>(gates.num_kv_heads);
  for (std::size_t const head : order) {
    table.set(static_cast<std::int32_t>(head / num_kv_heads), static_cast<std::int32_t>(head % num_kv_heads), Full{});
  }
  return table;
}

/// @brief `table_from_duo_gates(gates, 0.5)`.
template <class Registry = DefaultRegistry>
[[deprecated("say which: FullHeadShare{0.5}, as DuoAttention's models are published, or a "
             "threshold")]] [[nodiscard]] BasicPolicyTable<Registry>
table_from_duo_gates(DuoGates const& gates) {
  return table_from_duo_gates<Registry>(gates, 0.5);
}

HEADAWARE_NAMESPACE_END
