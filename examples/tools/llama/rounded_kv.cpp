#include "tools/llama/rounded_kv.hpp"

#include <headaware/error.hpp>
#include <headaware/format/concept.hpp>

#include <cstdint>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Rows [tokens, heads, channels] of one head.
void round_rows(ha::AnyFormat<> const& any, float const* from, std::int64_t tokens, std::int64_t stride,
                std::int64_t channels, float* to) {
  any.visit([&](auto const& format) {
    std::vector<std::uint32_t> words(static_cast<std::size_t>(any.row_words(channels)));
    for (std::int64_t token = 0; token < tokens; ++token) {
      ha::encode_row(format, from + token * stride, channels, words.data());
      ha::decode_row(format, words.data(), channels, to + token * stride);
    }
  });
}

}  // namespace

TappedAttention RoundedKv::of(TappedAttention const& attention, ha::FormatTable const& formats) {
  constexpr auto where = "RoundedKv";
  ha::require(!attention.latent, "layer's cache", "keys and values: latents have no formats here", "a latent",
              {where, ", layer ", attention.layer});
  ha::require_index(attention.layer, formats.num_layers(), "layer", where);
  ha::require(formats.heads().count(attention.layer) == attention.num_kv_heads, "format table's KV heads",
              attention.num_kv_heads, formats.heads().count(attention.layer), {where, ", layer ", attention.layer});
  std::int64_t const key_stride = attention.num_kv_heads * attention.head_dim;
  std::int64_t const value_stride = attention.num_kv_heads * attention.value_dim;
  keys_.resize(static_cast<std::size_t>(attention.tokens * key_stride));
  values_.resize(static_cast<std::size_t>(attention.tokens * value_stride));
#pragma omp parallel for schedule(dynamic)
  for (std::int32_t i = 0; i < 2 * attention.num_kv_heads; ++i) {
    std::int32_t const head = i / 2;
    ha::HeadFormats const& own = formats.at(attention.layer, head);
    if (i % 2 == 0) {
      std::int64_t const first = head * attention.head_dim;
      round_rows(own.key, attention.keys + first, attention.tokens, key_stride, attention.head_dim,
                 keys_.data() + first);
    } else {
      std::int64_t const first = head * attention.value_dim;
      round_rows(own.value, attention.values + first, attention.tokens, value_stride, attention.value_dim,
                 values_.data() + first);
    }
  }
  TappedAttention result = attention;
  result.keys = keys_.data();
  result.values = values_.data();
  return result;
}

}  // namespace llama_adapter
