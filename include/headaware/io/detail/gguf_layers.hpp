#pragma once

// Layers of a model by the keys of a GGUF file.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/fields.hpp>
#include <headaware/io/detail/gguf_metadata.hpp>
#include <headaware/io/detail/recurrent_names.hpp>
#include <headaware/io/detail/text.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Architectures whose layers slide by turns: one of so many sees all tokens.
struct GgufTurns {
  std::string_view architecture;
  std::int32_t period;
  std::int32_t absent_window = 0;  ///< the window where the file names none; 0: no layer slides; -1: it has to
  bool first = false;              ///< the first one of the turn sees all tokens, else the last one
};
inline constexpr std::array<GgufTurns, 15> gguf_turns{{{"gemma2", 2, 4096},
                                                       {"gemma3", 6},
                                                       {"gemma3n", 5, -1},
                                                       {"cohere2", 4, -1},
                                                       {"cohere2moe", 4, -1, true},
                                                       {"gpt-oss", 2, -1},
                                                       {"olmo2", 4},
                                                       {"exaone4", 4},
                                                       {"exaone-moe", 4, -1},
                                                       {"plamo3", 8},
                                                       {"smallthinker", 4, 0, true},
                                                       {"mellum", 4},
                                                       {"afmoe", 4},
                                                       {"laguna", 4, 0, true},
                                                       {"muse-glimmer", 4, -1}}};

/// Architectures of which the last layer of every so many attends, where the file says nothing else.
struct GgufInterval {
  std::string_view architecture;
  std::int32_t period;
};
inline constexpr std::array<GgufInterval, 5> gguf_intervals{
    {{"qwen3next", 4}, {"qwen35", 4}, {"qwen35moe", 4}, {"qwen4exp", 4}, {"minimax-01", 8}}};

/// Keys of attention that leave the shape of the cache as it is, or are read.
inline constexpr std::array<std::string_view, 29> gguf_attention_keys{"head_count",
                                                                      "head_count_kv",
                                                                      "key_length",
                                                                      "value_length",
                                                                      "key_length_mla",
                                                                      "value_length_mla",
                                                                      "key_length_swa",
                                                                      "value_length_swa",
                                                                      "kv_lora_rank",
                                                                      "sliding_window",
                                                                      "sliding_window_pattern",
                                                                      "shared_kv_layers",
                                                                      "recurrent_layers",
                                                                      "causal",
                                                                      "max_alibi_bias",
                                                                      "clamp_kqv",
                                                                      "layer_norm_epsilon",
                                                                      "layer_norm_rms_epsilon",
                                                                      "group_norm_epsilon",
                                                                      "group_norm_groups",
                                                                      "q_lora_rank",
                                                                      "rope_pattern",
                                                                      "scale",
                                                                      "output_scale",
                                                                      "value_scale",
                                                                      "temperature_length",
                                                                      "temperature_scale",
                                                                      "output_group_count",
                                                                      "output_lora_rank"};

/// Words, each between spaces, in other keys: of layers that attend to less than all tokens, or to what others have,
/// and of layers without keys and values.
inline constexpr std::string_view gguf_cache_words =
    "window sliding kv_ _kv key_value attention attn mixer hyena mamba gla. delta lightning recurr retention rwkv "
    "hybrid shar memory meta_token sparse cross compress cycle";
/// Keys with such words that are read, or leave the shape of the cache as it is.
inline constexpr std::array<std::string_view, 5> gguf_known_keys{"full_attention_interval", "attn_logit_softcapping",
                                                                 "attn_res.block_size", "expert_shared_count",
                                                                 "expert_shared_feed_forward_length"};

template <std::size_t n>
[[nodiscard]] bool contains(std::array<std::string_view, n> const& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}
template <class Entry, std::size_t n>
[[nodiscard]] Entry const* entry_of(std::array<Entry, n> const& entries, std::string_view architecture) {
  auto const found = std::find_if(entries.begin(), entries.end(),
                                  [&](Entry const& each) { return each.architecture == architecture; });
  return found == entries.end() ? nullptr : &*found;
}

/// Reads the layers of one file.
class GgufReader {
 public:
  explicit GgufReader(GgufMetadata const& metadata) : metadata_(metadata) {
    GgufValue const* const name = metadata.find("general.architecture");
    if (name == nullptr || name->kind != GgufValue::Kind::text) {
      throw FormatError(
          {"general.architecture", "a string", name == nullptr ? "nothing" : "something else", metadata.source()});
    }
    architecture_ = name->text;
  }

