// Errors of formats of a real model's keys and values.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

#include <headaware/io/npy.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("a real model's keys and values err as formats have bits", "[stats]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = shared_data() / "smollm2-135m";
  auto const q = ha::load_npy(folder / "chunk1_q.npy");
  auto const k = ha::load_npy(folder / "chunk1_k.npy");
  auto const v = ha::load_npy(folder / "chunk1_v.npy");
  auto const parameters = with_formats({"int8", "packed6", "packed5", "packed4", "packed3", "fp8_e4m3", "q4_0"}, 16);
  std::vector<double> keys(parameters.formats.size());
  std::vector<double> values(parameters.formats.size());
  double outputs = 0;
  for (std::int64_t const layer : {2, 11, 20, 28}) {
    ha::LayerQkv<ha::float16, ha::StridedLayout, ha::StridedLayout> input;
    input.queries = q.as<ha::float16>().data();
    input.keys = k.as<ha::float16>().data();
    input.values = v.as<ha::float16>().data();
    input.query_layout = ha::strided_bhsd(30, 9, q.shape[2], 64);
    input.key_layout = ha::strided_bhsd(30, 3, q.shape[2], 64);
    input.value_layout = input.key_layout;
    input.num_query_heads = 9;
    input.num_kv_heads = 3;
    input.tokens = q.shape[2];
    input.head_dim = 64;
    input.sequence = layer;
    for (ha::HeadChunk const& head : ha::observe_chunk(input, {.scale = 0.125F}, parameters)) {
      auto const rows = static_cast<double>(head.retention.rows);
      auto const sampled = static_cast<double>(head.retention.rounding.rows);
      outputs += head.retention.output_squared / rows;
      for (std::size_t f = 0; f < keys.size(); ++f) {
        keys[f] += head.retention.rounding.key_error_squared[f] / sampled;
        values[f] += head.retention.rounding.value_error_squared[f] / sampled;
      }
    }
  }
  auto const grows = [&](std::vector<double> const& errors) {
    INFO("int8 " << errors[0] / outputs << ", 6 bits " << errors[1] / outputs << ", 5 " << errors[2] / outputs << ", 4 "
                 << errors[3] / outputs << ", 3 " << errors[4] / outputs << ", e4m3 " << errors[5] / outputs);
    for (std::size_t f = 1; f < 5; ++f) REQUIRE(errors[f] > 2 * errors[f - 1]);
    // As 1 / (2^bits - 1)².
    REQUIRE(errors[3] / errors[1] > 8);
    REQUIRE(errors[3] / errors[1] < 32);
    REQUIRE(errors[5] > errors[1]);
    REQUIRE(errors[5] < errors[3]);
    REQUIRE(errors[6] > errors[3]);
  };
  grows(keys);
  grows(values);
  for (std::size_t f = 0; f < keys.size(); ++f) {
    INFO(parameters.formats[f] << ": keys " << keys[f] / outputs << ", values " << values[f] / outputs);
    REQUIRE(keys[f] > 1.5 * values[f]);
  }
  REQUIRE(keys[3] < 0.05 * outputs);
  REQUIRE(values[3] < 0.02 * outputs);
}
