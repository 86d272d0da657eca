// Rows that engines have encoded go into packed caches and back bit for bit on the CPU; what blocks of llama.cpp's and
// bytes of fp8 decode to there.

#include "support/engine_rows.hpp"

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/reference_cache.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/dense_views.hpp>
#include <headaware/cache/engine_rows.hpp>
#include <headaware/cache/engine_rows_plan.hpp>
#include <headaware/cache/pack.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/layout/paged.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace {

/// The words that a part of a packed row must have.
std::vector<std::uint32_t> words_of(Bytes const& row, std::int64_t words) {
  std::vector<std::uint32_t> result(at(words));
  for (std::size_t i = 0; i < row.size(); ++i) result[i / 4] |= std::to_integer<std::uint32_t>(row[i]) << (i % 4 * 8);
  return result;
}

/// Takes an engine's rows into a form of cache, compares every word, and writes them into tensors of another kind.
template <class Form>
void check_both_ways(EngineProblem& p, ha::PackedDestination<Form> const& planned) {
  ha::Compaction const compaction(p.table, p.lengths);
  std::vector<ha::RowUnit> units(at(planned.total_units()), ha::RowUnit{{0xabababab, 1, 2, 3}});
  auto const cache = planned.with_buffer(units.data());
  auto const layouts = p.layouts();
  ha::import_rows(compaction, EngineProblem::layers<std::byte const>(p.keys, p.values), layouts, cache);

  // Heads before tokens on the way out.
  ha::KvLayouts const out{ha::strided_bhsd(3, p.heads, 13, p.key_bytes()),
                          ha::strided_bhsd(3, p.heads, 13, p.value_bytes())};
  std::byte const mark{0x5a};
  std::vector<Bytes> keys(2, Bytes(at(out.keys.required_span_size()), mark));
  std::vector<Bytes> values(2, Bytes(at(out.values.required_span_size()), mark));
  ha::export_rows(compaction, cache, EngineProblem::layers<std::byte>(keys, values), out);

  std::size_t wrong_words = 0;
  std::size_t wrong_bytes = 0;
  for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
    ha::Segment const segment = compaction.segment(s);
    auto const l = at(segment.layer);
    auto const& packed = cache.segments[at(s)];
    auto const rows = cache.form.rows(segment, cache.capacities[l]);
    auto const tokens = kept_tokens(p.table, segment.layer, 0, segment.kv_head, segment.length);
    REQUIRE(static_cast<std::int64_t>(tokens.size()) == segment.kept);
    for (std::int64_t row = 0; row < 13; ++row) {
      auto const written = [&](Bytes const& tensor, ha::StridedLayout const& layout) {
        return EngineProblem::row(tensor, layout, segment.sequence, segment.kv_head, row);
      };
      Bytes const key_out = written(keys[l], out.keys);
      Bytes const value_out = written(values[l], out.values);
      if (row >= segment.kept) {
        wrong_bytes += key_out == Bytes(key_out.size(), mark) && value_out == Bytes(value_out.size(), mark) ? 0 : 1;
        continue;
      }
      auto const token = tokens[at(row)];
      auto const key = EngineProblem::row(p.keys[l], layouts.keys, segment.sequence, segment.kv_head, token);
      auto const value = EngineProblem::row(p.values[l], layouts.values, segment.sequence, segment.kv_head, token);
      auto expected = words_of(key, p.formats.key.row_words(p.head_dim));
      auto const more = words_of(value, p.formats.value.row_words(p.value_dim));
      expected.insert(expected.end(), more.begin(), more.end());
      expected.resize(4 * at(packed.units));
      auto const* const first = (cache.layers[l] + rows.offset(row, packed.units) + packed.shift)->words;
      wrong_words += std::equal(expected.begin(), expected.end(), first) ? 0 : 1;
      wrong_bytes += key_out == key && value_out == value ? 0 : 1;
    }
  }
  CHECK(wrong_words == 0);
  CHECK(wrong_bytes == 0);
}

/// A ragged cache of one layer and one sequence that keeps everything.
struct Whole {
  std::int32_t heads;
  std::int32_t tokens;
  std::int64_t dim;
  ha::PolicyTable table{1, heads, ha::Full{}};
  std::vector<std::int32_t> lengths{tokens};
  ha::Compaction<> compaction{table, lengths};
  std::vector<ha::RowUnit> units{};
  ha::PackedDestination<ha::RaggedForm> cache{};

