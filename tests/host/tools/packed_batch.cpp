// Batches that commands compress into caches of encoded rows, and the comparison of every row with its source.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/mixed_model.hpp"
#include "tools/support/packed_report.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

TEST_CASE("a batch whose layers differ is compressed into encoded rows, and a wrong one is found", "[tools]") {
  ha::ModelShape const shape = mixed_shape();
  auto const batch = support::CacheBatch::numbered(shape, 40);
  ha::Compaction<> const plan(mixed_table(shape), batch.lengths());
  ha::FormatTable const model(shape, {ha::Packed<5>{}, ha::Packed<4>{}});
  auto const formats = support::batch_formats(model, shape, {}, {0});
  CHECK(formats.at(0, 0) == ha::HeadFormats{});
  auto const planned = ha::packed_ragged(plan, formats, batch.channels());
  std::vector<ha::RowUnit> rows(static_cast<std::size_t>(planned.total_units()));
  auto const kept = planned.with_buffer(rows.data());
  ha::compress(plan, batch.float_layers(), ha::per_layer(batch.layouts()), kept);
  CHECK(support::check_packed(plan, batch, kept).rows == plan.kept_total());
  rows.back().words[0] ^= 1;
  check_error<ha::Error>([&] { (void)support::check_packed(plan, batch, kept); },
                         {"encoded row", "the source's", "another", "layer"});
}

TEST_CASE("heads are counted by their formats, and losses are shares of squares", "[tools]") {
  ha::FormatTable formats(2, 2, {ha::Packed<5>{}, ha::Packed<4>{}});
  formats.set(1, 0, {ha::Int8{}, ha::Int8{}});
  auto const counts = support::heads_by_format(formats);
  REQUIRE(counts.size() == 2);
  CHECK(counts[0] == std::pair<std::string, std::int64_t>{"packed5/packed4", 3});
  CHECK(counts[1] == std::pair<std::string, std::int64_t>{"int8/int8", 1});
  support::PackedCheck check;
  support::ExpectedRow row({ha::Fp16{}, ha::Int8{}}, {64, 64});
  std::vector<std::uint16_t> bits;
  for (int i = 0; i < 64; ++i) bits.push_back(ha::from_float<ha::float16>(static_cast<float>(i) / 8 + 0.3F).bits);
  row.set(bits.data(), bits.data(), check);
  CHECK(check.keys.share() == 0);
  CHECK(check.values.share() > 0);
  CHECK(check.values.share() < 1e-4);
}
