#pragma once

// Names of models, of which not all layers have keys and values.

#include <headaware/config.hpp>
#include <headaware/io/detail/text.hpp>

#include <string_view>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Whole names, and parts of names, of families with recurrent layers: linear attention, state spaces, convolutions.
/// @par Source  flash-linear-attention, fla/models; configuration_*.py of Hugging Face transformers
inline constexpr std::string_view recurrent_names =
    "abc apriel_h1 based comba evo evo2 gla glm5_next_text gsa hgrn hgrn2 hymba jet_nemotron kda lara_mini lfm3 "
    "llamba mesa_net minicpm_sala mom qwen4_exp_text rodimus samba titans ttt zamba zamba2 zaya";
inline constexpr std::string_view recurrent_words =
    "mamba rwkv hyena retnet deltanet delta_net deltaproduct linear_att moe_linear lightning lstm griffin "
    "simple_gla apriel_ssm hybrid_ssm";

/// Whether a model of this name has recurrent layers, as far as names are known here.
[[nodiscard]] inline bool is_recurrent(std::string_view name) {
  return is_any(name, recurrent_names) || holds_any(name, recurrent_words);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
