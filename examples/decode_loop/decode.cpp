#include "decode_loop/decode.hpp"

#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

namespace decode_loop {

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Decoded decode(Model const& model, Prefilled const& prompt, DecodeCache& cache, std::int32_t steps,
               std::uint64_t seed) {
  Shape const& shape = model.shape();
  Decoded result{.trace = Trace(shape, steps)};
  std::mt19937_64 random(seed);
  std::vector<float> hidden = prompt.hidden;
  auto const start = std::chrono::steady_clock::now();
  for (std::int32_t step = 0; step < steps; ++step) {
    hidden = model.embed(model.sample(hidden, random));
    for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
      TokenBuffers const token = result.trace.token_buffers(step, layer);
      float* const output = result.trace.output_buffer(step, layer);
      model.before_attention(layer, hidden, std::int64_t{prompt.tokens} + step, token);
      auto const entered = std::chrono::steady_clock::now();
      cache.step(layer, token.read(), output);
      result.cache_seconds += seconds_since(entered);
      model.after_attention(layer, output, hidden);
    }
  }
  result.seconds = seconds_since(start);
  return result;
}

}  // namespace decode_loop
