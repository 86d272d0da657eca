#pragma once

/// @file
/// Layouts: maps from (sequence, KV head, token, channel) to an element of a tensor.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Layout of the keys (or the values) of one layer: a trivially copyable type
/// with `int64_t offset(int64_t sequence, int64_t head, int64_t token, int64_t channel) const`,
/// the element's offset, in elements, from the layer's base pointer.
///
/// Optional members, each const:
/// - `int64_t channel_run()`: channels lie in aligned runs of this many elements, that is,
///   `offset(s, h, t, c)` is a multiple of the run for every `c` that is, and the run's other
///   channels follow it in memory. It decides how wide an access may be; without it every element
///   is moved by itself.
/// - `bool rows_contiguous()`: all channels of a token lie side by side, aligned or not; without it
///   this is so where `channel_run()` spans all channels.
/// - `bool tokens_adjacent()`: neighbouring tokens of one channel are neighbours in memory
///   (a transposed tensor); decides the order of traversal.
/// - `int64_t num_sequences()`, `int64_t num_kv_heads()`, `int64_t num_channels()`,
///   `int64_t token_capacity()`, and `int64_t required_span_size()`, the elements from the base pointer to the
///   tensor's end. What is offered is checked against what a call asks for.
/// - `void check_table(int64_t sequence, int64_t begin, int64_t end, char const* where)`, host: throws ArgumentError
///   where the tables that `offset` reads do not name places of the tensor for tokens [begin, end) of a sequence. The
///   CPU back end asks before it reads, of those tokens that it reads. Tables on a device cannot be asked: there it is
///   a precondition that they do; `validate_tables` checks copies of them.
template <class L>
concept KvLayout = std::is_trivially_copyable_v<L> && requires(L const layout, std::int64_t i) {
  { layout.offset(i, i, i, i) } -> std::same_as<std::int64_t>;
};

/// @brief Explains in plain sentences why a type is no layout, one compile-time error per mistake.
template <class L>
consteval bool check_layout() {
  constexpr bool copyable = std::is_trivially_copyable_v<L>;
  static_assert(copyable, "headaware: a layout must be trivially copyable, because kernels take it by value");
  constexpr bool offset = requires(L const layout, std::int64_t i) {
    { layout.offset(i, i, i, i) } -> std::same_as<std::int64_t>;
  };
  static_assert(offset, "headaware: a layout needs 'int64_t offset(int64_t sequence, int64_t head, int64_t token, "
                        "int64_t channel) const', marked HEADAWARE_HOST_DEVICE");
  constexpr bool all = copyable && offset;
  static_assert(!all || KvLayout<L>, "headaware: a clause of KvLayout lacks its message");
  // Always true: what is wrong has been said above, and a false would add an error that says nothing.
  return true;
}

/// @brief One direction of a tensor, as `directions()` of the library's layouts lists them.
struct LayoutDirection {
  std::int64_t count = 0;   ///< elements
  std::int64_t stride = 0;  ///< elements from one to the next
  bool by_table = false;    ///< a table says which of them are in use
};

namespace detail {

/// @brief Elements from a tensor's base pointer to its end; 0 of an empty one.
/// @param first  elements before the tensor's first
/// @throws ArgumentError beyond 64 bits
/// @pre  nothing is negative
inline std::int64_t check_extent(char const* where, std::int64_t first, std::span<LayoutDirection const> directions) {
  for (LayoutDirection const& d : directions) {
    if (d.count == 0) return 0;
  }
  std::int64_t last = first;
  bool fits = first < largest_int64;
  for (LayoutDirection const& d : directions) {
    fits = fits && !product_overflows(d.count - 1, d.stride) && !sum_overflows(last, (d.count - 1) * d.stride);
    if (!fits) break;
    last += (d.count - 1) * d.stride;
  }
  if (!fits || last == largest_int64) {
    std::string got;
    for (LayoutDirection const& d : directions) {
      got += (got.empty() ? "" : ", ") + std::to_string(d.count) + " by a stride of " + std::to_string(d.stride);
    }
    refuse_size(got, where);
  }
  return last + 1;
}

}  // namespace detail

