// Captures of models whose layers differ: arrays of single layers, latents, learned sinks.

#include "tools/support/capture.hpp"

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "tools/analysis/captured_source.hpp"
#include "tools/support/cache_batch.hpp"

#include <headaware/element.hpp>
#include <headaware/io/file.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// [heads, tokens, channels] of numbers from `first` on.
void save_rows(std::filesystem::path const& path, std::int64_t heads, std::int64_t tokens, std::int64_t channels,
               float first) {
  std::vector<ha::float16> elements;
  for (std::int64_t i = 0; i < heads * tokens * channels; ++i) {
    elements.push_back(ha::from_float<ha::float16>(first + static_cast<float>(i)));
  }
  ha::save_npy(path, ha::NpyArray::of({heads, tokens, channels}, std::span<ha::float16 const>(elements)));
}

/// A sliding layer with sinks, then a latent: layers 1 and 4 of 6. One sequence of 5 tokens, one of 3.
void write_capture(std::filesystem::path const& folder) {
  for (auto const& [name, tokens] : {std::pair("chunk0", 5), {"chunk1", 3}}) {
    auto const path = [&](char const* rest) { return folder / (std::string(name) + rest); };
    save_rows(path("_layer1_q.npy"), 4, tokens, 8, 0);
    save_rows(path("_layer1_k.npy"), 2, tokens, 8, 100);
    save_rows(path("_layer1_v.npy"), 2, tokens, 6, 200);
    save_rows(path("_layer4_q.npy"), 3, tokens, 10, 0);
    save_rows(path("_layer4_k.npy"), 1, tokens, 10, 300);
  }
  std::vector<float> const sinks{0.5F, 1, -1, 2};
  ha::save_npy(folder / "layer1_sinks.npy", ha::NpyArray::of({4}, std::span<float const>(sinks)));
  ha::write_file(folder / "capture.json", R"({"layers": [1, 4], "sinks": [1], "model": {"num_layers": 6}, "shapes": [
    {"kind": "sliding", "num_query_heads": 4, "num_kv_heads": 2, "head_dim": 8, "value_dim": 6, "window": 3,
     "scale": 0.25},
    {"kind": "latent", "num_query_heads": 3, "num_kv_heads": 1, "head_dim": 10, "value_dim": 7, "scale": 0.5,
     "soft_cap": 30}]})");
}

}  // namespace

TEST_CASE("layers that differ have arrays of their own", ) {
  TemporaryFolder const folder;
  write_capture(folder.path());
  auto const arrays = capture::load_arrays(folder.path());
  CHECK(arrays.layers == std::vector<std::int32_t>{1, 4});
  CHECK(arrays.sliding_windows == std::vector<std::int32_t>{3, 0});
  REQUIRE(arrays.each.size() == 2);
  CHECK(arrays.each[0].shape.window == 3);
  CHECK(arrays.each[0].scale == 0.25F);
  CHECK(arrays.each[0].sinks == std::vector<float>{0.5F, 1, -1, 2});
  CHECK(arrays.each[1].shape.kind == ha::LayerKind::latent);
  CHECK(arrays.each[1].soft_cap == 30);
  CHECK(arrays.each[1].sinks.empty());
  REQUIRE(arrays.sequences.size() == 2);
  CHECK(arrays.sequences[1].name == "chunk1");
  CHECK(arrays.sequences[0].length() == 5);
  auto const latent = arrays.sequences[0].rows<ha::float16>(1);
  CHECK(latent.values == latent.keys);

  analysis::CapturedSource source(folder.path(), 0, 0);
  CHECK(source.model() == ha::ModelShape({arrays.each[0].shape, arrays.each[1].shape}));
  CHECK(source.layers() == arrays.layers);
  std::vector<std::int32_t> seen;
  source.run(1, [&](analysis::LayerAttention const& layer) {
    auto const& qkv = std::get<analysis::Qkv<ha::float16>>(layer.qkv);
    seen.push_back(layer.layer);
    CHECK(qkv.tokens == 3);
    CHECK((qkv.sinks != nullptr) == (layer.layer == 0));
    CHECK((qkv.values == qkv.keys) == (layer.layer == 1));
    CHECK(layer.score.scale == (layer.layer == 0 ? 0.25F : 0.5F));
    CHECK(layer.score.sliding_window == (layer.layer == 0 ? 3 : 0));
    // The last token's first channel of the last KV head.
    std::int32_t const head = qkv.num_kv_heads - 1;
    float const key = ha::to_float(qkv.keys[qkv.key_layout.offset(qkv.sequence, head, 2, 0)]);
    CHECK(key == (layer.layer == 0 ? 100.0F + 5 * 8 : 300.0F + 2 * 10));
  });
  CHECK(seen == std::vector<std::int32_t>{0, 1});

  auto const batch = support::CacheBatch::captured(arrays);
  CHECK(batch.lengths() == std::vector<std::int32_t>{5, 3});
  auto const number = [](std::uint16_t const* bits) { return ha::to_float(ha::float16{*bits}); };
  CHECK(number(batch.key(0, 1, 1, 2)) == 100 + 5 * 8);
  CHECK(number(batch.value(0, 1, 1, 2)) == 200 + 5 * 6);
  CHECK(number(batch.key(1, 0, 0, 4)) == 300 + 4 * 10);
  CHECK(batch.channels().of(1).value_dim == 0);
}

