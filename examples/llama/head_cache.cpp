#include "llama/head_cache.hpp"

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama_adapter {

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
