// Learned sinks on CUDA, against plain loops.

#include "support/device_attention.cuh"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

constexpr float none = -std::numeric_limits<float>::infinity();

struct Results {
  std::vector<float> output;
  std::vector<float> lse;
};

template <class T, class Make>
Results attend(HeldProblem<T> const& p, PlacedRows<T> const& placed, Make const& make) {
  DeviceUpload const upload;
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = upload(p.first_positions);
  if (!p.sinks.empty()) options.sinks = upload(p.sinks);
  auto const rows = std::int64_t{p.shape.num_sequences} * p.shape.num_query_heads * p.shape.query_tokens;
  DeviceVector<T> const d_keys(placed.keys);
  DeviceVector<T> const d_values(placed.values);
  DeviceVector<float> const d_queries(p.queries);
  DeviceVector<float> const d_output(std::vector<float>(at(p.output_layout().required_span_size()), 77));
  DeviceVector<float> const d_lse(std::vector<float>(at(rows), 77));
  run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
             ha::KeptCache{d_keys.data(), d_values.data(), make(upload)},
             ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()}, {p.total_rows()}, options);
  return {d_output.host(), d_lse.host()};
}

template <class T>
Results attend_ragged(HeldProblem<T> const& p) {
  Results result;
  for_each_view(p, true, [&](std::string const&, PlacedRows<T> const& placed, auto const& make) {
    if constexpr (makes<Ragged, decltype(make)>) result = attend(p, placed, make);
  });
  return result;
}

std::vector<float> some_sinks(std::int32_t heads) {
  std::vector<float> result;
  for (std::int32_t h = 0; h < heads; ++h) {
    result.push_back(h % 5 == 4 ? none : std::fmod(static_cast<float>(7 * h), 20.0F) - 10);
  }
  return result;
}

}  // namespace

TEST_CASE("device attention: learned sinks of every group, in one split and in several", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const group : {1, 3, 7, 12, 20}) {
    for (float const cap : {0.0F, 2.0F}) {
      INFO("group " << group << ", cap " << cap);
      HeldProblem<ha::float16> p({2, 3 * group, 3, 1, 20}, {0, 1, 300, 700, 64, 0}, 6);
      p.options = {.scale = 0.2F, .soft_cap = cap};
      p.sinks = some_sinks(3 * group);
      Attended const expected = naive_attention(p);
      for_each_view(p, true, [&](std::string const& name, PlacedRows<ha::float16> const& placed, auto const& make) {
        if (name != "ragged" && name != "paged, CSR, 5" && (name != "padded" || group != 3)) return;
        INFO(name);
        if constexpr (!makes<ha::RaggedView<std::int64_t>, decltype(make)>) {
          Results const got = attend(p, placed, make);
          check_attended(got.output, got.lse, expected);
        }
      });
    }
  }
}

TEST_CASE("device attention: learned sinks of a chunk, none, and no numbers", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  HeldProblem<float> p({2, 4, 2, 9, 32}, {9, 9, 1100, 700}, 11);
  p.first_positions = {-5, 691};  // some queries see nothing but their sinks
  p.sinks = {1, -3, none, 20};
  Results got = attend_ragged(p);
  check_attended(got.output, got.lse, naive_attention(p));
  p.sinks = {none, none, none, none};
  got = attend_ragged(p);
  p.sinks.clear();
  Results const without = attend_ragged(p);
  CHECK(got.output == without.output);
  CHECK(got.lse == without.lse);
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    p.sinks = {bad, 0, 0, bad};
    got = attend_ragged(p);
    for (std::size_t i = 0; i < got.output.size(); ++i) {  // [sequences, tokens, heads, channels]
      std::size_t const head = i / 32 % 4;
      REQUIRE(std::isnan(got.output[i]) == (head == 0 || head == 3));
    }
  }
}

TEST_CASE("device attention: learned sinks join parts at their merge", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  HeldProblem<float> whole({1, 4, 2, 1, 20}, {600, 0}, 9);
  whole.sinks = {2, -1, 4, none};
  HeldProblem<float> first({1, 4, 2, 1, 20}, {90, 0}, 9);
  HeldProblem<float> second({1, 4, 2, 1, 20}, {510, 0}, 9);
  first.queries = second.queries = whole.queries;
  for (auto* const part : {&first, &second}) {
    std::int64_t const begin = part == &first ? 0 : 90 * 20;
    auto const count = part->rows(0) * 20;
    std::copy_n(&whole.segments[0].keys[at(begin)], count, part->segments[0].keys.begin());
    std::copy_n(&whole.segments[0].values[at(begin)], count, part->segments[0].values.begin());
  }
  Results const a = attend_ragged(first);
  Results const b = attend_ragged(second);
  DeviceVector<float> const d_a(a.output);
  DeviceVector<float> const d_b(b.output);
  DeviceVector<float> const d_a_lse(a.lse);
  DeviceVector<float> const d_b_lse(b.lse);
  DeviceVector<float> const d_sinks(whole.sinks);
  Stream const stream;
  REQUIRE_CUDA(ha::device::merge_attention(
      whole.shape, ha::AttentionOutput{d_a.data(), whole.output_layout(), d_a_lse.data()},
      ha::AttentionOutput{d_b.data(), whole.output_layout(), d_b_lse.data()}, d_sinks.data(), stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  check_attended(d_a.host(), d_a_lse.host(), naive_attention(whole));
}
