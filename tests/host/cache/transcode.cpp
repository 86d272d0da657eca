// Packed caches written again in other formats, on the CPU: every word against rows decoded and encoded one by one; and
// what caches of encoded rows hold in bytes.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/packed_cache.hpp"

#include <headaware/cache/pack_plan.hpp>
#include <headaware/cache/packed_info.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/cache/transcode.hpp>
#include <headaware/cache/transcode_plan.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace {

/// A packed cache and its memory.
template <class Form>
struct Held {
  std::vector<ha::RowUnit> buffer;
  ha::PackedDestination<Form> cache;

  explicit Held(ha::PackedDestination<Form> const& planned)
      : buffer(at(planned.total_units()), ha::RowUnit{{0xabababab, 1, 2, 3}}),
        cache(planned.with_buffer(buffer.data())) {}

  /// The words of a segment's row.
  [[nodiscard]] std::vector<std::uint32_t> words(ha::Segment const& segment, std::int64_t row) const {
    auto const& packed = cache.segments[at(segment.index)];
    auto const rows = cache.form.rows(segment, cache.capacities[at(segment.layer)]);
    auto const* const first = (cache.layers[at(segment.layer)] + rows.offset(row, packed.units) + packed.shift)->words;
    return {first, first + 4 * packed.units};
  }
};

/// What decoding a row's part and encoding that gives; of the same format, the words themselves.
std::vector<std::uint32_t> part(ha::AnyFormat<> const& from, std::uint32_t const* words, ha::AnyFormat<> const& to,
                                std::int64_t channels) {
  if (from == to) return {words, words + from.row_words(channels)};
  std::vector<float> x(at(channels));
  from.visit([&](auto const& format) { ha::decode_row(format, words, channels, x.data()); });
  return code_row(to, x).words;
}

