#pragma once

// Attention from a folder of captured arrays (support/capture.hpp).

#include "tools/analysis/attention_source.hpp"
#include "tools/support/capture.hpp"

#include <headaware/error.hpp>
#include <headaware/io/content_hash.hpp>

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
                                                  [](capture::Sequence const& s) { return s.has_queries(); });
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
    headaware::ContentHash print;
    auto const add = [&](headaware::NpyArray const& array) {
      print.add({reinterpret_cast<char const*>(array.bytes.data()), array.bytes.size()});
    };
    for (capture::Sequence const& sequence : arrays_.sequences) {
      if (sequence.layers.empty()) {
        for (headaware::NpyArray const* array : {&*sequence.queries, &sequence.keys, &sequence.values}) add(*array);
      }
      for (capture::LayerArrays const& layer : sequence.layers) {
        add(*layer.queries);
        add(layer.keys);
        if (layer.values) add(*layer.values);
      }
    }
    for (capture::LayerDescription const& layer : arrays_.each) {
      print.add({reinterpret_cast<char const*>(layer.sinks.data()), layer.sinks.size() * sizeof(float)});
    }
    description_ = "arrays " + print.text() + " of " + std::filesystem::absolute(folder_).lexically_normal().string() +
                   ", pieces of " + std::to_string(chunk_size) + " tokens, at most " + std::to_string(max_tokens);
  }

  [[nodiscard]] std::string name() const override {
    if (!arrays_.model.empty()) return arrays_.model;
    return std::filesystem::absolute(folder_ / ".").lexically_normal().parent_path().filename().string();
  }
  [[nodiscard]] std::string description() const override { return description_; }
  [[nodiscard]] headaware::ModelShape model() const override { return arrays_.shape(); }
  [[nodiscard]] std::vector<std::int32_t> layers() const override { return arrays_.layers; }
  [[nodiscard]] std::vector<std::int64_t> texts() const override {
    std::vector<std::int64_t> result;
    for (Piece const& piece : pieces_) result.push_back(piece.tokens);
    return result;
  }

  void run(std::size_t text, Handler const& handler) override {
    Piece const& piece = pieces_.at(text);
    capture::Sequence const& sequence = arrays_.sequences[piece.sequence];
    for (std::size_t layer = 0; layer < arrays_.each.size(); ++layer) {
      capture::LayerDescription const& each = arrays_.each[layer];
      headaware::LayerShape const& shape = each.shape;
      auto const rows = sequence.rows<headaware::float16>(layer);
      auto const layout = [&](std::int64_t heads, std::int64_t channels) {
        return headaware::strided_bhsd(1, heads, sequence.length(), channels);
      };
      Qkv<headaware::float16> qkv;
      qkv.queries = rows.queries;
      qkv.keys = rows.keys;
      qkv.values = rows.values;
      qkv.query_layout = layout(shape.num_query_heads, shape.head_dim);
      qkv.key_layout = layout(shape.num_kv_heads, shape.head_dim);
      bool const latent = shape.kind == headaware::LayerKind::latent;
      qkv.value_layout = latent ? qkv.key_layout : layout(shape.num_kv_heads, shape.value_dim);
      qkv.num_query_heads = shape.num_query_heads;
      qkv.num_kv_heads = shape.num_kv_heads;
      qkv.tokens = piece.tokens;
      qkv.head_dim = shape.head_dim;
      qkv.value_dim = shape.value_dim;
      qkv.first_token = piece.first;
      qkv.sinks = each.sinks.empty() ? nullptr : each.sinks.data();
      headaware::AttentionScore const score{
          .scale = each.scale, .soft_cap = each.soft_cap, .sliding_window = static_cast<std::int32_t>(shape.window)};
      handler({static_cast<std::int32_t>(layer), qkv, score});
    }
  }

 private:
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
