#pragma once

/// @file
/// A cache kept up while decoding in pages of one KV head each: what a window has passed goes back to the pool, and
/// sequences that begin alike share pages.
/// @par Source  Rehg, KV-Compress, arXiv:2410.00161 (pages of one head); Kwon et al., PagedAttention, arXiv:2309.06180
///              (reference counts, copy on write)

#include <headaware/cache/destination.hpp>
#include <headaware/cache/detail/append_rows.hpp>
#include <headaware/cache/page_pool.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/unique_id.hpp>
#include <headaware/error.hpp>
#include <headaware/token_bytes.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The sizes of a paged cache.
struct PagedHeadsShape {
  std::int32_t num_sequences = 0;
  std::int32_t page_size = 16;  ///< tokens a page
  std::int32_t num_pages = 0;   ///< pages of the pool that all layers and heads share
  RollingLimits limits{};       ///< `max_tokens` sizes the block table's rows of heads which keep all
};

/// @brief What one append does besides writing new tokens. Belongs to the tables as they are behind it: any other
/// change of them, and it is not to be written any more.
struct PageStep {
  std::vector<std::int32_t> lengths{};  ///< [num_sequences] before
  std::vector<std::int32_t> written{};  ///< [num_sequences] before, see `RollingState::written`
  std::vector<std::int32_t> counts{};   ///< [num_sequences] new tokens
  std::vector<PageCopy> copies{};       ///< copies on write
  std::int32_t max_count = 0;
  /// Of the tables; no other tables in the process have it, but for copies.
  std::uint64_t generation = generation_not_known;
};

/// @brief The pool of keys and of values, shared by all layers: [num_pages, page_size, channels]. Host or device
/// memory.
template <class T>
struct PageStorage {
  T* keys = nullptr;
  T* values = nullptr;
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
  std::int64_t page_stride = 0;  ///< elements from a page to the next; 0: page_size * channels
};

/// @brief Which tokens an engine's kernel is to read.
enum class PagePart : std::uint8_t {
  whole,   ///< all in one: whole pages, up to 2 · (page_size - 1) tokens more than the policy keeps
  sinks,   ///< exactly the sinks; all tokens while the window reaches the sinks, or of a head that keeps all
  window,  ///< exactly the window, given that the kernel begins at `kv_start`; nothing where `sinks` is all tokens
};

/// @brief Tables of one layer for paged attention, heads folded into the batch: entry `sequence * num_kv_heads +
/// kv_head`.
///
/// `sinks` and `window` together are what the policy keeps, no token twice: two calls that decode, whose states
/// FlashInfer's `merge_state` or vLLM's `merge_attn_states` joins. One page may appear in both.
///
/// Neither has a parameter for `kv_start`. A sliding window hides the same tokens: `window_left` (FlashInfer) or
/// `window_size` (FlashAttention) of `head(layer, kv_head).window - 1` in the call for `window`, none in the one for
/// `sinks`. It is one number a call, so heads with different windows go into different calls, each with the entries of
/// its heads. (`HeadPagesView` needs neither: `headaware::attend` reads all heads exactly in one call.)
///
/// Merging: FlashInfer's log-sum-exp is of base 2, that of FlashAttention and of `headaware::attend` natural; so
/// FlashInfer's times ln 2 goes to `merge_attention`. An entry without pages has nothing to attend to: its state is
/// 0 and -inf, for which FlashAttention 2 gives +inf.
/// @par Source  flashinfer-ai/flashinfer, include/flashinfer/attention/{variants,state}.cuh; vllm-project/vllm,
///              vllm/v1/attention/backends/flash_attn.py, docs of `merge_attn_states`
struct HeadPageIndices {
  std::vector<std::int32_t> indptr;         ///< [entries + 1]
  std::vector<std::int32_t> indices;        ///< page numbers
  std::vector<std::int32_t> last_page_len;  ///< [entries] tokens in the last page, 1 to page_size; 0 without pages,
                                            ///< which FlashInfer does not read then
  std::vector<std::int32_t> kv_start;       ///< [entries] tokens of the first page to leave out; of `window` alone
};

