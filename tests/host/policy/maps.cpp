// What policies keep, by the definition, and the maps between tokens and slots, by counting.

#include "support/errors.hpp"

#include <headaware/policy/full.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/window_only.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int32_t huge = std::numeric_limits<std::int32_t>::max();

/// Everything that is derived from `keeps` against counting, for one length.
template <class P>
bool maps_agree(P const& policy, std::int64_t length) {
  bool agree = true;
  std::int64_t kept = 0;
  for (std::int64_t token = 0; token < length; ++token) {
    agree = agree && ha::kept_before(policy, token, length) == kept;
    if (policy.keeps(token, length)) {
      agree = agree && ha::kept_row(policy, token, length) == kept;
      agree = agree && ha::source_token(policy, kept, length) == token;
      ++kept;
    } else {
      agree = agree && ha::kept_row(policy, token, length) == -1;
    }
  }
  return agree && ha::kept_before(policy, length, length) == kept && ha::kept_count(policy, length) == kept;
}

/// The set [0, sink) ∪ [length - window, length), written down token by token.
std::vector<bool> union_of(std::int64_t sink, std::int64_t window, std::int64_t length) {
  std::vector<bool> keeps(static_cast<std::size_t>(length), length <= sink + window);
  for (std::int64_t i = 0; i < std::min(sink, length); ++i) keeps[static_cast<std::size_t>(i)] = true;
  for (std::int64_t i = 0; i < std::min(window, length); ++i) keeps[static_cast<std::size_t>(length - 1 - i)] = true;
  return keeps;
}

template <class P>
bool keeps_exactly(P const& policy, std::vector<bool> const& expected) {
  auto const length = static_cast<std::int64_t>(expected.size());
  for (std::int64_t t = 0; t < length; ++t) {
    if (policy.keeps(t, length) != expected[static_cast<std::size_t>(t)]) return false;
  }
  return ha::kept_count(policy, length) == std::count(expected.begin(), expected.end(), true);
}

/// Keeps what a hash says; only the one function.
struct Hashed {
  static constexpr std::string_view name = "hashed";
  std::uint32_t seed = 0;
  std::uint32_t density = 128;  ///< of 256
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t length) const {
    auto const x = (static_cast<std::uint32_t>(token * 31 + length) ^ seed) * 2654435761U;
    return (x >> 24) < density;
  }
  friend bool operator==(Hashed const&, Hashed const&) = default;
};

/// Every `step`-th token counted from the newest, and how many those are.
struct Strided {
  static constexpr std::string_view name = "strided";
  std::int64_t step = 3;
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t length) const {
    return (length - 1 - token) % step == 0;
  }
  HEADAWARE_HOST_DEVICE std::int64_t kept_before(std::int64_t token, std::int64_t length) const {
    return (length + step - 1) / step - (length - token + step - 1) / step;
  }
  friend bool operator==(Strided const&, Strided const&) = default;
};

/// The second half; finds a slot's token by itself, but does not count.
struct SecondHalf {
  static constexpr std::string_view name = "second_half";
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t length) const { return token >= length / 2; }
  HEADAWARE_HOST_DEVICE std::int64_t source_token(std::int64_t slot, std::int64_t length) const {
    return slot + length / 2;
  }
  friend bool operator==(SecondHalf const&, SecondHalf const&) = default;
};

static_assert(ha::HeadPolicy<Hashed> && ha::HeadPolicy<Strided> && ha::HeadPolicy<SecondHalf>);
static_assert(ha::detail::has_kept_before<Strided> && !ha::detail::has_source_token<Strided>);
static_assert(!ha::detail::has_kept_before<SecondHalf> && ha::detail::has_source_token<SecondHalf>);

