// Statistics of a real model's heads, against those in double precision.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/head_statistics.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/io/head_statistics.hpp>
#include <headaware/io/npy.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("a real model's heads agree with their double-precision statistics", "[stats]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = shared_data() / "smollm2-135m";
  auto const expected = ha::load_statistics(folder / "head_statistics.json");
  ha::ModelConfig const model{30, 9, 3, 64};
  ha::AttentionObserver observer(model);
  ha::AttentionObserver plain(model);  // the formulas in double, every head of some layers
  std::vector<std::int64_t> const plain_layers{0, 7, 16, 29};
  for (std::string const chunk : {"chunk0", "chunk1"}) {
    auto const q = ha::load_npy(folder / (chunk + "_q.npy"));
    auto const k = ha::load_npy(folder / (chunk + "_k.npy"));
    std::int64_t const tokens = q.shape[2];
    for (std::int64_t layer = 0; layer < 30; ++layer) {
      // The layers lie as a batch.
      ha::LayerQkv<ha::float16, ha::StridedLayout, ha::StridedLayout> input;
      input.queries = q.as<ha::float16>().data();
      input.keys = k.as<ha::float16>().data();
      input.query_layout = ha::strided_bhsd(30, 9, tokens, 64);
      input.key_layout = ha::strided_bhsd(30, 3, tokens, 64);
      input.num_query_heads = 9;
      input.num_kv_heads = 3;
      input.tokens = tokens;
      input.head_dim = 64;
      input.sequence = layer;
      observer.observe(static_cast<std::int32_t>(layer), input, {.scale = 0.125F});
    }
    for (std::int64_t const layer : plain_layers) {
      Problem problem(9, 3, tokens, 64, 0);
      for (std::size_t i = 0; i < problem.queries.size(); ++i) {
        problem.queries[i] =
            ha::to_float(q.as<ha::float16>()[static_cast<std::size_t>(layer) * problem.queries.size() + i]);
      }
      for (std::size_t i = 0; i < problem.keys.size(); ++i) {
        problem.keys[i] = ha::to_float(k.as<ha::float16>()[static_cast<std::size_t>(layer) * problem.keys.size() + i]);
      }
      std::vector<double> sums(plain.sums().size());
      auto const size = static_cast<std::size_t>(plain.sums_layout().size());
      for (std::int32_t head = 0; head < 9; ++head) {
        ha::ObservedHead observed{ha::HeadSums(64), {}};
        observed.head.add(naive(problem, head, {.scale = 0.125F}, {}).chunk);
        plain.sums_layout().store(
            observed, std::span(sums).subspan(
                          (static_cast<std::size_t>(layer) * 9 + static_cast<std::size_t>(head)) * size, size));
      }
      plain.add_sums(sums);
    }
  }
  auto const got = observer.statistics();
  double worst = 0;
  for (std::size_t i = 0; i < got.heads.size(); ++i)
    worst = std::max(worst, difference(got.heads[i], expected.heads[i]));
  INFO("largest difference in single precision " << worst);
  CHECK(worst < 1e-5);
  auto const classes = ha::classify(got);
  auto const expected_classes = ha::classify(expected);
  for (std::size_t i = 0; i < classes.size(); ++i) CHECK(classes[i].head_type == expected_classes[i].head_type);

  double worst_plain = 0;
  for (std::int64_t const layer : plain_layers) {
    for (std::int32_t head = 0; head < 9; ++head) {
      auto const statistics = plain.head(static_cast<std::int32_t>(layer), head).head.statistics(0, 0);
      worst_plain =
          std::max(worst_plain, difference(statistics, expected.heads[static_cast<std::size_t>(layer * 9 + head)]));
    }
  }
  INFO("largest difference of the formulas in double " << worst_plain);
  CHECK(worst_plain < 1e-9);
}
