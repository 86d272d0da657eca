#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/model_shape.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace ha = headaware;

namespace {

constexpr ha::LayerShape full{.num_query_heads = 8, .num_kv_heads = 4, .head_dim = 64, .value_dim = 32};
constexpr ha::LayerShape sliding{.kind = ha::LayerKind::sliding,
                                 .num_query_heads = 8,
                                 .num_kv_heads = 2,
                                 .head_dim = 16,
                                 .value_dim = 16,
                                 .window = 10};
constexpr ha::LayerShape latent{
    .kind = ha::LayerKind::latent, .num_query_heads = 8, .num_kv_heads = 1, .head_dim = 40, .value_dim = 32};
constexpr ha::LayerShape none{.kind = ha::LayerKind::none};

/// A layer that reads another's cache.
constexpr ha::LayerShape reading(ha::LayerShape layer, std::int32_t of) {
  layer.cache_layer = of;
  return layer;
}

template <class Change>
ha::LayerShape changed(ha::LayerShape layer, Change const& change) {
  change(layer);
  return layer;
}

void check_rejected(std::vector<ha::LayerShape> layers, ha::ErrorDetail const& parts) {
  headaware_test::check_error<ha::ArgumentError>([&] { ha::ModelShape{std::move(layers)}; }, parts);
}

}  // namespace

TEST_CASE("a ModelConfig is a shape whose layers are alike", "[model]") {
  ha::ModelConfig const config{
      .num_hidden_layers = 3, .num_attention_heads = 8, .num_key_value_heads = 2, .head_dim = 16};
  ha::ModelShape const shape = config;
  REQUIRE(shape.num_layers() == 3);
  for (ha::LayerShape const& layer : shape.layers()) {
    CHECK(layer == ha::LayerShape{.num_query_heads = 8, .num_kv_heads = 2, .head_dim = 16, .value_dim = 16});
  }
  CHECK(shape.uniform());
  CHECK(shape.layer(0).group() == 4);
  CHECK(shape.cache_layer(2) == 2);
  CHECK(shape == ha::ModelShape(std::vector<ha::LayerShape>(3, shape.layer(0))));
  CHECK(shape.token_bytes(2) == 3 * 2 * (16 + 16) * 2);
  CHECK(shape.bytes(1000, 2) == 1000 * shape.token_bytes(2));
  headaware_test::check_error<ha::ArgumentError>([] { ha::ModelShape{ha::ModelConfig{}}; }, {"", "", "", ""});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.layer(3); }, {"layer", "[0, 3)", "3", "ModelShape"});

  CHECK_FALSE(ha::ModelShape().uniform());
  CHECK_FALSE(ha::ModelShape({full}).uniform());  // values of other channels
  CHECK_FALSE(ha::ModelShape({sliding, sliding}).uniform());
  CHECK_FALSE(ha::ModelShape({latent}).uniform());
  CHECK(ha::ModelShape().bytes(9, 2) == 0);
}

TEST_CASE("layers without a cache, with windows, latents and others' caches", "[model]") {
  ha::ModelShape const shape({full, sliding, none, latent, reading(full, 0), reading(sliding, 1)});
  CHECK_FALSE(shape.uniform());
  CHECK(to_string(shape.layer(1).kind) == "sliding");
  CHECK(to_string(shape.layer(2).kind) == "none");
  std::vector<bool> own;
  std::vector<bool> attends;
  for (ha::LayerShape const& layer : shape.layers()) {
    own.push_back(layer.has_cache());
    attends.push_back(layer.attends());
  }
  CHECK(own == std::vector<bool>{true, true, false, true, false, false});
  CHECK(attends == std::vector<bool>{true, true, false, true, true, true});
  CHECK(shape.cache_layer(4) == 0);
  CHECK(shape.cache_layer(5) == 1);
  CHECK(shape.cache_layer(3) == 3);

  // Keys and values; a latent once; nothing where there is none or another's.
  CHECK(shape.layer(0).token_bytes(2).total() == (64 + 32) * 2);
  CHECK(shape.layer(3).token_bytes(2).total() == 40 * 2);
  CHECK(shape.layer(2).token_bytes(2).total() == 0);
  CHECK(shape.layer(4).token_bytes(2).total() == 0);
  std::int64_t const whole = 4 * (64 + 32) * 2 + 40 * 2;
  std::int64_t const windowed = 2 * (16 + 16) * 2;
  CHECK(shape.token_bytes(2) == whole + windowed);
  CHECK(shape.bytes(0, 2) == 0);
  CHECK(shape.bytes(10, 2) == 10 * (whole + windowed));
  CHECK(shape.bytes(11, 2) == 11 * whole + 10 * windowed);
  CHECK(shape.bytes(1000, 2) == 1000 * whole + 10 * windowed);
  CHECK(shape.layer(1).visible(9) == 9);
  CHECK(shape.layer(1).visible(11) == 10);
  CHECK(shape.layer(0).visible(11) == 11);
  headaware_test::check_error<ha::ArgumentError>(
      [&] { (void)shape.bytes(std::numeric_limits<std::int64_t>::max() / 2, 2); }, {"elements", "at most", "", ""});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.bytes(-5, 2); },
                                                 {"length", ">= 0", "-5", "ModelShape::bytes"});
  // Channels that are not known are none to count; a layer without a cache has none.
  ha::ModelShape const unknown({none, changed(full, [](ha::LayerShape& l) { l.head_dim = l.value_dim = 0; })});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)unknown.token_bytes(2); },
                                                 {"head_dim", "> 0", "0", "ModelShape::bytes, layer 1"});
  headaware_test::check_error<ha::ArgumentError>(
      [&] {
        (void)ha::ModelShape(ha::ModelConfig{1, 2, 1, 0}).bytes(3, 2);
      },
      {"head_dim", "> 0", "0", "layer 0"});
  headaware_test::check_error<ha::ArgumentError>(
      [&] {
        (void)ha::ModelShape({full, full}).bytes(std::numeric_limits<std::int64_t>::max() / (4 * 96), 1);
      },
      {"elements", "at most", "", "bytes"});
}

