// FlashInfer's own kernels for decoding over pages of single KV heads, with the tables of `PagedHeads::indices`,
// against ours and against plain loops over what the policies keep.

#include "support/flashinfer_problem.cuh"

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

/// Calls `f` for both kernels, groups of 1, 4 and 8 and rows of 64 and 128 channels.
template <class F>
void for_each_kernel(F const& f) {
  for (FlashInferCores const cores : {FlashInferCores::cuda, FlashInferCores::tensor}) {
    for (std::int32_t const group : {1, 4, 8}) {
      for (std::int32_t const head_dim : {64, 128}) {
        INFO((cores == FlashInferCores::cuda ? "CUDA" : "tensor")
             << " cores, group " << group << ", " << head_dim << " channels");
        f(cores, FlashInferShape{group, head_dim, 16});
      }
    }
  }
}

/// Heads that keep all, nothing, sinks, a window of 40 tokens, and both.
ha::PolicyTable mixed_table() {
  ha::PolicyTable table(1, 6, ha::Full{});
  table.set(0, 1, ha::SinkWindow{.sink = 20, .window = 40});
  table.set(0, 2, ha::Prune{});
  table.set(0, 3, ha::WindowOnly{.window = 40});
  table.set(0, 4, ha::SinkWindow{.sink = 4, .window = 40});
  table.set(0, 5, ha::SinkWindow{.sink = 5, .window = 0});
  return table;
}

/// About nothing, the window, sinks with a window, and the edges of pages.
std::vector<std::int32_t> const lengths{0, 1, 40, 41, 60, 61, 64, 245};

}  // namespace

TEST_CASE("FlashInfer on our pages: heads that keep everything", "[flashinfer]") {
  HEADAWARE_REQUIRE_DEVICE();
  for_each_kernel([](FlashInferCores cores, FlashInferShape const& shape) {
    FlashInferProblem const problem(ha::PolicyTable(1, 2, ha::Full{}), {0, 1, 16, 17, 150}, shape, false);
    problem.check(problem.part(cores, problem.pages.indices(0), {}));
    problem.check(problem.part(cores, problem.pages.indices(0, ha::PagePart::sinks), {}));
  });
}

TEST_CASE("FlashInfer on our pages: windows alone, by its sliding window", "[flashinfer]") {
  HEADAWARE_REQUIRE_DEVICE();
  for_each_kernel([](FlashInferCores cores, FlashInferShape const& shape) {
    FlashInferProblem const problem(ha::PolicyTable(1, 2, ha::WindowOnly{.window = 40}), lengths, shape, false);
    problem.check(problem.part(cores, problem.pages.indices(0), {.window = 40}));
  });
}

TEST_CASE("FlashInfer on our pages: sinks and window merged, and heads that hold nothing", "[flashinfer]") {
  HEADAWARE_REQUIRE_DEVICE();
  for_each_kernel([](FlashInferCores cores, FlashInferShape const& shape) {
    FlashInferProblem const problem(mixed_table(), lengths, shape, shape.group == 4);
    problem.check(problem.merged(cores, 40));
  });
}

TEST_CASE("FlashInfer on our pages: any windows in one call, by a variant of its attention", "[flashinfer]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::PolicyTable table = mixed_table();
  table.set(0, 4, ha::SinkWindow{.sink = 4, .window = 100});
  table.set(0, 5, ha::SinkWindow{.sink = 33, .window = 1});
  for_each_kernel([&](FlashInferCores cores, FlashInferShape const& shape) {
    FlashInferProblem const problem(table, lengths, shape, shape.group == 4);
    problem.check(problem.in_one_call(cores));
  });
}

TEST_CASE("FlashInfer on our pages: pages of other sizes, and the largest group", "[flashinfer]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (FlashInferCores const cores : {FlashInferCores::cuda, FlashInferCores::tensor}) {
    for (std::int32_t const page_size : {1, 5, 64}) {
      INFO((cores == FlashInferCores::cuda ? "CUDA" : "tensor") << " cores, pages of " << page_size);
      std::int32_t const group = cores == FlashInferCores::cuda ? 8 : 16;
      FlashInferProblem const problem(mixed_table(), lengths, {group, 64, page_size}, page_size == 5);
      problem.check(problem.merged(cores, 40));
      problem.check(problem.in_one_call(cores));
    }
  }
}

TEST_CASE("FlashInfer on our pages: what is not compiled is refused, and no entries are no work", "[flashinfer]") {
  HEADAWARE_REQUIRE_DEVICE();
  Stream const stream;
  std::vector<std::int32_t> const one_page{0, 1};
  std::vector<std::int32_t> const none{0};
  auto const refused = [&](FlashInferCores cores, FlashInferShape const& shape, std::string const& message) {
    FlashInferDecoder decoder(cores, shape);
    try {
      decoder.plan(one_page, {}, stream);
      decoder.run(nullptr, {}, {}, stream);
      FAIL("not refused: " << message);
    } catch (std::exception const& error) {
      CHECK(std::string(error.what()).find(message) != std::string::npos);
    }
    decoder.plan(none, {}, stream);
    decoder.run(nullptr, {}, {}, stream);
  };
  refused(FlashInferCores::cuda, {3, 64, 16}, "group: expected 1, 4 or 8, got 3");
  refused(FlashInferCores::tensor, {17, 64, 16}, "group: expected at most 16 on tensor cores, got 17");
  refused(FlashInferCores::cuda, {1, 96, 16}, "head_dim: expected 64 or 128, got 96");
  refused(FlashInferCores::tensor, {1, 96, 16}, "head_dim: expected 64 or 128, got 96");
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
}

TEST_CASE("FlashInfer on our pages: entries divided among blocks", "[flashinfer]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::PolicyTable table(1, 2, ha::SinkWindow{.sink = 300, .window = 800});
  for (FlashInferCores const cores : {FlashInferCores::cuda, FlashInferCores::tensor}) {
    for (std::int32_t const group : {1, 4}) {
      for (std::int32_t const head_dim : {64, 128}) {
        INFO((cores == FlashInferCores::cuda ? "CUDA" : "tensor")
             << " cores, group " << group << ", " << head_dim << " channels");
        FlashInferProblem const problem(table, {1501, 5}, {group, head_dim, 16}, false);
        problem.check(problem.merged(cores, 800, true));
        problem.check(problem.in_one_call(cores, true));
      }
    }
  }
}
