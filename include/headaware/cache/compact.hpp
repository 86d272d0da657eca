#pragma once

/// @file
/// Compaction on the CPU: copies what every head keeps into a compressed cache, or moves it to the
/// front of the cache it is in. All cores, where the compiler has OpenMP.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/stream_bytes.hpp>
#include <headaware/cache/rotation.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/rolling_policy.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/window_only.hpp>
#include <headaware/token_bytes.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Slots [begin, end) of one segment, or of neighbouring heads of one sequence: what one thread moves at a time.
struct Tile {
  std::int64_t first_segment = 0;
  std::int64_t heads = 1;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// @brief Cuts all segments into tiles, so that one long head does not keep one thread busy alone.
/// @param rows   rows of a head in a tile, at most
/// @param heads  heads that share a tile; divides the number of KV heads
template <class Plan>
std::vector<Tile> make_tiles(Plan const& plan, std::int64_t rows, std::int64_t heads) {
  std::vector<Tile> tiles;
  for (std::int64_t first = 0; first < plan.num_segments(); first += heads) {
    std::int64_t most = 0;
    for (std::int64_t s = first; s < first + heads; ++s) {
      auto const i = static_cast<std::size_t>(s);
      most = std::max(most, plan.offsets()[i + 1] - plan.offsets()[i]);
    }
    for (std::int64_t begin = 0; begin < most; begin += rows) {
      tiles.push_back({first, heads, begin, std::min(most, begin + rows)});
    }
  }
  return tiles;
}

/// Whether a token's heads are closer together than a head's tokens.
template <class Layout>
bool heads_interleave(Layout const& layout, CacheBounds const& bounds) {
  if (bounds.num_kv_heads < 2 || bounds.max_length < 2 || bounds.max_rows == 0) return false;
  return layout.offset(0, 1, 0, 0) < layout.offset(0, 0, 1, 0);
}

/// A destination made for another plan may be too small for this one.
template <class Plan, class T, class Form>
void check_capacity(Plan const& plan, Destination<T, Form> const& kept) {
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    Segment segment = plan.segment(s);
    if constexpr (Form::needs_group) place_in_group(plan.table(), segment);
    LayerCapacity const& capacity = kept.capacities[static_cast<std::size_t>(segment.layer)];
    if constexpr (requires { kept.form.matches(segment); }) {
      bool const matches = visit_policy(plan.table(), segment.layer, segment.sequence, segment.kv_head,
                                        [&](auto const& policy) { return kept.form.matches(segment, policy); });
      if (!matches) {
        require(false, "destination", "one made for the plan's policies", "one made for others",
                {"compress, layer ", segment.layer, ", KV head ", segment.kv_head});
      }
    }
    std::int64_t room = kept.form.head_capacity(segment, capacity);
    if constexpr (std::is_same_v<Form, RaggedForm>) room -= segment.first_row;
    if (segment.kept > room) {
      require(false, "destination", {"room for ", segment.kept, " tokens"}, room,
              {"compress, layer ", segment.layer, ", sequence ", segment.sequence, ", KV head ", segment.kv_head});
    }
  }
}

/// The tokens of each sequence that some head keeps, and that a call reads: pages of the others may be gone. Of heads
/// that keep sinks and a window they are known; if one keeps others, all.
template <class Plan>
auto kept_tokens(Plan const& plan) {
  std::vector<std::array<TokenRange, 2>> kept;
  for (std::int32_t sequence = 0; sequence < plan.num_sequences(); ++sequence) {
    WindowRule widest;
    for (std::int32_t layer = 0; layer < plan.num_layers(); ++layer) {
      for (std::int32_t head = 0; head < plan.num_kv_heads(); ++head) {
        visit_policy(plan.table(), layer, sequence, head, [&]<class P>(P const& policy) {
          WindowRule form{all_tokens, 0};
          if constexpr (RollingPolicy<P>) form = rolling_form(policy);
          widest = {std::max(widest.sink, form.sink), std::max(widest.window, form.window)};
        });
      }
    }
    WindowRange const tokens = widest.range(plan.lengths()[static_cast<std::size_t>(sequence)]);
    kept.push_back({TokenRange{tokens.begin, tokens.length}, TokenRange{0, tokens.sinks}});
  }
  return [kept = std::move(kept)](std::int64_t sequence) { return kept[static_cast<std::size_t>(sequence)]; };
}

