#include "decode_loop/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace decode_loop {

namespace {

/// Queries are this much larger than keys: logits that spread by 1 would make attention an average of everything, and
/// an average would hardly tell whether a token is missing.
constexpr float query_gain = 3;
constexpr std::int64_t mlp_factor = 2;  ///< the inner width of the MLP, in hidden widths

std::vector<float> floats(std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count)); }

/// RMS norm without weights, which are one in a random model.
std::vector<float> normalized(std::vector<float> x) {
  double squares = 0;
  for (float const value : x) squares += double{value} * value;
  auto const inverse = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(x.size()) + 1e-6));
  for (float& value : x) value *= inverse;
  return x;
}

void add_product(Matrix const& matrix, float const* x, std::vector<float>& sum) {
  std::vector<float> product(sum.size());
  matrix.multiply(x, product.data());
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += product[i];
}

}  // namespace

Matrix::Matrix(std::int64_t rows, std::int64_t columns, float gain, std::mt19937_64& random)
    : rows_(rows), columns_(columns), elements_(floats(rows * columns)) {
  std::normal_distribution<float> normal(0, gain / std::sqrt(static_cast<float>(columns)));
  for (float& element : elements_) element = normal(random);
}

void Matrix::multiply(float const* x, float* y) const {
  for (std::int64_t r = 0; r < rows_; ++r) {
    float const* const weights = row(r);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t c = 0; c < columns_; ++c) sum += weights[c] * x[c];
    y[r] = sum;
  }
}

Model::Layer::Layer(Shape const& shape, std::mt19937_64& random)
    : queries(shape.query_width(), shape.hidden(), query_gain, random),
      keys(shape.kv_width(), shape.hidden(), 1, random),
      values(shape.kv_width(), shape.hidden(), 1, random),
      output(shape.hidden(), shape.query_width(), 1, random),
      gate(mlp_factor * shape.hidden(), shape.hidden(), 1, random),
      up(mlp_factor * shape.hidden(), shape.hidden(), 1, random),
      down(shape.hidden(), mlp_factor * shape.hidden(), 1, random) {}

Model::Model(Shape const& shape, std::uint64_t seed)
    : shape_(shape), embedding_([&] {
        std::mt19937_64 random(seed);
        return Matrix(vocabulary, shape.hidden(), 1, random);
      }()) {
  std::mt19937_64 random(seed + 1);
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) layers_.emplace_back(shape, random);
  for (std::int64_t pair = 0; pair < shape.head_dim / 2; ++pair) {
    frequencies_.push_back(std::pow(10000.0, -2.0 * static_cast<double>(pair) / static_cast<double>(shape.head_dim)));
  }
}

std::vector<float> Model::embed(std::int32_t token) const {
  float const* const row = embedding_.row(token);
  return {row, row + shape_.hidden()};
}

void Model::rotate(std::int64_t position, std::int64_t heads, float* rows) const {
  std::int64_t const half = shape_.head_dim / 2;
  for (std::int64_t pair = 0; pair < half; ++pair) {
    double const angle = static_cast<double>(position) * frequencies_[static_cast<std::size_t>(pair)];
    auto const cosine = static_cast<float>(std::cos(angle));
    auto const sine = static_cast<float>(std::sin(angle));
    for (std::int64_t head = 0; head < heads; ++head) {
      float& x = rows[head * shape_.head_dim + pair];
      float& y = rows[head * shape_.head_dim + half + pair];
      float const rotated = x * cosine - y * sine;
      y = x * sine + y * cosine;
      x = rotated;
    }
  }
}

void Model::before_attention(std::int32_t layer, std::vector<float> const& hidden, std::int64_t position,
                             TokenBuffers const& token) const {
  Layer const& weights = layers_[static_cast<std::size_t>(layer)];
  std::vector<float> const input = normalized(hidden);
  weights.queries.multiply(input.data(), token.queries);
  rotate(position, shape_.num_query_heads, token.queries);
  std::vector<float> row = floats(shape_.kv_width());
  auto const store = [&](headaware::float16* to) {
    std::transform(row.begin(), row.end(), to, headaware::from_float<headaware::float16>);
  };
  weights.keys.multiply(input.data(), row.data());
  rotate(position, shape_.num_kv_heads, row.data());
  store(token.keys);
  weights.values.multiply(input.data(), row.data());
  store(token.values);
}

void Model::after_attention(std::int32_t layer, float const* attention, std::vector<float>& hidden) const {
  Layer const& weights = layers_[static_cast<std::size_t>(layer)];
  add_product(weights.output, attention, hidden);
  std::vector<float> const input = normalized(hidden);
  std::vector<float> gate = floats(mlp_factor * shape_.hidden());
  std::vector<float> up(gate.size());
  weights.gate.multiply(input.data(), gate.data());
  weights.up.multiply(input.data(), up.data());
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));  // SwiGLU
  add_product(weights.down, gate.data(), hidden);
}

std::int32_t Model::sample(std::vector<float> const& hidden, std::mt19937_64& random) const {
  std::vector<float> logits = floats(vocabulary);
  embedding_.multiply(normalized(hidden).data(), logits.data());
  for (float& logit : logits) logit = std::exp(logit);
  return std::discrete_distribution<std::int32_t>(logits.begin(), logits.end())(random);
}

}  // namespace decode_loop
