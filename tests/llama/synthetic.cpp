// Models whose layers differ, through llama.cpp: the engine's own tokens, the same losses by masks and by eviction,
// statistics and plans of the model's own shape, and what is refused.

#include "llama/models.hpp"
#include "llama/synthetic_models.hpp"
#include "support/errors.hpp"
#include "tools/analysis/analysis.hpp"
#include "tools/llama/attention_tap.hpp"
#include "tools/llama/cached_model.hpp"
#include "tools/llama/key_rotations.hpp"
#include "tools/llama/model_source.hpp"
#include "tools/llama/planning.hpp"
#include "tools/llama/policy_run.hpp"
#include "tools/llama/reference_attention.hpp"

#include <headaware/io/gguf.hpp>
#include <headaware/io/plan.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/io/retention_statistics.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;
using namespace llama_adapter;

namespace {

struct Kind {
  char const* name;
  void (*write)(std::filesystem::path const&);
  std::vector<ha::LayerShape> layers;
};

/// The kinds that are served, and the shapes that their files tell.
std::vector<Kind> served_kinds() {
  auto const layer = [](std::int32_t heads, std::int32_t kv_heads, std::int64_t channels, std::int64_t window) {
    return ha::LayerShape{.kind = window > 0 ? ha::LayerKind::sliding : ha::LayerKind::attention,
                          .num_query_heads = heads,
                          .num_kv_heads = kv_heads,
                          .head_dim = channels,
                          .value_dim = channels,
                          .window = window};
  };
  ha::LayerShape const none{.kind = ha::LayerKind::none};
  ha::LayerShape const latent{
      .kind = ha::LayerKind::latent, .num_query_heads = 4, .num_kv_heads = 1, .head_dim = 48, .value_dim = 32};
  constexpr std::int64_t w = synthetic_window;
  return {
      {"sliding",
       write_sliding_model,
       {layer(4, 1, 32, w), layer(4, 1, 32, 0), layer(4, 1, 32, w), layer(4, 1, 32, 0)}},
      {"hybrid",
       [](std::filesystem::path const& path) { write_hybrid_model(path, 0); },
       {none, layer(4, 2, 16, 0), none, layer(4, 1, 16, 0)}},
      {"sinks", write_sinks_model, {layer(4, 2, 32, w), layer(4, 2, 32, 0), layer(4, 2, 32, w), layer(4, 2, 32, 0)}},
      {"latent", write_latent_model, {latent, latent}},
      {"heads", write_heads_model, {layer(4, 1, 16, 0), layer(6, 3, 16, 0), layer(2, 2, 16, 0)}},
  };
}

double largest_difference(std::span<float const> a, std::span<float const> b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  return largest;
}

/// Reads a prompt in chunks and decodes, the model on a cache of its own that keeps everything beside the engine alone.
void check_own_tokens(Model const& model, std::vector<std::int32_t> const& prompt) {
  constexpr std::int32_t chunk = 40;
  constexpr std::int32_t decoded = 24;
  auto const total = static_cast<std::int32_t>(prompt.size()) + decoded;
  CachedModel<float> own(model, ha::PolicyTable(model.shape(), ha::Full{}), {}, total, {.chunk = chunk});
  Context engine(model, {.tokens = chunk, .cells = total, .all_logits = false});
  std::int32_t length = 0;
  double largest = 0;
  auto const read = [&](std::span<std::int32_t const> tokens) {
    own.read(tokens);
    engine.extend(tokens, length);
    length += static_cast<std::int32_t>(tokens.size());
    auto const expected = engine.logits(static_cast<std::int32_t>(tokens.size()) - 1);
    auto const got = own.logits(tokens.size() - 1);
    largest = std::max(largest, largest_difference(got, expected));
    REQUIRE(greedy_token(got) == greedy_token(expected));
    return greedy_token(got);
  };
  std::int32_t next = 0;
  for (std::size_t at = 0; at < prompt.size(); at += chunk) {
    next = read(std::span(prompt).subspan(at, std::min<std::size_t>(chunk, prompt.size() - at)));
  }
  for (std::int32_t i = 0; i < decoded; ++i) next = read(std::span(&next, 1));
  CAPTURE(largest);
  CHECK(largest < 1e-3);
  // Layers that slide hold no more than their windows.
  std::int64_t rows = 0;
  for (ha::LayerShape const& layer : model.shape().layers()) {
    rows += layer.num_kv_heads * layer.visible(own.cache().length());
  }
  auto const heads = static_cast<double>(ha::PolicyTable(model.shape()).heads().total());
  CHECK(std::abs(own.cache().mean_kept() - static_cast<double>(rows) / heads) < 1e-9);
}

/// A table in which every second head keeps sinks and a window, the others all or little.
ha::PolicyTable uneven_table(ha::ModelShape const& shape) {
  ha::PolicyTable table(shape, ha::SinkWindow{.sink = 2, .window = 12});
  std::int32_t head = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t i = 0; i < table.num_kv_heads(layer); ++i, ++head) {
      if (head % 3 == 1) table.set(layer, i, ha::Full{});
      if (head % 3 == 2) table.set(layer, i, ha::WindowOnly{.window = 5});
    }
  }
  return table;
}

}  // namespace

