#pragma once

// Checks of destinations and of page tables in host memory, before anything is written.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/check_tensors.hpp>
#include <headaware/cache/detail/kept_tokens.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/intervals.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Checks that a destination, which may be made for another compaction, has room for this one.
template <class Table, class T, class Form>
void check_capacity(Compaction<Table> const& compaction, Destination<T, Form> const& kept) {
  for (std::int64_t s = 0; s < compaction.num_segments(); ++s) {
    Segment const segment = compaction.segment(s);
    LayerCapacity const& capacity = kept.capacities[static_cast<std::size_t>(segment.layer)];
    if constexpr (requires { kept.form.matches(segment); }) {
      bool const matches = visit_policy(compaction.table(), segment.layer, segment.sequence, segment.kv_head,
                                        [&](auto const& policy) { return kept.form.matches(segment, policy); });
      require(matches, "destination", "one made for the compaction's policies", "one made for others",
              {"compress, layer ", segment.layer, ", KV head ", segment.kv_head});
    }
    std::int64_t room = kept.form.head_capacity(segment, capacity);
    if constexpr (std::is_same_v<Form, RaggedForm>) room -= segment.first_row;
    require(segment.kept <= room, "destination", {"room for ", segment.kept, " tokens"}, room,
            PlaceOf{"compress", segment});
  }
}

/// A page of keys or of values that a call writes.
struct WrittenPage {
  Interval memory;
  std::int64_t segment = 0;
  std::int64_t index = 0;  ///< in the segment's row of the table
  std::int64_t page = 0;
};

/// The pages that a call writes, in the order in which tables name them.
struct WrittenPages {
  std::vector<WrittenPage> pages;
  std::vector<std::size_t> runs;  ///< where the pages of a layer's keys begin, or of its values
};

/// Fails with the place of an entry of a block table.
template <class = void>
[[noreturn]] void refuse_entry(Text const& expected, Text const& got, char const* where, Segment const& segment,
                               std::int64_t index) {
  throw ArgumentError({"block table entry", expected.str(), got.str(),
                       Text({where, ", segment ", segment.index, ", page ", index, PlaceOf{"", segment}}).str()});
}

/// Checks a block table in host memory, and notes the pages.
template <class T, class Form>
void check_block_table(CacheSizes const& sizes, Destination<T, Form> const& kept, WrittenPages& written,
                       char const* where) {
  if constexpr (std::is_same_v<Form, PagedForm>) {
    PagedForm const& form = kept.form;
    std::int64_t const end = kept.num_pages != 0 ? kept.num_pages : std::int64_t{1} << 31;
    std::vector<WrittenPage>& pages = written.pages;
    std::size_t total = 0;
    for (std::int32_t layer = 0; layer < sizes.num_layers(); ++layer) {
      LayerCapacity const& capacity = kept.capacities[static_cast<std::size_t>(layer)];
      total += static_cast<std::size_t>(sizes.pages_total(layer, form.page_size_of(capacity).value()));
    }
    pages.reserve(pages.size() + 2 * total);
    std::int64_t page_size = 0;  // of the segment's layer
    auto const note = [&](T const* data, std::int64_t channels, WrittenPage page) {
      std::int64_t const stride = form.page_stride != 0 ? form.page_stride : page_size * channels;
      auto const bytes = [](std::int64_t elements) { return static_cast<std::uintptr_t>(elements) * sizeof(T); };
      page.memory.begin =
          reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(page.page) * bytes(stride);
      page.memory.end = page.memory.begin + bytes(page_size * channels);
      pages.push_back(page);
    };
    for (std::int64_t s = 0; s < sizes.num_segments(); ++s) {
      Segment const segment = sizes.segment(s);
      LayerKv<T> const& pool = kept.layers[static_cast<std::size_t>(segment.layer)];
      RowChannels const channels = kept.channels.of(static_cast<std::size_t>(segment.layer));
      if (s == sizes.first_segment(segment.layer)) written.runs.push_back(pages.size());
      page_size = form.page_size_of(kept.capacities[static_cast<std::size_t>(segment.layer)]).value();
      std::int64_t const row = form.entry(s);
      require(row >= 0, "block table's indptr", ">= 0", row, PlaceOf{where, segment});
      for (std::int64_t i = 0; i * page_size < segment.kept; ++i) {
        std::int64_t const page = form.block_table[row + i];
        if (page < 0 || page >= end) refuse_entry({"a page in [0, ", end, ")"}, page, where, segment, i);
        note(pool.keys, channels.head_dim, {{}, s, i, page});
      }
      if (s + 1 != sizes.first_segment(segment.layer + 1) || channels.value_dim == 0) continue;
      std::size_t const first = written.runs.back();
      std::size_t const last = pages.size();
      written.runs.push_back(last);
      for (std::size_t i = first; i < last; ++i) note(pool.values, channels.value_dim, pages[i]);
    }
  }
}

