// Compaction into encoded rows on the CPU: every word of every form against rows encoded one by one.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/packed_cache.hpp"

#include <headaware/cache/rotation.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

/// Compresses, and compares every unit of the buffer, gaps included.
template <class T, class Form>
void check_words(PackedProblem<T> const& p, ha::Compaction<> const& compaction,
                 ha::PackedDestination<Form> const& planned) {
  ha::RowUnit const unwritten{{0xabababab, 1, 2, 3}};
  std::vector<ha::RowUnit> buffer(at(planned.total_units()), unwritten);
  auto const kept = planned.with_buffer(buffer.data());
  ha::compress(compaction, p.layers, p.source(), kept);
  std::set<std::int64_t> written;
  std::int64_t wrong = 0;
  for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
    ha::Segment const segment = compaction.segment(s);
    auto const& packed = kept.segments[at(s)];
    auto const rows = kept.form.rows(segment, kept.capacities[at(segment.layer)]);
    std::int64_t row = 0;
    for (std::int32_t token = 0; token < segment.length; ++token) {
      bool const keeps = p.table.visit(segment.layer, segment.kv_head,
                                       [&](auto const& policy) { return policy.keeps(token, segment.length); });
      if (!keeps) continue;
      std::int64_t const unit = kept.first_units[at(segment.layer)] + rows.offset(row++, packed.units) + packed.shift;
      REQUIRE(unit >= kept.first_units[at(segment.layer)]);
      REQUIRE(unit + packed.units <= kept.first_units[at(segment.layer) + 1]);
      auto const expected = p.words(segment.layer, segment.sequence, segment.kv_head, token);
      REQUIRE(expected.size() == 4 * at(packed.units));
      wrong += std::equal(expected.begin(), expected.end(), &buffer[at(unit)].words[0]) ? 0 : 1;
      for (std::int64_t u = unit; u < unit + packed.units; ++u) wrong += written.insert(u).second ? 0 : 1;
    }
    CHECK(row == segment.kept);
  }
  for (std::size_t u = 0; u < buffer.size(); ++u) {
    if (written.count(static_cast<std::int64_t>(u)) == 0) wrong += buffer[u] == unwritten ? 0 : 1;
  }
  CHECK(wrong == 0);
  if (std::is_same_v<Form, ha::RaggedForm>) CHECK(written.size() == buffer.size());  // no gaps
}

}  // namespace

TEMPLATE_TEST_CASE("kept rows are encoded in their heads' formats on the way", "[cache]", float, ha::float16,
                   ha::bfloat16) {
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{80, 36}}) {
    INFO(keys << " and " << values << " channels");
    PackedProblem<TestType> const p(keys, values, {100, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    check_words(p, compaction, ha::packed_ragged(compaction, p.formats, keys, values));
    check_words(p, compaction, ha::packed_padded(compaction, p.formats, keys, ha::Alignment::left, values));
    check_words(p, compaction, ha::packed_padded(compaction, p.formats, keys, ha::Alignment::right, values));
    check_words(p, compaction, ha::packed_grouped(compaction, p.formats, keys, values));
  }
}

TEST_CASE("sizes of packed caches are known before there is a buffer", "[cache]") {
  ha::PolicyTable table(1, 2, ha::SinkWindow{.sink = 4, .window = 28});
  std::vector<std::int32_t> const lengths{100, 10};
  ha::Compaction const compaction(table, lengths);
  ha::FormatTable formats(1, 2, {ha::Packed<5>{}, ha::Packed<4>{}});
  // 64 channels: 44 and 36 bytes, five units. 32 and 10 rows of two heads.
  CHECK(ha::packed_ragged(compaction, formats, 64).total_bytes() == 2 * 42 * 80);
  CHECK(ha::packed_padded(compaction, formats, 64).total_bytes() == 2 * 2 * 32 * 80);
  formats.set(0, 1, {ha::Fp16{}, ha::Fp16{}});
  CHECK(ha::packed_ragged(compaction, formats, 64).total_bytes() == 42 * (80 + 256));
  CHECK(ha::packed_ragged(compaction, formats, 128).total_bytes() == 42 * (160 + 512));
}

TEST_CASE("keys turn in single precision before they are encoded", "[cache]") {
  PackedProblem<ha::float16> p(64, 64, {90});
  auto const rotation = ha::KeyRotation::from_base(ha::RotaryPairing::neox, 64, 10000);
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.formats, 64);
  std::vector<ha::RowUnit> buffer(at(planned.total_units()));
  auto const kept = planned.with_buffer(buffer.data());
  ha::compress(compaction, p.layers, p.source(), kept, rotation);
  // Head 0's keys are in half precision: those of a compaction of floats, rounded.
  std::vector<float> key = p.row(p.keys[0], 0, 0, 40, 64);
  std::int64_t const row = 3 + 40 - 30;  // the window begins at token 30
  for (std::int32_t i = 0; i < 32; ++i) {
    rotation.turn_back(40 - row, i, key[at(i)], key[at(i) + 32]);
  }
  auto const got = reinterpret_cast<ha::float16 const*>(buffer[at(row * kept.segments[0].units)].words);
  for (std::size_t c = 0; c < 64; ++c) REQUIRE(got[c] == ha::from_float<ha::float16>(key[c]));
}

TEST_CASE("packed destinations of another cache are refused", "[cache]") {
  PackedProblem<float> const p(64, 64, {40, 7});
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.formats, 64);
  std::vector<ha::RowUnit> buffer(at(planned.total_units()));
  auto const compress = [&](auto const& kept) { ha::compress(compaction, p.layers, p.source(), kept); };
  check_error<ha::ArgumentError>([&] { compress(planned); }, {"destination layers", "2", "0", "compress"});
  check_error<ha::ArgumentError>([&] { compress(planned.with_buffer(nullptr)); },
                                 {"destination rows", "a pointer", "nullptr", "layer 0"});
  auto* const bytes = reinterpret_cast<unsigned char*>(buffer.data());
  auto off = planned.with_buffer(buffer.data());
  off.layers[0] = reinterpret_cast<ha::RowUnit*>(bytes + 8);
  check_error<ha::ArgumentError>([&] { compress(off); }, {"destination rows", "aligned to 16", "8 bytes", "layer 0"});
  auto same = planned.with_buffer(buffer.data());
  same.layers[1] = same.layers[0];
  check_error<ha::ArgumentError>([&] { compress(same); }, {"buffers", "apart", "overlapping", "compress"});
  std::vector<std::int32_t> const shorter{20, 7};
  auto const smaller = ha::packed_ragged(ha::Compaction(p.table, shorter), p.formats, 64);
  check_error<ha::ArgumentError>([&] { compress(smaller.with_buffer(buffer.data())); },
                                 {"destination", "room for", "", "compress"});
  check_error<ha::ArgumentError>([&] { (void)ha::packed_ragged(compaction, ha::FormatTable(3, p.num_kv_heads), 64); },
                                 {"format table's layers", "2", "3", "packed_ragged"});
  check_error<ha::ArgumentError>([&] { (void)ha::packed_ragged(compaction, ha::FormatTable(2, 1), 64); },
                                 {"format table's KV heads", "", "1", "layer 0"});
  CHECK(std::all_of(buffer.begin(), buffer.end(), [](ha::RowUnit const& u) { return u == ha::RowUnit{}; }));
}