TEST_CASE("models whose layers differ: the shape, and the engine's own tokens on a full cache") {
  TemporaryFolder const folder;
  for (Kind const& kind : served_kinds()) {
    INFO(kind.name);
    kind.write(folder / "model.gguf");
    Model const model(folder / "model.gguf");
    CHECK(model.shape() == ha::ModelShape(kind.layers));
    CHECK(model.info().recurrent == (std::string(kind.name) == "hybrid"));
    check_own_tokens(model, model.tokenize(numbered_text(150), true));
  }
}

TEST_CASE("models whose layers differ: what the tap hands over gives the engine's own losses") {
  TemporaryFolder const folder;
  for (Kind const& kind : served_kinds()) {
    kind.write(folder / "model.gguf");
    Model const model(folder / "model.gguf");
    auto const tokens = model.tokenize(numbered_text(100), true);
    auto const count = static_cast<std::int32_t>(tokens.size());
    for (bool const flash : {false, true}) {
      INFO(kind.name << (flash ? ", flash" : ""));
      std::vector<std::int32_t> seen;
      AttentionTap tap(
          model,
          [&](TappedAttention const& layer) {
            seen.push_back(layer.layer);
            CHECK((layer.sinks != nullptr) == (std::string(kind.name) == "sinks"));
            std::fill_n(layer.output, layer.tokens * layer.num_query_heads * layer.value_dim, 0.0F);
            reference_attention(layer, layer.output);
          },
          TapMode::replace);
      Context alone(model, {.tokens = count, .flash_attention = flash});
      Context replaced(model, {.tokens = count, .flash_attention = flash, .observer = &tap});
      alone.evaluate(tokens);
      replaced.evaluate(tokens);
      std::vector<std::int32_t> expected;
      for (std::int32_t i = 0; i < model.shape().num_layers(); ++i) {
        if (model.shape().layer(i).has_cache()) expected.push_back(i);
      }
      CHECK(seen == expected);
      double largest = 0;
      auto const own = alone.losses();
      auto const other = replaced.losses();
      for (std::size_t i = 0; i < own.size(); ++i) largest = std::max(largest, std::abs(own[i] - other[i]));
      CHECK(largest < (flash ? 2e-2 : 1e-3));
    }
  }
}

TEST_CASE("models whose layers differ: evicting in chunks, token by token and masking come to the same") {
  TemporaryFolder const folder;
  for (Kind const& kind : served_kinds()) {
    INFO(kind.name);
    kind.write(folder / "model.gguf");
    Model const model(folder / "model.gguf");
    auto const tokens = model.tokenize(numbered_text(120), true);
    ha::PolicyTable const table = uneven_table(model.shape());
    auto const evicted = [&](std::int32_t chunk) {
      CachedModel<float> cached(model, table, {}, std::ssize(tokens), {.chunk = chunk, .all_logits = true});
      return losses_of(cached, tokens, static_cast<std::size_t>(chunk), [](std::int64_t) {});
    };
    PolicyRun masked(model, PolicyRunOptions{.tokens = static_cast<std::int32_t>(tokens.size()), .threads = 1});
    auto const expected = masked.losses(tokens, table);
    CHECK(std::abs(perplexity(expected) - perplexity(masked.losses(tokens, ha::PolicyTable(model.shape())))) > 1e-3);
    for (std::int32_t const chunk : {1, 50}) {
      auto const got = evicted(chunk);
      double largest = 0;
      for (std::size_t i = 0; i < got.size(); ++i) largest = std::max(largest, std::abs(got[i] - expected[i]));
      CAPTURE(chunk);
      CHECK(largest < 1e-3);
    }
  }
}