/// A page of keys or of values that a call writes.
struct WrittenPage {
  Interval memory;
  std::int64_t segment = 0;
  std::int64_t index = 0;  ///< in the segment's row of the table
  std::int64_t page = 0;
};

inline std::string place_of(char const* where, Segment const& segment, std::int64_t index) {
  return std::string(where) + ", segment " + std::to_string(segment.index) + ", page " + std::to_string(index) +
         place_of("", segment);
}

/// The pages that a call writes, in the order in which tables name them.
struct WrittenPages {
  std::vector<WrittenPage> pages;
  std::vector<std::size_t> runs;  ///< where the pages of a layer's keys begin, or of its values
};

/// Checks a block table in host memory, and notes the pages.
template <class Plan, class T>
void check_block_table(Plan const& plan, Destination<T, PagedForm> const& kept, WrittenPages& written,
                       char const* where) {
  PagedForm const& form = kept.form;
  std::int64_t const end = kept.num_pages != 0 ? kept.num_pages : std::int64_t{1} << 31;
  std::vector<WrittenPage>& pages = written.pages;
  pages.reserve(pages.size() + 2 * static_cast<std::size_t>(plan.pages_total(form.page_size)));
  auto const note = [&](T const* data, std::int64_t channels, WrittenPage page) {
    auto const stride =
        static_cast<std::uintptr_t>(form.page_stride != 0 ? form.page_stride : form.page_size * channels);
    page.memory.begin =
        reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(page.page) * stride * sizeof(T);
    page.memory.end = page.memory.begin + static_cast<std::uintptr_t>(form.page_size * channels) * sizeof(T);
    pages.push_back(page);
  };
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    Segment const segment = plan.segment(s);
    LayerKv<T> const& pool = kept.layers[static_cast<std::size_t>(segment.layer)];
    if (s % plan.layer_segments() == 0) written.runs.push_back(pages.size());
    std::int64_t const row = form.indptr != nullptr ? form.indptr[s] : s * form.table_stride;
    if (row < 0) require(false, "block table's indptr", ">= 0", row, place_of(where, segment));
    for (std::int64_t i = 0; i * form.page_size < segment.kept; ++i) {
      std::int64_t const page = form.block_table[row + i];
      if (page < 0 || page >= end) {
        require(false, "block table entry", {"a page in [0, ", end, ")"}, page, place_of(where, segment, i));
      }
      note(pool.keys, kept.head_dim, {{}, s, i, page});
    }
    if ((s + 1) % plan.layer_segments() != 0) continue;
    std::size_t const first = written.runs.back();
    std::size_t const last = pages.size();
    written.runs.push_back(last);
    for (std::size_t i = first; i < last; ++i) note(pool.values, kept.value_dim, pages[i]);
  }
}
template <class Plan, class T, class Form>
void check_block_table(Plan const&, Destination<T, Form> const&, WrittenPages&, char const*) {}

