// Plans of layers whose own windows are small: sizes between those of the grid, shares below the smallest size.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_statistics.hpp"

#include <headaware/plan/compare.hpp>
#include <headaware/plan/detail/lower_hull.hpp>
#include <headaware/plan/planner.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int64_t context = 512;

}  // namespace

TEST_CASE("a share that is too small is named, with what it needs and has", "[plan]") {
  std::vector<ha::LayerShape> layers(3, {.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 16, .value_dim = 16});
  layers[1].kind = ha::LayerKind::sliding;
  layers[1].window = 8;  // as the smallest window of the grid
  layers[0] = {.kind = ha::LayerKind::none};
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 16, 32}};
  auto const statistics = mixed_statistics(ha::ModelShape(layers), grid, 7);
  ha::PlanOptions options;
  options.layer_shares = true;
  auto const plan = [&](double share) {
    return ha::plan_policies(statistics, ha::Budget::share(share), context, options);
  };
  check_error<ha::ArgumentError>([&] { (void)plan(0.93); },
                                 {"budget of layer 1", "at least 16 tokens", "14, its share of 967", "plan_policies"});
  CHECK(plan(1).left() == 0);
  options.skip_layers = {0};
  check_error<ha::ArgumentError>([&] { (void)plan(0.93); }, {"budget of layer 1", "16", "14, its share", ""});
  options.skip_layers = {};
  options.ranks = 2;
  check_error<ha::ArgumentError>([&] { (void)plan(0.93); },
                                 {"budget of layer 1, rank 0", "at least 8 tokens", "7, its share", ""});
  options.layer_shares = false;
  check_error<ha::ArgumentError>([&] { (void)plan(0.01); }, {"budget of rank 0", "at least 16", "5, its share", ""});
  options.ranks = 1;
  check_error<ha::ArgumentError>([&] { (void)plan(0.01); }, {"budget", "at least 32 tokens", "10", ""});
  CHECK_NOTHROW(plan(0.93));
}

TEST_CASE("windows between those of the grid are offered where a layer slides", "[plan]") {
  ha::LayerShape const layer{.kind = ha::LayerKind::sliding,
                             .num_query_heads = 4,
                             .num_kv_heads = 2,
                             .head_dim = 16,
                             .value_dim = 16,
                             .window = 24};
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 16, 24, 32, 64}};
  for (unsigned seed = 1; seed < 6; ++seed) {
    auto const errors = errors_of(mixed_statistics(ha::ModelShape({layer, layer, layer}), grid, seed));
    for (std::int64_t const page : {1, 4}) {
      for (double const share : {0.5, 0.6, 0.75, 0.9, 0.97}) {
        ha::PlanOptions options;
        options.page_size = page;
        ha::Budget const budget = ha::Budget::share(share);
        auto const plan = ha::plan_policies(errors, budget, context, options);
        auto const uniform =
            ha::evaluate_table(ha::uniform_table(errors, budget, context, options), errors, context, options, budget);
        CAPTURE(seed, page, share);
        CHECK(plan.predicted_error <= uniform.predicted_error * (1 + 1e-9));
        for (std::size_t head = 0; head < plan.heads.size(); ++head) {
          CHECK(plan.heads[head].tokens % page == 0);
          CHECK(plan.heads[head].tokens <= 24);
        }
        // But for what the remainder widens, predicted as anything else is.
        options.use_remainder = false;
        auto const bare = ha::plan_policies(errors, budget, context, options);
        double const again = ha::evaluate_table(bare.table, errors, context, options).predicted_error;
        CHECK(std::abs(again - bare.predicted_error) <= 1e-9 * bare.predicted_error);
      }
    }
  }
  // All windows of so small a layer, and a few of a large one.
  auto const sizes = ha::detail::window_candidates(grid, 24, 1);
  REQUIRE(sizes.size() == 16);
  CHECK(sizes.front().tokens == 8);
  CHECK(sizes.back().tokens == 23);
  CHECK(sizes.back().next == ha::detail::Candidate::full_cell);
  CHECK(ha::detail::window_candidates(grid, 4096, 1).size() == 5 + 7 + 7 + 7 + 7 + 7);
  CHECK(ha::detail::window_candidates(grid, 8, 1).empty());
}
