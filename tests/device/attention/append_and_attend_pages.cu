// A step's new tokens appended to pages of single heads and attended to in one launch, beside two calls.

#include "support/device_attention.cuh"
#include "support/device_rolling.cuh"
#include "support/differences.hpp"
#include "support/fused_step.cuh"

#include <headaware/attention/append_and_attend.cuh>
#include <headaware/attention/head_pages_view.hpp>
#include <headaware/cache/paged_heads.cuh>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int32_t slack = 4;

/// How pages lie in the pool.
struct Pages {
  std::int32_t size = 16;
  bool joined = false;  ///< a page's values after its keys, and a gap
};

/// Tables, and a pool for every way to make a step.
template <class T>
struct PagedModel {
  FusedCase c;
  ha::PagedHeads pages;
  std::int64_t page_stride;
  DeviceVector<std::byte> heads;
  DeviceVector<std::int32_t> table, before, high_water, counts, lengths;
  DeviceVector<ha::PageCopy> copies;
  DeviceVector<std::int32_t> status{std::vector<std::int32_t>{0}};
  DeviceVector<T> fused, separate;
  ha::PageStep step;
  std::int32_t copied = 0;

  PagedModel(FusedCase const& of, Pages const& how)
      : c(of),
        pages(step_table(), {.num_sequences = batch,
                             .page_size = how.size,
                             .num_pages = 8000 / how.size,
                             .limits = {.max_tokens = 400, .slack = slack}}),
        page_stride(how.joined ? how.size * (c.key_dim + c.value_dim) + 8 : 0),
        heads(std::vector<std::byte>(pages.head_bytes().begin(), pages.head_bytes().end())),
        table(std::vector<std::int32_t>(pages.table().size())),
        before(std::vector<std::int32_t>(batch)),
        high_water(std::vector<std::int32_t>(batch)),
        counts(std::vector<std::int32_t>(batch)),
        lengths(std::vector<std::int32_t>(batch)),
        copies(std::vector<ha::PageCopy>(at(layers * pages.max_copies()))),
        fused(pool()),
        separate(pool()) {}
  [[nodiscard]] std::vector<T> pool() const {
    std::int64_t const own = pages.shape().page_size * (c.key_dim + c.value_dim);
    return std::vector<T>(at(pages.shape().num_pages * std::max(page_stride, own)));
  }
  [[nodiscard]] ha::PageStorage<T> storage(DeviceVector<T> const& of) const {
    std::int64_t const page = pages.shape().page_size * c.key_dim;
    std::int64_t const to_values = page_stride != 0 ? page : page * pages.shape().num_pages;
    return {of.data(), of.data() + to_values, c.key_dim, c.value_dim, page_stride};
  }
  [[nodiscard]] ha::PagedHeadsView view() const { return pages.view_at(heads.data(), table.data()); }
  [[nodiscard]] ha::DevicePageStep device_step(std::int32_t layer) const {
    return {before.data(),      high_water.data(), counts.data(), copies.data() + layer * pages.max_copies(),
            pages.max_copies(), c.tokens,          status.data()};
  }
  /// Prepares a step and brings its tables to the device.
  void begin(std::vector<std::int32_t> const& new_tokens) {
    pages.append(new_tokens, step);
    copied += static_cast<std::int32_t>(step.copies.size());
    upload(copies, pages.padded_copies(step));
    upload(table, std::vector<std::int32_t>(pages.table().begin(), pages.table().end()));
    upload(before, step.lengths);
    upload(high_water, step.high_water);
    upload(counts, step.counts);
    upload(lengths, std::vector<std::int32_t>(pages.state().lengths().begin(), pages.state().lengths().end()));
  }
  /// Appends prompts to both pools.
  void prefill(std::vector<std::int32_t> const& prompts) {
    begin(prompts);
    auto const most = *std::max_element(prompts.begin(), prompts.end());
    auto const keys = ha::strided_bshd(batch, most, kv_heads, c.key_dim);
    auto const values = ha::strided_bshd(batch, most, kv_heads, c.value_dim);
    DeviceVector<T> const d_keys(random_elements<T>(keys.required_span_size(), 3));
    DeviceVector<T> const d_values(random_elements<T>(values.required_span_size(), 4));
    std::vector<ha::LayerKv<T const>> const all(layers, {d_keys.data(), d_values.data()});
    ha::DevicePageStep of_all = device_step(0);
    of_all.num_copies *= layers;
    of_all.max_count = most;
    for (auto const* of : {&fused, &separate}) {
      REQUIRE_CUDA(ha::device::append(view(), of_all, all, ha::KvLayouts{keys, values}, storage(*of), 0, nullptr));
    }
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
};

/// A layer's step in one call.
template <class T, class Rotation>
cudaError_t fused_layer(PagedModel<T> const& model, FusedStep<T> const& step, std::int32_t layer, void* temp,
                        std::size_t& bytes, Rotation const& rotation, cudaStream_t stream) {
  ha::HeadPagesStep const news{model.view(),
                               model.device_step(layer),
                               step.layer(layer),
                               ha::KvLayouts{step.key_layout(), step.value_layout()},
                               layer,
                               rotation};
  ha::AttentionOptions options;
  options.window = step.c.window;
  return ha::device::append_and_attend(temp, bytes, step.shape(), step.queries_of(layer), news,
                                       model.storage(model.fused), step.output_of(layer),
                                       {model.pages.slots().rows_total(layer)}, options, stream);
}

template <class T, class Rotation>
cudaError_t fused_layers(PagedModel<T> const& model, FusedStep<T> const& step, void* temp, std::size_t& bytes,
                         Rotation const& rotation, cudaStream_t stream) {
  for (std::int32_t l = 0; l < layers; ++l) {
    std::size_t needed = bytes;
    cudaError_t const error = fused_layer(model, step, l, temp, needed, rotation, stream);
    bytes = std::max(bytes, needed);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

/// The same in two calls each.
template <class T>
void separate_layers(PagedModel<T> const& model, FusedStep<T> const& step) {
  auto const storage = model.storage(model.separate);
  for (std::int32_t l = 0; l < layers; ++l) {
    REQUIRE_CUDA(ha::device::append(model.view(), model.device_step(l), std::vector{step.layer(l)},
                                    ha::KvLayouts{step.key_layout(), step.value_layout()}, storage, l, nullptr));
    ha::AttentionOptions options;
    options.window = step.c.window;
    if (step.c.tokens > 1 || options.window != 0) options.first_positions = model.before.data();
    REQUIRE_CUDA(cudaDeviceSynchronize());
    run_attend(step.shape(), step.queries_of(l),
               ha::KeptCache{storage.keys, storage.values,
                             ha::HeadPagesView::of_chunk(model.view(), l, model.lengths.data(), step.c.tokens,
                                                         storage.page_stride)},
               step.output_of(l), {model.pages.slots().rows_total(l)}, options);
  }
}

/// The largest difference, relative to numbers above 1. NaN, which no comparison holds of, where there is one.
template <class T>
double largest_difference(std::vector<T> const& got, std::vector<T> const& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    double const x = ha::to_float(expected[i]);
    if (double(ha::to_float(got[i])) == x) continue;  // infinite ones, too
    double const error = std::abs(double(ha::to_float(got[i])) - x) / (1 + std::abs(x));
    worst = std::isnan(error) ? error : std::max(worst, error);
    if (std::isnan(worst)) break;
  }
  return worst;
}

/// Decodes with forks and rollbacks in between. @param graph  replays one captured step
template <class T>
void check_pages(FusedCase const& c, Pages const& how, bool graph = false) {
  INFO(c.key_dim << " and " << c.value_dim << " channels, group " << c.group << ", " << c.tokens << " tokens, pages of "
                 << how.size);
  PagedModel<T> model(c, how);
  if (c.prompt > 0) model.prefill({c.prompt, c.prompt / 2});
  FusedStep<T> const fused(c);
  FusedStep<T> const separate(c);
  std::size_t bytes = 0;
  REQUIRE_CUDA(fused_layers(model, fused, nullptr, bytes, ha::KeepPositions{}, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  Stream const stream;
  auto const call = [&](cudaStream_t on) {
    return fused_layers(model, fused, temp.data(), bytes, ha::KeepPositions{}, on);
  };
  std::optional<Graph> captured;
  for (std::int32_t step = 0; step < c.steps; ++step) {
    if (step % 6 == 3) {  // the second sequence continues the first: both have to leave their last pages
      model.pages.release(1);
      model.pages.fork(0, 1);
    }
    if (step % 6 == 5) model.pages.rollback(0, 1);
    std::vector<std::int32_t> counts(batch, c.tokens);
    if (c.counted) counts = {(step + 1) % (c.tokens + 1), 1};
    model.begin(counts);
    for (FusedStep<T> const* each : {&fused, &separate}) fill_step(*each, static_cast<unsigned>(10 * step));
    if (graph) {
      if (!captured) captured.emplace(stream, call);
      captured->replay(stream);
    } else {
      REQUIRE_CUDA(call(nullptr));
      REQUIRE_CUDA(cudaDeviceSynchronize());
    }
    separate_layers(model, separate);
    INFO("step " << step);
    REQUIRE(model.status.host()[0] == 0);
    if (c.group * c.tokens <= 16) {
      REQUIRE(first_difference(fused.output.host(), separate.output.host()) == "");
      REQUIRE(first_difference(fused.lse.host(), separate.lse.host()) == "");
    } else {  // more query rows: attend has another kernel, which rounds weights in another order
      double const room = std::is_same_v<T, ha::bfloat16> ? 8e-3 : 1e-3;
      REQUIRE(largest_difference(fused.output.host(), separate.output.host()) <= room);
      REQUIRE(largest_difference(fused.lse.host(), separate.lse.host()) <= 1e-5);
    }
    REQUIRE(first_difference(model.fused.host(), model.separate.host()) == "");
  }
  REQUIRE((c.steps < 4 || how.size == 1 || model.copied > 0));
}

}  // namespace

TEST_CASE("append and attend: pages of single heads, copies on write among them, to the bit", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_pages<ha::float16>({.steps = 26}, {.size = 16});
  check_pages<ha::float16>({.key_dim = 32, .value_dim = 48, .steps = 9, .prompt = 101, .counted = true},
                           {.size = 7, .joined = true});
  check_pages<ha::float16>({.key_dim = 16, .value_dim = 16, .group = 12, .steps = 5, .prompt = 90}, {.size = 1});
  check_pages<ha::float16>({.key_dim = 128, .value_dim = 192, .group = 1, .steps = 4, .prompt = 330}, {.size = 16});
  check_pages<ha::float16>({.key_dim = 32, .value_dim = 32, .steps = 4, .prompt = 90, .window = 50}, {.size = 4});
}

TEST_CASE("append and attend: drafts into pages of single heads", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_pages<ha::float16>({.key_dim = 32, .value_dim = 32, .tokens = 3, .steps = 8, .prompt = 5}, {.size = 16});
  check_pages<ha::float16>({.key_dim = 32, .value_dim = 32, .group = 8, .tokens = 5, .steps = 5, .prompt = 121},
                           {.size = 5, .joined = true});
}

TEST_CASE("append and attend: a captured step on pages is replayed with other tables", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  check_pages<ha::float16>({.key_dim = 32, .value_dim = 32, .steps = 20, .prompt = 30, .counted = true}, {.size = 8},
                           true);
}

TEST_CASE("append and attend: pages give what a rolling cache does, keys and queries turned inside", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using T = ha::bfloat16;
  FusedCase const c{.steps = 5, .prompt = 60};
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, 32, 10000);
  PagedModel<T> model(c, {.size = 8});
  DeviceRolling<T> const rolling(ha::RollingSlots(step_table(), batch, {.max_tokens = 400, .slack = slack}), c.key_dim,
                                 c.value_dim);
  FusedStep<T> const over_pages(c);
  FusedStep<T> const over_slots(c);
  auto const slots_layer = [&](std::int32_t l, void* temp, std::size_t& bytes) {
    ha::RollingStep const step{rolling.view(),
                               rolling.state(),
                               over_slots.layer(l),
                               ha::KvLayouts{over_slots.key_layout(), over_slots.value_layout()},
                               ha::AppendOptions{.first_layer = l, .advance = l + 1 == layers},
                               nullptr,
                               rotation};
    REQUIRE_CUDA(ha::device::append_and_attend(temp, bytes, over_slots.shape(), over_slots.queries_of(l), step,
                                               rolling.cache(), over_slots.output_of(l), {}, nullptr));
  };
  std::size_t bytes = 0;
  REQUIRE_CUDA(fused_layers(model, over_pages, nullptr, bytes, rotation, nullptr));
  for (std::int32_t l = 0; l < layers; ++l) {
    std::size_t needed = 0;
    slots_layer(l, nullptr, needed);
    bytes = std::max(bytes, needed);
  }
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  for (std::int32_t step = 0; step < 30; ++step) {
    model.begin(std::vector<std::int32_t>(batch, 1));
    for (FusedStep<T> const* each : {&over_pages, &over_slots}) fill_step(*each, static_cast<unsigned>(10 * step));
    REQUIRE_CUDA(fused_layers(model, over_pages, temp.data(), bytes, rotation, nullptr));
    for (std::int32_t l = 0; l < layers; ++l) slots_layer(l, temp.data(), bytes);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE(first_difference(over_pages.output.host(), over_slots.output.host()) == "");
  }
  // A head of sinks alone, whose page goes on after them: its tokens are there, turned as another head's of the layer.
  auto const pool = model.fused.host();
  auto const row = [&](std::int32_t head, std::int64_t token) {
    std::int64_t const page = model.pages.page(1, 0, head, token / 8);
    REQUIRE(page >= 0);
    auto const from = pool.begin() + (page * 8 + token % 8) * c.key_dim;
    return std::vector<T>(from, from + c.key_dim);
  };
  for (std::int64_t const token : {6, 7}) {
    bool some = false;
    for (T const x : row(2, token)) some = some || ha::to_float(x) != 0;
    CHECK(some);
  }
}

TEST_CASE("append and attend: what pages refuse", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using T = ha::float16;
  FusedCase const c{.key_dim = 32, .value_dim = 32, .prompt = 10};
  PagedModel<T> model(c, {.size = 8});
  model.prefill({10, 5});
  model.begin({1, 1});
  FusedStep<T> const step(c);
  std::size_t bytes = 0;
  auto const call = [&](auto const& change) {
    ha::HeadPagesStep news{model.view(), model.device_step(1), step.layer(1), step.key_layout(), 1};
    auto shape = step.shape();
    auto storage = model.storage(model.fused);
    change(news, shape, storage);
    DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes + 1, std::byte{0}));
    auto const error =
        ha::device::append_and_attend(bytes == 0 ? nullptr : temp.data(), bytes, shape, step.queries_of(1), news,
                                      storage, step.output_of(1), {model.pages.slots().rows_total(1)}, {}, nullptr);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    return error;
  };
  auto const message = [](char const* part) {
    return std::string(ha::last_error_message()).find(part) != std::string::npos;
  };
  REQUIRE_CUDA(call([](auto&, auto&, auto&) {}));
  REQUIRE(bytes > 0);
  auto const refused = cudaErrorInvalidValue;
  REQUIRE(call([](auto& news, auto&, auto&) { news.tokens.keys += 1; }) == refused);
  CHECK(message("new keys"));
  REQUIRE(call([](auto&, auto&, auto& storage) { storage.values += 1; }) == refused);
  CHECK(message("cache's buffers"));
  REQUIRE(call([](auto&, auto&, auto& storage) {
            storage.values = storage.keys + 8 * 32;
            storage.page_stride = 2 * 8 * 32 + 4;
          }) == refused);
  CHECK(message("page stride"));
  REQUIRE(call([](auto& news, auto&, auto&) { news.layer = 2; }) == refused);
  REQUIRE(call([](auto& news, auto&, auto&) { news.step.max_count = 2; }) == refused);
  CHECK(message("max_count"));
  REQUIRE(call([](auto& news, auto&, auto&) { news.step.generation = 1; }) == refused);
  REQUIRE(call([](auto& news, auto&, auto&) { news.step.d_counts = nullptr; }) == refused);
  REQUIRE(call([](auto& news, auto&, auto&) { news.step.d_copies = nullptr; }) == refused);
  REQUIRE(call([](auto&, auto& shape, auto&) { shape.query_tokens = 6; }) == refused);  // the slack is 4
  REQUIRE(call([](auto&, auto& shape, auto&) { shape.head_dim = 16; }) == refused);
  CHECK(message("head_dim"));
  REQUIRE(call([](auto&, auto& shape, auto&) { shape.num_sequences = 1; }) == refused);
  REQUIRE(model.status.host()[0] == 0);
  REQUIRE(first_difference(model.fused.host(), model.separate.host()) == "");
  // A count above the step's is refused on the device: that sequence's pages stay as they are.
  upload(model.counts, std::vector<std::int32_t>{2, 1});
  REQUIRE_CUDA(call([](auto&, auto&, auto&) {}));
  CHECK(model.status.host()[0] == 1);
  REQUIRE_CUDA(ha::device::append(model.view(), model.device_step(1), std::vector{step.layer(1)}, step.key_layout(),
                                  model.storage(model.separate), 1, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(first_difference(model.fused.host(), model.separate.host()) == "");
}