/// @brief The same as vLLM takes it: dense rows. For `kv_start` see `HeadPageIndices`.
struct HeadBlockTable {
  std::vector<std::int32_t> block_table;  ///< [entries, max_blocks]; 0 behind a row's end
  std::vector<std::int32_t> seq_lens;     ///< [entries] tokens in a row's pages, those before `kv_start` included
  std::vector<std::int32_t> kv_start;     ///< [entries]
  std::int64_t max_blocks = 0;
};

/// @brief Tables of a cache whose pages belong to one KV head each: lives on the host, whatever memory the pages are
/// in.
///
/// Sinks' pages stay; pages that lie wholly behind the window (and slack) go back. Every change either succeeds or
/// leaves all as it was. A page may change hands from one step to the next, so that on a device all that reads or
/// writes the pool is to run in the steps' order: on one stream, or behind events.
class PagedHeads {
 public:
  /// @param table  policies of all layers and KV heads, each with a rolling form
  /// @throws ArgumentError as `RollingSlots`, and on a page size that is not positive
  template <class Table>
  PagedHeads(Table const& table, PagedHeadsShape const& shape)
      : shape_(shape),
        plan_(table, shape.num_sequences, shape.limits),
        pool_(shape.num_pages),
        state_(shape.num_sequences) {
    require(shape.page_size > 0, "page size", "> 0", shape.page_size, "PagedHeads");
    heads_ = make_heads(plan_);
    table_.assign(table_entries(heads_), -1);
  }

  [[nodiscard]] PagedHeadsShape const& shape() const { return shape_; }
  [[nodiscard]] RollingSlots const& plan() const { return plan_; }
  [[nodiscard]] RollingState const& state() const { return state_; }
  [[nodiscard]] std::int64_t length(std::int32_t sequence) const { return state_.length(sequence); }
  /// The pool; whoever takes pages of it elsewhere gives them back there.
  [[nodiscard]] PagePool& pool() { return pool_; }
  [[nodiscard]] PagePool const& pool() const { return pool_; }
  [[nodiscard]] PagedHead const& head(std::int32_t layer, std::int32_t kv_head) const {
    require_index(layer, plan_.num_layers(), "layer", "PagedHeads");
    require_index(kv_head, plan_.num_kv_heads(), "KV head", "PagedHeads");
    return heads_[head_index(layer, kv_head)];
  }
  /// The page number behind a sequence's page; -1 where the head does not hold it.
  [[nodiscard]] std::int32_t page(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head,
                                  std::int64_t index) const {
    PagedHead const& h = head(layer, kv_head);
    bool const held =
        index >= 0 && h.holds(index, length(sequence), first_held(h, state_.written(sequence)), page_size());
    return held ? table_[at(h.entry(sequence, index))] : -1;
  }
  /// Bytes of the pages in use, shared ones once.
  [[nodiscard]] std::int64_t bytes_held(TokenBytes const& token) const {
    return detail::elements("PagedHeads::bytes_held",
                            {pool_.num_pages() - pool_.free_pages(), page_size(), token.total()});
  }