/// No page may be two heads', or both of keys and of values.
template <class Plan>
void check_pages_apart(Plan const& plan, WrittenPages& written, char const* where) {
  auto const earlier = [](WrittenPage const& x, WrittenPage const& y) { return x.memory.begin < y.memory.begin; };
  auto const check = [&](std::span<WrittenPage> pages) {
    // Tables as `consecutive_pages` makes them ascend already.
    if (!std::is_sorted(pages.begin(), pages.end(), earlier)) std::sort(pages.begin(), pages.end(), earlier);
    for (std::size_t i = 1; i < pages.size(); ++i) {
      if (pages[i - 1].memory.end <= pages[i].memory.begin) continue;
      auto const [first, second] = std::minmax(pages[i - 1], pages[i], [](auto const& x, auto const& y) {
        return x.segment != y.segment ? x.segment < y.segment : x.index < y.index;
      });
      require(false, "block table entry", "a page of one head's keys or values",
              {second.page, ", which meets page ", first.page, " of segment ", first.segment},
              place_of(where, plan.segment(second.segment), second.index));
    }
  };
  std::span<WrittenPage> const pages(written.pages);
  std::vector<Interval> stretches;  // that runs lie in
  for (std::size_t i = 0; i < written.runs.size(); ++i) {
    std::size_t const end = i + 1 < written.runs.size() ? written.runs[i + 1] : pages.size();
    auto const run = pages.subspan(written.runs[i], end - written.runs[i]);
    check(run);
    if (!run.empty()) stretches.push_back({run.front().memory.begin, run.back().memory.end});
  }
  if (overlap_among(stretches)) check(pages);
}

/// The memory that a call may read of one tensor.
/// @param tokens_of  (sequence) to ranges of tokens
template <class T, class Layout, class TokensOf>
void add_pages_read(std::vector<Interval>& read, T const* data, Layout const& layout, std::int64_t sequences,
                    TokensOf const& tokens_of) {
  if constexpr (requires {
                  layout.table().page(0, 0);
                  layout.shape().page_size;
                }) {
    std::int64_t page_stride = 0;
    std::int64_t reach = 1;  // elements of a page
    for (Direction const& d : layout.directions()) {
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

/// Where pages are written, no row of them may be read: neither that of a page of the source in the same pool, nor of
/// a source that lies in it.
template <class TokensOf, class... Transfers>
void check_pages_not_read(std::int64_t sequences, TokensOf const& tokens_of, WrittenPages const& written,
                          char const* where, Transfers const&... transfers) {
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
  std::vector<Interval> tensors;
  std::vector<Interval> read;
  auto const each_tensor = [&](auto const& transfer, auto const& f) {
    for (auto const& layer : transfer.layers) {
      f(layer.keys, keys_of(transfer.source));
      f(layer.values, values_of(transfer.source));
    }
  };
  (each_tensor(transfers, [&](auto const* data, auto const& layout) { add_extent(tensors, layout, data); }), ...);
  if (!overlap(tensors, pages)) return;
  (each_tensor(transfers,
               [&](auto const* data, auto const& layout) { add_pages_read(read, data, layout, sequences, tokens_of); }),
   ...);
  if (!overlap(read, pages)) return;
  require(false, "buffers", "pages to write apart from all that is read", "overlapping pages", where);
}

/// In place, a page of two sequences would be compacted twice.
template <class Layout>
void check_pages_of_one_sequence(Layout const& layout, std::span<std::int32_t const> lengths, char const* where) {
  if constexpr (requires {
                  layout.table().page(0, 0);
                  layout.shape().page_size;
                }) {
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
      if (uses[i - 1].page != uses[i].page) continue;
      require(false, "page table entry", "a page that is named once",
              {uses[i].page, ", also of sequence ", uses[i - 1].sequence}, {where, ", sequence ", uses[i].sequence});
    }
  }
}

/// Keys of 16 bits would be rounded again and again, see `KeyRotation::evicting`.
template <class Plan>
void check_evictions(Plan const& plan, std::int64_t fewest) {
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    Segment const segment = plan.segment(s);
    std::int64_t const evicted = segment.length - segment.kept;
    if (evicted == 0 || evicted >= fewest) continue;
    bool const turns = visit_policy(
        plan.table(), segment.layer, segment.sequence, segment.kv_head,
        [&](auto const& policy) { return first_moved_row(policy, segment.kept, segment.length) < segment.kept; });
    if (!turns) continue;
    require(false, "evicted tokens", enough_evictions(fewest), evicted, place_of("compress_in_place", segment));
  }
}

/// A tensor seen from one segment: the offset of a token's channel.
template <class Layout>
struct SegmentTensor {
  Layout layout;
  std::int64_t sequence;
  std::int64_t kv_head;
  std::int64_t operator()(std::int64_t token, std::int64_t channel) const {
    return layout.offset(sequence, kv_head, token, channel);
  }
};

/// Where the rows of one segment go.
template <class Rows>
struct SegmentRows {
  Rows rows;
  std::int64_t channels;
  std::int64_t operator()(std::int64_t row, std::int64_t channel) const { return rows.offset(row, channels) + channel; }
};

/// How the channels of source and destination lie, decided once a call.
struct RowShape {
  std::int64_t channels = 0;
  bool contiguous = false;  ///< both sides hold a token's channels side by side
  bool transposed = false;  ///< the source holds a channel's tokens side by side
};

/// A stretch long enough, in a cache large enough, goes past the CPU's caches.
struct StreamingCopy {
  bool enabled = false;
  void operator()(void* target, void const* source, std::size_t bytes) const {
    constexpr std::size_t long_stretch = 2048;
    if (enabled && bytes >= long_stretch) {
      stream_bytes(target, source, bytes);
    } else {
      std::memcpy(target, source, bytes);
    }
  }
};

/// In place, a stretch may overlap its target.
struct MovingCopy {
  void operator()(void* target, void const* source, std::size_t bytes) const { std::memmove(target, source, bytes); }
};

/// Fills in the source tokens of slots [begin, begin + tokens.size()).
template <class Table>
void stage_tokens(Table const& table, Segment const& segment, std::int64_t begin, std::span<std::int64_t> tokens) {
  visit_policy(table, segment.layer, segment.sequence, segment.kv_head, [&]<class P>(P const& policy) {
    if constexpr (has_source_token<P> || has_kept_before<P>) {
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        tokens[i] = source_token(policy, begin + static_cast<std::int64_t>(i), segment.length);
      }
    } else if (!tokens.empty()) {
      // Searched once; then the sequence is walked.
      std::int64_t token = source_token(policy, begin, segment.length);
      for (std::size_t i = 0; i < tokens.size(); ++i, ++token) {
        while (!policy.keeps(token, segment.length)) ++token;
        tokens[i] = token;
      }
    }
  });
}

