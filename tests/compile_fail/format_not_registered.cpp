// error: this format is not in the registry; add it with Registry::with<...>

#include <headaware/format/registry.hpp>

#include <cstdint>
#include <string_view>

struct Format {
  static constexpr std::string_view name = "mine";
  static constexpr std::int32_t group = 4;
  static constexpr std::int32_t block_words = 1;
  static constexpr bool rotated = false;
  HEADAWARE_HOST_DEVICE void encode(float const*, std::uint32_t*) const {}
  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const*, float*) const {}
  friend constexpr bool operator==(Format const&, Format const&) = default;
};

headaware::AnyFormat<> const format = Format{};
