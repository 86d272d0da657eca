#include "tools/llama/head_cache.hpp"

#include "tools/llama/score_chunk.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_scored.hpp>
#include <headaware/cache/scored_append.hpp>
#include <headaware/classify/builders.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/score/row_scores.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {
namespace {

/// Elements of a cache's buffer. @throws std::runtime_error that says how much could not be had
template <class T>
std::vector<T> kept_elements(std::int64_t elements) {
  try {
    return std::vector<T>(static_cast<std::size_t>(elements));
  } catch (std::exception const&) {  // bad_alloc, length_error
    double const gigabytes = static_cast<double>(elements) * sizeof(T) / (1 << 30);
    throw std::runtime_error("the cache's keys, and its values as well, need " +
                             std::to_string(static_cast<std::int64_t>(gigabytes) + 1) +
                             " GiB, which cannot be allocated: fewer tokens, or smaller windows");
  }
}

}  // namespace

template <class T>
HeadCache<T>::HeadCache(headaware::PolicyTable table, headaware::FormatTable const& formats,
                        headaware::ModelShape const& shape, std::int64_t max_tokens, RowScoring scoring)
    : slots_(headaware::within_layers(std::move(table), shape, "HeadCache"), 1,
             {.max_tokens = max_tokens, .slack = step_tokens - 1}),
      records_(slots_),
      scoring_(std::move(scoring)),
      state_(1),
      next_state_(1) {
  headaware::require(slots_.view().max_scored == 0 || scoring_.scorer != nullptr, "scores",
                     "some, as heads keep tokens by scores", "none", "HeadCache");
  if (formats.num_layers() > 0) {
    auto const packed = headaware::packed_rolling(slots_, slots_.view(), formats, shape);
    units_ = kept_elements<headaware::RowUnit>(packed.total_units());
    packed_ = packed.with_buffer(units_.data());
    return;
  }
  headaware::RowChannels const elements = headaware::buffer_elements(
      shape, slots_.num_layers(), [&](std::int32_t layer) { return slots_.rows_total(layer); });
  keys_ = kept_elements<T>(elements.head_dim);
  values_ = kept_elements<T>(elements.value_dim);
  plain_ = headaware::rolling(slots_, slots_.view(), keys_.data(), values_.data(), shape);
}

template <class T>
void HeadCache<T>::run(TappedAttention const& attention) {
  namespace ha = headaware;
  next_state_ = state_;  // every layer counts the same tokens
  score(attention);
  if (packed_) {
    ha::require(!attention.latent, "layer's cache", "keys and values: latents have no formats here", "a latent",
                {"HeadCache::run, layer ", attention.layer});
    auto const layer = static_cast<std::size_t>(attention.layer);
    run_steps(attention, attention.keys, attention.values, *packed_, [&]<class View>(View const& view) {
      return ha::PackedCache<ha::DefaultFormats, View>{packed_->layers[layer], packed_->layer(attention.layer).data(),
                                                       view};
    });
    return;
  }
  std::int64_t const key_width = attention.num_kv_heads * attention.head_dim;
  std::int64_t const value_width = attention.num_kv_heads * attention.value_dim;
  auto const stored = [&](float const* from, std::int64_t width, std::vector<T>& to) {
    to.resize(static_cast<std::size_t>(attention.tokens * width));
    std::transform(from, from + attention.tokens * width, to.begin(), ha::from_float<T>);
  };
  stored(attention.keys, key_width, new_keys_);
  if (!attention.latent) stored(attention.values, value_width, new_values_);
  auto const& kept = plain_->layers[static_cast<std::size_t>(attention.layer)];
  if (attention.latent) {
    run_steps(attention, new_keys_.data(), static_cast<T const*>(nullptr), *plain_, [&](auto const& view) {
      return ha::LatentCache{kept.keys, view};
    });
  } else {
    run_steps(attention, new_keys_.data(), new_values_.data(), *plain_, [&](auto const& view) {
      return ha::KeptCache{kept.keys, kept.values, view};
    });
  }
}