  Whole(std::int32_t num_heads, std::int32_t num_tokens, std::int64_t channels, ha::FormatTable const& formats)
      : heads(num_heads), tokens(num_tokens), dim(channels) {
    auto const planned = ha::packed_ragged(compaction, formats, channels);
    units.resize(at(planned.total_units()));
    cache = planned.with_buffer(units.data());
  }
  Whole(Whole const&) = delete;
  /// Row `token` of a head, decoded.
  [[nodiscard]] std::pair<std::vector<float>, std::vector<float>> decoded(std::int32_t head, std::int64_t token) const {
    auto const& packed = cache.segments[at(head)];
    std::uint32_t const* const words =
        (cache.layers[0] + (std::int64_t{head} * tokens + token) * packed.units + packed.shift)->words;
    std::pair<std::vector<float>, std::vector<float>> result{at(dim), at(dim)};
    packed.formats.key.visit([&](auto const& f) { ha::decode_row(f, words, dim, result.first.data()); });
    packed.formats.value.visit(
        [&](auto const& f) { ha::decode_row(f, words + packed.formats.key_words(dim), dim, result.second.data()); });
    return result;
  }
};

}  // namespace

TEST_CASE("rows of engines' formats come in and go out bit for bit, in every form of cache", "[cache]") {
  for (EngineCase const& of : engine_cases()) {
    for (std::int64_t const gap : {0, 2, 4}) {
      INFO(of.formats.name() << ", " << of.head_dim << " and " << of.value_dim << " channels, a gap of " << gap);
      EngineProblem p(of.formats, of.head_dim, of.value_dim, gap);
      ha::Compaction const compaction(p.table, p.lengths);
      auto const formats = p.format_table();
      check_both_ways(p, ha::packed_ragged(compaction, formats, p.head_dim, p.value_dim));
      check_both_ways(p, ha::packed_padded(compaction, formats, p.head_dim, ha::Alignment::right, p.value_dim));
      check_both_ways(p, ha::packed_grouped(compaction, formats, p.head_dim, p.value_dim));
      ha::RollingSlots const slots(p.table, 3, {.max_tokens = 20, .slack = 2});
      check_both_ways(p, ha::packed_rolling(slots, slots.view(), formats, p.head_dim, p.value_dim));
    }
  }
}

TEST_CASE("llama.cpp's blocks come in, decode by its formulas, are attended to and go out again", "[cache]") {
  constexpr std::int64_t dim = 96;  // three blocks, of which two are one here
  constexpr std::int32_t heads = 2;
  constexpr std::int32_t tokens = 5;
  auto const numbers = random_elements<float>(2 * tokens * heads * dim, 3);
  Bytes keys, values;
  std::vector<std::vector<double>> expected;  // [tokens][heads] keys, then values
  for (std::size_t i = 0; i < std::size_t{2} * tokens * heads; ++i) {
    bool const is_key = i < std::size_t{tokens} * heads;
    auto const first = numbers.begin() + static_cast<std::ptrdiff_t>(i) * dim;
    std::vector<float> const x(first, first + dim);
    Bytes row = is_key ? llama_q8_0(x) : llama_q4_0(x);
    if (i == 3) row[0] = row[1] = std::byte{0};                        // a scale of 0
    if (i == 4) row[34] = std::byte{0x01}, row[35] = std::byte{0};     // the least scale
    if (i == 5) row[68] = std::byte{0xff}, row[69] = std::byte{0x7b};  // the largest, 65,504
    expected.push_back(is_key ? from_q8_0(row) : from_q4_0(row));
    (is_key ? keys : values).insert((is_key ? keys : values).end(), row.begin(), row.end());
  }
  ha::HeadFormats const formats{ha::LlamaQ8{}, ha::LlamaQ4{}};
  CHECK(formats.key.engine_row_bytes(dim) == 102);
  CHECK(4 * formats.key.row_words(dim) == 136);
  CHECK(formats.value.engine_row_bytes(dim) == 54);
  CHECK(4 * formats.value.row_words(dim) == 72);
  Whole const whole(heads, tokens, dim, ha::FormatTable(1, heads, formats));
  ha::KvLayouts const layouts{ha::strided_shd(tokens, heads, 102), ha::strided_shd(tokens, heads, 54)};
  std::vector<ha::LayerKv<std::byte const>> const layers{{keys.data(), values.data()}};
  ha::import_rows(whole.compaction, layers, layouts, whole.cache);

  HeldProblem<float> held({1, 2 * heads, heads, 1, dim}, {}, 17);
  held.queries = random_elements<float>(2 * heads * dim, 23);
  std::size_t wrong = 0;
  for (std::int32_t h = 0; h < heads; ++h) {
    HeldRows<float> rows;
    for (std::int32_t t = 0; t < tokens; ++t) {
      auto const [key, value] = whole.decoded(h, t);
      for (std::size_t c = 0; c < at(dim); ++c) {
        wrong += static_cast<double>(key[c]) == expected[at(t * heads + h)][c] ? 0 : 1;
        wrong += static_cast<double>(value[c]) == expected[at((tokens + t) * heads + h)][c] ? 0 : 1;
      }
      rows.keys.insert(rows.keys.end(), key.begin(), key.end());
      rows.values.insert(rows.values.end(), value.begin(), value.end());
      rows.positions.push_back(t);
    }
    held.segments.push_back(rows);
  }
  CHECK(wrong == 0);
  held.options.scale = 1e-7F;  // one of the scales is 65,504
  Attended const attended = naive_attention(held);
  std::vector<float> output(attended.output.size(), 77);
  std::vector<float> lse(attended.lse.size(), 77);
  std::vector<std::int64_t> const offsets{0, tokens, 2 * tokens};
  ha::attend(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()},
             ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int64_t>>{
                 whole.cache.layers[0], whole.cache.layer(0).data(), {offsets.data(), heads}},
             ha::AttentionOutput{output.data(), held.output_layout(), lse.data()}, held.options);
  check_attended(output, lse, attended, 200);

  Bytes keys_out(keys.size()), values_out(values.size());
  std::vector<ha::LayerKv<std::byte>> const out{{keys_out.data(), values_out.data()}};
  ha::export_rows(whole.compaction, whole.cache, out, layouts);
  CHECK(keys_out == keys);
  CHECK(values_out == values);
}

