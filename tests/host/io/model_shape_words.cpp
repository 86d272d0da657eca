#include "support/catch.hpp"
#include "support/config_text.hpp"
#include "support/layer_letters.hpp"

#include <headaware/model_shape.hpp>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

using namespace headaware_test;

TEST_CASE("layers of a config.json by fields of hybrid and sliding models", "[io]") {
  for (auto const& [field, letters] : std::initializer_list<std::pair<char const*, char const*>>{
           {R"("model_type": "apriel_h1", "hybrid_block_layout": ["t", "m2", "m2d", "t"], "ssm_cfg": {"d_state": 64})",
            "F--F"},
           {R"("model_type": "stripedhyena", "attn_layer_idxs": [1, 3], "hyena_layer_idxs": [0, 2], "state_size": 2,
               "hyena_filter_groups": 1, "short_filter_length": 3, "proj_groups": 1)",
            "-F-F"},
           {R"("attn_layer_idxs": [3], "hcl_layer_idxs": [0], "hcm_layer_idxs": [1], "hcs_layer_idxs": [2])", "---F"},
           {R"("model_type": "gpt_neo", "attention_types": [[["global", "local"], 2]], "window_size": 9,
               "attention_layers": ["global", "local", "global", "local"])",
            "FsFs"},
           {R"("model_type": "gpt_neo", "attention_types": [[["local"], 1], [["global"], 3]], "window_size": 9)",
            "sFFF"},
           {R"("model_type": "afmoe", "global_attn_every_n_layers": 4, "sliding_window": 9)", "sssF"},
           {R"("model_type": "qwen2", "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 2,
               "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"])",
            "FFss"},
           {R"("model_type": "dots1", "sliding_window": 9, "max_window_layers": 3)", "FFFs"}}) {
    CAPTURE(field);
    CHECK(parse(with(field)) == layers_of(letters));
  }
  // ModernBERT's first layer of every so many sees all, and the field of the window is twice what a token sees.
  std::string const modernbert = R"("model_type": "modernbert-decoder", "global_attn_every_n_layers": 3)";
  std::string const types = R"(, "sliding_window": 64, "layer_types": ["full_attention", "sliding_attention",
                                "sliding_attention", "full_attention"])";
  CHECK(parse(with(modernbert + R"(, "local_attention": 128)")) == layers_of("FssF", 64));
  CHECK(parse(with(modernbert + types)) == layers_of("FssF", 64));
  CHECK(parse(with(modernbert + types + R"(, "local_attention": 128)")) == layers_of("FssF", 64));
  check_rejected(with(modernbert + types + R"(, "local_attention": 64)"),
                 {"sliding_window", "32, half of what local_attention says", "64", "/sliding_window"});
  check_rejected(with(modernbert), {"missing field", "an integer", "nothing", "/sliding_window"});
  check_rejected(with(R"("model_type": "odd", "sliding_window": 9, "global_attn_every_n_layers": 3)"),
                 {"global_attn_every_n_layers", "which layer of every so many", "3", ""});
  for (char const* const type : {"odd", "qwen2"}) {
    check_rejected(with(R"("local_attention": 128, "model_type": ")" + std::string(type) + '"'),
                   {"local_attention", "what it does in the model type", "128", "/local_attention"});
  }
  check_rejected(with(R"("attention_types": [[["global", "local"], 1]], "window_size": 9)"),
                 {"attention_types", "4 entries", "2 entries", ""});
  check_rejected(with(R"("attention_types": [[["global", "local"], 3]], "window_size": 9)"),
                 {"attention_types", "4 layers", "\"global\"", ""});
  check_rejected(with(R"("attention_types": [[[], 3]])"), {"attention_types", "words", "", "/attention_types/0/0"});
  check_rejected(with(R"("attention_types": [[["global"]]])"), {"attention_types", "how often", "", ""});
  check_rejected(with(R"("attn_layer_idxs": [1, 3], "hyena_layer_idxs": [1])"),
                 {"hyena_layer_idxs", "in layer 1, as attn_layer_idxs says", "no keys", "/hyena_layer_idxs/0"});
  check_rejected(with(R"("hyena_layer_idxs": [0, 1])"), {"missing field", "an array", "nothing", "/attn_layer_idxs"});
  for (char const* const types_of : {R"("qwen2", "use_sliding_window": true)", R"("dots1")"}) {
    check_rejected(
        with(R"("sliding_window": 9, "max_window_layers": 2, "layer_types": ["sliding_attention",
                           "sliding_attention", "sliding_attention", "sliding_attention"], "model_type": )" +
             std::string(types_of)),
        {"max_window_layers", "a window in layer 0, as layer_types says", "all tokens", "/max_window_layers"});
  }
}

