#pragma once

// Fields of a `config.json` of which absence means what the model type's class has: taken where it is known here, else
// refused.

#include <headaware/config.hpp>
#include <headaware/io/detail/config_fields.hpp>
#include <headaware/io/detail/text.hpp>

#include <array>
#include <cstdint>
#include <string_view>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Heads and channels of some model types where fields are absent: not those that others have then.
/// @par Source  configuration_*.py of Hugging Face transformers
struct ClassDefaults {
  std::string_view model_type;
  std::int32_t num_query_heads, num_kv_heads, head_dim;
};
inline constexpr std::array<ClassDefaults, 21> class_defaults{{{"gemma", 16, 16, 256},
                                                               {"gemma2", 8, 4, 256},
                                                               {"gemma3", 8, 4, 256},
                                                               {"gemma3_text", 8, 4, 256},
                                                               {"gemma3n", 8, 2, 256},
                                                               {"gemma3n_text", 8, 2, 256},
                                                               {"gemma4", 8, 4, 256},
                                                               {"gemma4_text", 8, 4, 256},
                                                               {"gemma4_unified_text", 8, 4, 256},
                                                               {"vaultgemma", 8, 4, 256},
                                                               {"ernie4_5", 16, 2, 128},
                                                               {"glm", 32, 2, 128},
                                                               {"glm4", 32, 2, 128},
                                                               {"gpt_oss", 64, 8, 64},
                                                               {"llama4_text", 40, 8, 128},
                                                               {"minimax_m2", 48, 8, 128},
                                                               {"qwen3", 32, 32, 128},
                                                               {"qwen3_5_text", 16, 4, 256},
                                                               {"qwen3_5_moe_text", 16, 2, 256},
                                                               {"qwen3_next", 16, 2, 256},
                                                               {"seed_oss", 80, 8, 128}}};

[[nodiscard]] inline ClassDefaults const* class_defaults_of(std::string_view model_type) {
  for (ClassDefaults const& each : class_defaults) {
    if (each.model_type == model_type) return &each;
  }
  return nullptr;
}

/// A field, and model types of which the class has a number of its own where it is absent, that the document does not
/// show.
/// @par Source  configuration_*.py of Hugging Face transformers
struct HiddenDefault {
  std::string_view field;
  std::string_view model_types;  ///< each between spaces
};
inline constexpr std::array<HiddenDefault, 6> hidden_defaults{{
    {"num_key_value_heads",
     "bamba beam bitnet chameleon cosmos3_edge_text csm cwm dory dots1 emu3_text_model ernie4_5_moe "
     "ernie4_5_vl_moe_text exaone exaone4 exaone_moe falcon_h1 flint glm4_moe glm4v_moe_text glm4v_text "
     "glm_image_text glm_ocr_text granite_docling_text granite_swa helium hy_v3 inkling2_loop_text "
     "inkling2_text internlm3 iquestcoder jamba jetmoe kolibri1 laguna lara_mini lfm2 lfm2_moe lfm3 mellum "
     "mimo_v2_flash minimax minimax_m3_vl_text ministral ministral3 mistral mixtral molmo2_text "
     "muse_glimmer_text muse_spark_text openai_privacy_filter paddleocr_vl_text phi4_multimodal phimoe "
     "qwen2 qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3_moe "
     "qwen3_omni_moe_talker_code_predictor qwen3_omni_moe_talker_text qwen3_omni_moe_text "
     "qwen3_vl_moe_text qwen3_vl_text qwen4_exp_text sarvam_moe smollm3 solar_open stablelm starcoder2 "
     "step3p5 unlimited_ocr_text voxtral_realtime_text zaya"},
    {"head_dim", "afmoe beam cohere2_moe cosmos3_edge_text cwm dory flint helium hrm_text hy_v3 inkling2_loop_text "
                 "inkling2_text internlm3 iquestcoder kolibri1 laguna lara_mini lfm3 mellum mimo_v2_flash "
                 "minimax_m3_vl_text ministral3 molmo2_text muse_glimmer_text muse_spark_text openai_privacy_filter "
                 "paddleocr_vl_text qwen2_5_omni_talker qwen3_omni_moe_talker_code_predictor qwen3_vl_text "
                 "qwen4_exp_text sarvam_moe solar_open step3p5 zaya"},
    {"v_head_dim", "mimo_v2_flash"},
    {"kv_lora_rank", "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite "
                     "glm5_next_text glm_moe_dsa hy_v4 hy_v4_vl_text kimi_linear minicpm3 mistral4 mistral_large4_text "
                     "sarvam_mla youtu"},
    {"sliding_window",
     "afmoe beam cohere2 cohere2_moe cohere_compass_text cwm dory dots1 exaone4 exaone_moe flint gemma2 "
     "gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified_text gpt_oss granite_swa "
     "granitemoe_swa inkling2_loop_text inkling2_text kolibri1 kyutai_speech_to_text laguna lara_mini lfm3 "
     "mellum mimo_v2_flash ministral mistral moshi muse_glimmer_text muse_spark_text olmo3 "
     "openai_privacy_filter recurrent_gemma ultrabert unlimited_ocr_text vaultgemma voxtral_realtime_text"},
    {"num_kv_shared_layers", "gemma3n gemma3n_text"},
}};

/// @throws FormatError if a field is absent that the class of the model type has a default of
template <class = void>
void require_shown(ConfigFields& fields, std::string_view field) {
  std::string_view const type = fields.model_type();
  if (type.empty() || fields.json().find(field)) return;
  for (HiddenDefault const& each : hidden_defaults) {
    if (each.field == field && is_any(type, each.model_types)) {
      (void)fields.json().get(field, "an integer or null, as the class of the model type has a default");
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
