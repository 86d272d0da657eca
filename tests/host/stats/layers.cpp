// Statistics of layers that differ: windows, learned sinks, latents, and models of such layers, against the formulas.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/model_shape.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr ha::AttentionScore score{.scale = 0.25F};
constexpr float no_sink = -std::numeric_limits<float>::infinity();

ha::ObserverParameters with_retention(ha::RetentionGrid const& grid = {}) {
  ha::ObserverParameters parameters;
  parameters.retention = grid;
  return parameters;
}

void require_close(char const* what, double got, double expected, double tolerance) {
  INFO(what << ": got " << got << ", expected " << expected);
  REQUIRE(std::abs(got - expected) <= tolerance * (1 + std::abs(expected)));
}

void require_close(ha::HeadChunk const& got, ha::HeadChunk const& expected, double tolerance) {
  ha::ChunkSums const& g = got.chunk;
  ha::ChunkSums const& e = expected.chunk;
  REQUIRE(g.rows == e.rows);
  REQUIRE(g.invalid_rows == 0);
  REQUIRE(g.uniformity_rows == e.uniformity_rows);
  require_close("entropy", g.entropy, e.entropy, tolerance);
  require_close("max", g.max_attention, e.max_attention, tolerance);
  require_close("sink", g.sink, e.sink, tolerance);
  require_close("recent", g.recent, e.recent, tolerance);
  require_close("local", g.local, e.local, tolerance);
  require_close("uniformity", g.uniformity, e.uniformity, tolerance);
  for (std::size_t d = 0; d < g.distances.size(); ++d)
    require_close("distance", g.distances[d], e.distances[d], tolerance);
  ha::RetentionSums const& gr = got.retention;
  ha::RetentionSums const& er = expected.retention;
  REQUIRE(gr.rows == er.rows);
  require_close("output", gr.output_squared, er.output_squared, tolerance);
  for (std::size_t i = 0; i < gr.mass.size(); ++i) {
    INFO("cell " << i);
    require_close("mass", gr.mass[i], er.mass[i], tolerance);
    require_close("mass squared", gr.mass_squared[i], er.mass_squared[i], tolerance);
    require_close("error", gr.error_squared[i], er.error_squared[i], 10 * tolerance);
  }
}

/// A layer of this window, or one whose score says it, against the formulas.
void compare(Problem const& problem, std::int32_t window, ha::ObserverParameters const& parameters,
             ha::AttentionScore how = score, double tolerance = 2e-5) {
  auto layer = problem.layer(parameters.retention.has_value());
  layer.window = window;
  auto const got = ha::observe_chunk(layer, how, parameters);
  how.sliding_window = window;
  layer.window = 0;
  auto const by_score = ha::observe_chunk(layer, how, parameters);
  for (std::int32_t head = 0; head < problem.num_query_heads; ++head) {
    INFO("head " << head << ", tokens " << problem.tokens << ", window " << window);
    auto const i = static_cast<std::size_t>(head);
    require_close(got[i], naive(problem, head, how, parameters), tolerance);
    REQUIRE(got[i].chunk == by_score[i].chunk);
    REQUIRE(got[i].retention == by_score[i].retention);
  }
}

void require_equal(std::vector<ha::HeadChunk> const& a, std::vector<ha::HeadChunk> const& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    INFO("head " << i);
    REQUIRE(a[i].chunk == b[i].chunk);
    REQUIRE(a[i].retention == b[i].retention);
  }
}

/// Full, sliding, without attention, a latent, and one that reads layer 1's cache with other query heads.
ha::ModelShape mixed_model() {
  using Kind = ha::LayerKind;
  return ha::ModelShape({
      {.kind = Kind::attention, .num_query_heads = 4, .num_kv_heads = 2, .head_dim = 16, .value_dim = 16},
      {.kind = Kind::sliding, .num_query_heads = 2, .num_kv_heads = 1, .head_dim = 8, .value_dim = 8, .window = 12},
      {.kind = Kind::none},
      {.kind = Kind::latent, .num_query_heads = 3, .num_kv_heads = 1, .head_dim = 24, .value_dim = 16},
      {.kind = Kind::sliding,
       .num_query_heads = 5,
       .num_kv_heads = 1,
       .head_dim = 8,
       .value_dim = 8,
       .window = 12,
       .cache_layer = 1},
  });
}

