// plan.json of plans by bytes: to a file and back, and broken; formats beside policies of either kind of file.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/mixed_statistics.hpp"
#include "support/rounded_statistics.hpp"

#include <headaware/io/plan.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/uniform_plan.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t context = 256;

ha::KvErrors rounded(bool mixed) {
  auto const grid = ha::RetentionGrid::up_to(context);
  auto statistics = mixed ? mixed_statistics(planned_shape(), grid, 3) : random_statistics(3, 4, 2, grid, 17);
  if (!mixed) statistics.heads[2].output_squared = statistics.heads[3].output_squared = 0;
  return errors_of(with_rounding(statistics, {"int8", "packed5", "packed4"}, 5));
}

ha::PolicyPlan planned(bool mixed, std::int64_t page, std::vector<std::int32_t> skipped = {}) {
  auto const errors = rounded(mixed);
  ha::PlanOptions options = any_format(errors, mixed ? 0 : 64);
  options.page_size = page;
  options.skip_layers = std::move(skipped);
  options.formats.sixteen_bits = ha::format_pair("bf16", "bf16");
  return ha::plan_policies(errors, ha::Budget::share(0.2), context, options);
}

/// Heads of made-up sizes, one in 16 bits.
ha::PolicyPlan by_hand() {
  ha::KvErrors errors;
  errors.num_layers = 1;
  errors.num_heads = 2;
  errors.num_kv_heads = 2;
  errors.grid = {{0}, {16}};
  errors.cells = {1, 1};
  errors.dropped = {1, 1};
  errors.formats = {"packed5", "packed4"};
  errors.key_errors = errors.value_errors = {0.25, 0.5, 0.25, 0.5};
  ha::PlanOptions options;
  options.formats = {.pairs = {ha::format_pair("packed5", "packed4"), {}}, .head_dim = 64};
  ha::PolicyTable table(1, 2, ha::SinkWindow{4, 28});
  ha::FormatTable formats(1, 2);
  formats.set(0, 1, options.formats.pairs.front());
  return ha::evaluate_table(table, formats, errors, 100, options, ha::Budget::share(0.25));
}

}  // namespace

TEST_CASE("plans by bytes survive a file", "[io]") {
  TemporaryFolder const folder;
  for (auto const& plan : {planned(false, 1), planned(false, 16), planned(false, 1, {1}), planned(true, 1),
                           planned(true, 16, {0, 2}), by_hand(),
                           ha::uniform_plan(rounded(true), ha::Budget::share(0.1), context,
                                            any_format(rounded(true), 0), ha::format_pair("int8", "packed4"))}) {
    REQUIRE(plan.by_bytes());
    ha::save_plan(folder / "plan.json", plan);
    auto const again = ha::load_plan(folder / "plan.json");
    CHECK(again == plan);
    CHECK(again.formats == plan.formats);
    CHECK(again.planned_bytes() == plan.planned_bytes());
    CHECK(again.share_held() == plan.share_held());
    ha::ModelShape const shape = plan.shape();
    CHECK(ha::load_policy_table(folder / "plan.json", shape) == plan.table);
    CHECK(ha::load_format_table(folder / "plan.json", shape) == plan.formats);
    // Classes of heads, and plans by tokens, say no formats: 16 bits.
    ha::save_plan_classifications(folder / "classes.json", plan);
    CHECK(ha::load_format_table(folder / "classes.json", shape) == ha::FormatTable(shape));
  }
  auto const errors = rounded(false);
  auto const by_tokens = ha::plan_policies(errors, ha::Budget::tokens(40), context);
  std::string const text = ha::format_plan(by_tokens);
  CHECK(text.find("bytes") == std::string::npos);
  CHECK(text.find("format\": \"headaware.plan") != std::string::npos);
  CHECK(text.find("formats") == std::string::npos);
  CHECK_FALSE(ha::parse_plan(text, "file").by_bytes());
  auto const bf16 = ha::format_pair("bf16", "bf16");
  ha::ModelConfig const model{3, 4, 2, 64};
  CHECK(ha::parse_format_table(text, "file", model, bf16) == ha::FormatTable(3, 2, bf16));
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::parse_format_table(text, "file", ha::ModelConfig{3, 4, 4, 64});
      },
      {"KV heads of the plan", "4", "2", "parse_format_table, file"});
  check_error<ha::FormatError>([&] { (void)ha::parse_format_table("{}", "file", model); },
                               {"policies", "a plan (", "an object with neither", "file"});
}

