#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/layer_letters.hpp"

#include <headaware/io/gguf.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// The beginning of a GGUF file, key by key.
class Header {
 public:
  explicit Header(std::string architecture) : architecture_(std::move(architecture)) {
    text("general.architecture", architecture_);
  }

  template <class T>
  Header& put(T value) {
    bytes_.append(reinterpret_cast<char const*>(&value), sizeof value);
    return *this;
  }
  /// A key without its value; of the architecture unless it has a dot in front.
  Header& key(std::string_view name, std::uint32_t type) {
    ++keys_;
    string(name);
    return put(type);
  }
  Header& text(std::string_view name, std::string_view value) {
    key(name, 8);
    return string(value);
  }
  Header& operator()(std::string_view name, std::uint32_t value) {
    return key(architecture_ + "." + std::string(name), 4).put(value);
  }
  Header& list(std::string_view name, std::initializer_list<std::int32_t> values) {
    key(architecture_ + "." + std::string(name), 9).put(std::uint32_t{5}).put(std::uint64_t{values.size()});
    for (std::int32_t const value : values) put(value);
    return *this;
  }
  Header& flags(std::string_view name, std::initializer_list<bool> values) {
    key(architecture_ + "." + std::string(name), 9).put(std::uint32_t{7}).put(std::uint64_t{values.size()});
    for (bool const value : values) put(static_cast<char>(value));
    return *this;
  }

  [[nodiscard]] std::string str(std::uint32_t version = 3) const {
    std::string head = "GGUF";
    auto const add = [&](auto value) { head.append(reinterpret_cast<char const*>(&value), sizeof value); };
    add(version);
    add(std::uint64_t{7});  // tensors, that are not looked at
    add(keys_);
    return head + bytes_;
  }

 private:
  Header& string(std::string_view value) {
    put(std::uint64_t{value.size()});
    bytes_ += value;
    return *this;
  }

  std::string architecture_;
  std::string bytes_;
  std::uint64_t keys_ = 0;
};

/// Four layers of 8 query heads and 2 KV heads of 16 channels.
Header four_layers(std::string const& architecture) {
  Header header(architecture);
  header("block_count", 4)("embedding_length", 128)("attention.head_count", 8)("attention.head_count_kv", 2);
  return header;
}

Layers parse(std::string const& bytes) {
  auto const shape = ha::parse_gguf_shape(std::as_bytes(std::span(bytes)), "model.gguf");
  return {shape.layers().begin(), shape.layers().end()};
}
Layers parse(Header const& header) { return parse(header.str()); }

void check_rejected(std::string const& bytes, ha::ErrorDetail const& parts) {
  headaware_test::check_error<ha::FormatError>([&] { (void)parse(bytes); }, parts);
}
void check_rejected(Header const& header, ha::ErrorDetail const& parts) { check_rejected(header.str(), parts); }

}  // namespace

