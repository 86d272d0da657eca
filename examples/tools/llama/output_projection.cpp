#include "tools/llama/output_projection.hpp"

#include "tools/llama/engine_log.hpp"

#include <headaware/error.hpp>

#include <ggml.h>
#include <gguf.h>

#include <algorithm>
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
  ha::LayerShape const& shape = shape_.layer(index);
  std::string const at = "blk." + std::to_string(index) + ".";
  if (shape.kind != ha::LayerKind::latent) {
    return matrix(file.get(), at + "attn_output.weight",
                  {shape.num_query_heads * shape.value_dim, info_.hidden_size, 1});
  }
  // W_O of what each head makes of its sum of latents.
  std::string const unpacking = at + "attn_v_b.weight";
  std::int64_t const tensor = gguf_find_tensor(file.get(), unpacking.c_str());
  std::int64_t const unpacked = tensor < 0 ? 0 : gguf_get_tensor_ne(file.get(), tensor)[1];
  std::int64_t const heads = shape.num_query_heads;
  std::int64_t const rank = shape.value_dim;
  auto const values = matrix(file.get(), unpacking, {rank, unpacked, heads});
  auto const output = matrix(file.get(), at + "attn_output.weight", {heads * unpacked, info_.hidden_size, 1});
  std::vector<float> result(static_cast<std::size_t>(info_.hidden_size * heads * rank));
#pragma omp parallel for
  for (std::int64_t row = 0; row < info_.hidden_size; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      float* const to = result.data() + (row * heads + head) * rank;
      for (std::int64_t c = 0; c < unpacked; ++c) {
        float const weight = output[static_cast<std::size_t>((row * heads + head) * unpacked + c)];
        float const* const from = values.data() + (head * unpacked + c) * rank;
        for (std::int64_t r = 0; r < rank; ++r) to[r] += weight * from[r];
      }
    }
  }
  return result;
}

std::vector<float> OutputProjections::matrix(gguf_context const* file, std::string const& name,
                                             std::array<std::int64_t, 3> const& sizes) const {
  std::int64_t const tensor = gguf_find_tensor(file, name.c_str());
  if (tensor < 0) {
    throw ha::FormatError(
        {"output projection", "a tensor " + name, "none, architecture '" + info_.architecture + "'", path_.string()});
  }
  std::int64_t const* const ne = gguf_get_tensor_ne(file, tensor);
  if (!std::equal(sizes.begin(), sizes.end(), ne) || ne[3] != 1) {
    throw ha::FormatError({name, std::to_string(sizes[1]) + " rows of " + std::to_string(sizes[0]),
                           std::to_string(ne[1]) + " rows of " + std::to_string(ne[0]), path_.string()});
  }
  ggml_type const type = gguf_get_tensor_type(file, tensor);
  std::size_t const begin = gguf_get_data_offset(file) + gguf_get_tensor_offset(file, tensor);
  std::vector<std::byte> const data = read_at(path_, begin, gguf_get_tensor_size(file, tensor));
  std::vector<float> matrix(static_cast<std::size_t>(sizes[0] * sizes[1] * sizes[2]));
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
