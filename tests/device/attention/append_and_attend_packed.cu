// A step's new tokens encoded into a rolling cache and attended to in one launch, beside two calls.

#include "support/device_attention.cuh"
#include "support/differences.hpp"
#include "support/format_rows.hpp"

#include <headaware/attention/append_and_attend_packed.cuh>
#include <headaware/cache/packed_rolling.cuh>
#include <headaware/format/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int32_t batch = 2;
constexpr std::int32_t layers = 2;

struct PackedCase {
  std::int64_t key_dim = 64;
  std::int64_t value_dim = 64;
  std::int32_t group = 2;
  std::int32_t tokens = 1;  ///< of a step
  std::int32_t steps = 20;
  std::int32_t prompt = 0;  ///< tokens before the first step
  bool counted = false;     ///< sequences differ in new tokens
};

/// A cache with a head of each format, twice: for one call a layer, and for two.
template <class T>
struct Model {
  PackedCase c;
  std::vector<ha::AnyFormat<>> all = all_formats();
  std::int32_t heads = static_cast<std::int32_t>(all.size());
  ha::FormatTable formats{layers, heads};
  ha::RollingSlots slots;
  DeviceVector<std::byte> d_heads;
  ha::PackedDestination<ha::RollingSlotsView> plan;
  DeviceVector<ha::PackedSegment<>> d_segments;
  struct Cache {
    DeviceVector<ha::RowUnit> rows;
    DeviceVector<std::int32_t> counters{std::vector<std::int32_t>(ha::RollingStateView::bytes(batch) / 4, 0)};
    DeviceVector<T> output;
    DeviceVector<float> lse;

    explicit Cache(Model const& of)
        : rows(std::vector<ha::RowUnit>(at(of.plan.total_units()), ha::RowUnit{{0xabababab, 1, 2, 3}})),
          output(std::vector<T>(at(of.output_layout().required_span_size()), ha::from_float<T>(77))),
          lse(std::vector<float>(at(std::int64_t{batch} * of.heads * of.c.group * of.c.tokens), 77)) {}
    [[nodiscard]] ha::RollingStateView state() const { return ha::RollingStateView::at(counters.data(), batch); }
  };
  Cache one, two;
  DeviceVector<T> keys, values, queries;

