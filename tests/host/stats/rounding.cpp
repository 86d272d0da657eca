// Errors of formats against plain double-precision loops over decoded rows.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/format/registry.hpp>
#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/output_metric.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr ha::AttentionScore score{.scale = 0.25F};

std::vector<std::string> all_formats() { return {ha::DefaultFormats::names.begin(), ha::DefaultFormats::names.end()}; }

/// Rows of `channels` channels as a format gives them back.
std::vector<float> decoded(std::vector<float> rows, std::int64_t channels, std::string const& name) {
  auto const format = ha::AnyFormat<>::of_name(name);
  std::vector<std::uint32_t> words(static_cast<std::size_t>(format.row_words(channels)));
  for (std::size_t first = 0; first < rows.size(); first += static_cast<std::size_t>(channels)) {
    format.visit([&](auto const& f) {
      ha::encode_row(f, rows.data() + first, channels, words.data());
      ha::decode_row(f, words.data(), channels, rows.data() + first);
    });
  }
  return rows;
}

std::vector<double> output(Problem const& problem, std::int32_t head, std::vector<double> const& p,
                           std::vector<float> const& values) {
  std::int64_t const kv = head / (problem.num_query_heads / problem.num_kv_heads);
  std::vector<double> o(static_cast<std::size_t>(problem.head_dim));
  for (std::int64_t k = 0; k < problem.tokens; ++k) {
    double const weight = p[static_cast<std::size_t>(k)];
    if (weight == 0) continue;
    for (std::int64_t d = 0; d < problem.head_dim; ++d)
      o[static_cast<std::size_t>(d)] +=
          weight * double(values[static_cast<std::size_t>((kv * problem.tokens + k) * problem.head_dim + d)]);
  }
  return o;
}

std::vector<double> difference(std::vector<double> a, std::vector<double> const& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}
double square(std::vector<double> const& x) {
  double sum = 0;
  for (double const each : x) sum += each * each;
  return sum;
}

/// The formulas: every sampled row once exactly and, per format, with rounded keys and with rounded values.
/// @param projection  W_O, or empty @param size  Σ |o|² over the sampled rows
ha::RoundingSums expected_sums(Problem const& problem, std::int32_t head, ha::AttentionScore const& how,
                               ha::ObserverParameters const& parameters, std::vector<float> const& projection,
                               double& size, bool latent = false) {
  ha::RoundingSums sums(parameters.formats.size());
  std::vector<std::int64_t> observed;
  for (std::int64_t q = parameters.first_query; q < problem.tokens; q += parameters.query_stride) observed.push_back(q);
  std::vector<Problem> rounded(parameters.formats.size(), problem);
  for (std::size_t f = 0; f < rounded.size(); ++f) {
    rounded[f].keys = decoded(problem.keys, problem.head_dim, parameters.formats[f]);
    rounded[f].values = decoded(problem.values, problem.head_dim, parameters.formats[f]);
  }
  size = 0;
  for (auto i = static_cast<std::int64_t>(observed.size()) - 1; i >= 0; i -= parameters.rounding_stride) {
    std::int64_t const q = observed[static_cast<std::size_t>(i)];
    auto const p = problem.row(head, q, how);
    auto const o = output(problem, head, p, problem.values);
    ++sums.rows;
    size += square(o);
    if (!projection.empty()) ++sums.metric_rows;
    for (std::size_t f = 0; f < rounded.size(); ++f) {
      auto const& values = latent ? rounded[f].keys : problem.values;
      auto const key = difference(output(problem, head, rounded[f].row(head, q, how), values), o);
      auto const value = difference(output(problem, head, p, rounded[f].values), o);
      sums.key_error_squared[f] += square(key);
      sums.key_metric_error_squared[f] += projected_square(projection, problem, head, key);
      if (latent) continue;
      sums.value_error_squared[f] += square(value);
      sums.value_metric_error_squared[f] += projected_square(projection, problem, head, value);
    }
  }
  return sums;
}

void require_close(char const* what, std::vector<double> const& got, std::vector<double> const& expected, double size) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t f = 0; f < got.size(); ++f) {
    INFO(what << ", format " << f << ": got " << got[f] << ", expected " << expected[f] << ", outputs " << size);
    // Relative to the error, whose precision is that of outputs in single precision.
    REQUIRE(std::abs(got[f] - expected[f]) <= 2e-3 * expected[f] + 1e-4 * std::sqrt(size * expected[f]) + 1e-10 * size);
  }
}