TEST_CASE("a config.json of an unknown model is refused by words in its fields", "[io]") {
  for (auto const& [name, value] :
       std::initializer_list<std::pair<char const*, char const*>>{{"mixer_types", R"(["minicpm4", "lightning-attn"])"},
                                                                  {"global_attn_idx", "[0]"},
                                                                  {"blocksparse_block_size", "64"},
                                                                  {"dense_attention_every_n_layers", "2"},
                                                                  {"attn", R"({"layers": [1], "window_size": 128})"},
                                                                  {"full_attention_layers", "[0]"},
                                                                  {"num_full_attention_layers", "2"},
                                                                  {"local_attention_size", "128"},
                                                                  {"attention_type", R"("block_sparse")"},
                                                                  {"hybrid_pattern", R"("MMA")"},
                                                                  {"layer_kinds", R"([1, 2])"},
                                                                  {"layers", R"([{"kind": "x"}])"},
                                                                  {"heads_per_layer", "[8, 8, 4, 4]"},
                                                                  {"sparse_attention_config", R"({"topk": 9})"},
                                                                  {"block_layout", R"("ab")"},
                                                                  {"sparse_config", R"({"kernel_size": 32})"},
                                                                  {"shared_layers", "true"},
                                                                  {"kv_heads_of_layers", "[2]"},
                                                                  {"attention_hidden_size", "512"},
                                                                  {"attn_every", "3"},
                                                                  {"rwkv_ratio", "2"},
                                                                  {"h_cycles", "2"}}) {
    CAPTURE(name);
    std::string const field = '"' + std::string(name) + "\": " + value;
    check_rejected(with(field), {name, "what it does to the cache", "", "/" + std::string(name)});
    check_rejected(R"({"text_config": )" + with(field) + "}", {name, "what it does to the cache", "", "/text_config/"});
  }
  for (auto const& [name, value, reason] : std::initializer_list<std::array<char const*, 3>>{
           {"mamba_layers", "[0, 2]", "without keys"},
           {"mla_layers", "[0, 1]", "some hold a latent"},
           {"layer_sharing", "true", "share a cache"},
           {"use_cla", "true", "share a cache"},
           {"num_meta_tokens", "128", "every sequence begins with"},
           {"full_attn_mod", "2", "layers that see less"},
           {"proj_groups", "4", "share a KV head"},
           {"mamba_d_state", "16", "which layers have no keys and values"},
           {"ssm_cfg", R"({"d_state": 64})", "which layers have no keys and values"},
           {"linear_num_key_heads", "16", "which layers have no keys and values"},
           {"conv_L_cache", "3", "which layers have no keys and values"},
           {"num_key_value_groups", "2", "4, the query heads per KV head of layer 0"}}) {
    check_rejected(with('"' + std::string(name) + "\": " + value), {name, reason, "", "/" + std::string(name)});
  }
  check_rejected(with(R"("attn_config": {"reuse_kv_layer_idx": -1})"),
                 {"reuse_kv_layer_idx", "what it does to the cache", "-1", "/attn_config/"});
  check_rejected(with(R"("use_mla": true)"), {"missing field", "an integer", "nothing", "/kv_lora_rank"});
  for (char const* const type :
       {"gla", "retnet", "gated_deltanet", "delta_net", "hgrn2", "rwkv8", "rwkv_hybrid", "lightning_attn",
        "stripedhyena", "apriel_h1", "minicpm_sala", "hymba", "linear_attn", "zamba", "bailing_moe_linear", "mom"}) {
    check_rejected(with(R"("model_type": ")" + std::string(type) + '"'),
                   {"layers of the model type", "which of them have keys and values", type, ""});
  }
}

