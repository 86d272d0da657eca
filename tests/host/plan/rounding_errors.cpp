// Errors of rounding: weighted and folded like those of windows, by the names of formats that all texts have.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_statistics.hpp"
#include "support/planned_statistics.hpp"
#include "support/rounded_statistics.hpp"

#include <headaware/plan/kv_errors.hpp>
#include <headaware/plan/planner.hpp>
#include <headaware/plan/refine.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

using Names = std::vector<std::string>;
bool near(double a, double b) { return std::abs(a - b) <= 1e-12 * std::max({1.0, std::abs(a), std::abs(b)}); }

}  // namespace

TEST_CASE("errors of rounding are the weighted sum over texts of folded means per row", "[plan]") {
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 16}};
  auto const text = with_rounding(random_statistics(2, 6, 2, grid, 1), {"int8", "packed5", "packed4", "packed3"}, 3);
  auto const probe = with_rounding(random_statistics(2, 6, 2, grid, 2), {"packed4", "fp8_e4m3", "packed5"}, 4);
  auto const layers = ha::Sensitivities::per_layer({2, 0.5});
  std::vector<ha::WeightedStatistics> const texts{{&text, layers, 1}, {&probe, {}, 0.3}};
  for (auto const fold : {ha::GroupFold::sum, ha::GroupFold::maximum}) {
    for (auto const measure : {ha::ErrorMeasure::output, ha::ErrorMeasure::output_metric}) {
      auto const errors = ha::weighted_errors(texts, measure, fold);
      REQUIRE(errors.formats == Names{"packed5", "packed4"});  // those in common, in the order of the first
      REQUIRE(errors.key_errors.size() == 8);
      bool const metric = measure == ha::ErrorMeasure::output_metric;
      for (std::size_t head = 0; head < 4; ++head) {
        for (std::size_t format = 0; format < 2; ++format) {
          auto const folded = [&](ha::RetentionStatistics const& of, std::size_t place, bool keys) {
            double sum = 0;
            double most = 0;
            for (std::size_t i = 0; i < 3; ++i) {
              ha::RoundingSums const& sums = of.heads[head * 3 + i].rounding;
              auto const& list = keys ? (metric ? sums.key_metric_error_squared : sums.key_error_squared)
                                      : (metric ? sums.value_metric_error_squared : sums.value_error_squared);
              double const mean = list[place] / double(metric ? sums.metric_rows : sums.rows);
              sum += mean;
              most = std::max(most, mean);
            }
            return fold == ha::GroupFold::sum ? sum : most;
          };
          for (bool const keys : {true, false}) {
            double const expected =
                (head < 2 ? 2 : 0.5) * folded(text, format + 1, keys) + 0.3 * folded(probe, format == 0 ? 2 : 0, keys);
            REQUIRE(near((keys ? errors.key_errors : errors.value_errors)[head * 2 + format], expected));
          }
        }
        auto const pair = ha::format_pair("packed5", "packed4");
        CHECK(errors.rounding_error(head, pair) == errors.key_errors[head * 2] + errors.value_errors[head * 2 + 1]);
        CHECK(errors.rounding_error(head, ha::format_pair("fp16", "packed4")) == errors.value_errors[head * 2 + 1]);
        CHECK(errors.rounding_error(head, ha::format_pair("bf16", "fp16")) == 0);
      }
    }
  }
  CHECK(ha::weighted_errors(texts, ha::ErrorMeasure::mass).formats.empty());
  // Without, as before: no formats, and the same errors of windows.
  auto const plain = random_statistics(2, 6, 2, grid, 1);
  CHECK(errors_of(plain).formats.empty());
  CHECK(errors_of(plain).key_errors.empty());
  CHECK(errors_of(plain).cells == errors_of(text).cells);
  std::vector<ha::WeightedStatistics> const one_without{{&text}, {&plain}};
  CHECK(ha::weighted_errors(one_without).formats.empty());

  auto const errors = errors_of(text);
  auto const second = errors.select_layers(std::vector<std::int32_t>{1});
  CHECK(second.formats == errors.formats);
  CHECK(second.key_errors == std::vector<double>(errors.key_errors.begin() + 8, errors.key_errors.end()));
  CHECK(second.value_errors == std::vector<double>(errors.value_errors.begin() + 8, errors.value_errors.end()));
  auto const scaled = ha::scaled_errors(errors, std::vector<double>{1, 2, 3, 4});
  CHECK(scaled.key_errors[4 * 2] == 3 * errors.key_errors[4 * 2]);
  CHECK(scaled.value_errors[15] == 4 * errors.value_errors[15]);

  auto broken = text;
  broken.heads[7].rounding.rows = 0;
  check_error<ha::ArgumentError>([&] { (void)errors_of(broken); },
                                 {"rows sampled of rounding", "> 0", "0", "layer 1, query head 1"});
  CHECK(errors_of(broken, ha::ErrorMeasure::mass).formats.empty());
  broken = text;
  broken.heads[0].rounding.value_error_squared.pop_back();
  check_error<ha::ArgumentError>([&] { (void)errors_of(broken); },
                                 {"sums of rounding", "4", "3", "layer 0, query head 0"});
  broken = text;
  broken.heads[0].rounding.key_error_squared[1] = std::numeric_limits<double>::quiet_NaN();
  check_error<ha::ArgumentError>([&] { (void)errors_of(broken); },
                                 {"error of a KV head", "finite", "nan", "weighted_errors"});
}

