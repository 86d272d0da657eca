#pragma once

// Models of the kinds of layers that there are, with random weights, as files that llama.cpp runs in milliseconds.

#include "llama/gguf_writer.hpp"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace headaware_test {

constexpr std::int64_t synthetic_width = 64;
constexpr std::int64_t synthetic_inner = 96;  ///< of feed-forward layers
constexpr std::int32_t synthetic_window = 24;

/// Sentences of numbers, of which no part is as another.
inline std::string numbered_text(std::size_t bytes) {
  std::string text;
  for (std::size_t i = 0; text.size() < bytes; ++i) {
    text += "Ship " + std::to_string(i * i % 977) + " passed pier " + std::to_string(i) + " before dawn. ";
  }
  text.resize(bytes);
  return text;
}

namespace detail {

inline GgufWriter begin_model(std::string const& architecture, std::uint32_t layers) {
  GgufWriter file(architecture);
  file.byte_vocabulary();
  file.number("context_length", 4096);
  file.number("embedding_length", synthetic_width);
  file.number("feed_forward_length", synthetic_inner);
  file.number("block_count", layers);
  file.real("attention.layer_norm_rms_epsilon", 1e-6F);
  // Small beside what the layers add, so that the next token is not mostly the last one.
  file.numbers_about("token_embd.weight", {synthetic_width, file.vocabulary()}, 0, 0.02F);
  return file;
}
inline std::string block(std::int64_t layer) { return "blk." + std::to_string(layer) + "."; }
inline void norm(GgufWriter& file, std::string const& name, std::int64_t channels = synthetic_width) {
  file.numbers_about(name + ".weight", {channels}, 1, 0.1F);
}
inline void feed_forward(GgufWriter& file, std::string const& at) {
  norm(file, at + "ffn_norm");
  file.weights(at + "ffn_gate.weight", {synthetic_width, synthetic_inner});
  file.weights(at + "ffn_up.weight", {synthetic_width, synthetic_inner});
  file.weights(at + "ffn_down.weight", {synthetic_inner, synthetic_width});
}
/// Projections of a layer's attention, larger than usual ones, so that heads tell keys apart.
inline void attention(GgufWriter& file, std::string const& at, std::int64_t heads, std::int64_t kv_heads,
                      std::int64_t channels) {
  file.weights(at + "attn_q.weight", {synthetic_width, heads * channels});
  file.weights(at + "attn_k.weight", {synthetic_width, kv_heads * channels});
  file.weights(at + "attn_v.weight", {synthetic_width, kv_heads * channels});
  file.weights(at + "attn_output.weight", {heads * channels, synthetic_width});
}

}  // namespace detail

/// Every second layer slides: as Gemma 3, 4 query heads on 1 KV head.
inline void write_sliding_model(std::filesystem::path const& path) {
  constexpr std::uint32_t layers = 4;
  GgufWriter file = detail::begin_model("gemma3", layers);
  file.number("attention.head_count", 4);
  file.number("attention.head_count_kv", 1);
  file.number("attention.key_length", 32);
  file.number("attention.value_length", 32);
  file.number("attention.sliding_window", synthetic_window);
  file.number("attention.sliding_window_pattern", 2);
  detail::norm(file, "output_norm");
  file.weights("output.weight", {synthetic_width, file.vocabulary()});
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    std::string const at = detail::block(layer);
    detail::norm(file, at + "attn_norm");
    detail::attention(file, at, 4, 1, 32);
    detail::norm(file, at + "attn_q_norm", 32);
    detail::norm(file, at + "attn_k_norm", 32);
    detail::norm(file, at + "post_attention_norm");
    detail::feed_forward(file, at);
    detail::norm(file, at + "post_ffw_norm");
  }
  file.save(path);
}

/// Short convolutions with a state beside attention of 2 and of 1 KV heads: as LFM2.
/// @param window  of all layers that attend; 0: none
inline void write_hybrid_model(std::filesystem::path const& path, std::uint32_t window) {
  std::vector<std::int32_t> const kv_heads{0, 2, 0, 1};
  GgufWriter file = detail::begin_model("lfm2", 4);
  file.number("attention.head_count", 4);
  file.numbers("attention.head_count_kv", kv_heads);
  file.number("shortconv.l_cache", 3);
  if (window > 0) file.number("attention.sliding_window", window);
  detail::norm(file, "token_embd_norm");
  file.weights("output.weight", {synthetic_width, file.vocabulary()});
  for (std::int64_t layer = 0; layer < 4; ++layer) {
    std::string const at = detail::block(layer);
    detail::norm(file, at + "attn_norm");
    std::int32_t const heads = kv_heads[static_cast<std::size_t>(layer)];
    if (heads > 0) {
      detail::attention(file, at, 4, heads, 16);
      detail::norm(file, at + "attn_q_norm", 16);
      detail::norm(file, at + "attn_k_norm", 16);
    } else {
      file.weights(at + "shortconv.conv.weight", {3, synthetic_width});
      file.weights(at + "shortconv.in_proj.weight", {synthetic_width, 3 * synthetic_width});
      file.weights(at + "shortconv.out_proj.weight", {synthetic_width, synthetic_width});
    }
    detail::feed_forward(file, at);
  }
  file.save(path);
}

