#pragma once

// A model run with each KV head keeping only what its policy keeps, in one pass.

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/engine.hpp"
#include "tools/llama/rounded_kv.hpp"

#include <headaware/cache/rotation.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace llama_adapter {

/// Positions of kept keys.
enum class KeyPositions : std::uint8_t {
  text,  ///< those that they had in the text
  cache  ///< those of their slots in the cache, counted anew at every step: StreamingLLM's
};

/// True where the engine's scores of all heads, of an evaluation of so many tokens, would take too much memory; its
/// fused node has none, at half precision.
[[nodiscard]] bool wants_fused(headaware::ModelShape const& shape, std::int64_t tokens);

struct PolicyRunOptions {
  std::int32_t tokens = 2048;  ///< most of a run
  std::int32_t threads = 1;    ///< of the engine; the policies' attention takes all cores
  KeyPositions positions = KeyPositions::text;
};

/// Runs a model over tokens under policies, as if every step evicted what they do not keep. One context serves all
/// runs.
class PolicyRun {
 public:
  /// Told after each layer; may throw to leave the run, which then leaves no trace.
  using LayerDone = std::function<void(std::int32_t layer)>;

  /// @param model  borrowed @throws Error if the engine cannot make a context, or keys cannot be re-rotated
  PolicyRun(Model const& model, PolicyRunOptions const& options);
  PolicyRun(PolicyRun const&) = delete;
  PolicyRun& operator=(PolicyRun const&) = delete;

  [[nodiscard]] Model const& model() const { return *model_; }
  /// True if the engine's own attention is one fused node per layer, which rounds to half precision: where its scores
  /// would fill the memory.
  [[nodiscard]] bool fused() const { return fused_; }
  [[nodiscard]] KeyPositions positions() const { return positions_; }

  /// @brief −log p(token i + 1 | what the policies keep of tokens 0 … i); @return [tokens − 1]
  ///
  /// Where no head drops anything the engine computes attention itself; else the library computes all attention,
  /// which is faster. The model's own sliding windows bound the policies.
  /// @param rounding  formats that every key and value goes through, of the same heads; none: nothing is rounded
  /// @throws ArgumentError if policies or formats are of another model's shape, formats are of latents or of keys whose
  ///         positions change, or tokens do not fit
  [[nodiscard]] std::vector<double> losses(std::span<std::int32_t const> tokens, headaware::PolicyTable const& policies,
                                           Rounding const& rounding, LayerDone const& layer_done = {});
  /// The same without formats.
  [[nodiscard]] std::vector<double> losses(std::span<std::int32_t const> tokens, headaware::PolicyTable const& policies,
                                           LayerDone const& layer_done = {}) {
    return losses(tokens, policies, {}, layer_done);
  }

  /// Logits [vocabulary] after a token of the last run. @return borrowed; valid until the next one
  [[nodiscard]] std::span<float const> logits(std::int32_t token) const { return context_.logits(token); }

  /// @brief Runs the model as it is, and hands over each layer's attention.
  void observe(std::span<std::int32_t const> tokens, AttentionTap::Handler const& handler);

 private:
  Model const* model_;
  bool fused_;
  KeyPositions positions_;
  std::vector<headaware::KeyRotation> rotations_;  ///< of each layer; none where keys stay
  AttentionTap::Handler handler_;                  ///< of the run under way
  AttentionTap tap_;
  Context context_;
};

}  // namespace llama_adapter
