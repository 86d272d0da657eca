// The observer of a whole model: what it adds up, merges and refuses.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/head_statistics.hpp"

#include <headaware/layout/engines.hpp>
#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/output_metric.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr ha::AttentionScore score{.scale = 0.25F};

ha::ModelConfig model_of(Problem const& problem, std::int32_t layers = 1) {
  return {layers, problem.num_query_heads, problem.num_kv_heads, static_cast<std::int32_t>(problem.head_dim)};
}

ha::ObserverParameters with_retention(ha::RetentionGrid const& grid = {}) {
  ha::ObserverParameters parameters;
  parameters.retention = grid;
  return parameters;
}

double largest_difference(std::vector<double> const& a, std::vector<double> const& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]) / (1 + std::abs(a[i])));
  return worst;
}

/// Probabilities of all heads of a problem, [num_query_heads, tokens, tokens]; NaN where no one should look.
std::vector<float> probabilities_of(Problem const& problem) {
  std::vector<float> result;
  for (std::int32_t head = 0; head < problem.num_query_heads; ++head) {
    for (std::int64_t q = 0; q < problem.tokens; ++q) {
      auto const row = problem.row(head, q, score);
      for (std::int64_t k = 0; k < problem.tokens; ++k) {
        result.push_back(k <= q ? static_cast<float>(row[static_cast<std::size_t>(k)])
                                : std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  return result;
}

ha::LayerProbabilities<float> layer_of(Problem const& problem, std::vector<float> const& probabilities) {
  ha::LayerProbabilities<float> layer;
  layer.probabilities = probabilities.data();
  layer.values = problem.values.data();
  layer.value_layout = ha::strided_bhsd(1, problem.num_kv_heads, problem.tokens, problem.head_dim);
  layer.num_query_heads = problem.num_query_heads;
  layer.num_kv_heads = problem.num_kv_heads;
  layer.tokens = problem.tokens;
  layer.value_dim = problem.head_dim;
  return layer;
}

}  // namespace

TEST_CASE("an observer averages chunks, and merges in any grouping", "[stats]") {
  Problem const a(4, 2, 60, 8, 1);
  Problem const b(4, 2, 133, 8, 2);
  Problem const c(4, 2, 17, 8, 3);
  auto const parameters = with_retention();
  auto const observer_of = [&](std::vector<Problem const*> const& problems) {
    ha::AttentionObserver observer(model_of(a, 2), parameters);
    for (Problem const* problem : problems) {
      observer.observe(0, problem->layer(true), score);
      observer.observe(1, problem->layer(true), score);
    }
    return observer;
  };
  auto const all = observer_of({&a, &b, &c});
  auto left = observer_of({&a});
  left.merge(observer_of({&b}));
  left.merge(observer_of({&c}));
  auto right = observer_of({&b});
  right.merge(observer_of({&c}));
  auto first = observer_of({&a});
  first.merge(right);
  REQUIRE(largest_difference(all.sums(), left.sums()) < 1e-14);
  REQUIRE(largest_difference(all.sums(), first.sums()) < 1e-14);
  REQUIRE(all.head(1, 3).head.chunks == 3);
  REQUIRE(all.head(1, 3).head.rows == 60 + 133 + 17);

  ha::AttentionObserver copy(model_of(a, 2), parameters);
  copy.add_sums(all.sums());
  REQUIRE(copy.sums() == all.sums());
  REQUIRE(copy.statistics() == all.statistics());
  REQUIRE(copy.retention_statistics() == all.retention_statistics());

  auto const entropy = [](Problem const& p, std::int32_t head) {
    auto const sums = naive(p, head, score, {});
    return sums.chunk.entropy / static_cast<double>(sums.chunk.rows);
  };
  for (std::int32_t head = 0; head < 4; ++head) {
    double const mean = (entropy(a, head) + entropy(b, head) + entropy(c, head)) / 3;
    REQUIRE(std::abs(all.statistics().heads[static_cast<std::size_t>(head)].mean_entropy - mean) < 1e-6);
  }
}

TEST_CASE("a sequence is cut into chunks that begin anew, and short ones are passed over", "[stats]") {
  Problem const whole(2, 1, 209, 16, 4);  // 100, 100 and 9 tokens
  ha::ObserverParameters parameters = with_retention();
  parameters.chunk_size = 100;
  ha::AttentionObserver cut(model_of(whole), parameters);
  cut.observe(0, whole.layer(true), score);
  REQUIRE(cut.head(0, 0).head.chunks == 2);

  ha::AttentionObserver each(model_of(whole), with_retention());
  for (std::int64_t const first : {0, 100}) {
    auto part = whole.layer(true);
    part.first_token = first;
    part.tokens = 100;
    each.observe(0, part, score);
  }
  REQUIRE(cut.sums() == each.sums());
  Problem const short_text(2, 1, 9, 16, 5);
  each.observe(0, short_text.layer(true), score);
  REQUIRE(cut.sums() == each.sums());
  REQUIRE(parameters.min_chunk == 10);
  each.observe(0, Problem(2, 1, 10, 16, 5).layer(true), score);
  REQUIRE(each.head(0, 0).head.chunks == 3);
}

TEST_CASE("ready probabilities give what queries and keys give", "[stats]") {
  Problem const problem(3, 1, 97, 16, 6);
  auto parameters = with_retention();
  parameters.formats.clear();  // which need keys
  auto const probabilities = probabilities_of(problem);
  ha::AttentionObserver from_scores(model_of(problem), parameters);
  ha::AttentionObserver from_probabilities(model_of(problem), parameters);
  from_scores.observe(0, problem.layer(true), score);
  from_probabilities.observe(0, layer_of(problem, probabilities));
  REQUIRE(from_probabilities.invalid_rows() == 0);
  REQUIRE(largest_difference(from_scores.sums(), from_probabilities.sums()) < 2e-5);

  SECTION("in half precision, with zeros, out of a larger tensor") {
    std::vector<ha::float16> rounded(static_cast<std::size_t>(3 * 100 * 128));
    for (std::int64_t h = 0; h < 3; ++h) {
      for (std::int64_t q = 0; q < 97; ++q) {
        for (std::int64_t k = 0; k <= q; ++k) {
          rounded[static_cast<std::size_t>((h * 100 + q) * 128 + k)] =
              ha::from_float<ha::float16>(probabilities[static_cast<std::size_t>((h * 97 + q) * 97 + k)]);
        }
      }
    }
    ha::LayerProbabilities<ha::float16> layer;
    layer.probabilities = rounded.data();
    layer.num_query_heads = 3;
    layer.num_kv_heads = 1;
    layer.tokens = 97;
    layer.head_stride = 100 * 128;
    layer.query_stride = 128;
    ha::AttentionObserver half(model_of(problem));
    half.observe(0, layer);
    REQUIRE(half.invalid_rows() == 0);
    auto const a = half.statistics();
    auto const b = from_scores.statistics();
    for (std::size_t h = 0; h < 3; ++h) REQUIRE(difference(a.heads[h], b.heads[h]) < 3e-3);
  }
  SECTION("rows that are no probabilities are counted") {
    auto broken = probabilities;
    broken[50 * 97 + 3] = -0.1F;
    broken[51 * 97 + 3] = std::numeric_limits<float>::quiet_NaN();
    broken[52 * 97 + 3] += 0.5F;
    std::fill_n(broken.begin() + 53 * 97, 97, 0.0F);
    ha::AttentionObserver observer(model_of(problem));
    observer.observe(0, layer_of(problem, broken));
    REQUIRE(observer.invalid_rows() == 4);
    REQUIRE(observer.head(0, 0).head.rows == 93);
  }
  SECTION("how logits would be made of queries and keys is not for them") {
    for (ha::AttentionScore const& other : {ha::AttentionScore{.scale = 0.5F}, ha::AttentionScore{.soft_cap = 30},
                                            ha::AttentionScore{.sliding_window = 8}}) {
      headaware_test::check_error<ha::ArgumentError>(
          [&] { from_probabilities.observe(0, layer_of(problem, probabilities), other); },
          {"score of probabilities", "the default", "a scale", "observe_chunk"});
    }
  }
}

TEST_CASE("errors after the output projection", "[stats]") {
  Problem const problem(4, 2, 150, 12, 7);
  std::int64_t constexpr hidden = 30;
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::vector<float> projection(static_cast<std::size_t>(hidden * 4 * 12));
  for (float& w : projection) w = normal(random);
  for (std::int64_t row = 0; row < hidden; ++row) {
    auto* const w = projection.data() + row * 48;
    std::fill_n(w + 12, 12, 0.0F);       // head 1 writes nothing
    std::copy_n(w + 24, 6, w + 24 + 6);  // head 2 lacks rank
  }
  ha::OutputMetric const metric(projection.data(), hidden, 4, 12);
  auto layer = problem.layer(true);
  layer.output_factors = metric.factors();
  auto const parameters = with_retention(ha::RetentionGrid{.sinks = {0, 2}, .windows = {4, 40}});
  auto const got = ha::observe_chunk(layer, score, parameters);
  for (std::int32_t head = 0; head < 4; ++head) {
    auto const& g = got[static_cast<std::size_t>(head)].retention;
    auto const e = naive(problem, head, score, parameters, projection).retention;
    REQUIRE(g.metric_rows == 150);
    REQUIRE(std::abs(g.output_metric_squared - e.output_metric_squared) <= 1e-5 * e.output_metric_squared);
    for (std::size_t i = 0; i < g.mass.size(); ++i) {
      REQUIRE(std::abs(g.error_squared[i] - e.error_squared[i]) <= 1e-4 * e.error_squared[i]);
      REQUIRE(std::abs(g.metric_error_squared[i] - e.metric_error_squared[i]) <= 1e-4 * e.metric_error_squared[i]);
    }
    if (head == 1) REQUIRE(g.output_metric_squared == 0);
  }
  check_error<ha::ArgumentError>([&] { ha::OutputMetric(nullptr, hidden, 4, 12); },
                                 {"output projection", "a pointer", "nullptr", "OutputMetric"});
  projection[100] = std::numeric_limits<float>::infinity();
  check_error<ha::ArgumentError>([&] { ha::OutputMetric(projection.data(), hidden, 4, 12); },
                                 {"output projection", "finite", "NaN", "OutputMetric"});
}

TEST_CASE("heads that change places change places in the result", "[stats]") {
  Problem const problem(4, 4, 120, 16, 9);
  auto const plane = problem.tokens * problem.head_dim;
  std::vector<std::int32_t> const order{2, 0, 3, 1};
  Problem permuted = problem;
  for (std::int64_t h = 0; h < 4; ++h) {
    auto const from = order[static_cast<std::size_t>(h)] * plane;
    std::copy_n(problem.queries.begin() + from, plane, permuted.queries.begin() + h * plane);
    std::copy_n(problem.keys.begin() + from, plane, permuted.keys.begin() + h * plane);
    std::copy_n(problem.values.begin() + from, plane, permuted.values.begin() + h * plane);
  }
  auto const a = ha::observe_chunk(problem.layer(true), score, with_retention());
  auto const b = ha::observe_chunk(permuted.layer(true), score, with_retention());
  for (std::size_t h = 0; h < 4; ++h) {
    auto const& expected = a[static_cast<std::size_t>(order[h])];
    REQUIRE(b[h].chunk.entropy == expected.chunk.entropy);
    REQUIRE(b[h].chunk.distances == expected.chunk.distances);
    REQUIRE(b[h].retention == expected.retention);
  }
}

TEST_CASE("masses sum to one", "[stats]") {
  // All distances told apart, the sinks with all the rest, and a window that keeps and drops.
  Problem const problem(1, 1, 200, 16, 10);
  ha::ObserverParameters parameters = with_retention(ha::RetentionGrid{.sinks = {0, 4}, .windows = {8, 200}});
  parameters.num_distances = 200;
  parameters.sink_size = 200;
  parameters.recent_ratio = 1;
  auto const head = ha::observe_chunk(problem.layer(false), score, parameters)[0];
  double distances = 0;
  for (double const d : head.chunk.distances) distances += d;
  double nearest = 0;
  for (std::size_t d = 0; d < 8; ++d) nearest += head.chunk.distances[d];
  REQUIRE(std::abs(distances - 200) < 1e-4);
  REQUIRE(std::abs(head.chunk.sink - 200) < 1e-4);
  REQUIRE(std::abs(head.chunk.recent - 200) < 1e-4);
  REQUIRE(std::abs(nearest + head.retention.mass[0] - 200) < 1e-4);
  REQUIRE(head.retention.mass[1] == 0);
}

TEST_CASE("keys and values in pages give the same", "[stats]") {
  Problem const problem(2, 2, 75, 16, 11);
  std::int64_t constexpr page = 16;
  std::vector<std::int32_t> const table{4, 0, 2, 1, 3};
  auto const layout =
      ha::vllm_flash(ha::PageTable::dense(table.data(), 5),
                     {.num_sequences = 1, .num_kv_heads = 2, .channels = 16, .num_pages = 5, .page_size = page});
  std::vector<float> keys(static_cast<std::size_t>(layout.keys.required_span_size()));
  std::vector<float> values(keys.size());
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t t = 0; t < 75; ++t) {
      for (std::int64_t d = 0; d < 16; ++d) {
        auto const from = static_cast<std::size_t>((h * 75 + t) * 16 + d);
        keys[static_cast<std::size_t>(layout.keys.offset(0, h, t, d))] = problem.keys[from];
        values[static_cast<std::size_t>(layout.keys.offset(0, h, t, d))] = problem.values[from];
      }
    }
  }
  ha::LayerQkv<float, ha::StridedLayout, decltype(layout.keys)> layer;
  layer.queries = problem.queries.data();
  layer.keys = keys.data();
  layer.values = values.data();
  layer.query_layout = ha::strided_bhsd(1, 2, 75, 16);
  layer.key_layout = layout.keys;
  layer.value_layout = layout.keys;
  layer.num_query_heads = 2;
  layer.num_kv_heads = 2;
  layer.tokens = 75;
  layer.head_dim = 16;
  ha::AttentionObserver paged(model_of(problem), with_retention());
  ha::AttentionObserver plain(model_of(problem), with_retention());
  paged.observe(0, layer, score);
  plain.observe(0, problem.layer(true), score);
  REQUIRE(paged.sums() == plain.sums());
  // A table of the values' own.
  std::vector<std::int32_t> const wrong{4, 0, 2, 1, 5};
  layer.value_layout =
      ha::PagedLayout(ha::PageTable::dense(wrong.data(), 5), layout.keys.shape(), layout.keys.strides());
  check_error<ha::ArgumentError>(
      [&] { paged.observe(0, layer, score); },
      {"page table entry", "a page in [0, 5)", "5 for page 4", "observe, values, sequence 0"});
  REQUIRE(paged.sums() == plain.sums());
}

TEST_CASE("what an observer refuses", "[stats]") {
  Problem const problem(2, 1, 40, 8, 12);
  auto const parameters = with_retention();
  ha::AttentionObserver observer(model_of(problem), parameters);
  constexpr auto where = "AttentionObserver";
  auto const refused = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(call, parts);
  };
  auto const layer = problem.layer(true);
  refused([&] { observer.observe(1, layer, score); }, {"layer", "in [0, 1)", "1", where});
  auto other = layer;
  other.num_query_heads = 4;
  refused([&] { observer.observe(0, other, score); }, {"query heads", "2", "4", where});
  other = layer;
  other.tokens = 41;
  refused([&] { observer.observe(0, other, score); }, {"queries' tokens", "at least 41", "40", where});
  other = layer;
  other.first_token = 1;
  refused([&] { observer.observe(0, other, score); }, {"queries' tokens", "at least 41", "40", where});
  other = layer;
  other.head_dim = 9;
  refused([&] { observer.observe(0, other, score); }, {"queries' channels", "9", "8", where});
  other = layer;
  other.keys = nullptr;
  refused([&] { observer.observe(0, other, score); }, {"queries and keys", "pointers", "nullptr", where});
  other = layer;
  other.sequence = 1;
  refused([&] { observer.observe(0, other, score); }, {"queries' sequence", "[0, 1)", "1", where});
  refused([&] { (void)observer.statistics(); }, {"chunks seen", "at least one", "none", "layer 0, head 0"});
  refused([&] { observer.add_sums(std::vector<double>(3)); },
          {"sums", std::to_string(observer.sums().size()), "3", where});
  refused([&] { observer.merge(ha::AttentionObserver(model_of(problem))); },
          {"parameters", "the same", "others", where});
  refused([&] { observer.merge(ha::AttentionObserver(model_of(problem, 2), parameters)); },
          {"layers of the other model", "1", "2", where});
  refused([&] { (void)ha::AttentionObserver(model_of(problem)).retention_statistics(); },
          {"retention grid", "parameters", "none", where});
  observer.observe(0, layer, score);
  observer.observe(0, problem.layer(false), score);
  refused([&] { (void)observer.retention_statistics(); }, {"rows with values", "160", "80", where});
}