/// Policies of this library, whose tokens are known to be right.
template <class P>
inline constexpr bool is_known_policy = std::is_same_v<P, Full> || std::is_same_v<P, SinkWindow> ||
                                        std::is_same_v<P, WindowOnly> || std::is_same_v<P, Prune>;

/// Tokens of keep-lists and of policies of a caller's own must be right before the first row moves, or the cache would
/// be left half-compressed.
template <class Plan>
void check_policies(Plan const& plan, char const* where) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    Segment const segment = plan.segment(s);
    visit_policy(plan.table(), segment.layer, segment.sequence, segment.kv_head, [&]<class P>(P const& policy) {
      if constexpr (std::is_same_v<P, KeepList>) {
        policy.validate_entries(segment.length);
      } else if constexpr (!is_known_policy<P>) {
        tokens.resize(static_cast<std::size_t>(segment.kept));
        stage_tokens(plan.table(), segment, 0, tokens);
        for (std::size_t slot = 0; slot < tokens.size(); ++slot) {
          std::int64_t const before = slot == 0 ? -1 : tokens[slot - 1];
          if (tokens[slot] > before && tokens[slot] < segment.length) continue;
          std::string const above = slot == 0 ? "at least 0" : "above the slot before, " + std::to_string(before) + ",";
          require(false, {"token of policy '", P::name, "'"}, {above, " and below ", segment.length}, tokens[slot],
                  {place_of(where, segment), ", slot ", slot});
        }
      }
    });
  }
}

