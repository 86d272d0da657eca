// Plans by bytes: ranks, pages, layers that differ, skipped layers, refinements, blends and summaries.

#include "support/byte_plan_checks.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_statistics.hpp"
#include "support/planned_statistics.hpp"
#include "support/rounded_statistics.hpp"

#include <headaware/plan/blend_plans.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/refine.hpp>
#include <headaware/plan/replanned_sensitivity.hpp>
#include <headaware/plan/summary.hpp>
#include <headaware/plan/uniform_plan.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t context = 512;
std::vector<std::string> const some_formats{"int8", "packed6", "packed5", "packed4"};

ha::KvErrors alike_errors(std::int32_t kv_heads = 8) {
  return errors_of(
      with_rounding(random_statistics(4, kv_heads, kv_heads, ha::RetentionGrid::up_to(context), 21), some_formats, 4));
}
ha::RetentionStatistics mixed_rounded() {
  return with_rounding(mixed_statistics(planned_shape(), ha::RetentionGrid::up_to(context), 3), some_formats, 6);
}
ha::ModelShape const alike_shape = ha::ModelConfig{4, 8, 8, 64};

}  // namespace

TEST_CASE("ranks and layers hold equal shares of bytes", "[plan]") {
  auto const errors = alike_errors();
  std::int64_t const full = 32 * context * 256;
  for (std::int64_t const page : {1, 16}) {
    for (std::int32_t const ranks : {1, 2, 4, 8, 16}) {
      for (bool const layered : {false, true}) {
        CAPTURE(page, ranks, layered);
        auto options = any_format(errors);
        options.ranks = ranks;
        options.page_size = page;
        options.layer_shares = layered;
        auto const plan = ha::plan_policies(errors, ha::Budget::share(0.15), context, options);
        check_bytes(plan, alike_shape);
        std::int32_t const slices = std::min(ranks, 8);
        std::int64_t const parts = slices * (layered ? 4 : 1);
        std::vector<std::int64_t> held(static_cast<std::size_t>(parts));
        for (std::int32_t layer = 0; layer < 4; ++layer) {
          for (std::int32_t kv = 0; kv < 8; ++kv) {
            std::int32_t const part = kv / (8 / slices) + (layered ? layer * slices : 0);
            held[static_cast<std::size_t>(part)] += plan.heads[static_cast<std::size_t>(layer * 8 + kv)].bytes;
          }
        }
        std::int64_t const share = static_cast<std::int64_t>(0.15 * static_cast<double>(full)) / parts;
        for (std::int64_t const part : held) {
          CHECK(part <= share);
          CHECK(part > share - page * 256);
        }
      }
    }
  }
}

TEST_CASE("pages of a layer are of one size in bytes, and hold more rows of fewer bits", "[plan]") {
  auto const errors = alike_errors();
  auto options = any_format(errors);
  options.page_size = 16;
  bool wider = false;
  for (double const share : {0.0625, 0.2, 0.6, 1.0}) {
    auto const plan = ha::plan_policies(errors, ha::Budget::share(share), context, options);
    check_bytes(plan, alike_shape);
    for (std::int32_t layer = 0; layer < 4; ++layer) {
      for (std::int32_t kv = 0; kv < 8; ++kv) {
        auto const& head = plan.heads[static_cast<std::size_t>(layer * 8 + kv)];
        CHECK(head.bytes % 4096 == 0);
        wider = wider || head.tokens * 256 > 2 * head.bytes;
        // No row of a page is empty, but where everything is kept.
        if (!plan.table.at(layer, kv).is<ha::Full>()) {
          CHECK(ha::held_tokens(plan.table.at(layer, kv), context) == head.tokens);
        }
      }
    }
    auto const uniform =
        ha::uniform_plan(errors, ha::Budget::share(share), context, options, ha::format_pair("packed4", "packed4"));
    check_bytes(uniform, alike_shape);
  }
  CHECK(wider);
}

