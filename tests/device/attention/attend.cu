// Attention on CUDA against plain double-precision loops and against the CPU's: forms, groups, masks.

#include "support/device_attention.cuh"
#include "support/rolled_chunk.hpp"
#include "support/uneven_chunk.hpp"

#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace {

/// @param key_shift, value_shift  elements by which keys and values miss their alignment
template <class O, class T, class Make>
void check_device(HeldProblem<T> const& p, PlacedRows<T> const& placed, Make const& make, Attended const& expected,
                  std::int64_t slack = 0, std::size_t key_shift = 0, std::size_t value_shift = 0) {
  DeviceUpload const upload;
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = upload(p.first_positions);
  auto const shifted = [](std::vector<T> values, std::size_t shift) {
    values.insert(values.begin(), shift, T{});
    return DeviceVector<T>(values);
  };
  auto const d_keys = shifted(placed.keys, key_shift);
  auto const d_values = shifted(placed.values, value_shift);
  DeviceVector<float> const d_queries(p.queries);
  DeviceVector<O> const d_output(std::vector<O>(expected.output.size(), ha::from_float<O>(77)));
  DeviceVector<float> const d_lse(std::vector<float>(expected.lse.size(), 77));
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{-7});
  run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
             ha::KeptCache{d_keys.data() + key_shift, d_values.data() + value_shift, make(upload)},
             ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()},
             {p.total_rows() + slack, d_status.data()}, options);
  REQUIRE(d_status.host()[0] == 0);
  check_attended(d_output.host(), d_lse.host(), expected);
}

/// A RolledChunk or UnevenChunk on the device.
struct DeviceChunk {
  DeviceVector<float> keys;
  DeviceVector<float> values;
  DeviceVector<float> queries;
  DeviceVector<float> output;
  DeviceVector<std::byte> heads;
  DeviceVector<std::int32_t> lengths;

  template <class Chunk>
  explicit DeviceChunk(Chunk const& chunk)
      : keys(chunk.keys),
        values(chunk.values),
        queries(chunk.queries),
        output(std::vector<float>(chunk.queries.size(), 77)),
        heads(std::vector<std::byte>(chunk.slots.bytes().begin(), chunk.slots.bytes().end())),
        lengths(std::vector<std::int32_t>(chunk.state.lengths().begin(), chunk.state.lengths().end())) {}
};

}  // namespace

TEMPLATE_TEST_CASE("device attention over every form is that of plain loops", "[attention]", float, ha::float16) {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const dim : {64, 20}) {
    HeldProblem<TestType> const p({2, 6, 3, 1, dim}, {0, 1, 63, 64, 257, 600}, 5);
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const& name, PlacedRows<TestType> const& placed, auto const& make) {
      INFO(name << ", channels " << dim);
      check_device<float>(p, placed, make, expected);
    });
  }
}

TEST_CASE("device attention: groups, outputs, channels, scale and soft cap, addresses off alignment", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const group : {1, 3, 7, 12, 20}) {
    for (std::int64_t const dim : {128, 7, 256}) {
      INFO("group " << group << ", channels " << dim);
      HeldProblem<ha::bfloat16> p({1, 2 * group, 2, 1, dim, dim == 128 ? 48 : 0}, {300, 5}, 6);
      p.options = {.scale = 0.1F, .soft_cap = group == 3 ? 2.0F : 0.0F};
      Attended const expected = naive_attention(p);
      for_each_view(p, true, [&](std::string const& name, PlacedRows<ha::bfloat16> const& placed, auto const& make) {
        if constexpr (makes<Ragged, decltype(make)>) {
          check_device<ha::float16>(p, placed, make, expected);
          check_device<float>(p, placed, make, expected, 1000, 1, 1);
          check_device<float>(p, placed, make, expected, 0, 1, 0);
          check_device<float>(p, placed, make, expected, 0, 0, 1);
        }
        if constexpr (makes<ha::PagedView, decltype(make)>) {
          if (name == "paged, CSR, 5") check_device<ha::bfloat16>(p, placed, make, expected);
        }
      });
    }
  }
}

