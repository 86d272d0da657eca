#include "llama/models.hpp"

#include <headaware/io/gguf.hpp>

#include <cstdint>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("the cache of every layer is read from a model's file") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  CHECK(ha::load_gguf_shape(model_path(smollm2)) == ha::ModelConfig{30, 9, 3, 64});
}

TEST_CASE("windows that llama.cpp knows by the architecture are read from a model's file") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  auto const shape = ha::load_gguf_shape(model_path(gemma3));
  REQUIRE(shape.num_layers() == 18);
  for (std::int32_t i = 0; i < 18; ++i) {
    bool const all = i % 6 == 5;
    CHECK(shape.layer(i) == ha::LayerShape{.kind = all ? ha::LayerKind::attention : ha::LayerKind::sliding,
                                           .num_query_heads = 4,
                                           .num_kv_heads = 1,
                                           .head_dim = 256,
                                           .value_dim = 256,
                                           .window = all ? 0 : 512});
  }
  CHECK(shape.token_bytes(2) == 18 * 2 * 256 * 2);
}