TEST_CASE("scales of fp8 survive a file, and names alone mean 1", "[io]") {
  auto plan = by_hand();
  ha::HeadFormats const plain = ha::format_pair("fp8_e4m3", "fp8_e5m2");
  ha::HeadFormats const scaled{ha::Fp8E4M3{0.1F}, ha::Fp8E5M2{3e-9F}};
  plan.options.formats.pairs.push_back({ha::Fp8E5M2{}, ha::Fp8E4M3{7.25F}});
  std::int64_t const bytes = plan.options.formats.pages(plain, {64, 64}, 1).bytes_of(plan.heads[1].tokens);
  plan.budget_cost += bytes;
  plan.heads[1].bytes = bytes;
  plan.formats.set(0, 1, plain);
  std::string const text = ha::format_plan(plan);
  CHECK(text.find("\"key_format\": \"fp8_e4m3\"") != std::string::npos);
  CHECK(ha::parse_plan(text, "file") == plan);
  plan.formats.set(0, 1, scaled);
  std::string const with_scales = ha::format_plan(plan);
  CHECK(with_scales != text);
  auto const again = ha::parse_plan(with_scales, "file");
  CHECK(again == plan);
  CHECK(again.formats.at(0, 1).key.scale() == 0.1F);
  CHECK(again.formats.at(0, 1).value.scale() == 3e-9F);
  CHECK(again.options.formats.pairs.back().value.scale() == 7.25F);
  CHECK(ha::parse_format_table(with_scales, "file", plan.shape()).at(0, 1) == scaled);
  auto const broken = [&](std::string const& from, std::string const& to, std::string const& what,
                          std::string const& expected) {
    std::string changed = with_scales;
    auto const place = changed.find(from);
    REQUIRE(place != std::string::npos);
    changed.replace(place, from.size(), to);
    check_error<ha::FormatError>([&] { (void)ha::parse_plan(changed, "file"); }, {what, expected, "", "file"});
  };
  broken("7.25", "0", "scale", "> 0 and finite");
  broken("7.25", "-1e300", "scale", "> 0 and finite");
  broken("7.25", "1e300", "scale", "> 0 and finite");
  broken("7.25", "1e-300", "scale", "> 0 and finite");
  broken("7.25", "\"7\"", "wrong type", "a number");
  broken("\"scale\": 7.25", "\"by\": 7.25", "missing field", "a number");
  std::string const name = "\"name\": \"fp8_e4m3\"";
  broken(name, "\"name\": \"packed4\"", "format", "one with a scale of all rows (fp8)");
  broken(name, "\"name\": \"fp8_e4\"", "format", "fp8_e4m3");
  // Errors are of formats as they are by name.
  auto errors = rounded(false);
  errors.formats = {"fp8_e4m3", "packed5", "packed4"};
  CHECK(errors.rounding_error(0, {ha::Fp8E4M3{}, ha::Packed<4>{}}) > 0);
  check_error<ha::ArgumentError>(
      [&] {
        (void)errors.rounding_error(0, {ha::Fp8E4M3{2}, ha::Packed<4>{}});
      },
      {"scale of a format", "1, of which errors are known", "2", "KvErrors"});
}

TEST_CASE("a plan by bytes is of rows of some channels", "[io]") {
  auto const plan = by_hand();
  std::string const text = ha::format_plan(plan);
  ha::ModelShape const shape = plan.shape();
  std::int32_t const kv_heads = shape.layer(0).num_kv_heads;
  std::int32_t const head_dim = static_cast<std::int32_t>(plan.options.formats.head_dim);
  auto const of = [&](std::int32_t channels) {
    return ha::ModelConfig{shape.num_layers(), shape.layer(0).num_query_heads, kv_heads, channels};
  };
  CHECK(ha::parse_format_table(text, "file", of(head_dim)) == plan.formats);
  CHECK(ha::parse_policy_table(text, "file", of(0)) == plan.table);
  ha::ErrorDetail const refused{"head_dim of the plan", std::to_string(head_dim + 16), std::to_string(head_dim),
                                ", file, layer 0"};
  check_error<ha::ArgumentError>([&] { (void)ha::parse_format_table(text, "file", of(head_dim + 16)); }, refused);
  check_error<ha::ArgumentError>([&] { (void)ha::parse_policy_table(text, "file", of(head_dim + 16)); }, refused);
}