TEST_CASE("device attention: rows of up to 512 channels", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [keys, values, heads] : {std::array{512, 512, 1}, std::array{512, 512, 8}, std::array{512, 512, 20},
                                            std::array{257, 259, 3}, std::array{320, 64, 2}, std::array{40, 384, 16}}) {
    INFO(keys << " and " << values << " channels, group " << heads);
    HeldProblem<ha::float16> const p({1, 2 * heads, 2, 1, keys, values}, {600, 5}, 8);
    HeldProblem<float> const single({1, heads, 1, 1, keys, values}, {70}, 9);
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const& name, PlacedRows<ha::float16> const& placed, auto const& make) {
      if constexpr (makes<Ragged, decltype(make)>) check_device<ha::float16>(p, placed, make, expected);
      if constexpr (makes<Ragged, decltype(make)>) check_device<float>(p, placed, make, expected, 1000, 1, 1);
      if constexpr (makes<ha::PagedView, decltype(make)>) {
        if (name == "paged, CSR, 5") check_device<float>(p, placed, make, expected);
      }
    });
    for_each_view(single, true, [&](std::string const&, PlacedRows<float> const& placed, auto const& make) {
      if constexpr (makes<Ragged, decltype(make)>) check_device<float>(single, placed, make, naive_attention(single));
    });
  }
  HeldProblem<float> chunk({1, 2, 1, 12, 512}, {700}, 10);
  chunk.first_positions = {688};
  chunk.options.window = 90;
  for_each_view(chunk, true, [&](std::string const&, PlacedRows<float> const& placed, auto const& make) {
    if constexpr (makes<Ragged, decltype(make)>) check_device<float>(chunk, placed, make, naive_attention(chunk));
  });
}

TEST_CASE("device attention: unequal keys and values fit into shared memory beside what a kernel has there",
          "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [keys, values] : {std::array{48, 256}, std::array{192, 40}, std::array{256, 8}}) {
    INFO(keys << " and " << values << " channels");
    HeldProblem<ha::bfloat16> const p({1, 16, 1, 1, keys, values}, {70}, 7);
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const&, PlacedRows<ha::bfloat16> const& placed, auto const& make) {
      if constexpr (makes<Ragged, decltype(make)>) check_device<float>(p, placed, make, expected);
    });
  }
  // The same for all sizes: some kernels' static memory is larger, so that is taken as given.
  for (std::int32_t const most : {48 * 1024 - 2048, 48 * 1024 - 4096}) {
    for (std::int32_t const queries : {1, 4, 8, 16}) {
      for (std::int64_t k = 1; k <= 256; ++k) {
        for (std::int64_t const v : {std::int64_t{1}, k, std::int64_t{256}}) {
          auto const memory = ha::detail::AttendMemory::of<float>(k, v, queries, 2, most, most, 64);
          bool const fits = memory.bytes <= most && memory.tile_rows >= 8 && memory.tile_rows <= 64;
          if (!fits) FAIL(k << " and " << v << " channels, " << queries << " queries");
        }
      }
    }
  }
}

TEST_CASE("device attention: one head of more chunks than a warp has lanes, and than a block keeps weights",
          "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const rows : {8193, 256 * 256 + 513}) {
    INFO(rows << " rows");
    // The keys' length makes parts differ by far in weight, so that a part left out or weighed wrongly shows.
    HeldProblem<float> p({1, 2, 1, 1, 4}, {rows}, 61);
    for (float& x : p.queries) x *= 3;
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const&, PlacedRows<float> const& placed, auto const& make) {
      if constexpr (makes<Ragged, decltype(make)>) check_device<float>(p, placed, make, expected);
    });
  }
}

TEST_CASE("device attention: tiles of queries whose heads have several chunks each, and the edge of what is seen",
          "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  // 18 query rows: two tiles, and chunks of 1,024 rows.
  HeldProblem<float> const tiled({1, 4, 2, 9, 8}, {1100, 2100}, 62);
  // The only key of its tile of keys is that at the query's own position.
  HeldProblem<float> edge({1, 1, 1, 1, 16}, {65}, 63);
  edge.first_positions = {64};
  for (auto const* const p : {&tiled, static_cast<HeldProblem<float> const*>(&edge)}) {
    Attended const expected = naive_attention(*p);
    for_each_view(*p, true, [&](std::string const&, PlacedRows<float> const& placed, auto const& make) {
      if constexpr (makes<Ragged, decltype(make)>) check_device<float>(*p, placed, make, expected);
    });
  }
}

