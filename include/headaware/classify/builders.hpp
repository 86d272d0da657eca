#pragma once

/// @file
/// Policy tables from the types of a model's heads, its shape alone, or trained gates.

#include <headaware/classify/head_type.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/detail/model_heads.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/duo_gates.hpp>
#include <headaware/policy/fold.hpp>
#include <headaware/policy/table.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
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
/// default so that it keeps what any of them needs: of a layer whose cache others read, theirs too; of a latent, all.
/// @param classifications  every query head of every layer that attends once, in any order
/// @param model            a `ModelConfig` where all layers are alike
/// @param type_policies    the policy of each type
/// @param fold             `AnyPolicy<Registry> fold(std::span<AnyPolicy<Registry> const>)`, called with the policies
///                         of the query heads that share a KV head, in their order, by layer
/// @throws ArgumentError if the classifications are of a model of another shape, a head is missing or double,
///         or the policies of a group do not fold
/// @par Cost  O(query heads)
template <class Registry = DefaultRegistry, class Fold = FoldUnion>
[[nodiscard]] BasicPolicyTable<Registry> table_from_classifications(
    std::span<HeadClassification const> classifications, ModelShape const& model,
    BasicTypePolicies<Registry> const& type_policies = BasicTypePolicies<Registry>::conservative(),
    Fold const& fold = {}) {
  constexpr auto where = "table_from_classifications";
  std::int32_t const layers = model.num_layers();
  detail::HeadCounts const counts = detail::query_heads_of(model);
  LayerHeads const heads = counts.view();
  for (auto const& c : classifications) {
    require_index(c.layer_idx, layers, "classified layer", where);
    bool const attends = heads.count(c.layer_idx) > 0;
    require(attends, "classified layer", "one that attends", c.layer_idx, where);
    require_index(c.head_idx, heads.count(c.layer_idx), "classified query head", where);
  }
  auto const expected = [&] {
    bool const alike = heads.first_heads == nullptr;
    return alike ? Text{layers, " layers x ", heads.num_kv_heads, " query heads"}.str()
                 : Text{heads.total(), " query heads in ", layers, " layers"}.str();
  };
  require(static_cast<std::int64_t>(classifications.size()) == heads.total(), "classifications", expected,
          classifications.size(), where);
  require_grid(classifications, heads, where);

  std::vector<AnyPolicy<Registry>> policies(classifications.size());
  for (auto const& c : classifications) policies[grid_index(c, heads)] = type_policies.policy_of(c);

  BasicPolicyTable<Registry> table(model);
  std::vector<AnyPolicy<Registry>> group;  // of one KV head
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    for (std::int32_t kv_head = 0; kv_head < table.num_kv_heads(layer); ++kv_head) {
      group.clear();
      for (std::int32_t reader = layer; reader < layers; ++reader) {
        if (!model.layer(reader).attends() || model.cache_layer(reader) != layer) continue;
        auto const size = model.layer(reader).group();
        auto const first = policies.begin() + static_cast<std::ptrdiff_t>(heads.first(reader) + kv_head * size);
        group.insert(group.end(), first, first + size);
      }
      table.set(layer, kv_head, fold(std::span<AnyPolicy<Registry> const>(group)));
    }
  }
  return table;
}

/// @brief A table with as many KV heads per layer as the model's caches, its policies as they are within the windows of
/// the model's layers.
/// @throws ArgumentError if the numbers differ, or the table has other windows
template <class Registry>
[[nodiscard]] BasicPolicyTable<Registry> within_layers(BasicPolicyTable<Registry> table, ModelShape const& model,
                                                       Text const& where = "within_layers") {
  bool same = true;
  for (std::int32_t layer = 0; layer < table.num_layers() && layer < model.num_layers(); ++layer) {
    same = same && (table.window(layer) != 0 || model.layer(layer).window == 0);
  }
  if (same) {
    detail::require_table_of(table, model, where);
    return table;
  }
  BasicPolicyTable<Registry> result(model);
  require(table.num_layers() == model.num_layers(), "table's layers", model.num_layers(), table.num_layers(), where);
  for (std::int32_t layer = 0; layer < model.num_layers(); ++layer) {
    require(table.num_kv_heads(layer) == result.num_kv_heads(layer), "table's KV heads", result.num_kv_heads(layer),
            table.num_kv_heads(layer), {where, ", layer ", layer});
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head)
      result.set(layer, head, table.at(layer, head));
  }
  return result;
}

/// @brief Makes a table that gives every KV head one policy, for example StreamingLLM's `SinkWindow{4, 508}`: in layers
/// that slide, what it means within their window.
/// @throws ArgumentError if a count of the model is not positive or the policy's fields make no sense
template <class Registry = DefaultRegistry>
[[nodiscard]] BasicPolicyTable<Registry> table_from_model_config(
    ModelShape const& model, std::type_identity_t<AnyPolicy<Registry>> const& policy) {
  return BasicPolicyTable<Registry>(model, policy);
}