  [[nodiscard]] std::vector<LayerShape> read() {
    std::int32_t const blocks = required("block_count", 1, max_index);
    std::int32_t const extra = number("nextn_predict_layers", 0, blocks - 1, 0);  // blocks, but none of the model's
    blocks_ = blocks;
    layers_ = blocks - extra;
    refuse_unknown_keys();
    std::vector<LayerShape> layers(static_cast<std::size_t>(layers_), {.kind = LayerKind::none});
    if (contains(without_attention, architecture_)) return layers;
    std::vector<bool> const attends = read_attending();
    if (std::find(attends.begin(), attends.end(), true) == attends.end()) return layers;
    if (number("attention.kv_lora_rank", 0, max, 0) != 0 && !contains(unpacked_latents, architecture_)) {
      fill_latents(layers, attends);
    } else {
      fill(layers, attends);
    }
    share(layers);
    return layers;
  }

 private:
  static constexpr auto max = static_cast<std::int32_t>(max_int32);
  static constexpr std::array<std::string_view, 6> without_attention{"mamba", "mamba2",     "rwkv6",
                                                                     "rwkv7", "rwkv6qwen2", "arwkv7"};
  /// Architectures with a latent that llama.cpp unpacks before it stores keys and values.
  static constexpr std::array<std::string_view, 2> unpacked_latents{"minicpm3", "plm"};

  [[noreturn]] void fail(std::string_view key, Text const& expected, Text const& got) const {
    std::string const name = architecture_ + "." + std::string(key);
    GgufValue const* const value = metadata_.find(name);
    std::string where = metadata_.source();
    if (value != nullptr) where += ", offset " + std::to_string(value->offset);
    throw FormatError({name, expected.str(), got.str(), where});
  }
  [[nodiscard]] GgufValue const* find(std::string_view key) const {
    return metadata_.find(architecture_ + "." + std::string(key));
  }

  std::int32_t checked(std::string_view key, std::int64_t value, std::int32_t low, std::int32_t high) const {
    if (value < low || value > high) fail(key, {"an integer in [", low, ", ", high, "]"}, value);
    return static_cast<std::int32_t>(value);
  }
  [[nodiscard]] std::int32_t number(std::string_view key, std::int32_t low, std::int32_t high,
                                    std::int32_t otherwise) const {
    GgufValue const* const value = find(key);
    if (value == nullptr) return otherwise;
    if (value->kind != GgufValue::Kind::number) fail(key, "an integer", "something else");
    return checked(key, value->numbers.front(), low, high);
  }
  [[nodiscard]] std::int32_t required(std::string_view key, std::int32_t low, std::int32_t high) const {
    if (find(key) == nullptr) fail(key, "an integer", "nothing");
    return number(key, low, high, 0);
  }
  /// A number of every layer: one for all, or one per block.
  [[nodiscard]] std::vector<std::int32_t> per_layer(std::string_view key, std::int32_t low, std::int32_t high) const {
    GgufValue const* const value = find(key);
    auto const layers = static_cast<std::size_t>(layers_);
    if (value == nullptr) fail(key, "an integer, or one per layer", "nothing");
    if (value->kind == GgufValue::Kind::number) {
      std::vector<std::int32_t> all(layers, checked(key, value->numbers.front(), low, high));
      return all;
    }
    if (value->kind != GgufValue::Kind::list) fail(key, "an integer, or one per layer", "something else");
    std::size_t const size = value->numbers.size();
    if (size != layers && size != static_cast<std::size_t>(blocks_)) {
      fail(key, {layers, " numbers, one per layer"}, {size, " numbers"});
    }
    std::vector<std::int32_t> result;
    for (std::size_t i = 0; i < layers; ++i) result.push_back(checked(key, value->numbers[i], low, high));
    return result;
  }

