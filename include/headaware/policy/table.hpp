#pragma once

/// @file
/// Policy of each KV head.

#include <headaware/detail/head_records.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/registry.hpp>
#include <headaware/policy/within_window.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Source of policies for compaction: `visit(layer, kv_head, f)` calls `f` with the
/// head's policy in its own type. Trivially copyable, so that kernels take it by value.
template <class T>
concept PolicySource = std::is_trivially_copyable_v<T> && requires(T const table) {
  { table.num_layers() } -> std::convertible_to<std::int32_t>;
  { table.num_kv_heads() } -> std::convertible_to<std::int32_t>;
};

/// @brief A table held elsewhere, on the host or on the device: [num_layers, KV heads of the layer].
template <class Registry = DefaultRegistry>
class PolicyTableView {
 public:
  using Policy = AnyPolicy<Registry>;

  PolicyTableView() = default;
  HEADAWARE_HOST_DEVICE PolicyTableView(Policy const* policies, std::int32_t num_layers, std::int32_t num_kv_heads)
      : PolicyTableView(policies, LayerHeads{num_layers, num_kv_heads}) {}
  HEADAWARE_HOST_DEVICE PolicyTableView(Policy const* policies, LayerHeads const& heads)
      : policies_(policies), heads_(heads) {}

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_layers() const { return heads_.num_layers; }
  /// Of every layer; where they differ, of the layer that has most.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_kv_heads() const { return heads_.num_kv_heads; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE LayerHeads const& heads() const { return heads_; }
  [[nodiscard]] Policy const* data() const { return policies_; }

  HEADAWARE_EXEC_CHECK_DISABLE
  template <class F>
  HEADAWARE_HOST_DEVICE auto visit(std::int32_t layer, std::int32_t kv_head, F&& f) const {
    return policies_[heads_.first(layer) + kv_head].visit(f);
  }

 private:
  Policy const* policies_ = nullptr;
  LayerHeads heads_;
};
static_assert(PolicySource<PolicyTableView<>>);

/// @brief One policy for all heads, its type known at compile time: costs no branch and no memory.
template <class P>
class UniformTable {
  static_assert(check_policy<P>());

