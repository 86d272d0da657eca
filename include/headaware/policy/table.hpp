#pragma once

/// @file
/// Policy of each KV head.

#include <headaware/detail/zero_when_moved.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/registry.hpp>

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

/// @brief A table held elsewhere, on the host or on the device: [num_layers, num_kv_heads].
template <class Registry = DefaultRegistry>
class PolicyTableView {
 public:
  using Policy = AnyPolicy<Registry>;

  PolicyTableView() = default;
  HEADAWARE_HOST_DEVICE PolicyTableView(Policy const* policies, std::int32_t num_layers, std::int32_t num_kv_heads)
      : policies_(policies), num_layers_(num_layers), num_kv_heads_(num_kv_heads) {}

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_layers() const { return num_layers_; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_kv_heads() const { return num_kv_heads_; }
  [[nodiscard]] Policy const* data() const { return policies_; }

  HEADAWARE_EXEC_CHECK_DISABLE
  template <class F>
  HEADAWARE_HOST_DEVICE auto visit(std::int32_t layer, std::int32_t kv_head, F&& f) const {
    return policies_[std::int64_t{layer} * num_kv_heads_ + kv_head].visit(f);
  }

 private:
  Policy const* policies_ = nullptr;
  std::int32_t num_layers_ = 0;
  std::int32_t num_kv_heads_ = 0;
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

/// @brief One policy per (layer, KV head), on the host, chosen at run time.
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
      : num_layers_(num_layers), num_kv_heads_(num_kv_heads) {
    require(num_layers > 0, "num_layers", "> 0", num_layers, "PolicyTable");
    require(num_kv_heads > 0, "num_kv_heads", "> 0", num_kv_heads, "PolicyTable");
    policy.validate();
    policies_.assign(static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_kv_heads), policy);
  }

  [[nodiscard]] std::int32_t num_layers() const { return num_layers_; }
  [[nodiscard]] std::int32_t num_kv_heads() const { return num_kv_heads_; }

  /// @throws ArgumentError if the head is out of range
  [[nodiscard]] Policy const& at(std::int32_t layer, std::int32_t kv_head) const {
    return policies_[index(layer, kv_head)];
  }

  /// @throws ArgumentError if the head is out of range or the policy's fields make no sense
  void set(std::int32_t layer, std::int32_t kv_head, Policy const& policy) {
    policy.validate();
    policies_[index(layer, kv_head)] = policy;
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
      for (std::int32_t head = 0; head < num_kv_heads_; ++head) result.set(layer, head, Full{});
    }
    return result;
  }

  /// @brief The named layers alone, in the order named: what a pipeline-parallel rank holds.
  /// @throws ArgumentError if no layer is named or one is out of range
  [[nodiscard]] BasicPolicyTable select_layers(std::span<std::int32_t const> layers) const {
    BasicPolicyTable result(static_cast<std::int32_t>(layers.size()), num_kv_heads_, Policy{});
    for (std::int32_t i = 0; i < result.num_layers_; ++i) {
      for (std::int32_t head = 0; head < num_kv_heads_; ++head) {
        result.set(i, head, at(layers[static_cast<std::size_t>(i)], head));
      }
    }
    return result;
  }

  /// @brief The KV heads of tensor-parallel rank `rank` of `ranks`: a contiguous slice of each
  /// layer. With fewer KV heads than ranks, each head is shared by `ranks / num_kv_heads` ranks, as
  /// engines replicate it.
  /// @throws ArgumentError if the rank is out of range or the heads do not divide evenly
  [[nodiscard]] BasicPolicyTable slice(std::int32_t rank, std::int32_t ranks) const {
    constexpr auto where = "PolicyTable::slice";
    require(ranks > 0, "ranks", "> 0", ranks, where);
    require_index(rank, ranks, "rank", where);
    bool const divides = num_kv_heads_ > 0 && (num_kv_heads_ % ranks == 0 || ranks % num_kv_heads_ == 0);
    require(divides, "ranks", {"a divisor or a multiple of ", num_kv_heads(), " KV heads"}, ranks, where);
    std::int32_t const heads = num_kv_heads_ >= ranks ? num_kv_heads_ / ranks : 1;
    std::int32_t const first = num_kv_heads_ >= ranks ? rank * heads : rank / (ranks / num_kv_heads_);
    BasicPolicyTable result(num_layers_, heads, Policy{});
    for (std::int32_t layer = 0; layer < num_layers_; ++layer) {
      for (std::int32_t head = 0; head < heads; ++head) result.set(layer, head, at(layer, first + head));
    }
    return result;
  }

  /// The table as the CPU back end reads it; valid while this table lives unchanged.
  [[nodiscard]] PolicyTableView<Registry> view() const { return view_at(policies_.data()); }

  /// The bytes to copy to the device.
  [[nodiscard]] std::span<std::byte const> bytes() const { return std::as_bytes(std::span(policies_)); }

  /// The table as the CUDA back end reads it. @param d_policies device, a copy of `bytes()`, aligned for `Policy`
  [[nodiscard]] PolicyTableView<Registry> view_at(void const* d_policies) const {
    return {static_cast<Policy const*>(d_policies), num_layers_, num_kv_heads_};
  }

  friend bool operator==(BasicPolicyTable const&, BasicPolicyTable const&) = default;

 private:
  [[nodiscard]] std::size_t index(std::int32_t layer, std::int32_t kv_head) const {
    require_index(layer, num_layers_, "layer", "PolicyTable");
    require_index(kv_head, num_kv_heads_, "KV head", "PolicyTable");
    return static_cast<std::size_t>(layer) * static_cast<std::size_t>(num_kv_heads_) +
           static_cast<std::size_t>(kv_head);
  }

  detail::ZeroWhenMoved<std::int32_t> num_layers_ = 0;
  detail::ZeroWhenMoved<std::int32_t> num_kv_heads_ = 0;
  std::vector<Policy> policies_;
};

using PolicyTable = BasicPolicyTable<>;

/// @brief Converts a table to another registry.
/// @throws ArgumentError naming the first policy that the registry lacks
template <class To, class From>
[[nodiscard]] BasicPolicyTable<To> convert_table(BasicPolicyTable<From> const& table) {
  if constexpr (std::is_same_v<To, From>) {
    return table;
  } else {
    BasicPolicyTable<To> result(table.num_layers(), table.num_kv_heads(), AnyPolicy<To>{});
    for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
      for (std::int32_t head = 0; head < table.num_kv_heads(); ++head) {
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