  void refuse_unknown_keys() const {
    std::string const prefix = architecture_ + ".";
    auto const refuse = [&](std::string_view key, char const* reason) {
      fail(key, {"none: ", reason, " not known here"}, "a value");
    };
    for (auto const& [name, value] : metadata_.values()) {
      if (!name.starts_with(prefix)) continue;
      std::string_view const key = std::string_view(name).substr(prefix.size());
      bool const one = value.kind == GgufValue::Kind::number && value.numbers.front() == 1;
      if (key == "num_loops" && !one) refuse(key, "layers that run several times are");
      if (key == "decoder_block_count") refuse(key, "layers that attend to another input are");
      if (key == "attention.causal" && !one) refuse(key, "layers that see later tokens, too, are");
      std::string_view const attention = "attention.";
      if (!key.starts_with(attention)) {
        if (holds_any(key, gguf_cache_words) && !key.starts_with("rope.") && !contains(gguf_known_keys, key)) {
          refuse(key, "what it does to the cache is");
        }
        continue;
      }
      std::string_view const rest = key.substr(attention.size());
      // An index that picks rows of a latent leaves them as they are; what it stores itself is no part of the shape.
      if (rest.starts_with("indexer.") || contains(gguf_attention_keys, rest)) continue;
      refuse(key, "what it does to the cache is");
    }
    if (architecture_ == "llama4" && number("attention.sliding_window", 0, max, 1) != 0) {
      fail("attention.sliding_window", "0: layers that see their chunk alone are not known here", "another or none");
    }
  }

  /// Whether a layer has keys and values.
  [[nodiscard]] std::vector<bool> read_attending() const {
    std::string_view const kv_heads =
        find("attention.head_count_kv") ? "attention.head_count_kv" : "attention.head_count";
    std::vector<bool> attends;
    bool every = true;
    for (std::int32_t const heads : per_layer(kv_heads, 0, max_index)) {
      attends.push_back(heads != 0);
      every = every && heads != 0;
    }
    GgufInterval const* const known = entry_of(gguf_intervals, architecture_);
    if (find("attention.recurrent_layers") != nullptr) {
      std::vector<std::int32_t> const recurrent = per_layer("attention.recurrent_layers", 0, 1);
      for (std::size_t i = 0; i < attends.size(); ++i) attends[i] = attends[i] && recurrent[i] == 0;
      return attends;
    }
    if (known != nullptr || find("full_attention_interval") != nullptr) {
      auto const period = static_cast<std::size_t>(
          number("full_attention_interval", 1, max_index, known != nullptr ? known->period : 1));
      for (std::size_t i = 0; i < attends.size(); ++i) attends[i] = attends[i] && (i + 1) % period == 0;
      return attends;
    }
    if (every && architecture_ != "falcon-h1") refuse_unexplained_state();
    return attends;
  }
  /// Keys of layers without attention, of which no key says which they are.
  void refuse_unexplained_state() const {
    if (is_recurrent(architecture_)) {
      throw FormatError({"general.architecture", "one of which it is known which layers have keys and values",
                         detail::quoted(architecture_), metadata_.source()});
    }
    for (std::string_view const key :
         {"ssm.conv_kernel", "ssm.state_size", "shortconv.l_cache", "kda.head_dim", "wkv.head_size"}) {
      if (find(key) != nullptr) {
        fail(key, "none: which layers have no keys and values is not known here", "a value");
      }
    }
  }

  struct Heads {
    std::vector<std::int32_t> query, kv;
  };
  [[nodiscard]] Heads read_heads() const {
    Heads heads{per_layer("attention.head_count", 0, max_index), {}};
    heads.kv = find("attention.head_count_kv") ? per_layer("attention.head_count_kv", 0, max_index) : heads.query;
    std::int32_t const most = *std::max_element(heads.query.begin(), heads.query.end());
    if (std::int64_t{layers_} * most > max_heads) {
      fail("attention.head_count", {"at most ", max_heads, " in all layers"}, {layers_, " layers x ", most, " heads"});
    }
    return heads;
  }