TEST_CASE("layers of a GGUF file by its keys", "[io]") {
  CHECK(parse(four_layers("llama")) == layers_of("FFFF"));
  CHECK(parse(four_layers("llama").str(2)) == layers_of("FFFF"));
  CHECK(parse(four_layers("of tomorrow")("attention.q_lora_rank", 3)) == layers_of("FFFF"));
  CHECK(parse(four_layers("phi3")("attention.sliding_window", 9)) == layers_of("FFFF"));
  CHECK(parse(four_layers("of tomorrow")("rope.scaling.attn_factor", 1)("expert_shared_count", 1)(
            "expert_shared_feed_forward_length", 8)("attn_logit_softcapping", 50)("tensor_data_layout", 1)(
            "rescale_every_n_layers", 6)("interleave_moe_layer_step", 2)("leading_dense_block_count", 1)) ==
        layers_of("FFFF"));
  // Lists may go on with blocks that predict further tokens.
  CHECK(parse(Header("glm4moe")("block_count", 5)("nextn_predict_layers", 1)("embedding_length", 128)(
                  "attention.head_count", 8)
                  .list("attention.head_count_kv", {2, 2, 2, 2, 2})) == layers_of("FFFF"));
  CHECK(parse(four_layers("llama4")("attention.sliding_window", 0)) == layers_of("FFFF"));
  CHECK(parse(four_layers("falcon-h1")("ssm.conv_kernel", 4)) == layers_of("FFFF"));
  CHECK(parse(Header("mamba")("block_count", 2)("attention.head_count", 0)) == layers_of("--"));
  CHECK(parse(four_layers("qwen3")("nextn_predict_layers", 1)) == layers_of("FFF"));
  CHECK(parse(Header("gpt2")("block_count", 1)("embedding_length", 32)("attention.head_count", 4)) ==
        Layers{{.num_query_heads = 4, .num_kv_heads = 4, .head_dim = 8, .value_dim = 8}});

  // By turns that the architecture fixes, or the file.
  std::initializer_list<std::pair<char const*, char const*>> const turns{
      {"gemma2", "sFsF"}, {"gemma3", "ssss"},     {"gpt-oss", "sFsF"}, {"cohere2", "sssF"},
      {"olmo2", "sssF"},  {"cohere2moe", "Fsss"}, {"laguna", "Fsss"},  {"lfm2", "ssss"}};
  for (auto const& [architecture, letters] : turns) {
    CAPTURE(architecture);
    CHECK(parse(four_layers(architecture)("attention.sliding_window", 9)) == layers_of(letters));
  }
  CHECK(parse(four_layers("gemma2")) == layers_of("sFsF", 4096));
  CHECK(parse(four_layers("gemma3")) == layers_of("FFFF"));
  CHECK(parse(four_layers("smallthinker")("attention.sliding_window", 9)) == layers_of("Fsss", 4096));
  CHECK(parse(four_layers("gemma3")("attention.sliding_window", 9)("attention.sliding_window_pattern", 3)) ==
        layers_of("ssFs"));
  CHECK(parse(four_layers("gemma3")("attention.sliding_window", 9)("attention.sliding_window_pattern", 1)) ==
        layers_of("FFFF"));
  CHECK(parse(four_layers("odd")("attention.sliding_window", 9)
                  .flags("attention.sliding_window_pattern", {true, false, false, true})) == layers_of("sFFs"));

  // Without keys and values.
  CHECK(
      parse(Header("jamba")("block_count", 4)("embedding_length", 128)("attention.head_count", 8)("ssm.conv_kernel", 4)
                .list("attention.head_count_kv", {0, 2, 0, 0})) == layers_of("-F--"));
  CHECK(parse(four_layers("qwen3next")("ssm.conv_kernel", 4)) == layers_of("---F"));
  CHECK(parse(four_layers("qwen35")("full_attention_interval", 2)("ssm.conv_kernel", 4)) == layers_of("-F-F"));
  CHECK(parse(four_layers("qwen35")("ssm.conv_kernel", 4)
                  .flags("attention.recurrent_layers", {true, false, false, true})) == layers_of("-FF-"));
  CHECK(parse(Header("jamba")("block_count", 2)("attention.head_count", 8)("attention.head_count_kv", 0)) ==
        layers_of("--"));

  // Heads and channels that differ.
  ha::LayerShape wide = sliding(9);
  wide.num_kv_heads = 4;
  wide.head_dim = 24;
  wide.value_dim = 8;
  ha::LayerShape narrow = full;
  narrow.head_dim = 12;
  CHECK(parse(Header("mimo2")("block_count", 3)("attention.head_count", 8)("attention.key_length", 12)(
                  "attention.value_length", 16)("attention.key_length_swa", 24)("attention.value_length_swa", 8)(
                  "attention.sliding_window", 9)
                  .list("attention.head_count_kv", {2, 4, 4})
                  .list("attention.sliding_window_pattern", {0, 1, 1})) == Layers{narrow, wide, wide});

  // Latents.
  ha::LayerShape const latent{
      .kind = ha::LayerKind::latent, .num_query_heads = 8, .num_kv_heads = 1, .head_dim = 40, .value_dim = 32};
  Header deepseek("deepseek2");
  deepseek("block_count", 2)("attention.head_count", 8)("attention.head_count_kv", 1)("attention.kv_lora_rank", 32)(
      "rope.dimension_count", 8)("attention.indexer.top_k", 64);
  CHECK(parse(deepseek) == Layers{latent, latent});
  deepseek("attention.key_length", 40)("attention.value_length", 32)("attention.key_length_mla", 24)(
      "attention.value_length_mla", 16);
  CHECK(parse(deepseek) == Layers{latent, latent});
  CHECK(parse(Header("kimi-linear")("block_count", 3)("attention.head_count", 8)("attention.kv_lora_rank", 32)(
                  "rope.dimension_count", 8)("kda.head_dim", 4)
                  .list("attention.head_count_kv", {0, 0, 8})) == Layers{none, none, latent});
  CHECK(parse(four_layers("minicpm3")("attention.kv_lora_rank", 32)("rope.dimension_count", 8)) == layers_of("FFFF"));

  // Shared caches.
  Layers shared = layers_of("sFsF");
  shared[2].cache_layer = 0;
  shared[3].cache_layer = 1;
  CHECK(parse(four_layers("gemma4")("attention.sliding_window", 9)("attention.shared_kv_layers", 2)
                  .flags("attention.sliding_window_pattern", {true, false, true, false})) == shared);
  Header gemma3n("gemma3n");
  gemma3n("block_count", 30)("embedding_length", 128)("attention.head_count", 8)("attention.head_count_kv", 2)(
      "attention.sliding_window", 9);
  Layers const layers = parse(gemma3n);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    CAPTURE(i);
    CHECK(layers[i].kind == (i % 5 == 4 ? ha::LayerKind::attention : ha::LayerKind::sliding));
    CHECK(layers[i].cache_layer == (i < 20 ? -1 : i % 5 == 4 ? 19 : 18));
  }
}

