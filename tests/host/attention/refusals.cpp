// What attention on the CPU refuses.

#include "support/errors.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// A user's own layout, which says nothing of its size.
struct Anywhere {
  [[nodiscard]] std::int64_t offset(std::int64_t, std::int64_t, std::int64_t, std::int64_t channel) const {
    return channel;
  }
};

}  // namespace

TEST_CASE("attention refuses counts whose products do not fit 64 bits", "[attention]") {
  std::vector<float> data(64);
  std::int32_t const length = 4;
  auto const call = [&](ha::AttentionShape const& shape, std::int64_t head_rows) {
    ha::attend(shape, ha::AttentionQueries{data.data(), Anywhere{}},
               ha::KeptCache{data.data(), data.data(), ha::PaddedView{&length, 1, head_rows}},
               ha::AttentionOutput{data.data() + 32, Anywhere{}});
  };
  constexpr std::int64_t far = std::int64_t{1} << 61;
  call({1, 1, 1, 1, 8}, 4);
  check_error<ha::ArgumentError>(
      [&] {
        call({1, 4, 1, far, 8}, 8);
      },
      {"query tokens", "at most 2147483647", std::to_string(far), "attend"});
  check_error<ha::ArgumentError>(
      [&] {
        call({1, 1, 1, 2147483647, 1, far}, 8);
      },
      {"elements of a tensor", "at most", "1 * 1 * 2147483647 * " + std::to_string(far), ""});
  check_error<ha::ArgumentError>(
      [&] {
        call({1, 1, 1, 1, 8}, far);
      },
      {"elements of a tensor", "at most", "1 * 1 * " + std::to_string(far), "PaddedView"});
  check_error<ha::ArgumentError>([&] { call({1, 1, 1, 1, 8}, -8); }, {"head_rows", ">= 0", "-8", "PaddedView"});
  check_error<ha::ArgumentError>(
      [&] {
        ha::validate_tables({1, 1, 1, 1, 8}, ha::PaddedView{&length, 1, far});
      },
      {"elements of a tensor", "at most", "1 * 1 * " + std::to_string(far), "PaddedView"});
  ha::AttentionOutput const part{data.data(), Anywhere{}, data.data() + 32};
  check_error<ha::ArgumentError>(
      [&] {
        ha::merge_attention({4, 1, 1, far, 8}, part, part);
      },
      {"elements of a tensor", "at most", "4 * 1 * " + std::to_string(far), ""});
}

TEST_CASE("attention refuses what makes no sense", "[attention]") {
  std::vector<float> data(64);
  std::vector<std::int32_t> const offsets{0, 1};
  auto const layout = ha::strided_bhsd(1, 2, 1, 8);
  ha::AttentionShape const good{1, 2, 1, 1, 8};
  auto const call = [&](ha::AttentionShape const& shape, ha::AttentionOptions const& options = {},
                        ha::StridedLayout const& output_layout = ha::strided_bhsd(1, 2, 1, 8),
                        std::vector<std::int32_t> const& rows = {0, 1}, float* output = nullptr) {
    std::vector<float> result(64);
    ha::attend(shape, ha::AttentionQueries{data.data(), layout},
               ha::KeptCache{data.data(), data.data(), ha::RaggedView{rows.data(), 1}},
               ha::AttentionOutput{output != nullptr ? output : result.data(), output_layout}, options);
  };
  call(good);
  check_error<ha::ArgumentError>([&] { call({1, 3, 2, 1, 8}); }, {"query heads", "multiple of 2", "3", "attend"});
  check_error<ha::ArgumentError>([&] { call({1, 2, 0, 1, 8}); }, {"KV heads", "> 0", "0", "attend"});
  check_error<ha::ArgumentError>([&] { call({-1, 2, 1, 1, 8}); }, {"sequences", ">= 0", "-1", "attend"});
  check_error<ha::ArgumentError>([&] { call({1, 2, 1, 1, 0}); }, {"head_dim", "> 0", "0", "attend"});
  check_error<ha::ArgumentError>([&] { call({1, 2, 1, 2, 8}); }, {"tokens", ">= 2", "1", "queries"});
  check_error<ha::ArgumentError>([&] { call({1, 2, 1, 1, 8, 9}); }, {"channels", ">= 9", "8", "output"});
  check_error<ha::ArgumentError>([&] { call(good, {.scale = -1}); }, {"scale", ">= 0", "-1", "attend"});
  check_error<ha::ArgumentError>([&] { call(good, {.soft_cap = -1}); }, {"soft cap", ">= 0", "-1", "attend"});
  check_error<ha::ArgumentError>(
      [&] {
        call(good, {}, layout, {3, 1});
      },
      {"rows held", ">= 0", "-2", "sequence 0, KV head 0"});
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend(good, ha::AttentionQueries<float, ha::StridedLayout>{nullptr, layout},
                   ha::KeptCache{data.data(), data.data(), ha::RaggedView{offsets.data(), 1}},
                   ha::AttentionOutput{data.data(), layout});
      },
      {"queries", "a pointer", "nullptr", "attend"});
  check_error<ha::ArgumentError>(
      [&] {
        ha::merge_attention(good, ha::AttentionOutput{data.data(), layout}, ha::AttentionOutput{data.data(), layout});
      },
      {"log-sum-exp", "pointers", "nullptr", "merge_attention"});
  check_error<ha::ArgumentError>([] { (void)ha::PagedView::csr(nullptr, nullptr, nullptr, 1, 0); },
                                 {"page size", "[1", "0", "PagedView"});
}

