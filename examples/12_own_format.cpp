// A format of one's own is one small struct: here 4-bit floats with a power of two per 32 channels, as the Open Compute
// Project's MXFP4 has them, beside the library's formats in one cache that is compressed, attended to and encoded
// again.

#include <headaware/attention/attend.hpp>
#include <headaware/cache/pack.hpp>
#include <headaware/cache/transcode.hpp>
#include <headaware/compressor.hpp>
#include <headaware/format/table.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

/// Signs and one of eight magnitudes, 8 to a word, after a word with the exponent of their scale.
struct Mxfp4 {
  static constexpr std::string_view name = "mxfp4";
  static constexpr std::int32_t group = 32;
  static constexpr std::int32_t block_words = 5;
  static constexpr bool rotated = false;

  HEADAWARE_HOST_DEVICE static float magnitude(std::uint32_t code) {  // 0, 0.5, 1, 1.5, 2, 3, 4, 6
    auto const mantissa = static_cast<float>(code & 1U);
    return code < 2 ? 0.5F * mantissa : std::ldexp(1 + 0.5F * mantissa, static_cast<int>(code >> 1) - 1);
  }
  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    float largest = 0;
    for (int i = 0; i < group; ++i) largest = std::fmax(largest, std::fabs(x[i]));
    int const exponent = largest > 0 ? std::ilogb(largest) - 2 : 0;  // so that the largest is below 8
    words[0] = static_cast<std::uint32_t>(exponent);
    for (int i = 0; i < group; ++i) {
      if (i % 8 == 0) words[1 + i / 8] = 0;
      float const scaled = std::ldexp(std::fabs(x[i]), -exponent);
      std::uint32_t code = 0;
      while (code < 7 && scaled > (magnitude(code) + magnitude(code + 1)) / 2) ++code;
      words[1 + i / 8] |= (code | (x[i] < 0 ? 8U : 0U)) << i % 8 * 4;
    }
  }
  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    for (int i = 0; i < group; ++i) {
      std::uint32_t const code = words[1 + i / 8] >> i % 8 * 4 & 15U;
      float const value = std::ldexp(magnitude(code & 7U), static_cast<int>(words[0]));
      x[i] = code < 8 ? value : -value;
    }
  }
  friend constexpr bool operator==(Mxfp4 const&, Mxfp4 const&) = default;
};
static_assert(ha::RowFormat<Mxfp4>);

namespace {

constexpr std::int32_t num_kv_heads = 2;
constexpr std::int64_t head_dim = 64;
constexpr std::int32_t tokens = 200;

/// Largest difference of the outputs of one query per head over a cache and over rows that are not encoded.
template <class Cache>
float error(Cache const& cache, std::vector<float> const& queries, std::vector<float> const& expected) {
  auto const layout = ha::strided_bhd(1, num_kv_heads, head_dim);
  std::vector<float> output(queries.size());
  ha::attend({1, num_kv_heads, num_kv_heads, 1, head_dim}, ha::AttentionQueries{queries.data(), layout}, cache,
             ha::AttentionOutput{output.data(), layout});
  float worst = 0;
  for (std::size_t i = 0; i < output.size(); ++i) worst = std::fmax(worst, std::fabs(output[i] - expected[i]));
  return worst;
}

}  // namespace

int main() {
  try {
    using Formats = ha::DefaultFormats::with<Mxfp4>;
    ha::BasicFormatTable<Formats> formats(1, num_kv_heads, {Mxfp4{}, Mxfp4{}});  // of keys, of values
    formats.set(0, 1, {ha::Int8{}, Mxfp4{}});

    std::vector<float> keys(num_kv_heads * tokens * head_dim);
    std::vector<float> values(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = std::sin(0.7F * static_cast<float>(i % 1009));
      values[i] = std::cos(0.3F * static_cast<float>(i % 811));
    }
    std::vector<float> const queries(keys.begin(), keys.begin() + num_kv_heads * head_dim);
    std::vector<ha::LayerKv<float const>> const layers{{keys.data(), values.data()}};
    auto const source = ha::strided_bhsd(1, num_kv_heads, tokens, head_dim);

    ha::PolicyTable const table(1, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 124});
    std::vector<std::int32_t> const lengths{tokens};
    ha::Compaction const compaction(table, lengths);
    auto const planned = ha::packed_ragged(compaction, formats, head_dim);
    std::vector<ha::RowUnit> rows(static_cast<std::size_t>(planned.total_units()));
    auto const packed = planned.with_buffer(rows.data());
    ha::compress(compaction, layers, source, packed);

    std::vector<float> kept_keys(2 * 128 * head_dim);
    std::vector<float> kept_values(kept_keys.size());
    ha::compress(compaction, layers, source, ha::ragged(compaction, kept_keys.data(), kept_values.data(), head_dim));
    std::vector<std::int64_t> const offsets{0, 128, 256};
    using View = ha::RaggedView<std::int64_t>;
    View const view{offsets.data(), num_kv_heads};
    auto const layout = ha::strided_bhd(1, num_kv_heads, head_dim);
    std::vector<float> expected(queries.size());
    ha::attend({1, num_kv_heads, num_kv_heads, 1, head_dim}, ha::AttentionQueries{queries.data(), layout},
               ha::KeptCache{kept_keys.data(), kept_values.data(), view}, ha::AttentionOutput{expected.data(), layout});
    float const of_own =
        error(ha::PackedCache<Formats, View>{rows.data(), packed.layer(0).data(), view}, queries, expected);

    // Encoded again, in the library's own 5 and 4 bits: what the first rounding lost stays lost.
    ha::BasicFormatTable<Formats> const others(1, num_kv_heads, {ha::Packed<5>{}, ha::Packed<4>{}});
    auto const to = ha::packed_ragged(compaction, others, head_dim);
    std::vector<ha::RowUnit> rows_again(static_cast<std::size_t>(to.total_units()));
    auto const again = to.with_buffer(rows_again.data());
    ha::transcode(compaction, packed, again);
    float const of_both =
        error(ha::PackedCache<Formats, View>{rows_again.data(), again.layer(0).data(), view}, queries, expected);
    std::printf("%lld bytes, outputs off by %.3f; encoded again %lld, off by %.3f; 16 bits take %lld\n",
                static_cast<long long>(planned.total_bytes()), static_cast<double>(of_own),
                static_cast<long long>(to.total_bytes()), static_cast<double>(of_both),
                static_cast<long long>(256 * head_dim * 4));
    return of_own > 0 && of_own < 0.2F && of_both < 0.3F ? 0 : 1;
  } catch (ha::Error const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