TEST_CASE("plans by bytes that are broken are named", "[io]") {
  auto const plan = by_hand();
  std::string const text = ha::format_plan(plan);
  INFO(text);
  REQUIRE(ha::parse_plan(text, "file") == plan);
  CHECK(plan.budget_bytes() == 2 * 25 * 256 * 2 / 2);
  CHECK(plan.planned_bytes() == 32 * (256 + 80));
  CHECK(text.find("fp16\": ") == std::string::npos);  // heads of 16 bits say nothing
  for (std::size_t cut = 0; cut < text.size(); cut += 7) {
    REQUIRE_THROWS_AS(ha::parse_plan(text.substr(0, cut), "file"), ha::FormatError);
  }
  auto const refused = [&](std::string const& from, std::string const& to, ha::ErrorDetail const& parts) {
    CAPTURE(from, to);
    check_error<ha::FormatError>([&] { (void)ha::parse_plan(replaced(text, from, to), "file"); }, parts);
  };
  refused("\"key_format\": \"packed5\"", "\"key_format\": \"packed9\"",
          {"unknown format", "one of fp16, bf16", "packed9", "/heads/1/key_format"});
  refused("\"key_format\": \"packed5\"", "\"key_format\": \"int8\"",
          {"bytes", "which the policy holds", "2560", "/heads/1/bytes"});
  refused("\"bytes\": 2560", "\"bytes\": 2576", {"bytes", "2560, which the policy holds", "2576", "/heads/1/bytes"});
  refused("\"bytes\": 2560", "\"kept\": 2560", {"missing field", "an integer", "nothing", "/heads/1/bytes"});
  refused("\"planned_bytes\": 10752", "\"planned_bytes\": 10751",
          {"planned_bytes", "10752, the sum", "10751", "/planned_bytes"});
  refused("\"budget_cost\": 12800", "\"budget_cost\": 10751", {"budget_cost", ">= 10752", "10751", "/budget_cost"});
  refused("\"head_dim\": 64", "\"head_dim\": 0", {"out of range", "[1, ", "0", "/options/formats/head_dim"});
  refused("\"head_dim\": 64", "\"head_dim\": 128", {"row costs", "bytes of a row of 16 bits", "others", "/row_costs"});
  refused("\"row_costs\"", "\"costs\"", {"missing field", "an array", "nothing", "/row_costs"});
  refused("\"pairs\": [", "\"pairs\": [[\"fp16\"],", {"formats", "[of keys, of values]", "1 names", "/pairs/0"});
  refused("\"pairs\": [", "\"pairs\": [], \"were\": [", {"empty list", "at least one pair", "none", "/pairs"});
  refused("\"sixteen_bits\": [", "\"sixteen_bits\": [\"int8\", \"fp16\"], \"were\": [",
          {"formats of 16 bits", "fp16 or bf16", "", "/sixteen_bits"});

  auto const unsavable = [&](auto const& change, ha::ErrorDetail const& parts) {
    auto broken = plan;
    change(broken);
    check_error<ha::ArgumentError>([&] { (void)ha::format_plan(broken); }, parts);
  };
  unsavable([](auto& p) { p.heads[1].bytes = 1; }, {"bytes of a head", "2560", "1", "format_plan"});
  unsavable([](auto& p) { p.formats = ha::FormatTable(1, 2); }, {"bytes of a head", "8192", "2560", "format_plan"});
  unsavable([](auto& p) { p.formats = ha::FormatTable(1, 3); }, {"format table's KV heads", "2", "3", "PolicyPlan"});
  unsavable([](auto& p) { p.formats = {}; }, {"formats", "of every head", "none", "format_plan"});
  unsavable([](auto& p) { p.options.formats = {}; }, {"formats", "none", "some", "format_plan"});
  unsavable([](auto& p) { p.options.formats.head_dim = 0; }, {"head_dim", "> 0", "0", "PolicyPlan"});
  unsavable([](auto& p) { p.row_costs = {1}; }, {"row_costs", "of 16 bits", "others", "format_plan"});
  unsavable([](auto& p) { p.budget_cost = 1; }, {"planned_tokens", "at most the budget, 1", "10752", "format_plan"});
}
