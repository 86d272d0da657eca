#pragma once

// Keys and values as a cache of encoded rows would give them back.

#include "tools/llama/attention_tap.hpp"

#include <headaware/format/table.hpp>

#include <vector>

namespace llama_adapter {

/// Holds the rows of one layer at a time.
class RoundedKv {
 public:
  /// @return the layer's attention over rows that went through their heads' formats and back; borrowed, valid until the
  /// next call
  /// @throws ArgumentError if the formats are of other heads, or the layer holds latents
  [[nodiscard]] TappedAttention of(TappedAttention const& attention, headaware::FormatTable const& formats);

 private:
  std::vector<float> keys_;
  std::vector<float> values_;
};

}  // namespace llama_adapter
