#pragma once

// Keys and values as a cache of encoded rows would give them back.

#include "tools/llama/attention_tap.hpp"

#include <headaware/format/table.hpp>
#include <headaware/policy/window_rule.hpp>

#include <vector>

namespace llama_adapter {

/// How rows are rounded: as caches do it, but for what a study leaves out.
struct Rounding {
  headaware::FormatTable formats{};  ///< of every head; empty: nothing is rounded
  bool rotated = true;               ///< false: formats that rotate rows do not
  headaware::WindowRule exact{};     ///< sinks and newest tokens that a query sees as they were; none: no tokens

  [[nodiscard]] bool any() const { return formats.num_layers() > 0; }
  [[nodiscard]] bool has_exact() const { return exact.sink > 0 || exact.window > 0; }
};

/// Holds the rows of one layer at a time.
class RoundedKv {
 public:
  /// @return the layer's attention over rows that went through their heads' formats and back; borrowed, valid until the
  /// next call
  /// @throws ArgumentError if the formats are of other heads, or the layer holds latents
  [[nodiscard]] TappedAttention of(TappedAttention const& attention, Rounding const& rounding);

 private:
  std::vector<float> keys_;
  std::vector<float> values_;
};

}  // namespace llama_adapter
