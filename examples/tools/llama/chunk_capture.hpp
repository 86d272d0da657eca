#pragma once

// The tensors of one evaluation, in the form of a capture's files (support/capture.hpp).

#include "tools/llama/attention_tap.hpp"
#include "tools/support/npy.hpp"

#include <headaware/element.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace llama_adapter {

/// Collects queries, keys and values of some layers, in half precision.
class ChunkCapture {
 public:
  /// @param layers  those to keep, ascending
  explicit ChunkCapture(std::vector<std::int32_t> layers);

  /// Takes a layer that is to be kept; others are passed over. @throws Error on values that half precision cannot hold
  void take(TappedAttention const& tapped);

  /// Writes `NAME_q.npy`, `NAME_k.npy` and `NAME_v.npy`, [layers, heads, tokens, head_dim], and begins anew.
  /// @throws Error if a layer was not taken, FileError
  void save(std::filesystem::path const& folder, std::string const& name);

  [[nodiscard]] std::vector<std::int32_t> const& layers() const { return layers_; }
  /// Scale and soft cap of all layers, and the window of each. Known after the first evaluation.
  [[nodiscard]] float scale() const { return scale_; }
  [[nodiscard]] float soft_cap() const { return soft_cap_; }
  [[nodiscard]] std::vector<std::int32_t> const& sliding_windows() const { return sliding_windows_; }

 private:
  struct Tensor {
    std::int64_t heads = 0;
    std::vector<headaware::float16> elements;  ///< [layers so far, heads, tokens, head_dim]
  };
  void append(Tensor& tensor, float const* token_major, std::int32_t heads, std::int32_t layer, char const* what);

  std::vector<std::int32_t> layers_;
  std::size_t taken_ = 0;
  std::int64_t tokens_ = 0;
  std::int64_t head_dim_ = 0;
  float scale_ = 0;
  float soft_cap_ = 0;
  bool scored_ = false;
  std::vector<std::int32_t> sliding_windows_;
  Tensor queries_;
  Tensor keys_;
  Tensor values_;
};

}  // namespace llama_adapter
