#pragma once

/// @file
/// Re-rotation of keys: a kept key, rotated for the position it had, is turned to the position of
/// its slot, so that the compressed sequence has consecutive positions.

#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Sine and cosine of a part of a full turn, 0 <= part <= 1.
HEADAWARE_HOST_DEVICE inline void sine_cosine_of_turns(float part, float& sine, float& cosine) {
#if defined(__CUDA_ARCH__)
  sincospif(2 * part, &sine, &cosine);  // sinf would carry a reduction of huge angles along, and spill registers
#else
  sine = std::sin(6.2831853F * part);
  cosine = std::cos(6.2831853F * part);
#endif
}

}  // namespace detail

/// @brief Which channels rotate together: `neox` pairs (i, i + rotary_dim / 2), `interleaved` pairs
/// (2i, 2i + 1).
enum class RotaryPairing : std::uint8_t { neox, interleaved };

/// @brief A rotary embedding's frequencies, and how it pairs channels. Trivially copyable.
///
/// A key at token t moved to slot j is turned by (j - t) times each frequency. Channels from
/// `rotary_dim` on are left as they are.
/// @par Source  Su et al., RoFormer, arXiv:2104.09864; positions within the cache: arXiv:2309.17453
class KeyRotation {
 public:
  static constexpr std::int32_t max_rotary_dim = 512;

  KeyRotation() = default;

  /// Frequencies base^(-2i / rotary_dim). @throws ArgumentError on an odd or too large rotary_dim or base <= 0
  static KeyRotation from_base(RotaryPairing pairing, std::int32_t rotary_dim, double base) {
    KeyRotation rotation(pairing, rotary_dim);
    detail::require(base > 0 && std::isfinite(base), "rotary base", "> 0", base, "KeyRotation");
    for (std::int32_t i = 0; i < rotary_dim / 2; ++i) {
      rotation.frequencies_[static_cast<std::size_t>(i)] = std::pow(base, -2.0 * i / rotary_dim);
    }
    return rotation;
  }

  /// The model's own frequencies (scaled variants of rotary embedding), [rotary_dim / 2], radians a position.
  static KeyRotation from_frequencies(RotaryPairing pairing, std::span<double const> frequencies) {
    KeyRotation rotation(pairing, static_cast<std::int32_t>(2 * frequencies.size()));
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      detail::require(std::isfinite(frequencies[i]), "rotary frequency", "a finite number", frequencies[i],
                      "KeyRotation");
      rotation.frequencies_[i] = frequencies[i];
    }
    return rotation;
  }

  /// @brief The engine's own tables of cosines and sines of position · frequency.
  /// @param cosines  [positions, rotary_dim / 2], where the back end runs; borrowed
  /// @param sines    the same for sines; cos² + sin² = 1, that is, without an attention scaling factor
  /// @pre  every key moves by less than `positions`
  static KeyRotation from_table(RotaryPairing pairing, std::int32_t rotary_dim, float const* cosines,
                                float const* sines, std::int64_t positions) {
    KeyRotation rotation(pairing, rotary_dim);
    bool const given = cosines != nullptr && sines != nullptr;
    detail::require(given, "rotary tables", "two pointers", "nullptr", "KeyRotation");
    detail::require(positions > 0, "rotary table positions", "> 0", positions, "KeyRotation");
    rotation.cosines_ = cosines;
    rotation.sines_ = sines;
    rotation.positions_ = positions;
    return rotation;
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE RotaryPairing pairing() const { return pairing_; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t rotary_dim() const { return rotary_dim_; }
  /// Rows of the tables; 0 where frequencies are used.
  [[nodiscard]] std::int64_t positions() const { return positions_; }

  /// @brief Turns pair `i` of a key back by `distance` positions (token - slot).
  HEADAWARE_HOST_DEVICE void turn_back(std::int64_t distance, std::int32_t i, float& a, float& b) const {
    float cosine = 1;
    float sine = 0;
    if (cosines_ != nullptr) {
      cosine = cosines_[distance * (rotary_dim_ / 2) + i];
      sine = sines_[distance * (rotary_dim_ / 2) + i];
    } else {
      // Reduced to one turn in double: distances of 10^5 times a frequency of 1 leave float no digits.
      constexpr double turn = 6.283185307179586;
      double const turns = static_cast<double>(distance) * (frequencies_[static_cast<std::size_t>(i)] / turn);
      detail::sine_cosine_of_turns(static_cast<float>(turns - floor(turns)), sine, cosine);
    }
    float const turned = a * cosine + b * sine;
    b = b * cosine - a * sine;
    a = turned;
  }

 private:
  KeyRotation(RotaryPairing pairing, std::int32_t rotary_dim) : pairing_(pairing), rotary_dim_(rotary_dim) {
    bool const ok = rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= max_rotary_dim;
    detail::require(ok, "rotary_dim", "even, in (0, " + std::to_string(max_rotary_dim) + "]", rotary_dim,
                    "KeyRotation");
  }

  RotaryPairing pairing_ = RotaryPairing::neox;
  std::int32_t rotary_dim_ = 0;
  float const* cosines_ = nullptr;
  float const* sines_ = nullptr;
  std::int64_t positions_ = 0;
  double frequencies_[max_rotary_dim / 2] = {};
};

namespace detail {

/// Rows move as they are.
struct KeepPositions {};

/// The two channels of rotary pair `i`.
struct RotaryPair {
  std::int32_t a;
  std::int32_t b;
};
HEADAWARE_HOST_DEVICE inline RotaryPair rotary_pair(KeyRotation const& rotation, std::int32_t i) {
  return rotation.pairing() == RotaryPairing::neox ? RotaryPair{i, i + rotation.rotary_dim() / 2}
                                                   : RotaryPair{2 * i, 2 * i + 1};
}

template <class T>
struct RotatedPair {
  T a;
  T b;
};

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

HEADAWARE_NAMESPACE_END
