// Registries, policies whose type is known at run time, and tables of them.

#include "support/errors.hpp"

#include <headaware/cache/compaction.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/policy/with_keep_lists.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

struct Odd {
  static constexpr std::string_view name = "odd";
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t) const { return token % 2 == 1; }
  friend bool operator==(Odd const&, Odd const&) = default;
};

/// Larger and more aligned than the library's own policies.
struct Wide {
  static constexpr std::string_view name = "wide";
  alignas(32) double limits[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t token, std::int64_t) const {
    return static_cast<double>(token) < limits[8];
  }
  friend bool operator==(Wide const& a, Wide const& b) { return std::equal(a.limits, a.limits + 9, b.limits); }
};

struct Picky {
  static constexpr std::string_view name = "picky";
  std::int32_t field = 1;
  HEADAWARE_HOST_DEVICE bool keeps(std::int64_t, std::int64_t) const { return true; }
  friend bool operator==(Picky const&, Picky const&) = default;
  void validate() const { ha::require(field == 1, "picky field", "1", field, "Picky"); }
};

using Extended = ha::DefaultRegistry::with<Odd>::with<Wide, Picky>;
using Any = ha::AnyPolicy<Extended>;

std::string name_of(std::uint8_t id) {
  std::string visited = "nothing";
  Extended::visit_type(id, [&](auto const& policy) { visited = policy.name; });
  return visited;
}

constexpr auto kept_of_20 = [](auto const& policy) { return ha::kept_count(policy, 20); };

}  // namespace

TEST_CASE("a registry numbers its policies in their order", "[policy]") {
  std::vector<std::string> const names{"full", "sink_window", "window_only", "prune", "keep_list", "sink_window_scored",
                                       "odd",  "wide",        "picky"};
  REQUIRE(Extended::size == names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    auto const id = static_cast<std::uint8_t>(i);
    REQUIRE(Extended::names[i] == names[i]);
    REQUIRE(Extended::id_of_name(names[i]) == id);
    REQUIRE(name_of(id) == names[i]);
  }
  REQUIRE(name_of(static_cast<std::uint8_t>(names.size())) == "nothing");
  REQUIRE(Extended::id_of<ha::Prune>() == ha::DefaultRegistry::id_of<ha::Prune>());
  static_assert(Extended::contains<Odd> && !ha::DefaultRegistry::contains<Odd>);
  static_assert(std::is_same_v<Extended, ha::PolicyRegistry<ha::Full, ha::SinkWindow, ha::WindowOnly, ha::Prune,
                                                            ha::KeepList, ha::SinkWindowScored, Odd, Wide, Picky>>);
  static_assert(Extended::storage_bytes == sizeof(Wide) && Extended::storage_align == 32);
}

TEST_CASE("an unknown policy name is answered with the known ones", "[policy]") {
  for (std::string const name : {"Full", "", "full ", "sink-window"}) {
    try {
      (void)ha::DefaultRegistry::id_of_name(name);
      FAIL("'" << name << "' is no policy");
    } catch (ha::ArgumentError const& error) {
      REQUIRE(std::string(error.what()) ==
              "headaware: unknown policy: expected one of full, sink_window, window_only, prune, keep_list, "
              "sink_window_scored, got '" +
                  name + "' (PolicyRegistry)");
    }
  }
}

