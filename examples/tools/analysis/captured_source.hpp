#pragma once

// Attention from a folder of captured arrays (support/capture.hpp).

#include "tools/analysis/attention_source.hpp"
#include "tools/support/capture.hpp"
#include "tools/support/content_hash.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace analysis {

class CapturedSource : public AttentionSource {
 public:
  /// @param chunk_size  sequences are cut into pieces of so many tokens; 0: not at all
  /// @param max_tokens  of all sequences together; 0: all
  /// @throws FileError, FormatError unless the folder holds queries, keys and values
  CapturedSource(std::filesystem::path folder, std::int64_t chunk_size, std::int64_t max_tokens)
      : folder_(std::move(folder)), arrays_(capture::load_arrays(folder_)) {
    bool const complete =
        !arrays_.sequences.empty() && std::all_of(arrays_.sequences.begin(), arrays_.sequences.end(),
                                                  [](capture::Sequence const& s) { return s.queries.has_value(); });
    if (!complete) {
      throw headaware::FormatError({"captured arrays", "NAME_q.npy, NAME_k.npy and NAME_v.npy of each sequence",
                                    arrays_.sequences.empty() ? "none" : "some without queries", folder_.string()});
    }
    std::int64_t left = max_tokens > 0 ? max_tokens : INT64_MAX;
    for (std::size_t s = 0; s < arrays_.sequences.size(); ++s) {
      std::int64_t const length = std::min(arrays_.sequences[s].length(), left);
      std::int64_t const step = chunk_size > 0 ? chunk_size : std::max<std::int64_t>(length, 1);
      for (std::int64_t first = 0; first < length; first += step) {
        pieces_.push_back({s, first, std::min(step, length - first)});
      }
      left -= length;
    }
    support::ContentHash print;
    for (capture::Sequence const& sequence : arrays_.sequences) {
      for (support::NpyArray const* array : {&*sequence.queries, &sequence.keys, &sequence.values}) {
        auto const data = array->as<std::uint16_t>();
        print.add({reinterpret_cast<char const*>(data.data()), data.size_bytes()});
      }
    }
    description_ = "arrays " + print.text() + " of " + std::filesystem::absolute(folder_).lexically_normal().string() +
                   ", pieces of " + std::to_string(chunk_size) + " tokens, at most " + std::to_string(max_tokens);
  }

  [[nodiscard]] std::string name() const override {
    if (!arrays_.model.empty()) return arrays_.model;
    return std::filesystem::absolute(folder_ / ".").lexically_normal().parent_path().filename().string();
  }
  [[nodiscard]] std::string description() const override { return description_; }
  [[nodiscard]] headaware::ModelShape model() const override {
    headaware::ModelConfig const each = config();
    std::vector<headaware::LayerShape> layers;
    for (std::int32_t layer = 0; layer < each.num_hidden_layers; ++layer) {
      std::int32_t const window = arrays_.sliding_windows[static_cast<std::size_t>(layer)];
      layers.push_back({.kind = window > 0 ? headaware::LayerKind::sliding : headaware::LayerKind::attention,
                        .num_query_heads = each.num_attention_heads,
                        .num_kv_heads = each.num_key_value_heads,
                        .head_dim = each.head_dim,
                        .value_dim = each.head_dim,
                        .window = window});
    }
    return headaware::ModelShape(std::move(layers));
  }
  [[nodiscard]] std::vector<std::int32_t> layers() const override { return arrays_.layers; }
  [[nodiscard]] std::vector<std::int64_t> texts() const override {
    std::vector<std::int64_t> result;
    for (Piece const& piece : pieces_) result.push_back(piece.tokens);
    return result;
  }

  void run(std::size_t text, Handler const& handler) override {
    Piece const& piece = pieces_.at(text);
    capture::Sequence const& sequence = arrays_.sequences[piece.sequence];
    headaware::ModelConfig const model_config = config();
    for (std::int32_t layer = 0; layer < model_config.num_hidden_layers; ++layer) {
      // The layers of an array lie as a batch.
      auto const layout = [&](std::int64_t heads) {
        return headaware::strided_bhsd(model_config.num_hidden_layers, heads, sequence.length(), model_config.head_dim);
      };
      Qkv<headaware::float16> qkv;
      qkv.queries = sequence.queries->as<headaware::float16>().data();
      qkv.keys = sequence.keys.as<headaware::float16>().data();
      qkv.values = sequence.values.as<headaware::float16>().data();
      qkv.query_layout = layout(model_config.num_attention_heads);
      qkv.key_layout = layout(model_config.num_key_value_heads);
      qkv.value_layout = qkv.key_layout;
      qkv.num_query_heads = model_config.num_attention_heads;
      qkv.num_kv_heads = model_config.num_key_value_heads;
      qkv.tokens = piece.tokens;
      qkv.head_dim = model_config.head_dim;
      qkv.sequence = layer;
      qkv.first_token = piece.first;
      headaware::AttentionScore const score{.scale = arrays_.scale,
                                            .soft_cap = arrays_.soft_cap,
                                            .sliding_window = arrays_.sliding_windows[static_cast<std::size_t>(layer)]};
      handler({layer, qkv, score});
    }
  }

 private:
  /// Heads and channels of every layer.
  [[nodiscard]] headaware::ModelConfig config() const {
    capture::Sequence const& first = arrays_.sequences.front();
    auto const size = [](std::int64_t n) { return static_cast<std::int32_t>(n); };
    return {size(first.keys.shape[0]), size(first.queries->shape[1]), size(first.keys.shape[1]),
            size(first.keys.shape[3])};
  }

  /// Part of a sequence that is one text.
  struct Piece {
    std::size_t sequence;
    std::int64_t first;
    std::int64_t tokens;
  };
  std::filesystem::path folder_;
  capture::Arrays arrays_;
  std::vector<Piece> pieces_;
  std::string description_;
};

}  // namespace analysis
