// A policy, a layout and a view without a mistake; beside it, each file of this folder makes one.

#include <headaware/attention/kept_view.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/policy/table.hpp>

#include <cstdint>
#include <string_view>

struct EverySecond {
  static constexpr std::string_view name = "every_second";
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t) const { return token % 2 == 0; }
  friend constexpr bool operator==(EverySecond const&, EverySecond const&) = default;
};

struct Rows {
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t, std::int64_t, std::int64_t token,
                                            std::int64_t channel) const {
    return token * 64 + channel;
  }
};

struct Held {
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t rows() const { return 1; }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t channels) const {
    return row * channels;
  }
};
struct View {
  [[nodiscard]] HEADAWARE_HOST_DEVICE Held head(std::int64_t, std::int64_t) const { return {}; }
};

using Registry = headaware::DefaultRegistry::with<EverySecond>;
headaware::BasicPolicyTable<Registry> const table(1, 1, EverySecond{});
auto const id = Registry::id_of<EverySecond>();
static_assert(headaware::check_policy<EverySecond>());
static_assert(headaware::check_layout<Rows>());
static_assert(headaware::check_kept_view<View>());
