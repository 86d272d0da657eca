// Policies, registry and tables by themselves.

#include "support/errors.hpp"
#include "support/reference_cache.hpp"

#include <headaware/policy/table.hpp>

#include <cstdint>
#include <limits>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

template <class P>
void check_maps(P const& policy) {
  for (std::int64_t length = 0; length <= 70; ++length) {
    auto const kept = kept_tokens(policy, length);
    REQUIRE(ha::kept_count(policy, length) == static_cast<std::int64_t>(kept.size()));
    std::int64_t before = 0;
    for (std::int64_t t = 0; t < length; ++t) {
      REQUIRE(ha::kept_before(policy, t, length) == before);
      bool const keeps = policy.keeps(t, length);
      REQUIRE(ha::kept_row(policy, t, length) == (keeps ? before : -1));
      before += keeps ? 1 : 0;
    }
    for (std::size_t i = 0; i < kept.size(); ++i)
      REQUIRE(ha::source_token(policy, static_cast<std::int64_t>(i), length) == kept[i]);
  }
}

struct OwnPolicy {
  static constexpr std::string_view name = "own";
  int modulus = 4;
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t length) const {
    return (length - token) % modulus == 1;
  }
  friend bool operator==(OwnPolicy const&, OwnPolicy const&) = default;
};
struct OwnCounted {
  static constexpr std::string_view name = "own_counted";
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t) const { return token % 5 == 0; }
  HEADAWARE_HOST_DEVICE std::int64_t kept_before(std::int64_t token, std::int64_t) const { return (token + 4) / 5; }
  friend bool operator==(OwnCounted const&, OwnCounted const&) = default;
};

}  // namespace

TEST_CASE("policies keep what they say", "[policy]") {
  REQUIRE(kept_tokens(ha::SinkWindow{.sink = 2, .window = 3}, 8) == std::vector<std::int64_t>{0, 1, 5, 6, 7});
  REQUIRE(kept_tokens(ha::SinkWindow{.sink = 2, .window = 3}, 5) == std::vector<std::int64_t>{0, 1, 2, 3, 4});
  REQUIRE(kept_tokens(ha::WindowOnly{.window = 3}, 8) == std::vector<std::int64_t>{5, 6, 7});
  // Without scores the newest tokens stand for those of the highest.
  REQUIRE(kept_tokens(ha::SinkWindowScored{.sink = 2, .window = 1, .scored = 2}, 8) ==
          std::vector<std::int64_t>{0, 1, 5, 6, 7});
  REQUIRE(kept_tokens(ha::Full{}, 3) == std::vector<std::int64_t>{0, 1, 2});
  REQUIRE(kept_tokens(ha::Prune{}, 3).empty());
}

TEST_CASE("slots and tokens map to each other", "[policy]") {
  for (std::int32_t const sink : {0, 1, 4, 40}) {
    for (std::int32_t const window : {0, 1, 8, 33, 100}) check_maps(ha::SinkWindow{.sink = sink, .window = window});
  }
  for (std::int32_t const window : {0, 1, 8, 33, 100}) check_maps(ha::WindowOnly{.window = window});
  check_maps(ha::SinkWindow{.sink = std::numeric_limits<std::int32_t>::max(),
                            .window = std::numeric_limits<std::int32_t>::max()});
  for (std::int32_t const scored : {0, 1, 9, 50}) {
    for (std::int32_t const window : {0, 1, 33}) {
      check_maps(ha::SinkWindowScored{.sink = 2, .window = window, .scored = scored});
    }
  }
  check_maps(ha::Full{});
  check_maps(ha::Prune{});
  check_maps(OwnPolicy{});
  check_maps(OwnCounted{});
  std::vector<std::int32_t> const tokens{0, 2, 3};
  ha::KeepList const list{tokens.data(), 3};
  REQUIRE(ha::kept_count(list, 4) == 3);
  REQUIRE(ha::kept_row(list, 1, 4) == -1);
  REQUIRE(ha::kept_row(list, 3, 4) == 2);
  REQUIRE(ha::source_token(list, 1, 4) == 2);
}

TEST_CASE("kept indices of long sequences need no search", "[policy]") {
  constexpr std::int64_t length = std::int64_t{1} << 40;
  ha::SinkWindow const policy{.sink = 4, .window = 508};
  REQUIRE(ha::kept_count(policy, length) == 512);
  REQUIRE(ha::source_token(policy, 4, length) == length - 508);
  REQUIRE(ha::kept_row(policy, length - 1, length) == 511);
  REQUIRE(ha::source_token(OwnCounted{}, 1000, length) == 5000);
}

TEST_CASE("fields of scored slots are checked", "[policy]") {
  auto const validate = [](std::int32_t sink, std::int32_t window, std::int32_t scored) {
    ha::SinkWindowScored{.sink = sink, .window = window, .scored = scored}.validate();
  };
  validate(0, 0, std::numeric_limits<std::int32_t>::max());
  check_error<ha::ArgumentError>([&] { validate(-1, 0, 0); }, {"negative sink", "", "-1", "SinkWindowScored"});
  check_error<ha::ArgumentError>([&] { validate(0, -1, 0); }, {"negative window", "", "-1", "SinkWindowScored"});
  check_error<ha::ArgumentError>([&] { validate(0, 0, -1); }, {"scored", ">= 0", "-1", "SinkWindowScored"});
  check_error<ha::ArgumentError>([&] { validate(0, 2, std::numeric_limits<std::int32_t>::max() - 1); },
                                 {"scored", "with window below 2^31", "2147483646", "SinkWindowScored"});
}

