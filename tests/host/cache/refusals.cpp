// What `compress` and the makers of destinations refuse: each error's parts, and not a byte written.

#include "support/cache_arena.hpp"
#include "support/errors.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/with_keep_lists.hpp>

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// Two layers of two sequences of three heads, and room for all that they keep.
struct Setup {
  static constexpr std::int64_t dim = 6;
  std::vector<std::int32_t> lengths{20, 9};
  ha::StridedLayout layout = ha::strided_bhsd(2, 3, 20, dim);
  SourceCache<float, ha::StridedLayout> cache{layout, layout.required_span_size(), 2, dim, dim, 401};
  ha::PolicyTable table{2, 3, ha::SinkWindow{.sink = 2, .window = 6}};
  ha::Compaction<> compaction{table, lengths};
  std::vector<float> keys = guarded<float>(compaction.kept_total() * dim + 8);
  std::vector<float> values = keys;
  std::vector<ha::LayerKv<float const>> layers =
      static_cast<SourceCache<float, ha::StridedLayout> const&>(cache).layers();
  ha::Destination<float, ha::RaggedForm> kept = ha::ragged(compaction, keys.data(), values.data(), dim);

  template <class Call>
  void refuses(Call const& call, ha::ErrorDetail const& parts) const {
    check_error<ha::ArgumentError>(call, parts);
    REQUIRE(first_difference(keys, guarded<float>(compaction.kept_total() * dim + 8)) == "");
    REQUIRE(first_difference(values, guarded<float>(compaction.kept_total() * dim + 8)) == "");
  }
  /// Both `compress` and `validate` must refuse.
  template <class Source>
  void refuses(std::vector<ha::LayerKv<float const>> const& from, Source const& source,
               ha::Destination<float, ha::RaggedForm> const& to, ha::ErrorDetail const& parts) const {
    refuses([&] { ha::compress(compaction, from, source, to); }, parts);
    refuses([&] { ha::validate(compaction, ha::transfer(from, source, to)); }, parts);
    refuses([&] { ha::validate(compaction.on_device(table.view(), lengths.data()), ha::transfer(from, source, to)); },
            parts);
  }
};

template <class T>
T* shifted(T* pointer, std::ptrdiff_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(pointer) + static_cast<std::uintptr_t>(bytes));
}

}  // namespace

TEST_CASE("pointers that are missing or misaligned", "[cache]") {
  Setup const s;
  for (std::size_t layer = 0; layer < 2; ++layer) {
    std::string const place = "compress, layer " + std::to_string(layer);
    auto from = s.layers;
    from[layer].keys = nullptr;
    s.refuses(from, s.layout, s.kept, {"source keys", "a pointer", "nullptr", place});
    from = s.layers;
    from[layer].values = nullptr;
    s.refuses(from, s.layout, s.kept, {"source values", "a pointer", "nullptr", place});
    auto to = s.kept;
    to.layers[layer].keys = nullptr;
    s.refuses(s.layers, s.layout, to, {"destination keys", "a pointer", "nullptr", place});
    to = s.kept;
    to.layers[layer].values = nullptr;
    s.refuses(s.layers, s.layout, to, {"destination values", "a pointer", "nullptr", place});
    for (std::ptrdiff_t const shift : {1, 2, 3}) {
      std::string const got = "one " + std::to_string(shift) + " bytes beyond";
      from = s.layers;
      from[layer].values = shifted(from[layer].values, shift);
      s.refuses(from, s.layout, s.kept, {"source values", "aligned to 4 bytes", got, place});
      to = s.kept;
      to.layers[layer].keys = shifted(to.layers[layer].keys, shift);
      s.refuses(s.layers, s.layout, to, {"destination keys", "aligned to 4 bytes", got, place});
    }
  }
}

