// Attention of prefill chunks and drafts, more than 16 query rows of a KV head, over rows of 16 bits on tensor cores.

#include "support/device_attention.cuh"
#include "support/paged_chunk.hpp"

#include <headaware/attention/head_pages_view.hpp>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/policy/window_only.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
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

/// Attends with queries of the rows' type, which `p.queries` are rounded to already.
template <class O, class E, class Make>
Results<O> attend(HeldProblem<E> const& p, PlacedRows<E> const& placed, Make const& make, std::int64_t slack = 0) {
  DeviceUpload const upload;
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = upload(p.first_positions);
  if (!p.sinks.empty()) options.sinks = upload(p.sinks);
  std::vector<E> queries;
  for (float const x : p.queries) queries.push_back(ha::from_float<E>(x));
  auto const rows = at(std::int64_t{p.shape.num_sequences} * p.shape.num_query_heads * p.shape.query_tokens);
  DeviceVector<E> const d_keys(placed.keys);
  DeviceVector<E> const d_values(placed.values);
  DeviceVector<E> const d_queries(queries);
  DeviceVector<O> const d_output(std::vector<O>(rows * at(p.shape.output_dim()), ha::from_float<O>(77)));
  DeviceVector<float> const d_lse(std::vector<float>(rows, 77));
  run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
             ha::KeptCache{d_keys.data(), d_values.data(), make(upload)},
             ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()}, {p.total_rows() + slack}, options);
  return {d_output.host(), d_lse.host()};
}

template <class E>
void round_queries(HeldProblem<E>& p) {
  for (float& x : p.queries) x = ha::to_float(ha::from_float<E>(x));
}

/// Attends over ragged rows.
template <class O, class E>
Results<O> attend_ragged(HeldProblem<E> const& p, std::int64_t slack = 0) {
  std::vector<std::int32_t> offsets;
  for (std::int64_t const offset : p.row_offsets()) offsets.push_back(static_cast<std::int32_t>(offset));
  std::vector<std::int32_t> positions;
  for (auto const& held : p.segments) positions.insert(positions.end(), held.positions.begin(), held.positions.end());
  PlacedRows<E> const placed(p, offsets.back() + 1, [&](std::size_t s, std::int64_t i) { return offsets[s] + i; });
  return attend<O>(
      p, placed,
      [&](auto const& upload) {
        return ha::RaggedView{upload(offsets), p.shape.num_kv_heads, upload(positions)};
      },
      slack);
}

template <class O, class E>
void check(HeldProblem<E> p, double times = 1) {
  round_queries(p);
  auto const got = attend_ragged<O>(p);
  check_attended(got.output, got.lse, naive_attention(p), times);
}

template <class E, class O>
struct Types {
  using Element = E;
  using Output = O;
};

struct Sizes {
  std::int64_t keys;
  std::int64_t values;
  std::int32_t group;
  std::int64_t tokens;
};
// As many query rows as one warp has and one more, and as a block has, one less and one more.
constexpr Sizes some_sizes[] = {{128, 128, 1, 17}, {64, 64, 4, 16},  {128, 128, 8, 8}, {80, 80, 1, 63},
                                {96, 112, 8, 9},   {112, 16, 4, 12}, {16, 128, 3, 50}, {128, 48, 1, 200}};

}  // namespace

TEMPLATE_TEST_CASE("chunks: types, channels, and numbers of query rows", "[attention]",
                   (Types<ha::float16, ha::float16>), (Types<ha::bfloat16, ha::bfloat16>), (Types<ha::float16, float>),
                   (Types<ha::bfloat16, float>)) {
  HEADAWARE_REQUIRE_DEVICE();
  for (Sizes const& sizes : some_sizes) {
    auto const& [keys, values, group, tokens] = sizes;
    INFO(keys << " and " << values << " channels, group " << group << ", " << tokens << " tokens");
    HeldProblem<typename TestType::Element> p({2, 2 * group, 2, tokens, keys, values}, {300, 5, 0, 17}, 6);
    check<typename TestType::Output>(p);
    p.first_positions = {100, -7};
    check<typename TestType::Output>(p);
    if (keys != 64) continue;
    p.options.soft_cap = 2;
    p.options.window = 33;
    p.sinks.assign(at(2 * group), 0.5F);
    check<typename TestType::Output>(p);
  }
}

