// The front door with a model whose layers differ.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/mixed_model.hpp"

#include <headaware/cache/packed_rows.hpp>
#include <headaware/compressor.hpp>
#include <headaware/format/table.hpp>
#include <headaware/io/model_shape.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

std::vector<std::int32_t> const lengths{23, 5, 0, 14};

}  // namespace

TEST_CASE("one call compresses a model whose layers differ", "[compressor]") {
  ha::ModelShape const shape = mixed_shape();
  ha::Compressor const compressor(shape, mixed_table(shape));
  CHECK(compressor.model() == shape);
  MixedTensors tensors(shape, 4, 0, 23);
  std::vector<std::int32_t> const skipped{3};
  auto const cache = compressor.compress(tensors.layers(), ha::per_layer(tensors.layouts), lengths, shape, skipped);
  CHECK(cache.head_dim == 24);
  CHECK(cache.value_dim == 16);
  std::int64_t bytes = 0;
  FirstDifference difference;
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    ha::LayerShape const& l = shape.layer(layer);
    std::int64_t const key = l.head_dim;
    std::int64_t const value = l.kind == ha::LayerKind::latent ? 0 : l.value_dim;
    for (std::int32_t b = 0; b < 4; ++b) {
      for (std::int32_t h = 0; h < compressor.table().num_kv_heads(layer); ++h) {
        auto const policy = layer == 3 ? ha::AnyPolicy<>(ha::Full{}) : compressor.head_config(layer, h);
        auto const keys = cache.head_keys(layer, b, h);
        auto const values = cache.head_values(layer, b, h);
        std::int64_t row = 0;
        for (std::int64_t token = 0; token < lengths[static_cast<std::size_t>(b)]; ++token) {
          bool const kept = policy.visit(
              [&](auto const& p) { return p.keeps(token, std::int64_t{lengths[static_cast<std::size_t>(b)]}); });
          if (!kept) continue;
          for (std::int64_t c = 0; c < key; ++c) {
            difference.expect(keys[static_cast<std::size_t>(row * key + c)],
                              mixed_element(layer, false, b, h, token, c), "key of layer ", layer);
          }
          for (std::int64_t c = 0; c < value; ++c) {
            difference.expect(values[static_cast<std::size_t>(row * value + c)],
                              mixed_element(layer, true, b, h, token, c), "value of layer ", layer);
          }
          ++row;
        }
        CHECK(keys.size() == static_cast<std::size_t>(row * key));
        CHECK(values.size() == static_cast<std::size_t>(row * value));
        bytes += row * (key + value) * 4;
      }
    }
  }
  REQUIRE(difference.text() == "");
  CHECK(cache.cache_info().bytes == bytes);
  CHECK(static_cast<std::int64_t>((cache.keys.size() + cache.values.size()) * sizeof(float)) == bytes);
}