/// Copies slots begin, begin + 1, … of a segment from the given tokens. In place (`kept` the same
/// tensor as `source`) ascending order makes it safe: a slot's token is never before the slot.
template <class Copy, class T, class From, class To>
void copy_slots(Copy const& copy, std::int64_t begin, std::span<std::int64_t const> tokens, T const* source,
                From const& from, T* kept, To const& to, RowShape const& shape) {
  auto const count = static_cast<std::int64_t>(tokens.size());
  auto const token = [&](std::int64_t i) { return tokens[static_cast<std::size_t>(i)]; };
  if (shape.contiguous) {
    for (std::int64_t i = 0; i < count;) {
      std::int64_t const first = from(token(i), 0);
      std::int64_t const target = to(begin + i, 0);
      std::int64_t elements = shape.channels;
      std::int64_t next = i + 1;
      while (next < count && from(token(next), 0) == first + elements && to(begin + next, 0) == target + elements) {
        elements += shape.channels;
        ++next;
      }
      copy(kept + target, source + first, static_cast<std::size_t>(elements) * sizeof(T));
      i = next;
    }
  } else if (shape.transposed) {
    // Channel by channel, so that reads follow memory; a block's destination rows stay in the cache.
    constexpr std::int64_t block = 64;
    for (std::int64_t low = 0; low < count; low += block) {
      std::int64_t const high = std::min(count, low + block);
      for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
        for (std::int64_t i = low; i < high; ++i) kept[to(begin + i, channel)] = source[from(token(i), channel)];
      }
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
        kept[to(begin + i, channel)] = source[from(token(i), channel)];
      }
    }
  }
}

/// The same for keys, each turned to its slot's position.
template <class T, class From, class To>
void rotate_slots(KeyRotation const& rotation, std::int64_t sequence, std::int64_t begin,
                  std::span<std::int64_t const> tokens, T const* source, From const& from, T* kept, To const& to,
                  std::int64_t channels) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::int64_t const token = tokens[i];
    std::int64_t const slot = begin + static_cast<std::int64_t>(i);
    std::int64_t const distance = rotation.distance(sequence, token, slot);
    for (std::int32_t pair_index = 0; pair_index < rotation.rotary_dim() / 2; ++pair_index) {
      RotaryPair const pair = rotary_pair(rotation, pair_index);
      T const a = source[from(token, pair.a)];
      T const b = source[from(token, pair.b)];
      RotatedPair<T> const rotated = rotate_pair(rotation, distance, pair_index, a, b);
      kept[to(slot, pair.a)] = rotated.a;
      kept[to(slot, pair.b)] = rotated.b;
    }
    for (std::int64_t channel = rotation.rotary_dim(); channel < channels; ++channel) {
      kept[to(slot, channel)] = source[from(token, channel)];
    }
  }
}

/// Keys or values of one transfer: what a tile needs to know of them.
template <class T, class Layout, class Form>
struct Plane {
  Layout layout;
  RowShape shape;
  StreamingCopy copy;
  Destination<T, Form> const& kept;

  [[nodiscard]] auto from(Segment const& segment) const {
    return SegmentTensor<Layout>{layout, segment.sequence, segment.kv_head};
  }
  [[nodiscard]] auto to(Segment const& segment) const {
    auto const rows = kept.form.rows(segment, kept.capacities[static_cast<std::size_t>(segment.layer)]);
    return SegmentRows<std::remove_const_t<decltype(rows)>>{rows, shape.channels};
  }
};