template <class From, class To>
std::int64_t wrong_rows(PackedProblem<float> const& p, ha::Compaction<> const& compaction, Held<From> const& from,
                        Held<To> const& to) {
  std::int64_t wrong = 0;
  for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
    ha::Segment const segment = compaction.segment(s);
    auto const& old = from.cache.segments[at(s)].formats;
    auto const& now = to.cache.segments[at(s)].formats;
    for (std::int64_t row = 0; row < segment.kept; ++row) {
      auto const words = from.words(segment, row);
      auto expected = part(old.key, words.data(), now.key, p.head_dim);
      auto const value = part(old.value, words.data() + old.key_words(p.head_dim), now.value, p.value_dim);
      expected.insert(expected.end(), value.begin(), value.end());
      expected.resize((expected.size() + 3) / 4 * 4);
      wrong += to.words(segment, row) == expected ? 0 : 1;
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("a packed cache is written in other formats as decoding and encoding its rows gives", "[cache]") {
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{80, 36}}) {
    INFO(keys << " and " << values << " channels");
    PackedProblem<float> const p(keys, values, {100, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const formats = p.other_formats();
    Held from(ha::packed_ragged(compaction, p.formats, keys, values));
    ha::compress(compaction, p.layers, p.source(), from.cache);
    Held ragged(ha::packed_ragged(compaction, formats, keys, values));
    ha::transcode(compaction, from.cache, ragged.cache);
    CHECK(wrong_rows(p, compaction, from, ragged) == 0);
    Held padded(ha::packed_padded(compaction, formats, keys, ha::Alignment::right, values));
    ha::transcode(compaction, from.cache, padded.cache);
    CHECK(wrong_rows(p, compaction, from, padded) == 0);
    Held grouped(ha::packed_grouped(compaction, p.formats, keys, values));
    ha::transcode(compaction, padded.cache, grouped.cache);
    CHECK(wrong_rows(p, compaction, padded, grouped) == 0);
  }
}

TEST_CASE("a rolling cache of encoded rows is written in other formats", "[cache]") {
  PackedProblem<float> const p(64, 64, {100, 7});
  ha::Compaction const compaction(p.table, p.lengths);
  ha::RollingSlots const slots(p.table, 2, {.max_tokens = 128, .slack = 3});
  Held from(ha::packed_rolling(slots, slots.view(), p.formats, 64));
  ha::compress(compaction, p.layers, p.source(), from.cache);
  auto const formats = p.other_formats();
  Held rolling(ha::packed_rolling(slots, slots.view(), formats, 64));
  ha::transcode(compaction, from.cache, rolling.cache);
  CHECK(wrong_rows(p, compaction, from, rolling) == 0);
  Held ragged(ha::packed_ragged(compaction, formats, 64));
  ha::transcode(compaction, from.cache, ragged.cache);
  CHECK(wrong_rows(p, compaction, from, ragged) == 0);
}

TEST_CASE("a rolling cache that tokens were appended to is written in other formats", "[cache]") {
  PackedProblem<float> const p(64, 64, {100});
  ha::Compaction const compaction(p.table, p.lengths);
  ha::RollingSlots const slots(p.table, 1, {.max_tokens = 128, .slack = 3});
  Held from(ha::packed_rolling(slots, slots.view(), p.formats, 64));
  ha::RollingState state(1);
  std::int32_t done = 0;
  for (std::int32_t const count : {70, 1, 29}) {
    std::vector<std::vector<float>> tensors;
    std::vector<ha::LayerKv<float const>> news;
    for (std::size_t layer = 0; layer < 2; ++layer) {
      for (auto const* const all : {&p.keys[layer], &p.values[layer]}) {
        tensors.emplace_back();
        for (std::int64_t head = 0; head < p.num_kv_heads; ++head) {
          auto const first = all->begin() + (head * 100 + done) * 64;
          tensors.back().insert(tensors.back().end(), first, first + count * 64);
        }
      }
      news.push_back({tensors[2 * layer].data(), tensors[2 * layer + 1].data()});
    }
    std::vector<std::int32_t> const counts{count};
    ha::append(slots.view(), state, news, ha::strided_bhsd(1, p.num_kv_heads, count, 64), counts, from.cache);
    done += count;
  }
  auto const formats = p.other_formats();
  Held ragged(ha::packed_ragged(compaction, formats, 64));
  ha::transcode(compaction, from.cache, ragged.cache);
  // As from a ragged cache of the same tokens.
  Held compressed(ha::packed_ragged(compaction, p.formats, 64));
  ha::compress(compaction, p.layers, p.source(), compressed.cache);
  Held expected(ha::packed_ragged(compaction, formats, 64));
  ha::transcode(compaction, compressed.cache, expected.cache);
  CHECK(ragged.buffer == expected.buffer);
}

TEST_CASE("pages of single heads are written in other formats, into other pages and other forms", "[cache]") {
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{80, 36}}) {
    INFO(keys << " and " << values << " channels");
    PackedProblem<float> const p(keys, values, {100, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const formats = p.other_formats();
    PackedHeadPages<float> const source(p, p.formats);
    Held from(source.rows());
    source.fill(p, from.buffer.data());
    PackedHeadPages<float> const others(p, formats);
    CHECK(others.cache.page_sizes != source.cache.page_sizes);
    Held pages(others.rows());
    ha::transcode(compaction, from.cache, pages.cache);
    CHECK(wrong_rows(p, compaction, from, pages) == 0);
    std::int64_t units = 0;
    for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
      units += compaction.segment(s).kept * pages.cache.segments[at(s)].units;
    }
    auto const untouched = std::count(pages.buffer.begin(), pages.buffer.end(), ha::RowUnit{{0xabababab, 1, 2, 3}});
    CHECK(std::ssize(pages.buffer) - untouched == units);
    Held ragged(ha::packed_ragged(compaction, formats, keys, values));
    ha::transcode(compaction, from.cache, ragged.cache);
    CHECK(wrong_rows(p, compaction, from, ragged) == 0);
    Held again(source.rows());
    ha::transcode(compaction, ragged.cache, again.cache);
    CHECK(wrong_rows(p, compaction, ragged, again) == 0);
  }
}

TEST_CASE("pages that wider windows were written to can be rolled back", "[cache]") {
  PackedProblem<float> const p(64, 64, {100, 7});
  PackedHeadPages<float> source(p, p.formats);
  Held from(source.rows());
  source.fill(p, from.buffer.data());
  PackedHeadPages<float> others(p, p.other_formats());
  Held to(others.rows());
  ha::PolicyTable wide = p.table;
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    for (std::int32_t h = 0; h < p.num_kv_heads; ++h) {
      if (p.table.at(layer, h).is<ha::SinkWindow>()) {
        auto policy = p.table.at(layer, h).get<ha::SinkWindow>();
        policy.window += others.slack;
        wide.set(layer, h, policy);
      }
    }
  }
  ha::transcode(ha::Compaction(wide, p.lengths), from.cache, to.cache);
  source.pages.rollback(0, 3);
  others.pages.rollback(0, 3);
  ha::Compaction const shorter(p.table, std::vector<std::int32_t>{97, 7});
  from.cache = source.rows().with_buffer(from.buffer.data());
  to.cache = others.rows().with_buffer(to.buffer.data());
  CHECK(wrong_rows(p, shorter, from, to) == 0);
}