TEST_CASE("chunks: every form of a cache, with masks, windows, learned sinks and a soft cap", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using E = ha::float16;
  for (bool const windowed : {false, true}) {
    HeldProblem<E> p({2, 4, 2, 40, 32}, {40, 200, 300, 700}, 11);
    p.first_positions = {0, 660};
    if (windowed) {
      p.options = {.scale = 0.3F, .soft_cap = 3, .window = 70};
      p.first_positions = {-5, 691};  // some queries see nothing but their sinks
      p.sinks = {1, -3, 2, 20};
    }
    round_queries(p);
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const& name, PlacedRows<E> const& placed, auto const& make) {
      INFO(name << (windowed ? ", windows" : ""));
      auto const got = attend<E>(p, placed, make);
      check_attended(got.output, got.lse, expected);
    });
  }
}

TEST_CASE("chunks: a rolling cache's windows, rows that no query sees being no numbers", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using E = ha::float16;
  constexpr std::int64_t dim = 64;
  constexpr std::int32_t kv_heads = 4;
  ha::PolicyTable table(1, kv_heads, ha::Full{});
  table.set(0, 1, ha::SinkWindow{.sink = 20, .window = 30});
  table.set(0, 2, ha::WindowOnly{.window = 1});
  table.set(0, 3, ha::SinkWindow{.sink = 4, .window = 200});
  ha::RollingSlots const slots(table, 2, {.max_tokens = 600, .slack = 130});
  std::vector<std::int32_t> const lengths{573, 131};
  for (std::int64_t const tokens : {9, 64, 131}) {
    INFO(tokens << " tokens");
    auto const view = ha::RollingView::of_chunk(slots.view(), 0, lengths.data(), tokens);
    ha::AttentionShape const shape{2, 2 * kv_heads, kv_heads, tokens, dim};
    std::vector<E> const random = random_elements<E>(slots.rows_total() * dim, 5);
    std::vector<E> keys(random.size(), E{0xffff});
    std::vector<E> values(random.size(), E{0xffff});
    for (std::int64_t s = 0; s < 2; ++s) {
      for (std::int64_t h = 0; h < kv_heads; ++h) {
        auto const rows = view.head(s, h);
        for (std::int64_t i = 0; i < rows.rows(); ++i) {
          std::int64_t const from = rows.offset(i, dim);
          std::copy_n(random.begin() + from, dim, keys.begin() + from);
          std::copy_n(random.rbegin() + from, dim, values.begin() + from);
        }
      }
    }
    auto const layout = ha::strided_bshd(2, tokens, 2 * kv_heads, dim);
    std::vector<E> const queries = random_elements<E>(layout.required_span_size(), 8);
    std::vector<std::int32_t> first;
    for (std::int32_t const length : lengths) first.push_back(length - static_cast<std::int32_t>(tokens));
    std::vector<float> expected(queries.size());
    ha::attend(shape, ha::AttentionQueries{queries.data(), layout}, ha::KeptCache{keys.data(), values.data(), view},
               ha::AttentionOutput{expected.data(), layout}, {.first_positions = first.data()});
    DeviceUpload const upload;
    auto const* const bytes = slots.bytes().data();
    DeviceVector<std::byte> const d_heads(std::vector<std::byte>(bytes, bytes + slots.bytes().size()));
    DeviceVector<E> const d_output(std::vector<E>(queries.size()));
    run_attend(shape, ha::AttentionQueries{upload(queries), layout},
               ha::KeptCache{upload(keys), upload(values),
                             ha::RollingView::of_chunk(slots.view_at(d_heads.data()), 0, upload(lengths), tokens)},
               ha::AttentionOutput{d_output.data(), layout}, {slots.rows_total()}, {.first_positions = upload(first)});
    auto const output = d_output.host();
    float worst = 0;
    for (std::size_t i = 0; i < output.size(); ++i) {
      float const error = std::abs(ha::to_float(output[i]) - expected[i]);
      worst = std::isnan(error) ? 1 : std::max(worst, error / (1 + std::abs(expected[i])));
    }
    CHECK(worst < 1e-3F);
  }
}

