#pragma once

// Reads queries, keys and values of every layer while llama.cpp runs, and can put another output in the place of its
// attention's. Nothing in llama.cpp is changed: its callback for graph nodes is the seam. Nodes are told by what they
// compute, since their names differ from model to model.

#include "tools/llama/engine.hpp"
#include "tools/llama/node_observer.hpp"

#include <headaware/model_shape.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace llama_adapter {

/// One layer's attention of one evaluation. All pointers are borrowed and valid during the call.
struct TappedAttention {
  std::int32_t layer = 0;
  float const* queries = nullptr;  ///< [tokens, num_query_heads, head_dim], after the rotary embedding
  float const* keys = nullptr;     ///< [tokens, num_kv_heads, head_dim], after the rotary embedding
  float const* values = nullptr;  ///< [tokens, num_kv_heads, value_dim]; of a latent a copy of its rows' first channels
  bool latent = false;            ///< the queries are those that meet the latent, the output is before W_V
  std::int32_t num_query_heads = 0;
  std::int32_t num_kv_heads = 0;  ///< query head h reads KV head h / (num_query_heads / num_kv_heads)
  std::int64_t tokens = 0;
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
  std::span<std::int32_t const> positions;
  float scale = 1;                  ///< of q·k
  float soft_cap = 0;               ///< logits are soft_cap · tanh(scale · q·k / soft_cap); 0: none
  std::int32_t sliding_window = 0;  ///< keys a query sees, its own included; 0: all before it
  float const* sinks = nullptr;     ///< [num_query_heads], logits of learned sinks; nullptr: none
  /// [tokens, num_query_heads · value_dim]: holds the engine's output; what the handler leaves there is what the model
  /// goes on with. nullptr unless replacing.
  float* output = nullptr;
};

/// Chooses the output that the model goes on with: its own attention's or the handler's.
enum class TapMode : std::uint8_t { observe, replace };

/// @throws Error naming layer and kind, if a model has a layer whose attention the tap cannot hand over: one
/// that reads another layer's cache; and if no layer attends
void require_served(ModelInfo const& info, headaware::ModelShape const& shape);

/// Gives each layer's attention to a handler, in the order of the layers. Layers without keys and values have none.
class AttentionTap : public NodeObserver {
 public:
  using Handler = std::function<void(TappedAttention const&)>;

  /// @param model  that runs: each of its layers that attend has to be seen in every evaluation, as its shape says
  /// @throws Error as `require_served`
  AttentionTap(Model const& model, Handler handler, TapMode mode = TapMode::observe);

  /// Layers whose own attention the engine need not compute from the next evaluation on, because the handler writes all
  /// of it; `output` then holds NaN. Takes about a third off a run of 2,048 tokens. It uses a
  /// flag of nodes that llama.cpp's CPU back end heeds.
  /// @param layers  [layers], empty: none @pre  mode is replace
  void skip_own_attention(std::vector<bool> layers);

  void begin(std::span<std::int32_t const> positions) override;
  /// @throws Error naming architecture and node, if the graph is not made as this needs it
  bool on_node(ggml_tensor* node, bool asking) override;
  /// @throws Error naming the first layer and node that were missed
  void finish() override;

 private:
  /// Parts of a layer's attention that the graph's nodes show, in the order in which they come.
  enum class Part : std::uint8_t { none, keys, values, queries, soft_max, weighted, output, fused };
  struct Found {
    Part part = Part::none;
    std::int32_t layer = -1;
  };
  struct Layer {
    std::vector<float> queries;
    std::vector<float> keys;
    std::vector<float> values;
    std::vector<float> sinks;
    float scale = 1;
    float soft_cap = 0;
    bool scored = false;  ///< scale, cap and sinks are known
    bool delivered = false;
  };

  [[nodiscard]] static Found find(ggml_tensor const* node);
  void set_computed(ggml_tensor* node, Found const& found) const;
  void take_queries(ggml_tensor const* permuted, Layer& layer, std::int32_t index);
  void take_soft_max(ggml_tensor const* node, Layer& layer, std::int32_t index);
  void take_fused(ggml_tensor const* node, Layer& layer, std::int32_t index);
  void take_sinks(ggml_tensor const* sinks, ggml_tensor const* node, Layer& layer, std::int32_t index);
  void check_mask(ggml_tensor const* mask, ggml_tensor const* node, std::int32_t index);
  /// Takes off what the engine pads the values of narrow layers with, to the widest layer's, where it keeps them
  /// transposed.
  void unpad(std::vector<float>& values, std::int64_t width) const;
  [[nodiscard]] bool wants(Found const& found) const;
  void deliver(ggml_tensor* node, Layer& layer, std::int32_t index, bool by_heads);
  [[noreturn]] void fail(std::string what, std::string expected, std::string got, ggml_tensor const* node) const;

  std::string architecture_;
  headaware::ModelShape shape_;
  Handler handler_;
  TapMode mode_;
  std::vector<bool> skipped_;
  std::vector<std::int32_t> positions_;
  std::vector<Layer> layers_;
  std::vector<float> output_;
  std::map<ggml_tensor const*, std::int64_t> windows_;  ///< of this evaluation's masks, as they were found
};

}  // namespace llama_adapter