TEST_CASE("pages that do not hold what is kept, or are shared, are not written in other formats", "[cache]") {
  PackedProblem<float> const p(64, 64, {100, 7, 0});
  ha::Compaction const compaction(p.table, p.lengths);
  PackedHeadPages<float> source(p, p.formats);
  Held from(source.rows());
  PackedHeadPages<float> others(p, p.other_formats());
  Held to(others.rows());
  auto const refused = [&](ha::Compaction<> const& of, auto const& a, auto const& b,
                           std::array<char const*, 4> const& why) {
    check_error<ha::ArgumentError>([&] { ha::transcode(of, a, b); }, {why[0], why[1], why[2], why[3]});
  };
  refused(compaction, from.cache, from.cache, {"buffers", "apart from the source", "overlapping", "transcode"});
  refused(compaction, others.rows(), to.cache, {"source", "buffers", "0", "transcode"});
  refused(compaction, from.cache, others.rows().with_buffer(nullptr), {"destination", "a pointer", "nullptr", ""});
  ha::Compaction const longer(p.table, std::vector<std::int32_t>{100, 8, 0});
  refused(longer, from.cache, to.cache, {"source", "pages of 8 tokens", "7", "transcode, sequence 1"});
  check_error<ha::ArgumentError>([&] { (void)ha::TranscodePlan<>(longer, from.cache, to.cache); },
                                 {"source", "pages of 8 tokens", "7", "TranscodePlan, sequence 1"});
  // Pages hold a window of 60 tokens, slack, and what else lies in its first page.
  ha::PolicyTable wide = p.table;
  wide.set(0, 0, ha::SinkWindow{.sink = 3, .window = 90});
  refused(ha::Compaction(wide, p.lengths), from.cache, to.cache, {"source", "policies", "others", "layer 0"});
  wide.set(0, 0, ha::SinkWindow{.sink = 4, .window = 60});
  refused(ha::Compaction(wide, p.lengths), from.cache, to.cache, {"source", "policies", "others", "layer 0"});
  auto const fewer = ha::packed_pages(p.formats, 2, 40, 64);
  check_error<ha::ArgumentError>([&] { (void)ha::packed_head_pages(source.pages, source.pages.view(), fewer); },
                                 {"pages' sequences", "3", "2", "packed_head_pages"});
  others.pages.fork(1, 2);
  ha::Compaction const forked(p.table, std::vector<std::int32_t>{100, 7, 7});
  source.pages.fork(1, 2);
  refused(forked, source.rows().with_buffer(from.buffer.data()), others.rows().with_buffer(to.buffer.data()),
          {"destination's pages", "one sequence", "shared", "transcode"});
  CHECK(std::all_of(to.buffer.begin(), to.buffer.end(), [](ha::RowUnit const& u) { return u.words[1] == 1; }));
}

TEST_CASE("the same formats are copied bit for bit, and 16 bits lose nothing on the way to others", "[cache]") {
  PackedProblem<ha::float16> const p(80, 36, {60, 7});
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.formats, 80, 36);
  Held direct(planned);
  ha::compress(compaction, p.layers, p.source(), direct.cache);
  Held again(planned);
  ha::transcode(compaction, direct.cache, again.cache);
  CHECK(again.buffer == direct.buffer);
  Held half(ha::packed_ragged(compaction, ha::FormatTable(2, p.num_kv_heads, {ha::Fp16{}, ha::Fp16{}}), 80, 36));
  ha::compress(compaction, p.layers, p.source(), half.cache);
  Held late(planned);
  ha::transcode(compaction, half.cache, late.cache);
  CHECK(late.buffer == direct.buffer);
}