TEST_CASE("a GGUF file that changes the cache in an unknown way is refused by key", "[io]") {
  check_rejected(
      four_layers("llama")("attention.sliding_window", 9),
      {"llama.attention.sliding_window", "which layers of this architecture slide", "9", "model.gguf, offset"});
  check_rejected(four_layers("gpt-oss"), {"gpt-oss.attention.sliding_window", "an integer", "nothing", "model.gguf"});
  check_rejected(four_layers("llama4"), {"llama4.attention.sliding_window", "chunk", "", ""});
  check_rejected(four_layers("odd")("attention.compress_ratios", 4),
                 {"odd.attention.compress_ratios", "not known here", "a value", "offset"});
  check_rejected(four_layers("odd")("attention.causal", 0), {"odd.attention.causal", "later tokens", "", ""});
  check_rejected(four_layers("t5")("decoder_block_count", 4), {"t5.decoder_block_count", "another input", "", ""});
  check_rejected(four_layers("nanbeige")("num_loops", 2), {"nanbeige.num_loops", "several times", "", ""});
  check_rejected(four_layers("odd")("ssm.conv_kernel", 4),
                 {"odd.ssm.conv_kernel", "which layers have no keys and values", "", ""});
  check_rejected(four_layers("stripedhyena")("hyena.short_conv", 3),
                 {"stripedhyena.hyena.short_conv", "what it does to the cache", "a value", "offset"});
  check_rejected(four_layers("gla")("gla.expand", 1), {"gla.gla.expand", "what it does to the cache", "", ""});
  check_rejected(four_layers("odd")("local_attention", 9), {"odd.local_attention", "what it does", "", ""});
  check_rejected(four_layers("hrm_text")("hrm.h_cycles", 2), {"hrm_text.hrm.h_cycles", "what it does", "", ""});
  for (char const* const recurrent : {"gla", "retnet", "stripedhyena", "rwkv8", "gated_deltanet"}) {
    check_rejected(four_layers(recurrent),
                   {"general.architecture", "which layers have keys and values", recurrent, "model.gguf"});
  }
  check_rejected(four_layers("odd")("attention.shared_kv_layers", 2), {"odd.attention.shared_kv_layers", "", "2", ""});
  check_rejected(four_layers("deepseek2")("attention.kv_lora_rank", 32),
                 {"deepseek2.rope.dimension_count", "an integer", "nothing", ""});
  check_rejected(four_layers("deepseek2")("attention.kv_lora_rank", 32)("rope.dimension_count", 8)(
                     "attention.key_length_mla", 24)("attention.key_length", 24),
                 {"deepseek2.attention.key_length", "40, the latent", "24", ""});
  check_rejected(Header("llama"), {"llama.block_count", "an integer", "nothing", "model.gguf"});
  check_rejected(Header("llama")("block_count", 0), {"llama.block_count", "[1, ", "0", "offset"});
  check_rejected(Header("llama")("block_count", 2), {"llama.attention.head_count", "", "nothing", ""});
  check_rejected(Header("llama")("block_count", 2)("attention.head_count", 8),
                 {"llama.embedding_length", "an integer", "nothing", ""});
  check_rejected(four_layers("llama").list("attention.key_length", {1}),
                 {"llama.attention.key_length", "an integer", "something else", ""});
  check_rejected(Header("llama")("block_count", 2)("embedding_length", 8)("attention.head_count", 8)
                     .list("attention.head_count_kv", {8, 8, 8}),
                 {"llama.attention.head_count_kv", "2 numbers, one per layer", "3 numbers", ""});
  check_rejected(
      Header("llama")("block_count", 2)("embedding_length", 8)("attention.head_count", 8)("attention.head_count_kv", 3),
      {"llama.attention.head_count", "a multiple of the 3 KV heads of layer 0", "8", ""});
  check_rejected(Header("llama")("block_count", 1U << 20U)("embedding_length", 8)("attention.head_count", 8),
                 {"llama.attention.head_count", "at most 1048576", "1048576 layers x 8 heads", ""});
}

