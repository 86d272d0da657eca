// Attention on the CPU against plain double-precision loops, over types, forms, groups and sizes.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/kept_rows.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

using namespace headaware_test;

namespace {

template <class O, class T, class View>
void check(HeldProblem<T> const& p, PlacedRows<T> const& placed, View const& view, Attended const& expected) {
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = p.first_positions.data();
  std::vector<O> output(expected.output.size(), ha::from_float<O>(77));
  std::vector<float> lse(expected.lse.size(), 77);
  ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
             ha::KeptCache{placed.keys.data(), placed.values.data(), view},
             ha::AttentionOutput{output.data(), p.output_layout(), lse.data()}, options);
  check_attended(output, lse, expected);
}

template <class T>
void check_views(HeldProblem<T> const& p, bool rows_are_tokens = true) {
  Attended const expected = naive_attention(p);
  for_each_view(p, rows_are_tokens, [&](std::string const& name, PlacedRows<T> const& placed, auto const& make) {
    INFO(name);
    HostUpload const upload;
    check<float>(p, placed, make(upload), expected);
  });
}

}  // namespace

TEMPLATE_TEST_CASE("attention over every form is that of plain loops", "[attention]", float, ha::float16,
                   ha::bfloat16) {
  // Nothing, one row, the edges of a vector, of a block, of a chunk.
  std::vector<std::int64_t> const rows{0, 1, 2, 15, 16, 17, 63, 64, 65, 511, 512, 513, 0, 1500, 3, 1025};
  for (std::int32_t const group : {1, 2, 3, 4, 7, 8, 12}) {
    for (std::int64_t const dim : {64, 20}) {
      INFO("group " << group << ", channels " << dim);
      ha::AttentionShape const shape{2, 8 * group, 8, 1, dim};
      check_views(HeldProblem<TestType>(shape, rows, 5 * static_cast<unsigned>(group)));
    }
  }
}

TEMPLATE_TEST_CASE("outputs of every type, other value channels, a scale and a soft cap", "[attention]", float,
                   ha::float16, ha::bfloat16) {
  HeldProblem<ha::bfloat16> p({1, 8, 2, 1, 96, 48}, {700, 40}, 3);
  HostUpload const upload;
  for (float const cap : {0.0F, 0.5F, 30.0F}) {
    for (float const scale : {0.0F, 0.3F}) {
      p.options = {.scale = scale, .soft_cap = cap};
      Attended const expected = naive_attention(p);
      for_each_view(p, true, [&](std::string const& name, PlacedRows<ha::bfloat16> const& placed, auto const& make) {
        INFO(name << ", scale " << scale << ", cap " << cap);
        check<TestType>(p, placed, make(upload), expected);
      });
    }
  }
}

TEST_CASE("a prefill chunk sees what came before each of its tokens", "[attention]") {
  // Chunks that begin at the sequence's start, within it, and after everything that is held.
  for (auto const& [tokens, window] : {std::array{2, 0}, std::array{9, 0}, std::array{70, 0}, std::array{2, 1},
                                       std::array{9, 3}, std::array{70, 100}, std::array{70, 5000}}) {
    HeldProblem<float> p({3, 4, 2, tokens, 32}, {tokens, tokens, 100, 700, 1200, 30}, 11);
    p.first_positions = {0, 700 - tokens, 1150};
    p.options.window = window;
    INFO(tokens << " tokens, window " << window);
    check_views(p);
    // Rows of a compressed cache are tokens with gaps.
    for (auto& segment : p.segments) {
      for (auto& position : segment.positions) position = position < 4 ? position : 3 * position;
    }
    check_views(p, false);
  }
}

TEMPLATE_TEST_CASE("rolling caches hold their slots in any order", "[attention]", float, ha::float16) {
  std::vector<ha::WindowRule> const heads{{4, 12}, {0, 16}, {ha::all_tokens, 0}, {0, 0}, {3, 0}, {1, 1}, {60, 700}};
  for (std::int64_t const tokens : {1, 3}) {
    ha::AttentionShape const shape{5, 14, 7, tokens, 48};
    RolledProblem<TestType> rolled(shape, heads, {0, 3, 16, 17, 1000}, 21);
    HostUpload const upload;
    auto const placed = rolled.placed();
    check<float>(rolled.problem, placed, rolled.view(upload), naive_attention(rolled.problem));
    rolled.problem.first_positions = {0, 1, 12, 14, 995};
    check<float>(rolled.problem, placed, rolled.view(upload), naive_attention(rolled.problem));
  }
}

