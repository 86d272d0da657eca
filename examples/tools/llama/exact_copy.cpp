#include "tools/llama/exact_copy.hpp"

#include "tools/llama/engine_log.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>

#include <llama.h>

#include <chrono>
#include <string>
#include <system_error>

namespace llama_adapter {

namespace ha = headaware;

std::filesystem::path exact_copy(std::filesystem::path const& model, std::filesystem::path const& folder) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(model, error)) {
    throw ha::ArgumentError({"model", "the path of a GGUF file", "'" + model.string() + "'", "exact_copy"});
  }
  auto const changed =
      std::chrono::file_clock::to_sys(std::filesystem::last_write_time(model)).time_since_epoch().count();
  std::string const name = model.stem().string() + "-" + std::to_string(std::filesystem::file_size(model)) + "-" +
                           std::to_string(changed) + ".f32.gguf";
  std::filesystem::path copy = folder / name;
  if (std::filesystem::exists(copy)) return copy;

  std::filesystem::create_directories(folder);
  keep_engine_log();
  llama_backend_init();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  // Written under another name, so that a copy is whole or not there. Killed runs leave gigabytes.
  std::filesystem::path const unfinished = ha::unfinished_path(copy).string();
  auto const fail = [&](std::string const& reason) {
    std::filesystem::remove(unfinished, error);
    throw ha::FileError({"copy of a model in single precision", "room for it, and weights that llama.cpp can convert",
                         reason, copy.string()});
  };
  if (llama_model_quantize(model.c_str(), unfinished.c_str(), &params) != 0) fail(engine_errors());
  try {
    ha::finish_file(unfinished, copy);
  } catch (ha::FileError const& failed) {
    fail(failed.what());
  }
  return copy;
}

}  // namespace llama_adapter
