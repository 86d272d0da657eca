#pragma once

// Writes GGUF files of models with random weights: as small as the engine takes them.
// Source: ggml, docs/gguf.md

#include <headaware/io/file.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace headaware_test {

class GgufWriter {
 public:
  /// Keys below begin with it, but those with a leading dot: `.general.name`.
  explicit GgufWriter(std::string architecture) : architecture_(std::move(architecture)) {
    text(".general.architecture", architecture_);
    text(".general.name", "synthetic " + architecture_);
  }

  void number(std::string_view key, std::uint32_t value) { put(key, 4, value); }
  void real(std::string_view key, float value) { put(key, 6, value); }
  void flag(std::string_view key, bool value) { put(key, 7, static_cast<std::uint8_t>(value ? 1 : 0)); }
  void text(std::string_view key, std::string_view value) {
    begin(key, 8);
    append_text(keys_, value);
  }
  void numbers(std::string_view key, std::vector<std::int32_t> const& values) { put_all(key, 5, values); }
  void reals(std::string_view key, std::vector<float> const& values) { put_all(key, 6, values); }
  void texts(std::string_view key, std::vector<std::string> const& values) {
    begin_array(key, 8, values.size());
    for (std::string const& value : values) append_text(keys_, value);
  }

  /// A vocabulary of the 256 bytes, a space, and three special tokens; no text is without tokens.
  void byte_vocabulary() {
    std::vector<std::string> tokens{"<unk>", "<s>", "</s>", "\xe2\x96\x81"};  // a space, as SentencePiece has it
    std::vector<std::int32_t> types{2, 3, 3, 1};
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (std::size_t byte = 0; byte < 256; ++byte) {
      tokens.push_back(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
      types.push_back(6);
    }
    vocabulary_ = static_cast<std::int64_t>(tokens.size());
    text(".tokenizer.ggml.model", "llama");
    texts(".tokenizer.ggml.tokens", tokens);
    numbers(".tokenizer.ggml.token_type", types);
    reals(".tokenizer.ggml.scores", std::vector<float>(tokens.size(), 0.0F));
    flag(".tokenizer.ggml.add_space_prefix", false);
  }
  [[nodiscard]] std::int64_t vocabulary() const { return vocabulary_; }

  /// Random weights with a mean of 0, small enough that rows of products stay near 1. @param ne  the fastest first
  void weights(std::string const& name, std::initializer_list<std::int64_t> ne) {
    add(name, ne, 0, 1 / std::sqrt(static_cast<float>(*ne.begin())));
  }
  /// Random numbers about a mean. @param spread  standard deviation
  void numbers_about(std::string const& name, std::initializer_list<std::int64_t> ne, float mean, float spread) {
    add(name, ne, mean, spread);
  }

  void save(std::filesystem::path const& path) const {
    std::string bytes("GGUF");
    append(bytes, std::uint32_t{3});
    append(bytes, static_cast<std::uint64_t>(tensors_.size()));
    append(bytes, key_count_);
    bytes += keys_;
    std::uint64_t offset = 0;
    for (Tensor const& tensor : tensors_) {
      append_text(bytes, tensor.name);
      append(bytes, static_cast<std::uint32_t>(tensor.ne.size()));
      for (std::int64_t const n : tensor.ne) append(bytes, static_cast<std::uint64_t>(n));
      append(bytes, std::uint32_t{0});  // single precision
      append(bytes, offset);
      offset += aligned(tensor.elements.size() * sizeof(float));
    }
    bytes.resize(aligned(bytes.size()), '\0');
    for (Tensor const& tensor : tensors_) {
      std::size_t const at = bytes.size();
      bytes.resize(at + aligned(tensor.elements.size() * sizeof(float)), '\0');
      std::memcpy(bytes.data() + at, tensor.elements.data(), tensor.elements.size() * sizeof(float));
    }
    headaware::write_file(path, bytes);
  }

 private:
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> ne;
    std::vector<float> elements;
  };
  static std::size_t aligned(std::size_t bytes) { return (bytes + 31) / 32 * 32; }
  template <class T>
  static void append(std::string& bytes, T const& value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes.append(raw, sizeof(T));
  }
  static void append_text(std::string& bytes, std::string_view text) {
    append(bytes, static_cast<std::uint64_t>(text.size()));
    bytes += text;
  }
  void begin(std::string_view key, std::uint32_t type) {
    append_text(keys_, key.front() == '.' ? std::string(key.substr(1)) : architecture_ + "." + std::string(key));
    append(keys_, type);
    ++key_count_;
  }
  void begin_array(std::string_view key, std::uint32_t type, std::size_t count) {
    begin(key, 9);
    append(keys_, type);
    append(keys_, static_cast<std::uint64_t>(count));
  }
  template <class T>
  void put(std::string_view key, std::uint32_t type, T value) {
    begin(key, type);
    append(keys_, value);
  }
  template <class T>
  void put_all(std::string_view key, std::uint32_t type, std::vector<T> const& values) {
    begin_array(key, type, values.size());
    for (T const& value : values) append(keys_, value);
  }
  void add(std::string const& name, std::initializer_list<std::int64_t> ne, float mean, float spread) {
    std::size_t count = 1;
    for (std::int64_t const n : ne) count *= static_cast<std::size_t>(n);
    std::normal_distribution<float> normal(mean, spread);
    Tensor& tensor = tensors_.emplace_back(Tensor{name, ne, std::vector<float>(count)});
    for (float& element : tensor.elements) element = normal(random_);
  }

  std::string architecture_;
  std::string keys_;
  std::uint64_t key_count_ = 0;
  std::int64_t vocabulary_ = 0;
  std::vector<Tensor> tensors_;
  std::mt19937 random_{20};
};

}  // namespace headaware_test
