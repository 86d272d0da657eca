#include "tools/llama/chunk_capture.hpp"

#include <headaware/error.hpp>
#include <headaware/io/npy.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Whether two layers' rows go into one array.
bool same_rows(ha::LayerShape const& a, ha::LayerShape const& b) {
  return a.kind != ha::LayerKind::latent && a.num_query_heads == b.num_query_heads &&
         a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim && a.value_dim == b.head_dim;
}

}  // namespace

ChunkCapture::ChunkCapture(std::vector<std::int32_t> layers, ha::ModelShape const& model) : layers_(std::move(layers)) {
  bool const ascending = std::adjacent_find(layers_.begin(), layers_.end(), std::greater_equal<>()) == layers_.end();
  ha::require(!layers_.empty() && ascending, "layers", "at least one, ascending", "others", "ChunkCapture");
  for (std::int32_t const layer : layers_) {
    ha::require(model.layer(layer).has_cache(), "layer", "one with keys and values of its own", layer, "ChunkCapture");
    each_.push_back({.shape = model.layer(layer)});
    alike_ = alike_ && same_rows(each_.back().shape, each_.front().shape);
  }
  rows_.resize(alike_ ? 1 : layers_.size());
}

void ChunkCapture::Tensor::append(float const* token_major, std::int64_t tokens, std::int32_t heads,
                                  std::int64_t channels, std::string const& where) {
  constexpr float largest = 65504;
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t token = 0; token < tokens; ++token) {
      float const* const row = token_major + (token * heads + head) * channels;
      for (std::int64_t c = 0; c < channels; ++c) {
        ha::require(std::abs(row[c]) <= largest, "rows", "numbers that half precision holds", row[c], where);
        elements.push_back(ha::from_float<ha::float16>(row[c]));
      }
    }
  }
}

void ChunkCapture::take(TappedAttention const& tapped) {
  auto const place = std::lower_bound(layers_.begin(), layers_.end(), tapped.layer);
  if (place == layers_.end() || *place != tapped.layer) return;
  auto const index = static_cast<std::size_t>(place - layers_.begin());
  std::string const where = "layer " + std::to_string(tapped.layer);
  ha::require(index == taken_, "layers", "one after the other, once each", "another order", where);
  if (taken_ == 0) tokens_ = tapped.tokens;
  capture::LayerDescription const& first = each_.front();
  bool const same = tapped.scale == first.scale && tapped.soft_cap == first.soft_cap;
  if (alike_ && scored_ && !same) {
    throw ha::Error({"scale and soft cap", std::to_string(first.scale) + " and " + std::to_string(first.soft_cap),
                     std::to_string(tapped.scale) + " and " + std::to_string(tapped.soft_cap), where});
  }
  capture::LayerDescription& layer = each_[index];
  layer.scale = tapped.scale;
  layer.soft_cap = tapped.soft_cap;
  scored_ = true;
  if (tapped.sinks != nullptr) layer.sinks.assign(tapped.sinks, tapped.sinks + tapped.num_query_heads);
  Layer& rows = rows_[alike_ ? 0 : index];
  rows.queries.append(tapped.queries, tokens_, tapped.num_query_heads, tapped.head_dim, where + ", queries");
  rows.keys.append(tapped.keys, tokens_, tapped.num_kv_heads, tapped.head_dim, where + ", keys");
  if (!tapped.latent) {
    rows.values.append(tapped.values, tokens_, tapped.num_kv_heads, tapped.value_dim, where + ", values");
  }
  ++taken_;
}

void ChunkCapture::save(std::filesystem::path const& folder, std::string const& name) {
  if (taken_ != layers_.size()) {
    throw ha::Error(
        {"layers of " + name, std::to_string(layers_.size()), std::to_string(taken_), "ChunkCapture::save"});
  }
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    ha::LayerShape const& shape = each_[i].shape;
    std::string const stem = alike_ ? name : name + "_layer" + std::to_string(layers_[i]);
    auto const write = [&](char const* suffix, Tensor& tensor, std::int64_t heads, std::int64_t channels) {
      std::vector<std::int64_t> extents{heads, tokens_, channels};
      if (alike_) extents.insert(extents.begin(), static_cast<std::int64_t>(layers_.size()));
      ha::save_npy(folder / (stem + suffix),
                   ha::NpyArray::of(std::move(extents), std::span<ha::float16 const>(tensor.elements)));
      tensor.elements.clear();
    };
    write("_q.npy", rows_[i].queries, shape.num_query_heads, shape.head_dim);
    write("_k.npy", rows_[i].keys, shape.num_kv_heads, shape.head_dim);
    if (shape.kind != ha::LayerKind::latent) {
      write("_v.npy", rows_[i].values, shape.num_kv_heads, shape.value_dim);
    }
  }
  taken_ = 0;
  if (std::exchange(sinks_saved_, true)) return;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    std::vector<float> const& sinks = each_[i].sinks;
    if (sinks.empty()) continue;
    ha::save_npy(folder / ("layer" + std::to_string(layers_[i]) + "_sinks.npy"),
                 ha::NpyArray::of({std::ssize(sinks)}, std::span<float const>(sinks)));
  }
}

}  // namespace llama_adapter
