// Cuts a few layers and tokens out of a capture, for shipping: how examples/data was made.

#include "support/capture.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

ha::NpyArray cut(ha::NpyArray const& array, std::vector<std::int32_t> const& layers, std::int64_t tokens) {
  std::int64_t const heads = array.shape[1];
  std::int64_t const length = array.shape[2];
  std::int64_t const channels = array.shape[3];
  std::int64_t const kept = std::min(tokens, length);
  auto const from = ha::strided_bhsd(array.shape[0], heads, length, channels);
  std::vector<ha::float16> data;
  for (std::int32_t const layer : layers) {
    for (std::int64_t head = 0; head < heads; ++head) {
      auto const rows = array.as<ha::float16>().subspan(static_cast<std::size_t>(from.offset(layer, head, 0, 0)),
                                                        static_cast<std::size_t>(kept * channels));
      data.insert(data.end(), rows.begin(), rows.end());
    }
  }
  return ha::NpyArray::of({static_cast<std::int64_t>(layers.size()), heads, kept, channels},
                          std::span<ha::float16 const>(data));
}

}  // namespace

int main(int argc, char** argv) {
  std::filesystem::path input;
  std::filesystem::path output;
  std::vector<std::int32_t> layers;
  std::int64_t tokens = 1 << 30;
  CLI::App app{"Cuts layers and tokens out of a capture"};
  app.add_option("input", input, "folder with head_statistics.json and NAME_k.npy, NAME_v.npy")->required();
  app.add_option("output", output, "new folder")->required();
  app.add_option("--layers", layers, "layers to keep")->required()->check(CLI::NonNegativeNumber);
  app.add_option("--tokens", tokens, "tokens to keep of each sequence")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    capture::Capture const capture = capture::load(input);
    for (std::int32_t const layer : layers) {
      ha::detail::require_index(layer, static_cast<std::int64_t>(capture.layers.size()), "layer", "--layers");
    }
    std::filesystem::create_directories(output);
    ha::save_statistics(output / "head_statistics.json", capture.statistics);
    std::vector<std::int32_t> model_layers;
    for (std::int32_t const layer : layers) model_layers.push_back(capture.layers[static_cast<std::size_t>(layer)]);
    ha::write_file(output / "capture.json", nlohmann::json{{"layers", model_layers}}.dump(2) + "\n");
    for (auto const& sequence : capture.sequences) {
      ha::save_npy(output / (sequence.name + "_k.npy"), cut(sequence.keys, layers, tokens));
      ha::save_npy(output / (sequence.name + "_v.npy"), cut(sequence.values, layers, tokens));
    }
  } catch (std::exception const& error) {
    std::fprintf(stderr, "cut_capture: %s\n", error.what());
    return 1;
  }
  return 0;
}