TEST_CASE("plans by bytes of layers that differ", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const errors = errors_of(mixed_rounded());
  auto options = any_format(errors, 0);
  std::int64_t const full = shape.bytes(context, 2);
  double last = 1e300;
  options.floor = 8;
  for (std::int64_t held = full / 20; held <= full + 5000; held += full / 23) {
    auto const plan = ha::plan_policies(errors, ha::Budget::bytes(held, {shape, 2}), context, options);
    check_bytes(plan, shape);
    CHECK(plan.budget_bytes() == held);
    CHECK(plan.row_costs == std::vector<std::int64_t>{256, 128, 0, 144, 0, 96, 256});
    CHECK(plan.predicted_error <= last);
    last = plan.predicted_error;
    std::size_t head = 0;
    for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
      for (std::int32_t kv = 0; kv < plan.table.num_kv_heads(layer); ++kv, ++head) {
        std::int64_t const window = shape.layer(layer).window;
        if (window != 0) CHECK(plan.heads[head].tokens <= window);
      }
    }
  }
  auto const whole = ha::plan_policies(errors, ha::Budget::share(1), context, options);
  CHECK(whole.table == ha::PolicyTable(shape, ha::Full{}));
  CHECK(whole.formats == ha::FormatTable(shape));
  CHECK(whole.predicted_error == 0);
  CHECK(whole.planned_bytes() == full);
  // The latent has no values: of pairs that differ by these alone the first. Narrow rows gain nothing by whole blocks.
  auto const plan = ha::plan_policies(errors, ha::Budget::share(0.1), context, options);
  CHECK(plan.formats.at(3, 0).value == ha::HeadFormats{}.value);
  for (std::int32_t kv = 0; kv < 4; ++kv) CHECK(plan.formats.at(5, kv).value == ha::HeadFormats{}.value);

  options.floor.reset();
  options.skip_layers = {1, 5};
  for (std::int64_t const page : {1, 16}) {
    options.page_size = page;
    auto const skipping = ha::plan_policies(errors, ha::Budget::share(0.3), context, options);
    check_bytes(skipping, shape);
    CHECK(skipping.keeps_all(1, 0));
    CHECK(skipping.formats.at(1, 0) == ha::HeadFormats{});
    CHECK(skipping.formats.at(5, 3) == ha::HeadFormats{});
    std::int64_t const beyond = 4 * 96 * 128 + 4 * context * 96;
    CHECK(skipping.budget_bytes() == beyond + static_cast<std::int64_t>(0.3 * static_cast<double>(full - beyond)));
    CHECK(skipping.share_held() <= 0.3);
    auto const again =
        ha::evaluate_table(skipping.table, skipping.formats, errors, context, options, ha::Budget::share(0.3));
    CHECK(again.planned_bytes() == skipping.planned_bytes());
    CHECK(again.budget_bytes() == skipping.budget_bytes());
    auto const uniform =
        ha::uniform_plan(errors, ha::Budget::share(0.3), context, options, ha::format_pair("packed5", "packed4"));
    check_bytes(uniform, shape);
    CHECK(uniform.keeps_all(1, 0));
    CHECK(uniform.keeps_all(6, 0));  // its window is short
    CHECK(uniform.formats.at(5, 0) == ha::HeadFormats{});
  }
}

TEST_CASE("tables with formats are accounted for like plans by bytes", "[plan]") {
  auto const errors = alike_errors();
  auto options = any_format(errors);
  options.use_remainder = false;
  ha::Budget const budget = ha::Budget::share(0.1);
  auto const plan = ha::plan_policies(errors, budget, context, options);
  auto const same = ha::evaluate_table(plan.table, plan.formats, errors, context, options, budget);
  CHECK(same.heads.size() == plan.heads.size());
  CHECK(same.planned_bytes() == plan.planned_bytes());
  CHECK(same.budget_bytes() == plan.budget_bytes());
  CHECK(std::abs(same.predicted_error - plan.predicted_error) <= 1e-9 * plan.predicted_error);
  // 16 bits where no formats are given.
  auto const sixteen = ha::evaluate_table(ha::PolicyTable(4, 8, ha::WindowOnly{40}), errors, context, options, budget);
  CHECK(sixteen.planned_bytes() == 32 * 40 * 256);
  CHECK(sixteen.format_counts().size() == 1);
  check_error<ha::ArgumentError>([&] { (void)ha::evaluate_table(plan.table, errors, context, options, budget); },
                                 {"bytes of the table", "at most the budget, 419430", "", "evaluate_table"});
  check_error<ha::ArgumentError>([&] { (void)ha::evaluate_table(plan.table, plan.formats, errors, context); },
                                 {"formats of a table", "options that plan by bytes", "others", "evaluate_table"});
  check_error<ha::ArgumentError>(
      [&] { (void)ha::evaluate_table(plan.table, ha::FormatTable(4, 7), errors, context, options); },
      {"format table's KV heads", "8", "7", "evaluate_table, layer 0"});
  check_error<ha::ArgumentError>([&] { (void)ha::held_bytes(plan.table, ha::FormatTable(3, 8), 64, context); },
                                 {"format table's layers", "4", "3", "held_bytes"});
}