TEST_CASE("what llama.cpp encodes is what its formats here encode", "[cache]") {
  constexpr std::int64_t dim = 64;
  constexpr std::int32_t tokens = 40;
  auto const numbers = random_elements<float>(tokens * dim, 5);
  Bytes keys, values;
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<float> const x(numbers.begin() + t * dim, numbers.begin() + (t + 1) * dim);
    auto const q8 = llama_q8_0(x);
    auto const q4 = llama_q4_0(x);
    keys.insert(keys.end(), q8.begin(), q8.end());
    values.insert(values.end(), q4.begin(), q4.end());
  }
  ha::FormatTable const formats(1, 1, {ha::LlamaQ8{}, ha::LlamaQ4{}});
  Whole const imported(1, tokens, dim, formats);
  ha::KvLayouts const layouts{ha::strided_shd(tokens, 1, 68), ha::strided_shd(tokens, 1, 36)};
  std::vector<ha::LayerKv<std::byte const>> const layers{{keys.data(), values.data()}};
  ha::import_rows(imported.compaction, layers, layouts, imported.cache);
  Whole const encoded(1, tokens, dim, formats);
  std::vector<ha::LayerKv<float const>> const floats{{numbers.data(), numbers.data()}};
  ha::compress(encoded.compaction, floats, ha::strided_shd(tokens, 1, dim), encoded.cache);
  CHECK(imported.units == encoded.units);
}