TEST_CASE("device attention: a prefill chunk sees what came before each of its tokens", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [tokens, window] : {std::array{2, 0}, std::array{9, 0}, std::array{40, 0}, std::array{9, 1},
                                       std::array{9, 3}, std::array{40, 100}, std::array{40, 1000}}) {
    HeldProblem<float> p({2, 4, 2, tokens, 32}, {tokens, tokens, 300, 700}, 11);
    p.first_positions = {0, 700 - tokens};
    p.options.window = window;
    INFO(tokens << " tokens, window " << window);
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const& name, PlacedRows<float> const& placed, auto const& make) {
      INFO(name);
      if (name != "paged, dense, 1") check_device<float>(p, placed, make, expected);
    });
  }
}

TEST_CASE("device attention: rolling caches hold their slots in any order", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<ha::WindowRule> const heads{{4, 12}, {0, 16}, {ha::all_tokens, 0}, {0, 0}, {3, 0}, {60, 300}};
  for (std::int64_t const tokens : {1, 3}) {
    RolledProblem<ha::float16> rolled({4, 12, 6, tokens, 48}, heads, {0, 3, 16, 700}, 21);
    rolled.problem.first_positions = {0, 1, 13, 697};
    check_device<float>(
        rolled.problem, rolled.placed(), [&](auto const& upload) { return rolled.view(upload); },
        naive_attention(rolled.problem));
  }
}

TEST_CASE("device attention: a chunk sees what its tokens would have seen one by one", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [first, second, tokens] : {std::array{0, 3, 40}, std::array{200, 69, 7}}) {
    INFO(first << ", " << second << " and " << tokens << " tokens");
    RolledChunk const chunk(first, second, tokens);
    DeviceUpload const upload;
    DeviceChunk const device(chunk);
    auto const view =
        ha::RollingView::of_chunk(chunk.slots.view_at(device.heads.data()), 0, device.lengths.data(), tokens);
    run_attend(chunk.shape(tokens), ha::AttentionQueries{device.queries.data(), chunk.layout()},
               ha::KeptCache{device.keys.data(), device.values.data(), view},
               ha::AttentionOutput{device.output.data(), chunk.layout()}, {chunk.slots.rows_total()},
               {.first_positions = upload(chunk.before)});
    auto const output = device.output.host();
    float worst = 0;
    for (std::size_t i = 0; i < output.size(); ++i) worst = std::max(worst, std::abs(output[i] - chunk.stepwise[i]));
    CHECK(worst < 2e-6F);
  }
}

TEST_CASE("device attention: CUDA's own types, and the same on the CPU", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  HeldProblem<ha::float16> const p({1, 8, 2, 1, 128}, {513, 100}, 31);
  for_each_view(p, true, [&](std::string const&, PlacedRows<ha::float16> const& placed, auto const& make) {
    if constexpr (makes<Ragged, decltype(make)>) {
      HostUpload const upload;
      std::vector<float> output(8 * 128);
      ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
                 ha::KeptCache{placed.keys.data(), placed.values.data(), make(upload)},
                 ha::AttentionOutput{output.data(), p.output_layout()});
      DeviceUpload const device_upload;
      DeviceVector<ha::float16> const d_keys(placed.keys);
      DeviceVector<ha::float16> const d_values(placed.values);
      DeviceVector<float> const d_queries(p.queries);
      DeviceVector<float> const d_output(std::vector<float>(output.size()));
      auto const* const keys = reinterpret_cast<__half const*>(d_keys.data());
      auto const* const values = reinterpret_cast<__half const*>(d_values.data());
      run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
                 ha::KeptCache{keys, values, make(device_upload)},
                 ha::AttentionOutput{d_output.data(), p.output_layout()}, {p.total_rows()}, p.options);
      auto const device = d_output.host();
      float worst = 0;
      for (std::size_t i = 0; i < output.size(); ++i) worst = std::max(worst, std::abs(output[i] - device[i]));
      CHECK(worst < 2e-6F);
    }
  });
}