/// A problem of a layer of the mixed model.
Problem problem_of(ha::ModelShape const& model, std::int32_t layer, std::int64_t tokens, unsigned seed) {
  ha::LayerShape const& l = model.layer(layer);
  return {l.num_query_heads, l.num_kv_heads, tokens, l.head_dim, seed};
}
/// The layer as an engine has it: a latent's values are the first channels of its keys.
auto layer_of(ha::ModelShape const& model, std::int32_t index, Problem const& problem) {
  auto layer = problem.layer(true);
  ha::LayerShape const& l = model.layer(index);
  layer.value_dim = l.value_dim;
  if (l.kind == ha::LayerKind::latent) layer.values = layer.keys;
  return layer;
}

}  // namespace

TEST_CASE("a layer's window: statistics see what it sees", "[stats]") {
  auto const parameters = with_retention(ha::RetentionGrid{.sinks = {0, 1, 4, 16}, .windows = {1, 8, 20, 64, 300}});
  for (std::int64_t const tokens : {1, 63, 64, 65, 330}) {
    Problem const problem(4, 2, tokens, 16, static_cast<unsigned>(tokens));
    for (std::int64_t const window : {std::int64_t{1}, std::int64_t{7}, std::int64_t{64}, tokens, tokens + 9})
      compare(problem, static_cast<std::int32_t>(window), parameters);
  }
}

TEST_CASE("a window and sampled queries, some of which share no key", "[stats]") {
  auto parameters = with_retention();
  parameters.first_query = 11;
  Problem const problem(2, 1, 480, 8, 3);
  for (std::int64_t const stride : {1, 7, 190, 450}) {
    parameters.query_stride = stride;
    compare(problem, 40, parameters);
    compare(problem, 180, parameters, {.scale = 0.25F, .soft_cap = 2});
  }
}

TEST_CASE("a window as long as the text is none", "[stats]") {
  Problem const problem(2, 1, 400, 16, 4);
  auto layer = problem.layer(true);
  auto const none = ha::observe_chunk(layer, score, with_retention());
  for (std::int64_t const window : {std::int64_t{400}, std::int64_t{401}, std::int64_t{1} << 40}) {
    layer.window = window;
    require_equal(ha::observe_chunk(layer, score, with_retention()), none);
  }
}

TEST_CASE("windows of the grid from the layer's own on lose nothing", "[stats]") {
  Problem const problem(2, 2, 300, 16, 5);
  ha::RetentionGrid const grid{.sinks = {0, 4}, .windows = {8, 31, 32, 33, 200}};
  auto layer = problem.layer(true);
  layer.window = 32;
  for (ha::HeadChunk const& head : ha::observe_chunk(layer, score, with_retention(grid))) {
    for (std::size_t s = 0; s < 2; ++s) {
      for (std::size_t w = 0; w < grid.windows.size(); ++w) {
        INFO("sink " << s << ", window " << grid.windows[w]);
        bool const loses = grid.windows[w] < 32;
        REQUIRE((head.retention.mass[grid.cell(s, w)] > 0) == loses);
        REQUIRE((head.retention.error_squared[grid.cell(s, w)] > 0) == loses);
      }
    }
  }
}

TEST_CASE("values and probabilities that a window hides do not count", "[stats]") {
  Problem const sound(1, 1, 90, 8, 6);
  Problem problem = sound;
  for (std::size_t i = 0; i < 8; ++i) problem.values[i] = std::numeric_limits<float>::quiet_NaN();
  auto layer = problem.layer(true);
  layer.window = 20;
  auto const got = ha::observe_chunk(layer, score, with_retention());
  REQUIRE(got[0].chunk.rows == 70);
  REQUIRE(got[0].chunk.invalid_rows == 20);

  std::vector<float> probabilities;
  for (std::int64_t q = 0; q < 90; ++q) {
    auto const row = sound.row(0, q, {.scale = 0.25F, .sliding_window = 20});
    for (std::int64_t k = 0; k < 90; ++k) {
      bool const seen = k <= q && k > q - 20;
      probabilities.push_back(seen ? static_cast<float>(row[static_cast<std::size_t>(k)])
                                   : std::numeric_limits<float>::quiet_NaN());
    }
  }
  ha::LayerProbabilities<float> ready;
  ready.probabilities = probabilities.data();
  ready.values = sound.values.data();
  ready.value_layout = ha::strided_bhsd(1, 1, 90, 8);
  ready.num_query_heads = ready.num_kv_heads = 1;
  ready.tokens = 90;
  ready.value_dim = 8;
  ready.window = 20;
  auto const from = ha::observe_chunk(ready, {}, with_retention());
  require_close(from[0], naive(sound, 0, {.scale = 0.25F, .sliding_window = 20}, with_retention()), 5e-5);
}