TEST_CASE("pages of fp8 come in and go out, scales being fields of the formats", "[cache]") {
  constexpr std::int64_t dim = 20;
  constexpr std::int32_t heads = 2;
  constexpr std::int32_t tokens = 11;
  constexpr std::int64_t page_size = 4;
  constexpr std::int64_t pages = 5;
  std::vector<std::int32_t> const block_table{3, 0, 4};
  auto const table = ha::PageTable::dense(block_table.data(), 3);
  auto const nhd = ha::paged_layout(table, {1, heads, dim, pages, page_size}, ha::PageOrder::nhd);
  Bytes keys(at(pages * page_size * heads * dim)), values(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    keys[i] = static_cast<std::byte>(i % 127 + (i % 3 == 0 ? 128 : 0));
    values[i] = static_cast<std::byte>(7 * i % 123);
  }
  // A scale per tensor for keys, one per head for values.
  ha::FormatTable formats(1, heads);
  formats.set(0, 0, {ha::Fp8E4M3{.scale = 0.25F}, ha::Fp8E5M2{.scale = 3}});
  formats.set(0, 1, {ha::Fp8E4M3{.scale = 0.25F}, ha::Fp8E5M2{.scale = 0.5F}});
  Whole const whole(heads, tokens, dim, formats);
  std::vector<ha::LayerKv<std::byte const>> const layers{{keys.data(), values.data()}};
  ha::import_rows(whole.compaction, layers, nhd, whole.cache);
  auto const number = [](std::byte byte, int mantissa) {  // of no NaN or infinity
    auto const bits = std::to_integer<int>(byte);
    int const bias = mantissa == 3 ? 7 : 15;
    int const exponent = (bits & 127) >> mantissa;
    int const fraction = bits & ((1 << mantissa) - 1);
    double const size = exponent > 0 ? std::ldexp((1 << mantissa) + fraction, exponent - bias - mantissa)
                                     : std::ldexp(fraction, 1 - bias - mantissa);
    return bits >= 128 ? -size : size;
  };
  std::size_t wrong = 0;
  for (std::int32_t h = 0; h < heads; ++h) {
    auto const& of = whole.cache.segments[at(h)].formats;
    CHECK(of.key.scale() == 0.25F);
    CHECK(of.value.scale() == (h == 0 ? 3.0F : 0.5F));
    for (std::int32_t t = 0; t < tokens; ++t) {
      auto const [key, value] = whole.decoded(h, t);
      for (std::int64_t c = 0; c < dim; ++c) {
        auto const from = at(nhd.offset(0, h, t, c));
        wrong += static_cast<double>(key[at(c)]) == number(keys[from], 3) * 0.25 ? 0 : 1;
        wrong += static_cast<double>(value[at(c)]) == number(values[from], 2) * (h == 0 ? 3 : 0.5) ? 0 : 1;
      }
    }
  }
  CHECK(wrong == 0);
  auto const hnd = ha::paged_layout(table, {1, heads, dim, pages, page_size}, ha::PageOrder::hnd);
  Bytes keys_out(keys.size()), values_out(values.size());
  std::vector<ha::LayerKv<std::byte>> const out{{keys_out.data(), values_out.data()}};
  ha::export_rows(whole.compaction, whole.cache, out, hnd);
  for (std::int32_t h = 0; h < heads; ++h) {
    for (std::int32_t t = 0; t < tokens; ++t) {
      auto const from = nhd.offset(0, h, t, 0);
      auto const to = hnd.offset(0, h, t, 0);
      wrong += std::memcmp(&keys[at(from)], &keys_out[at(to)], at(dim)) == 0 ? 0 : 1;
      wrong += std::memcmp(&values[at(from)], &values_out[at(to)], at(dim)) == 0 ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
  auto const short_table = ha::PageTable::dense(block_table.data(), 2);
  auto const few = ha::paged_layout(short_table, {1, heads, dim, pages, page_size}, ha::PageOrder::nhd);
  check_error<ha::ArgumentError>([&] { ha::import_rows(whole.compaction, layers, few, whole.cache); },
                                 {"engine's tokens", "at least the longest length, 11", "8", "import_rows, keys"});
  std::vector<std::int32_t> const bad{3, 5, 4};
  auto const beyond =
      ha::paged_layout(ha::PageTable::dense(bad.data(), 3), {1, heads, dim, pages, page_size}, ha::PageOrder::nhd);
  check_error<ha::ArgumentError>([&] { ha::import_rows(whole.compaction, layers, beyond, whole.cache); },
                                 {"page table entry", "[0, 5)", "5", "import_rows"});
  check_error<ha::ArgumentError>([&] { ha::export_rows(whole.compaction, whole.cache, out, beyond); },
                                 {"page table entry", "[0, 5)", "5", "export_rows"});
}

TEST_CASE("rows that are not the formats' are refused before anything moves", "[cache]") {
  EngineProblem p({ha::LlamaQ8{}, ha::LlamaQ4{}}, 64, 64, 0);
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.format_table(), 64);
  std::vector<ha::RowUnit> units(at(planned.total_units()), ha::RowUnit{{0xabababab, 1, 2, 3}});
  auto const untouched = units;
  auto const cache = planned.with_buffer(units.data());
  auto const good = p.layouts();
  auto const layers = EngineProblem::layers<std::byte const>(p.keys, p.values);
  auto const refused = [&](auto const& from, auto const& layouts, auto const& to,
                           std::array<char const*, 4> const& why) {
    check_error<ha::ArgumentError>([&] { ha::import_rows(compaction, from, layouts, to); },
                                   {why[0], why[1], why[2], why[3]});
    CHECK(units == untouched);
  };
  using Layouts = ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>;
  // Rows of another format, and of fewer bytes.
  refused(layers, Layouts{good.values, good.keys}, cache,
          {"bytes of an engine's row", "68, as q8_0 has", "36", "keys"});
  refused(layers, Layouts{ha::strided_bshd(3, 13, 3, 64), good.values}, cache,
          {"bytes of an engine's row", "68", "64", "import_rows, keys, layer 0"});
  // Strides: shorter than a row, odd, and of channels.
  refused(layers, Layouts{{{3, 3, 13, 68}, {13 * 204, 66, 204, 1}}, good.values}, cache,
          {"stride of rows", "above 67", "66 (of 3 steps)", "keys"});
  refused(layers, Layouts{{{3, 3, 13, 68}, {13 * 204, 68, 202, 1}}, good.values}, cache,
          {"stride of rows", "above 203", "202 (of 13 steps)", "keys"});
  refused(layers, Layouts{{{3, 3, 13, 68}, {13 * 210, 69, 210, 1}}, good.values}, cache,
          {"rows of an engine", "a multiple of 2 bytes", "multiples of 1", "keys"});
  refused(layers, Layouts{{{3, 3, 13, 68}, {13 * 408, 136, 408, 2}}, good.values}, cache,
          {"bytes of an engine's row", "side by side", "others", "keys"});
  // Pointers: not aligned, and none.
  refused(EngineProblem::layers<std::byte const>(p.keys, p.values, 1), good, cache,
          {"rows of an engine", "a multiple of 2 bytes", "multiples of 1", "keys"});
  auto missing = layers;
  missing[1].values = nullptr;
  refused(missing, good, cache, {"pointer to rows", "a pointer", "nullptr", "values, layer 1"});
  // Other sequences, heads and tokens.
  refused(layers, Layouts{ha::strided_bshd(2, 13, 3, 68), good.values}, cache,
          {"engine's sequences", "3", "2", "keys"});
  refused(layers, Layouts{ha::strided_bshd(3, 13, 2, 68), good.values}, cache, {"engine's KV heads", "3", "2", "keys"});
  refused(layers, Layouts{ha::strided_bshd(3, 12, 3, 68), good.values}, cache,
          {"engine's tokens", "at least the longest length, 13", "12", "keys"});
  refused(std::vector{layers[0]}, good, cache, {"layers of the engine", "2", "1", "import_rows"});
  // Formats that no engine has, and that differ in a layer; caches without buffers, and of other lengths.
  auto formats = p.format_table();
  formats.set(1, 1, {ha::LlamaQ4{}, ha::LlamaQ4{}});
  auto const mixed = ha::packed_ragged(compaction, formats, 64);
  std::vector<ha::RowUnit> others(at(mixed.total_units()));
  refused(layers, good, mixed.with_buffer(others.data()),
          {"formats of a layer's heads", "q8_0/q4_0", "q4_0/q4_0", "layer 1"});
  auto const coded = ha::packed_ragged(compaction, ha::FormatTable(2, 3, {ha::LlamaQ8{}, ha::Packed<4>{}}), 64);
  refused(layers, good, coded.with_buffer(others.data()),
          {"format of values", "whose bytes an engine has", "packed4", "layer 0"});
  refused(layers, good, planned, {"destination", "buffers of 2 layers", "0", "import_rows"});
  ha::Compaction const shorter(p.table, std::vector<std::int32_t>{13, 2, 0});
  auto const few = ha::packed_ragged(shorter, p.format_table(), 64);
  others.resize(at(few.total_units()));
  refused(layers, good, few.with_buffer(others.data()), {"destination", "the compaction's lengths", "others", ""});
  check_error<ha::ArgumentError>([&] { (void)ha::EngineRowsPlan(compaction, few); },
                                 {"cache", "the compaction's lengths", "others", "EngineRowsPlan"});
  check_error<ha::ArgumentError>([&] { (void)ha::EngineRowsPlan(compaction, coded); },
                                 {"format of values", "", "packed4", "EngineRowsPlan"});
  // Tensors that lie in the cache.
  auto* const inside = reinterpret_cast<std::byte*>(units.data());
  std::vector<ha::LayerKv<std::byte>> overlapping{{p.keys[0].data(), p.values[0].data()}, {p.keys[1].data(), inside}};
  refused(overlapping, good, cache, {"buffers", "apart from the engine's", "overlapping", "import_rows"});
  check_error<ha::ArgumentError>([&] { ha::export_rows(compaction, cache, overlapping, good); },
                                 {"buffers", "apart from the engine's", "overlapping", "export_rows"});
  // What goes out needs room for the rows kept, not for all tokens: a head keeps all 13 here.
  auto const out = EngineProblem::layers<std::byte>(p.keys, p.values);
  check_error<ha::ArgumentError>(
      [&] {
        ha::export_rows(compaction, cache, out, Layouts{ha::strided_bshd(3, 12, 3, 68), good.values});
      },
      {"engine's tokens", "at least the longest length, 13", "12", "export_rows, keys"});
  CHECK(units == untouched);
}
