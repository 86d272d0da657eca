#pragma once

// Which query rows count in errors of formats, and rows of keys and values put through a format.

#include <headaware/config.hpp>
#include <headaware/format/concept.hpp>
#include <headaware/stats/observer_parameters.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows of a chunk that are sampled: of those observed the last, and from it backwards every so many, so that a chunk
/// with an observed row has a sampled one.
struct SampledRows {
  std::int64_t first = 0;  ///< position of the first
  std::int64_t step = 1;   ///< positions from one to the next
  std::int64_t count = 0;

  SampledRows() = default;
  HEADAWARE_HOST_DEVICE SampledRows(std::int64_t tokens, std::int64_t first_query, std::int64_t query_stride,
                                    std::int64_t rounding_stride) {
    if (tokens <= first_query) return;
    std::int64_t const last = (tokens - first_query - 1) / query_stride;  // of the rows observed
    std::int64_t const skipped = last % rounding_stride;
    first = first_query + skipped * query_stride;
    count = last / rounding_stride + 1;
    step = count > 1 ? query_stride * rounding_stride : 1;
  }
};

/// A decoded channel, or, where a format cannot hold what was encoded, a large number instead of an infinity.
HEADAWARE_HOST_DEVICE constexpr float bounded_channel(float x) {
  constexpr float most = 1e15F;
  return x < -most ? -most : (x <= most ? x : most);
}

/// Puts a row through a format and back.
/// @param x, to  [channels], may be the same @param words  [row_words<F>(channels)]
template <class F>
HEADAWARE_HOST_DEVICE void round_row(F const& format, float const* x, std::int64_t channels, std::uint32_t* words,
                                     float* to) {
  encode_row(format, x, channels, words);
  decode_row(format, words, channels, to);
  for (std::int64_t c = 0; c < channels; ++c) to[c] = bounded_channel(to[c]);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