TEST_CASE("tensors of another shape than the compaction's", "[cache]") {
  Setup const s;
  auto from = s.layers;
  from.push_back(from[0]);
  s.refuses(from, s.layout, s.kept, {"source layers", "2", "3", "compress"});
  auto to = s.kept;
  to.layers.pop_back();
  s.refuses(s.layers, s.layout, to, {"destination layers", "2", "1", "compress"});
  to = s.kept;
  to.capacities.pop_back();
  s.refuses(s.layers, s.layout, to, {"destination capacities", "2", "1", "compress"});
  auto const good = s.layout;
  auto const both = [&](ha::StridedLayout const& bad, ha::ErrorDetail const& parts) {
    ha::ErrorDetail keys = parts;
    keys.where = "compress, keys";
    ha::ErrorDetail values = parts;
    values.where = "compress, values";
    s.refuses(s.layers, bad, s.kept, keys);
    s.refuses(s.layers, ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>{good, bad}, s.kept, values);
  };
  both(ha::strided_bhsd(1, 3, 20, 6), {"source sequences", "2", "1", ""});
  both(ha::strided_bhsd(2, 4, 20, 6), {"source KV heads", "3", "4", ""});
  both(ha::strided_bhsd(2, 3, 20, 5), {"source channels", "6", "5", ""});
  both(ha::strided_bhsd(2, 3, 19, 6), {"source tokens", "at least the longest length, 20", "19", ""});
}

TEST_CASE("buffers that overlap, and buffers that only touch", "[cache]") {
  // One buffer holds the source and the destination of one layer, one after the other.
  std::vector<std::int32_t> const lengths{10};
  auto const layout = ha::strided_bhsd(1, 1, 10, 4);
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 3}), lengths);
  std::vector<std::uint16_t> values(12);
  std::vector<std::uint16_t> source_values(40);
  for (bool const source_first : {true, false}) {
    std::vector<std::uint16_t> buffer(52);
    std::iota(buffer.begin(), buffer.end(), std::uint16_t{0});
    auto const before = buffer;
    std::uint16_t* const source = buffer.data() + (source_first ? 0 : 12);
    std::uint16_t* const kept = buffer.data() + (source_first ? 40 : 0);
    auto const call = [&](std::uint16_t* from, std::uint16_t* to) {
      ha::compress(compaction, std::vector<ha::LayerKv<std::uint16_t>>{{from, source_values.data()}}, layout,
                   ha::ragged(compaction, to, values.data(), 4));
    };
    ha::ErrorDetail const parts{"buffers", "compress_in_place", "overlapping buffers", "compress"};
    check_error<ha::ArgumentError>([&] { call(source, kept + (source_first ? -1 : 1)); }, parts);
    check_error<ha::ArgumentError>([&] { call(source, source); }, parts);
    check_error<ha::ArgumentError>([&] { call(source, source + 20); }, parts);
    REQUIRE(buffer == before);
    call(source, kept);
    for (std::size_t i = 0; i < 12; ++i) REQUIRE(kept[i] == source[28 + i]);
  }
  // Layers among each other, keys with values: the far ends of long lists of buffers.
  Setup const s;
  for (std::size_t layer = 0; layer < 2; ++layer) {
    // Nothing else lies after these keys, into which the values reach.
    std::vector<float> keys(
        static_cast<std::size_t>(s.layout.required_span_size() + s.compaction.kept_total() * s.dim));
    auto from = s.layers;
    from[layer].keys = keys.data();
    auto to = s.kept;
    to.layers[1 - layer].values = keys.data() + s.layout.required_span_size() - 1;
    s.refuses(from, s.layout, to, {"buffers", "apart from the source", "overlapping buffers", "compress"});
  }
}

