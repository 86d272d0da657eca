// error: a format needs 'void encode(float const* x, uint32_t* words) const' and 'void decode(uint32_t const* words,

#include <headaware/format/registry.hpp>

#include <cstdint>
#include <string_view>

struct Format {
  static constexpr std::string_view name = "mine";
  static constexpr std::int32_t group = 4;
  static constexpr std::int32_t block_words = 1;
  static constexpr bool rotated = false;
  HEADAWARE_HOST_DEVICE void encode(float const*, std::uint32_t*) const {}
  friend constexpr bool operator==(Format const&, Format const&) = default;
};

auto const names = headaware::DefaultFormats::with<Format>::names;
