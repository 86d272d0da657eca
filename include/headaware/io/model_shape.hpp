#pragma once

/// @file
/// Reads the cache of every layer of a model from a Hugging Face `config.json`.

#include <headaware/config.hpp>
#include <headaware/io/detail/config_documents.hpp>
#include <headaware/io/file.hpp>
#include <headaware/model_shape.hpp>

#include <string>
#include <string_view>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Reads the cache of every layer from the text of a model's `config.json`. Where the document itself does not
/// count layers and heads, its `text_config`, `language_config` or `llm_config` is read: the language part of a
/// multimodal model. Where several of these objects describe the language model, they have to describe the same layers.
///
/// Known are: one kind of layers throughout; sliding windows of all layers or by turns (`layer_types`,
/// `sliding_window_pattern`, `hybrid_layer_pattern`, `max_window_layers`, `global_attn_every_n_layers`,
/// `attention_types`, or the model type alone: Gemma 2 and 3, Cohere 2, gpt-oss); layers without a cache
/// (`layer_types`, `layers_block_type`, `block_configs`, `hybrid_override_pattern`, `hybrid_block_layout`,
/// `attn_type_list`, `full_attention_interval`, `attn_layer_period`, `attn_layer_indices`, `attn_layer_idxs`,
/// `full_attn_idxs`, `linear_attn_config`); other heads in some of them (`global_head_dim`, `swa_*`, lists of one
/// number per layer); one latent for all heads (`kv_lora_rank`); shared caches (`num_kv_shared_layers`,
/// `kv_source_layers`); and the older names of all of these in GPT-2, MPT, Falcon, ChatGLM and others. Layers that only
/// predict further tokens
/// (`num_nextn_predict_layers`) are none of the model's; lists of its layers may go on with them.
///
/// Keys that an index of a latent's rows keeps for itself (`index_topk`, `index_head_dim`: DeepSeek-V3.2, GLM-5) are no
/// part of the shape, nor of its bytes: an engine that holds them needs more than `ModelShape::token_bytes`.
///
/// `Infinity` and `NaN`, which Python writes, are read as numbers.
/// @par Source  configuration_*.py and modeling_*.py of Hugging Face transformers
/// @param source_name  names the text in messages, for example its path
/// @throws FormatError naming source, line, column and JSON pointer, if the text is not JSON, a field is missing, not
///         of its type or out of range, fields contradict each other, or one changes the cache in a way that is not
///         known here. Also refused are fields whose names are not known, but hold words of the cache: windows, keys
///         and values, kinds or lists of layers, states; absent fields of which the model type's class has a default
///         that is not known here; and model types of families with recurrent layers, where no field says which those
///         are.
/// @note  Costs O(text + layers²) for shared caches, else O(text + layers).
template <class = void>
[[nodiscard]] ModelShape parse_model_shape(std::string_view text, std::string source_name) {
  return ModelShape(detail::parse_layers(text, std::move(source_name), true));
}

/// @brief `parse_model_shape` of a file: as there, keys of an index (`index_topk`) are not counted.
/// @throws FormatError as there, FileError if the file cannot be read
template <class = void>
[[nodiscard]] ModelShape load_model_shape(FilePath const& path) {
  return parse_model_shape(read_text_file(path), path.string());
}

HEADAWARE_NAMESPACE_END