void require_close(ha::RoundingSums const& got, ha::RoundingSums const& expected, double size, double moved = 1) {
  REQUIRE(got.rows == expected.rows);
  REQUIRE(got.metric_rows == expected.metric_rows);
  require_close("keys", got.key_error_squared, expected.key_error_squared, size);
  require_close("values", got.value_error_squared, expected.value_error_squared, size);
  require_close("keys after W_O", got.key_metric_error_squared, expected.key_metric_error_squared, size * moved);
  require_close("values after W_O", got.value_metric_error_squared, expected.value_metric_error_squared, size * moved);
}

void compare(Problem const& problem, ha::ObserverParameters const& parameters, ha::AttentionScore const& how = score,
             bool with_metric = false) {
  auto layer = problem.layer(true);
  std::vector<float> projection;
  ha::OutputMetric metric;
  if (with_metric) {
    Problem const random(1, 1, 40, problem.num_query_heads * problem.head_dim, 77);
    projection = random.values;
    metric = ha::OutputMetric(projection.data(), 40, problem.num_query_heads, problem.head_dim);
    layer.output_factors = metric.factors();
  }
  auto const got = ha::observe_chunk(layer, how, parameters);
  for (std::int32_t head = 0; head < problem.num_query_heads; ++head) {
    INFO("head " << head << ", tokens " << problem.tokens << ", head_dim " << problem.head_dim);
    double size = 0;
    auto const expected = expected_sums(problem, head, how, parameters, projection, size);
    require_close(got[static_cast<std::size_t>(head)].retention.rounding, expected, size, 40);
  }
}

}  // namespace

TEST_CASE("errors of formats are those of decoded keys and of decoded values", "[stats]") {
  for (std::int64_t const tokens : {1, 2, 15, 16, 17, 65, 300}) {
    compare(Problem(2, 1, tokens, 32, static_cast<unsigned>(tokens)), with_formats(all_formats(), 1));
    compare(Problem(2, 2, tokens, 20, static_cast<unsigned>(tokens)), with_formats({"int8", "packed4"}, 16));
  }
}

TEST_CASE("errors of formats by channels, groups and the metric", "[stats]") {
  auto const formats = with_formats({"packed4", "fp8_e4m3", "packed6"}, 5);
  for (std::int64_t const head_dim : {1, 4, 64, 72, 130}) {
    compare(Problem(3, 1, 70, head_dim, static_cast<unsigned>(head_dim)), formats, {.scale = 0.1F}, true);
  }
  compare(Problem(8, 2, 90, 16, 5), with_formats(all_formats(), 7), score, true);
  // More rows in a group than are taken at a time.
  compare(Problem(300, 1, 12, 8, 6), with_formats({"packed4"}, 3), score, true);
}

TEST_CASE("errors of formats over several tiles of rows and blocks of keys", "[stats]") {
  compare(Problem(1, 1, 900, 16, 7), with_formats({"int8", "packed4"}, 2));
}

TEST_CASE("errors of formats with a soft cap, windows, learned sinks and sampled queries", "[stats]") {
  auto parameters = with_formats({"fp8_e5m2", "int8", "packed4"}, 3);
  compare(Problem(2, 1, 200, 16, 11), parameters, {.scale = 0.25F, .soft_cap = 2});
  compare(Problem(2, 1, 500, 16, 12), parameters, {.scale = 0.25F, .sliding_window = 30});
  compare(Problem(2, 1, 120, 16, 13, 4), parameters);
  Problem problem(4, 2, 150, 16, 14);
  problem.sinks = {1, -std::numeric_limits<float>::infinity(), 5, -2};
  compare(problem, parameters, score, true);
  parameters.first_query = 37;
  parameters.query_stride = 5;
  compare(problem, parameters, {.scale = 0.25F, .soft_cap = 5, .sliding_window = 40}, true);
}

TEST_CASE("formats do not change other sums, and none can be asked for", "[stats]") {
  Problem const problem(4, 2, 120, 16, 3);
  auto const with = ha::observe_chunk(problem.layer(true), score, with_formats({"int8"}, 4));
  auto const without = ha::observe_chunk(problem.layer(true), score, with_formats({}, 4));
  for (std::size_t head = 0; head < 4; ++head) {
    REQUIRE(with[head].chunk == without[head].chunk);
    REQUIRE(with[head].retention.error_squared == without[head].retention.error_squared);
    REQUIRE(with[head].retention.rounding.rows == 30);
    REQUIRE(without[head].retention.rounding == ha::RoundingSums());
  }
  // Nor are there any without values, or without a grid.
  auto const masses = ha::observe_chunk(problem.layer(false), score, with_formats({"int8"}, 4));
  REQUIRE(masses[0].retention.rounding == ha::RoundingSums(1));
  REQUIRE(ha::observe_chunk(problem.layer(true), score)[0].retention.rounding == ha::RoundingSums());
}

