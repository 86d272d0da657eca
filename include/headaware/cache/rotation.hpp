#pragma once

/// @file
/// Re-rotation of keys: a kept key, rotated for the position it had, is turned to the position of
/// its row, so that the compressed sequence has consecutive positions.

#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Sine and cosine of an angle in full turns. By builtins, because <cmath> is long: see detail/finite.hpp.
HEADAWARE_HOST_DEVICE inline void sine_cosine_of_turns(double turns, float& sine, float& cosine) {
#if defined(__CUDA_ARCH__)
  // sinf would carry a reduction of huge angles along, and spill registers.
  sincospif(2 * static_cast<float>(turns - floor(turns)), &sine, &cosine);
#else
  float const part = static_cast<float>(turns - __builtin_floor(turns));
  sine = __builtin_sinf(6.2831853F * part);
  cosine = __builtin_cosf(6.2831853F * part);
#endif
}

}  // namespace detail

/// @brief Pairing of the channels that rotate together: `neox` pairs (i, i + rotary_dim / 2), `interleaved` pairs
/// (2i, 2i + 1).
enum class RotaryPairing : std::uint8_t { neox, interleaved };

/// @brief Positions of keys that have several coordinates (M-RoPE: time, height and width of an image's tokens), before
/// and after. Pointers are to where the back end runs; borrowed.
/// @par Source  Wang et al., Qwen2-VL, arXiv:2409.12191 (sections of channels); Qwen3-VL, transformers
///              modeling_qwen3_vl.py (channels that take turns)
struct RotaryPositions {
  static constexpr std::int32_t max_coordinates = 4;

  std::int32_t const* from = nullptr;  ///< [coordinates, sequences, stride] what each token's key was rotated for
  /// Likewise what it is to be rotated for; nullptr: its row in the compressed cache, in every coordinate
  std::int32_t const* to = nullptr;
  std::int64_t stride = 0;                        ///< entries from one sequence to the next: at least its tokens
  std::int64_t coordinate_stride = 0;             ///< entries from one coordinate to the next
  std::span<std::uint8_t const> coordinate_of{};  ///< [rotary_dim / 2] the coordinate of each pair; empty: the first

  /// Coordinates of pairs in sections one after the other, as `mrope_section` of a `config.json` has them.
  template <class Byte = std::uint8_t>
  static std::vector<Byte> sections(std::span<std::int32_t const> pairs) {
    std::vector<Byte> result;
    for (std::size_t c = 0; c < pairs.size(); ++c) {
      require(pairs[c] >= 0, "pairs of a section", ">= 0", pairs[c], "RotaryPositions::sections");
      result.insert(result.end(), static_cast<std::size_t>(pairs[c]), static_cast<Byte>(c));
    }
    return result;
  }
};

/// @brief A rotary embedding's frequencies, and how it pairs channels. Trivially copyable.
///
/// A key of token t moved to row j is turned by (j - t) times each frequency. Channels from
/// `rotary_dim` on are left as they are.
/// @pre  Token t was rotated for position t, one position for all its channels. That is not so after an image (M-RoPE
///       counts one on by less than its tokens), in a cache that was compressed before without a rotation, and with
///       padding on the left: give `with_positions` what the keys were rotated for. Keys do not show that it is
///       missing. An image's own tokens have several positions each: `RotaryPositions` says which channels turn by
///       which.
/// @par Source  Su et al., RoFormer, arXiv:2104.09864; positions within the cache: arXiv:2309.17453
class KeyRotation {
 public:
  static constexpr std::int32_t max_rotary_dim = 512;

  KeyRotation() = default;

  /// Frequencies base^(-2i / rotary_dim). @throws ArgumentError on an odd or too large rotary_dim or base <= 0
  static KeyRotation from_base(RotaryPairing pairing, std::int32_t rotary_dim, double base) {
    KeyRotation rotation(pairing, rotary_dim);
    require(base > 0 && detail::is_finite(base), "rotary base", "> 0", base, "KeyRotation");
    for (std::int32_t i = 0; i < rotary_dim / 2; ++i) {
      rotation.frequencies_[static_cast<std::size_t>(i)] = __builtin_pow(base, -2.0 * i / rotary_dim);
    }
    return rotation;
  }