/// Checks that no page belongs to two heads, or both to keys and to values.
template <class Page = WrittenPage>
void check_pages_apart(CacheSizes const& sizes, WrittenPages& written, char const* where) {
  auto const earlier = [](Page const& x, Page const& y) { return x.memory.begin < y.memory.begin; };
  auto const check = [&](std::span<Page> pages) {
    // Tables as `consecutive_pages` makes them ascend already.
    if (!std::is_sorted(pages.begin(), pages.end(), earlier)) std::sort(pages.begin(), pages.end(), earlier);
    for (std::size_t i = 1; i < pages.size(); ++i) {
      if (pages[i - 1].memory.end <= pages[i].memory.begin) continue;
      auto const [first, second] = std::minmax(pages[i - 1], pages[i], [](auto const& x, auto const& y) {
        return x.segment != y.segment ? x.segment < y.segment : x.index < y.index;
      });
      refuse_entry("a page of one head's keys or values",
                   {second.page, ", which meets page ", first.page, " of segment ", first.segment}, where,
                   sizes.segment(second.segment), second.index);
    }
  };
  std::span<Page> const pages(written.pages);
  std::vector<Interval> stretches;  // that runs lie in
  for (std::size_t i = 0; i < written.runs.size(); ++i) {
    std::size_t const end = i + 1 < written.runs.size() ? written.runs[i + 1] : pages.size();
    auto const run = pages.subspan(written.runs[i], end - written.runs[i]);
    check(run);
    if (!run.empty()) stretches.push_back({run.front().memory.begin, run.back().memory.end});
  }
  if (sort_and_overlap(stretches)) check(pages);
}

/// The memory that a call may read of one tensor.
/// @param tokens_of  (sequence) to ranges of tokens
template <class T, class Layout, class TokensOf>
void add_pages_read(std::vector<Interval>& read, T const* data, Layout const& layout, std::int64_t sequences,
                    TokensOf const& tokens_of) {
  if constexpr (in_pages<Layout>) {
    std::int64_t page_stride = 0;
    std::int64_t reach = 1;  // elements of a page
    for (LayoutDirection const& d : layout.directions()) {
      if (d.by_table) {
        page_stride = d.stride;
      } else {
        reach += (std::max<std::int64_t>(d.count, 1) - 1) * d.stride;
      }
    }
    std::int64_t const size = layout.shape().page_size;
    for (std::int64_t s = 0; s < sequences; ++s) {
      for (TokenRange const& tokens : tokens_of(s)) {
        for (std::int64_t i = tokens.begin / size; i * size < tokens.end; ++i) {
          read.push_back(interval(data + layout.plane() + layout.table().page(s, i) * page_stride, reach));
        }
      }
    }
  } else {
    add_extent(read, layout, data);
  }
}