TEST_CASE("chunks: pages of single heads", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using E = ha::float16;
  int chunks = 0;
  for_each_paged_chunk(7, [&](PagedChunk& chunk, std::int64_t tokens, std::vector<std::int32_t> const& first) {
    if (tokens < 10) return;  // 2 query rows each
    ++chunks;
    std::vector<E> pool;
    for (float const x : chunk.pool) pool.push_back(ha::from_float<E>(x));
    std::vector<E> queries;
    for (float const x : PagedChunk::queries(tokens)) queries.push_back(ha::from_float<E>(x));
    DeviceUpload const upload;
    auto const bytes = chunk.pages.head_bytes();
    DeviceVector<std::byte> const d_heads(std::vector<std::byte>(bytes.begin(), bytes.end()));
    auto const table = chunk.pages.table();
    auto const lengths = chunk.pages.state().lengths();
    auto const view =
        chunk.pages.view_at(d_heads.data(), upload(std::vector<std::int32_t>(table.begin(), table.end())));
    auto const* const d_lengths = upload(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
    E const* const d_pool = upload(pool);
    auto const layout = PagedChunk::layout(tokens);
    for (std::int32_t layer = 0; layer < PagedChunk::layers; ++layer) {
      std::vector<float> expected(queries.size());
      ha::attend(PagedChunk::shape(tokens), ha::AttentionQueries{queries.data(), layout},
                 ha::KeptCache{
                     pool.data(), pool.data() + chunk.value_offset(),
                     ha::HeadPagesView::of_chunk(chunk.pages.view(), layer, lengths.data(), tokens, chunk.page_stride)},
                 ha::AttentionOutput{expected.data(), layout}, {.first_positions = first.data()});
      DeviceVector<float> const d_output(std::vector<float>(queries.size(), 77));
      run_attend(PagedChunk::shape(tokens), ha::AttentionQueries{upload(queries), layout},
                 ha::KeptCache{d_pool, d_pool + chunk.value_offset(),
                               ha::HeadPagesView::of_chunk(view, layer, d_lengths, tokens, chunk.page_stride)},
                 ha::AttentionOutput{d_output.data(), layout}, {chunk.pages.slots().rows_total(layer)},
                 {.first_positions = upload(first)});
      auto const output = d_output.host();
      float worst = 0;
      for (std::size_t i = 0; i < output.size(); ++i) worst = std::max(worst, std::abs(output[i] - expected[i]));
      CHECK(worst < 5e-6F);
    }
  });
  CHECK(chunks == 2);
}

TEST_CASE("chunks: 1,024 tokens see what came before each of them", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  HeldProblem<ha::bfloat16> p({1, 2, 1, 1024, 16}, {1500}, 11);
  p.first_positions = {476};
  check<ha::bfloat16>(p);
}

TEST_CASE("chunks: long heads beside short ones, joined the same each time", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  // Keys that differ much in weight, so that a part left out or weighed wrongly shows. The first head is cut into more
  // than 16 parts, the second into 16 or fewer.
  for (std::int64_t const rows : {6000, 3000}) {
    HeldProblem<ha::float16> p({2, 4, 2, 20, 16}, {64, rows, 3, 1100}, 61);
    for (float& x : p.queries) x *= 3;
    p.sinks = {1, 2, -1, 12};
    round_queries(p);
    auto const first = attend_ragged<ha::float16>(p);
    check_attended(first.output, first.lse, naive_attention(p));
    for (std::int64_t const slack : {0, 1000000}) {
      auto const again = attend_ragged<ha::float16>(p, slack);
      CHECK(again.output == first.output);
      CHECK(again.lse == first.lse);
    }
  }
}

TEST_CASE("chunks: logits that rise by far, and queries of any size", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (float const step : {0.5F, -0.5F, 40.0F}) {
    HeldProblem<ha::float16> p({1, 17, 1, 1, 16}, {400}, 72);
    std::fill(p.queries.begin(), p.queries.end(), 0.0F);
    for (std::size_t q = 0; q < 17; ++q) p.queries[q * 16 + 3] = q % 2 == 0 ? 4 : -4;
    for (std::size_t i = 0; i < 400; ++i) p.segments[0].keys[i * 16 + 3] = ha::from_float<ha::float16>(step * float(i));
    check<ha::float16>(p);
  }
  for (float const scale : {1e-6F, 1e6F}) {
    HeldProblem<ha::bfloat16> p({1, 17, 1, 1, 32}, {700}, 71);
    for (float& x : p.queries) x *= scale;
    p.options.scale = 1 / scale;
    check<ha::bfloat16>(p);
  }
}

TEST_CASE("chunks: keys and values that are no numbers show where they are seen, and nowhere else", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using E = ha::float16;
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    for (std::int64_t const tokens : {20, 70}) {
      std::size_t const bad_row = 71;
      HeldProblem<E> p({1, 1, 1, tokens, 16}, {150}, 3);
      p.first_positions = {70};
      round_queries(p);
      auto const good = attend_ragged<E>(p).output;
      for (bool const key : {true, false}) {
        auto& tensor = key ? p.segments[0].keys : p.segments[0].values;
        auto const before = std::exchange(tensor[bad_row * 16 + 5], ha::from_float<E>(bad));
        auto const output = attend_ragged<E>(p).output;
        tensor[bad_row * 16 + 5] = before;
        for (std::size_t i = 0; i < at(tokens); ++i) {
          INFO(bad << ", query at " << 70 + i << " of " << tokens << (key ? ", key" : ", value"));
          if (70 + i < bad_row) {
            CHECK(output[i * 16 + 5] == good[i * 16 + 5]);
          } else {
            CHECK(!std::isfinite(ha::to_float(output[i * 16 + 5])));
          }
          if (!key) CHECK(output[i * 16 + 6] == good[i * 16 + 6]);
        }
      }
    }
  }
}