TEST_CASE("a policy chosen at run time is the policy it was made from", "[policy]") {
  static_assert(std::is_trivially_copyable_v<Any> && alignof(Any) == 32);
  std::vector<std::int32_t> const tokens{1, 4, 9};
  std::vector<Any> const all{ha::Full{},
                             ha::SinkWindow{.sink = 3, .window = 5},
                             ha::WindowOnly{.window = 7},
                             ha::Prune{},
                             ha::KeepList{tokens.data(), 3},
                             ha::SinkWindowScored{.sink = 3, .window = 2, .scored = 4},
                             Odd{},
                             Wide{},
                             Picky{}};
  std::vector<std::int64_t> const kept{20, 8, 7, 0, 3, 9, 10, 9, 20};
  for (std::size_t i = 0; i < all.size(); ++i) {
    REQUIRE(all[i].id() == i);
    REQUIRE(all[i].name() == Extended::names[i]);
    REQUIRE(all[i].visit(kept_of_20) == kept[i]);
    std::string visited;
    all[i].visit([&](auto const& policy) { visited = policy.name; });
    REQUIRE(visited == Extended::names[i]);
    REQUIRE_NOTHROW(all[i].validate());
    // The bytes alone, as a device gets them, are the policy.
    alignas(Any) std::byte bytes[sizeof(Any)];
    std::memcpy(bytes, &all[i], sizeof(Any));
    Any copy;
    std::memcpy(static_cast<void*>(&copy), bytes, sizeof(Any));
    REQUIRE(copy == all[i]);
    REQUIRE(copy.visit(kept_of_20) == kept[i]);
    for (std::size_t j = 0; j < all.size(); ++j) REQUIRE((all[i] == all[j]) == (i == j));
  }
  REQUIRE(all[1].is<ha::SinkWindow>());
  REQUIRE_FALSE(all[1].is<ha::WindowOnly>());
  REQUIRE(all[1].get<ha::SinkWindow>() == ha::SinkWindow{.sink = 3, .window = 5});
  REQUIRE(all[7].get<Wide>() == Wide{});
  REQUIRE_FALSE(Any(ha::SinkWindow{.sink = 3, .window = 5}) == Any(ha::SinkWindow{.sink = 5, .window = 3}));
  REQUIRE(Any() == Any(ha::Full{}));
  REQUIRE(ha::AnyPolicy<ha::PolicyRegistry<ha::WindowOnly, Odd>>().get<ha::WindowOnly>().window == 512);
  check_error<ha::ArgumentError>([] { Any(Picky{.field = 2}).validate(); }, {"picky field", "1", "2", "Picky"});
}

TEST_CASE("tables hold what they are given and nothing out of range", "[policy]") {
  ha::BasicPolicyTable<Extended> table(3, 5, Wide{});
  REQUIRE(table.num_layers() == 3);
  REQUIRE(table.num_kv_heads() == 5);
  for (std::int32_t l = 0; l < 3; ++l) {
    for (std::int32_t h = 0; h < 5; ++h) {
      REQUIRE(table.at(l, h) == Any(Wide{}));
      table.set(l, h, ha::WindowOnly{.window = l * 5 + h});
    }
  }
  for (std::int32_t l = 0; l < 3; ++l) {
    for (std::int32_t h = 0; h < 5; ++h) {
      REQUIRE(table.at(l, h).get<ha::WindowOnly>().window == l * 5 + h);
      REQUIRE(table.visit(l, h, kept_of_20) == l * 5 + h);
    }
  }
  for (std::int32_t const bad : {-1, 3, std::numeric_limits<std::int32_t>::max()}) {
    check_error<ha::ArgumentError>([&] { (void)table.at(bad, 0); },
                                   {"layer", "in [0, 3)", std::to_string(bad), "PolicyTable"});
    check_error<ha::ArgumentError>([&] { table.set(bad, 0, Odd{}); },
                                   {"layer", "in [0, 3)", std::to_string(bad), "PolicyTable"});
  }
  for (std::int32_t const bad : {-1, 5}) {
    check_error<ha::ArgumentError>([&] { (void)table.at(0, bad); },
                                   {"KV head", "in [0, 5)", std::to_string(bad), "PolicyTable"});
    check_error<ha::ArgumentError>([&] { table.set(0, bad, Odd{}); },
                                   {"KV head", "in [0, 5)", std::to_string(bad), "PolicyTable"});
  }
  check_error<ha::ArgumentError>([&] { table.set(0, 0, Picky{.field = 0}); }, {"picky field", "1", "0", "Picky"});
  REQUIRE(table.at(0, 0) == Any(ha::WindowOnly{.window = 0}));
  check_error<ha::ArgumentError>([] { (void)ha::PolicyTable(1, 1, ha::SinkWindow{.sink = -2, .window = 1}); },
                                 {"negative sink", "sink >= 0", "-2", "SinkWindow"});
  check_error<ha::ArgumentError>([] { (void)ha::PolicyTable(-1, 1); }, {"num_layers", "> 0", "-1", "PolicyTable"});
  check_error<ha::ArgumentError>([] { (void)ha::PolicyTable(1, 0); }, {"num_kv_heads", "> 0", "0", "PolicyTable"});
  check_error<ha::ArgumentError>([] { (void)ha::PolicyTable().at(0, 0); }, {"layer", "in [0, 0)", "0", "PolicyTable"});
}