namespace detail {

/// Places of the gates of a model's KV heads, in their order. @throws ArgumentError if they are of another model
template <class = void>
[[nodiscard]] std::vector<std::size_t> gate_places(DuoGates const& gates, ModelShape const& model, char const* where) {
  HeadCounts const counts = kv_heads_of(model);
  LayerHeads const heads = counts.view();
  require(gates.num_layers == model.num_layers(), "table's layers", model.num_layers(), gates.num_layers, where);
  require(gates.num_kv_heads == heads.num_kv_heads, "table's KV heads", heads.num_kv_heads, gates.num_kv_heads, where);
  std::vector<std::size_t> places;
  for (std::size_t at = 0; at < gates.gates.size(); ++at) {
    auto const layer = static_cast<std::int32_t>(at / static_cast<std::size_t>(gates.num_kv_heads));
    auto const kv_head = static_cast<std::int32_t>(at % static_cast<std::size_t>(gates.num_kv_heads));
    bool const is = kv_head < heads.count(layer);
    if (is) places.push_back(at);
    require(is || gates.gates[at] == 0, "gate of a head that the layer does not have", "0", gates.gates[at],
            {where, ", layer ", layer, ", KV head ", kv_head});
  }
  return places;
}

/// The table in which `full` of these places keep everything.
template <class Registry>
[[nodiscard]] BasicPolicyTable<Registry> gated_table(DuoGates const& gates, ModelShape const& model,
                                                     std::span<std::size_t const> full) {
  BasicPolicyTable<Registry> table(model, SinkWindow{.sink = gates.sink_size, .window = gates.recent_size});
  auto const num_kv_heads = static_cast<std::size_t>(gates.num_kv_heads);
  for (std::size_t const at : full) {
    table.set(static_cast<std::int32_t>(at / num_kv_heads), static_cast<std::int32_t>(at % num_kv_heads), Full{});
  }
  return table;
}

/// The shape that the gates themselves have.
template <class = void>
[[nodiscard]] ModelShape gated_model(DuoGates const& gates, char const* where) {
  gates.validate(where);
  return ModelConfig{gates.num_layers, gates.num_kv_heads, gates.num_kv_heads, 0};
}

}  // namespace detail

/// @brief Makes a table from DuoAttention's gates: heads whose gate is above `threshold` keep everything, the others
/// `sink_size` sinks and the last `recent_size` tokens.
/// @param model           whose layers differ: a row of gates per layer, as long as the layer with most KV heads has,
///                        with zeros for heads that a layer does not have
/// @param gate_threshold  a number; in braces, `{0.5}`, it is a share
/// @note   Published gates do not lie evenly around 0.5: above it are 43 % of those of Llama-2-7B-32K, but 91 and 94 %
///         of those of Llama-3.1-8B and Mistral-7B-v0.3, of which the paper keeps one half. `FullHeadShare` says so.
/// @throws ArgumentError if there are no heads, not one gate per head, a gate or the threshold is not finite, or the
///         gates are of another model
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819
template <class Registry = DefaultRegistry, std::convertible_to<double> Threshold>
[[nodiscard]] BasicPolicyTable<Registry> table_from_duo_gates(DuoGates const& gates, ModelShape const& model,
                                                              Threshold gate_threshold) {
  constexpr auto where = "table_from_duo_gates";
  auto const threshold = static_cast<double>(gate_threshold);
  gates.validate(where);
  require(detail::is_finite(threshold), "threshold", "a finite number", threshold, where);
  std::vector<std::size_t> full = detail::gate_places(gates, model, where);
  std::erase_if(full, [&](std::size_t at) { return !(gates.gates[at] > threshold); });
  return detail::gated_table<Registry>(gates, model, full);
}

/// @brief The same where all layers are alike.
template <class Registry = DefaultRegistry, std::convertible_to<double> Threshold>
[[nodiscard]] BasicPolicyTable<Registry> table_from_duo_gates(DuoGates const& gates, Threshold gate_threshold) {
  return table_from_duo_gates<Registry>(gates, detail::gated_model(gates, "table_from_duo_gates"), gate_threshold);
}

/// @brief The same by share: as many heads as `full.share` says keep everything, those of the largest gates.
/// @throws ArgumentError if there are no heads, not one gate per head, a gate is not finite, the share is not in [0,
/// 1], or the gates are of another model
/// @par Source  Xiao et al., DuoAttention, arXiv:2410.10819
template <class Registry = DefaultRegistry>
[[nodiscard]] BasicPolicyTable<Registry> table_from_duo_gates(DuoGates const& gates, ModelShape const& model,
                                                              FullHeadShare full) {
  constexpr auto where = "table_from_duo_gates";
  gates.validate(where);
  require(full.share >= 0 && full.share <= 1, "share", "in [0, 1]", full.share, where);
  std::vector<std::size_t> order = detail::gate_places(gates, model, where);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return gates.gates[a] > gates.gates[b]; });
  order.resize(static_cast<std::size_t>(__builtin_llround(full.share * static_cast<double>(order.size()))));
  return detail::gated_table<Registry>(gates, model, order);
}

/// @brief The same where all layers are alike.
template <class Registry = DefaultRegistry>
[[nodiscard]] BasicPolicyTable<Registry> table_from_duo_gates(DuoGates const& gates, FullHeadShare full) {
  return table_from_duo_gates<Registry>(gates, detail::gated_model(gates, "table_from_duo_gates"), full);
}

/// @brief `table_from_duo_gates(gates, 0.5)`.
template <class Registry = DefaultRegistry>
[[deprecated("say which: FullHeadShare{0.5}, as DuoAttention's models are published, or a "
             "threshold")]] [[nodiscard]] BasicPolicyTable<Registry>
table_from_duo_gates(DuoGates const& gates) {
  return table_from_duo_gates<Registry>(gates, 0.5);
}

HEADAWARE_NAMESPACE_END