TEST_CASE("a file that is no whole GGUF header is one error", "[io]") {
  check_rejected(std::string(), {"truncated GGUF file at the magic number", "4 bytes", "0", "model.gguf, offset 0"});
  check_rejected(std::string("GGML"), {"magic number", "GGUF", "\"GGML\"", ""});
  check_rejected(Header("llama").str(1), {"version of GGUF", "2 or 3", "1", ""});
  check_rejected(Header("llama").str(0x03000000U), {"version of GGUF", "little-endian", "50331648", ""});

  // Cut anywhere, in memory or as a file.
  headaware_test::TemporaryFolder const folder;
  std::string const whole =
      four_layers("llama").list("attention.key_length", {1}).text("tokenizer.ggml.model", "x").str();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    CAPTURE(length);
    check_rejected(whole.substr(0, length), {"truncated GGUF file at", "bytes", "", "model.gguf, offset"});
  }
  ha::write_file(folder / "cut.gguf", std::string_view(whole).substr(0, whole.size() - 1));
  headaware_test::check_error<ha::FormatError>(
      [&] { (void)ha::load_gguf_shape(folder / "cut.gguf"); },
      {"truncated GGUF file at \"tokenizer.ggml.model\"", "1 bytes", "0", "cut.gguf"});
  headaware_test::check_error<ha::FileError>([&] { (void)ha::load_gguf_shape(folder / "none.gguf"); },
                                             {"cannot open file", "", "", "none.gguf"});

  Header twice("llama");
  twice("block_count", 1)("block_count", 1);
  check_rejected(twice, {"key", "each key once", "llama.block_count", ""});
  Header nested("llama");
  nested.key("x", 9).put(std::uint32_t{9});
  check_rejected(nested, {"\"x\"", "an array of numbers or strings", "an array of arrays", ""});
  Header odd("llama");
  odd.key("x", 13);
  check_rejected(odd, {"type of \"x\"", "0 to 12", "13", ""});
  Header large("llama");
  large.key("x", 9).put(std::uint32_t{12}).put(~std::uint64_t{0});
  check_rejected(large, {"\"x\"", "within the file", "18446744073709551615", ""});
  std::string many = Header("llama").str();
  std::uint64_t const keys = std::uint64_t{1} << 40U;
  std::memcpy(many.data() + 16, &keys, sizeof keys);
  check_rejected(many, {"number of keys", "at most 65536", "1099511627776", ""});
  std::string no_architecture = "GGUF";
  for (std::uint32_t const word : {3U, 0U, 0U, 0U, 0U}) {
    no_architecture.append(reinterpret_cast<char const*>(&word), sizeof word);
  }
  check_rejected(no_architecture, {"general.architecture", "a string", "nothing", "model.gguf"});

  // Every type of value can be passed over, and numbers of all widths are numbers.
  Header all("llama");
  all.key("f32", 6).put(1.0F).key("f64", 12).put(1.0).key("bool", 7).put('\1').text("text", "t");
  all.key("texts", 9).put(std::uint32_t{8}).put(std::uint64_t{2}).put(std::uint64_t{1}).put('a').put(std::uint64_t{0});
  all.key("reals", 9).put(std::uint32_t{6}).put(std::uint64_t{2}).put(1.0F).put(2.0F);
  all.key("tokenizer.types", 9).put(std::uint32_t{5}).put(std::uint64_t{1}).put(std::int32_t{1});
  all.key("llama.block_count", 0).put(std::uint8_t{1}).key("llama.embedding_length", 2).put(std::uint16_t{32});
  all.key("llama.attention.head_count", 10).put(std::uint64_t{4}).key("llama.attention.head_count_kv", 11);
  all.put(std::int64_t{2}).key("llama.attention.key_length", 1).put(std::int8_t{8});
  all.key("llama.attention.value_length", 3).put(std::int16_t{8});
  ha::write_file(folder / "all.gguf", all.str() + std::string(100000, 't'));
  CHECK(ha::load_gguf_shape(folder / "all.gguf") ==
        ha::ModelShape({{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .value_dim = 8}}));
  Header negative("llama");
  negative.key("llama.block_count", 5).put(std::int32_t{-1});
  check_rejected(negative, {"llama.block_count", "[1, ", "-1", ""});
  Header beyond("llama");
  beyond.key("llama.block_count", 10).put(~std::uint64_t{0});
  check_rejected(beyond, {"llama.block_count", "[1, ", "9223372036854775807", ""});
}
