#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/policy/fold.hpp>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace ha = headaware;
using ha::Full;
using ha::Prune;
using ha::SinkWindow;
using ha::WindowOnly;

namespace {

using Policy = ha::AnyPolicy<>;

Policy fold(std::vector<Policy> policies) { return ha::fold_union<ha::DefaultRegistry>(policies); }

/// Keeps every other token.
struct EvenTokens {
  static constexpr std::string_view name = "even_tokens";
  std::int32_t phase = 0;
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t) const {
    return (token + phase) % 2 == 0;
  }
  friend constexpr bool operator==(EvenTokens const&, EvenTokens const&) = default;
};

}  // namespace

TEST_CASE("windows fold to the largest sink and the largest window", "[policy]") {
  CHECK(fold({SinkWindow{4, 8}, SinkWindow{1, 64}}) == Policy(SinkWindow{4, 64}));
  CHECK(fold({SinkWindow{4, 8}, WindowOnly{64}}) == Policy(SinkWindow{4, 64}));
  CHECK(fold({WindowOnly{64}, SinkWindow{4, 8}}) == Policy(SinkWindow{4, 64}));
  CHECK(fold({WindowOnly{8}, WindowOnly{16}, WindowOnly{4}}) == Policy(WindowOnly{16}));
  CHECK(fold({WindowOnly{8}, Prune{}, WindowOnly{16}}) == Policy(WindowOnly{16}));
  CHECK(fold({Prune{}, SinkWindow{4, 8}, Prune{}}) == Policy(SinkWindow{4, 8}));
}

TEST_CASE("windows and scored tokens fold to the most of each", "[policy]") {
  using Scored = ha::SinkWindowScored;
  CHECK(fold({Scored{4, 8, 16}, Scored{1, 64, 2}}) == Policy(Scored{4, 64, 16}));
  CHECK(fold({SinkWindow{6, 8}, Scored{1, 64, 2}}) == Policy(Scored{6, 64, 2}));
  CHECK(fold({WindowOnly{90}, Scored{1, 64, 2}, Prune{}}) == Policy(Scored{1, 90, 2}));
  CHECK(fold({Scored{1, 64, 2}, Full{}}) == Policy(Full{}));
}

TEST_CASE("Full wins, and only a group of pruned heads is pruned", "[policy]") {
  CHECK(fold({Prune{}, Prune{}}) == Policy(Prune{}));
  CHECK(fold({Prune{}, Full{}}) == Policy(Full{}));
  CHECK(fold({Full{}, SinkWindow{4, 8}, Prune{}}) == Policy(Full{}));
  CHECK(fold({SinkWindow{4, 8}}) == Policy(SinkWindow{4, 8}));
}

TEST_CASE("a fold keeps what any of its policies keeps, in any order", "[policy]") {
  std::vector<Policy> const all{SinkWindow{4, 8}, WindowOnly{3}, SinkWindow{0, 16}, WindowOnly{12}, Prune{}, Full{}};
  for (unsigned members = 1; members < (1U << all.size()); ++members) {
    std::vector<Policy> group;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (((members >> i) & 1U) != 0) group.push_back(all[i]);
    }
    Policy const folded = fold(group);
    std::reverse(group.begin(), group.end());
    CHECK(fold(group) == folded);
    for (std::int64_t length : {0, 1, 7, 12, 13, 20, 40}) {
      for (std::int64_t token = 0; token < length; ++token) {
        auto keeps = [&](Policy const& policy) {
          return policy.visit([&](auto const& p) {
            if constexpr (requires { p.tokens; }) {
              return false;
            } else {
              return p.keeps(token, length);
            }
          });
        };
        bool const any = std::any_of(group.begin(), group.end(), keeps);
        if (any) CHECK(keeps(folded));
      }
    }
  }
}

TEST_CASE("policies of other types fold only where they are equal", "[policy]") {
  using Registry = ha::DefaultRegistry::with<EvenTokens>;
  using Mine = ha::AnyPolicy<Registry>;
  auto fold_mine = [](std::vector<Mine> group) { return ha::fold_union<Registry>(group); };
  Mine const even = EvenTokens{0};
  CHECK(fold_mine({even, even}) == even);
  CHECK(fold_mine({Prune{}, even, Prune{}}) == even);
  CHECK(fold_mine({even, SinkWindow{4, 8}, Full{}}) == Mine(Full{}));
  headaware_test::check_error<ha::ArgumentError>(
      [&] {
        (void)fold_mine({even, SinkWindow{4, 8}});
      },
      {"policies", "equal", "even_tokens and another sink_window", "fold_union"});
  headaware_test::check_error<ha::ArgumentError>(
      [&] {
        (void)fold_mine({even, EvenTokens{1}});
      },
      {"policies", "equal", "even_tokens and another even_tokens", "fold_union"});
  headaware_test::check_error<ha::ArgumentError>([&] { (void)fold_mine({}); },
                                                 {"group", "at least one", "none", "fold_union"});
}

TEST_CASE("a registry need not know the policies that fold", "[policy]") {
  using Registry = ha::PolicyRegistry<WindowOnly, EvenTokens>;
  using Mine = ha::AnyPolicy<Registry>;
  std::vector<Mine> const group{WindowOnly{4}, WindowOnly{9}};
  CHECK(ha::fold_union<Registry>(group) == Mine(WindowOnly{9}));
  using Single = ha::PolicyRegistry<EvenTokens>;
  std::vector<ha::AnyPolicy<Single>> const other{EvenTokens{0}, EvenTokens{0}};
  CHECK(ha::fold_union<Single>(other) == ha::AnyPolicy<Single>(EvenTokens{0}));
}
