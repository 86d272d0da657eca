#pragma once

// The models and the text that these tests run on.

#include "support/catch.hpp"
#include "support/files.hpp"
#include "tools/llama/engine.hpp"
#include "tools/llama/exact_copy.hpp"

#include <headaware/io/file.hpp>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace headaware_test {

constexpr auto smollm2 = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr auto gemma3 = "gemma-3-270m-q4_k_m.gguf";

/// The path of a model in the folder that the environment names, or an empty one.
inline std::filesystem::path model_path(std::string const& name) {
  char const* const folder = std::getenv("HEADAWARE_MODELS");
  if (folder == nullptr) return {};
  auto const path = std::filesystem::path(folder) / name;
  return std::filesystem::exists(path) ? path : std::filesystem::path();
}

/// Its copy in single precision: what two ways of computing are compared on.
inline std::filesystem::path exact_model_path(std::string const& name) {
  auto const path = model_path(name);
  return llama_adapter::exact_copy(path, path.parent_path() / "exact");
}

/// The first tokens of a real text, after a BOS token where the model wants one. Without reference data, a few
/// sentences over and over.
inline std::vector<std::int32_t> text_tokens(llama_adapter::Model const& model, std::size_t count) {
  std::string text;
  if (!shared_data().empty()) {
    text = headaware::read_text_file(shared_data() / "text" / "wikitext-2-test.txt").substr(0, count * 8);
  } else {
    for (std::size_t i = 0; i <= count / 16; ++i) {
      text += "The lighthouse at the end of pier " + std::to_string(i * i) +
              " was built of grey stone, and its keeper wrote down every ship that passed before dawn. ";
    }
  }
  auto tokens = model.tokenize(text, true);
  REQUIRE(tokens.size() >= count);
  tokens.resize(count);
  return tokens;
}

}  // namespace headaware_test

/// The first statement of every case that runs a model: skips it where the model is not there.
#define HEADAWARE_REQUIRE_MODEL(name)                                               \
  do {                                                                              \
    if (headaware_test::model_path(name).empty()) {                                 \
      HEADAWARE_SKIP("HEADAWARE_MODELS names no folder with " + std::string(name)); \
    }                                                                               \
  } while (false)