TEST_CASE("blends of plans by bytes keep the budget", "[plan]") {
  for (bool const mixed : {false, true}) {
    auto const errors = mixed ? errors_of(mixed_rounded()) : alike_errors();
    ha::ModelShape const shape = mixed ? planned_shape() : alike_shape;
    for (std::int64_t const page : {1, 16}) {
      CAPTURE(mixed, page);
      auto options = any_format(errors, mixed ? 0 : 64);
      options.page_size = page;
      ha::Budget const budget = ha::Budget::share(0.2);
      auto const plan = ha::plan_policies(errors, budget, context, options);
      for (auto const& pair : {ha::HeadFormats{}, ha::format_pair("packed5", "packed4")}) {
        auto const uniform = ha::uniform_plan(errors, budget, context, options, pair);
        CHECK(ha::blend_plans(uniform, plan, 0, errors) == uniform);
        CHECK(ha::blend_plans(uniform, plan, 1, errors) == plan);
        for (double const share : {0.25, 0.5, 0.75}) {
          auto const blend = ha::blend_plans(uniform, plan, share, errors);
          check_bytes(blend, shape);
          CHECK(blend.formats == plan.formats);
          CHECK(blend.budget_bytes() == plan.budget_bytes());
          double const sum = (1 - share) * static_cast<double>(uniform.planned_bytes()) +
                             share * static_cast<double>(plan.planned_bytes());
          CHECK(static_cast<double>(blend.planned_bytes()) <= sum + 1e-6);
          if (!mixed) CHECK(static_cast<double>(blend.planned_bytes()) > sum - static_cast<double>(page) * 256);
        }
      }
    }
  }
  auto const errors = alike_errors();
  auto const plan = ha::plan_policies(errors, ha::Budget::share(0.2), context, any_format(errors));
  check_error<ha::ArgumentError>([&] { (void)ha::blend_plans(plan, plan, 2, errors); },
                                 {"share", "[0, 1]", "2", "blend_plans"});
  auto const by_tokens = ha::plan_policies(errors, ha::Budget::share(0.2), context);
  check_error<ha::ArgumentError>([&] { (void)ha::blend_plans(by_tokens, plan, 0.5, errors); },
                                 {"plans", "by bytes", "tokens", "blend_plans"});
}

TEST_CASE("plans by bytes are refined, and sensitivities measured at them", "[plan]") {
  auto const statistics = mixed_rounded();
  auto const errors = errors_of(statistics);
  auto const options = any_format(errors, 0);
  ha::Budget const budget = ha::Budget::share(0.1);
  std::vector<double> tilt;
  for (std::size_t head = 0; head < errors.size(); ++head) tilt.push_back(head < 7 ? 8 : 0.125);
  auto const refined =
      ha::refine_plan(ha::scaled_errors(errors, tilt), budget, context, options, {}, [&](ha::PolicyPlan const& plan) {
        return std::vector<double>{
            ha::evaluate_table(plan.table, plan.formats, errors, context, options).predicted_error};
      });
  CHECK(refined.loss < refined.first_loss);
  check_bytes(refined.plan, planned_shape());
  check_error<ha::ArgumentError>(
      [&] {
        (void)ha::refine_plan(errors, budget, context, options, {},
                              [](ha::PolicyTable const&) { return std::vector<double>{1}; });
      },
      {"trial", "one of plans", "one of tables", "refine_plan"});

  auto const plan = ha::plan_policies(errors, budget, context, options);
  auto const factors = ha::sensitivities_at_plan(statistics, {}, plan, std::vector<double>(7, 0.1), 0);
  double predicted = 0;
  for (auto const& head : ha::evaluate_table(plan.table, plan.formats, errors, context, options).heads) {
    predicted += head.predicted_error;
  }
  CHECK(std::abs(factors.at(0, 0) - 0.7 / predicted) <= 1e-9 / predicted);
}

TEST_CASE("a summary of a plan by bytes says bytes and formats", "[plan]") {
  auto const errors = alike_errors();
  auto const plan = ha::plan_policies(errors, ha::Budget::share(0.0625), context, any_format(errors));
  std::string const text = ha::plan_summary(plan);
  INFO(text);
  for (char const* const part : {"budget 262144 bytes, planned 26", "% of the cache in 16 bits",
                                 "\nformats:   ", "predicted error        bytes\n"}) {
    CHECK(text.find(part) != std::string::npos);
  }
  CHECK(text.find("channels") == std::string::npos);
}
