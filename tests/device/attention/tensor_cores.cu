// Attention over rows of 16 bits on tensor cores: types, shapes, joins, what queries do not see; of up to 256 channels
// and of more, which another kernel takes.

#include "support/device_attention.cuh"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace {

template <class O>
struct Results {
  std::vector<O> output;
  std::vector<float> lse;
};

/// Attends over ragged rows, with queries of type Q.
template <class Q, class O, class E>
Results<O> attend_ragged(HeldProblem<E> const& p, std::int64_t slack = 0) {
  Results<O> result;
  for_each_view(p, true, [&](std::string const&, PlacedRows<E> const& placed, auto const& make) {
    if constexpr (makes<Ragged, decltype(make)>) {
      DeviceUpload const upload;
      auto options = p.options;
      if (!p.first_positions.empty()) options.first_positions = upload(p.first_positions);
      if (!p.sinks.empty()) options.sinks = upload(p.sinks);
      std::vector<Q> queries;
      for (float const x : p.queries) queries.push_back(ha::from_float<Q>(x));
      auto const rows = at(std::int64_t{p.shape.num_sequences} * p.shape.num_query_heads * p.shape.query_tokens);
      DeviceVector<E> const d_keys(placed.keys);
      DeviceVector<E> const d_values(placed.values);
      DeviceVector<Q> const d_queries(queries);
      DeviceVector<O> const d_output(std::vector<O>(rows * at(p.shape.output_dim()), ha::from_float<O>(77)));
      DeviceVector<float> const d_lse(std::vector<float>(rows, 77));
      run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
                 ha::KeptCache{d_keys.data(), d_values.data(), make(upload)},
                 ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()}, {p.total_rows() + slack},
                 options);
      result = {d_output.host(), d_lse.host()};
    }
  });
  return result;
}

template <class Q, class O, class E>
void check(HeldProblem<E> p, double times = 1) {
  for (float& x : p.queries) x = ha::to_float(ha::from_float<Q>(x));
  auto const got = attend_ragged<Q, O>(p);
  check_attended(got.output, got.lse, naive_attention(p), times);
}

template <class Q, class E, class O>
struct Types {
  using Query = Q;
  using Element = E;
  using Output = O;
};

struct Sizes {
  std::int64_t keys;
  std::int64_t values;
  std::int32_t group;
};
constexpr Sizes some_sizes[] = {{128, 128, 1}, {128, 128, 8},  {64, 48, 3},   {80, 144, 12},
                                {256, 256, 4}, {240, 16, 20},  {16, 256, 16}, {512, 512, 1},
                                {512, 512, 4}, {288, 512, 40}, {512, 48, 16}};

}  // namespace

TEMPLATE_TEST_CASE("tensor cores: types of queries, rows and output", "[attention]",
                   (Types<ha::float16, ha::float16, ha::float16>), (Types<ha::bfloat16, ha::bfloat16, ha::bfloat16>),
                   (Types<float, ha::float16, float>), (Types<float, ha::bfloat16, float>),
                   (Types<ha::bfloat16, ha::float16, ha::bfloat16>), (Types<ha::float16, ha::bfloat16, ha::float16>)) {
  HEADAWARE_REQUIRE_DEVICE();
  using E = typename TestType::Element;
  for (Sizes const& sizes : some_sizes) {
    auto const& [keys, values, group] = sizes;
    INFO(keys << " and " << values << " channels, group " << group);
    HeldProblem<E> p({2, 2 * group, 2, 1, keys, values}, {300, 5, 0, 17}, 6);
    check<typename TestType::Query, typename TestType::Output>(p);
    if (keys != 64 && keys != 288) continue;
    p.options.soft_cap = 2;
    p.sinks.assign(at(2 * group), 0.5F);
    check<typename TestType::Query, typename TestType::Output>(p);
  }
}

