#include "tools/llama/output_projection.hpp"

#include "tools/llama/engine_log.hpp"

#include <headaware/error.hpp>

#include <ggml.h>
#include <gguf.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

struct FreeFile {
  void operator()(gguf_context* file) const { gguf_free(file); }
};
using File = std::unique_ptr<gguf_context, FreeFile>;

/// The file's table of contents.
File open_file(std::filesystem::path const& path) {
  keep_engine_log();
  File file(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
  if (!file) throw ha::FormatError({"model", "a GGUF file", engine_errors(), path.string()});
  return file;
}

std::vector<std::byte> read_at(std::filesystem::path const& path, std::size_t offset, std::size_t bytes) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<std::byte> data(bytes);
  stream.seekg(static_cast<std::streamoff>(offset));
  stream.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(bytes));
  if (!stream) {
    throw ha::FileError(
        {"cannot read file", std::to_string(bytes) + " bytes at " + std::to_string(offset), "fewer", path.string()});
  }
  return data;
}

}  // namespace

OutputProjections::OutputProjections(std::filesystem::path path, ModelInfo info, ha::ModelShape shape)
    : path_(std::move(path)), info_(std::move(info)), shape_(std::move(shape)) {
  (void)open_file(path_);
}

std::vector<float> OutputProjections::layer(std::int32_t index) const {
  ha::require_index(index, shape_.num_layers(), "layer", "OutputProjections::layer");
  File const file = open_file(path_);
  std::string const name = "blk." + std::to_string(index) + ".attn_output.weight";
  std::int64_t const tensor = gguf_find_tensor(file.get(), name.c_str());
  if (tensor < 0) {
    throw ha::FormatError(
        {"output projection", "a tensor " + name, "none, architecture '" + info_.architecture + "'", path_.string()});
  }
  std::int64_t const* const ne = gguf_get_tensor_ne(file.get(), tensor);
  std::int64_t const columns = shape_.layer(index).num_query_heads * shape_.layer(index).value_dim;
  if (ne[0] != columns || ne[1] != info_.hidden_size || ne[2] != 1 || ne[3] != 1) {
    throw ha::FormatError({name, std::to_string(info_.hidden_size) + " rows of " + std::to_string(columns),
                           std::to_string(ne[1]) + " rows of " + std::to_string(ne[0]), path_.string()});
  }
  ggml_type const type = gguf_get_tensor_type(file.get(), tensor);
  std::size_t const begin = gguf_get_data_offset(file.get()) + gguf_get_tensor_offset(file.get(), tensor);
  std::vector<std::byte> const data = read_at(path_, begin, gguf_get_tensor_size(file.get(), tensor));
  std::vector<float> matrix(static_cast<std::size_t>(columns * info_.hidden_size));
  if (type == GGML_TYPE_F32) {
    std::memcpy(matrix.data(), data.data(), data.size());
    return matrix;
  }
  auto const to_float = ggml_get_type_traits(type)->to_float;
  if (to_float == nullptr) {
    throw ha::FormatError({name, "weights that can be converted", ggml_type_name(type), path_.string()});
  }
  to_float(data.data(), matrix.data(), static_cast<std::int64_t>(matrix.size()));
  return matrix;
}

}  // namespace llama_adapter