TEST_CASE("a source within a paged destination's pool, also after a shorter one", "[cache]") {
  ha::Compaction const compaction(ha::PolicyTable(1, 1, ha::WindowOnly{.window = 3}), std::vector<std::int32_t>{10});
  std::vector<float> buffer(200);
  float* const at = buffer.data();
  std::vector<float> const values(40);
  std::vector<std::int32_t> const table{0};
  ha::KvLayouts const source{ha::strided_bhsd(1, 1, 10, 1), ha::strided_bhsd(1, 1, 10, 4)};
  auto const validate = [&](float const* keys, ha::LayerKv<float> const& pool, std::int64_t stride) {
    ha::PagedForm const form{.block_table = table.data(), .table_stride = 1, .page_size = 4, .page_stride = stride};
    auto const kept = ha::paged(compaction, std::vector<ha::LayerKv<float>>{pool}, form, 1, 4, 4);
    ha::validate(compaction, ha::transfer(std::vector<ha::LayerKv<float const>>{{keys, values.data()}}, source, kept));
  };
  ha::ErrorDetail const parts{"buffers", "apart from the source", "overlapping buffers", "compress"};
  // Values [0, 64), keys [8, 24): the source's keys lie after the pool's, within its values.
  check_error<ha::ArgumentError>([&] { validate(at + 40, {at + 8, at}, 0); }, parts);
  check_error<ha::ArgumentError>([&] { validate(at + 63, {at + 8, at}, 0); }, parts);
  validate(at + 64, {at + 8, at}, 0);
  // Pages of keys and values in turn, 20 elements each: the last one's values end at 80.
  check_error<ha::ArgumentError>([&] { validate(at + 79, {at, at + 4}, 20); }, parts);
  validate(at + 80, {at, at + 4}, 20);
}

TEST_CASE("a bad second transfer leaves the first one's destination alone", "[cache]") {
  Setup const s;
  auto const scale_layout = ha::strided_bhsd(2, 3, 20, 1);
  SourceCache<std::uint16_t, ha::StridedLayout> const scales(scale_layout, scale_layout.required_span_size(), 2, 1, 1,
                                                             402);
  std::vector<std::uint16_t> scale_keys(static_cast<std::size_t>(s.compaction.kept_total()));
  std::vector<std::uint16_t> scale_values(scale_keys);
  auto to = ha::ragged(s.compaction, scale_keys.data(), scale_values.data(), 1);
  to.layers[1].values = nullptr;
  s.refuses(
      [&] {
        ha::compress(s.compaction, ha::transfer(s.layers, s.layout, s.kept),
                     ha::transfer(scales.layers(), scale_layout, to));
      },
      {"destination values", "a pointer", "nullptr", "layer 1"});
}

TEST_CASE("transfers of one call share no memory that is written", "[cache]") {
  Setup const s;
  auto const again = ha::transfer(s.layers, s.layout, s.kept);
  s.refuses([&] { ha::compress(s.compaction, again, again); },
            {"buffers", "apart from each other", "overlapping destinations", "compress"});
  // The second transfer reads what the first writes.
  ha::PolicyTable const full(2, 3, ha::Full{});
  std::vector<float> other(s.keys.size());
  auto const from_kept = std::vector<ha::LayerKv<float const>>(2, {s.keys.data(), s.values.data()});
  auto const target = ha::ragged(s.compaction, other.data(), other.data() + s.compaction.kept_total(), 1);
  s.refuses(
      [&] {
        ha::validate(s.compaction, ha::transfer(s.layers, s.layout, s.kept),
                     ha::transfer(from_kept, ha::strided_bhsd(2, 3, 20, 1), target));
      },
      {"buffers", "apart from the source", "overlapping buffers", "compress"});
}

TEST_CASE("in place, keys and values are two tensors", "[cache]") {
  Setup s;
  std::vector<float> tensor(static_cast<std::size_t>(s.layout.required_span_size()), 1.0F);
  std::vector<float> other(tensor);
  std::vector<ha::LayerKv<float>> const layers{{tensor.data(), other.data()}, {tensor.data(), tensor.data()}};
  check_error<ha::ArgumentError>([&] { ha::compress_in_place(s.compaction, layers, s.layout); },
                                 {"keys and values", "two tensors", "one", "compress_in_place, layer 1"});
}

