#include "tools/llama/chunk_capture.hpp"

#include <headaware/error.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

ChunkCapture::ChunkCapture(std::vector<std::int32_t> layers)
    : layers_(std::move(layers)), sliding_windows_(layers_.size()) {
  bool const ascending = std::adjacent_find(layers_.begin(), layers_.end(), std::greater_equal<>()) == layers_.end();
  ha::require(!layers_.empty() && ascending, "layers", "at least one, ascending", "others", "ChunkCapture");
}

void ChunkCapture::append(Tensor& tensor, float const* token_major, std::int32_t heads, std::int32_t layer,
                          char const* what) {
  auto const wrong = [&](std::string expected, std::string got) {
    throw ha::Error({what, std::move(expected), std::move(got), "layer " + std::to_string(layer)});
  };
  if (taken_ > 0 && tensor.heads != heads) {
    wrong(std::to_string(tensor.heads) + " heads, as in other layers", std::to_string(heads));
  }
  tensor.heads = heads;
  constexpr float largest = 65504;
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t token = 0; token < tokens_; ++token) {
      float const* const row = token_major + (token * heads + head) * head_dim_;
      for (std::int64_t c = 0; c < head_dim_; ++c) {
        if (!(std::abs(row[c]) <= largest)) wrong("numbers that half precision holds", std::to_string(row[c]));
        tensor.elements.push_back(ha::from_float<ha::float16>(row[c]));
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
  if (taken_ == 0) {
    tokens_ = tapped.tokens;
    head_dim_ = tapped.head_dim;
  }
  ha::require(tapped.sinks == nullptr, "learned sinks", "none, as captures do not hold them", "some", where);
  ha::require(tapped.value_dim == tapped.head_dim, "channels of a value", tapped.head_dim, tapped.value_dim, where);
  if (tapped.head_dim != head_dim_) {
    throw ha::Error(
        {"head_dim", std::to_string(head_dim_) + ", as in other layers", std::to_string(tapped.head_dim), where});
  }
  if (scored_ && (tapped.scale != scale_ || tapped.soft_cap != soft_cap_)) {
    throw ha::Error({"scale and soft cap", std::to_string(scale_) + " and " + std::to_string(soft_cap_),
                     std::to_string(tapped.scale) + " and " + std::to_string(tapped.soft_cap), where});
  }
  scale_ = tapped.scale;
  soft_cap_ = tapped.soft_cap;
  scored_ = true;
  sliding_windows_[index] = tapped.sliding_window;
  append(queries_, tapped.queries, tapped.num_query_heads, tapped.layer, "queries");
  append(keys_, tapped.keys, tapped.num_kv_heads, tapped.layer, "keys");
  append(values_, tapped.values, tapped.num_kv_heads, tapped.layer, "values");
  ++taken_;
}

void ChunkCapture::save(std::filesystem::path const& folder, std::string const& name) {
  if (taken_ != layers_.size()) {
    throw ha::Error(
        {"layers of " + name, std::to_string(layers_.size()), std::to_string(taken_), "ChunkCapture::save"});
  }
  for (auto const& [suffix, tensor] : {std::pair{"_q.npy", &queries_}, {"_k.npy", &keys_}, {"_v.npy", &values_}}) {
    auto const layers = static_cast<std::int64_t>(layers_.size());
    support::save_npy(folder / (name + suffix), support::NpyArray::of({layers, tensor->heads, tokens_, head_dim_},
                                                                      std::span<ha::float16 const>(tensor->elements)));
    tensor->elements.clear();
  }
  taken_ = 0;
}

}  // namespace llama_adapter