TEST_CASE("usual fields of a config.json do nothing to the cache", "[io]") {
  for (std::string_view const fields :
       {// Llama, Qwen, Mistral, Granite, OLMo, Cohere
        R"("architectures": ["LlamaForCausalLM"], "attention_bias": true, "attention_dropout": 0.1, "bos_token_id": 1,
              "eos_token_id": [1, 2], "hidden_act": "silu", "hidden_size": 128, "initializer_range": 0.02,
              "intermediate_size": 9, "max_position_embeddings": 8192, "mlp_bias": false, "pretraining_tp": 1,
              "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
              "rope_scaling": {"factor": 8.0, "rope_type": "llama3", "low_freq_factor": 1.0, "type": "yarn"},
              "transformers_version": "4.43.0", "use_cache": true, "vocab_size": 9, "_name_or_path": "x",
              "auto_map": {"AutoConfig": "c.C"}, "rope_parameters": {"full_attention": {"rope_type": "default"}},
              "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]})",
        R"("model_type": "qwen2", "sliding_window": 131072, "max_window_layers": 28, "use_sliding_window": false,
              "dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}, "use_mrope": false)",
        R"("model_type": "qwen", "attn_dropout_prob": 0.0, "kv_channels": 16, "use_logn_attn": true, "bf16": true,
              "use_cache_quantization": false, "use_cache_kernel": false, "use_flash_attn": "auto", "seq_length": 9)",
        R"("model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": [0], "num_experts": 128,
              "num_experts_per_tok": 8, "norm_topk_prob": true, "router_aux_loss_coef": 0.001, "head_dim": 16)",
        R"("model_type": "mistral", "sliding_window": null, "num_local_experts": 8, "router_jitter_noise": 0.0)",
        R"("model_type": "granite", "attention_multiplier": 0.0078125, "embedding_multiplier": 12,
              "logits_scaling": 16, "residual_multiplier": 0.22, "shared_intermediate_size": 1024)",
        R"("model_type": "olmo", "clip_qkv": 8, "weight_tying": true)",
        R"("model_type": "cohere", "logit_scale": 0.0625, "layer_norm_eps": 1e-05, "use_qk_norm": true,
              "use_embedding_sharing": true, "use_parallel_block": true, "use_gated_activation": true)",
        R"("model_type": "cohere2", "sliding_window": null, "layer_switch": 4, "rotary_pct": 1.0,
              "order_of_interleaved_layers": "local_attn_first")",
        // Gemma, Phi, GPT-2, Falcon, GLM
        R"("model_type": "gemma2", "sliding_window": null, "attn_logit_softcapping": 50.0, "head_dim": 16,
              "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256)",
        R"("model_type": "gemma3n_text", "sliding_window": null, "num_kv_shared_layers": 0, "laurel_rank": 64,
              "activation_sparsity_pattern": [0.95, 0.95, 0, 0], "altup_num_inputs": 4, "rope_local_base_freq": 10000,
              "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 9)",
        R"("model_type": "phi", "partial_rotary_factor": 0.4, "qk_layernorm": false, "embd_pdrop": 0.0,
              "resid_pdrop": 0.1, "attn_pdrop": 0.1, "flash_rotary": true, "fused_dense": true)",
        R"("model_type": "gpt2", "attn_pdrop": 0.1, "n_ctx": 1024, "n_positions": 1024, "n_inner": null,
              "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true, "reorder_and_upcast_attn": false,
              "summary_type": "cls_index", "task_specific_params": {"text-generation": {"do_sample": true}})",
        R"("model_type": "falcon", "alibi": false, "parallel_attn": true, "num_ln_in_parallel_attn": 2,
              "apply_residual_connection_post_layernorm": false, "new_decoder_architecture": true)",
        R"("model_type": "chatglm", "add_bias_linear": false, "attention_softmax_in_fp32": true, "fp32": false,
              "apply_query_key_layer_scaling": true, "bias_dropout_fusion": true, "rope_ratio": 500, "pre_seq_len": null,
              "prefix_projection": false, "post_layer_norm": true, "original_rope": true)",
        R"("model_type": "glm4_moe", "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
              "n_routed_experts": 128, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1,
              "partial_rotary_factor": 0.5, "use_qk_norm": true, "moe_layer_freq": [0, 1, 1, 1])",
        // Others
        R"("model_type": "llama4", "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4, "attn_scale": 0.1,
              "attn_temperature_tuning": 4, "interleave_moe_layer_step": 1, "moe_layers": [0, 1],
              "for_llm_compressor": false)",
        R"("model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0], "use_sliding_window": false, "layer_types":
              ["full_attention", "full_attention", "full_attention", "full_attention"])",
        R"("model_type": "deepseek", "ep_size": 1, "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": true,
              "index_n_heads": 64, "index_topk": 2048, "indexer_types": ["full", "shared"], "q_lora_rank": null,
              "kv_lora_rank": null)",
        R"("model_type": "mpt", "attn_config": {"alibi": true, "alibi_bias_max": 8, "attn_impl": "torch",
              "attn_type": "multihead_attention", "attn_uses_sequence_id": false, "qk_ln": false, "clip_qkv": null,
              "prefix_lm": false, "softmax_scale": null}, "init_config": {"name": "kaiming"}, "no_bias": true)",
        R"("model_type": "openelm", "num_gqa_groups": 4, "ffn_multipliers": [0.5, 4.0], "qkv_multipliers": [0.5, 1],
              "share_input_output_layers": true, "normalize_qk_projections": true)",
        R"("model_type": "ernie4_5", "compression_ratio": 1.0, "use_bias": false)",
        R"("model_type": "hunyuan", "use_cla": false, "cla_share_factor": 2, "use_mla": false, "head_dim": 16,
              "attention_head_dim": 16, "moe_topk": [8, 8], "num_shared_expert": [1, 1])",
        R"("model_type": "internlm2", "attn_implementation": "eager", "bias": false)",
        R"("model_type": "phi3", "full_attn_mod": 1, "interpolate_factor": 1, "embd_layer": {"embedding_cls": "image"},
              "lm_head_bias": false, "original_max_position_embeddings": 4096)",
        R"("model_type": "kimi_linear", "kv_lora_rank": null, "mla_use_nope": true,
              "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"])",
        R"("_attn_implementation_autoset": true, "_flash_attn_2_enabled": true, "output_attentions": false,
              "output_hidden_states": false, "pruned_heads": {}, "id2label": {"0": "A"}, "layerdrop": 0.0,
              "gradient_checkpointing": false, "num_key_value_groups": 4, "use_kv_cache": true, "kv_cache_dtype": "fp8",
              "attention_in_fp8": true, "num_dense_layers": 1, "mtp_layer_types": ["full_attention"])",
        // A window that is off
        R"("model_type": "llama", "sliding_window": -1)", R"("model_type": "llama", "sliding_window": 0)",
        R"("model_type": "llama", "sliding_window": null)", R"("model_type": "mistral", "sliding_window": -1)",
        R"("model_type": "odd", "sliding_window": [0, -1, null, 0])"}) {
    std::string text(fields);
    CAPTURE(text);
    // A name is once in a document.
    bool const own = text.find("\"head_dim\"") != std::string::npos;
    std::string const model = with(own ? R"("a": 0)" : text);
    CHECK(parse(own ? R"({"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, )" + text + "}"
                    : model) == layers_of("FFFF"));
  }
  // Sizes of states, where a field says which layers have one.
  CHECK(parse(with(R"("model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 16,
                      "mamba_d_conv": 4, "mamba_expand": 2, "use_mamba_kernels": true, "expert_layer_period": 2)")) ==
        layers_of("-F-F"));
  CHECK(parse(with(R"("model_type": "lfm2", "full_attn_idxs": [2], "conv_L_cache": 3, "conv_bias": false,
                      "block_auto_adjust_ff_dim": true, "block_multiple_of": 256, "block_dim": 9)")) ==
        layers_of("--F-"));
  CHECK(parse(with(R"("sliding_window": [9, 0, -1, 9])")) == layers_of("sFFs"));
}

TEST_CASE("an absent field that the model type's class has a default of is refused", "[io]") {
  std::string const model = R"({"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 128, )";
  auto const missing = [](char const* field) {
    return ha::ErrorDetail{"missing field", "the class of the model type has a default", "nothing",
                           "/" + std::string(field)};
  };
  for (char const* const type : {"mistral", "mixtral", "lfm2", "qwen2", "glm4_moe", "phimoe", "jamba"}) {
    std::string const fields = R"("sliding_window": null, "layers_block_type": ["attention", "mamba", "moe", "mlp"],
                                  "model_type": ")" +
                               std::string(type) + '"';
    check_rejected(model + fields + "}", missing("num_key_value_heads"));
    CHECK(parse(model + fields + R"(, "num_key_value_heads": 2})") == layers_of("F---"));
  }
  check_rejected(
      R"({"model_type": "dbrx", "n_layers": 2, "n_heads": 8, "d_model": 128, "attn_config": {"clip_qkv": 8}})",
      missing("attn_config/kv_n_heads"));
  check_rejected(R"({"model_type": "dbrx", "n_layers": 2, "n_heads": 8, "d_model": 128, "attn_config": {}})",
                 missing("attn_config/kv_n_heads"));
  check_rejected(R"({"model_type": "dbrx", "n_layers": 2, "n_heads": 8, "d_model": 128})",
                 {"missing field", "an object", "nothing", "/attn_config"});
  check_rejected(R"({"model_type": "dbrx", "n_layers": 2, "n_heads": 8, "d_model": 128, "attn_config": null})",
                 {"wrong type", "an object", "null", "/attn_config"});
  CHECK(parse(R"({"model_type": "dbrx", "n_layers": 2, "n_heads": 8, "d_model": 128,
                  "attn_config": {"kv_n_heads": 2, "clip_qkv": 8}})") == layers_of("FF"));
  check_rejected(R"({"model_type": "mpt", "n_layers": 2, "n_heads": 8, "d_model": 128,
                     "attn_config": {"attn_type": "multiquery_attention"}})",
                 missing("attn_config/kv_n_heads"));
  check_rejected(R"({"model_type": "chatglm", "num_layers": 2, "num_attention_heads": 8, "hidden_size": 128,
                     "multi_query_attention": true})",
                 {"missing field", "an integer", "nothing", "/multi_query_group_num"});
  check_rejected(model + R"("model_type": "hy_v3", "num_key_value_heads": 2})", missing("head_dim"));
  check_rejected(with(R"("model_type": "mimo_v2_flash", "hybrid_layer_pattern": [0, 1, 1, 0], "sliding_window": 9)"),
                 missing("v_head_dim"));
  check_rejected(with(R"("model_type": "deepseek_v3")"), missing("kv_lora_rank"));
  for (char const* const type : {"mistral", "gpt_oss", "cwm", "gemma3_text", "olmo3"}) {
    check_rejected(with(R"("model_type": ")" + std::string(type) + '"'), missing("sliding_window"));
  }
  check_rejected(with(R"("model_type": "gemma3n_text", "sliding_window": 9)"), missing("num_kv_shared_layers"));
  CHECK(parse(with(R"("model_type": "gemma3n_text", "sliding_window": 9, "num_kv_shared_layers": 0)")) ==
        layers_of("ssss"));
}

TEST_CASE("lists of a config.json may go on with layers that predict further tokens", "[io]") {
  std::string const extra = R"(, "num_nextn_predict_layers": 1})";
  CHECK(parse(R"({"num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 16,
                  "num_key_value_heads": [2, 2, 2, 2, 2], "sliding_window": [9, 9, null, null, 9], "layer_types":
                  ["sliding_attention", "sliding_attention", "full_attention", "full_attention", "full_attention"])" +
              extra) == layers_of("ssFF"));
  CHECK(
      parse(R"({"num_hidden_layers": 1, "num_attention_heads": [8, 8], "head_dim": 16, "num_key_value_heads": [2, 4])" +
            extra) == layers_of("F"));
  check_rejected(R"({"num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 16,
                     "num_key_value_heads": [2, 2, 2, 2, 2, 2])" +
                     extra,
                 {"number of layers", "4, one per layer", "6", "/num_key_value_heads"});
  check_rejected(R"({"num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 16,
                     "num_key_value_heads": [2, 2, 2, 2, 2]})",
                 {"number of layers", "4, one per layer", "5", ""});
}