// The maps are constant expressions, so that sizes may be.
static_assert(ha::kept_count(ha::SinkWindow{.sink = 4, .window = 508}, 100000) == 512);
static_assert(ha::source_token(ha::SinkWindow{.sink = 4, .window = 508}, 4, 100000) == 99492);
static_assert(ha::kept_count(ha::WindowOnly{.window = 8}, 5) == 5 && ha::kept_count(ha::Prune{}, 5) == 0);

}  // namespace

TEST_CASE("window policies keep the sets of their definition", "[policy]") {
  std::vector<std::int32_t> const sizes{0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 69, 70, 71, 1000, huge - 1, huge};
  for (std::int64_t length = 0; length <= 70; ++length) {
    for (std::int32_t const window : sizes) {
      INFO("length " << length << ", window " << window);
      ha::WindowOnly const only{.window = window};
      REQUIRE(keeps_exactly(only, union_of(0, window, length)));
      REQUIRE(ha::kept_count(only, length) == std::min<std::int64_t>(length, window));
      REQUIRE(maps_agree(only, length));
      for (std::int32_t const sink : sizes) {
        ha::SinkWindow const policy{.sink = sink, .window = window};
        bool const right = keeps_exactly(policy, union_of(sink, window, length)) && maps_agree(policy, length) &&
                           ha::kept_count(policy, length) == std::min(length, std::int64_t{sink} + window);
        if (!right) FAIL("sink " << sink);
      }
    }
    REQUIRE(keeps_exactly(ha::Full{}, std::vector<bool>(static_cast<std::size_t>(length), true)));
    REQUIRE(maps_agree(ha::Full{}, length));
    REQUIRE(keeps_exactly(ha::Prune{}, std::vector<bool>(static_cast<std::size_t>(length), false)));
    REQUIRE(maps_agree(ha::Prune{}, length));
  }
}

TEST_CASE("windows beyond 32 bits do not wrap", "[policy]") {
  ha::SinkWindow const policy{.sink = huge, .window = huge};
  std::int64_t const both = 2 * std::int64_t{huge};
  REQUIRE(ha::kept_count(policy, both - 1) == both - 1);
  REQUIRE(ha::kept_count(policy, both) == both);
  REQUIRE(ha::kept_count(policy, both + 1) == both);
  std::int64_t const length = std::int64_t{1} << 40;
  REQUIRE(ha::kept_count(policy, length) == both);
  REQUIRE(policy.keeps(huge - 1, length));
  REQUIRE_FALSE(policy.keeps(huge, length));
  REQUIRE_FALSE(policy.keeps(length - huge - 1, length));
  REQUIRE(policy.keeps(length - huge, length));
  REQUIRE(ha::source_token(policy, huge - 1, length) == huge - 1);
  REQUIRE(ha::source_token(policy, huge, length) == length - huge);
  REQUIRE(ha::source_token(policy, both - 1, length) == length - 1);
  REQUIRE(ha::kept_row(policy, length - 1, length) == both - 1);
  REQUIRE(ha::kept_before(policy, length / 2, length) == huge);
}

TEST_CASE("the maps of a caller's own policies follow from what they offer", "[policy]") {
  for (std::int64_t length = 0; length <= 70; ++length) {
    INFO("length " << length);
    for (std::uint32_t seed = 0; seed < 20; ++seed) {
      REQUIRE(maps_agree(Hashed{seed, 128}, length));
      REQUIRE(maps_agree(Hashed{seed, 10}, length));
      REQUIRE(maps_agree(Hashed{seed, 250}, length));
    }
    REQUIRE(maps_agree(Hashed{0, 0}, length));
    REQUIRE(maps_agree(Hashed{0, 256}, length));
    for (std::int64_t step = 1; step < 12; ++step) REQUIRE(maps_agree(Strided{step}, length));
    REQUIRE(maps_agree(SecondHalf{}, length));
  }
  // Finding a slot's token by counting takes few steps, however long the sequence.
  std::int64_t const length = (std::int64_t{1} << 50) + 1;
  REQUIRE(ha::kept_count(Strided{2}, length) == (length + 1) / 2);
  REQUIRE(ha::source_token(Strided{2}, std::int64_t{1} << 40, length) == std::int64_t{1} << 41);
}

