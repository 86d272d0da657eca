#pragma once

// The engine by itself, as a reader of texts: all tokens in its own cache.

#include "tools/llama/engine.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace llama_adapter {

class EngineReader {
 public:
  /// @param model    borrowed
  /// @param options  with cells for all tokens
  EngineReader(Model const& model, ContextOptions const& options) : context_(model, options) {}

  /// Reads tokens after those read before.
  void read(std::span<std::int32_t const> tokens) {
    context_.extend(tokens, length_);
    length_ += static_cast<std::int32_t>(tokens.size());
  }
  /// Logits [vocabulary] after a token of the last read. @return borrowed; valid until the next one
  [[nodiscard]] std::span<float const> logits(std::size_t index) const {
    return context_.logits(static_cast<std::int32_t>(index));
  }
  [[nodiscard]] std::int64_t length() const { return length_; }

 private:
  Context context_;
  std::int32_t length_ = 0;
};

}  // namespace llama_adapter
