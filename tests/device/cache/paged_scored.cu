// Pages of single heads with scored slots on the device: appends, forks and rollbacks leave the bits that the CPU's
// leave, and attention over them gives what the CPU's gives.

#include "support/device_attention.cuh"
#include "support/device_scored_pages.cuh"
#include "support/errors.hpp"

#include <headaware/attention/attend.cuh>
#include <headaware/last_error.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

using namespace headaware_test;

namespace {

/// Attention of the newest tokens on the device, against the CPU's over the rolling cache.
template <class T>
void check_attention(DeviceScoredPages<T>& p, std::int64_t tokens, std::int32_t group, bool masked) {
  auto const layout = ha::strided_bshd(p.batch, tokens, p.heads * group, p.key_dim);
  auto const output_layout = ha::strided_bshd(p.batch, tokens, p.heads * group, p.value_dim);
  auto const first = masked ? p.first_positions(tokens) : std::vector<std::int32_t>{};
  auto const lengths = p.pages.state().lengths();
  DeviceTables const tables(p.pages);
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(lengths.begin(), lengths.end())), d_first(first);
  DeviceVector<T> const d_queries(random_elements<T>(layout.required_span_size(), 7));
  for (std::int32_t layer = 0; layer < p.num_layers; ++layer) {
    auto const expected = p.attend(false, layer, tokens, group, first);
    DeviceVector<float> const d_output(std::vector<float>(expected.size(), 77));
    ha::ScoredPagesView const view(
        ha::HeadPagesView::of_chunk(tables.view, layer, d_lengths.data(), tokens, p.page_stride), p.d_records());
    run_attend(p.shape(tokens, group), ha::AttentionQueries{d_queries.data(), layout},
               ha::KeptCache<T, ha::ScoredPagesView>{p.d_pool.data(), p.d_pool.data() + p.value_offset(), view},
               ha::AttentionOutput{d_output.data(), output_layout}, {p.pages.slots().rows_total(layer)},
               {.first_positions = masked ? d_first.data() : nullptr});
    INFO("layer " << layer << ", group " << group << ", " << tokens << " tokens, masked " << masked);
    check_near(d_output.host(), expected, std::is_same_v<T, float> ? 2e-5F : 4e-3F);
  }
}

template <class T>
void walk(std::int32_t page_size, std::int32_t slack, std::int64_t key_dim, std::int64_t value_dim, int steps) {
  DeviceScoredPages<T> p(page_size, slack, key_dim, value_dim);
  walk_scored_pages(p, static_cast<unsigned>(900 + slack), steps, [&](std::int64_t) { CHECK(p.difference() == ""); });
}

template <class T>
void attend(std::int64_t key_dim, std::int64_t value_dim) {
  DeviceScoredPages<T> p(4, 0, key_dim, value_dim);
  p.append({110, 9, 40});
  p.fork(0, 1);
  for (int step = 0; step < 2; ++step) {
    p.append({1, 1, 1});
    for (std::int32_t const group : {1, 3}) {
      check_attention(p, 1, group, true);
      check_attention(p, 1, group, false);
    }
  }
  DeviceScoredPages<T> q(7, 39, key_dim, value_dim);
  q.append({110, 0, 70});
  q.append({40, 40, 40});
  check_attention(q, 40, 2, true);
  q.rollback(0, 3);
  q.rollback(1, 17);
  q.fork(0, 2);
  q.append({9, 9, 9});
  check_attention(q, 9, 1, true);
  check_attention(q, 9, 4, true);
}

}  // namespace

TEST_CASE("pages with scored slots on the device are the CPU's, bit for bit, four-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<float>(1, 0, 8, 5, 50);
  walk<float>(4, 3, 8, 8, 50);
}

TEST_CASE("pages with scored slots on the device are the CPU's, bit for bit, two-byte elements", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  walk<ha::float16>(4, 0, 64, 64, 50);
  walk<ha::float16>(16, 17, 16, 40, 50);
}

TEST_CASE("device attention: pages with scored slots, rows of floats", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  attend<float>(20, 12);
}
TEST_CASE("device attention: pages with scored slots, rows of 16 bits", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  attend<ha::float16>(64, 64);
}

