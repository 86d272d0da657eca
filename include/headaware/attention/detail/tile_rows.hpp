#pragma once

// A segment's rows as a tile of queries reads them: elements, or rows in formats.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/coded_blocks.hpp>
#include <headaware/attention/detail/integer_rows.hpp>
#include <headaware/attention/detail/query_tile.hpp>
#include <headaware/attention/detail/simd_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/format/hadamard.hpp>
#include <headaware/format/table.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Rows of elements as a tile reads them. @param values  nullptr: a latent's, the first channels of the keys
template <class T, class Head>
struct PlainRows {
  Head head;
  T const* keys;
  T const* values;
  std::int64_t head_dim;
  std::int64_t value_dim;

  [[nodiscard]] bool values_in_keys() const { return values == nullptr; }
  template <class F>
  void with_keys(QueryTile& tile, std::int64_t first, std::int64_t count, F const& f) const {
    auto const row = [&](std::int64_t k) { return keys + head.offset(first + k, head_dim); };
    tile.with_rows(row, count, head_dim, tile.key_channels(), f);
  }
  template <class F>
  void with_values(QueryTile& tile, std::int64_t first, std::int64_t count, F const& f) const {
    auto const row = [&](std::int64_t k) { return values + head.offset(first + k, value_dim); };
    tile.with_rows(row, count, value_dim, tile.value_dim(), f);
  }
  void fetch_next(QueryTile&, std::int64_t, std::int64_t) const {}
};

/// Encoded rows as a tile reads them.
template <class Registry, class Head>
struct CodedRows {
  Head head;
  RowUnit const* rows;
  PackedSegment<Registry> const& packed;
  std::int64_t head_dim;
  std::int64_t value_dim;

  [[nodiscard]] bool values_in_keys() const { return false; }
  template <class F>
  void with_keys(QueryTile& tile, std::int64_t first, std::int64_t count, F const& f) const {
    RowUnit const* const base = rows + packed.shift;
    tile.coded().go(first, head.rows(), [&](std::int64_t row) {
      return reinterpret_cast<unsigned char const*>(base + head.offset(row, packed.units));
    });
    read(packed.formats.key, tile, 0, count, head_dim, tile.key_channels(), f);
  }
  template <class F>
  void with_values(QueryTile& tile, std::int64_t, std::int64_t count, F const& f) const {
    read(packed.formats.value, tile, 4 * packed.formats.key_words(head_dim), count, value_dim, tile.value_dim(), f);
  }
  /// Fetches rows of the next block whole: a key's value follows it, and would else be fetched in a second pass.
  void fetch_next(QueryTile& tile, std::int64_t first, std::int64_t end) const {
    CodedBlocks const& block = tile.coded();
    constexpr std::int64_t line = 64;
    auto const bytes = packed.units * static_cast<std::int64_t>(sizeof(RowUnit));
    for (std::int64_t k = first; k < std::min(block.next_count(), end); ++k) {
      for (std::int64_t byte = 0; byte < bytes; byte += line) simd::prefetch(block.next(k) + byte);
    }
  }

 private:
  template <class F>
  static void read(AnyFormat<Registry> const& any, QueryTile& tile, std::int64_t at, std::int64_t count,
                   std::int64_t channels, std::int64_t padded, F const& f) {
    any.visit([&]<class Format>(Format const& format) {
      if constexpr (std::is_same_v<Format, Fp16> || std::is_same_v<Format, Bf16>) {
        using T = std::conditional_t<std::is_same_v<Format, Fp16>, float16, bfloat16>;
        auto const row = [&](std::int64_t k) { return reinterpret_cast<T const*>(tile.coded().rows()[k] + at); };
        tile.with_rows(row, count, channels, padded, f);
      } else {
        tile.with_codes(format, at, count, channels, padded, f);
      }
    });
  }
};

/// Multiplies rows of `channels` by the Hadamard matrix of a format's blocks, if it is rotated.
/// @param rows  [count, channels], channels whole blocks
template <class Registry>
void rotate_rows_of(AnyFormat<Registry> const& any, float* rows, std::int64_t count, std::int64_t channels) {
  any.visit([&]<class Format>(Format const&) {
    if constexpr (Format::rotated) {
      for (float* block = rows; block != rows + count * channels; block += Format::group) {
        rotate_block<Format::group>(block);
      }
    }
  });
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