  /// @brief Gives new tokens their pages: takes new ones, gives back those that windows have passed, and pages that
  /// others own too are replaced where they are written on.
  /// @param counts  [num_sequences] new tokens of each sequence
  /// @return what `headaware::append` needs to write them
  /// @throws ArgumentError on a wrong number of counts, a negative one or a sequence beyond the plan's limit;
  ///         CapacityError if the pool has too few pages. Nothing has changed then
  /// @par Cost  O(layers · num_kv_heads) for each sequence with new tokens, and the pages that change hands
  PageStep append(std::span<std::int32_t const> counts) {
    state_.check(plan_.view(), counts, "PagedHeads::append");
    PageStep step;
    step.counts.assign(counts.begin(), counts.end());
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      step.lengths.push_back(static_cast<std::int32_t>(state_.length(b)));
      step.written.push_back(static_cast<std::int32_t>(state_.written(b)));
      step.max_count = std::max(step.max_count, counts[at(b)]);
    }
    std::vector<Change> const changes = changes_of(step);
    step.copies.reserve(require_pages(changes));
    // Only now does anything change, and nothing below can fail. Pages behind windows first, since others need them.
    for (Change const& change : changes) {
      for (std::int64_t p = change.first_before; p < change.release_end; ++p) drop(*change.head, change.sequence, p);
    }
    for (Change const& change : changes) {
      if (change.copy_on_write >= 0) {
        std::int32_t& entry = table_[at(change.head->entry(change.sequence, change.copy_on_write))];
        std::int32_t const to = pool_.take();
        step.copies.push_back({change.layer, entry, to, static_cast<std::int32_t>(change.length % page_size())});
        entry = to;
      }
      change.for_each_new([&](std::int64_t p) { table_[at(change.head->entry(change.sequence, p))] = pool_.take(); });
    }
    // A page that is copied from stays untouched until the copies are made.
    for (PageCopy const& copy : step.copies) pool_.release(copy.from);
    state_.advance(plan_.view(), counts);
    step.generation = generation_ = detail::unique_id();
    return step;
  }

  /// The most copies on write of one step in one layer: each KV head of each sequence writes on in at most one page
  /// that others own too. A captured launch of a layer's append has to allow for as many.
  [[nodiscard]] std::int32_t max_copies() const { return shape_.num_sequences * plan_.num_kv_heads(); }
  /// @brief Sorts a step's copies by layer and fills up with copies of no tokens, which do nothing: the fixed number of
  /// copies that a captured graph needs.
  /// @param step  of the last `append`
  /// @return [num_layers, max_copies()]
  /// @throws ArgumentError if the tables have changed since
  [[nodiscard]] std::vector<PageCopy> padded_copies(PageStep const& step) const {
    require(step.generation == generation_, "step", "the last append's", "another", "PagedHeads::padded_copies");
    std::vector<PageCopy> result(at(plan_.num_layers()) * at(max_copies()));
    std::vector<std::size_t> used(at(plan_.num_layers()));
    for (PageCopy const& copy : step.copies) {
      result[at(copy.layer) * at(max_copies()) + used[at(copy.layer)]++] = copy;
    }
    return result;
  }

  /// How many of a sequence's last tokens can be taken back: as `RollingState::max_rollback`.
  [[nodiscard]] std::int64_t max_rollback(std::int32_t sequence) const {
    return state_.max_rollback(plan_.view(), sequence);
  }
  /// @brief Takes the last `tokens` tokens back; pages that held them alone go back to the pool.
  /// @throws ArgumentError if more than `max_rollback`, on a negative number, or if there is no such sequence. Nothing
  ///         has changed then
  /// @par Cost  O(layers · num_kv_heads), and the pages that go back; no page is read or written
  void rollback(std::int32_t sequence, std::int64_t tokens) {
    std::int64_t const before = pages_of(length(sequence));
    state_.rollback(plan_.view(), sequence, tokens);
    generation_ = detail::unique_id();
    std::int64_t const after = pages_of(length(sequence));
    for_each_head([&](std::int32_t, std::int32_t, PagedHead const& h) {
      std::int64_t const first = first_held(h, state_.written(sequence));
      for (std::int64_t p = after; p < before; ++p) {
        if (p < h.sink_pages || p >= first) drop(h, sequence, p);
      }
    });
  }

  /// @brief Makes an empty sequence continue another: they share all pages until one of them writes on.
  /// @throws ArgumentError if `to` is not empty, or if there is no such sequence. Nothing has changed then
  /// @par Cost  O(layers · num_kv_heads), and the pages that `from` holds; no page is read or written
  void fork(std::int32_t from, std::int32_t to) {
    require(length(to) == 0, "sequence to fork to", "an empty one", length(to), "PagedHeads::fork");
    for_each_page(from, [&](PagedHead const& h, std::int64_t p) {
      std::int32_t const page = table_[at(h.entry(from, p))];
      pool_.retain(page);
      table_[at(h.entry(to, p))] = page;
    });
    state_.copy(from, to);
    generation_ = detail::unique_id();
  }

  /// @brief Empties a sequence: its pages go back, those that others own stay theirs.
  /// @throws ArgumentError if there is no such sequence
  /// @par Cost  O(layers · num_kv_heads), and the pages that it holds; no page is read or written
  void release(std::int32_t sequence) {
    for_each_page(sequence, [&](PagedHead const& h, std::int64_t p) { drop(h, sequence, p); });
    state_.reset(sequence);
    generation_ = detail::unique_id();
  }

  /// @brief Changes what heads keep, by editing tables: pages in which a head keeps nothing go back. No byte moves, as
  /// every token stays where it is in its page; so a head's last page with sinks and its window's first page stay
  /// whole. Afterwards as much can be taken back as the pages that stay hold windows for: up to the slack.
  /// @param table  policies for the same layers and KV heads that keep no more, at the sequences' lengths, than is held
  /// @throws ArgumentError on another shape, a policy without a rolling form, or one that needs pages which have been
  ///         given back. Nothing has changed then
  /// @par Cost  O(layers · num_kv_heads) for each sequence, and the pages held. New heads: `head_bytes` and `table` are
  /// to
  ///            be uploaded again
  template <class Table>
  void compress(Table const& table) {
    constexpr auto where = "PagedHeads::compress";
    require(table.num_layers() == plan_.num_layers(), "layers", plan_.num_layers(), table.num_layers(), where);
    require(table.num_kv_heads() == plan_.num_kv_heads(), "KV heads", plan_.num_kv_heads(), table.num_kv_heads(),
            where);
    RollingSlots plan(table, shape_.num_sequences, shape_.limits);
    std::vector<PagedHead> heads = make_heads(plan);
    std::vector<std::int32_t> entries(table_entries(heads), -1);
    std::vector<std::int64_t> written;
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      require(length(b) <= plan.token_limit(), "tokens", plan.token_limit(), length(b), where);
      written.push_back(written_with(heads, b));
      // Without pages for its slack a sequence can still be what it is; then it cannot be taken back yet.
      if (written.back() > std::min<std::int64_t>(length(b) + shape_.limits.slack, all_tokens)) {
        require(false, "policies", "ones that keep no more than is held", "others", {where, ", sequence ", b});
      }
    }
    // Only now does anything change, and nothing below can fail.
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      for_each_page(b, [&](PagedHead const& old, std::int64_t p) {
        PagedHead const& now = heads[static_cast<std::size_t>(&old - heads_.data())];
        std::int64_t const first = first_held(now, written[at(b)]);
        if (now.holds(p, length(b), first, page_size())) {
          entries[at(now.entry(b, p))] = table_[at(old.entry(b, p))];
        } else {
          pool_.release(table_[at(old.entry(b, p))]);
        }
      });
    }
    heads_ = std::move(heads);
    table_ = std::move(entries);
    plan_ = std::move(plan);
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      RollingSlotsView start = plan_.view();  // one in which the sequence starts as what its pages hold
      start.free_length = 0;
      start.slack = static_cast<std::int32_t>(written[at(b)] - length(b));
      state_.start(start, b, length(b));
    }
    generation_ = detail::unique_id();
  }

  /// @brief One layer's tables in FlashInfer's form.
  /// @par Source  flashinfer-ai/flashinfer, docs/tutorials/kv_layout.rst, "Page Table Layout"
  /// @throws ArgumentError if there is no such layer
  /// @par Cost  O(sequences · num_kv_heads) and the pages named; to be asked for again behind every change of the
  /// tables
  [[nodiscard]] HeadPageIndices indices(std::int32_t layer, PagePart part = PagePart::whole) const {
    HeadPageIndices result;
    result.indptr.push_back(0);
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      for (std::int32_t kv_head = 0; kv_head < plan_.num_kv_heads(); ++kv_head) {
        add_indices(layer, b, kv_head, part, result);
      }
    }
    return result;
  }
  /// @brief One layer's tables in vLLM's form.
  /// @par Source  vllm-project/vllm, vllm/v1/attention/backends/flash_attn.py, block_table and seq_lens
  /// @throws ArgumentError if there is no such layer
  /// @par Cost  As `indices`, and entries · max_blocks
  [[nodiscard]] HeadBlockTable block_table(std::int32_t layer, PagePart part = PagePart::whole) const {
    HeadPageIndices const csr = indices(layer, part);
    HeadBlockTable result;
    std::size_t const rows = csr.last_page_len.size();
    for (std::size_t row = 0; row < rows; ++row) {
      result.max_blocks = std::max<std::int64_t>(result.max_blocks, csr.indptr[row + 1] - csr.indptr[row]);
    }
    result.block_table.assign(rows * at(result.max_blocks), 0);
    for (std::size_t row = 0; row < rows; ++row) {
      std::int32_t const pages = csr.indptr[row + 1] - csr.indptr[row];
      std::copy_n(csr.indices.begin() + csr.indptr[row], pages,
                  result.block_table.begin() + static_cast<std::ptrdiff_t>(row * at(result.max_blocks)));
      result.seq_lens.push_back(pages == 0 ? 0 : (pages - 1) * page_size() + csr.last_page_len[row]);
    }
    result.kv_start = csr.kv_start;
    return result;
  }

  /// The tables as the CPU back end reads them; valid until they change.
  [[nodiscard]] PagedHeadsView view() const { return view_at(heads_.data(), table_.data()); }
  /// The heads' bytes to copy to the device: once, and behind `compress`.
  [[nodiscard]] std::span<std::byte const> head_bytes() const { return std::as_bytes(std::span(heads_)); }
  /// The block table to copy to the device whenever it has changed: [num_sequences, entries of a sequence].
  [[nodiscard]] std::span<std::int32_t const> table() const { return table_; }
  /// The tables as the CUDA back end reads them.
  /// @param d_heads  device, a copy of `head_bytes()`, 16-byte aligned; @param d_table  device, a copy of `table()`
  [[nodiscard]] PagedHeadsView view_at(void const* d_heads, std::int32_t const* d_table) const {
    std::int64_t most = 0;
    for (PagedHead const& h : heads_) most = std::max(most, h.entries());
    return {static_cast<PagedHead const*>(d_heads),
            d_table,
            plan_.num_layers(),
            shape_.num_sequences,
            plan_.num_kv_heads(),
            page_size(),
            shape_.limits.slack,
            shape_.num_pages,
            plan_.token_limit(),
            most * page_size(),
            generation_};
  }

 private:
  /// What an append changes in one head of one sequence; pages by their place in the sequence.
  struct Change {
    PagedHead const* head;
    std::int32_t layer;
    std::int32_t sequence;
    std::int64_t length;
    std::int64_t first_before;   ///< the window's first page
    std::int64_t release_end;    ///< pages [first_before, release_end) go back
    std::int64_t first;          ///< the window's first page afterwards
    std::int64_t new_begin;      ///< pages from here on are new,
    std::int64_t new_end;        ///< up to here
    std::int64_t copy_on_write;  ///< this page is replaced; -1: none

    /// Calls `f(page)` for every page that is new.
    template <class F>
    void for_each_new(F const& f) const {
      for (std::int64_t p = new_begin; p < std::min<std::int64_t>(new_end, head->sink_pages); ++p) f(p);
      for (std::int64_t p = std::max(new_begin, first); p < new_end; ++p) f(p);
    }
  };

  [[nodiscard]] static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  [[nodiscard]] std::int32_t page_size() const { return shape_.page_size; }
  [[nodiscard]] std::int64_t pages_of(std::int64_t tokens) const { return (tokens + page_size() - 1) / page_size(); }
  [[nodiscard]] std::size_t head_index(std::int32_t layer, std::int32_t kv_head) const {
    return at(layer) * at(plan_.num_kv_heads()) + at(kv_head);
  }
  [[nodiscard]] std::int64_t first_held(PagedHead const& h, std::int64_t written) const {
    return h.first_held(written, shape_.limits.slack, page_size());
  }

  [[nodiscard]] std::vector<PagedHead> make_heads(RollingSlots const& plan) const {
    std::vector<PagedHead> heads;
    std::int64_t entries = 0;
    for (std::int32_t layer = 0; layer < plan.num_layers(); ++layer) {
      for (std::int32_t kv_head = 0; kv_head < plan.num_kv_heads(); ++kv_head) {
        RollingHead const& slots = plan.head(layer, kv_head);
        PagedHead h;
        h.first_entry = entries;
        h.sink = slots.sink;
        h.window = slots.window;
        h.sink_pages = static_cast<std::int32_t>(pages_of(slots.sink));
        // A stretch of `ring` tokens that begins anywhere.
        h.ring_pages = slots.ring == 0
                           ? 0
                           : static_cast<std::int32_t>((std::int64_t{slots.ring} + page_size() - 2) / page_size() + 1);
        entries += h.entries();
        heads.push_back(h);
      }
    }
    for (PagedHead& h : heads) h.sequence_entries = entries;
    return heads;
  }
  [[nodiscard]] std::size_t table_entries(std::vector<PagedHead> const& heads) const {
    return heads.empty() ? 0 : at(shape_.num_sequences) * at(heads.front().sequence_entries);
  }

  template <class F>
  void for_each_head(F const& f) const {
    for (std::int32_t layer = 0; layer < plan_.num_layers(); ++layer) {
      for (std::int32_t kv_head = 0; kv_head < plan_.num_kv_heads(); ++kv_head) {
        f(layer, kv_head, heads_[head_index(layer, kv_head)]);
      }
    }
  }
  /// Calls `f(head, page)` for every page that a sequence holds.
  template <class F>
  void for_each_page(std::int32_t sequence, F const& f) const {
    std::int64_t const pages = pages_of(length(sequence));
    for_each_head([&](std::int32_t, std::int32_t, PagedHead const& h) {
      for (std::int64_t p = 0; p < std::min<std::int64_t>(pages, h.sink_pages); ++p) f(h, p);
      for (std::int64_t p = first_held(h, state_.written(sequence)); p < pages; ++p) f(h, p);
    });
  }
  /// The heads in which a step changes anything.
  [[nodiscard]] std::vector<Change> changes_of(PageStep const& step) const {
    std::vector<Change> changes;
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      if (step.counts[at(b)] == 0) continue;
      std::int64_t const length = step.lengths[at(b)];
      std::int64_t const end = length + step.counts[at(b)];
      std::int64_t const written = step.written[at(b)];
      for_each_head([&](std::int32_t layer, std::int32_t, PagedHead const& h) {
        Change change{&h, layer, b, length, first_held(h, written), 0, first_held(h, std::max(written, end)), 0, 0, -1};
        change.new_begin = pages_of(length);
        change.new_end = pages_of(end);
        change.release_end = std::min(change.first, change.new_begin);
        std::int64_t const last = length / page_size();
        if (length % page_size() != 0 && h.holds(last, length, change.first, page_size())) {
          // Whoever shares the page leaves it, even if all do: none may write what another is copying.
          bool const shared = pool_.references(table_[at(h.entry(b, last))]) > 1;
          if (shared) change.copy_on_write = last;
        }
        bool const any =
            change.first_before < change.release_end || change.new_begin < change.new_end || change.copy_on_write >= 0;
        if (any) changes.push_back(change);
      });
    }
    return changes;
  }

  /// @brief Counts what changes need and what they give back.
  /// @return copies on write
  [[nodiscard]] std::size_t require_pages(std::vector<Change> const& changes) const {
    std::int64_t needed = 0;
    std::int64_t freed = 0;
    std::size_t copies = 0;
    std::vector<std::int32_t> leaving;
    for (Change const& change : changes) {
      change.for_each_new([&](std::int64_t) { ++needed; });
      if (change.copy_on_write >= 0) {
        ++needed;
        ++copies;
      }
      for (std::int64_t p = change.first_before; p < change.release_end; ++p) {
        leaving.push_back(table_[at(change.head->entry(change.sequence, p))]);
      }
    }
    std::sort(leaving.begin(), leaving.end());
    for (std::size_t i = 0; i < leaving.size();) {
      std::size_t end = i;
      while (end < leaving.size() && leaving[end] == leaving[i]) ++end;
      freed += static_cast<std::int64_t>(end - i) == pool_.references(leaving[i]) ? 1 : 0;
      i = end;
    }
    if (needed > pool_.free_pages() + freed) {
      throw CapacityError(
          {"pages", std::to_string(needed) + " free ones, " + std::to_string(freed) + " of them given back",
           std::to_string(pool_.free_pages()) + " of " + std::to_string(pool_.num_pages()), "PagedHeads::append"});
    }
    return copies;
  }

  void drop(PagedHead const& h, std::int32_t sequence, std::int64_t page) {
    std::int32_t& entry = table_[at(h.entry(sequence, page))];
    pool_.release(entry);
    entry = -1;
  }

  /// @brief The shortest that a sequence may have been so that other heads need no page of it which is not held: at
  /// most `length + slack` if they keep no more than that.
  [[nodiscard]] std::int64_t written_with(std::vector<PagedHead> const& heads, std::int32_t sequence) const {
    std::int64_t const pages = pages_of(length(sequence));
    std::int64_t written = length(sequence);
    for_each_head([&](std::int32_t layer, std::int32_t kv_head, PagedHead const& old) {
      PagedHead const& now = heads[head_index(layer, kv_head)];
      // Held are [0, sinks) and [begin, pages).
      std::int64_t const sinks = std::min<std::int64_t>(pages, old.sink_pages);
      std::int64_t const window = std::min(pages, first_held(old, state_.written(sequence)));
      std::int64_t const begin = window <= sinks ? 0 : window;
      if (std::min<std::int64_t>(pages, now.sink_pages) > sinks && begin > 0) {
        written = std::int64_t{all_tokens} + 1;
      } else if (now.ring_pages > 0 && now.sink_pages < begin) {
        written = std::max(written, begin * page_size() + now.window + shape_.limits.slack);
      }
    });
    return written;
  }

  void add_indices(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head, PagePart part,
                   HeadPageIndices& result) const {
    PagedHead const& h = head(layer, kv_head);
    std::int64_t const length = state_.length(sequence);
    // What a window that reaches the sinks has in common with their last page, no kernel's sliding window would hide.
    bool const is_whole = length <= std::int64_t{h.sink} + h.window;
    std::int64_t const sinks = is_whole ? length : std::int64_t{h.sink};
    std::int64_t const begin = is_whole ? length : length - h.window;  // the window's first token
    bool const has_window = begin < length;
    std::int64_t const sink_pages = pages_of(sinks);
    std::int64_t window_page = has_window ? begin / page_size() : pages_of(length);
    std::int64_t const window_end = has_window ? pages_of(length) : window_page;
    if (part == PagePart::whole) window_page = std::max(window_page, sink_pages);
    std::int64_t last = -1;
    auto const add = [&](std::int64_t p) {
      result.indices.push_back(table_[at(h.entry(sequence, p))]);
      last = p;
    };
    if (part != PagePart::window) {
      for (std::int64_t p = 0; p < sink_pages; ++p) add(p);
    }
    if (part != PagePart::sinks) {
      for (std::int64_t p = window_page; p < window_end; ++p) add(p);
    }
    std::int64_t const end = part == PagePart::sinks ? sinks : length;
    result.indptr.push_back(static_cast<std::int32_t>(result.indices.size()));
    result.last_page_len.push_back(
        last < 0 ? 0 : static_cast<std::int32_t>(std::min<std::int64_t>(page_size(), end - last * page_size())));
    result.kv_start.push_back(
        part == PagePart::window && has_window ? static_cast<std::int32_t>(begin - window_page * page_size()) : 0);
  }

  PagedHeadsShape shape_;
  RollingSlots plan_;
  PagePool pool_;
  RollingState state_;
  std::vector<PagedHead> heads_;
  std::vector<std::int32_t> table_;
  std::uint64_t generation_ = detail::unique_id();
};