TEST_CASE("a shape that makes no sense is refused by layer and field", "[model]") {
  auto const reject = [](ha::LayerShape const& of, auto const& change, ha::ErrorDetail parts) {
    parts.where = "layer 1";
    check_rejected({full, changed(of, change)}, parts);
  };
  using L = ha::LayerShape;
  reject(full, [](L& l) { l.num_kv_heads = 0; }, {"num_kv_heads", "> 0", "0", ""});
  reject(full, [](L& l) { l.num_query_heads = 0; }, {"num_query_heads", "a multiple of num_kv_heads (4)", "0", ""});
  reject(full, [](L& l) { l.num_query_heads = 6; }, {"num_query_heads", "a multiple of num_kv_heads (4)", "6", ""});
  reject(full, [](L& l) { l.head_dim = -1; }, {"head_dim", "[0, ", "-1", ""});
  reject(full, [](L& l) { l.value_dim = std::int64_t{1} << 31; }, {"value_dim", "[0, 2147483647]", "2147483648", ""});
  reject(full, [](L& l) { l.window = 5; }, {"window", "0, as the layer does not slide", "5", ""});
  reject(sliding, [](L& l) { l.window = 0; }, {"window", "[1, 2147483647], as the layer slides", "0", ""});
  reject(latent, [](L& l) { l.num_kv_heads = 2; }, {"num_kv_heads", "1, as the layer holds a latent", "2", ""});
  reject(latent, [](L& l) { l.value_dim = 41; }, {"value_dim", "at most the row's 40 channels", "41", ""});
  reject(none, [](L& l) { l.head_dim = 1; }, {"layer without a cache", "no heads", "some", ""});
  reject(none, [](L& l) { l.cache_layer = 0; }, {"layer without a cache", "no heads", "some", ""});
  for (std::int32_t const of : {-2, 1, 2}) {
    reject(full, [&](L& l) { l.cache_layer = of; }, {"cache_layer", "an earlier layer", "", ""});
  }
  check_rejected({none, reading(full, 0)}, {"cache_layer", "with a cache of its own", "0", "layer 1"});
  check_rejected({full, reading(full, 0), reading(full, 1)},
                 {"cache_layer", "with a cache of its own", "1", "layer 2"});
  check_rejected({full, reading(sliding, 0)},
                 {"layer", "window of layer 0, whose cache it reads", "others", "layer 1"});
  // Query heads alone may differ.
  CHECK_NOTHROW(ha::ModelShape({full, changed(reading(full, 0), [](L& l) { l.num_query_heads = 16; })}));
}

TEST_CASE("what a rank of tensor parallelism holds", "[model]") {
  ha::ModelShape const shape({full, sliding, none, latent, reading(full, 0)});
  CHECK(shape.tensor_parallel(0, 1) == shape);
  for (std::int32_t const ranks : {2, 4, 8}) {
    for (std::int32_t rank = 0; rank < ranks; ++rank) {
      CAPTURE(ranks, rank);
      auto const part = shape.tensor_parallel(rank, ranks);
      REQUIRE(part.num_layers() == 5);
      for (std::int32_t i = 0; i < 5; ++i) {
        ha::LayerShape const& whole = shape.layer(i);
        ha::LayerShape const& l = part.layer(i);
        CHECK(l.kind == whole.kind);
        CHECK(l.num_query_heads == whole.num_query_heads / ranks);
        CHECK(l.head_dim == whole.head_dim);
        CHECK(l.window == whole.window);
        CHECK(l.cache_layer == whole.cache_layer);
        if (!whole.attends()) continue;
        // Fewer KV heads than ranks: several ranks hold the same one.
        CHECK(l.num_kv_heads == (whole.num_kv_heads >= ranks ? whole.num_kv_heads / ranks : 1));
        std::int32_t const first = shape.first_kv_head(i, rank, ranks);
        std::int32_t const first_query_head = rank * whole.num_query_heads / ranks;
        CHECK(first == first_query_head / whole.group());
        CHECK((first_query_head + l.num_query_heads - 1) / whole.group() == first + l.num_kv_heads - 1);
      }
    }
  }
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.tensor_parallel(0, 3); },
                                                 {"heads of a layer", "3 ranks", "8 query heads", "layer 0"});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.tensor_parallel(2, 2); },
                                                 {"rank", "[0, 2)", "2", "tensor_parallel"});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.tensor_parallel(0, 0); },
                                                 {"ranks", "> 0", "0", "tensor_parallel"});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.first_kv_head(0, 0, 0); },
                                                 {"ranks", "> 0", "0", "first_kv_head"});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.first_kv_head(0, 7, 4); },
                                                 {"rank", "[0, 4)", "7", "first_kv_head"});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.first_kv_head(0, 0, 3); },
                                                 {"heads of a layer", "3 ranks", "8 query heads", "layer 0"});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)shape.first_kv_head(5, 0, 2); },
                                                 {"layer", "[0, 5)", "5", ""});
  CHECK(shape.first_kv_head(2, 1, 3) == 0);
  headaware_test::check_error<ha::ArgumentError>(
      [] { (void)ha::ModelShape({ha::LayerShape{.num_query_heads = 6, .num_kv_heads = 3}}).tensor_parallel(0, 2); },
      {"heads of a layer", "2 ranks", "3 KV heads", "layer 0"});
}