TEST_CASE("keep-lists that are out of order or range", "[cache]") {
  Setup const s;
  std::vector<std::int32_t> const tokens{3, 4, 4, 9};
  ha::UniformTable const below(ha::SinkWindow{.sink = 2, .window = 6}, 2, 3);
  auto const refused = [&](std::size_t place, ha::KeepList const& list, ha::ErrorDetail const& parts) {
    std::vector<ha::KeepList> lists(12);
    lists[place] = list;
    ha::Compaction const compaction(ha::WithKeepLists(below, lists.data(), 2), s.lengths);
    REQUIRE(compaction.kept_total() <= s.compaction.kept_total());
    s.refuses(
        [&] {
          ha::compress(
              compaction, s.layers, s.layout,
              ha::ragged(compaction, const_cast<float*>(s.keys.data()), const_cast<float*>(s.values.data()), 6));
        },
        parts);
  };
  // The last segment: all others are right, and none of them is moved.
  refused(11, {tokens.data(), 3}, {"keep-list entry", "[5, 9)", "4", "KeepList entry 2"});
  refused(11, {tokens.data() + 2, 2}, {"keep-list entry", "[5, 9)", "9", "KeepList entry 1"});
  refused(0, {tokens.data(), 4}, {"keep-list entry", "[5, 20)", "4", "KeepList entry 2"});
}

TEST_CASE("paged destinations that do not add up", "[cache]") {
  Setup const s;
  constexpr std::int32_t pages_of_4 = 24;  // 12 heads of 8 tokens
  std::vector<std::int32_t> indices(pages_of_4);
  std::iota(indices.begin(), indices.end(), 0);
  std::vector<std::int32_t> indptr(13);
  for (std::size_t i = 0; i < 13; ++i) indptr[i] = static_cast<std::int32_t>(2 * i);
  auto pool_keys = guarded<float>(pages_of_4 * 4 * 6);
  auto pool_values = pool_keys;
  std::vector<ha::LayerKv<float>> const pools(2, {pool_keys.data(), pool_values.data()});
  auto const refused = [&](ha::PagedForm const& form, std::int64_t num_pages, ha::ErrorDetail const& parts) {
    s.refuses(
        [&] { ha::compress(s.compaction, s.layers, s.layout, ha::paged(s.compaction, pools, form, 6, num_pages)); },
        parts);
    REQUIRE(first_difference(pool_keys, guarded<float>(pages_of_4 * 4 * 6)) == "");
    REQUIRE(first_difference(pool_values, guarded<float>(pages_of_4 * 4 * 6)) == "");
  };
  auto const csr = [&](std::vector<std::int32_t> const& pages, std::vector<std::int32_t> const& ends) {
    return ha::PagedForm{.block_table = pages.data(), .indptr = ends.data(), .page_size = 4};
  };
  for (std::int32_t const bad : {-1, pages_of_4, 1 << 30}) {
    auto broken = indices;
    broken.back() = bad;
    refused(csr(broken, indptr), pages_of_4,
            {"block table entry", "a page in [0, 24)", std::to_string(bad), "compress, segment 11, page 1"});
    refused({.block_table = broken.data(), .table_stride = 2, .page_size = 4}, pages_of_4,
            {"block table entry", "a page in [0, 24)", std::to_string(bad), "compress, segment 11, page 1"});
  }
  // The fourth head's row is too short, the pool's size known or not.
  auto short_row = indptr;
  for (std::size_t i = 4; i < 13; ++i) --short_row[i];
  for (std::int64_t const num_pages : {0, pages_of_4}) {
    refused(csr(indices, short_row), num_pages,
            {"destination", "room for 8 tokens", "4", "layer 0, sequence 1, KV head 0"});
  }
  refused({.block_table = indices.data(), .table_stride = 1, .page_size = 4}, 0,
          {"block table row", "room for 8 tokens of layer 0", "4", "paged"});
  refused({.block_table = indices.data(), .table_stride = 1, .page_size = 7}, 0,
          {"block table row", "room for 8 tokens of layer 0", "7", "paged"});
  refused({.block_table = indices.data(), .table_stride = 2, .page_size = 0}, 0, {"page size", "> 0", "0", "paged"});
  refused({.block_table = indices.data(), .table_stride = 2, .page_size = -4}, 0, {"page size", "> 0", "-4", "paged"});
  refused({.block_table = nullptr, .table_stride = 2, .page_size = 4}, 0,
          {"block table", "a pointer", "nullptr", "paged"});
  refused({.block_table = indices.data(), .table_stride = 2, .page_size = 4, .page_stride = 23}, 0,
          {"page stride", ">= 24", "23", "paged"});
  s.refuses(
      [&] {
        (void)ha::paged(s.compaction, std::vector<ha::LayerKv<float>>(1, pools[0]), csr(indices, indptr), 6,
                        pages_of_4);
      },
      {"layers", "2", "1", "paged"});
}