TEST_CASE("captured layers are what capture.json says", ) {
  TemporaryFolder const folder;
  write_capture(folder.path());
  auto const path = folder / "capture.json";
  std::string const json = ha::read_text_file(path);
  auto const refused = [&](std::string const& from, std::string const& to, ha::ErrorDetail const& parts) {
    INFO(to);
    std::string changed = json;
    REQUIRE(changed.find(from) != std::string::npos);
    ha::write_file(path, changed.replace(changed.find(from), from.size(), to));
    check_error<ha::FormatError>([&] { (void)capture::load_arrays(folder.path()); }, parts);
  };
  refused(R"("head_dim": 8)", R"("head_dim": 9)",
          {"captured arrays of a layer", "[2 heads, tokens, 9 channels], as capture.json says", "another shape",
           "chunk0_layer1_k.npy"});
  refused(R"("kind": "latent")", R"("kind": "none")", {"captured layer", "one with keys", "", "/shapes/1"});
  refused(R"("kind": "latent")", R"("kind": "other")", {"unknown kind of layer", "sliding", "other", "/shapes/1"});
  refused(R"("num_kv_heads": 2)", R"("num_kv_heads": 3)", {"num_query_heads", "a multiple", "4", "/shapes/0"});
  refused(R"("num_kv_heads": 2)", R"("num_kv_heads": 0)", {"capture.json", "an integer in [1,", "0", "/shapes/0"});
  refused(R"("window": 3,)", "", {"missing field", "an integer", "", "/shapes/0/window"});
  refused(R"("scale": 0.25)", R"("scale": 0)", {"scale", "a number > 0", "0", "/shapes/0/scale"});
  refused(R"("layers": [1, 4])", R"("layers": [1])", {"shapes", "as many as layers: 1", "2", "/shapes"});
  refused(R"("num_layers": 6)", R"("num_layers": 4)", {"captured layers", "2 layers of 4", "", "capture.json"});
  refused(R"("sinks": [1])", R"("sinks": [2])", {"layers with learned sinks", "captured", "2", "capture.json"});
  ha::write_file(path, json);
  save_rows(folder / "chunk1_layer4_k.npy", 1, 4, 10, 0);
  check_error<ha::FormatError>([&] { (void)capture::load_arrays(folder.path()); },
                               {"captured arrays of a layer", "3 tokens", "another", "chunk1_layer4_k.npy"});
  std::filesystem::remove(folder / "chunk1_layer4_k.npy");
  CHECK_THROWS_AS(capture::load_arrays(folder.path()), ha::FileError);
  save_rows(folder / "chunk1_layer4_k.npy", 1, 3, 10, 0);
  std::filesystem::remove(folder / "layer1_sinks.npy");
  CHECK_THROWS_AS(capture::load_arrays(folder.path()), ha::FileError);
  save_rows(folder / "layer1_sinks.npy", 1, 1, 4, 0);
  check_error<ha::FormatError>([&] { (void)capture::load_arrays(folder.path()); },
                               {"learned sinks", "float32 [4 query heads]", "another", "layer1_sinks.npy"});
}
