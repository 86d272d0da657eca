// Statistics of real models through the engine.

#include "llama/models.hpp"
#include "support/head_statistics.hpp"
#include "tools/llama/model_source.hpp"

#include <headaware/classify/classifier.hpp>
#include <headaware/io/gguf.hpp>
#include <headaware/io/head_statistics.hpp>
#include <headaware/stats/attention_observer.hpp>
#include <headaware/stats/output_metric.hpp>

#include <cstdint>
#include <cstdio>
#include <variant>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

ha::AttentionObserver observe(analysis::AttentionSource& source, ha::ObserverParameters const& parameters) {
  ha::AttentionObserver observer(source.model(), parameters);
  for (std::size_t text = 0; text < source.texts().size(); ++text) {
    source.run(text, [&](analysis::LayerAttention const& attention) {
      std::visit([&](auto const& qkv) { observer.observe(attention.layer, qkv, attention.score); }, attention.qkv);
    });
  }
  return observer;
}

}  // namespace

TEST_CASE("statistics through the engine agree with independent ones") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const expected = ha::load_statistics(shared_data() / "smollm2-135m" / "head_statistics.json");
  auto const path = model_path(smollm2);
  for (bool const exact : {true, false}) {
    auto const source = llama_adapter::model_source({.model = path,
                                                     .text = shared_data() / "text" / "wikitext-2-test.txt",
                                                     .cache_dir = path.parent_path() / "exact",
                                                     .max_tokens = 812,
                                                     .exact = exact});
    REQUIRE(source->texts() == std::vector<std::int64_t>{512, 300});
    auto const got = observe(*source, {}).statistics();
    double const difference = headaware_test::difference(got, expected);
    auto const classes = ha::classify(got);
    auto const expected_classes = ha::classify(expected);
    int others = 0;
    for (std::size_t i = 0; i < classes.size(); ++i) others += classes[i].head_type != expected_classes[i].head_type;
    std::printf("SmolLM2-135M, %s weights: largest difference of a statistic %.1e, %d of 270 heads of another class\n",
                exact ? "single-precision" : "quantised", difference, others);
    CHECK(difference < (exact ? 2e-3 : 0.1));
    CHECK(others <= (exact ? 0 : 10));
  }
}

TEST_CASE("a model with sliding windows is observed within them") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  std::string text;
  while (text.size() < 6000) text += "A window slides over the text and sees no further than its edge. ";
  TemporaryFolder const folder;
  ha::write_file(folder / "text.txt", text);
  llama_adapter::ModelSourceOptions options;
  options.model = model_path(gemma3);
  options.text = folder / "text.txt";
  options.chunk_size = 700;
  options.max_tokens = 699;
  auto const source = llama_adapter::model_source(options);
  auto const model = source->model();
  CHECK(model == ha::load_gguf_shape(model_path(gemma3)));
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid{.sinks = {0}, .windows = {256, 512}};
  parameters.query_stride = 4;
  auto const observer = observe(*source, parameters);
  CHECK(observer.invalid_rows() == 0);
  for (std::int32_t layer = 0; layer < 18; ++layer) {
    bool const global = layer == 5 || layer == 11 || layer == 17;
    for (std::int32_t head = 0; head < 4; ++head) {
      auto const& retention = observer.head(layer, head).retention;
      CHECK(retention.value_rows == 175);
      CHECK(retention.output_squared > 0);
      // What a window of 512 drops, a head that sees no further does not miss.
      CHECK((retention.mass[1] == 0) == !global);
    }
  }
  // W_O of every layer is there, and fits.
  for (std::int32_t layer : {0, 17}) {
    auto const projection = source->output_projection(layer);
    ha::OutputMetric const metric(projection.data(), static_cast<std::int64_t>(projection.size()) / (4 * 256), 4, 256);
    CHECK(projection.size() == 640 * 4 * 256);
    CHECK(metric.factors() != nullptr);
  }
}
