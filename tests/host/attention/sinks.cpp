// Learned sinks: against plain loops, and against a further key that has their logit and no value.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/kept_rows.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/masked.hpp>
#include <headaware/policy/table.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

constexpr float none = -std::numeric_limits<float>::infinity();

/// Sinks from far below the logits to above them, and none.
std::vector<float> some_sinks(std::int32_t heads, float most = 30) {
  std::vector<float> result;
  for (std::int32_t h = 0; h < heads; ++h) {
    result.push_back(h % 5 == 4 ? none : std::fmod(static_cast<float>(7 * h), 2 * most) - most);
  }
  return result;
}

struct Results {
  std::vector<float> output;
  std::vector<float> lse;
};

template <class T, class View>
Results attend(HeldProblem<T> const& p, PlacedRows<T> const& placed, View const& view) {
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = p.first_positions.data();
  if (!p.sinks.empty()) options.sinks = p.sinks.data();
  Results result{
      std::vector<float>(at(p.output_layout().required_span_size()), 77),
      std::vector<float>(at(std::int64_t{p.shape.num_sequences} * p.shape.num_query_heads * p.shape.query_tokens), 77)};
  ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
             ha::KeptCache{placed.keys.data(), placed.values.data(), view},
             ha::AttentionOutput{result.output.data(), p.output_layout(), result.lse.data()}, options);
  return result;
}

template <class T>
void check_views(HeldProblem<T> const& p) {
  Attended const expected = naive_attention(p);
  for_each_view(p, true, [&](std::string const& name, PlacedRows<T> const& placed, auto const& make) {
    INFO(name);
    HostUpload const upload;
    Results const got = attend(p, placed, make(upload));
    check_attended(got.output, got.lse, expected);
  });
}

Results attend_ragged(HeldProblem<float> const& p) {
  Results result;
  for_each_view(p, false, [&](std::string const& name, PlacedRows<float> const& placed, auto const& make) {
    HostUpload const upload;
    if (name == "ragged") result = attend(p, placed, make(upload));
  });
  return result;
}

}  // namespace

TEMPLATE_TEST_CASE("learned sinks over every form, group and number of splits", "[attention]", float, ha::float16,
                   ha::bfloat16) {
  std::vector<std::int64_t> const rows{0, 1, 2, 17, 63, 65, 512, 513, 0, 1500, 3, 1025};
  for (std::int32_t const group : {1, 2, 3, 7, 8, 33}) {
    INFO("group " << group);
    HeldProblem<TestType> p({2, 6 * group, 6, 1, 20}, rows, 5 * static_cast<unsigned>(group));
    p.sinks = some_sinks(6 * group);
    check_views(p);
    p.options = {.scale = 0.3F, .soft_cap = 2};
    check_views(p);
  }
}

TEST_CASE("learned sinks of a prefill chunk", "[attention]") {
  for (std::int64_t const tokens : {2, 9, 70}) {
    HeldProblem<float> p({3, 4, 2, tokens, 32}, {tokens, tokens, 100, 700, 1200, 0}, 11);
    p.first_positions = {0, 700 - static_cast<std::int32_t>(tokens), 1150};
    p.sinks = {1, -3, none, 20};
    check_views(p);
    p.first_positions = {-5, 0, 0};  // some queries see nothing but their sinks
    check_views(p);
  }
}

TEST_CASE("a learned sink is a key of its logit without a value", "[attention]") {
  for (float const cap : {0.0F, 8.0F}) {
    for (std::int32_t const group : {1, 3, 8}) {
      HeldProblem<float> p({1, 3 * group, 3, 1, 24}, {700, 0, 40}, 17);
      p.options = {.scale = 0.25F, .soft_cap = cap};
      p.sinks = some_sinks(3 * group, 7);
      for (float& s : p.sinks) s = s == none ? 0.5F : s;
      // One more channel, of which queries hold what makes the sink's logit, and only the further key anything.
      HeldProblem<float> with_key({1, 3 * group, 3, 1, 25, 24}, {701, 1, 41}, 18);
      with_key.options = p.options;
      for (std::size_t h = 0; h < p.sinks.size(); ++h) {
        std::copy_n(&p.queries[h * 24], 24, &with_key.queries[h * 25]);
        float const logit = cap == 0 ? p.sinks[h] : cap * std::atanh(p.sinks[h] / cap);
        with_key.queries[h * 25 + 24] = logit / p.options.scale;
      }
      for (std::size_t s = 0; s < 3; ++s) {
        auto& to = with_key.segments[s];
        auto const rows = at(p.rows(s));
        std::fill(to.keys.begin(), to.keys.end(), 0.0F);
        std::fill(to.values.begin(), to.values.end(), 0.0F);
        for (std::size_t i = 0; i < rows; ++i) {
          std::copy_n(&p.segments[s].keys[i * 24], 24, &to.keys[i * 25]);
          std::copy_n(&p.segments[s].values[i * 24], 24, &to.values[i * 24]);
        }
        to.keys[rows * 25 + 24] = 1;
      }
      Results const a = attend_ragged(p);
      Results const b = attend_ragged(with_key);
      for (std::size_t i = 0; i < a.output.size(); ++i) REQUIRE(std::abs(a.output[i] - b.output[i]) < 3e-6F);
      for (std::size_t i = 0; i < a.lse.size(); ++i) REQUIRE(std::abs(a.lse[i] - b.lse[i]) < 1e-5F);
    }
  }
}