/// Moves one tile of one plane. @param segments  the tile's heads; @param tokens  [heads, rows]
template <class Rotation, class T, class Layout, class Form>
void run_tile(Plane<T, Layout, Form> const& plane, Rotation const& rotation, Tile const& tile, Segment const* segments,
              std::int64_t const* tokens, T const* source, T* kept) {
  std::int64_t const rows = tile.end - tile.begin;
  if (tile.heads > 1 && plane.shape.contiguous && std::is_same_v<Rotation, KeepPositions>) {
    // Token by token, all heads of each, as the source has them side by side.
    struct Move {
      T const* source;
      T* kept;
    };
    auto const bytes = static_cast<std::size_t>(plane.shape.channels) * sizeof(T);
    std::vector<Move> moves(static_cast<std::size_t>(rows * tile.heads));
    for (std::int64_t head = 0; head < tile.heads; ++head) {
      Segment const& segment = segments[head];
      auto const from = plane.from(segment);
      auto const to = plane.to(segment);
      std::int64_t const held = std::min(rows, segment.kept - tile.begin);
      for (std::int64_t i = 0; i < held; ++i) {
        moves[static_cast<std::size_t>(i * tile.heads + head)] = {source + from(tokens[head * rows + i], 0),
                                                                  kept + to(tile.begin + i, 0)};
      }
    }
    for (Move const& move : moves) {
      if (move.kept != nullptr) std::memcpy(move.kept, move.source, bytes);
    }
    return;
  }
  for (std::int64_t head = 0; head < tile.heads; ++head) {
    Segment const& segment = segments[head];
    std::int64_t const count = std::min(rows, segment.kept - tile.begin);
    if (count <= 0) continue;
    std::span<std::int64_t const> const head_tokens(tokens + head * rows, static_cast<std::size_t>(count));
    if constexpr (std::is_same_v<Rotation, KeyRotation>) {
      rotate_slots(rotation, segment.sequence, tile.begin, head_tokens, source, plane.from(segment), kept,
                   plane.to(segment), plane.shape.channels);
    } else {
      copy_slots(plane.copy, tile.begin, head_tokens, source, plane.from(segment), kept, plane.to(segment),
                 plane.shape);
    }
  }
}

/// One transfer's keys and values over all tiles.
template <class Table, class T, class Source, class Form, class Rotation>
void run_transfer(Compaction<Table> const& plan, Transfer<T, Source, Form, Rotation> const& transfer) {
  Destination<T, Form> const& kept = transfer.kept;
  TokenBytes const token_bytes{kept.head_dim * static_cast<std::int64_t>(sizeof(T)),
                               kept.value_dim * static_cast<std::int64_t>(sizeof(T))};
  constexpr std::int64_t cache_bytes = std::int64_t{4} << 20;  // a cache this small is better left in the CPU's caches
  StreamingCopy const copy{plan.bytes_held(token_bytes) > cache_bytes};
  auto const plane = [&](auto const& layout, std::int64_t channels) {
    RowShape const shape{channels, rows_contiguous(layout, channels), tokens_adjacent(layout)};
    return Plane<T, std::remove_cvref_t<decltype(layout)>, Form>{layout, shape, copy, kept};
  };
  auto const keys = plane(keys_of(transfer.source), kept.head_dim);
  auto const values = plane(values_of(transfer.source), kept.value_dim);

  std::vector<Segment> segments;
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    segments.push_back(plan.segment(s));
    if constexpr (Form::needs_group) place_in_group(plan.table(), segments.back());
  }
  // Long enough to amortise a tile's set-up, short enough to share out.
  constexpr std::int64_t tile_bytes = 131072;
  std::int64_t const heads = heads_interleave(keys.layout, bounds_of(plan)) ? plan.num_kv_heads() : 1;
  std::int64_t const rows = std::max<std::int64_t>(16, tile_bytes / std::max(token_bytes.key, token_bytes.value));
  std::vector<Tile> const tiles = make_tiles(plan, rows, heads);
  auto const count = static_cast<std::int64_t>(tiles.size());
  struct TileState {
    std::vector<std::int64_t> tokens{};
    StreamFence fence{};
  };
  // Keys first, then values: a thread that alternates between two tensors reads both more slowly.
  parallel_for(
      2 * count, 1, true, [] { return TileState{}; },
      [&](TileState& state, std::int64_t i) {
        std::vector<std::int64_t>& tokens = state.tokens;
        Tile const& tile = tiles[static_cast<std::size_t>(i % count)];
        Segment const* const tile_segments = &segments[static_cast<std::size_t>(tile.first_segment)];
        auto const tile_rows = static_cast<std::size_t>(tile.end - tile.begin);
        tokens.resize(static_cast<std::size_t>(tile.heads) * tile_rows);
        for (std::size_t head = 0; head < static_cast<std::size_t>(tile.heads); ++head) {
          Segment const& segment = tile_segments[head];
          std::int64_t const stop = std::min(tile.end, segment.kept);
          if (stop <= tile.begin) continue;
          stage_tokens(plan.table(), segment, tile.begin,
                       std::span(tokens).subspan(head * tile_rows, static_cast<std::size_t>(stop - tile.begin)));
        }
        auto const layer = static_cast<std::size_t>(tile_segments->layer);
        if (i < count) {
          run_tile(keys, transfer.rotation, tile, tile_segments, tokens.data(), transfer.layers[layer].keys,
                   kept.layers[layer].keys);
        } else {
          run_tile(values, KeepPositions{}, tile, tile_segments, tokens.data(), transfer.layers[layer].values,
                   kept.layers[layer].values);
        }
      });
}

}  // namespace detail