TEST_CASE("every chunk has a sampled row, the last one", "[stats]") {
  for (std::int64_t const tokens : {10, 16, 17, 33}) {
    Problem const problem(1, 1, tokens, 8, 3);
    auto const got = ha::observe_chunk(problem.layer(true), score, with_formats({"packed4"}, 16));
    REQUIRE(got[0].retention.rounding.rows == (tokens + 15) / 16);
  }
  // Chunks begin anew.
  Problem const problem(2, 1, 100, 8, 4);
  auto parameters = with_formats({"packed4", "int8"}, 7);
  parameters.chunk_size = 40;
  ha::AttentionObserver whole({1, 2, 1, 8}, parameters);
  whole.observe(0, problem.layer(true), score);
  parameters.chunk_size = 0;
  ha::AttentionObserver parts({1, 2, 1, 8}, parameters);
  for (std::int64_t first = 0; first < 100; first += 40) {
    auto layer = problem.layer(true);
    layer.first_token = first;
    layer.tokens = std::min<std::int64_t>(40, 100 - first);
    parts.observe(0, layer, score);
  }
  REQUIRE(whole.sums() == parts.sums());
  REQUIRE(whole.head(0, 1).retention.rounding.rows == 6 + 6 + 3);
}

TEST_CASE("rows with a NaN or an infinity do not count in errors of formats", "[stats]") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  auto const parameters = with_formats({"int8", "packed4"}, 1);
  Problem const sound(2, 1, 100, 8, 3);
  auto layer = sound.layer(true);
  layer.tokens = 40;
  auto const expected = ha::observe_chunk(layer, score, parameters);
  for (float const wrong : {nan, std::numeric_limits<float>::infinity(), 1e25F}) {
    for (bool const in_key : {false, true}) {
      if (in_key && wrong == 1e25F) continue;  // a key may be as large as that
      Problem problem = sound;
      (in_key ? problem.keys : problem.values)[40 * 8 + 3] = wrong;
      for (std::size_t q = 0; q < 200; ++q) problem.queries[q * 8 + 3] = 1;
      Problem finite = sound;
      finite.queries = problem.queries;
      layer.queries = finite.queries.data();
      auto const before = ha::observe_chunk(layer, score, parameters)[0].retention.rounding;
      auto const got = ha::observe_chunk(problem.layer(true), score, parameters)[0].retention.rounding;
      REQUIRE(got.rows == 40);
      for (std::size_t f = 0; f < 2; ++f) {
        REQUIRE(std::abs(got.key_error_squared[f] - before.key_error_squared[f]) < 1e-6);
        REQUIRE(std::abs(got.value_error_squared[f] - before.value_error_squared[f]) < 1e-6);
      }
      // A window that has moved past it does not see it.
      auto const windowed =
          ha::observe_chunk(problem.layer(true), {.scale = 0.25F, .sliding_window = 20}, parameters)[1];
      REQUIRE(windowed.retention.rounding.rows == 80);
      for (double const error : windowed.retention.rounding.key_error_squared) REQUIRE(std::isfinite(error));
    }
  }
  REQUIRE(expected[0].retention.rounding.rows == 40);
}

TEST_CASE("what a format cannot hold is a large error, and a number", "[stats]") {
  Problem problem(1, 1, 60, 8, 3);
  problem.values[30 * 8] = 1e6F;
  problem.keys[31 * 8] = -1e6F;
  problem.queries[40 * 8] = 1e-4F;
  auto const got = ha::observe_chunk(problem.layer(true), score, with_formats({"bf16", "fp16"}, 1));
  auto const& sums = got[0].retention.rounding;
  REQUIRE(sums.rows == 60);
  REQUIRE(std::isfinite(sums.value_error_squared[1]));
  REQUIRE(std::isfinite(sums.key_error_squared[1]));
  REQUIRE(sums.value_error_squared[1] > 1e12);
  REQUIRE(sums.value_error_squared[0] < 1e-4 * got[0].retention.output_squared);
}

TEST_CASE("a latent is rounded once: its errors are the key's", "[stats]") {
  Problem problem(4, 1, 90, 72, 8);
  problem.values = problem.keys;
  auto const parameters = with_formats({"int8", "packed5"}, 4);
  auto layer = problem.layer(true);
  layer.values = layer.keys;
  auto const got = ha::observe_chunk(layer, score, parameters);
  for (std::int32_t head = 0; head < 4; ++head) {
    double size = 0;
    auto const expected = expected_sums(problem, head, score, parameters, {}, size, true);
    require_close(got[static_cast<std::size_t>(head)].retention.rounding, expected, size);
    REQUIRE(expected.value_error_squared[0] == 0);
  }
  // Fewer channels in the value: those of the same row, encoded with the rest.
  layer.value_dim = 24;
  auto const narrow = ha::observe_chunk(layer, score, parameters);
  for (std::size_t head = 0; head < 4; ++head) {
    auto const& wide = got[head].retention.rounding;
    auto const& sums = narrow[head].retention.rounding;
    REQUIRE(sums.key_error_squared[1] > 0);
    REQUIRE(sums.key_error_squared[1] < wide.key_error_squared[1]);
    REQUIRE(sums.value_error_squared == std::vector<double>(2));
  }
}