TEST_CASE("attention refuses what it knows to be wrong of views and buffers", "[attention]") {
  ha::RollingSlots const slots(ha::UniformTable(ha::SinkWindow{.sink = 2, .window = 4}, 1, 1), 2, {.slack = 1});
  ha::RollingState state(2);
  std::vector<float> const kept(static_cast<std::size_t>(slots.rows_total() * 8), 1);
  std::vector<float> data(200, 1);
  auto const call = [&](ha::AttentionShape const& shape, std::int32_t layer, float const* queries, float* output,
                        ha::StridedLayout const& layout = ha::strided_bhsd(3, 2, 1, 8), float* lse = nullptr) {
    ha::attend(shape, ha::AttentionQueries{queries, layout},
               ha::KeptCache{kept.data(), kept.data(), ha::RollingView{slots.view(), layer, state.lengths().data()}},
               ha::AttentionOutput{output, layout, lse});
  };
  auto const bytes_on = [](float* from, std::uintptr_t by) {
    return reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(from) + by);
  };
  ha::AttentionShape const good{2, 2, 1, 1, 8};
  call(good, 0, data.data(), data.data() + 32);
  check_error<ha::ArgumentError>(
      [&] {
        call({2, 2, 2, 1, 8}, 0, data.data(), data.data() + 100);
      },
      {"KV heads", "1", "2", "attend, RollingView"});
  check_error<ha::ArgumentError>(
      [&] {
        call({3, 2, 1, 1, 8}, 0, data.data(), data.data() + 100);
      },
      {"sequences", "at most 2", "3", "attend, RollingView"});
  for (std::int32_t const layer : {1, -1}) {
    check_error<ha::ArgumentError>([&] { call(good, layer, data.data(), data.data() + 100); },
                                   {"layer", "[0, 1)", std::to_string(layer), "RollingView"});
    check_error<ha::ArgumentError>(
        [&] { (void)ha::RollingView::of_chunk(slots.view(), layer, state.lengths().data(), 1); },
        {"layer", "[0, 1)", std::to_string(layer), "RollingView"});
  }
  check_error<ha::ArgumentError>([&] { call(good, 0, bytes_on(data.data(), 2), data.data() + 100); },
                                 {"queries", "aligned to its elements", "misaligned", "attend"});
  check_error<ha::ArgumentError>([&] { call(good, 0, data.data(), bytes_on(data.data(), 402)); },
                                 {"output", "aligned to its elements", "misaligned", "attend"});
  check_error<ha::ArgumentError>(
      [&] { call(good, 0, data.data(), data.data() + 100, ha::strided_bhsd(3, 2, 1, 8), bytes_on(data.data(), 601)); },
      {"log-sum-exp", "aligned to its elements", "misaligned", "attend"});
  for (std::ptrdiff_t const shift : {0, 31}) {
    check_error<ha::ArgumentError>([&] { call(good, 0, data.data(), data.data() + shift); },
                                   {"output", "apart from the queries", "overlapping", "attend"});
    check_error<ha::ArgumentError>([&] { call(good, 0, data.data() + shift, data.data()); },
                                   {"output", "apart from the queries", "overlapping", "attend"});
  }
  // Queries and output side by side in one buffer of two sequences' rows.
  ha::StridedLayout const side_by_side({.num_sequences = 2, .num_kv_heads = 2, .tokens = 1, .channels = 8},
                                       {.sequence = 32, .head = 8, .token = 32, .channel = 1});
  call(good, 0, data.data(), data.data() + 16, side_by_side);
  check_error<ha::ArgumentError>([&] { call(good, 0, data.data(), data.data() + 15, side_by_side); },
                                 {"output", "apart from the queries", "overlapping", "attend"});
  std::vector<std::int32_t> const offsets{0, 0, 0};
  check_error<ha::ArgumentError>(
      [&] {
        ha::attend(good, ha::AttentionQueries{data.data(), side_by_side},
                   ha::KeptCache{kept.data(), kept.data(), ha::RaggedView{offsets.data(), 2}},
                   ha::AttentionOutput{data.data() + 16, side_by_side});
      },
      {"KV heads", "2", "1", "attend, RaggedView"});
}