  /// The model's own frequencies (scaled variants of rotary embedding), [rotary_dim / 2], radians per position.
  /// @throws ArgumentError on no frequency, more than 256 of them, or one that is not finite
  static KeyRotation from_frequencies(RotaryPairing pairing, std::span<double const> frequencies) {
    bool const fits = frequencies.size() <= std::size_t{max_rotary_dim / 2};
    require(fits, "rotary_dim", {"even, in (0, ", max_rotary_dim, "]"}, 2 * frequencies.size(), "KeyRotation");
    KeyRotation rotation(pairing, static_cast<std::int32_t>(2 * frequencies.size()));
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      require(detail::is_finite(frequencies[i]), "rotary frequency", "a finite number", frequencies[i], "KeyRotation");
      rotation.frequencies_[i] = frequencies[i];
    }
    return rotation;
  }

  /// @brief Takes the engine's own tables of cosines and sines of position · frequency.
  /// @param cosines  [positions, rotary_dim / 2], where the back end runs; borrowed
  /// @param sines    the same for sines; cos² + sin² = 1, that is, without an attention scaling factor
  /// @pre  every key moves by less than `positions`
  static KeyRotation from_table(RotaryPairing pairing, std::int32_t rotary_dim, float const* cosines,
                                float const* sines, std::int64_t positions) {
    KeyRotation rotation(pairing, rotary_dim);
    bool const given = cosines != nullptr && sines != nullptr;
    require(given, "rotary tables", "two pointers", "nullptr", "KeyRotation");
    require(positions > 0, "rotary table positions", "> 0", positions, "KeyRotation");
    rotation.cosines_ = cosines;
    rotation.sines_ = sines;
    rotation.positions_ = positions;
    return rotation;
  }

  /// @brief Allows for keys that were rotated for other positions than their tokens' indices.
  /// @param positions  [sequences, stride] the position that each token's key was rotated for, where the back end
  ///                   runs; borrowed. On a device they are read when the kernel runs
  /// @param stride     entries from one sequence to the next: at least its tokens
  /// @note  Keys may then turn though no token is evicted: `evicting` does not count such turns, so keys of 16 bits
  ///        that are turned in place again and again lose bits unnoticed
  /// @pre   0 <= position, and less than a table's positions. The CPU back end checks this; for a device
  ///        `validate_tables` does
  /// @throws ArgumentError on a null pointer or a negative stride
  [[nodiscard]] KeyRotation with_positions(std::int32_t const* positions, std::int64_t stride) const {
    require(positions != nullptr, "positions", "a pointer", "nullptr", "KeyRotation");
    require(stride >= 0, "positions' stride", ">= 0", stride, "KeyRotation");
    KeyRotation rotation = *this;
    rotation.token_positions_ = positions;
    rotation.position_stride_ = stride;
    return rotation;
  }
  /// @brief The same for positions of several coordinates, and for target positions of the caller's own.
  /// @throws ArgumentError also on more than 4 coordinates, another number of pairs, or a negative stride
  template <class = void>
  [[nodiscard]] KeyRotation with_positions(RotaryPositions const& positions) const {
    constexpr auto where = "KeyRotation::with_positions";
    KeyRotation rotation = with_positions(positions.from, positions.stride);
    require(positions.coordinate_stride >= 0, "coordinate_stride", ">= 0", positions.coordinate_stride, where);
    bool const all = positions.coordinate_of.empty() || std::ssize(positions.coordinate_of) == rotary_dim_ / 2;
    require(all, "coordinates of pairs", {"none or ", rotary_dim_ / 2}, positions.coordinate_of.size(), where);
    rotation.target_positions_ = positions.to;
    rotation.coordinate_stride_ = positions.coordinate_stride;
    for (std::size_t i = 0; i < positions.coordinate_of.size(); ++i) {
      std::uint8_t const c = positions.coordinate_of[i];
      require(c < RotaryPositions::max_coordinates, "coordinate", "in [0, 4)", int{c}, {where, ", pair ", i});
      rotation.coordinates_[i / 16] |= std::uint32_t{c} << (2 * (i % 16));
      if (c + 1 > rotation.num_coordinates_) rotation.num_coordinates_ = c + 1;
    }
    return rotation;
  }

  /// The fewest tokens of a head that a call in place may evict (but for none) if keys of 16 bits turn.
  static constexpr std::int64_t usual_evictions = 64;
  /// @brief Allows `compress_in_place` of 16-bit keys to evict as few tokens of a head as this.
  ///
  /// In place a key is rounded to its 16 bits by every call that turns it, and these errors add up. So a call that
  /// evicts fewer tokens of a head (but some) is refused. Out of place the same happens, unnoticed, where one
  /// call's output is the next one's source: turn keys that have never been turned (`Transfer::rotate_keys`). Keys of
  /// 32 bits drift by 0.00016 where the first row says by how much those of 16 bits do. With `with_positions` keys may
  /// turn where no token is evicted, which is not counted. Largest errors of logits (128 channels of keys and queries
  /// from N(0, 1), scale 1 / sqrt(128)) after a window of 2,000 tokens has passed, by tokens evicted per call:
  ///
  /// | tokens per call | calls | bfloat16 | float16 |
  /// |---|---|---|---|
  /// | 1 | 2,000 | 2.7 | 0.46 |
  /// | 64 | 31 | 0.046 | 0.0038 |
  /// | 500 | 4 | 0.011 | 0.0013 |
  /// | 2,000 | 1 | 0.0053 | 0.0007 |
  ///
  /// (Small turns of slow frequencies round to nothing.) A key that outlives more calls drifts further.
  /// @param tokens  the fewest; 1: any, right where keys are turned once, as after a prompt
  /// @throws ArgumentError unless it is positive
  [[nodiscard]] KeyRotation evicting(std::int64_t tokens) const {
    require(tokens > 0, "evicted tokens", "> 0", tokens, "KeyRotation");
    KeyRotation rotation = *this;
    rotation.min_evicted_ = tokens;
    return rotation;
  }
  [[nodiscard]] std::int64_t min_evicted() const { return min_evicted_; }

  [[nodiscard]] HEADAWARE_HOST_DEVICE RotaryPairing pairing() const { return pairing_; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t rotary_dim() const { return rotary_dim_; }
  /// Rows of the tables; 0 where frequencies are used.
  [[nodiscard]] std::int64_t positions() const { return positions_; }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t const* token_positions() const { return token_positions_; }
  [[nodiscard]] std::int64_t position_stride() const { return position_stride_; }
  [[nodiscard]] std::int64_t coordinate_stride() const { return coordinate_stride_; }
  /// Coordinates of a position.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_coordinates() const { return num_coordinates_; }
  /// The coordinate that turns pair `i`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t coordinate_of(std::int32_t i) const {
    return static_cast<std::int32_t>(coordinates_[i / 16] >> (2 * (i % 16)) & 3U);
  }
  /// What a token's key was rotated for, in one coordinate. @pre positions are given
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t position(std::int64_t sequence, std::int64_t token,
                                                            std::int32_t coordinate) const {
    return token_positions_[coordinate * coordinate_stride_ + sequence * position_stride_ + token];
  }
  /// What it is to be rotated for; where no positions say so, `row`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t target(std::int64_t sequence, std::int64_t token, std::int64_t row,
                                                          std::int32_t coordinate) const {
    if (target_positions_ == nullptr) return row;
    return target_positions_[coordinate * coordinate_stride_ + sequence * position_stride_ + token];
  }
  /// Positions by which the key of a sequence's token is turned back to that of a row; may be negative where
  /// positions are given.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t distance(std::int64_t sequence, std::int64_t token, std::int64_t row,
                                                            std::int32_t coordinate = 0) const {
    if (token_positions_ == nullptr) return token - row;
    return position(sequence, token, coordinate) - target(sequence, token, row, coordinate);
  }
  /// The same of one pair, if its coordinate is another than the first, whose distance is known.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t distance_of_pair(std::int64_t first, std::int64_t sequence,
                                                                    std::int64_t token, std::int64_t row,
                                                                    std::int32_t i) const {
    if (num_coordinates_ == 1) return first;
    return distance(sequence, token, row, coordinate_of(i));
  }

  /// @brief Turns pair `i` of a key back by `distance` positions.
  HEADAWARE_HOST_DEVICE void turn_back(std::int64_t distance, std::int32_t i, float& a, float& b) const {
    float cosine = 1;
    float sine = 0;
    if (cosines_ != nullptr) {
      std::int64_t const entry = (distance < 0 ? -distance : distance) * (rotary_dim_ / 2) + i;
      cosine = cosines_[entry];
      sine = distance < 0 ? -sines_[entry] : sines_[entry];
    } else {
      // Reduced to one turn in double: distances of 10^5 times a frequency of 1 leave float no digits.
      constexpr double turn = 6.283185307179586;
      double const turns = static_cast<double>(distance) * (frequencies_[static_cast<std::size_t>(i)] / turn);
      detail::sine_cosine_of_turns(turns, sine, cosine);
    }
    float const turned = a * cosine + b * sine;
    b = b * cosine - a * sine;
    a = turned;
  }

 private:
  KeyRotation(RotaryPairing pairing, std::int32_t rotary_dim) : pairing_(pairing), rotary_dim_(rotary_dim) {
    bool const ok = rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= max_rotary_dim;
    require(ok, "rotary_dim", {"even, in (0, ", max_rotary_dim, "]"}, rotary_dim, "KeyRotation");
  }

  RotaryPairing pairing_ = RotaryPairing::neox;
  std::int32_t rotary_dim_ = 0;
  float const* cosines_ = nullptr;
  float const* sines_ = nullptr;
  std::int64_t positions_ = 0;
  std::int32_t const* token_positions_ = nullptr;
  std::int32_t const* target_positions_ = nullptr;
  std::int64_t position_stride_ = 0;
  std::int64_t coordinate_stride_ = 0;
  std::int32_t num_coordinates_ = 1;
  std::uint32_t coordinates_[max_rotary_dim / 32] = {};  ///< two bits per pair
  std::int64_t min_evicted_ = usual_evictions;
  double frequencies_[max_rotary_dim / 2] = {};
};