namespace detail {

/// Tables that have changed since may give a page to another head, or to none.
inline void check_generation(PagedHeadsView const& view, std::uint64_t generation) {
  require(generation == view.generation, "step", {"the tables' last change, ", view.generation},
          {"change ", generation}, "append");
}

template <class T, class U, class Source>
AppendShape check_paged_append(PagedHeadsView const& view, std::int64_t max_count,
                               std::vector<LayerKv<U>> const& tokens, Source const& source,
                               PageStorage<T> const& storage, std::vector<LayerKv<T>> const& cache,
                               std::int32_t first_layer) {
  constexpr auto where = "append";
  require_channels(storage.head_dim, storage.value_dim, where);
  std::int64_t const row = elements(where, {view.page_size, std::max(storage.head_dim, storage.value_dim)});
  require(storage.page_stride == 0 || storage.page_stride >= row, "page stride", {">= ", row}, storage.page_stride,
          where);
  AppendShape const shape{first_layer,    view.num_layers,    view.num_sequences, view.num_kv_heads,
                          max_count,      storage.head_dim,   storage.value_dim,  view.max_tokens_held > 0,
                          view.page_size, storage.page_stride};
  auto const elements = [&](std::int64_t channels) {
    std::int64_t const page = view.page_size * channels;
    std::int64_t const stride = storage.page_stride != 0 ? storage.page_stride : page;
    check_extent(where, page, std::array{Direction{view.num_pages, stride}});
    return std::vector<std::int64_t>(cache.size(), view.num_pages == 0 ? 0 : (view.num_pages - 1) * stride + page);
  };
  std::vector<std::int64_t> const keys = elements(storage.head_dim);
  std::vector<std::int64_t> const values = elements(storage.value_dim);
  check_append(shape, tokens, source, cache.data(), {keys.data(), values.data()});
  return shape;
}

}  // namespace detail

