// The commands, run as a user would, on models whose layers differ: captures and what reads them, compressed caches,
// generate and benchmark.

#include "llama/models.hpp"
#include "llama/synthetic_models.hpp"
#include "support/errors.hpp"
#include "tools/analysis/analysis.hpp"
#include "tools/analysis/captured_source.hpp"
#include "tools/llama/model_source.hpp"

#include <headaware/io/plan.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/plan/planner.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

struct Kind {
  char const* name;
  void (*write)(std::filesystem::path const&);
};

std::vector<Kind> kinds() {
  return {{"sliding", write_sliding_model},
          {"hybrid", [](std::filesystem::path const& path) { write_hybrid_model(path, 0); }},
          {"sliding hybrid", [](std::filesystem::path const& path) { write_hybrid_model(path, synthetic_window); }},
          {"sinks", write_sinks_model},
          {"latent", write_latent_model},
          {"heads", write_heads_model}};
}

std::string quoted(std::filesystem::path const& path) { return "'" + path.string() + "'"; }

struct Ended {
  bool well;
  std::string printed;
};
Ended run(std::string const& command, std::filesystem::path const& log) {
  bool const well = std::system((command + " > " + quoted(log) + " 2>&1").c_str()) == 0;
  return {well, ha::read_text_file(log)};
}
bool has(Ended const& ended, char const* text) { return ended.printed.find(text) != std::string::npos; }

/// Statistics of a source, and its own plan beside them: plan.json.
ha::RetentionStatistics analyzed(analysis::AttentionSource& source, std::filesystem::path const& folder,
                                 std::int64_t context = 128) {
  analysis::AnalysisOptions options{.output_dir = folder, .parameters = {}};
  options.parameters.retention = ha::RetentionGrid::up_to(context);
  std::filesystem::create_directory(folder);
  auto const analysis = analysis::analyze(source, options);
  analysis::write_results(analysis, source, folder);
  auto statistics = ha::load_retention_statistics(folder / "retention_statistics.json");
  ha::save_plan(folder / "plan.json", ha::plan_policies(statistics, ha::Budget::share(0.5), context));
  return statistics;
}

}  // namespace

TEST_CASE("captures of models whose layers differ: the model's statistics, and every form of a compressed cache") {
  TemporaryFolder const folder;
  ha::write_file(folder / "text.txt", numbered_text(400));
  for (Kind const& kind : kinds()) {
    INFO(kind.name);
    auto const model = folder / "model.gguf";
    auto const captured = folder / (std::string(kind.name) + " capture");
    kind.write(model);
    auto const made =
        run(std::string(HEADAWARE_CAPTURE_PROGRAM) + " --model " + quoted(model) + " --text " +
                quoted(folder / "text.txt") + " --chunk_size 128 --max_tokens 200 --output_dir " + quoted(captured),
            folder / "log");
    INFO(made.printed);
    REQUIRE(made.well);
    auto const arrays = capture::load_arrays(captured);
    bool const single = std::filesystem::exists(captured / "chunk0_k.npy");
    CHECK(single == (std::string(kind.name) == "sliding" || std::string(kind.name) == "sinks"));
    CHECK(arrays.sequences.size() == 2);
    CHECK(arrays.sequences[0].length() == 128);

    auto const source = llama_adapter::model_source(
        {.model = model, .text = folder / "text.txt", .cache_dir = {}, .chunk_size = 128, .max_tokens = 200});
    std::size_t layer = 0;
    for (std::int32_t i = 0; i < source->model().num_layers(); ++i) {
      if (!source->model().layer(i).has_cache()) continue;
      REQUIRE(layer < arrays.each.size());
      CHECK(arrays.layers[layer] == i);
      CHECK(arrays.each[layer].shape == source->model().layer(i));
      CHECK(arrays.each[layer].sinks.empty() == (std::string(kind.name) != "sinks"));
      ++layer;
    }
    CHECK(arrays.each.size() == layer);

    analysis::CapturedSource from_arrays(captured, 0, 0);
    auto const of_model = analyzed(*source, folder / (std::string(kind.name) + " model"));
    auto const of_arrays = analyzed(from_arrays, folder / (std::string(kind.name) + " arrays"));
    REQUIRE(of_arrays.heads.size() == of_model.heads.size());
    for (std::size_t head = 0; head < of_model.heads.size(); ++head) {
      auto const& a = of_arrays.heads[head];
      auto const& b = of_model.heads[head];
      REQUIRE(a.rows == b.rows);
      for (std::size_t cell = 0; cell < a.mass.size(); ++cell) {
        // Rows in half precision.
        REQUIRE(std::abs(a.mass[cell] - b.mass[cell]) <= 1e-2 * b.mass[cell] + 1e-2);
        REQUIRE(std::abs(a.error_squared[cell] - b.error_squared[cell]) <= 3e-2 * b.error_squared[cell] + 1e-2);
      }
    }

    // Plans of the whole model and of the captured layers alone; rows of the capture, and numbered ones.
    for (char const* const of : {" model", " arrays"}) {
      std::string const plan = " --plan " + quoted(folder / (kind.name + std::string(of)) / "plan.json");
      for (std::string const& rows : {" --capture " + quoted(captured), std::string(" --tokens 150")}) {
        auto const compressed = run(HEADAWARE_COMPRESS_PROGRAM + plan + rows, folder / "log");
        INFO(plan << rows << "\n" << compressed.printed);
        CHECK(compressed.well);
        for (char const* const form : {"ragged", "padded left", "padded right", "grouped", "paged", "in place"}) {
          CHECK(has(compressed, form));
        }
      }
      std::string const classes = " --results_dir " + quoted(folder / (kind.name + std::string(of)));
      auto const compressed = run(HEADAWARE_COMPRESS_PROGRAM + classes + " --classifications " +
                                      quoted(folder / (kind.name + std::string(of)) / "head_classifications.json") +
                                      " --capture " + quoted(captured),
                                  folder / "log");
      INFO(classes << "\n" << compressed.printed);
      CHECK(compressed.well);
    }
  }
  // A plan of another model is refused by layer and field.
  auto const other = run(HEADAWARE_COMPRESS_PROGRAM " --plan " + quoted(folder / "latent model/plan.json") +
                             " --capture " + quoted(folder / "sinks capture"),
                         folder / "log");
  CHECK_FALSE(other.well);
  CHECK(has(other, "layers of the capture: expected 2 as the policies have, got 4"));
  auto const heads = run(HEADAWARE_COMPRESS_PROGRAM " --plan " + quoted(folder / "sliding model/plan.json") +
                             " --capture " + quoted(folder / "sinks capture"),
                         folder / "log");
  CHECK_FALSE(heads.well);
  CHECK(has(heads, "KV heads of a captured layer: expected 1 as the policies have, got 2"));
  CHECK(has(heads, "layer 0"));
}