TEST_CASE("keep-lists are checked", "[policy]") {
  std::vector<std::int32_t> const tokens{1, 5, 5};
  check_error<ha::ArgumentError>(
      [&] {
        ha::KeepList{tokens.data(), 3}.validate_entries(10);
      },
      {"keep-list entry", "[6, 10)", "5", "entry 2"});
  check_error<ha::ArgumentError>(
      [&] {
        ha::KeepList{tokens.data(), 2}.validate_entries(5);
      },
      {"keep-list entry", "[2, 5)", "5", "entry 1"});
  check_error<ha::ArgumentError>(
      [&] {
        ha::KeepList{nullptr, 2}.validate();
      },
      {"keep-list tokens", "pointer", "nullptr", "KeepList"});
  ha::KeepList{tokens.data(), 2}.validate_entries(6);
}

TEST_CASE("the registry knows policies by name and by type", "[policy]") {
  using Registry = ha::DefaultRegistry::with<OwnPolicy>;
  REQUIRE(Registry::size == 7);
  REQUIRE(Registry::id_of<ha::Full>() == ha::DefaultRegistry::id_of<ha::Full>());
  REQUIRE(Registry::id_of_name("own") == Registry::id_of<OwnPolicy>());
  std::string visited;
  Registry::visit_type(Registry::id_of_name("window_only"), [&](auto const& policy) { visited = policy.name; });
  REQUIRE(visited == "window_only");
  check_error<ha::ArgumentError>(
      [] { (void)Registry::id_of_name("windows"); },
      {"unknown policy", "full, sink_window, window_only, prune, keep_list, sink_window_scored, own", "'windows'",
       "PolicyRegistry"});

  ha::AnyPolicy<Registry> const any = OwnPolicy{.modulus = 7};
  REQUIRE(any.name() == "own");
  REQUIRE(any.is<OwnPolicy>());
  REQUIRE(any.get<OwnPolicy>().modulus == 7);
  REQUIRE(any == ha::AnyPolicy<Registry>(OwnPolicy{.modulus = 7}));
  REQUIRE_FALSE(any == ha::AnyPolicy<Registry>(OwnPolicy{.modulus = 8}));
  REQUIRE_FALSE(any == ha::AnyPolicy<Registry>(ha::Full{}));
  REQUIRE(any.visit([](auto const& policy) { return ha::kept_count(policy, 14); }) == 2);
}

TEST_CASE("tables", "[policy]") {
  ha::PolicyTable table(2, 4, ha::SinkWindow{.sink = 4, .window = 28});
  table.set(1, 2, ha::Full{});
  REQUIRE(table.at(1, 2).is<ha::Full>());
  REQUIRE(table.at(0, 2).get<ha::SinkWindow>() == ha::SinkWindow{.sink = 4, .window = 28});
  check_error<ha::ArgumentError>([&] { (void)table.at(2, 0); }, {"layer", "[0, 2)", "2", "PolicyTable"});
  check_error<ha::ArgumentError>([&] { table.set(0, -1, ha::Full{}); }, {"KV head", "[0, 4)", "-1", "PolicyTable"});
  check_error<ha::ArgumentError>([&] { table.set(0, 0, ha::SinkWindow{.sink = 4, .window = -3}); },
                                 {"negative window", "window >= 0", "-3", "SinkWindow"});
  check_error<ha::ArgumentError>([] { (void)ha::PolicyTable(0, 4); }, {"num_layers", "> 0", "0", "PolicyTable"});
  check_error<ha::ArgumentError>([] { (void)ha::UniformTable(ha::WindowOnly{.window = -1}, 1, 1); },
                                 {"negative window", "", "-1", "WindowOnly"});

  std::vector<std::int32_t> const skipped{0};
  auto const skipping = table.skip_layers(skipped);
  REQUIRE(skipping.at(0, 3).is<ha::Full>());
  REQUIRE(skipping.at(1, 3).is<ha::SinkWindow>());
  std::vector<std::int32_t> const picked{1, 1, 0};
  auto const selected = table.select_layers(picked);
  REQUIRE(selected.num_layers() == 3);
  REQUIRE(selected.at(1, 2).is<ha::Full>());
  REQUIRE(selected.at(2, 2).is<ha::SinkWindow>());

  // The bytes that travel to a device are the table.
  std::vector<std::byte> copy(table.bytes().begin(), table.bytes().end());
  auto const view = table.view_at(copy.data());
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    for (std::int32_t head = 0; head < 4; ++head) {
      auto const count = [](auto const& policy) { return ha::kept_count(policy, 1000); };
      REQUIRE(view.visit(layer, head, count) == table.visit(layer, head, count));
    }
  }
}

TEST_CASE("tensor-parallel ranks get their KV heads", "[policy]") {
  ha::PolicyTable table(1, 8);
  for (std::int32_t h = 0; h < 8; ++h) table.set(0, h, ha::WindowOnly{.window = h});
  for (std::int32_t const ranks : {1, 2, 4, 8}) {
    for (std::int32_t rank = 0; rank < ranks; ++rank) {
      auto const slice = table.slice(rank, ranks);
      REQUIRE(slice.num_kv_heads() == 8 / ranks);
      for (std::int32_t h = 0; h < slice.num_kv_heads(); ++h) {
        REQUIRE(slice.at(0, h).get<ha::WindowOnly>().window == rank * (8 / ranks) + h);
      }
    }
  }
  for (std::int32_t rank = 0; rank < 16; ++rank)
    REQUIRE(table.slice(rank, 16).at(0, 0).get<ha::WindowOnly>().window == rank / 2);
  check_error<ha::ArgumentError>([&] { (void)table.slice(0, 3); }, {"ranks", "8 KV heads", "3", "slice"});
  check_error<ha::ArgumentError>([&] { (void)table.slice(2, 2); }, {"rank", "[0, 2)", "2", "slice"});
}