/// Checks that no row of a written page is read: neither that of a page of the source in the same pool, nor of
/// a source that lies in it.
template <class Table, class... Transfers>
void check_pages_not_read(Compaction<Table> const& compaction, KeptTokens<Table> const& tokens,
                          WrittenPages const& written, char const* where, Transfers const&... transfers) {
  if (written.pages.empty()) return;
  std::vector<Interval> pages;
  for (WrittenPage const& page : written.pages) {
    // One stretch of pages that touch.
    if (pages.empty() || pages.back().end != page.memory.begin) {
      pages.push_back(page.memory);
    } else {
      pages.back().end = page.memory.end;
    }
  }
  auto const meets = [&](auto const& add) {
    std::vector<Interval> read;
    auto const add_all = [&](auto const& transfer) {
      for (std::size_t l = 0; l < transfer.layers.size(); ++l) {
        if (transfer.kept.capacities[l].num_kv_heads == 0) continue;
        auto const& source = layer_source(transfer.source, l);
        auto const layer = static_cast<std::int32_t>(l);
        auto const add_layer = [&](KeptTokens<Table> const& of_layer) {
          add(read, transfer.layers[l].keys, keys_of(source), of_layer);
          if (transfer.kept.channels.of(l).value_dim == 0) return;
          add(read, transfer.layers[l].values, values_of(source), of_layer);
        };
        if constexpr (is_layered<std::remove_cvref_t<decltype(transfer.source)>>) {
          add_layer(KeptTokens<Table>(compaction, layer, layer + 1));
        } else {
          add_layer(tokens);
        }
      }
    };
    (add_all(transfers), ...);
    return sort_and_overlap(read, pages);
  };
  // Page by page only if tensors meet as a whole.
  bool const met =
      meets([](auto& read, auto const* data, auto const& layout, auto const&) { add_extent(read, layout, data); }) &&
      meets([&](auto& read, auto const* data, auto const& layout, auto const& tokens_of) {
        add_pages_read(read, data, layout, compaction.num_sequences(), tokens_of);
      });
  require(!met, "buffers", "pages to write apart from all that is read", "overlapping pages", where);
}

/// Tables of tensors that are read must name places for what heads keep: where layers have layouts of their own, for
/// what those layers' heads keep.
/// @param tokens  of all layers; @param keys, values  where, in messages
template <class Table, class Source>
void check_tables_of_tokens(Compaction<Table> const& compaction, Source const& source, KeptTokens<Table> const& tokens,
                            char const* keys, char const* values) {
  if constexpr (is_layered<Source>) {
    for (std::int32_t layer = 0; layer < compaction.num_layers(); ++layer) {
      if (compaction.num_kv_heads(layer) == 0) continue;
      check_source_tables(layer_source(source, static_cast<std::size_t>(layer)), compaction.num_sequences(),
                          KeptTokens(compaction, layer, layer + 1), keys, values);
    }
  } else {
    check_source_tables(source, compaction.num_sequences(), tokens, keys, values);
  }
}

/// In place, a page of two sequences would be compacted twice.
template <class Layout>
void check_pages_of_one_sequence(Layout const& layout, std::span<std::int32_t const> lengths, char const* where) {
  if constexpr (in_pages<Layout>) {
    struct Use {
      std::int64_t page;
      std::size_t sequence;
    };
    std::vector<Use> uses;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (std::int64_t i = 0; i < pages_for(lengths[s], layout.shape().page_size); ++i) {
        uses.push_back({layout.table().page(static_cast<std::int64_t>(s), i), s});
      }
    }
    std::stable_sort(uses.begin(), uses.end(), [](Use const& x, Use const& y) { return x.page < y.page; });
    for (std::size_t i = 1; i < uses.size(); ++i) {
      require(uses[i - 1].page != uses[i].page, "page table entry", "a page that is named once",
              {uses[i].page, ", also of sequence ", uses[i - 1].sequence}, {where, ", sequence ", uses[i].sequence});
    }
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
