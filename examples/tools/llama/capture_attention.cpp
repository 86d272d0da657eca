// Runs a model over a text and writes queries, keys and values of its attention: a capture (support/capture.hpp).

#include "tools/llama/attention_tap.hpp"
#include "tools/llama/chunk_capture.hpp"
#include "tools/llama/engine.hpp"
#include "tools/llama/exact_copy.hpp"
#include "tools/llama/text_chunks.hpp"
#include "tools/llama/unfinished_capture.hpp"
#include "tools/support/command.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/json_text.hpp"
#include "tools/support/options.hpp"

#include <headaware/io/file.hpp>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

struct Options {
  support::ModelOptions run;
  std::filesystem::path text;
  std::filesystem::path output_dir;
  std::int32_t chunk_size = 512;
  std::int64_t max_tokens = 0;
  std::vector<std::int32_t> layers;

  void add_to(CLI::App& app) {
    run.add_model(app)->required();
    support::add_text(app, text, "text file")->required();
    support::add_output_dir(app, output_dir, "new folder for the capture")->required();
    support::add_chunk_size(app, chunk_size, "tokens of a sequence", int{llama_adapter::shortest_chunk});
    support::add_max_tokens(app, max_tokens, "tokens of the text");
    app.add_option("--layers", layers, "layers to write, such as 0,10,18; default: all that have keys and values")
        ->delimiter(',')
        ->check(support::non_negative);
    run.add_ways_to_run(app);
  }
};

std::vector<std::int32_t> layers_of(ha::ModelShape const& shape, Options const& options) {
  std::vector<std::int32_t> layers = options.layers;
  for (std::int32_t layer = 0; options.layers.empty() && layer < shape.num_layers(); ++layer) {
    if (shape.layer(layer).has_cache()) layers.push_back(layer);
  }
  for (std::int32_t const layer : layers) {
    ha::require_index(layer, shape.num_layers(), "layer", "--layers");
    ha::require(shape.layer(layer).has_cache(), "layer", "one with keys and values of its own", layer, "--layers");
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

nlohmann::ordered_json description(llama_adapter::Model const& model, llama_adapter::ChunkCapture const& capture,
                                   Options const& options) {
  auto const& info = model.info();
  nlohmann::ordered_json result = {{"layers", capture.layers()},
                                   {"model",
                                    {{"name", info.name},
                                     {"architecture", info.architecture},
                                     {"file", options.run.model.filename().string()},
                                     {"num_layers", model.shape().num_layers()},
                                     {"single_precision_weights", options.run.exact}}}};
  if (capture.alike()) {
    std::vector<std::int64_t> windows;
    for (auto const& layer : capture.each()) windows.push_back(layer.shape.window);
    result["scale"] = capture.each().front().scale;
    result["soft_cap"] = capture.each().front().soft_cap;
    result["sliding_windows"] = windows;
  } else {
    auto& shapes = result["shapes"] = nlohmann::ordered_json::array();
    for (auto const& [shape, scale, soft_cap, sinks] : capture.each()) {
      auto& layer = shapes.emplace_back(nlohmann::ordered_json{{"kind", to_string(shape.kind)},
                                                               {"num_query_heads", shape.num_query_heads},
                                                               {"num_kv_heads", shape.num_kv_heads},
                                                               {"head_dim", shape.head_dim},
                                                               {"value_dim", shape.value_dim},
                                                               {"scale", scale},
                                                               {"soft_cap", soft_cap}});
      if (shape.window > 0) layer["window"] = shape.window;
    }
  }
  std::vector<std::int32_t> with_sinks;
  for (std::size_t i = 0; i < capture.layers().size(); ++i) {
    if (!capture.each()[i].sinks.empty()) with_sinks.push_back(capture.layers()[i]);
  }
  if (!with_sinks.empty()) result["sinks"] = with_sinks;
  result["first_position"] = 0;
  return result;
}

void run(Options const& options) {
  // Before anything that takes long.
  llama_adapter::Model const named(options.run.model);
  auto const layers = layers_of(named.shape(), options);
  auto const chunks = llama_adapter::chunks_of(named, ha::read_text_file(options.text), options.chunk_size,
                                               options.max_tokens, options.text.string());
  llama_adapter::UnfinishedCapture unfinished(options.output_dir);
  support::prepare_results(options.output_dir, {"tokens.json", "capture.json"});
  if (options.run.exact) {
    std::fprintf(stderr, "single precision: looking for a copy in %s\n", options.run.cache_dir.c_str());
  }
  llama_adapter::Model const model(options.run.to_run(llama_adapter::exact_copy));

  llama_adapter::ChunkCapture capture(layers, model.shape());
  llama_adapter::AttentionTap tap(model, [&](auto const& layer) { capture.take(layer); });
  llama_adapter::Context context(
      model, {.tokens = options.chunk_size, .all_logits = false, .threads = options.run.threads, .observer = &tap});
  auto const start = std::chrono::steady_clock::now();
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    context.evaluate(chunks[i]);
    capture.save(options.output_dir, "chunk" + std::to_string(i));
    tokens += chunks[i].size();
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr, "\rchunk %zu of %zu, %zu tokens, %.1f s", i + 1, chunks.size(), tokens, seconds);
  }
  std::fprintf(stderr, "\n");
  ha::write_file(options.output_dir / "tokens.json", support::json_text(nlohmann::json{{"tokens", chunks}}) + "\n");
  support::write_json(options.output_dir / "capture.json", description(named, capture, options));
  unfinished.finish();
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv, "Captures queries, keys and values of a model's attention over a text, with llama.cpp", run);
}