TEST_CASE("learned sinks: none, no numbers, and heads without rows", "[attention]") {
  HeldProblem<float> p({1, 4, 4, 1, 16}, {600, 600, 0, 0}, 3);
  Results const without = attend_ragged(p);
  p.sinks = {none, none, none, none};
  Results const of_none = attend_ragged(p);
  CHECK(of_none.output == without.output);
  CHECK(of_none.lse == without.lse);
  p.sinks = {3, none, 5, none};
  Results const some = attend_ragged(p);
  for (std::size_t c = 32; c < 64; ++c) CHECK(some.output[c] == 0);
  CHECK(some.lse[1] == without.lse[1]);
  CHECK(std::abs(some.lse[2] - 5) < 1e-6F);
  CHECK(some.lse[3] == none);
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    p.sinks = {bad, 0, bad, 0};
    Results const got = attend_ragged(p);
    for (std::size_t c = 0; c < 64; ++c) CHECK(std::isnan(got.output[c]) == (c / 16 % 2 == 0));
  }
}

TEST_CASE("a learned sink joins parts once: in one of them, or at their last merge", "[attention]") {
  HeldProblem<float> whole({1, 4, 2, 3, 20}, {600, 0}, 9);
  whole.sinks = {2, -1, 4, none};
  Attended const expected = naive_attention(whole);
  auto const part = [&](std::int64_t begin, std::int64_t end, bool with_sinks) {
    HeldProblem<float> p({1, 4, 2, 3, 20}, {end - begin, 0}, 9);
    p.queries = whole.queries;
    std::copy_n(&whole.segments[0].keys[at(begin * 20)], (end - begin) * 20, p.segments[0].keys.begin());
    std::copy_n(&whole.segments[0].values[at(begin * 20)], (end - begin) * 20, p.segments[0].values.begin());
    if (with_sinks) p.sinks = whole.sinks;
    return attend_ragged(p);
  };
  for (int const way : {0, 1, 2}) {  // the first part has it, the second part, the last merge
    Results a = part(0, 70, way == 0);
    Results b = part(70, 90, way == 1);
    Results c = part(90, 600, false);
    auto const output = [&](Results& of) {
      return ha::AttentionOutput{of.output.data(), whole.output_layout(), of.lse.data()};
    };
    ha::merge_attention(whole.shape, output(a), output(b));
    ha::merge_attention(whole.shape, output(a), output(c), way == 2 ? whole.sinks.data() : nullptr);
    check_attended(a.output, a.lse, expected);
  }
  // Parts that saw nothing, and sinks that are no numbers.
  Results a{std::vector<float>(240, 7), std::vector<float>(12, none)};
  Results b = a;
  std::vector<float> const bad{1, none, std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity()};
  ha::merge_attention(whole.shape, ha::AttentionOutput{a.output.data(), whole.output_layout(), a.lse.data()},
                      ha::AttentionOutput{b.output.data(), whole.output_layout(), b.lse.data()}, bad.data());
  for (std::int64_t t = 0; t < 3; ++t) {
    for (std::int64_t h = 0; h < 4; ++h) {
      float const x = a.output[at(whole.output_layout().offset(0, h, t, 5))];
      CHECK((h < 2 ? x == 0 : std::isnan(x)));
    }
    CHECK(a.lse[at(t)] == 1);
    CHECK(a.lse[at(3 + t)] == none);
  }
}

TEST_CASE("masked attention has learned sinks and the layer's window", "[attention]") {
  for (std::int64_t const tokens : {1, 65, 200}) {
    Problem const problem(8, 4, tokens, 20, static_cast<unsigned>(tokens));
    std::vector<float> const sinks = some_sinks(8, 3);
    ha::PolicyTable table(1, 4, ha::Full{});
    table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 30});
    table.set(0, 2, ha::WindowOnly{.window = 90});
    table.set(0, 3, ha::Prune{});
    for (std::int64_t const window : {0, 40}) {
      auto layer = problem.layer(true);
      layer.sinks = sinks.data();
      layer.window = window;
      auto const layout = ha::strided_bhsd(1, 8, tokens, 20);
      std::vector<float> output(at(8 * tokens * 20), 7);
      ha::attend_masked(layer, {}, table, 0, output.data(), layout);
      double worst = 0;
      for (std::int32_t h = 0; h < 8; ++h) {
        for (std::int64_t q = 0; q < tokens; ++q) {
          std::vector<double> sums(20);
          double z = std::exp(double(sinks[at(h)]));
          for (std::int64_t k = window > 0 ? std::max<std::int64_t>(0, q + 1 - window) : 0; k <= q; ++k) {
            if (!table.visit(0, h / 2, [&](auto const& policy) { return policy.keeps(k, q + 1); })) continue;
            double x = 0;
            for (std::int64_t c = 0; c < 20; ++c) {
              x += double(problem.queries[at((h * tokens + q) * 20 + c)]) *
                   double(problem.keys[at((h / 2 * tokens + k) * 20 + c)]);
            }
            x = std::exp(x / std::sqrt(20.0));
            z += x;
            for (std::int64_t c = 0; c < 20; ++c) {
              sums[at(c)] += x * double(problem.values[at((h / 2 * tokens + k) * 20 + c)]);
            }
          }
          for (std::int64_t c = 0; c < 20; ++c) {
            double const expected = z > 0 ? sums[at(c)] / z : 0;
            worst = std::max(worst, std::abs(expected - double(output[at(layout.offset(0, h, q, c))])));
          }
        }
      }
      INFO(tokens << " tokens, window " << window);
      CHECK(worst < 2e-5);
    }
    auto layer = problem.layer(true);
    layer.window = 40;
    std::vector<float> output(at(8 * tokens * 20));
    check_error<ha::ArgumentError>(
        [&] {
          ha::attend_masked(layer, {.sliding_window = 41}, table, 0, output.data(), ha::strided_bhsd(1, 8, tokens, 20));
        },
        {"sliding_window", "40", "41", "attend_masked"});
  }
}
