#pragma once

/// @file
/// Reads the cache of every layer of a model from the metadata of a GGUF file.

#include <headaware/config.hpp>
#include <headaware/io/detail/gguf_layers.hpp>
#include <headaware/io/detail/gguf_metadata.hpp>
#include <headaware/io/file.hpp>
#include <headaware/model_shape.hpp>

#include <fcntl.h>

#include <cstddef>
#include <span>
#include <string>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Reads the cache of every layer from the beginning of a GGUF file, as llama.cpp would make it. Known are one
/// kind of layers throughout, sliding windows (`attention.sliding_window_pattern`, or the turns that llama.cpp knows by
/// the architecture: Gemma 2 and 3, Cohere 2, gpt-oss, OLMo 3 and others), layers without keys and values
/// (`attention.head_count_kv` of 0, `full_attention_interval`, `attention.recurrent_layers`), other heads in some
/// layers
/// (`attention.key_length_swa`, lists), one latent for all heads (`attention.kv_lora_rank`) and shared caches
/// (`attention.shared_kv_layers`). An architecture that is not known, with keys as Llama has them, is uniform, unless
/// its name is one of a family with recurrent layers.
///
/// A latent is read as one, also from files of before llama.cpp stored it so (without `attention.key_length_mla`).
/// Keys that an index of a latent's rows keeps for itself (`attention.indexer.*`) are no part of the shape or of its
/// bytes (`ModelShape::token_bytes`), nor are blocks that only predict further tokens (`nextn_predict_layers`).
/// @par Source  llama.cpp, src/llama-model.cpp and src/models; GGUF: ggml, docs/gguf.md
/// @param bytes  the file, or as much of it as holds its keys and values: tensors are not looked at
/// @param source_name  names the bytes in messages, for example their path
/// @throws FormatError naming key and offset, if this is no GGUF file of version 2 or 3, it ends early, a key is
///         missing, not of its type or out of range, or changes the cache in a way that is not known here: such a key
///         is never passed over
/// @note  Costs O(keys and values).
template <class = void>
[[nodiscard]] ModelShape parse_gguf_shape(std::span<std::byte const> bytes, std::string source_name) {
  detail::GgufBytes from(bytes, std::move(source_name));
  detail::GgufMetadata const metadata(from);
  return ModelShape(detail::GgufReader(metadata).read());
}

/// @brief `parse_gguf_shape` of a file, of which it reads the keys and values alone.
/// @throws FormatError as there, FileError if the file cannot be read
template <class = void>
[[nodiscard]] ModelShape load_gguf_shape(FilePath const& path) {
  FileDescriptor const file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  detail::GgufBytes from(path, file);
  detail::GgufMetadata const metadata(from);
  return ModelShape(detail::GgufReader(metadata).read());
}

HEADAWARE_NAMESPACE_END
