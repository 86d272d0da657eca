#include "tools/llama/policy_run.hpp"

#include "tools/llama/cache_positions.hpp"
#include "tools/llama/key_rotations.hpp"
#include "tools/llama/ringed_attention.hpp"
#include "tools/llama/rounded_kv.hpp"
#include "tools/llama/tapped_qkv.hpp"

#include <headaware/attention/masked.hpp>
#include <headaware/classify/builders.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

bool wants_fused(ha::ModelShape const& shape, std::int64_t tokens) {
  constexpr std::int64_t most_bytes = std::int64_t{1} << 30;
  std::int32_t most_heads = 0;
  for (ha::LayerShape const& layer : shape.layers()) most_heads = std::max(most_heads, layer.num_query_heads);
  return tokens * tokens * most_heads * static_cast<std::int64_t>(sizeof(float)) > most_bytes;
}

PolicyRun::PolicyRun(Model const& model, PolicyRunOptions const& options)
    : model_(&model),
      fused_(wants_fused(model.shape(), options.tokens)),
      positions_(options.positions),
      rotations_(positions_ == KeyPositions::cache ? key_rotations(model) : std::vector<ha::KeyRotation>()),
      tap_(
          model, [this](TappedAttention const& attention) { handler_(attention); }, TapMode::replace),
      context_(model,
               {.tokens = options.tokens, .flash_attention = fused_, .threads = options.threads, .observer = &tap_}) {}

std::vector<double> PolicyRun::losses(std::span<std::int32_t const> tokens, ha::PolicyTable const& policies,
                                      Rounding const& rounding, LayerDone const& layer_done) {
  constexpr auto where = "PolicyRun::losses";
  ha::ModelShape const& shape = model_->shape();
  ha::PolicyTable const table = ha::within_layers(policies, shape, where);
  // Layers that keep everything too: the engine's attention takes longer.
  bool const rounds = rounding.any();
  bool const cut = rounds || table != ha::PolicyTable(shape, ha::Full{});
  ha::require(!rounds || positions_ == KeyPositions::text, "positions of keys",
              "those of the text, where rows have formats", "those of slots", where);
  RoundedKv rounded;
  handler_ = [&](TappedAttention const& tapped) {
    if (cut) {
      TappedAttention const attention = rounds ? rounded.of(tapped, rounding) : tapped;
      if (rounds && rounding.has_exact()) {
        attend_with_ring(tapped, attention, table, rounding.exact);
      } else if (positions_ == KeyPositions::cache) {
        attend_at_cache_positions(attention, table, rotations_[static_cast<std::size_t>(attention.layer)]);
      } else {
        auto const layout = ha::strided_bshd(1, attention.tokens, attention.num_query_heads, attention.value_dim);
        ha::attend_masked(qkv_of(attention), score_of(attention), table, attention.layer, attention.output, layout);
      }
    }
    if (layer_done) layer_done(tapped.layer);
  };
  tap_.skip_own_attention(std::vector<bool>(static_cast<std::size_t>(shape.num_layers()), cut));
  context_.evaluate(tokens);
  return context_.losses();
}

void PolicyRun::observe(std::span<std::int32_t const> tokens, AttentionTap::Handler const& handler) {
  handler_ = handler;
  tap_.skip_own_attention({});
  context_.evaluate(tokens);
}

}  // namespace llama_adapter
