#pragma once

/// @file
/// Formats of a cache's rows: how many bits a channel has. A format is data with two functions, which turn blocks of a
/// row's channels into words and back; the same code runs on host and device.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/format/hadamard.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A row format: a trivially copyable aggregate with a `name` and
/// - `static constexpr int32_t group`: neighbouring channels that are encoded together, a block;
/// - `static constexpr int32_t block_words`: 32-bit words of an encoded block. A row is its blocks one after the other;
///   channels that do not fill the last one are zeros there;
/// - `static constexpr bool rotated`: whether blocks are multiplied by the Hadamard matrix of `group` channels, a power
///   of two, before they are encoded (`rotate_block`). Scores do not change if queries are, too; outputs are turned
///   back once, as the matrix is its own inverse;
/// - `void encode(float const* x, uint32_t* words) const` and `void decode(uint32_t const* words, float* x) const` of
///   one block, [group] and [block_words], rotated already, marked `HEADAWARE_HOST_DEVICE`.
///
/// Optional:
/// - `void validate() const` (host), which throws `ArgumentError` on fields that make no sense;
/// - of formats that an engine has, `static constexpr int32_t engine_group`, `engine_bytes` and `engine_alignment`: its
///   tensors hold a row as blocks of so many channels, so many bytes each, aligned so, and a row's words are the bytes
///   of these blocks one after the other, little-endian (`import_rows` and `export_rows` move them).
template <class F>
concept RowFormat = std::is_trivially_copyable_v<F> && std::is_default_constructible_v<F> &&
    std::equality_comparable<F> &&
    requires(F const format, float const* x, float* y, std::uint32_t const* words, std::uint32_t* out) {
  { F::name } -> std::convertible_to<std::string_view>;
  requires F::group >
  0 && F::block_words > 0 && (F::rotated || !F::rotated);
  { format.encode(x, out) } -> std::same_as<void>;
  { format.decode(words, y) } -> std::same_as<void>;
};

/// @brief Explains in plain sentences why a type is no format, one compile-time error per mistake.
template <class F>
consteval bool check_format() {
  constexpr bool copyable = std::is_trivially_copyable_v<F>;
  static_assert(copyable, "headaware: a format must be trivially copyable, because it travels to the device as bytes");
  constexpr bool constructible = std::is_default_constructible_v<F>;
  static_assert(constructible, "headaware: a format must be default constructible");
  constexpr bool comparable = std::equality_comparable<F>;
  static_assert(comparable, "headaware: a format needs 'friend bool operator==(F const&, F const&) = default'");
  constexpr bool named = requires {
    { F::name } -> std::convertible_to<std::string_view>;
  };
  static_assert(named, "headaware: a format needs 'static constexpr std::string_view name', by which files and the "
                       "registry know it");
  constexpr bool sized = requires {
    requires F::group >
    0 && F::block_words > 0;
  };
  static_assert(sized, "headaware: a format needs 'static constexpr int32_t group' channels and 'block_words' 32-bit "
                       "words of a block, both positive");
  constexpr bool says_rotated = requires {
    { F::rotated } -> std::convertible_to<bool>;
  };
  static_assert(says_rotated, "headaware: a format needs 'static constexpr bool rotated'");
  if constexpr (sized && says_rotated) {
    constexpr bool power = !F::rotated || (F::group & (F::group - 1)) == 0;
    static_assert(power, "headaware: the group of a rotated format is a power of two");
  }
  constexpr bool codes =
      requires(F const format, float const* x, float* y, std::uint32_t const* words, std::uint32_t* out) {
    { format.encode(x, out) } -> std::same_as<void>;
    { format.decode(words, y) } -> std::same_as<void>;
  };
  static_assert(codes, "headaware: a format needs 'void encode(float const* x, uint32_t* words) const' and 'void "
                       "decode(uint32_t const* words, float* x) const', marked HEADAWARE_HOST_DEVICE");
  constexpr bool all = copyable && constructible && comparable && named && sized && says_rotated && codes;
  static_assert(!all || RowFormat<F>, "headaware: a clause of RowFormat lacks its message");
  // Always true: what is wrong has been said above, and a false would add an error that says nothing.
  return true;
}

namespace detail {

/// Whether a type is meant to be a format.
template <class F>
concept looks_like_format = requires {
  std::string_view(F::name);
  F::block_words;
}
|| requires(F& format, float const* x, std::uint32_t* words) { format.encode(x, words); };

}  // namespace detail

/// @brief 32-bit words of a row of `channels` channels.
template <class F>
[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t row_words(std::int64_t channels) {
  return (channels + F::group - 1) / F::group * F::block_words;
}

namespace detail {

/// Whether an engine's tensors hold a format's bytes.
template <class F>
concept has_engine_rows = requires {
  requires F::engine_group >
  0 && F::engine_bytes > 0 && F::engine_alignment > 0;
};

}  // namespace detail

/// @brief Bytes of a row of `channels` channels in the tensor of an engine, whole blocks of it; 0: no engine has the
/// format. `row_words` may be more, as a block here may be several of the engine's.
template <class F>
[[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t engine_row_bytes(std::int64_t channels) {
  if constexpr (detail::has_engine_rows<F>) {
    static_assert(F::group % F::engine_group == 0 && F::group / F::engine_group * F::engine_bytes <= 4 * F::block_words,
                  "headaware: a block holds whole blocks of the engine");
    return (channels + F::engine_group - 1) / F::engine_group * F::engine_bytes;
  } else {
    return 0;
  }
}

/// @brief Encodes a row. @param x  [channels] @param words  [row_words<F>(channels)]
/// @par Cost  O(channels), of rotated formats O(channels · log group)
template <class F>
HEADAWARE_HOST_DEVICE void encode_row(F const& format, float const* x, std::int64_t channels, std::uint32_t* words) {
  static_assert(check_format<F>());
  for (std::int64_t first = 0; first < channels; first += F::group) {
    float block[F::group];
    for (std::int32_t i = 0; i < F::group; ++i) block[i] = first + i < channels ? x[first + i] : 0.0F;
    if constexpr (F::rotated) rotate_block<F::group>(block);
    format.encode(block, words);
    words += F::block_words;
  }
}

/// @brief Decodes a row; of a rotated format it is turned back. @param words  [row_words<F>(channels)]
/// @param x  [channels]
template <class F>
HEADAWARE_HOST_DEVICE void decode_row(F const& format, std::uint32_t const* words, std::int64_t channels, float* x) {
  static_assert(check_format<F>());
  for (std::int64_t first = 0; first < channels; first += F::group) {
    float block[F::group];
    format.decode(words, block);
    if constexpr (F::rotated) rotate_block<F::group>(block);
    for (std::int32_t i = 0; i < F::group && first + i < channels; ++i) x[first + i] = block[i];
    words += F::block_words;
  }
}

HEADAWARE_NAMESPACE_END