TEST_CASE("tables from all that the front door takes keep within the layers", "[compressor]") {
  using Policy = ha::AnyPolicy<>;
  ha::ModelShape const shape = mixed_shape();
  auto const streaming = ha::Compressor::from_model_config(shape);
  CHECK(streaming.head_config(0, 0) == Policy(ha::SinkWindow{4, 508}));
  CHECK(streaming.head_config(1, 1) == Policy(ha::WindowOnly{7}));
  check_error<ha::ArgumentError>([&] { (void)streaming.head_config(2, 0); }, {"KV head", "[0, 0)", "0", ""});

  // A table that knows no windows is bounded by them.
  ha::ModelShape const slides(
      std::vector<ha::LayerShape>{{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .value_dim = 8},
                                  {.kind = ha::LayerKind::sliding,
                                   .num_query_heads = 4,
                                   .num_kv_heads = 2,
                                   .head_dim = 8,
                                   .value_dim = 8,
                                   .window = 16}});
  ha::Compressor const bounded(slides, ha::PolicyTable(2, 2, ha::SinkWindow{4, 8}));
  CHECK(bounded.head_config(0, 0) == Policy(ha::SinkWindow{4, 8}));
  CHECK(bounded.head_config(1, 0) == Policy(ha::WindowOnly{12}));
  CHECK(ha::Compressor(slides, ha::PolicyTable(2, 2)).head_config(1, 1) == Policy(ha::WindowOnly{16}));
  check_error<ha::ArgumentError>([&] { (void)ha::Compressor(slides, ha::PolicyTable(2, 1)); },
                                 {"table's KV heads", "2", "1", "Compressor"});
  check_error<ha::ArgumentError>([&] { (void)ha::Compressor(slides, ha::PolicyTable(3, 2)); },
                                 {"table's layers", "2", "3", "Compressor"});
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::Compressor(ha::ModelConfig{2, 4, 2, 8}, ha::PolicyTable(slides));
      },
      {"table's window", "0", "16", "Compressor"});

  TemporaryFolder const folder;
  ha::write_file(folder / "config.json", R"({"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "model_type": "gemma3_text", "sliding_window": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]})");
  auto const gemma = ha::Compressor::from_model_config(folder / "config.json", ha::Full{});
  CHECK(gemma.model().layer(3).window == 32);
  CHECK(gemma.head_config(0, 0) == Policy(ha::WindowOnly{32}));
  CHECK(gemma.head_config(2, 1) == Policy(ha::Full{}));
}

TEST_CASE("a summary counts the heads that there are, against what their layers see", "[compressor]") {
  ha::ModelShape const shape = mixed_shape();
  auto const full = ha::Compressor::from_model_config(shape, ha::Full{}).compression_summary(100);
  CHECK(full.full_total == 6 * 100 + 6 * 7);
  CHECK(full.kept_total == full.full_total);
  CHECK(full.ratio == 1);
  auto const summary = ha::Compressor(shape, mixed_table(shape)).compression_summary(100);
  CHECK(summary.kept_total == 100 + 7 + 0 + 9 + 7 + 4 + 10 + 100 + 7 + 7 + 7 + 0);
  std::int64_t heads = 0;
  for (std::int64_t const count : summary.heads) heads += count;
  CHECK(heads == 12);
  CHECK(to_string(summary).find("all                    12") != std::string::npos);
}

TEST_CASE("a summary of heads with formats of their own counts bytes", "[compressor]") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{4, 28});
  table.set(1, 1, ha::Full{});
  ha::Compressor const compressor(ha::ModelConfig{2, 4, 2, 64}, table);
  ha::FormatTable formats(2, 2, {ha::Packed<5>{}, ha::Packed<4>{}});
  formats.set(0, 1, {ha::Int8{}, ha::Fp16{}});
  auto const summary = compressor.compression_summary(100, formats, 64);
  CHECK(summary.kept_total == compressor.compression_summary(100).kept_total);
  CHECK(summary.full_bytes == 400 * 256);
  CHECK(summary.held_bytes == (32 + 32 + 100) * 80 + 32 * 208);  // 68 + 128 bytes, whole units
  CHECK(summary.formats == std::vector<std::string>{"packed5/packed4", "int8/fp16"});
  CHECK(summary.format_heads == std::vector<std::int64_t>{3, 1});
  std::string const text = to_string(summary);
  CHECK(text.find("packed5/packed4              3") != std::string::npos);
  CHECK(text.find("19776 bytes, 19.31% of the cache in 16 bits, 102400") != std::string::npos);

  ha::ModelShape const shape = mixed_shape();
  ha::Compressor const mixed(shape, mixed_table(shape));
  ha::FormatTable const of_mixed(shape, {ha::Packed<6>{}, ha::Packed<4>{}});
  std::vector<std::int32_t> const length{100};
  auto const planned = ha::packed_ragged(mixed.compaction(length), of_mixed, shape);
  CHECK(mixed.compression_summary(100, of_mixed, shape).held_bytes == planned.total_bytes());
  check_error<ha::ArgumentError>([&] { (void)mixed.compression_summary(100, formats, shape); },
                                 {"format table's layers", "", "2", "compression_summary"});
}