TEST_CASE("keep-lists keep what they name", "[policy]") {
  constexpr unsigned seed = 5;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  for (std::int32_t length = 0; length <= 70; ++length) {
    for (unsigned density : {0U, 1U, 3U, 6U, 8U}) {
      std::vector<std::int32_t> tokens;
      for (std::int32_t t = 0; t < length; ++t) {
        if (random() % 8 < density) tokens.push_back(t);
      }
      ha::KeepList const list{tokens.data(), static_cast<std::int64_t>(tokens.size())};
      std::vector<bool> expected(static_cast<std::size_t>(length));
      for (auto const t : tokens) expected[static_cast<std::size_t>(t)] = true;
      REQUIRE(keeps_exactly(list, expected));
      REQUIRE(maps_agree(list, length));
      REQUIRE_NOTHROW(list.validate_entries(length));
    }
  }
  REQUIRE(ha::kept_count(ha::KeepList{}, 10) == 0);
  REQUIRE_FALSE(ha::KeepList{}.keeps(0, 10));
}

TEST_CASE("keep-lists that make no sense are named", "[policy]") {
  auto const refused = [](std::vector<std::int32_t> const& tokens, std::int64_t length, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(
        [&] {
          ha::KeepList{tokens.data(), static_cast<std::int64_t>(tokens.size())}.validate_entries(length);
        },
        parts);
  };
  refused({-1}, 10, {"keep-list entry", "[0, 10)", "-1", "KeepList entry 0"});
  refused({10}, 10, {"keep-list entry", "[0, 10)", "10", "KeepList entry 0"});
  refused({0}, 0, {"keep-list entry", "[0, 0)", "0", "KeepList entry 0"});
  refused({3, 3}, 10, {"keep-list entry", "[4, 10)", "3", "KeepList entry 1"});
  refused({3, 5, 4}, 10, {"keep-list entry", "[6, 10)", "4", "KeepList entry 2"});
  refused({3, huge}, 10, {"keep-list entry", "[4, 10)", "2147483647", "KeepList entry 1"});
  refused({huge, std::numeric_limits<std::int32_t>::min()}, std::int64_t{1} << 40,
          {"keep-list entry", "[2147483648, ", "-2147483648", "KeepList entry 1"});
  std::int32_t const token = 0;
  check_error<ha::ArgumentError>(
      [&] {
        ha::KeepList{&token, -1}.validate_entries(10);
      },
      {"keep-list count", ">= 0", "-1", "KeepList"});
  check_error<ha::ArgumentError>(
      [] {
        ha::KeepList{nullptr, 1}.validate_entries(10);
      },
      {"keep-list tokens", "a pointer", "nullptr", "KeepList"});
  REQUIRE_NOTHROW(ha::KeepList{nullptr, 0}.validate_entries(0));
}

TEST_CASE("window sizes that make no sense are named", "[policy]") {
  check_error<ha::ArgumentError>([] { ha::SinkWindow{.sink = -1, .window = 4}.validate(); },
                                 {"negative sink", "sink >= 0", "-1", "SinkWindow"});
  check_error<ha::ArgumentError>([] { ha::SinkWindow{.sink = 0, .window = -4}.validate(); },
                                 {"negative window", "window >= 0", "-4", "SinkWindow"});
  check_error<ha::ArgumentError>([] { ha::WindowOnly{.window = std::numeric_limits<std::int32_t>::min()}.validate(); },
                                 {"negative window", "window >= 0", "-2147483648", "WindowOnly"});
  REQUIRE_NOTHROW(ha::SinkWindow{.sink = 0, .window = 0}.validate());
  REQUIRE_NOTHROW(ha::WindowOnly{.window = huge}.validate());
}