TEST_CASE("learned sinks take part in the softmax of every row", "[stats]") {
  auto const parameters = with_retention(ha::RetentionGrid{.sinks = {0, 1, 4, 16}, .windows = {1, 8, 20, 64, 300}});
  for (std::int64_t const tokens : {1, 40, 330}) {
    Problem problem(4, 2, tokens, 16, static_cast<unsigned>(7 + tokens));
    problem.sinks = {0.5F, -3, no_sink, 6};
    compare(problem, 0, parameters);
    compare(problem, 30, parameters);
    compare(problem, 0, parameters, {.scale = 0.25F, .soft_cap = 2});
    auto sampled = parameters;
    sampled.first_query = 5;
    sampled.query_stride = 3;
    compare(problem, 0, sampled);
  }
}

TEST_CASE("sinks of minus infinity are none, to the last bit", "[stats]") {
  Problem problem(4, 2, 200, 16, 8);
  auto const none = ha::observe_chunk(problem.layer(true), score, with_retention());
  problem.sinks.assign(4, no_sink);
  require_equal(ha::observe_chunk(problem.layer(true), score, with_retention()), none);
  problem.sinks[2] = 1;
  auto const one = ha::observe_chunk(problem.layer(true), score, with_retention());
  REQUIRE(one[2].chunk.entropy != none[2].chunk.entropy);
  REQUIRE(one[1].chunk == none[1].chunk);
  REQUIRE(one[3].retention == none[3].retention);
}

TEST_CASE("a sink far above all keys leaves nothing to lose", "[stats]") {
  Problem problem(1, 1, 100, 8, 9);
  for (float const logit : {200.0F, 1e6F, 1e38F}) {
    problem.sinks = {logit};
    auto const got = ha::observe_chunk(problem.layer(true), score, with_retention());
    REQUIRE(got[0].chunk.rows == 100);
    for (double const sum : {got[0].chunk.entropy, got[0].chunk.max_attention, got[0].chunk.sink, got[0].chunk.local,
                             got[0].retention.output_squared}) {
      REQUIRE(std::isfinite(sum));
      REQUIRE(std::abs(sum) < 1e-3);
    }
    for (double const error : got[0].retention.error_squared) REQUIRE(error < 1e-6);
    problem.sinks = {-logit};
    auto const low = ha::observe_chunk(problem.layer(true), score, with_retention());
    problem.sinks.clear();
    REQUIRE(low[0].retention == ha::observe_chunk(problem.layer(true), score, with_retention())[0].retention);
  }
}

TEST_CASE("a latent: one row of keys for all heads, whose first channels are the values", "[stats]") {
  Problem problem(8, 1, 70, 576, 10, 0.3F);
  for (std::size_t i = 0; i < problem.values.size(); ++i)
    problem.values[i] = i % 576 < 512 ? problem.keys[i] : 0.0F;  // what the formulas see
  auto layer = problem.layer(true);
  layer.values = layer.keys;
  layer.value_dim = 512;
  auto const got = ha::observe_chunk(layer, score, with_retention());
  for (std::int32_t const head : {0, 3, 7})
    require_close(got[static_cast<std::size_t>(head)], naive(problem, head, score, with_retention()), 2e-5);
  auto apart = layer;
  std::vector<float> copy = problem.keys;
  apart.values = copy.data();
  check_error<ha::ArgumentError>([&] { (void)ha::observe_chunk(apart, score, with_retention()); },
                                 {"values' channels", "512", "576", "observe_chunk"});
  layer.value_dim = 577;
  check_error<ha::ArgumentError>([&] { (void)ha::observe_chunk(layer, score, with_retention()); },
                                 {"values' channels", "577", "576", "observe_chunk"});
}