template <class T>
void HeadCache<T>::score(TappedAttention const& attention) {
  namespace ha = headaware;
  if (slots_.view().max_scored == 0) return;
  bool scored = false;
  for (std::int32_t head = 0; head < attention.num_kv_heads; ++head) {
    scored = scored || slots_.head(attention.layer, head).scored > 0;
  }
  scores_.assign(static_cast<std::size_t>(attention.num_kv_heads * attention.tokens), 0.0F);
  if (!scored) return;
  ha::require(!attention.latent, "layer's cache", "keys and values: rows of latents have no scores here", "a latent",
              {"HeadCache::run, layer ", attention.layer});
  score_chunk(*scoring_.scorer, scoring_.rotations, attention,
              ha::RowScores::dense(scores_.data(), attention.num_kv_heads, attention.tokens));
}

template <class T>
template <class U, class Buffers, class CacheOf>
void HeadCache<T>::run_steps(TappedAttention const& attention, U const* keys, U const* values, Buffers const& buffers,
                             CacheOf const& cache_of) {
  namespace ha = headaware;
  std::int64_t const key_width = attention.num_kv_heads * attention.head_dim;
  std::int64_t const value_width = attention.num_kv_heads * attention.value_dim;
  for (std::int64_t token = 0; token < attention.tokens; token += step_tokens) {
    std::int64_t const count = std::min(step_tokens, attention.tokens - token);
    std::array<std::int32_t, 1> const counts{static_cast<std::int32_t>(count)};
    std::array<std::int32_t, 1> const before{static_cast<std::int32_t>(next_state_.length(0))};
    std::vector<ha::LayerKv<U const>> const step{
        {keys + token * key_width, values == nullptr ? nullptr : values + token * value_width}};
    ha::KvLayouts const layouts{ha::strided_bshd(1, count, attention.num_kv_heads, attention.head_dim),
                                ha::strided_bshd(1, count, attention.num_kv_heads, attention.value_dim)};
    ha::AppendOptions const to_layer{.first_layer = attention.layer, .advance = true};
    bool const scored = slots_.view().max_scored > 0;
    if (scored) {
      auto scores = ha::TokenScores::contiguous(scores_.data(), 1, attention.num_kv_heads, attention.tokens);
      scores.data += token;
      ha::append(slots_.view(), next_state_, step, layouts, counts, buffers, records_.view(), scores, to_layer);
    } else {
      ha::append(slots_.view(), next_state_, step, layouts, counts, buffers, to_layer);
    }
    ha::AttentionShape const shape{1,     attention.num_query_heads, attention.num_kv_heads,
                                   count, attention.head_dim,        attention.value_dim};
    auto const queries = ha::strided_bshd(1, count, attention.num_query_heads, attention.head_dim);
    auto const output = ha::strided_bshd(1, count, attention.num_query_heads, attention.value_dim);
    std::int64_t const row = token * attention.num_query_heads;
    auto const attend = [&](auto const& view) {
      ha::attend(shape, ha::AttentionQueries{attention.queries + row * attention.head_dim, queries}, cache_of(view),
                 ha::AttentionOutput{attention.output + row * attention.value_dim, output},
                 {.scale = attention.scale,
                  .soft_cap = attention.soft_cap,
                  .first_positions = before.data(),
                  .sinks = attention.sinks});
    };
    std::int32_t const* const lengths = next_state_.lengths().data();
    if (scored) {
      attend(ha::ScoredView::of_chunk(slots_.view(), records_.view(), attention.layer, lengths, count));
    } else {
      attend(ha::RollingView::of_chunk(slots_.view(), attention.layer, lengths, count));
    }
  }
}

template class HeadCache<float>;
template class HeadCache<headaware::float16>;

}  // namespace llama_adapter