TEST_CASE("layers are left out and picked without touching the table", "[policy]") {
  ha::PolicyTable table(4, 2, ha::SinkWindow{.sink = 1, .window = 2});
  for (std::int32_t l = 0; l < 4; ++l) table.set(l, 1, ha::WindowOnly{.window = l});
  ha::PolicyTable const before = table;
  REQUIRE(table.skip_layers({}) == table);
  std::vector<std::int32_t> const skipped{3, 1, 3};
  ha::PolicyTable const skipping = table.skip_layers(skipped);
  for (std::int32_t l = 0; l < 4; ++l) {
    for (std::int32_t h = 0; h < 2; ++h) {
      REQUIRE(skipping.at(l, h) == (l % 2 == 1 ? ha::AnyPolicy<>(ha::Full{}) : table.at(l, h)));
    }
  }
  std::vector<std::int32_t> const picked{2, 0, 2};
  ha::PolicyTable const selected = table.select_layers(picked);
  REQUIRE(selected.num_layers() == 3);
  for (std::int32_t i = 0; i < 3; ++i) REQUIRE(selected.at(i, 1) == table.at(picked[static_cast<std::size_t>(i)], 1));
  REQUIRE(table == before);

  std::vector<std::int32_t> const beyond{0, 4};
  std::vector<std::int32_t> const negative{-1};
  check_error<ha::ArgumentError>([&] { (void)table.skip_layers(beyond); }, {"layer", "in [0, 4)", "4", "PolicyTable"});
  check_error<ha::ArgumentError>([&] { (void)table.select_layers(negative); },
                                 {"layer", "in [0, 4)", "-1", "PolicyTable"});
  check_error<ha::ArgumentError>([&] { (void)table.select_layers({}); }, {"num_layers", "> 0", "0", "PolicyTable"});
}

TEST_CASE("every number of tensor-parallel ranks gets its heads, or an error", "[policy]") {
  for (std::int32_t heads = 1; heads <= 12; ++heads) {
    ha::PolicyTable table(2, heads);
    for (std::int32_t h = 0; h < heads; ++h) {
      table.set(0, h, ha::WindowOnly{.window = h});
      table.set(1, h, ha::SinkWindow{.sink = h, .window = 1});
    }
    for (std::int32_t ranks = 1; ranks <= 30; ++ranks) {
      INFO(heads << " heads, " << ranks << " ranks");
      if (heads % ranks != 0 && ranks % heads != 0) {
        check_error<ha::ArgumentError>(
            [&] { (void)table.slice(0, ranks); },
            {"ranks", "a divisor or a multiple of " + std::to_string(heads), std::to_string(ranks), "slice"});
        continue;
      }
      // Engines hand out heads in order; with more ranks than heads, as many neighbouring ranks share each.
      std::vector<std::int32_t> handed_out;
      for (std::int32_t copy = 0; copy < std::max(heads, ranks); ++copy) {
        handed_out.push_back(copy * heads / std::max(heads, ranks));
      }
      std::size_t next = 0;
      for (std::int32_t rank = 0; rank < ranks; ++rank) {
        ha::PolicyTable const slice = table.slice(rank, ranks);
        REQUIRE(slice.num_layers() == 2);
        REQUIRE(slice.num_kv_heads() == std::max(1, heads / ranks));
        for (std::int32_t h = 0; h < slice.num_kv_heads(); ++h, ++next) {
          REQUIRE(slice.at(0, h).get<ha::WindowOnly>().window == handed_out[next]);
          REQUIRE(slice.at(1, h).get<ha::SinkWindow>().sink == handed_out[next]);
        }
      }
      REQUIRE(next == handed_out.size());
      for (std::int32_t const rank : {-1, ranks}) {
        check_error<ha::ArgumentError>(
            [&] { (void)table.slice(rank, ranks); },
            {"rank", "in [0, " + std::to_string(ranks) + ")", std::to_string(rank), "slice"});
      }
    }
  }
  check_error<ha::ArgumentError>([] { (void)ha::PolicyTable(1, 2).slice(0, 0); }, {"ranks", "> 0", "0", "slice"});
  check_error<ha::ArgumentError>([] { (void)ha::PolicyTable().slice(0, 1); }, {"ranks", "0 KV heads", "1", "slice"});
}

TEST_CASE("a registry without the library's policies has tables like any other", "[policy]") {
  using Own = ha::PolicyRegistry<Odd, Picky>;
  ha::BasicPolicyTable<Own> table(2, 4, Odd{});
  table.set(1, 2, Picky{});
  REQUIRE(table.slice(1, 2).at(1, 0).is<Picky>());
  std::vector<std::int32_t> const picked{1};
  REQUIRE(table.select_layers(picked).at(0, 2).is<Picky>());
  REQUIRE(ha::Compaction(table, std::vector<std::int32_t>{20}).kept_total() == 7 * 10 + 20);
}

