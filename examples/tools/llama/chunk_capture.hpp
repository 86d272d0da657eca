#pragma once

// The tensors of one evaluation, in the form of a capture's files (support/capture.hpp).

#include "tools/llama/attention_tap.hpp"
#include "tools/support/capture_description.hpp"

#include <headaware/element.hpp>
#include <headaware/model_shape.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace llama_adapter {

/// Collects queries, keys and values of some layers, in half precision.
class ChunkCapture {
 public:
  /// @param layers  those to keep, ascending, with caches of their own
  /// @param model   shape of the whole model
  ChunkCapture(std::vector<std::int32_t> layers, headaware::ModelShape const& model);

  /// Takes a layer that is to be kept; others are passed over. @throws Error on values that half precision cannot hold
  void take(TappedAttention const& tapped);

  /// Writes `NAME_q.npy`, `NAME_k.npy` and `NAME_v.npy`, [layers, heads, tokens, head_dim], or, of layers that differ,
  /// `NAME_layerL_q.npy` and so on, [heads, tokens, channels]; once also the learned sinks, `layerL_sinks.npy`. Begins
  /// anew. @throws Error if a layer was not taken, FileError
  void save(std::filesystem::path const& folder, std::string const& name);

  /// What capture.json says of every layer, its learned sinks aside. Scales are known after the first evaluation.
  [[nodiscard]] std::vector<std::int32_t> const& layers() const { return layers_; }
  [[nodiscard]] std::vector<capture::LayerDescription> const& each() const { return each_; }
  /// Whether all layers go into the same arrays: none is a latent, and they differ in windows at most.
  [[nodiscard]] bool alike() const { return alike_; }

 private:
  struct Tensor {
    std::vector<headaware::float16> elements;  ///< [heads, tokens, channels], layer by layer
    void append(float const* token_major, std::int64_t tokens, std::int32_t heads, std::int64_t channels,
                std::string const& where);
  };
  struct Layer {
    Tensor queries;
    Tensor keys;
    Tensor values;
  };

  std::vector<std::int32_t> layers_;
  std::vector<capture::LayerDescription> each_;
  bool alike_ = true;
  bool sinks_saved_ = false;
  std::size_t taken_ = 0;
  std::int64_t tokens_ = 0;
  bool scored_ = false;
  std::vector<Layer> rows_;  ///< one of all layers where they are alike, else of each
};

}  // namespace llama_adapter