TEST_CASE("the result does not depend on the number of threads", "[attention]") {
  HeldProblem<ha::float16> const p({1, 16, 4, 1, 128}, {5000, 20, 0, 1111}, 31);
  HostUpload const upload;
  for_each_view(p, true, [&](std::string const&, PlacedRows<ha::float16> const& placed, auto const& make) {
    std::vector<std::vector<float>> results;
    for (int const threads : {1, 2, 5}) {
#ifdef _OPENMP
      int const before = omp_get_max_threads();
      omp_set_num_threads(threads);
#endif
      (void)threads;
      std::vector<float> output(16 * 128);
      ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
                 ha::KeptCache{placed.keys.data(), placed.values.data(), make(upload)},
                 ha::AttentionOutput{output.data(), p.output_layout()});
      results.push_back(output);
#ifdef _OPENMP
      omp_set_num_threads(before);
#endif
    }
    CHECK(results[0] == results[1]);
    CHECK(results[0] == results[2]);
  });
}

TEST_CASE("a key that is no number shows in the output", "[attention]") {
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    for (std::size_t const row : {std::size_t{0}, std::size_t{70}, std::size_t{599}}) {
      HeldProblem<float> p({1, 1, 1, 1, 16}, {600}, 41);
      p.segments[0].keys[row * 16 + 3] = bad;
      HostUpload const upload;
      for_each_view(p, true, [&](std::string const&, PlacedRows<float> const& placed, auto const& make) {
        std::vector<float> output(16);
        ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
                   ha::KeptCache{placed.keys.data(), placed.values.data(), make(upload)},
                   ha::AttentionOutput{output.data(), p.output_layout()});
        CHECK(output[5] != output[5]);
      });
    }
  }
}

TEST_CASE("far logits keep their differences", "[attention]") {
  HeldProblem<float> p({1, 2, 1, 1, 32}, {300}, 51);
  p.options.scale = 40;
  check_views(p);
  p.options.scale = 1e-6F;
  check_views(p);
}

TEST_CASE("parts of a cache merge into the whole", "[attention]") {
  // Halves of each segment; some halves are empty, some segments altogether.
  HeldProblem<float> const whole({2, 6, 3, 2, 40}, {900, 1, 0, 64, 7, 300}, 61);
  HeldProblem<float> first = whole;
  HeldProblem<float> second = whole;
  for (std::size_t s = 0; s < whole.segments.size(); ++s) {
    auto const cut = at(s == 3 ? 64 : whole.rows(s) / 2);
    auto const d = at(whole.shape.head_dim);
    for (auto* half : {&first, &second}) {
      auto& segment = half->segments[s];
      auto const range = [&](auto& values, std::size_t width) {
        auto const middle = values.begin() + static_cast<std::ptrdiff_t>(cut * width);
        half == &first ? values.erase(middle, values.end()) : values.erase(values.begin(), middle);
      };
      range(segment.keys, d);
      range(segment.values, d);
      range(segment.positions, 1);
    }
  }
  Attended const expected = naive_attention(whole);
  Attended const a = naive_attention(first);
  Attended const b = naive_attention(second);
  std::vector<float> output(a.output.begin(), a.output.end());
  std::vector<float> lse(a.lse.begin(), a.lse.end());
  std::vector<float> const other(b.output.begin(), b.output.end());
  std::vector<float> other_lse(b.lse.begin(), b.lse.end());
  std::vector<float> other_copy = other;
  ha::merge_attention(whole.shape, ha::AttentionOutput{output.data(), whole.output_layout(), lse.data()},
                      ha::AttentionOutput{other_copy.data(), whole.output_layout(), other_lse.data()});
  check_attended(output, lse, expected);
  CHECK(other == other_copy);
}

TEST_CASE("attention without sequences or queries does nothing", "[attention]") {
  auto const layout = ha::strided_bhsd(0, 2, 1, 8);
  ha::attend({0, 2, 1, 1, 8}, ha::AttentionQueries<float, ha::StridedLayout>{nullptr, layout},
             ha::KeptCache<float, ha::PaddedView>{}, ha::AttentionOutput<float, ha::StridedLayout>{nullptr, layout});
  ha::merge_attention({0, 2, 1, 1, 8}, ha::AttentionOutput<float, ha::StridedLayout>{nullptr, layout},
                      ha::AttentionOutput<float, ha::StridedLayout>{nullptr, layout});
}