  void fill_latents(std::vector<LayerShape>& layers, std::vector<bool> const& attends) const {
    std::int32_t const rank = required("attention.kv_lora_rank", 1, max);
    std::int32_t const rope = required("rope.dimension_count", 1, max);
    std::int64_t const row = std::int64_t{rank} + rope;
    if (find("attention.key_length_mla") != nullptr && number("attention.key_length", 1, max, 0) != row) {
      fail("attention.key_length", {row, ", the latent and its rotated channels"},
           number("attention.key_length", 1, max, 0));
    }
    if (number("attention.sliding_window", 0, max, 0) != 0) {
      fail("attention.sliding_window", "none: latents with a window are not known here", "a window");
    }
    std::vector<std::int32_t> const query = read_heads().query;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!attends[i]) continue;
      if (query[i] == 0) fail("attention.head_count", {"heads in layer ", i}, 0);
      layers[i] = {.kind = LayerKind::latent,
                   .num_query_heads = query[i],
                   .num_kv_heads = 1,
                   .head_dim = row,
                   .value_dim = rank};
    }
  }

  void fill(std::vector<LayerShape>& layers, std::vector<bool> const& attends) const {
    Heads const heads = read_heads();
    std::int32_t otherwise = 0;
    if (!find("attention.key_length") || !find("attention.value_length")) {
      std::int32_t const width = required("embedding_length", 1, max);
      if (heads.query.front() == 0) fail("attention.key_length", "an integer, as layer 0 has no heads", "nothing");
      otherwise = width / heads.query.front();
    }
    std::int32_t const key_length = number("attention.key_length", 1, max, otherwise);
    std::int32_t const value_length = number("attention.value_length", 1, max, otherwise);
    if (key_length == 0 || value_length == 0) fail("embedding_length", "at least a channel per head", "fewer");
    std::int32_t window = 0;
    std::vector<bool> const slides = read_sliding(window);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!attends[i]) continue;
      if (heads.query[i] == 0 || heads.query[i] % heads.kv[i] != 0) {
        fail("attention.head_count", {"a multiple of the ", heads.kv[i], " KV heads of layer ", i}, heads.query[i]);
      }
      layers[i] = {.kind = slides[i] ? LayerKind::sliding : LayerKind::attention,
                   .num_query_heads = heads.query[i],
                   .num_kv_heads = heads.kv[i],
                   .head_dim = key_length,
                   .value_dim = value_length,
                   .window = slides[i] ? window : 0};
      if (!slides[i]) continue;
      layers[i].head_dim = number("attention.key_length_swa", 1, max, key_length);
      layers[i].value_dim = number("attention.value_length_swa", 1, max, value_length);
    }
  }

  /// Which layers slide. @param window  set to their window
  [[nodiscard]] std::vector<bool> read_sliding(std::int32_t& window) const {
    constexpr std::string_view key = "attention.sliding_window";
    constexpr std::string_view pattern_key = "attention.sliding_window_pattern";
    std::vector<bool> slides(static_cast<std::size_t>(layers_));
    GgufTurns const* const turns = entry_of(gguf_turns, architecture_);
    std::int32_t absent = turns != nullptr ? turns->absent_window : 0;
    if (architecture_ == "exaone4" && layers_ == 64) absent = 4096;
    if (absent < 0) (void)required(key, 0, max);
    window = number(key, 0, max, std::max(absent, 0));
    if (window == 0 || architecture_ == "phi3" || architecture_ == "llama4") return slides;  // llama.cpp has none there
    if (architecture_ == "smallthinker") window = 4096;
    GgufValue const* const pattern = find(pattern_key);
    if (pattern != nullptr && pattern->kind != GgufValue::Kind::number) {
      std::vector<std::int32_t> const flags = per_layer(pattern_key, 0, 1);
      for (std::size_t i = 0; i < slides.size(); ++i) slides[i] = flags[i] != 0;
      return slides;
    }
    if (architecture_ == "lfm2") {
      slides.assign(slides.size(), true);
      return slides;
    }
    if (turns == nullptr) {
      fail(key, {"none, or ", pattern_key, ": which layers of this architecture slide is not known here"}, window);
    }
    auto const period = static_cast<std::size_t>(number(pattern_key, 0, max_index, turns->period));
    for (std::size_t i = 0; i < slides.size(); ++i) {
      slides[i] = period == 0 || (turns->first ? i % period != 0 : i % period + 1 < period);
    }
    return slides;
  }

  /// The last layers of some models read the cache of the last layer before them that is of their kind.
  void share(std::vector<LayerShape>& layers) const {
    constexpr std::string_view key = "attention.shared_kv_layers";
    std::int32_t shared = number(key, 0, layers_ - 1, 0);
    if (architecture_ == "gemma3n") shared = std::max(0, layers_ - 20);
    if (shared != 0 && architecture_ != "gemma3n" && architecture_ != "gemma4") {
      fail(key, "none: whose cache layers of this architecture share is not known here", shared);
    }
    auto const first = static_cast<std::size_t>(layers_ - shared);
    for (std::size_t i = first; i < layers.size(); ++i) {
      if (!layers[i].attends()) continue;
      std::size_t of = first;
      while (of > 0 && layers[of - 1] != layers[i]) --of;
      if (of == 0) fail(key, {"a layer before layer ", first, " of the shape of layer ", i}, "none");
      layers[i].cache_layer = static_cast<std::int32_t>(of) - 1;
    }
  }

  GgufMetadata const& metadata_;
  std::string architecture_;
  std::int32_t blocks_ = 0;
  std::int32_t layers_ = 0;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