/// @brief Writes new tokens into the pages that `PagedHeads::append` has given them, on the CPU.
///
/// Every token whose page is held is written, so that whole pages may be read.
/// @param pages        the tables behind the step
/// @param step         of `PagedHeads::append`
/// @param tokens       keys and values of neighbouring layers, host pointers
/// @param source       how each layer's new keys and values lie: any `KvLayout`, its token 0 the first new one
/// @param storage      the pool's pages
/// @param first_layer  the cache's layer that the first of the new tokens' layers is; each layer of a step once
/// @throws ArgumentError before anything is written, on a step behind which the tables have changed or of other tables,
///         on shapes that disagree, missing or misaligned pointers, host tables that have no places for the new tokens,
///         and new tokens that overlap the pool
/// @par Cost  O(bytes that stay) and copies on write; all cores with OpenMP where it is more than 1 MiB
template <class U, class Source, class T>
void append(PagedHeads const& pages, PageStep const& step, std::vector<LayerKv<U>> const& tokens, Source const& source,
            PageStorage<T> const& storage, std::int32_t first_layer = 0) {
  PagedHeadsView const view = pages.view();
  detail::check_generation(view, step.generation);
  std::vector<LayerKv<T>> const cache(tokens.size(), {storage.keys, storage.values});
  auto const shape = detail::check_paged_append(view, step.max_count, tokens, source, storage, cache, first_layer);
  for (auto const* each : {&step.counts, &step.lengths, &step.written}) {
    require(static_cast<std::int64_t>(each->size()) == view.num_sequences, "step's sequences", view.num_sequences,
            each->size(), "append");
  }
  detail::check_source_tables(source, view.num_sequences, detail::tokens_in(step.counts), "append, keys",
                              "append, values");
  detail::PagedPlacement const placement{view, storage.page_stride};
  for (PageCopy const& copy : step.copies) {
    if (copy.layer < first_layer || copy.layer >= first_layer + static_cast<std::int32_t>(tokens.size())) continue;
    auto const move = [&](T* tensor, std::int64_t channels) {
      std::memcpy(tensor + placement.page_offset(copy.to, channels),
                  tensor + placement.page_offset(copy.from, channels),
                  static_cast<std::size_t>(copy.tokens * channels) * sizeof(T));
    };
    move(storage.keys, storage.head_dim);
    move(storage.values, storage.value_dim);
  }
  auto const of = [](std::vector<std::int32_t> const& values) {
    return [&values](std::int32_t sequence) { return std::int64_t{values[static_cast<std::size_t>(sequence)]}; };
  };
  detail::append_rows(shape, placement, tokens, source, cache.data(), of(step.lengths), of(step.written),
                      of(step.counts));
}

HEADAWARE_NAMESPACE_END
