#pragma once

// A small transformer with random weights: everything of its layers but attention, which is the caches' business.

#include "decode_loop/shape.hpp"

#include <headaware/element.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace decode_loop {

/// What one token brings to one layer's attention. Keys and values are as the cache holds them, so that whoever reads
/// them reads the same numbers.
struct TokenQkv {
  float const* queries;              ///< [num_query_heads, head_dim], rotated to the token's position
  headaware::float16 const* keys;    ///< [num_kv_heads, head_dim], rotated likewise
  headaware::float16 const* values;  ///< [num_kv_heads, head_dim]
};

/// Where the model writes that.
struct TokenBuffers {
  float* queries;
  headaware::float16* keys;
  headaware::float16* values;

  [[nodiscard]] TokenQkv read() const { return {queries, keys, values}; }
};

/// y = W x.
class Matrix {
 public:
  /// Normal elements, such that outputs are `gain` times as large as inputs.
  Matrix(std::int64_t rows, std::int64_t columns, float gain, std::mt19937_64& random);

  [[nodiscard]] float const* row(std::int64_t index) const { return elements_.data() + index * columns_; }
  void multiply(float const* x, float* y) const;

 private:
  std::int64_t rows_;
  std::int64_t columns_;
  std::vector<float> elements_;  ///< [rows, columns]
};

class Model {
 public:
  static constexpr std::int32_t vocabulary = 256;

  Model(Shape const& shape, std::uint64_t seed);

  [[nodiscard]] Shape const& shape() const { return shape_; }
  /// @return [hidden], what enters the first layer
  [[nodiscard]] std::vector<float> embed(std::int32_t token) const;
  /// A layer until its attention. @param hidden  [hidden]
  void before_attention(std::int32_t layer, std::vector<float> const& hidden, std::int64_t position,
                        TokenBuffers const& token) const;
  /// The layer's rest. @param attention  [num_query_heads, head_dim]; @param hidden  [hidden], updated
  void after_attention(std::int32_t layer, float const* attention, std::vector<float>& hidden) const;
  /// Draws the next token from what has left the last layer.
  [[nodiscard]] std::int32_t sample(std::vector<float> const& hidden, std::mt19937_64& random) const;

 private:
  struct Layer {
    Layer(Shape const& shape, std::mt19937_64& random);
    Matrix queries, keys, values, output, gate, up, down;
  };
  void rotate(std::int64_t position, std::int64_t heads, float* rows) const;

  Shape shape_;
  Matrix embedding_;
  std::vector<Layer> layers_;
  std::vector<double> frequencies_;  ///< [head_dim / 2], rotary embedding: radians a position
};

}  // namespace decode_loop