TEST_CASE("tensor cores: one long head beside short ones, joined the same each time", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [channels, rows, growth] : {std::tuple{16, 20000, 3.0F}, std::tuple{272, 9000, 0.75F}}) {
    INFO(channels << " channels");
    // Keys that differ much in weight, so that a part left out or weighed wrongly shows.
    HeldProblem<ha::float16> p({2, 8, 2, 1, channels}, {64, rows, 3, 64}, 61);
    for (float& x : p.queries) x *= growth;
    auto const first = attend_ragged<float, float>(p);
    check_attended(first.output, first.lse, naive_attention(p));
    for (std::int64_t const slack : {0, 1000000}) {
      auto const again = attend_ragged<float, float>(p, slack);
      CHECK(again.output == first.output);
      CHECK(again.lse == first.lse);
    }
  }
}

TEMPLATE_TEST_CASE("attention of more segments than a block has threads, on tensor cores and without", "[attention]",
                   ha::float16, float) {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int32_t sequences = 131;
  std::vector<std::int64_t> rows;
  for (std::int32_t s = 0; s < 3 * sequences; ++s) rows.push_back(s == 200 ? 700 : s * 7 % 23);
  HeldProblem<TestType> const p({sequences, 6, 3, 1, 16}, rows, 9);
  check<float, float>(p);
}

TEST_CASE("tensor cores: logits and queries of any size", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [scale, channels] :
       {std::pair{1e-6F, 32}, std::pair{1e6F, 32}, std::pair{1e-6F, 512}, std::pair{1e6F, 512}}) {
    HeldProblem<ha::float16> p({1, 2, 1, 1, channels}, {700}, 71);
    for (float& x : p.queries) x *= scale;
    p.options.scale = 1 / scale;
    check<float, float>(p, channels > 256 ? 4 : 1);  // 512 products are summed
  }
  // Rising, and by far.
  for (std::size_t const channels : {16, 304}) {
    for (float const step : {0.5F, -0.5F, 40.0F}) {
      HeldProblem<ha::float16> p({1, 1, 1, 1, static_cast<std::int64_t>(channels)}, {400}, 72);
      std::fill(p.queries.begin(), p.queries.end(), 0.0F);
      p.queries[3] = 4;
      for (std::size_t i = 0; i < 400; ++i) {
        p.segments[0].keys[i * channels + 3] = ha::from_float<ha::float16>(step * float(i));
      }
      check<float, float>(p);
    }
  }
}

TEST_CASE("tensor cores: a key that is no number shows in the output, a value where it lies", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::infinity()}) {
    for (auto const& [row, channels] :
         {std::pair<std::size_t, std::size_t>{70, 32}, {599, 32}, {70, 288}, {599, 288}}) {
      ha::AttentionShape const shape{1, 4, 1, 1, static_cast<std::int64_t>(channels)};
      HeldProblem<ha::float16> p(shape, {600}, 41);
      p.segments[0].keys[row * channels + 3] = ha::from_float<ha::float16>(bad);
      for (float const x : attend_ragged<float, float>(p).output) CHECK(std::isnan(x));
      HeldProblem<ha::float16> q(shape, {600}, 41);
      auto const good = attend_ragged<float, float>(q).output;
      q.segments[0].values[row * channels + 3] = ha::from_float<ha::float16>(bad);
      auto const output = attend_ragged<float, float>(q).output;
      for (std::size_t i = 0; i < output.size(); ++i) {
        if (i % channels != 3) {
          CHECK(output[i] == good[i]);
        } else {
          CHECK(!std::isfinite(output[i]));
        }
      }
    }
  }
}

TEST_CASE("tensor cores: a chunk sees what came before each of its tokens", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [tokens, window, channels] :
       {std::array{2, 0, 32}, std::array{9, 0, 32}, std::array{40, 0, 32}, std::array{9, 1, 32}, std::array{9, 3, 32},
        std::array{40, 100, 32}, std::array{4, 1000, 32}, std::array{9, 0, 272}, std::array{9, 3, 272},
        std::array{40, 100, 272}}) {
    HeldProblem<ha::bfloat16> p({2, 4, 2, tokens, channels}, {tokens, tokens, 300, 700}, 11);
    p.first_positions = {0, 700 - tokens};
    p.options.window = window;
    INFO(tokens << " tokens, window " << window << ", " << channels << " channels");
    check<float, float>(p);
    p.first_positions = {-5, 691};  // some queries see nothing but their sinks
    p.sinks = {1, -3, 2, 20};
    check<float, float>(p);
  }
}