TEST_CASE("a step of pages with scored slots, replayed from a graph", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  ScoredPages<float> p(4, 1, 8, 8);
  DeviceVector<float> const d_pool(p.pool);
  DeviceVector<std::byte> const d_scores(std::vector<std::byte>(p.scores.bytes().begin(), p.scores.bytes().end()));
  ha::PageStep longest = p.pages.append(std::vector<std::int32_t>{0, 0, 0});
  DeviceTables const tables(p.pages);
  longest.copies.resize(at(p.num_layers * p.pages.max_copies()));
  longest.max_count = 1;
  DeviceStep const d_step(longest);
  auto const empty = p.news(1);
  std::vector<DeviceVector<float>> d_tensors;
  for (auto const& tensor : empty.tensors) d_tensors.emplace_back(tensor);
  std::vector<ha::LayerKv<float const>> const d_layers{{d_tensors[0].data(), d_tensors[1].data()},
                                                       {d_tensors[2].data(), d_tensors[3].data()}};
  DeviceVector<float> const d_of(empty.scores);
  auto const of = ha::TokenScores::contiguous(d_of.data(), p.batch, p.heads, 1);
  Stream const stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(ha::device::append(tables.view, d_step.view, d_layers, empty.layout, p.storage(d_pool.data()),
                                  p.scores.view_at(d_scores.data()), of, 0, stream));
  REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
  REQUIRE_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  auto const upload = [](auto const* to, auto const& from) {
    REQUIRE_CUDA(cudaMemcpy(const_cast<std::remove_const_t<std::remove_pointer_t<decltype(to)>>*>(to), from.data(),
                            from.size() * sizeof(from[0]), cudaMemcpyHostToDevice));
  };
  for (int i = 0; i < 40; ++i) {
    if (i % 9 == 8) {  // the second sequence begins anew as the first
      p.fork(0, 1);
      REQUIRE_CUDA(
          cudaMemcpy(d_scores.data(), p.scores.bytes().data(), p.scores.bytes().size(), cudaMemcpyHostToDevice));
    }
    auto const news = p.append({1, i > 3 ? 1 : 0, i % 2});
    p.step.copies = p.pages.padded_copies(p.step);
    upload(d_step.view.d_copies, p.step.copies);
    upload(d_step.view.d_lengths, p.step.lengths);
    upload(d_step.view.d_high_water, p.step.high_water);
    upload(d_step.view.d_counts, p.step.counts);
    upload(tables.view.table, p.pages.table());
    for (std::size_t t = 0; t < 4; ++t) upload(d_tensors[t].data(), news.tensors[t]);
    upload(d_of.data(), news.scores);
    REQUIRE_CUDA(cudaGraphLaunch(executable, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    auto const got = d_pool.host();
    REQUIRE(std::memcmp(got.data(), p.pool.data(), got.size() * sizeof(float)) == 0);
    auto const bytes = d_scores.host();
    REQUIRE(std::equal(bytes.begin(), bytes.end(), p.scores.bytes().begin()));
  }
  CHECK(d_step.status.host()[0] == 0);
  REQUIRE_CUDA(cudaGraphExecDestroy(executable));
  REQUIRE_CUDA(cudaGraphDestroy(graph));
}

TEST_CASE("pages with scored slots on the device refuse what the CPU's refuse", "[cache]") {
  HEADAWARE_REQUIRE_DEVICE();
  DeviceScoredPages<float> p(4, 2, 8, 8);
  p.append({30, 2, 0});
  ha::PageStep const step = p.pages.append(std::vector<std::int32_t>{1, 0, 0});
  DeviceTables const tables(p.pages);
  DeviceStep const d_step(step);
  auto const news = p.news(1);
  DeviceVector<float> const d_tensor(news.tensors[0]);
  std::vector<ha::LayerKv<float const>> const layers(2, {d_tensor.data(), d_tensor.data()});
  auto const storage = p.storage(p.d_pool.data());
  auto const some = ha::TokenScores::contiguous(d_tensor.data(), 3, p.heads, 1);
  auto const refused = [](cudaError_t error, std::string const& what) {
    CHECK(error == cudaErrorInvalidValue);
    INFO(ha::last_error_message());
    CHECK(std::string(ha::last_error_message()).find(what) != std::string::npos);
  };
  refused(ha::device::append(tables.view, d_step.view, layers, news.layout, storage, 0, nullptr),
          "heads with scored tokens");
  refused(ha::device::append(tables.view, d_step.view, layers, news.layout, storage, p.d_records(), {}, 0, nullptr),
          "new tokens' scores");
  auto records = p.d_records();
  ++records.id;
  refused(ha::device::append(tables.view, d_step.view, layers, news.layout, storage, records, some, 0, nullptr),
          "records made for these slots");
  ScoredTables const before(p.pages);
  refused(ha::device::fork(p.pages, 0, 2, p.d_heads.data(), records, nullptr), "records made for these slots");
  refused(ha::device::fork(p.pages, 0, 2, nullptr, p.d_records(), nullptr), "heads");
  refused(ha::device::fork(p.pages, 0, 1, p.d_heads.data(), p.d_records(), nullptr), "sequence to fork to");
  CHECK(ScoredTables(p.pages) == before);
  p.check();
}