TEST_CASE("device attention: a key that is no number shows in the output", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    HeldProblem<float> p({1, 1, 1, 1, 16}, {600}, 41);
    p.segments[0].keys[70 * 16 + 3] = bad;
    for_each_view(p, true, [&](std::string const&, PlacedRows<float> const& placed, auto const& make) {
      if constexpr (makes<Ragged, decltype(make)>) {
        DeviceUpload const upload;
        DeviceVector<float> const d_keys(placed.keys);
        DeviceVector<float> const d_values(placed.values);
        DeviceVector<float> const d_queries(p.queries);
        DeviceVector<float> const d_output(std::vector<float>(16));
        run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()},
                   ha::KeptCache{d_keys.data(), d_values.data(), make(upload)},
                   ha::AttentionOutput{d_output.data(), p.output_layout()}, {600}, {});
        float const x = d_output.host()[5];
        CHECK(x != x);
      }
    });
  }
}

TEST_CASE("device attention: rows that a query does not see may hold anything", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (std::int64_t const tokens : {1, 3, 5, 20}) {  // each number of queries that a block has
      std::int64_t const dim = 16;
      std::size_t const bad_row = 71;
      auto const at_bad = bad_row * 16 + 5;
      std::int32_t const first = 70;
      auto const layout = ha::strided_bhsd(1, 1, tokens, dim);
      auto keys = random_elements<float>(90 * dim, 1);
      auto values = random_elements<float>(90 * dim, 2);
      auto const queries = random_elements<float>(layout.required_span_size(), 3);
      DeviceVector<float> const d_queries(queries);
      DeviceUpload const upload;
      auto const* const offsets = upload(std::vector<std::int32_t>{0, 90});
      auto const* const positions = upload(std::vector<std::int32_t>{first});
      auto const run = [&] {
        DeviceVector<float> const d_keys(keys);
        DeviceVector<float> const d_values(values);
        DeviceVector<float> const d_output(std::vector<float>(queries.size(), 77));
        run_attend({1, 1, 1, tokens, dim}, ha::AttentionQueries{d_queries.data(), layout},
                   ha::KeptCache{d_keys.data(), d_values.data(), ha::RaggedView{offsets, 1}},
                   ha::AttentionOutput{d_output.data(), layout}, {90}, {.first_positions = positions});
        return d_output.host();
      };
      auto const good = run();
      for (auto* const tensor : {&keys, &values}) {
        float const before = std::exchange((*tensor)[at_bad], bad);
        auto const output = run();
        (*tensor)[at_bad] = before;
        for (std::size_t i = 0; i < static_cast<std::size_t>(tokens); ++i) {
          INFO(bad << ", query at " << 70 + i << " of " << tokens);
          float const x = output[i * 16 + 5];
          if (70 + i < bad_row) {
            CHECK(x == good[i * 16 + 5]);
          } else {
            CHECK(!std::isfinite(x));
          }
        }
      }
    }
  }
}

TEST_CASE("device attention: sequences of a chunk may have different numbers of new tokens", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  UnevenChunk const chunk;
  for (bool const counted : {true, false}) {
    DeviceUpload const upload;
    DeviceChunk const device(chunk);
    auto const view = ha::RollingView::of_chunk(chunk.slots.view_at(device.heads.data()), 0, device.lengths.data(),
                                                UnevenChunk::tokens, counted ? upload(chunk.counts) : nullptr);
    run_attend(chunk.shape(), ha::AttentionQueries{device.queries.data(), chunk.layout()},
               ha::KeptCache{device.keys.data(), device.values.data(), view},
               ha::AttentionOutput{device.output.data(), chunk.layout()}, {chunk.slots.rows_total()},
               {.first_positions = upload(chunk.before)});
    CHECK(chunk.difference(device.output.host()) == "");
  }
}