TEST_CASE("destinations that no compaction asked for", "[cache]") {
  Setup s;
  float* const keys = s.keys.data();
  std::vector<ha::LayerKv<float>> const one(1, {keys, keys});
  std::vector<ha::LayerKv<float>> const three(3, {keys, keys});
  auto const refused = [&](auto const& call, ha::ErrorDetail const& parts) { s.refuses(call, parts); };
  refused([&] { (void)ha::ragged(s.compaction, one, 6); }, {"layers", "2", "1", "ragged"});
  refused([&] { (void)ha::padded(s.compaction, three, 6); }, {"layers", "2", "3", "padded"});
  refused([&] { (void)ha::grouped(s.compaction, one, 6); }, {"layers", "2", "1", "grouped"});
  for (std::int64_t const bad : {0, -1}) {
    refused([&] { (void)ha::ragged(s.compaction, keys, keys, bad, 6); },
            {"channels of a key", "> 0", std::to_string(bad), "ragged"});
    refused([&] { (void)ha::padded(s.compaction, keys, keys, bad, ha::Alignment::left, 6); },
            {"channels of a key", "> 0", std::to_string(bad), "padded"});
    refused([&] { (void)ha::grouped(s.compaction, keys, keys, bad, 6); },
            {"channels of a key", "> 0", std::to_string(bad), "grouped"});
  }
  refused([&] { (void)ha::ragged(s.compaction, keys, keys, 6, -1); }, {"channels of a value", "> 0", "-1", "ragged"});
}

TEST_CASE("destinations made for another compaction", "[cache]") {
  Setup const s;
  auto const other = [&](std::vector<std::int32_t> const& lengths, std::int32_t heads, std::int32_t window) {
    return ha::Compaction(ha::PolicyTable(2, heads, ha::SinkWindow{.sink = 2, .window = window}), lengths);
  };
  float* const keys = const_cast<float*>(s.keys.data());
  float* const values = const_cast<float*>(s.values.data());
  auto const refused = [&](ha::Compaction<> const& compaction, ha::ErrorDetail const& dense,
                           ha::ErrorDetail const& rows) {
    s.refuses([&] { ha::compress(s.compaction, s.layers, s.layout, ha::ragged(compaction, keys, values, 6)); }, rows);
    s.refuses([&] { ha::compress(s.compaction, s.layers, s.layout, ha::padded(compaction, keys, values, 6)); }, dense);
    s.refuses([&] { ha::compress(s.compaction, s.layers, s.layout, ha::grouped(compaction, keys, values, 6)); }, dense);
  };
  // One token too few a head: the dense forms notice it at the first, a ragged layer at its last.
  refused(other({20, 9}, 3, 5), {"destination", "room for 8 tokens", "7", "layer 0, sequence 0, KV head 0"},
          {"destination", "room for 8 tokens", "2", "layer 0, sequence 1, KV head 2"});
  s.refuses(
      [&] {
        ha::compress(s.compaction, s.layers, s.layout, ha::padded(other({20, 9}, 4, 6), keys, values, 6));
      },
      {"destination KV heads", "3", "4", "compress"});
  s.refuses(
      [&] {
        ha::compress(s.compaction, s.layers, s.layout, ha::grouped(other({20, 9, 1}, 3, 6), keys, values, 6));
      },
      {"destination sequences", "2", "3", "compress"});
}