TEST_CASE("readers of a cache add to its errors of rounding, and a latent has those of its keys", "[plan]") {
  ha::ModelShape const shape = planned_shape();
  auto const statistics =
      with_rounding(mixed_statistics(shape, ha::RetentionGrid::up_to(512), 3), {"int8", "packed4"}, 6);
  auto const errors = errors_of(statistics);
  REQUIRE(errors.key_errors.size() == 13 * 2);
  double sum = 0;
  for (std::size_t const query : {4U, 5U, 6U, 7U, 26U, 27U}) {  // layer 0, KV head 1, and its readers in layer 4
    sum += statistics.heads[query].rounding.key_error_squared[1] / 10;
  }
  CHECK(near(errors.key_errors[1 * 2 + 1], sum));
  CHECK(errors.rounding_error(6, ha::format_pair("packed4", "packed4")) == errors.key_errors[6 * 2 + 1]);
  CHECK(errors.rounding_error(6, ha::format_pair("fp16", "packed4")) == 0);
  CHECK(errors.rounding_error(5, ha::format_pair("fp16", "packed4")) > 0);
}

TEST_CASE("formats whose errors are not known are refused by name", "[plan]") {
  auto const grid = ha::RetentionGrid::up_to(256);
  auto const errors = errors_of(with_rounding(random_statistics(2, 2, 1, grid, 1), {"int8", "packed4"}, 3));
  auto const refused = [](ha::KvErrors const& of, ha::FormatChoice const& choice, ha::ErrorDetail const& parts) {
    ha::PlanOptions options;
    options.formats = choice;
    check_error<ha::ArgumentError>([&] { (void)ha::plan_policies(of, ha::Budget::share(0.5), 256, options); }, parts);
  };
  auto const pair = ha::format_pair("packed4", "packed5");
  refused(errors, {.pairs = {{}, pair}, .head_dim = 64},
          {"format", "one of fp16, bf16, int8, packed4, whose errors", "packed5", "plan_policies"});
  auto const none = errors_of(random_statistics(2, 2, 1, grid, 1));
  refused(none, {.pairs = {pair}, .head_dim = 64},
          {"format", "fp16, bf16, as the errors hold no others", "packed4", "plan_policies"});
  refused(errors, {.pairs = {{}}}, {"head_dim", "> 0", "0", "plan_policies"});
  refused(errors, {.pairs = {{}}, .head_dim = -1}, {"head_dim", "[0, ", "-1", "FormatChoice"});
  refused(errors, {.pairs = {{}}, .sixteen_bits = pair, .head_dim = 64},
          {"sixteen_bits", "fp16 or bf16", "packed4/packed5", "FormatChoice"});
  auto broken = errors;
  broken.value_errors.pop_back();
  refused(broken, {.pairs = {{}}, .head_dim = 64}, {"errors of rounding", "4 of keys", "4", "plan_policies"});
  // Layers that differ and do not say their channels.
  auto mixed = with_rounding(mixed_statistics(planned_shape(), grid, 3), {"int8"}, 6);
  std::vector<ha::LayerShape> layers(mixed.info.layers.layers().begin(), mixed.info.layers.layers().end());
  layers[5].head_dim = layers[5].value_dim = 0;
  mixed.info.set_shape(ha::ModelShape(layers));
  refused(errors_of(mixed), {.pairs = {{}}, .head_dim = 64}, {"head_dim", "> 0", "0", "plan_policies, layer 5"});

  check_error<ha::ArgumentError>([] { (void)ha::format_pair("fp16", "fp4"); }, {"unknown format", "fp16", "fp4", ""});
  Names const keys{"int8", "packed5"};
  Names const values{"packed4"};
  CHECK(ha::format_pairs(keys, values) ==
        std::vector<ha::HeadFormats>{ha::format_pair("int8", "packed4"), ha::format_pair("packed5", "packed4")});
  auto const all = ha::all_format_pairs(Names{"fp16", "packed4"}, ha::format_pair("bf16", "bf16"));
  CHECK(all == std::vector<ha::HeadFormats>{ha::format_pair("bf16", "bf16"), ha::format_pair("bf16", "packed4"),
                                            ha::format_pair("packed4", "bf16"), ha::format_pair("packed4", "packed4")});
}

TEST_CASE("pages of a head hold the bytes of 16-bit rows", "[plan]") {
  ha::FormatChoice const choice{};
  auto const pair = ha::format_pair("packed5", "packed4");
  auto const one = choice.pages(pair, {64, 64}, 1);
  CHECK(one.rows == 1);
  CHECK(one.bytes == 80);
  CHECK(one.bytes_of(7) == 560);
  auto const page = choice.pages(pair, {64, 64}, 16);
  CHECK(page.rows == 51);
  CHECK(page.bytes == 4096);
  CHECK(page.bytes_of(51) == 4096);
  CHECK(page.bytes_of(52) == 8192);
  CHECK(choice.pages({}, {64, 64}, 16).rows == 16);
  CHECK(choice.pages({}, {72, 0}, 1).bytes == 144);
  CHECK(choice.pages(pair, {72, 0}, 1).bytes == 96);  // two blocks of 64 channels
  // Of narrow rows whole blocks are more than 16 bits.
  CHECK(choice.pages(pair, {16, 16}, 1).bytes == 80);
  CHECK(choice.pages(pair, {16, 16}, 4).rows == 3);
  check_error<ha::ArgumentError>(
      [&] {
        (void)choice.pages(pair, ha::RowChannels{2, 2}, 4);
      },
      {"page_size", "a row of 80 bytes", "64 bytes", "FormatChoice::pages"});
}
