#pragma once

// Who watches the engine's graph being computed.

#include <cstdint>
#include <span>

struct ggml_tensor;

namespace llama_adapter {

/// Sees every node of the graph of one evaluation. Its exceptions stop the evaluation and reach whoever asked for it.
class NodeObserver {
 public:
  virtual ~NodeObserver() = default;
  /// Called before the graph is computed. @param positions of the tokens of this evaluation, in order
  virtual void begin(std::span<std::int32_t const> positions) = 0;
  /// Called twice for a node: before it is computed, to ask whether to call again (the result), and after it and
  /// before any node that reads it. Buffers are reused: only the node and its sources are to be read.
  virtual bool on_node(ggml_tensor* node, bool asking) = 0;
  /// Called once all nodes are computed.
  virtual void finish() = 0;
};

}  // namespace llama_adapter