/// @brief Checks a destination's block table in host memory as the CPU back end does: for those who compress on a
/// device.
/// @param kept  made by `paged`, with host copies of `block_table` and `indptr`; the pages themselves are not touched
/// @throws ArgumentError on rows too short for what heads keep, pages beyond the pool (if `paged` was told its
///         `num_pages`), and pages given to two heads
/// @par Cost  O(pages), and sorting those of a layer that do not ascend, or all where layers' pages interleave
template <class Table, class T, class Form>
void validate_tables(Compaction<Table> const& plan, Destination<T, Form> const& kept) {
  detail::check_capacity(plan, kept);
  detail::WrittenPages written;
  detail::check_block_table(plan, kept, written, "validate_tables");
  detail::check_pages_apart(plan, written, "validate_tables");
}

/// @brief Compresses a cache on the CPU: every head's kept tokens go to their slots.
/// @param plan       made for these lengths
/// @param transfers  keys and values, and further tensors that go with them (scales); host pointers
/// @throws ArgumentError before anything is written: see `validate`; also tokens of keep-lists and of policies of your
///         own out of order or range, tables of the source without places for kept tokens, pages beyond the pool (if
///         `paged` was told its `num_pages`) or given to two heads, and positions (`KeyRotation::with_positions`) out
///         of range
/// @note   Destinations of one call must not overlap each other. Deterministic.
/// @par Cost  Each kept byte is read once and written once; all cores with OpenMP. Tables are read once more, and the
///            tokens of policies of your own asked for once more. Pages that are written are noted (40 bytes each) and
///            sorted where a layer's do not ascend, as those of `consecutive_pages` do
template <class Table, class... Ts, class... Sources, class... Forms, class... Rotations>
void compress(Compaction<Table> const& plan, Transfer<Ts, Sources, Forms, Rotations> const&... transfers) {
  validate(plan, transfers...);
  detail::check_policies(plan, "compress");
  auto const tokens = detail::kept_tokens(plan);
  (detail::check_source_tables(transfers.source, plan.num_sequences(), tokens, "compress, keys", "compress, values"),
   ...);
  (detail::check_positions(transfers.rotation, plan.lengths(), "compress"), ...);
  (detail::check_capacity(plan, transfers.kept), ...);
  detail::WrittenPages written;
  (detail::check_block_table(plan, transfers.kept, written, "compress"), ...);
  detail::check_pages_apart(plan, written, "compress");
  detail::check_pages_not_read(plan.num_sequences(), tokens, written, "compress", transfers...);
  (detail::run_transfer(plan, transfers), ...);
}

/// @brief The same for keys and values alone.
/// @param layers  [num_layers], host pointers
/// @param source  how each layer's keys and values lie
/// @param kept    `ragged`, `padded`, `grouped`, `paged` or `rolling`
template <class Table, class U, class Source, class T, class Form>
void compress(Compaction<Table> const& plan, std::vector<LayerKv<U>> const& layers, Source const& source,
              Destination<T, Form> const& kept) {
  compress(plan, transfer(layers, source, kept));
}