TEST_CASE("caches that are not the compaction's are not encoded again", "[cache]") {
  PackedProblem<float> const p(64, 64, {40, 7});
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.formats, 64);
  Held from(planned);
  Held to(planned);
  auto const transcode = [&](auto const& a, auto const& b) { ha::transcode(compaction, a, b); };
  check_error<ha::ArgumentError>([&] { transcode(planned, to.cache); }, {"source", "buffers", "0", "transcode"});
  check_error<ha::ArgumentError>([&] { transcode(from.cache, planned.with_buffer(nullptr)); },
                                 {"destination", "a pointer", "nullptr", "layer 0"});
  check_error<ha::ArgumentError>([&] { transcode(from.cache, from.cache); },
                                 {"buffers", "apart from the source", "overlapping", "transcode"});
  Held narrow(ha::packed_ragged(compaction, p.formats, 64, 32));
  check_error<ha::ArgumentError>([&] { transcode(from.cache, narrow.cache); },
                                 {"destination's channels", "64 and 64", "64 and 32", "layer 0"});
  // Ragged rows of longer sequences lie elsewhere, whoever writes or reads them.
  ha::Compaction const longer(p.table, std::vector<std::int32_t>{60, 9});
  Held far(ha::packed_ragged(longer, p.formats, 64));
  check_error<ha::ArgumentError>([&] { transcode(far.cache, to.cache); },
                                 {"source", "the compaction's lengths", "others", "transcode"});
  check_error<ha::ArgumentError>([&] { ha::compress(compaction, p.layers, p.source(), far.cache); },
                                 {"destination", "the compaction's lengths", "others", "compress"});
  check_error<ha::ArgumentError>([&] { (void)ha::PackPlan<>(compaction, far.cache); },
                                 {"destination", "the compaction's lengths", "others", "PackPlan"});
  CHECK(ha::PackPlan<>(compaction, to.cache).num_segments() == compaction.num_segments());
  // As many segments, in fewer layers.
  ha::Compaction const two(ha::PolicyTable(2, 2), compaction.lengths());
  ha::Compaction const one(ha::PolicyTable(1, 4), compaction.lengths());
  auto const of_one = ha::packed_ragged(one, ha::FormatTable(1, 4), 64);
  check_error<ha::ArgumentError>([&] { (void)ha::PackPlan<>(two, of_one); },
                                 {"destination", "2 layers", "1 layers", "PackPlan"});
  CHECK(std::all_of(to.buffer.begin(), to.buffer.end(), [](ha::RowUnit const& u) { return u.words[1] == 1; }));
}

TEST_CASE("cache_info counts the bytes of encoded rows", "[cache]") {
  ha::PolicyTable table(2, 2, ha::SinkWindow{.sink = 4, .window = 28});
  table.set(1, 1, ha::Prune{});
  std::vector<std::int32_t> const lengths{100, 10};
  ha::Compaction const compaction(table, lengths);
  ha::FormatTable formats(2, 2, {ha::Packed<5>{}, ha::Packed<4>{}});
  formats.set(0, 1, {ha::Fp16{}, ha::Fp16{}});
  auto const info = ha::cache_info(compaction, ha::packed_ragged(compaction, formats, 64));
  CHECK(info.rows == 3 * 42);
  CHECK(info.layers[0].bytes == 42 * (80 + 256));  // 44 + 36 bytes, whole units; 128 + 128
  CHECK(info.layers[1].bytes == 42 * 80);
  CHECK(info.bytes == 42 * (80 + 256 + 80));
  CHECK(info.ratio == 42 * 416.0 / (110 * 4 * 256));
  CHECK(info.lengths.max == 32);
  // Pads are held, too.
  auto const padded = ha::cache_info(compaction, ha::packed_padded(compaction, formats, 64));
  CHECK(padded.rows == info.rows);
  CHECK(padded.bytes == 64 * (80 + 256) + 64 * (80 + 80));
  // 16 bits of all that the sizes say: what plain rows hold.
  ha::FormatTable const half(2, 2, {ha::Bf16{}, ha::Fp16{}});
  auto const plain = ha::cache_info(compaction, ha::TokenBytes::of(64, 2));
  auto const same = ha::cache_info(compaction, ha::packed_ragged(compaction, half, 64));
  CHECK(same.bytes == plain.bytes);
  CHECK(same.ratio == plain.ratio);
  ha::Compaction const other(ha::PolicyTable(1, 2, ha::Full{}), lengths);
  check_error<ha::ArgumentError>([&] { (void)ha::cache_info(other, ha::packed_ragged(compaction, formats, 64)); },
                                 {"cache's layers", "1", "2", "cache_info"});
}