namespace {

/// A user's own view: one block a head, newest row first, no positions.
struct Reversed {
  std::int64_t held;
  struct Rows {
    std::int64_t held;
    std::int64_t first;
    [[nodiscard]] std::int64_t rows() const { return held; }
    [[nodiscard]] std::int64_t offset(std::int64_t row, std::int64_t channels) const {
      return (first + held - 1 - row) * channels;
    }
  };
  [[nodiscard]] Rows head(std::int64_t, std::int64_t kv_head) const { return {held, kv_head * held}; }
};

}  // namespace

TEST_CASE("a view of one's own needs no more than rows and offsets", "[attention]") {
  HeldProblem<float> const p({1, 4, 2, 1, 24}, {90, 90}, 71);
  PlacedRows<float> const placed(
      p, 180, [](std::size_t s, std::int64_t i) { return static_cast<std::int64_t>(s) * 90 + 89 - i; });
  Attended const expected = naive_attention(p);
  check<float>(p, placed, Reversed{90}, expected);
  std::vector<float> output(expected.output.size());
  std::int32_t const first = 5;
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
                   ha::KeptCache{placed.keys.data(), placed.values.data(), Reversed{90}},
                   ha::AttentionOutput{output.data(), p.output_layout()}, {.first_positions = &first});
      },
      {"first_positions", "without positions", "a pointer", "attend"});
  auto const with_window = [&](std::int64_t window) {
    ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
               ha::KeptCache{placed.keys.data(), placed.values.data(), Reversed{90}},
               ha::AttentionOutput{output.data(), p.output_layout()}, {.window = window});
  };
  check_error<ha::ArgumentError>([&] { with_window(9); }, {"first_positions", "a window of 9", "nullptr", "attend"});
  check_error<ha::ArgumentError>([&] { with_window(-1); }, {"window", ">= 0", "-1", "attend"});
}

TEST_CASE("a layer that holds nothing needs no buffers", "[attention]") {
  ha::RollingSlots const slots(ha::UniformTable(ha::Prune{}, 1, 2), 1, {});
  ha::RollingState state(1);
  state.start(slots.view(), 0, 5);
  std::vector<float> const queries(16, 1);
  std::vector<float> output(16, 7);
  std::vector<float> lse(2, 7);
  auto const layout = ha::strided_bhsd(1, 2, 1, 8);
  auto const call = [&](auto const& view) {
    ha::attend({1, 2, 2, 1, 8}, ha::AttentionQueries{queries.data(), layout},
               ha::KeptCache<float, std::remove_cvref_t<decltype(view)>>{nullptr, nullptr, view},
               ha::AttentionOutput{output.data(), layout, lse.data()});
  };
  call(ha::RollingView{slots.view(), 0, state.lengths().data()});
  CHECK(output == std::vector<float>(16, 0));
  CHECK(lse == std::vector<float>(2, -std::numeric_limits<float>::infinity()));
  std::vector<std::int32_t> const offsets{0, 0, 1};
  check_error<ha::ArgumentError>(
      [&] {
        call(ha::RaggedView{offsets.data(), 2});
      },
      {"keys", "a pointer", "nullptr", "attend"});
}

TEST_CASE("a part without keys does not count in a merge", "[attention]") {
  float const none = -std::numeric_limits<float>::infinity();
  auto const layout = ha::strided_bhsd(1, 2, 1, 8);
  for (bool const first_is_empty : {true, false}) {
    std::vector<float> empty(16, std::numeric_limits<float>::quiet_NaN());
    std::vector<float> full(16, 2);
    std::vector<float> empty_lse(2, none);
    std::vector<float> full_lse{0.5F, none};
    auto& into = first_is_empty ? empty : full;
    auto& into_lse = first_is_empty ? empty_lse : full_lse;
    ha::merge_attention({1, 2, 2, 1, 8}, ha::AttentionOutput{into.data(), layout, into_lse.data()},
                        first_is_empty ? ha::AttentionOutput{full.data(), layout, full_lse.data()}
                                       : ha::AttentionOutput{empty.data(), layout, empty_lse.data()});
    for (std::size_t c = 0; c < 16; ++c) CHECK(into[c] == (c < 8 ? 2.0F : 0.0F));  // the second head: both are empty
    CHECK(into_lse == std::vector<float>{0.5F, none});
  }
}