TEST_CASE("an observer of layers that differ", "[stats]") {
  ha::ModelShape const model = mixed_model();
  auto parameters = with_retention(ha::RetentionGrid{.sinks = {0, 4}, .windows = {4, 12, 40}});
  parameters.chunk_size = 50;
  ha::AttentionObserver observer(model, parameters);
  ha::AttentionObserver first(model, parameters);
  ha::AttentionObserver second(model, parameters);
  std::vector<ha::HeadChunk> expected;
  for (std::int32_t layer = 0; layer < 5; ++layer) {
    if (layer == 2) continue;
    Problem problem = problem_of(model, layer, 70, static_cast<unsigned>(layer));
    auto const of_layer = layer_of(model, layer, problem);
    observer.observe(layer, of_layer, score);
    (layer < 2 ? first : second).observe(layer, of_layer, score);
    // Chunks of 50 and 20 tokens.
    auto part = of_layer;
    part.tokens = 50;
    part.window = model.layer(layer).window;
    for (ha::HeadChunk const& head : ha::observe_chunk(part, score, parameters)) expected.push_back(head);
  }
  REQUIRE(observer.model() == model);
  std::vector<std::int64_t> const begins{0, 4, 6, 6, 9};
  for (std::int32_t layer = 0; layer < 5; ++layer)
    REQUIRE(observer.first_head(layer) == begins[static_cast<std::size_t>(layer)]);
  auto const size = static_cast<std::size_t>(observer.sums_layout().size());
  REQUIRE(observer.sums().size() == 14 * size);

  ha::ModelStatistics const statistics = observer.statistics();
  REQUIRE(statistics.heads.size() == 14);
  REQUIRE(statistics.model_info.num_layers == 5);
  REQUIRE(statistics.model_info.num_heads == 5);
  REQUIRE(statistics.model_info.layers == model);
  REQUIRE(statistics.heads[6].layer_idx == 3);
  REQUIRE(statistics.heads[9].layer_idx == 4);
  REQUIRE(statistics.heads[13].head_idx == 4);
  ha::RetentionStatistics const retention = observer.retention_statistics();
  REQUIRE(retention.heads.size() == 14);
  REQUIRE(retention.info.shape() == model);
  REQUIRE(retention.info.with_values);
  for (std::size_t head = 0; head < 14; ++head) {
    INFO("head " << head);
    REQUIRE(retention.heads[head].rows == 70);
    for (std::size_t cell = 0; cell < 6; ++cell) {
      REQUIRE(retention.heads[head].error_squared[cell] >= expected[head].retention.error_squared[cell]);
      bool const slides = (head >= 4 && head < 6) || head >= 9;
      if (slides && cell % 3 > 0) REQUIRE(retention.heads[head].error_squared[cell] == 0);
    }
  }
  // In parts, and as plain sums.
  first.merge(second);
  REQUIRE(first.sums() == observer.sums());
  ha::AttentionObserver copy(model, parameters);
  copy.add_sums(observer.sums());
  REQUIRE(copy.retention_statistics() == retention);
  auto sums = observer.sums();
  sums[9 * size + 3] = std::nan("");
  check_error<ha::ArgumentError>([&] { copy.add_sums(sums); }, {"sum", "a finite number", "nan", "layer 4, head 0"});
  ha::AttentionObserver const moved(std::move(copy));
  REQUIRE(moved.sums() == observer.sums());
  REQUIRE(copy.model().num_layers() == 0);
  REQUIRE(copy.sums().empty());
}