/// @brief No rotation, the default: keys keep the positions that they were rotated for.
struct KeepPositions {};

/// @brief The two channels of a rotary pair.
struct RotaryPair {
  std::int32_t a;
  std::int32_t b;
};
/// @brief Returns the channels of pair `i`. @pre  0 <= i < rotary_dim / 2
[[nodiscard]] HEADAWARE_HOST_DEVICE inline RotaryPair rotary_pair(KeyRotation const& rotation, std::int32_t i) {
  return rotation.pairing() == RotaryPairing::neox ? RotaryPair{i, i + rotation.rotary_dim() / 2}
                                                   : RotaryPair{2 * i, 2 * i + 1};
}

namespace detail {

template <class T>
struct RotatedPair {
  T a;
  T b;
};

/// Whether keys of `T` lose bits each time they are turned where they lie, so that only so many times is right.
template <class T, class Rotation>
inline constexpr bool rounds_in_place = std::is_same_v<Rotation, KeyRotation> && sizeof(T) < sizeof(float);

/// Checks that 64 bits count the positions' bytes.
template <class = void>
void check_position_stride(KeyRotation const& rotation, std::int64_t sequences) {
  if (rotation.token_positions() == nullptr) return;
  constexpr auto where = "KeyRotation::with_positions";
  std::int64_t const plane = elements(where, {sequences, rotation.position_stride(), sizeof(std::int32_t)});
  if (rotation.num_coordinates() == 1) return;
  std::int64_t const bytes = elements(where, {rotation.coordinate_stride(), sizeof(std::int32_t)});
  require(bytes >= plane, "coordinate_stride", {"at least ", plane / 4, ", the positions of all sequences"},
          rotation.coordinate_stride(), where);
  (void)elements(where, {rotation.num_coordinates(), bytes});
}

/// Checks positions in host memory. @param lengths  tokens of each sequence
template <class Rotation>
void check_positions(Rotation const& rotation, std::span<std::int32_t const> lengths, char const* where) {
  if constexpr (std::is_same_v<Rotation, KeyRotation>) {
    if (rotation.token_positions() == nullptr) return;
    check_position_stride(rotation, static_cast<std::int64_t>(lengths.size()));
    std::int64_t const end = rotation.positions() > 0 ? rotation.positions() : std::int64_t{1} << 31;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (std::int64_t t = 0; t < lengths[s]; ++t) {
        for (std::int32_t c = 0; c < rotation.num_coordinates(); ++c) {
          auto const sequence = static_cast<std::int64_t>(s);
          for (std::int64_t const position : {rotation.position(sequence, t, c), rotation.target(sequence, t, 0, c)}) {
            require(position >= 0 && position < end, "position of a key", {"in [0, ", end, ")"}, position,
                    {where, ", sequence ", s, ", token ", t});
          }
        }
      }
    }
  }
}

/// Turns pair `i` of a key that moves `distance` positions back; a key that stays keeps its bits.
template <class T>
HEADAWARE_HOST_DEVICE RotatedPair<T> rotate_pair(KeyRotation const& rotation, std::int64_t distance, std::int32_t i,
                                                 T a, T b) {
  static_assert(holds_floats<T>, "headaware: keys that turn hold float, float16 or bfloat16 (on the device __half and "
                                 "__nv_bfloat16 too)");
  if (distance == 0) return {a, b};
  float x = to_float(a);
  float y = to_float(b);
  rotation.turn_back(distance, i, x, y);
  return {from_float<T>(x), from_float<T>(y)};
}

}  // namespace detail

/// @brief Checks the positions of `with_positions` in host memory as the CPU back end does.
/// @throws ArgumentError on a negative position, or one that a rotation's table does not have
template <class = void>
void validate_tables(KeyRotation const& rotation, std::span<std::int32_t const> lengths) {
  detail::check_positions(rotation, lengths, "validate_tables");
}

HEADAWARE_NAMESPACE_END
