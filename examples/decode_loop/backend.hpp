#pragma once

// What the decoding loop asks of a cache, and where one may be. Back ends differ in nothing else.

#include "decode_loop/model.hpp"
#include "decode_loop/prefill.hpp"

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace decode_loop {

/// A rolling cache of all layers, filled with what its policies keep of a prompt.
class DecodeCache {
 public:
  virtual ~DecodeCache() = default;
  /// Appends the next token to one layer, and attends over what the layer then holds.
  /// @param output  host, [num_query_heads, head_dim]; complete on return
  virtual void step(std::int32_t layer, TokenQkv const& token, float* output) = 0;
  /// Bytes of keys and values, whatever the sequence's length.
  [[nodiscard]] virtual std::int64_t bytes() const = 0;
};

/// Where a cache lies and its attention runs.
struct Backend {
  /// @param max_tokens  room of heads that keep everything
  using Make = std::function<std::unique_ptr<DecodeCache>(headaware::PolicyTable const&, Prefilled const&,
                                                          std::int32_t max_tokens)>;
  std::string name;
  std::string device;  ///< what it runs on; if nothing, the reason
  Make make;           ///< empty where it cannot run
};

[[nodiscard]] Backend cpu_backend();
[[nodiscard]] Backend cuda_backend();

}  // namespace decode_loop