 public:
  UniformTable() = default;
  /// @throws ArgumentError on negative counts or a policy whose fields make no sense
  UniformTable(P const& policy, std::int32_t num_layers, std::int32_t num_kv_heads)
      : policy_(policy), num_layers_(num_layers), num_kv_heads_(num_kv_heads) {
    require(num_layers >= 0, "num_layers", ">= 0", num_layers, "UniformTable");
    require(num_kv_heads >= 0, "num_kv_heads", ">= 0", num_kv_heads, "UniformTable");
    if constexpr (requires { policy.validate(); }) policy.validate();
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_layers() const { return num_layers_; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_kv_heads() const { return num_kv_heads_; }

  HEADAWARE_EXEC_CHECK_DISABLE
  template <class F>
  HEADAWARE_HOST_DEVICE auto visit(std::int32_t, std::int32_t, F&& f) const {
    return f(policy_);
  }

 private:
  P policy_{};
  std::int32_t num_layers_ = 0;
  std::int32_t num_kv_heads_ = 0;
};
static_assert(PolicySource<UniformTable<SinkWindow>>);

/// @brief One policy per (layer, KV head), on the host, chosen at run time. Layers may have different numbers of KV
/// heads, none among them; where a layer has a sliding window of its own, policies mean what `within_window` says.
///
/// To use it on a device, copy `bytes()` there (once, when the model is loaded) and wrap the
/// device pointer with `view_at`. A moved-from table is empty.
template <class Registry = DefaultRegistry>
class BasicPolicyTable {
 public:
  using Policy = AnyPolicy<Registry>;

  BasicPolicyTable() = default;

  /// Every head follows `policy`.
  /// @throws ArgumentError on counts that are not positive or a policy whose fields make no sense
  BasicPolicyTable(std::int32_t num_layers, std::int32_t num_kv_heads, Policy const& policy = Full{})
      : BasicPolicyTable(checked_counts(num_layers, num_kv_heads), {}, policy) {}

  /// @brief Every head of every layer with a cache of its own follows `policy`; the other layers have no heads here.
  /// @throws ArgumentError on a shape without layers, or a policy whose fields make no sense
  explicit BasicPolicyTable(ModelShape const& shape, Policy const& policy = Full{})
      : BasicPolicyTable(detail::HeadCounts(kv_heads_of(shape)), windows_of(shape), policy) {
    require(shape.num_layers() > 0, "num_layers", "> 0", shape.num_layers(), "PolicyTable");
  }

  [[nodiscard]] std::int32_t num_layers() const { return heads().num_layers; }
  /// KV heads of every layer; where they differ, of the layer that has most.
  [[nodiscard]] std::int32_t num_kv_heads() const { return heads().num_kv_heads; }
  /// KV heads of one layer. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int32_t num_kv_heads(std::int32_t layer) const {
    require_index(layer, num_layers(), "layer", "PolicyTable");
    return heads().count(layer);
  }
  /// Numbers of KV heads of all layers; valid while this table lives unchanged.
  [[nodiscard]] LayerHeads heads() const { return policies_.heads(); }
  /// Tokens that a layer's queries see at most; 0: all before them. @throws ArgumentError if there is no such layer
  [[nodiscard]] std::int32_t window(std::int32_t layer) const {
    require_index(layer, num_layers(), "layer", "PolicyTable");
    return windows_.empty() ? 0 : windows_[static_cast<std::size_t>(layer)];
  }

  /// @throws ArgumentError if the head is out of range
  [[nodiscard]] Policy const& at(std::int32_t layer, std::int32_t kv_head) const {
    check(layer, kv_head);
    return policies_.at(layer, kv_head);
  }

  /// @brief Sets a head's policy: what it means within the layer's window, if that has one.
  /// @throws ArgumentError if the head is out of range, the policy's fields make no sense, or as `within_window`
  void set(std::int32_t layer, std::int32_t kv_head, Policy const& policy) {
    check(layer, kv_head);
    policy.validate();
    policies_.at(layer, kv_head) = window(layer) == 0 ? policy : within_window(policy, window(layer));
  }

  template <class F>
  auto visit(std::int32_t layer, std::int32_t kv_head, F&& f) const {
    return view().visit(layer, kv_head, std::forward<F>(f));
  }

  /// @brief This table with the named layers left uncompressed (`Full`).
  /// @throws ArgumentError if a layer is out of range
  [[nodiscard]] BasicPolicyTable skip_layers(std::span<std::int32_t const> layers) const {
    BasicPolicyTable result = *this;
    for (std::int32_t const layer : layers) {
      for (std::int32_t head = 0; head < num_kv_heads(layer); ++head) result.set(layer, head, Full{});
    }
    return result;
  }

  /// @brief The named layers alone, in the order named: what a pipeline-parallel rank holds.
  /// @throws ArgumentError if no layer is named or one is out of range
  [[nodiscard]] BasicPolicyTable select_layers(std::span<std::int32_t const> layers) const {
    require(!layers.empty(), "num_layers", "> 0", 0, "PolicyTable");
    std::vector<std::int32_t> counts;
    for (std::int32_t const layer : layers) counts.push_back(num_kv_heads(layer));
    return part(counts, layers, [](std::int32_t) { return 0; });
  }

  /// @brief The KV heads of tensor-parallel rank `rank` of `ranks`: a contiguous slice of each
  /// layer. With fewer KV heads than ranks, each head is shared by `ranks / num_kv_heads` ranks, as
  /// engines replicate it.
  /// @throws ArgumentError if the rank is out of range or the heads of a layer do not divide evenly
  [[nodiscard]] BasicPolicyTable slice(std::int32_t rank, std::int32_t ranks) const {
    constexpr auto where = "PolicyTable::slice";
    require(ranks > 0, "ranks", "> 0", ranks, where);
    require_index(rank, ranks, "rank", where);
    require(num_layers() > 0, "ranks", {"a divisor or a multiple of ", num_kv_heads(), " KV heads"}, ranks, where);
    std::vector<std::int32_t> counts;
    std::vector<std::int32_t> layers;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
      std::int32_t const count = num_kv_heads(layer);
      bool const divides = count == 0 || count % ranks == 0 || ranks % count == 0;
      require(divides, "ranks", {"a divisor or a multiple of ", count, " KV heads"}, ranks, where);
      counts.push_back(count == 0 ? 0 : std::max(1, count / ranks));
      layers.push_back(layer);
    }
    return part(counts, layers, [&](std::int32_t layer) {
      return static_cast<std::int32_t>(std::int64_t{rank} * num_kv_heads(layer) / ranks);
    });
  }

  /// The table as the CPU back end reads it; valid while this table lives unchanged.
  [[nodiscard]] PolicyTableView<Registry> view() const { return {policies_.records().data(), heads()}; }