TEST_CASE("models whose layers differ: caches of encoded rows come to the same as masks over rounded rows") {
  TemporaryFolder const folder;
  for (Kind const& kind : served_kinds()) {
    INFO(kind.name);
    kind.write(folder / "model.gguf");
    Model const model(folder / "model.gguf");
    bool const latent = std::any_of(model.shape().layers().begin(), model.shape().layers().end(),
                                    [](ha::LayerShape const& layer) { return layer.kind == ha::LayerKind::latent; });
    if (latent) continue;  // whose rows have no formats here
    auto const tokens = model.tokenize(numbered_text(120), true);
    ha::PolicyTable const table = uneven_table(model.shape());
    ha::FormatTable formats(model.shape(), {ha::Packed<5>{}, ha::Packed<4>{}});
    bool rotated = false;
    for (std::int32_t layer = 0; layer < formats.num_layers(); ++layer) {
      if (formats.heads().count(layer) > 0) formats.set(layer, 0, {ha::Int8{}, ha::Fp16{}});
      rotated = rotated || formats.heads().count(layer) > 1;
    }
    PolicyRun masked(model, PolicyRunOptions{.tokens = static_cast<std::int32_t>(tokens.size()), .threads = 1});
    auto const expected = masked.losses(tokens, table, {.formats = formats});
    if (rotated) CHECK(masked.losses(tokens, table, {.formats = formats, .rotated = false}) != expected);
    // Where every token is exact nothing is rounded.
    auto const plain = masked.losses(tokens, table);
    auto const exact = masked.losses(tokens, table, {.formats = formats, .exact = {.sink = 0, .window = 1 << 20}});
    double rounded = 0;
    for (std::size_t i = 0; i < plain.size(); ++i) rounded = std::max(rounded, std::abs(exact[i] - plain[i]));
    CHECK(rounded < 1e-3);
    CHECK(std::abs(perplexity(expected) - perplexity(masked.losses(tokens, table))) > 1e-4);
    for (std::int32_t const chunk : {1, 50}) {
      CachedModel<float> cached(model, table, formats, std::ssize(tokens), {.chunk = chunk, .all_logits = true});
      auto const got = losses_of(cached, tokens, static_cast<std::size_t>(chunk), [](std::int64_t) {});
      double largest = 0;
      for (std::size_t i = 0; i < got.size(); ++i) largest = std::max(largest, std::abs(got[i] - expected[i]));
      CAPTURE(chunk);
      CHECK(largest < 1e-2);
    }
  }
}

TEST_CASE("models whose layers differ: statistics of the model's own shape") {
  TemporaryFolder const folder;
  ha::write_file(folder / "text.txt", numbered_text(400));
  for (Kind const& kind : served_kinds()) {
    INFO(kind.name);
    kind.write(folder / "model.gguf");
    auto const source = model_source({.model = folder / "model.gguf",
                                      .text = folder / "text.txt",
                                      .cache_dir = {},
                                      .chunk_size = 128,
                                      .max_tokens = 200});
    analysis::AnalysisOptions options{.output_dir = folder / kind.name, .parameters = {}};
    options.parameters.retention = ha::RetentionGrid::up_to(128);
    std::filesystem::create_directory(options.output_dir);
    auto const analyzed = analysis::analyze(*source, options);
    REQUIRE(analyzed.complete());
    CHECK(analyzed.observer.invalid_rows() == 0);
    analysis::write_results(analyzed, *source, options.output_dir);
    auto const retention = ha::load_retention_statistics(options.output_dir / "retention_statistics.json");
    REQUIRE(retention.info.shape() == source->model());
    CHECK(std::filesystem::exists(options.output_dir / "report.html"));
    std::size_t heads = 0;
    for (ha::LayerShape const& layer : kind.layers) {
      for (std::int32_t head = 0; head < layer.num_query_heads; ++head, ++heads) {
        // What a window as large as the layer's drops, the layer does not see.
        auto const& mass = retention.heads.at(heads).mass;
        auto const& windows = retention.info.grid.windows;
        auto const own = std::find(windows.begin(), windows.end(), synthetic_window) - windows.begin();
        CHECK((mass[static_cast<std::size_t>(own)] == 0) == (layer.window > 0));
      }
    }
    CHECK(retention.heads.size() == heads);
  }
}