TEST_CASE("some layers are captured, and a capture of single layers that ended early is made again") {
  TemporaryFolder const folder;
  write_heads_model(folder / "model.gguf");
  ha::write_file(folder / "text.txt", numbered_text(100));
  std::string const command = std::string(HEADAWARE_CAPTURE_PROGRAM) + " --model " + quoted(folder / "model.gguf") +
                              " --text " + quoted(folder / "text.txt") + " --chunk_size 50 --layers 0,2 --output_dir " +
                              quoted(folder / "capture");
  REQUIRE(run(command, folder / "log").well);
  auto const arrays = capture::load_arrays(folder / "capture");
  CHECK(arrays.layers == std::vector<std::int32_t>{0, 2});
  CHECK(arrays.num_layers == 3);
  CHECK(arrays.each[1].shape.num_kv_heads == 2);
  auto const path = folder / "capture/capture.json";
  // A capture that ended early is removed with all its arrays.
  std::filesystem::remove(path);
  ha::write_file(folder / "capture" / capture::unfinished_name, "");
  ha::write_file(folder / "capture/layer0_sinks.npy", "");
  REQUIRE(run(command, folder / "log").well);
  CHECK_FALSE(std::filesystem::exists(folder / "capture/layer0_sinks.npy"));
  CHECK(capture::load_arrays(folder / "capture").sequences.size() == arrays.sequences.size());
}

TEST_CASE("generate tells what it holds of what the model's own cache would, and what it cannot decode") {
  TemporaryFolder const folder;
  auto const model = folder / "model.gguf";
  std::string const command = std::string(HEADAWARE_GENERATE_PROGRAM) + " --model " + quoted(model) + " -n 4";
  for (Kind const& kind : kinds()) {
    INFO(kind.name);
    kind.write(model);
    auto const ended = run(command + " --policy full", folder / "log");
    INFO(ended.printed);
    if (std::string(kind.name) == "sliding hybrid") {
      CHECK_FALSE(ended.well);
      CHECK(has(ended, "kind of layer 1: expected attention or none beside recurrent layers"));
      CHECK(has(ended, "got sliding (architecture 'lfm2')"));
      continue;
    }
    CHECK(ended.well);
    CHECK(has(ended, "(100.0 % held)"));
  }
  write_sliding_model(model);
  auto const ended = run(command + " --window 6 --sink 0 --prompt '" + numbered_text(200) + "'", folder / "log");
  INFO(ended.printed);
  CHECK(ended.well);
  CHECK(has(ended, "6.0 of them kept per KV head"));
  // 12 of the 205 and the 24 tokens that each pair of layers would hold.
  CHECK(has(ended, "(5.2 % held)"));
}

#ifdef HEADAWARE_BENCHMARK_PROGRAM
TEST_CASE("benchmark runs a plan that it is given") {
  TemporaryFolder const folder;
  auto const model = folder / "model.gguf";
  write_sliding_model(model);
  ha::write_file(folder / "text.txt", numbered_text(600));
  auto const source = llama_adapter::model_source(
      {.model = model, .text = folder / "text.txt", .cache_dir = {}, .chunk_size = 256, .max_tokens = 256});
  (void)analyzed(*source, folder / "results", 256);
  std::string const command = std::string(HEADAWARE_BENCHMARK_PROGRAM) + " --model " + quoted(model) + " --text " +
                              quoted(folder / "text.txt") + " --context 256 --passages 2 --copies 0 --masked" +
                              " --plan " + quoted(folder / "results/plan.json");
  auto const ended = run(command + " --output_dir " + quoted(folder / "all"), folder / "log");
  INFO(ended.printed);
  CHECK(ended.well);
  for (char const* const method : {"full", "streaming_llm", "planned"}) CHECK(has(ended, method));
  auto const refused =
      run(command + " --method full,streaming_llm --output_dir " + quoted(folder / "two"), folder / "log");
  CHECK_FALSE(refused.well);
  CHECK(has(refused, "--plan: expected --method planned too"));
}
#endif