TEST_CASE("what an observer of layers that differ refuses", "[stats]") {
  ha::ModelShape const model = mixed_model();
  ha::AttentionObserver observer(model);
  auto const refused = [&](auto const& call, ha::ErrorDetail const& parts) {
    check_error<ha::ArgumentError>(call, parts);
    for (double const sum : observer.sums()) REQUIRE(sum == 0);
  };
  std::string const where = "AttentionObserver::observe, layer ";
  Problem const full = problem_of(model, 0, 40, 1);
  Problem const sliding = problem_of(model, 1, 40, 2);
  Problem const latent = problem_of(model, 3, 40, 3);
  refused([&] { observer.observe(2, full.layer(false), score); },
          {"layer", "one that attends", "one without attention", where + "2"});
  refused([&] { observer.observe(5, full.layer(false), score); }, {"layer", "[0, 5)", "5", "observe"});
  refused([&] { observer.observe(1, full.layer(false), score); }, {"query heads", "2", "4", where + "1"});
  Problem const wide(4, 4, 40, 16, 4);
  refused([&] { observer.observe(0, wide.layer(false), score); }, {"KV heads", "2", "4", where + "0"});
  Problem const narrow(4, 2, 40, 8, 4);
  refused([&] { observer.observe(0, narrow.layer(false), score); }, {"head_dim", "16", "8", where + "0"});
  refused([&] { observer.observe(3, latent.layer(true), score); }, {"value_dim", "16", "24", where + "3"});
  auto layer = sliding.layer(false);
  layer.window = 13;
  refused([&] { observer.observe(1, layer, score); }, {"window", "12, or 0", "13", where + "1"});
  refused([&] { observer.observe(1, sliding.layer(false), {.scale = 0.25F, .sliding_window = 8}); },
          {"window", "12, or 0", "8", where + "1"});
  layer.window = 12;
  refused([&] { observer.observe(1, layer, {.scale = 0.25F, .sliding_window = 8}); },
          {"sliding_window of the score", "12", "8", "AttentionObserver::observe"});
  refused([&] { observer.observe(0, full.layer(false), {.scale = 0.25F, .sliding_window = 8}); },
          {"window", "0: the layer sees all tokens", "8", where + "0"});
  layer.window = -1;
  refused([&] { observer.observe(1, layer, score); }, {"window", "", "-1", "AttentionObserver::observe"});
  float const wrong[] = {0, std::numeric_limits<float>::infinity()};
  layer = sliding.layer(false);
  layer.sinks = wrong;
  refused([&] { observer.observe(1, layer, score); }, {"learned sink", "finite", "inf", "query head 1"});
  refused([&] { (void)observer.head(2, 0); }, {"query head", "[0, 0)", "0", "head"});

  auto layers = std::vector<ha::LayerShape>(model.layers().begin(), model.layers().end());
  layers[4].num_query_heads = 4;
  refused([&] { observer.merge(ha::AttentionObserver(ha::ModelShape(layers))); },
          {"query heads of the other model", "5", "4", "AttentionObserver::merge, layer 4"});
  layers = std::vector<ha::LayerShape>(model.layers().begin(), model.layers().end());
  layers[1].window = layers[4].window = 16;
  refused([&] { observer.merge(ha::AttentionObserver(ha::ModelShape(layers))); },
          {"window of the other model", "12", "16", "layer 1"});
  refused(
      [&] {
        observer.merge(ha::AttentionObserver(ha::ModelConfig{5, 4, 2, 16}));
      },
      {"kind of the other model", "sliding", "attention", "layer 1"});
}

TEST_CASE("a model of equal layers is what its ModelConfig is", "[stats]") {
  Problem const problem(4, 2, 60, 8, 11);
  ha::AttentionObserver by_config(ha::ModelConfig{2, 4, 2, 8}, with_retention());
  ha::LayerShape const layer{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .value_dim = 8};
  ha::AttentionObserver by_shape(ha::ModelShape({layer, layer}), with_retention());
  for (ha::AttentionObserver* observer : {&by_config, &by_shape}) {
    // Of which a window is not known, so a score or layer may have one.
    observer->observe(0, problem.layer(true), {.scale = 0.25F, .sliding_window = 9});
    observer->observe(1, problem.layer(true), score);
  }
  REQUIRE(by_config.sums() == by_shape.sums());
  REQUIRE(by_config.statistics() == by_shape.statistics());
  REQUIRE(by_config.statistics().model_info.layers.num_layers() == 0);
  REQUIRE(by_config.retention_statistics().info.layers.num_layers() == 0);
  by_config.merge(by_shape);
}
