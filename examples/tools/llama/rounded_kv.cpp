#include "tools/llama/rounded_kv.hpp"

#include <headaware/error.hpp>
#include <headaware/format/concept.hpp>
#include <headaware/format/hadamard.hpp>

#include <algorithm>
#include <cstdint>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Rotates whole blocks of a row as a format does; a second time back.
template <class Format>
void rotate_blocks(std::vector<float>& row) {
  if constexpr (Format::rotated) {
    for (std::size_t first = 0; first < row.size(); first += Format::group) {
      ha::rotate_block<Format::group>(row.data() + first);
    }
  }
}

/// Rows [tokens, heads, channels] of one head. @param rotated  false: what the format rotates is rotated before, too
void round_rows(ha::AnyFormat<> const& any, bool rotated, float const* from, std::int64_t tokens, std::int64_t stride,
                std::int64_t channels, float* to) {
  any.visit([&]<class Format>(Format const& format) {
    std::vector<std::uint32_t> words(static_cast<std::size_t>(any.row_words(channels)));
    bool const turn = Format::rotated && !rotated;
    std::int64_t const padded = turn ? (channels + Format::group - 1) / Format::group * Format::group : channels;
    std::vector<float> row(static_cast<std::size_t>(padded));
    for (std::int64_t token = 0; token < tokens; ++token) {
      std::copy_n(from + token * stride, channels, row.data());
      if (turn) rotate_blocks<Format>(row);
      ha::encode_row(format, row.data(), padded, words.data());
      ha::decode_row(format, words.data(), padded, row.data());
      if (turn) rotate_blocks<Format>(row);
      std::copy_n(row.data(), channels, to + token * stride);
    }
  });
}

}  // namespace

TappedAttention RoundedKv::of(TappedAttention const& attention, Rounding const& rounding) {
  constexpr auto where = "RoundedKv";
  ha::FormatTable const& formats = rounding.formats;
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
      round_rows(own.key, rounding.rotated, attention.keys + first, attention.tokens, key_stride, attention.head_dim,
                 keys_.data() + first);
    } else {
      std::int64_t const first = head * attention.value_dim;
      round_rows(own.value, rounding.rotated, attention.values + first, attention.tokens, value_stride,
                 attention.value_dim, values_.data() + first);
    }
  }
  TappedAttention result = attention;
  result.keys = keys_.data();
  result.values = values_.data();
  return result;
}

}  // namespace llama_adapter