TEST_CASE("a table's bytes and a view of them are the table", "[policy]") {
  ha::BasicPolicyTable<Extended> table(2, 3);
  table.set(0, 1, ha::SinkWindow{.sink = 2, .window = 9});
  table.set(1, 0, Odd{});
  table.set(1, 2, Wide{});
  REQUIRE(table.bytes().size() == 6 * sizeof(Any));
  std::vector<Any> copy(6);
  std::memcpy(static_cast<void*>(copy.data()), table.bytes().data(), table.bytes().size());
  auto const view = table.view_at(copy.data());
  REQUIRE(view.data() == copy.data());
  REQUIRE(view.num_layers() == 2);
  REQUIRE(view.num_kv_heads() == 3);
  for (std::int32_t l = 0; l < 2; ++l) {
    for (std::int32_t h = 0; h < 3; ++h) REQUIRE(view.visit(l, h, kept_of_20) == table.visit(l, h, kept_of_20));
  }
  REQUIRE(table.view().visit(1, 2, kept_of_20) == 9);
  static_assert(ha::PolicySource<decltype(view)>);
}

TEST_CASE("one policy for all heads", "[policy]") {
  ha::UniformTable const table(Odd{}, 3, 2);
  REQUIRE(table.num_layers() == 3);
  REQUIRE(table.num_kv_heads() == 2);
  REQUIRE(table.visit(2, 1, kept_of_20) == 10);
  REQUIRE(ha::UniformTable<Odd>().num_layers() == 0);
  REQUIRE(ha::Compaction(ha::UniformTable<Odd>(), std::vector<std::int32_t>{3, 4}).kept_total() == 0);
  check_error<ha::ArgumentError>([] { (void)ha::UniformTable(Odd{}, -1, 2); },
                                 {"num_layers", ">= 0", "-1", "UniformTable"});
  check_error<ha::ArgumentError>([] { (void)ha::UniformTable(Odd{}, 1, -2); },
                                 {"num_kv_heads", ">= 0", "-2", "UniformTable"});
  check_error<ha::ArgumentError>([] { (void)ha::UniformTable(Picky{.field = 3}, 1, 2); },
                                 {"picky field", "1", "3", "Picky"});
}

TEST_CASE("keep-lists lie over a table, a list a layer, sequence and head", "[policy]") {
  ha::PolicyTable table(2, 3, ha::WindowOnly{.window = 5});
  table.set(1, 2, ha::Full{});
  std::vector<std::int32_t> const tokens{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
  std::vector<ha::KeepList> lists(2 * 2 * 3);
  for (std::size_t i = 0; i < lists.size(); i += 2) lists[i] = {tokens.data(), static_cast<std::int64_t>(i)};
  auto const check = [&](auto const& below, auto const& expected_below) {
    ha::WithKeepLists const all(below, lists.data(), 2);
    REQUIRE(all.num_layers() == 2);
    REQUIRE(all.num_kv_heads() == 3);
    REQUIRE(all.num_sequences() == 2);
    static_assert(std::is_trivially_copyable_v<std::remove_const_t<decltype(all)>>);
    ha::Compaction const compaction(all, std::vector<std::int32_t>{20, 20});
    for (std::int32_t l = 0; l < 2; ++l) {
      for (std::int32_t b = 0; b < 2; ++b) {
        for (std::int32_t h = 0; h < 3; ++h) {
          std::int64_t const i = (l * 2 + b) * 3 + h;
          std::int64_t const expected = i % 2 == 0 ? i : expected_below(l, h);
          REQUIRE(all.visit(l, b, h, kept_of_20) == expected);
          REQUIRE(compaction.kept(l, b, h) == expected);
        }
      }
    }
    check_error<ha::ArgumentError>([&] { (void)ha::Compaction(all, std::vector<std::int32_t>{20}); },
                                   {"keep-lists' sequences", "1", "2", "Compaction"});
    // The device's lists must be made for as many sequences, too.
    check_error<ha::ArgumentError>(
        [&] { (void)compaction.on_device(ha::WithKeepLists(below, lists.data(), 3), nullptr); },
        {"sequences", "2", "3", "on_device"});
  };
  check(table.view(), [&](auto l, auto h) { return l == 1 && h == 2 ? 20 : 5; });
  check(ha::UniformTable(Odd{}, 2, 3), [](auto, auto) { return 10; });
}