TEST_CASE("tensor cores: rows that a query does not see may hold anything", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (auto const& [tokens, channels] : {std::pair<std::size_t, std::size_t>{1, 16}, {3, 16}, {20, 16}, {20, 272}}) {
      std::size_t const bad_row = 71;
      // Float queries over wide rows are for plain units where shared memory is small: sums in another order.
      float const most = channels > 256 ? 1e-6F : 0;
      HeldProblem<ha::float16> p({1, 1, 1, static_cast<std::int64_t>(tokens), static_cast<std::int64_t>(channels)},
                                 {90}, 3);
      p.first_positions = {70};
      auto const good = attend_ragged<float, float>(p).output;
      for (bool const key : {true, false}) {
        auto& tensor = key ? p.segments[0].keys : p.segments[0].values;
        auto const before = std::exchange(tensor[bad_row * channels + 5], ha::from_float<ha::float16>(bad));
        auto const output = attend_ragged<float, float>(p).output;
        tensor[bad_row * channels + 5] = before;
        for (std::size_t i = 0; i < tokens; ++i) {
          INFO(bad << ", query at " << 70 + i << " of " << tokens);
          if (70 + i < bad_row) {
            CHECK(std::abs(output[i * channels + 5] - good[i * channels + 5]) <= most);
          } else {
            CHECK(!std::isfinite(output[i * channels + 5]));
          }
          if (!key) CHECK(std::abs(output[i * channels + 6] - good[i * channels + 6]) <= most);
        }
      }
    }
  }
}

TEST_CASE("tensor cores: a captured step reads the lengths of its replay, far below its capacity", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using E = ha::float16;
  HeldProblem<E> p({1, 4, 2, 1, 64}, {3000, 2000}, 51);
  auto const joined = [&](std::vector<E> HeldRows<E>::*of) {
    std::vector<E> result = p.segments[0].*of;
    result.insert(result.end(), (p.segments[1].*of).begin(), (p.segments[1].*of).end());
    return result;
  };
  auto const keys = joined(&HeldRows<E>::keys);
  auto const values = joined(&HeldRows<E>::values);
  DeviceVector<E> const d_keys(keys);
  DeviceVector<E> const d_values(values);
  DeviceVector<float> const d_queries(p.queries);
  DeviceVector<float> const d_output(std::vector<float>(4 * 64, 77));
  DeviceVector<float> const d_lse(std::vector<float>(4, 77));
  DeviceVector<std::int32_t> const d_offsets(std::vector<std::int32_t>{0, 0, 0});
  Stream const stream;
  std::size_t bytes = 0;
  auto const call = [&](void* temp) {
    return ha::device::attend(temp, bytes, p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
                              ha::KeptCache{d_keys.data(), d_values.data(), ha::RaggedView{d_offsets.data(), 2}},
                              ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()}, {1000000}, {},
                              stream);
  };
  REQUIRE_CUDA(call(nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  Graph const graph(stream, [&](cudaStream_t) { return call(temp.data()); });
  for (auto const& [first, end] : {std::pair{3000, 5000}, std::pair{0, 0}, std::pair{1, 4000}, std::pair{128, 256}}) {
    std::vector<std::int32_t> const offsets{0, first, end};
    REQUIRE_CUDA(cudaMemcpy(d_offsets.data(), offsets.data(), 12, cudaMemcpyHostToDevice));
    HeldProblem<E> now = p;
    for (std::size_t s = 0; s < 2; ++s) {
      auto const part = [&](std::vector<E> const& of) {
        return std::vector<E>(of.begin() + offsets[s] * 64, of.begin() + offsets[s + 1] * 64);
      };
      now.segments[s] = {part(keys), part(values), std::vector<std::int32_t>(at(offsets[s + 1] - offsets[s]))};
    }
    graph.replay(stream);
    check_attended(d_output.host(), d_lse.host(), naive_attention(now));
  }
}
