#include "tools/llama/ringed_attention.hpp"

#include "tools/llama/tapped_qkv.hpp"

#include <headaware/attention/attention.hpp>
#include <headaware/attention/masked.hpp>
#include <headaware/attention/merge.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/registry.hpp>
#include <headaware/policy/rolling_policy.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Of the tokens that a head keeps those that its ring shows, or the others.
struct PartOfRing {
  static constexpr std::string_view name = "part_of_ring";

  ha::WindowRule kept;
  ha::WindowRule ring;
  bool shown = true;

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return kept.keeps(token, length) && ring.keeps(token, length) == shown;
  }
  friend constexpr bool operator==(PartOfRing const&, PartOfRing const&) = default;
};

using Parts = ha::BasicPolicyTable<ha::DefaultRegistry::with<PartOfRing>>;

ha::WindowRule rule_of(ha::AnyPolicy<> const& policy) {
  if (policy.is<ha::Full>()) return ha::window_rule(ha::Full{});
  return ha::policy_window(policy, "attend_with_ring").value_or(ha::WindowRule{});
}

}  // namespace

void attend_with_ring(TappedAttention const& exact, TappedAttention const& rounded, ha::PolicyTable const& table,
                      ha::WindowRule const& ring) {
  auto const part = [&](bool shown) {
    Parts parts(1, exact.num_kv_heads);
    for (std::int32_t head = 0; head < exact.num_kv_heads; ++head) {
      parts.set(0, head, PartOfRing{rule_of(table.at(exact.layer, head)), ring, shown});
    }
    return parts;
  };
  auto const rows = static_cast<std::size_t>(exact.tokens * exact.num_query_heads);
  auto const layout = ha::strided_bshd(1, exact.tokens, exact.num_query_heads, exact.value_dim);
  std::vector<float> lse(rows);
  std::vector<float> rounded_lse(rows);
  std::vector<float> rounded_output(rows * static_cast<std::size_t>(exact.value_dim));
  // Learned sinks take part once, in the merge.
  auto const attend = [&](TappedAttention const& attention, bool shown, float* output, float* to_lse) {
    auto qkv = qkv_of(attention);
    qkv.sinks = nullptr;
    ha::attend_masked(qkv, score_of(attention), part(shown), 0, output, layout, to_lse);
  };
  attend(exact, true, exact.output, lse.data());
  attend(rounded, false, rounded_output.data(), rounded_lse.data());
  ha::AttentionShape const shape{.num_sequences = 1,
                                 .num_query_heads = exact.num_query_heads,
                                 .num_kv_heads = exact.num_kv_heads,
                                 .query_tokens = exact.tokens,
                                 .head_dim = exact.head_dim,
                                 .value_dim = exact.value_dim};
  ha::merge_attention(shape, ha::AttentionOutput{exact.output, layout, lse.data()},
                      ha::AttentionOutput{rounded_output.data(), layout, rounded_lse.data()}, exact.sinks);
}

}  // namespace llama_adapter