/// A learned sink per query head, every second layer slides, experts: as gpt-oss.
inline void write_sinks_model(std::filesystem::path const& path) {
  constexpr std::int64_t experts = 2;
  GgufWriter file = detail::begin_model("gpt-oss", 4);
  file.number("attention.head_count", 4);
  file.number("attention.head_count_kv", 2);
  file.number("attention.key_length", 32);
  file.number("attention.value_length", 32);
  file.number("attention.sliding_window", synthetic_window);
  file.number("expert_count", experts);
  file.number("expert_used_count", 1);
  file.number("expert_feed_forward_length", synthetic_inner);
  detail::norm(file, "output_norm");
  file.weights("output.weight", {synthetic_width, file.vocabulary()});
  for (std::int64_t layer = 0; layer < 4; ++layer) {
    std::string const at = detail::block(layer);
    detail::norm(file, at + "attn_norm");
    detail::attention(file, at, 4, 2, 32);
    file.numbers_about(at + "attn_output.bias", {synthetic_width}, 0, 0.1F);
    file.numbers_about(at + "attn_sinks.weight", {4}, 1, 1);
    detail::norm(file, at + "post_attention_norm");
    file.weights(at + "ffn_gate_inp.weight", {synthetic_width, experts});
    file.numbers_about(at + "ffn_gate_inp.bias", {experts}, 0, 0.1F);
    for (char const* const name : {"ffn_gate_exps", "ffn_up_exps"}) {
      file.weights(at + name + ".weight", {synthetic_width, synthetic_inner, experts});
      file.numbers_about(at + name + ".bias", {synthetic_inner, experts}, 0, 0.1F);
    }
    file.weights(at + "ffn_down_exps.weight", {synthetic_inner, synthetic_width, experts});
    file.numbers_about(at + "ffn_down_exps.bias", {synthetic_width, experts}, 0, 0.1F);
  }
  file.save(path);
}

/// Layers with other numbers of query heads and KV heads: as OpenELM.
inline void write_heads_model(std::filesystem::path const& path) {
  std::vector<std::int32_t> const heads{4, 6, 2};
  std::vector<std::int32_t> const kv_heads{1, 3, 2};
  GgufWriter file = detail::begin_model("openelm", 3);
  file.numbers("attention.head_count", heads);
  file.numbers("attention.head_count_kv", kv_heads);
  file.number("attention.key_length", 16);
  file.number("attention.value_length", 16);
  file.number("rope.dimension_count", 16);
  detail::norm(file, "output_norm");
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    std::string const at = detail::block(layer);
    std::int64_t const all = heads[static_cast<std::size_t>(layer)];
    std::int64_t const kv = kv_heads[static_cast<std::size_t>(layer)];
    detail::norm(file, at + "attn_norm");
    file.weights(at + "attn_qkv.weight", {synthetic_width, (all + 2 * kv) * 16});
    detail::norm(file, at + "attn_q_norm", 16);
    detail::norm(file, at + "attn_k_norm", 16);
    file.weights(at + "attn_output.weight", {all * 16, synthetic_width});
    detail::feed_forward(file, at);
  }
  file.save(path);
}

/// One latent row for all heads: as DeepSeek-V2.
inline void write_latent_model(std::filesystem::path const& path) {
  constexpr std::int64_t heads = 4;
  constexpr std::int64_t rank = 32;
  constexpr std::int64_t rotated = 16;
  constexpr std::int64_t plain = 16;
  GgufWriter file = detail::begin_model("deepseek2", 2);
  file.number("attention.head_count", heads);
  file.number("attention.head_count_kv", 1);
  file.number("attention.q_lora_rank", 24);
  file.number("attention.kv_lora_rank", rank);
  file.number("attention.key_length", rank + rotated);
  file.number("attention.value_length", rank);
  file.number("attention.key_length_mla", plain + rotated);
  file.number("attention.value_length_mla", plain);
  file.number("rope.dimension_count", rotated);
  file.number("leading_dense_block_count", 2);
  file.number("expert_feed_forward_length", synthetic_inner);
  file.number("expert_shared_count", 1);
  detail::norm(file, "output_norm");
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    std::string const at = detail::block(layer);
    detail::norm(file, at + "attn_norm");
    detail::norm(file, at + "attn_q_a_norm", 24);
    detail::norm(file, at + "attn_kv_a_norm", rank);
    file.weights(at + "attn_q_a.weight", {synthetic_width, 24});
    file.weights(at + "attn_q_b.weight", {24, heads * (plain + rotated)});
    file.weights(at + "attn_kv_a_mqa.weight", {synthetic_width, rank + rotated});
    file.weights(at + "attn_k_b.weight", {plain, rank, heads});
    file.weights(at + "attn_v_b.weight", {rank, plain, heads});
    file.weights(at + "attn_output.weight", {heads * plain, synthetic_width});
    detail::feed_forward(file, at);
  }
  file.save(path);
}

}  // namespace headaware_test