/// @brief The layouts of a layer's keys and of its values, where they differ.
template <class Keys, class Values>
struct KvLayouts {
  static_assert(check_layout<Keys>() && check_layout<Values>());
  Keys keys;
  Values values;
};
template <class Keys, class Values>
KvLayouts(Keys, Values) -> KvLayouts<Keys, Values>;

namespace detail {

/// Elements that lie side by side, aligned to their number; 1 if the layout does not say.
template <class L>
constexpr std::int64_t channel_run(L const& layout) {
  if constexpr (requires { layout.channel_run(); }) {
    return layout.channel_run();
  } else {
    return 1;
  }
}

/// Whether a token's `channels` channels lie side by side.
template <class L>
constexpr bool rows_contiguous(L const& layout, std::int64_t channels) {
  if constexpr (requires { layout.rows_contiguous(); }) {
    return layout.rows_contiguous();
  } else {
    return channel_run(layout) % channels == 0;
  }
}

template <class L>
constexpr bool tokens_adjacent(L const& layout) {
  if constexpr (requires { layout.tokens_adjacent(); }) {
    return layout.tokens_adjacent();
  } else {
    return false;
  }
}

/// A single layout serves keys and values alike.
template <class L>
constexpr auto keys_of(L const& layout) {
  return layout;
}
template <class K, class V>
constexpr K keys_of(KvLayouts<K, V> const& layouts) {
  return layouts.keys;
}
template <class L>
constexpr auto values_of(L const& layout) {
  return layout;
}
template <class K, class V>
constexpr V values_of(KvLayouts<K, V> const& layouts) {
  return layouts.values;
}

/// Tokens [begin, end) of a sequence.
struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// Whether a layout reads tables that can be checked.
template <class L>
inline constexpr bool has_table = requires(L const layout, std::int64_t i, char const* where) {
  layout.check_table(i, i, i, where);
};

/// @brief Checks the host tables that a layout reads, if it reads any.
/// @param tokens_of  (sequence) to ranges of `TokenRange`: what a call reads of it
template <class L, class TokensOf>
void check_tables(L const& layout, std::int64_t sequences, TokensOf const& tokens_of, char const* where) {
  if constexpr (has_table<L>) {
    for (std::int64_t s = 0; s < sequences; ++s) {
      for (TokenRange const& tokens : tokens_of(s)) layout.check_table(s, tokens.begin, tokens.end, where);
    }
  }
}

/// The same for keys and values.
template <class Source, class TokensOf>
void check_source_tables(Source const& source, std::int64_t sequences, TokensOf const& tokens_of, char const* keys,
                         char const* values) {
  check_tables(keys_of(source), sequences, tokens_of, keys);
  if constexpr (!std::is_same_v<decltype(keys_of(source)), Source>) {
    check_tables(values_of(source), sequences, tokens_of, values);
  }
}

/// All tokens of each sequence, for the checks above.
[[nodiscard]] inline auto tokens_in(std::span<std::int32_t const> lengths) {
  return [lengths](std::int64_t sequence) {
    return std::array{TokenRange{0, lengths[static_cast<std::size_t>(sequence)]}};
  };
}

}  // namespace detail

/// @brief Checks tables in host memory as the CPU back end does before it reads them: for callers that compress on a
/// device, whose back end cannot. All tokens need places, also those that no head
/// keeps, which the CPU's `compress` does not ask for.
/// @param layout   over host copies of the tables (the tensor itself is not touched), or `KvLayouts`
/// @param lengths  tokens of each sequence
/// @throws ArgumentError on places that no tensor has, or that are another sequence's
/// @par Cost  O(pages of the sequences)
template <class L>
void validate_tables(L const& layout, std::span<std::int32_t const> lengths) {
  detail::check_source_tables(layout, static_cast<std::int64_t>(lengths.size()), detail::tokens_in(lengths),
                              "validate_tables, keys", "validate_tables, values");
}

HEADAWARE_NAMESPACE_END
