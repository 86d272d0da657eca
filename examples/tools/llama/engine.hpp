#pragma once

// The part of llama.cpp that headaware's programs need: a model, its tokens, and the evaluation of one piece of text.

#include "tools/llama/node_observer.hpp"

#include <headaware/model_shape.hpp>

#include <llama.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama_adapter {

/// Name and sizes of a model, beside the caches of its layers.
struct ModelInfo {
  std::string name;
  std::string architecture;
  std::int32_t hidden_size = 0;
  std::int32_t vocabulary = 0;
  std::int32_t trained_tokens = 0;  ///< longest context it was trained for
  bool recurrent = false;           ///< some layers have a state that evaluations change, beside or instead of a cache
};

/// A model read from a GGUF file.
class Model {
 public:
  /// @throws ArgumentError if `path` is no file, FormatError if the engine cannot read it, its layers are not known to
  ///         `load_gguf_shape`, or the engine makes others of them
  explicit Model(std::filesystem::path const& path);

  [[nodiscard]] std::filesystem::path const& path() const { return path_; }
  [[nodiscard]] ModelInfo const& info() const { return info_; }
  /// The cache of every layer, as the file tells it.
  [[nodiscard]] headaware::ModelShape const& shape() const { return shape_; }

  /// @param with_specials  put before and after what the model wants there, such as its BOS token
  [[nodiscard]] std::vector<std::int32_t> tokenize(std::string_view text, bool with_specials) const;
  /// True if the model wants a BOS token before any text.
  [[nodiscard]] bool begins_with_bos() const;
  [[nodiscard]] std::int32_t bos() const;
  /// The text of one token; bytes, not always whole characters.
  [[nodiscard]] std::string piece(std::int32_t token) const;
  /// The text of tokens without BOS and the like.
  [[nodiscard]] std::string detokenize(std::span<std::int32_t const> tokens) const;

  [[nodiscard]] llama_model* get() const { return model_.get(); }

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  std::filesystem::path path_;
  std::unique_ptr<llama_model, Free> model_;
  ModelInfo info_;
  headaware::ModelShape shape_;
};

/// Elements of the engine's own cache. Blocks of 8 and 4 bits need its fused attention, which turns their rows by a
/// Hadamard matrix where the engine has that switched on, as it has by itself.
enum class KvType : std::uint8_t { f32, f16, q8_0, q4_0 };

/// Bytes of the keys and values of so many tokens in such a cache, all layers together.
[[nodiscard]] std::int64_t engine_kv_bytes(headaware::ModelShape const& shape, KvType kv, std::int64_t tokens);

/// Options of an evaluation.
struct ContextOptions {
  std::int32_t tokens = 512;        ///< most tokens of an evaluation; each is one graph
  std::int32_t cells = 0;           ///< of the engine's own cache, for `extend`; 0: as many as tokens
  bool flash_attention = false;     ///< one fused node per layer; rounds queries, keys and values to half precision
  KvType kv = KvType::f32;          ///< of the engine's own cache
  bool all_logits = true;           ///< of every token, as `losses` needs; else of the last one
  std::int32_t threads = 1;         ///< more than idle cores wait for each other at every node
  NodeObserver* observer = nullptr; /**< borrowed */
};

/// A model ready to evaluate.
class Context {
 public:
  /// @param model  borrowed @throws ArgumentError on options that make no sense, Error if the engine refuses them
  Context(Model const& model, ContextOptions const& options);

  /// Runs the model over tokens with nothing before them in the engine's memory.
  /// @throws ArgumentError on tokens that do not fit, Error if the engine fails, and whatever the observer threw
  void evaluate(std::span<std::int32_t const> tokens, std::int32_t first_position = 0);

  /// The same, but states of recurrent layers go on from the last evaluation: all that the engine remembers of the
  /// tokens before where attention runs elsewhere. Those of position 0 begin anew.
  void evaluate_on_states(std::span<std::int32_t const> tokens, std::int32_t first_position);

  /// The same with what went before still in the engine's memory: how the engine decodes by itself.
  void extend(std::span<std::int32_t const> tokens, std::int32_t first_position);

  /// Logits [vocabulary] of a token of the last evaluation. @return borrowed; valid until the next one
  [[nodiscard]] std::span<float const> logits(std::int32_t index) const;

  /// −log p(token i + 1 | tokens 0 … i) of the last evaluation. @return [tokens − 1]
  [[nodiscard]] std::vector<double> losses() const;

 private:
  void decode(std::span<std::int32_t const> tokens, std::int32_t first_position);

  struct Free {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  struct Watch;
  struct FreeWatch {
    void operator()(Watch* watch) const;
  };
  Model const* model_;
  ContextOptions options_;
  std::unique_ptr<Watch, FreeWatch> watch_;
  std::unique_ptr<llama_context, Free> context_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint8_t> states_;  ///< of recurrent layers, on their way through an emptied memory
};

/// −log p(token) under logits [vocabulary].
[[nodiscard]] double loss_of(std::span<float const> logits, std::int32_t token);

/// The likeliest token under logits [vocabulary]. @pre not empty
[[nodiscard]] std::int32_t greedy_token(std::span<float const> logits);

/// Mean of losses as perplexity: exp of it.
[[nodiscard]] double perplexity(std::span<double const> losses);

}  // namespace llama_adapter