  /// The bytes to copy to the device.
  [[nodiscard]] std::span<std::byte const> bytes() const { return policies_.bytes(); }

  /// The table as the CUDA back end reads it. @param d_policies device, a copy of `bytes()`, aligned for `Policy`
  [[nodiscard]] PolicyTableView<Registry> view_at(void const* d_policies) const {
    return {static_cast<Policy const*>(d_policies), policies_.heads_at(d_policies)};
  }

  friend bool operator==(BasicPolicyTable const&, BasicPolicyTable const&) = default;

 private:
  template <class To, class From>
  friend BasicPolicyTable<To> convert_table(BasicPolicyTable<From> const& table);
  template <class Other>
  friend class BasicPolicyTable;

  BasicPolicyTable(detail::HeadCounts counts, std::vector<std::int32_t> windows, Policy const& policy)
      : windows_(std::move(windows)) {
    policy.validate();
    policies_ = {std::move(counts), policy};
    if (windows_.empty()) return;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
      for (std::int32_t head = 0; head < num_kv_heads(layer); ++head) set(layer, head, policy);
    }
  }

  static detail::HeadCounts checked_counts(std::int32_t num_layers, std::int32_t num_kv_heads) {
    require(num_layers > 0, "num_layers", "> 0", num_layers, "PolicyTable");
    require(num_kv_heads > 0, "num_kv_heads", "> 0", num_kv_heads, "PolicyTable");
    return {num_layers, num_kv_heads};
  }
  static std::vector<std::int32_t> kv_heads_of(ModelShape const& shape) {
    std::vector<std::int32_t> counts;
    for (LayerShape const& layer : shape.layers()) counts.push_back(layer.has_cache() ? layer.num_kv_heads : 0);
    return counts;
  }
  /// Empty where no layer slides.
  static std::vector<std::int32_t> windows_of(ModelShape const& shape) {
    std::vector<std::int32_t> windows;
    for (LayerShape const& layer : shape.layers()) windows.push_back(static_cast<std::int32_t>(layer.window));
    bool const none = std::all_of(windows.begin(), windows.end(), [](std::int32_t window) { return window == 0; });
    return none ? std::vector<std::int32_t>{} : windows;
  }

  void check(std::int32_t layer, std::int32_t kv_head) const {
    require_index(layer, num_layers(), "layer", "PolicyTable");
    std::int32_t const count = heads().count(layer);
    require_index(kv_head, count, count > 0 ? "KV head" : "KV head of a layer without a cache of its own",
                  {"PolicyTable, layer ", layer});
  }

  /// Some heads of some layers. @param first  (layer) to the first of its heads
  template <class First>
  [[nodiscard]] BasicPolicyTable part(std::span<std::int32_t const> counts, std::span<std::int32_t const> layers,
                                      First const& first) const {
    std::vector<std::int32_t> windows;
    for (std::int32_t const layer : layers) {
      if (!windows_.empty()) windows.push_back(window(layer));
    }
    BasicPolicyTable result(detail::HeadCounts(counts), std::move(windows), Policy{});
    for (std::size_t i = 0; i < layers.size(); ++i) {
      for (std::int32_t head = 0; head < counts[i]; ++head) {
        result.set(static_cast<std::int32_t>(i), head, at(layers[i], first(layers[i]) + head));
      }
    }
    return result;
  }

  detail::HeadRecords<Policy> policies_;
  std::vector<std::int32_t> windows_;  ///< [num_layers]; empty where no layer slides
};

using PolicyTable = BasicPolicyTable<>;

/// @brief Converts a table to another registry.
/// @throws ArgumentError naming the first policy that the registry lacks
template <class To, class From>
[[nodiscard]] BasicPolicyTable<To> convert_table(BasicPolicyTable<From> const& table) {
  if constexpr (std::is_same_v<To, From>) {
    return table;
  } else {
    BasicPolicyTable<To> result(detail::HeadCounts(table.heads()), table.windows_, AnyPolicy<To>{});
    for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
      for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
        result.set(layer, head, table.visit(layer, head, [](auto const& policy) -> AnyPolicy<To> {
          using P = std::remove_cvref_t<decltype(policy)>;
          if constexpr (To::template contains<P>) {
            return policy;
          } else {
            throw ArgumentError({"policy", "one that the registry has", std::string(P::name), "convert_table"});
          }
        }));
      }
    }
    return result;
  }
}

HEADAWARE_NAMESPACE_END
