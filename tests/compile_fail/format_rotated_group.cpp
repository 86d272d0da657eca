// error: the group of a rotated format is a power of two

#include <headaware/format/concept.hpp>

#include <cstdint>
#include <string_view>

struct Format {
  static constexpr std::string_view name = "mine";
  static constexpr std::int32_t group = 24;
  static constexpr std::int32_t block_words = 1;
  static constexpr bool rotated = true;
  HEADAWARE_HOST_DEVICE void encode(float const*, std::uint32_t*) const {}
  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const*, float*) const {}
  friend constexpr bool operator==(Format const&, Format const&) = default;
};

static_assert(headaware::check_format<Format>());