TEST_CASE("ready probabilities have no keys to round", "[stats]") {
  Problem const problem(2, 1, 40, 8, 9);
  std::vector<float> probabilities;
  for (std::int32_t head = 0; head < 2; ++head) {
    for (std::int64_t q = 0; q < 40; ++q) {
      for (double const p : problem.row(head, q, score)) probabilities.push_back(static_cast<float>(p));
    }
  }
  ha::LayerProbabilities<float> layer;
  layer.probabilities = probabilities.data();
  layer.values = problem.values.data();
  layer.value_layout = ha::strided_bhsd(1, 1, 40, 8);
  layer.num_query_heads = 2;
  layer.num_kv_heads = 1;
  layer.tokens = 40;
  layer.value_dim = 8;
  ha::AttentionObserver observer({1, 2, 1, 8}, with_formats({"int8"}, 4));
  observer.observe(0, layer);
  auto const none = observer.retention_statistics();
  REQUIRE(none.info.formats.empty());
  REQUIRE(none.heads[0].rounding == ha::RoundingSums());
  REQUIRE(none.heads[0].error_squared[0] > 0);
  observer.observe(0, problem.layer(true), score);
  REQUIRE(observer.retention_statistics().info.formats == std::vector<std::string>{"int8"});
  REQUIRE(observer.retention_statistics().heads[1].rounding.rows == 10);
}

TEST_CASE("errors of formats merge, and travel as plain sums", "[stats]") {
  Problem const a(4, 2, 60, 16, 41);
  Problem const b(4, 2, 45, 16, 42);
  auto const parameters = with_formats({"packed4", "int8", "bf16"}, 4);
  ha::AttentionObserver const empty({2, 4, 2, 16}, parameters);
  auto both = empty;
  auto first = empty;
  auto second = empty;
  for (std::int32_t const layer : {0, 1}) {
    both.observe(layer, a.layer(true), score);
    both.observe(layer, b.layer(true), score);
    first.observe(layer, a.layer(true), score);
    second.observe(layer, b.layer(true), score);
  }
  auto merged = second;
  merged.merge(first);
  auto carried = first;
  carried.add_sums(second.sums());
  REQUIRE(both.sums_layout().size() == 16 + 64 + 4 * 2 + 2 + 4 * 3);
  for (std::int32_t head = 0; head < 4; ++head) {
    auto const& expected = both.head(1, head).retention.rounding;
    REQUIRE(expected.rows == 15 + 12);
    for (auto const* const got : {&merged, &carried}) {
      auto const& sums = got->head(1, head).retention.rounding;
      REQUIRE(sums.rows == expected.rows);
      REQUIRE(std::abs(sums.key_error_squared[0] / expected.key_error_squared[0] - 1) < 1e-9);
      REQUIRE(std::abs(sums.value_error_squared[2] / expected.value_error_squared[2] - 1) < 1e-9);
    }
  }
  auto layout = both.sums_layout();
  for (std::int64_t i = 0; i < layout.size(); ++i) {
    if (layout.is_count(i)) REQUIRE(both.sums()[static_cast<std::size_t>(i)] >= 0);
  }
  REQUIRE(layout.is_count(layout.rounding_metric_rows()));
  REQUIRE_FALSE(layout.is_count(layout.key_errors()));
  // Other formats do not merge.
  ha::AttentionObserver const others({2, 4, 2, 16}, with_formats({"packed4", "int8", "fp16"}, 4));
  REQUIRE_THROWS_AS(both.merge(others), ha::ArgumentError);
  ha::RoundingSums two(2);
  check_error<ha::ArgumentError>([&] { two.merge(ha::RoundingSums(3)); }, {"formats", "2", "3", "RoundingSums::merge"});
  check_error<ha::ArgumentError>(
      [&] {
        with_formats({"int8", "packed7"}, 4).validate();
      },
      {"unknown format", "packed6", "packed7", ""});
  check_error<ha::ArgumentError>(
      [&] {
        with_formats({"int8", "int8"}, 4).validate();
      },
      {"formats", "once", "int8", "ObserverParameters"});
  check_error<ha::ArgumentError>([&] { with_formats({"int8"}, 0).validate(); },
                                 {"rounding_stride", "> 0", "0", "ObserverParameters"});
}