TEST_CASE("chunks: storage is of one size whatever queries are", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::AttentionShape const shape{2, 16, 2, 7, 64};
  auto const layout = ha::strided_bhsd(2, 16, 7, 64);
  auto const bytes_of = [&]<class T>(T const*) {
    std::size_t bytes = 0;
    ha::KeptCache<ha::float16, ha::RaggedView<std::int32_t>> const cache{nullptr, nullptr, {nullptr, 2}};
    REQUIRE_CUDA(ha::device::attend(
        nullptr, bytes, shape, ha::AttentionQueries<T, ha::StridedLayout>{nullptr, layout}, cache,
        ha::AttentionOutput<ha::float16, ha::StridedLayout>{nullptr, layout, nullptr}, {5000}, {}, nullptr));
    return bytes;
  };
  CHECK(bytes_of(static_cast<float const*>(nullptr)) == bytes_of(static_cast<ha::float16 const*>(nullptr)));
}

TEST_CASE("chunks: a captured call reads the lengths of its replay, far below its capacity", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using E = ha::float16;
  HeldProblem<E> p({1, 8, 2, 6, 64}, {3000, 2000}, 51);
  round_queries(p);
  auto const joined = [&](std::vector<E> HeldRows<E>::*of) {
    std::vector<E> result = p.segments[0].*of;
    result.insert(result.end(), (p.segments[1].*of).begin(), (p.segments[1].*of).end());
    return result;
  };
  auto const keys = joined(&HeldRows<E>::keys);
  auto const values = joined(&HeldRows<E>::values);
  std::vector<E> queries;
  for (float const x : p.queries) queries.push_back(ha::from_float<E>(x));
  DeviceUpload const upload;
  DeviceVector<E> const d_output(std::vector<E>(queries.size()));
  DeviceVector<float> const d_lse(std::vector<float>(48, 77));
  DeviceVector<std::int32_t> const d_offsets(std::vector<std::int32_t>{0, 0, 0});
  Stream const stream;
  std::size_t bytes = 0;
  auto const call = [&, d_keys = upload(keys), d_values = upload(values), d_queries = upload(queries)](void* temp) {
    return ha::device::attend(temp, bytes, p.shape, ha::AttentionQueries{d_queries, p.query_layout()},
                              ha::KeptCache{d_keys, d_values, ha::RaggedView{d_offsets.data(), 2}},
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