/// @brief Moves what every head keeps to the head's first `kept` tokens, in the cache it is in.
///
/// No second buffer. What lies behind is then free: `Compaction::kept` tells how much, and for paged
/// caches `Compaction::pages_needed` which pages may go back to their allocator.
/// @param layers  [num_layers], host pointers
/// @param source  how each layer's keys and values lie; no two heads may share memory
/// @param rotation  `KeyRotation`, or nothing to keep positions. Behind the call a key's position is its slot
/// @throws ArgumentError before anything moves, as `compress`; on tensors of layers that overlap (unless by whole
///         pages, which tables tell apart), pages that two sequences name, and where 16-bit keys are to turn for too
///         few evicted tokens, which is not worth the rounding: see `KeyRotation::evicting`
/// @par Cost  Moves only tokens whose place changes; memory for a head's token numbers a thread
template <class Table, class T, class Source, class Rotation = detail::KeepPositions>
void compress_in_place(Compaction<Table> const& plan, std::vector<LayerKv<T>> const& layers, Source const& source,
                       Rotation const& rotation = {}) {
  detail::check_in_place(detail::bounds_of(plan), layers, source, rotation);
  auto const keys = detail::keys_of(source);
  auto const values = detail::values_of(source);
  constexpr auto where = "compress_in_place";
  detail::check_policies(plan, where);
  detail::check_source_tables(source, plan.num_sequences(), detail::tokens_in(plan.lengths()),
                              "compress_in_place, keys", "compress_in_place, values");
  detail::check_pages_of_one_sequence(keys, plan.lengths(), "compress_in_place, keys");
  detail::check_pages_of_one_sequence(values, plan.lengths(), "compress_in_place, values");
  detail::check_positions(rotation, plan.lengths(), where);
  if constexpr (detail::rounds_in_place<T, Rotation>) detail::check_evictions(plan, rotation.min_evicted());

  std::int64_t const count = plan.num_segments();
  using Tokens = std::vector<std::int64_t>;
  detail::parallel_for(
      count, 1, true, [] { return Tokens(); },
      [&](Tokens& tokens, std::int64_t s) {
        Segment const segment = plan.segment(s);
        auto const layer = static_cast<std::size_t>(segment.layer);
        std::int64_t const moved = detail::visit_policy(
            plan.table(), segment.layer, segment.sequence, segment.kv_head,
            [&](auto const& policy) { return detail::first_moved_row(policy, segment.kept, segment.length); });
        // With positions of their own keys may turn where they are.
        std::int64_t first = moved;
        if constexpr (std::is_same_v<Rotation, KeyRotation>) first = rotation.token_positions() != nullptr ? 0 : moved;
        tokens.resize(static_cast<std::size_t>(segment.kept - first));
        detail::stage_tokens(plan.table(), segment, first, tokens);
        auto const move = [&](auto const& layout, T* data, auto const& key_rotation) {
          detail::SegmentTensor<std::remove_cvref_t<decltype(layout)>> const tensor{layout, segment.sequence,
                                                                                    segment.kv_head};
          std::int64_t const channels = layout.num_channels();
          if constexpr (std::is_same_v<std::remove_cvref_t<decltype(key_rotation)>, KeyRotation>) {
            detail::rotate_slots<T>(key_rotation, segment.sequence, first, tokens, data, tensor, data, tensor,
                                    channels);
          } else {
            detail::RowShape const shape{channels, detail::rows_contiguous(layout, channels), false};
            std::span<std::int64_t const> const movers(tokens);
            detail::copy_slots<detail::MovingCopy, T>(
                {}, moved, movers.subspan(static_cast<std::size_t>(moved - first)), data, tensor, data, tensor, shape);
          }
        };
        move(keys, layers[layer].keys, rotation);
        move(values, layers[layer].values, detail::KeepPositions{});
      });
}

HEADAWARE_NAMESPACE_END