TEST_CASE("models whose layers differ: plans of the model's own shape, which generate reads") {
  TemporaryFolder const folder;
  ha::write_file(folder / "text.txt", numbered_text(3000));
  for (Kind const& kind : served_kinds()) {
    INFO(kind.name);
    auto const path = folder / (std::string(kind.name) + ".gguf");
    kind.write(path);
    PlanningOptions options;
    options.model = path;
    options.text = folder / "text.txt";
    options.pieces = {.text = 1, .probe = 1, .held_out = 1, .held_out_probes = 1};
    options.calibration.output_dir = folder / kind.name;
    options.calibration.cut = {.sink = 2, .window = 8};
    options.calibration.grid = ha::RetentionGrid::up_to(256);
    options.guard.context = 256;
    options.guard.plan.floor = 8;
    std::filesystem::create_directory(options.calibration.output_dir);
    (void)plan_model(options, ha::Budget::share(0.5));
    Model const model(path);
    ha::PolicyPlan const plan = ha::load_plan(options.calibration.output_dir / "plan.json");
    CHECK(plan.shape() == model.shape());
    std::int64_t whole = 0;
    for (std::int32_t i = 0; i < model.shape().num_layers(); ++i) {
      ha::LayerShape const& layer = model.shape().layer(i);
      whole += layer.num_kv_heads * layer.visible(256);
      for (std::int32_t head = 0; head < layer.num_kv_heads; ++head) {
        auto const at = static_cast<std::size_t>(plan.table.heads().first(i) + head);
        CHECK(plan.heads[at].tokens <= layer.visible(256));
      }
    }
    CHECK(plan.budget_tokens <= whole / 2);
    auto const table = ha::load_policy_table(options.calibration.output_dir / "plan.json", model.shape());
    CHECK(table == plan.table);
    bool const latent = std::any_of(model.shape().layers().begin(), model.shape().layers().end(),
                                    [](ha::LayerShape const& layer) { return layer.kind == ha::LayerKind::latent; });
    CHECK(plan.by_bytes() == !latent);  // whose rows have 16 bits alone
    CHECK(plan.share_held() <= 0.5);
    CachedModel<ha::float16> cached(model, table, plan.formats, 256, {.chunk = 64});
    cached.read(model.tokenize(numbered_text(60), true));
    CHECK(cached.cache().length() == 61);
  }
}

TEST_CASE("recurrent layers beside sliding ones are observed, but not decoded on a cache of their own") {
  TemporaryFolder const folder;
  write_hybrid_model(folder / "model.gguf", synthetic_window);
  Model const model(folder / "model.gguf");
  CHECK(model.shape().layer(1).window == synthetic_window);
  auto const tokens = model.tokenize(numbered_text(60), true);
  PolicyRun run(model, PolicyRunOptions{.tokens = static_cast<std::int32_t>(tokens.size()), .threads = 1});
  ha::PolicyTable const full(model.shape());
  CHECK(std::isfinite(perplexity(run.losses(tokens, full))));
  CHECK(std::isfinite(perplexity(run.losses(tokens, uneven_table(model.shape())))));
  check_error<ha::Error>([&] { CachedModel<float>(model, full, {}, 64, {}); },
                         {"kind of layer 1", "attention or none", "sliding", "lfm2"});
}

TEST_CASE("layers that the adapter does not serve are refused by layer and kind") {
  ha::LayerShape const layer{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 16, .value_dim = 16};
  ha::LayerShape reader = layer;
  reader.cache_layer = 0;
  ModelInfo info;
  info.architecture = "gemma3n";
  check_error<ha::Error>(
      [&] {
        require_served(info, ha::ModelShape({layer, reader}));
      },
      {"kind of layer 1", "a cache of its own", "attention, reading the cache of layer 0", "gemma3n"});
  ha::LayerShape const none{.kind = ha::LayerKind::none};
  check_error<ha::Error>(
      [&] {
        require_served(info, ha::ModelShape({none, none}));
      },
      {"layers with keys and values", "at least one", "none", "gemma3n"});
}
