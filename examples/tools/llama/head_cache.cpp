#include "tools/llama/head_cache.hpp"

#include <headaware/error.hpp>
#include <headaware/policy/policy_window.hpp>

#include <llama.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

ha::PolicyTable within_windows(ha::PolicyTable table, std::span<std::int32_t const> windows) {
  constexpr auto where = "within_windows";
  ha::require(std::ssize(windows) == table.num_layers(), "windows", table.num_layers(), windows.size(), where);
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    std::int32_t const window = windows[static_cast<std::size_t>(layer)];
    for (std::int32_t head = 0; window > 0 && head < table.num_kv_heads(); ++head) {
      auto const policy = table.at(layer, head);
      auto const kept = ha::policy_window(policy, where);
      if (policy.is<ha::Full>()) table.set(layer, head, ha::WindowOnly{.window = window});
      if (kept) {
        table.set(layer, head, ha::SinkWindow{.sink = kept->sink, .window = std::min(kept->window, window)});
      }
    }
  }
  return table;
}

std::vector<std::int32_t> layer_windows(Model const& model) {
  std::vector<std::int32_t> windows(static_cast<std::size_t>(model.shape().layers), 0);
  std::int32_t const widest = llama_model_n_swa(model.get());
  if (widest <= 0) return windows;
  // A window shows in the mask of the first text that is longer.
  AttentionTap tap(model.shape(), [&](TappedAttention const& attention) {
    windows[static_cast<std::size_t>(attention.layer)] = attention.sliding_window;
  });
  ContextOptions options;
  options.tokens = widest + 1;
  options.all_logits = false;
  options.observer = &tap;
  Context context(model, options);
  context.evaluate(std::vector<std::int32_t>(static_cast<std::size_t>(widest) + 1, 0));
  return windows;
}

}  // namespace llama_adapter
