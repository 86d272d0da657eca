#pragma once

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A number such as a page size, with its reciprocal: divides by multiplying and shifting, which on a device
/// costs far less than a division.
///
/// Exact for indices below 2^31: index / d = index * ceil(2^shift / d) >> shift with shift = 31 + ceil(log2 d), since
/// the product then exceeds the true one by less than 2^shift / d; and that reciprocal fits 32 bits.
/// @par Source  Granlund and Montgomery, Division by Invariant Integers using Multiplication, PLDI 1994
class FixedDivisor {
 public:
  constexpr FixedDivisor() = default;
  /// Holds any number; divides only if it is positive.
  HEADAWARE_HOST_DEVICE constexpr FixedDivisor(std::int32_t divisor)  // NOLINT(google-explicit-constructor)
      : divisor_(divisor) {
    if (divisor <= 0) return;
    while (std::int64_t{1} << (shift_ - 31) < divisor) ++shift_;
    std::uint64_t const numerator = std::uint64_t{1} << shift_;
    reciprocal_ = static_cast<std::uint32_t>((numerator - 1) / static_cast<std::uint64_t>(divisor) + 1);
  }
  /// @throws ArgumentError unless 0 < divisor < 2^31
  FixedDivisor(std::int64_t divisor, char const* what, char const* where)
      : FixedDivisor(static_cast<std::int32_t>(divisor > 0 && divisor <= 0x7fffffff ? divisor : 0)) {
    require(divisor_ > 0, what, "in [1, 2147483647]", divisor, where);
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t quotient(std::int64_t index) const {
    return static_cast<std::int64_t>(std::uint64_t{static_cast<std::uint32_t>(index)} * reciprocal_ >> shift_);
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t remainder(std::int64_t index) const {
    return index - quotient(index) * divisor_;
  }
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t value() const { return divisor_; }
  HEADAWARE_HOST_DEVICE constexpr operator std::int32_t() const {  // NOLINT(google-explicit-constructor)
    return divisor_;
  }

 private:
  std::int32_t divisor_ = 1;
  std::uint32_t reciprocal_ = 0x80000000U;
  std::int32_t shift_ = 31;
};

HEADAWARE_NAMESPACE_END