  explicit Model(PackedCase const& of)
      : c(of),
        slots(make_slots()),
        d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())),
        plan(ha::packed_rolling(slots, slots.view_at(d_heads.data()), formats, c.key_dim, c.value_dim)),
        d_segments(plan.segments),
        one(*this),
        two(*this),
        keys(std::vector<T>(at(layout(c.tokens).keys.required_span_size()))),
        values(std::vector<T>(at(layout(c.tokens).values.required_span_size()))),
        queries(std::vector<T>(at(query_layout().required_span_size()))) {}
  ha::RollingSlots make_slots() {
    ha::PolicyTable table(layers, heads, ha::SinkWindow{.sink = 2, .window = 27});
    table.set(0, 3, ha::Full{});
    table.set(1, 5, ha::Prune{});
    table.set(1, 6, ha::SinkWindow{.sink = 6, .window = 0});
    for (std::int32_t h = 0; h < heads; ++h) {
      formats.set(0, h, {all[at(h)], all[at((h + 3) % heads)]});
      formats.set(1, h, {all[at((h + 6) % heads)], all[at(h)]});
    }
    return {table, batch, {.max_tokens = 300, .slack = 4}};
  }
  [[nodiscard]] ha::RollingSlotsView view() const { return slots.view_at(d_heads.data()); }
  [[nodiscard]] auto layout(std::int64_t tokens) const {
    return ha::KvLayouts{ha::strided_bshd(batch, tokens, heads, c.key_dim),
                         ha::strided_bshd(batch, tokens, heads, c.value_dim)};
  }
  [[nodiscard]] auto query_layout() const { return ha::strided_bshd(batch, c.tokens, heads * c.group, c.key_dim); }
  [[nodiscard]] auto output_layout() const { return ha::strided_bshd(batch, c.tokens, heads * c.group, c.value_dim); }
  [[nodiscard]] ha::AttentionShape shape() const {
    return {batch, heads * c.group, heads, c.tokens, c.key_dim, c.value_dim};
  }
  [[nodiscard]] ha::LayerKv<T const> tokens() const { return {keys.data(), values.data()}; }
  [[nodiscard]] auto output(Cache const& cache) const {
    return ha::AttentionOutput{cache.output.data(), output_layout(), cache.lse.data()};
  }
  void fill(unsigned seed) const {
    for (auto const* each : {&keys, &values, &queries}) {
      auto const random = random_elements<T>(std::ssize(each->host()), ++seed);
      REQUIRE_CUDA(cudaMemcpy(each->data(), random.data(), random.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
  }
  void prefill() const {
    auto const of = layout(c.prompt);
    DeviceVector<T> const d_keys(random_elements<T>(of.keys.required_span_size(), 3));
    DeviceVector<T> const d_values(random_elements<T>(of.values.required_span_size(), 4));
    DeviceVector<std::int32_t> const counts(std::vector<std::int32_t>{c.prompt, c.prompt / 2});
    std::vector<ha::LayerKv<T const>> const all_layers(layers, {d_keys.data(), d_values.data()});
    for (Cache const* cache : {&one, &two}) {
      REQUIRE_CUDA(ha::device::append(view(), cache->state(), all_layers, of, counts.data(), c.prompt,
                                      plan.with_buffer(cache->rows.data()), d_segments.data(), {}, nullptr));
    }
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }

  /// A layer's step in one call. @param bytes  the least, and then those there are
  cudaError_t fused(std::int32_t layer, void* temp, std::size_t& bytes, std::int32_t const* d_counts,
                    cudaStream_t stream) const {
    ha::RollingStep const step{view(),
                               one.state(),
                               tokens(),
                               layout(c.tokens),
                               ha::AppendOptions{.first_layer = layer, .advance = layer + 1 == layers},
                               d_counts};
    return ha::device::append_and_attend(temp, bytes, shape(), ha::AttentionQueries{queries.data(), query_layout()},
                                         step, plan.with_buffer(one.rows.data()), d_segments.data(), output(one), {},
                                         stream);
  }
  /// The same in two calls. @param before  device, lengths
  void separate(std::int32_t layer, std::int32_t const* d_counts, std::int32_t const* before) const {
    auto const cache = plan.with_buffer(two.rows.data());
    REQUIRE_CUDA(ha::device::append(view(), two.state(), std::vector{tokens()}, layout(c.tokens), d_counts, c.tokens,
                                    cache, d_segments.data(), {.first_layer = layer, .advance = false}, nullptr));
    std::vector<std::int32_t> after(batch);
    REQUIRE_CUDA(cudaMemcpy(after.data(), before, batch * 4, cudaMemcpyDeviceToHost));
    std::vector<std::int32_t> counts(batch, c.tokens);
    if (d_counts != nullptr) REQUIRE_CUDA(cudaMemcpy(counts.data(), d_counts, batch * 4, cudaMemcpyDeviceToHost));
    for (std::size_t b = 0; b < batch; ++b) after[b] += counts[b];
    DeviceVector<std::int32_t> const lengths(after);
    ha::AttentionOptions options;
    if (c.tokens > 1) options.first_positions = before;
    run_attend(shape(), ha::AttentionQueries{queries.data(), query_layout()},
               ha::PackedCache<ha::DefaultFormats, ha::RollingView>{
                   cache.layers[at(layer)], d_segments.data() + plan.first_segments[at(layer)],
                   ha::RollingView::of_chunk(view(), layer, lengths.data(), c.tokens, d_counts)},
               output(two), {plan.capacities[at(layer)].rows}, options);
    if (layer + 1 < layers) return;
    DeviceVector<std::int32_t> const d_all(counts);
    REQUIRE_CUDA(ha::device::advance(view(), two.state(), d_all.data(), nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
};

template <class T>
void check_packed(PackedCase const& c, bool graph = false) {
  INFO(c.key_dim << " and " << c.value_dim << " channels, group " << c.group << ", " << c.tokens << " tokens");
  Model<T> const model(c);
  if (c.prompt > 0) model.prefill();
  std::vector<std::int32_t> lengths{c.prompt, c.prompt / 2};
  std::size_t bytes = 0;
  for (std::int32_t l = 0; l < layers; ++l) {
    std::size_t needed = 0;
    REQUIRE_CUDA(model.fused(l, nullptr, needed, nullptr, nullptr));
    bytes = std::max(bytes, needed);
  }
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  DeviceVector<std::int32_t> const d_counts(std::vector<std::int32_t>(batch, 0));
  std::int32_t const* const given = c.counted ? d_counts.data() : nullptr;
  Stream const stream;
  std::vector<std::optional<Graph>> captured(layers);
  for (std::int32_t step = 0; step < c.steps; ++step) {
    std::vector<std::int32_t> counts(batch, c.tokens);
    if (c.counted) counts = {step % (c.tokens + 1), (step + 1) % (c.tokens + 1)};
    REQUIRE_CUDA(cudaMemcpy(d_counts.data(), counts.data(), batch * 4, cudaMemcpyHostToDevice));
    DeviceVector<std::int32_t> const before(lengths);
    for (std::int32_t l = 0; l < layers; ++l) {
      INFO("step " << step << ", layer " << l);
      model.fill(static_cast<unsigned>(100 * step + 10 * l));
      auto const call = [&](cudaStream_t on) { return model.fused(l, temp.data(), bytes, given, on); };
      if (graph) {
        if (!captured[at(l)]) captured[at(l)].emplace(stream, call);
        captured[at(l)]->replay(stream);
      } else {
        REQUIRE_CUDA(call(nullptr));
        REQUIRE_CUDA(cudaDeviceSynchronize());
      }
      model.separate(l, given, before.data());
      auto const rows = model.one.rows.host();
      REQUIRE(std::equal(rows.begin(), rows.end(), model.two.rows.host().begin()));
      REQUIRE(first_difference(model.one.output.host(), model.two.output.host()) == "");
      REQUIRE(first_difference(model.one.lse.host(), model.two.lse.host()) == "");
    }
    REQUIRE(first_difference(model.one.counters.host(), model.two.counters.host()) == "");
    for (std::size_t b = 0; b < batch; ++b) lengths[b] += counts[b];
    REQUIRE(model.one.counters.host()[0] == lengths[0]);
  }
}

}  // namespace

TEST_CASE("append and attend: new tokens are encoded inside, as two calls do, to the bit", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_packed<ha::float16>({.steps = 34});
  check_packed<ha::float16>({.key_dim = 128, .value_dim = 48, .group = 1, .steps = 2, .prompt = 250});
  check_packed<ha::float16>({.steps = 6, .prompt = 20, .counted = true});
  // Several tiles of queries, of which one writes the new rows.
  check_packed<ha::float16>({.key_dim = 192, .value_dim = 64, .group = 12, .steps = 2, .prompt = 100});
}

TEST_CASE("append and attend: drafts of several tokens are encoded inside", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_packed<ha::float16>({.key_dim = 64, .value_dim = 32, .tokens = 3, .steps = 5, .counted = true});
  check_packed<ha::float16>({.key_dim = 32, .value_dim = 64, .group = 8, .tokens = 5, .steps = 3, .prompt = 60});
}

TEST_CASE("append and attend: a captured step that encodes is replayed with fixed arguments", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_packed<ha::float16>({.steps = 8, .prompt = 30, .counted = true}, true);
}

TEST_CASE("append and attend: refuses what encoded rows take two calls for", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using T = ha::float16;
  Model<T> const model({.prompt = 10});
  model.prefill();
  std::size_t bytes = 0;
  auto const call = [&](auto const& change) {
    ha::RollingStep step{model.view(), model.one.state(), model.tokens(), model.layout(1)};
    auto shape = model.shape();
    auto cache = model.plan.with_buffer(model.one.rows.data());
    auto const* segments = static_cast<ha::PackedSegment<> const*>(model.d_segments.data());
    change(step, shape, cache, segments);
    DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes + 1, std::byte{0}));
    auto const error = ha::device::append_and_attend(bytes == 0 ? nullptr : temp.data(), bytes, shape,
                                                     ha::AttentionQueries{model.queries.data(), model.query_layout()},
                                                     step, cache, segments, model.output(model.one), {}, nullptr);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    return error;
  };
  auto const refused = cudaErrorInvalidValue;
  REQUIRE_CUDA(call([](auto&, auto&, auto&, auto&) {}));
  REQUIRE(bytes > 0);
  REQUIRE(call([](auto& step, auto&, auto&, auto&) { step.tokens.keys += 1; }) == refused);
  CHECK(std::string(ha::last_error_message()).find("new keys") != std::string::npos);
  REQUIRE(call([](auto& step, auto&, auto&, auto&) { step.options.first_layer = 2; }) == refused);
  REQUIRE(call([](auto& step, auto&, auto&, auto&) { step.state.lengths = nullptr; }) == refused);
  REQUIRE(call([](auto&, auto& shape, auto&, auto&) { shape.query_tokens = 6; }) == refused);  // the slack is 4
  REQUIRE(call([](auto&, auto& shape, auto&, auto&) { shape.head_dim = 32; }) == refused);
  REQUIRE(call([](auto&, auto&, auto& cache, auto&) { cache.layers[0] = nullptr; }) == refused);
  REQUIRE(call([](auto&, auto&, auto&, auto& segments) { segments = nullptr; }) == refused);
  CHECK(std::string(ha::last_error_message()).find("segments") != std::string::npos);
  auto const rows = model.one.rows.host();
  CHECK(std::equal(rows.begin(), rows.end(), model.two.rows.host().begin()));
  // A count above the step's is refused on the device: that sequence stays as it is, the other goes on.
  DeviceVector<std::int32_t> const counts(std::vector<std::int32_t>{2, 1});
  REQUIRE_CUDA(call([&](auto& step, auto&, auto&, auto&) { step.d_counts = counts.data(); }));
  auto const counters = model.one.counters.host();
  CHECK(counters.back() == 1);
  CHECK(counters[0] == 10);
  CHECK(counters[1] == 6);
}
