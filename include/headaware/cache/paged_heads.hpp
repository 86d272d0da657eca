#pragma once

/// @file
/// Block tables of a cache in pages of one KV head each, updated while decoding: pages that a window has passed return
/// to the pool, and sequences with a common prefix share pages.
/// @par Source  Rehg, KV-Compress, arXiv:2410.00161 (pages of one head); Kwon et al., PagedAttention, arXiv:2309.06180
///              (reference counts, copy on write)

#include <headaware/cache/detail/page_change.hpp>
#include <headaware/cache/detail/policy_change.hpp>
#include <headaware/cache/detail/unique_id.hpp>
#include <headaware/cache/page_indices.hpp>
#include <headaware/cache/page_pool.hpp>
#include <headaware/cache/page_sizes.hpp>
#include <headaware/cache/page_step.hpp>
#include <headaware/cache/paged_head.hpp>
#include <headaware/cache/paged_heads_shape.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Block tables, on the host, of a cache whose pages belong to one KV head each, in host or device memory.
///
/// The sinks' pages stay; pages that lie wholly before the window (and slack) return to the pool. Heads with scored
/// slots (`SinkWindowScored`) have pages of these, too: `cache/paged_scored.hpp` appends to them, with the scores and
/// records of a `RollingScores(slots())`. Pages that such a head leaves serve others one append later, as rows move out
/// of them. A change succeeds or leaves the tables as they were. A page may change owners from one step to the next: on
/// a device, whatever reads or writes the pool must run in the order of the steps, on one stream or after events.
class PagedHeads {
 public:
  /// @param table  policies of all layers and KV heads, each a `RollingPolicy` or `SinkWindowScored`
  /// @throws ArgumentError as `RollingSlots`, and on page sizes that are not positive or not one per layer or head
  template <class Table>
  PagedHeads(Table const& table, PagedHeadsShape const& shape)
      : shape_(shape),
        slots_(table, shape.num_sequences, shape.limits),
        pool_(shape.num_pages),
        state_(shape.num_sequences) {
    shape_.settle(slots_.heads());
    heads_ = detail::make_paged_heads(slots_, shape_);
    table_.assign(table_entries(heads_.records()), -1);
  }

  [[nodiscard]] PagedHeadsShape const& shape() const { return shape_; }
  [[nodiscard]] RollingSlots const& slots() const { return slots_; }
  [[nodiscard]] RollingState const& state() const { return state_; }
  [[nodiscard]] std::int64_t length(std::int32_t sequence) const { return state_.length(sequence); }
  /// The pool. A caller that takes pages of its own releases them itself.
  [[nodiscard]] PagePool& pool() { return pool_; }
  [[nodiscard]] PagePool const& pool() const { return pool_; }
  [[nodiscard]] PagedHead const& head(std::int32_t layer, std::int32_t kv_head) const {
    require_index(layer, slots_.num_layers(), "layer", "PagedHeads");
    require_index(kv_head, slots_.heads().count(layer), "KV head", "PagedHeads");
    return heads_.at(layer, kv_head);
  }
  /// Tokens per page of a layer; where its heads differ, the most of any. @throws ArgumentError if there is no such
  /// layer
  [[nodiscard]] std::int32_t page_size(std::int32_t layer) const {
    require_index(layer, slots_.num_layers(), "layer", "PagedHeads");
    return static_cast<std::int32_t>(shape_.layer_page_sizes().of(layer));
  }
  /// Page number in the pool of a sequence's page; -1 if the head does not hold it.
  [[nodiscard]] std::int32_t page(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head,
                                  std::int64_t index) const {
    PagedHead const& h = head(layer, kv_head);
    bool const held = index >= 0 && h.holds(index, length(sequence), first_held(h, state_.high_water(sequence)));
    return held ? table_[at(h.entry(sequence, index))] : -1;
  }
  /// The same of a page of scored slots.
  [[nodiscard]] std::int32_t scored_page(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head,
                                         std::int64_t index) const {
    PagedHead const& h = head(layer, kv_head);
    bool const held = index >= 0 && index < h.scored_pages(length(sequence));
    return held ? table_[at(h.scored_entry(sequence, index))] : -1;
  }
  /// Bytes of the pages in use, of `page_bytes` each; shared pages count once. Beside them: `RollingScores::bytes_held`
  [[nodiscard]] std::int64_t bytes_held(LayerBytes const& token) const {
    std::int64_t const page = page_bytes(shape_.layer_page_sizes(), token, slots_.num_layers());
    return detail::elements("PagedHeads::bytes_held", {pool_.num_pages() - pool_.free_pages(), page});
  }

  /// @brief Allocates pages for new tokens, releases pages that windows have passed, and replaces shared pages that
  /// the new tokens would be written to (copy on write). Of a head with scored slots these are, as soon as a token
  /// leaves the window, all pages of scored slots: only the device knows which of them it takes.
  /// @param counts  [num_sequences] new tokens of each sequence
  /// @return the step that `headaware::append` writes
  /// @throws ArgumentError on a wrong number of counts, a negative one or a sequence beyond the cache's limit;
  ///         CapacityError if the pool has too few pages. The tables are then unchanged
  /// @par Cost  O(layers · num_kv_heads) for each sequence with new tokens, and the pages that change owners
  PageStep append(std::span<std::int32_t const> counts) {
    PageStep step;
    append(counts, step);
    return step;
  }
  /// @brief The same into the memory of an earlier step, so that a decoding step allocates nothing.
  void append(std::span<std::int32_t const> counts, PageStep& step) {
    state_.check(slots_.view(), counts, "PagedHeads::append");
    if (counts.data() != step.counts.data()) step.counts.assign(counts.begin(), counts.end());
    step.lengths.assign(state_.lengths().begin(), state_.lengths().end());
    step.high_water.assign(state_.high_water().begin(), state_.high_water().end());
    step.max_count = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
    step.copies.clear();
    find_changes(step);
    detail::PageNeeds const needs = detail::require_pages(changes_, pool_, table_, leaving_);
    step.copies.reserve(needs.copies);
    leaving_.clear();
    leaving_.reserve(needs.left);
    // Only now does anything change, and nothing below can fail. Pages before windows first, since others need them.
    detail::keep_entries(heads_.records(), step.counts, table_);
    for (detail::PageChange const& change : changes_) {
      for (std::int64_t p = change.first_before; p < change.release_end; ++p) {
        std::int32_t& entry = table_[at(change.head->entry(change.place.sequence, p))];
        if (change.head->scored > 0) {
          leaving_.push_back(entry);
        } else {
          pool_.release(entry);
        }
        entry = -1;
      }
    }
    for (detail::PageChange const& change : changes_) {
      if (change.copy_on_write >= 0) {
        std::int32_t& entry = table_[at(change.head->entry(change.place.sequence, change.copy_on_write))];
        std::int32_t const to = pool_.take();
        auto const tokens = static_cast<std::int32_t>(change.head->page_size.remainder(change.length));
        step.copies.push_back({change.place.layer, entry, to, tokens, change.place.kv_head});
        entry = to;
      }
      change.for_each_new(
          [&](std::int64_t p) { table_[at(change.head->entry(change.place.sequence, p))] = pool_.take(); });
      for (std::int64_t p = change.first_scored(); p < change.scored_end; ++p) {
        std::int32_t& entry = table_[at(change.head->scored_entry(change.place.sequence, p))];
        if (p < change.scored_begin) leaving_.push_back(entry);
        entry = pool_.take();
      }
    }
    // A page that is copied from stays untouched until the copies are made.
    for (PageCopy const& copy : step.copies) pool_.release(copy.from);
    for (std::int32_t const page : leaving_) pool_.release(page);
    state_.advance(slots_.view(), step.counts);
    step.generation = generation_ = detail::unique_id();
  }

  /// Most copies on write per layer and step: one per sequence and KV head. A captured append of one layer must allow
  /// for as many.
  [[nodiscard]] std::int32_t max_copies() const { return shape_.num_sequences * slots_.num_kv_heads(); }
  /// @brief Sorts a step's copies by layer and pads each layer's with copies of no tokens, which do nothing, to the
  /// fixed number that a captured graph needs.
  /// @return [num_layers, max_copies()]
  /// @throws ArgumentError if `step` is not the last `append`'s
  [[nodiscard]] std::vector<PageCopy> padded_copies(PageStep const& step) const {
    std::vector<PageCopy> result(at(slots_.num_layers()) * at(max_copies()));
    padded_copies(step, result);
    return result;
  }
  /// The same into [num_layers, max_copies()]: allocates nothing. @throws ArgumentError on another size too
  void padded_copies(PageStep const& step, std::span<PageCopy> result) const {
    std::int64_t const size = std::int64_t{slots_.num_layers()} * max_copies();
    require(step.generation == generation_, "step", "the last append's", "another", "PagedHeads::padded_copies");
    require(std::ssize(result) == size, "copies", size, result.size(), "PagedHeads::padded_copies");
    detail::pad_copies(step.copies, at(max_copies()), result);
  }

  /// Number of a sequence's last tokens that can be rolled back: as `RollingState::max_rollback`.
  [[nodiscard]] std::int64_t max_rollback(std::int32_t sequence) const {
    return state_.max_rollback(slots_.view(), sequence);
  }
  /// @brief Rolls back the last `tokens` tokens; pages that held only them return to the pool.
  /// @throws ArgumentError if more than `max_rollback`, on a negative number, or if there is no such sequence; the
  ///         tables are then unchanged
  /// @par Cost  O(layers · num_kv_heads), and the pages that are released; no page is read or written
  void rollback(std::int32_t sequence, std::int64_t tokens) {
    std::int64_t const before = length(sequence);
    state_.rollback(slots_.view(), sequence, tokens);
    generation_ = detail::unique_id();
    for_each_head([&](std::int32_t, std::int32_t, PagedHead const& h) {
      std::int64_t const first = first_held(h, state_.high_water(sequence));
      for (std::int64_t p = h.pages(length(sequence)); p < h.pages(before); ++p) {
        if (p < h.sink_pages || p >= first) drop(h.entry(sequence, p));
      }
      for (std::int64_t p = h.scored_pages(length(sequence)); p < h.scored_pages(before); ++p) {
        drop(h.scored_entry(sequence, p));
      }
    });
  }

  /// @brief Makes an empty sequence continue another (a fork): they share all pages until one of them appends.
  /// @throws ArgumentError if `to` is not empty, if there is no such sequence, or if heads have scored slots, whose
  ///         records are to be copied (`fork` of cache/paged_scored.hpp); the tables are then unchanged
  /// @par Cost  O(layers · num_kv_heads), and the pages that `from` holds; no page is read or written
  void fork(std::int32_t from, std::int32_t to) {
    detail::refuse_scored_pages(slots_.view().max_scored, "PagedHeads::fork");
    fork(from, to, [] {});
  }
  /// @brief The same of heads of all kinds. @param copy  copies what lies beside the pages: called once all is checked
  /// and before the tables change, which they do not if it throws
  template <class Copy>
  void fork(std::int32_t from, std::int32_t to, Copy const& copy) {
    require(length(to) == 0, "sequence to fork to", "an empty one", length(to), "PagedHeads::fork");
    require_index(from, shape_.num_sequences, "sequence", "PagedHeads::fork");
    if (from != to) copy();
    std::int64_t const shift = (std::int64_t{to} - from) * sequence_entries();
    for_each_entry(from, [&](std::int64_t entry) {
      std::int32_t const page = table_[at(entry)];
      pool_.retain(page);
      table_[at(entry + shift)] = page;
    });
    state_.copy(from, to);
    generation_ = detail::unique_id();
  }

  /// @brief Empties a sequence: releases its pages, of which shared ones stay with their other owners.
  /// @throws ArgumentError if there is no such sequence
  /// @par Cost  O(layers · num_kv_heads), and the pages that it holds; no page is read or written
  void release(std::int32_t sequence) {
    for_each_entry(sequence, [&](std::int64_t entry) { drop(entry); });
    state_.reset(sequence);
    generation_ = detail::unique_id();
  }

  /// @brief Changes the heads' policies by editing tables: pages in which a head keeps nothing return to the pool. No
  /// byte moves, so the last page of the sinks and the first page of the window stay whole. The pages that stay bound
  /// the rollback afterwards, up to the slack.
  /// @param table  policies for the same layers and KV heads that keep no more, at the sequences' lengths, than is held
  /// @throws ArgumentError on another shape, a policy that is no `RollingPolicy`, heads with scored slots, before or
  ///         after, or a policy that needs pages which have been released; the tables are then unchanged
  /// @par Cost  O(layers · num_kv_heads) for each sequence, and the pages held; upload `head_bytes` and `table` again
  template <class Table>
  void set_policies(Table const& table) {
    constexpr auto where = "PagedHeads::set_policies";
    detail::require_same_heads(slots_.heads(), detail::layer_heads(table), where);
    RollingSlots slots(table, shape_.num_sequences, shape_.limits);
    detail::refuse_scored_pages(std::max(slots_.view().max_scored, slots.view().max_scored), where);
    detail::HeadRecords<PagedHead> heads = detail::make_paged_heads(slots, shape_);
    std::vector<std::int32_t> entries(table_entries(heads.records()), -1);
    std::vector<std::int64_t> high_water;
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      require(length(b) <= slots.token_limit(), "tokens", slots.token_limit(), length(b), where);
      high_water.push_back(detail::high_water_with(heads_.records(), heads.records(), length(b), state_.high_water(b),
                                                   shape_.limits.slack));
      // Without pages for its slack a sequence can still be what it is; then it cannot be taken back yet.
      require(high_water.back() <= std::min<std::int64_t>(length(b) + shape_.limits.slack, all_tokens), "policies",
              "ones that keep no more than is held", "others", {where, ", sequence ", b});
    }
    // Only now does anything change, and nothing below can fail.
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      for_each_page(b, [&](PagedHead const& old, std::int64_t p) {
        PagedHead const& now = heads.records()[static_cast<std::size_t>(&old - heads_.records().data())];
        std::int64_t const first = first_held(now, high_water[at(b)]);
        if (now.holds(p, length(b), first)) {
          entries[at(now.entry(b, p))] = table_[at(old.entry(b, p))];
        } else {
          pool_.release(table_[at(old.entry(b, p))]);
        }
      });
    }
    heads_ = std::move(heads);
    table_ = std::move(entries);
    slots_ = std::move(slots);
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      RollingSlotsView start = slots_.view();  // as if the sequence began with the pages that it holds
      start.free_length = 0;
      start.slack = static_cast<std::int32_t>(high_water[at(b)] - length(b));
      state_.start(start, b, length(b));
    }
    generation_ = detail::unique_id();
  }

  /// @brief Returns one layer's tables for FlashInfer.
  /// @par Source  flashinfer-ai/flashinfer, docs/tutorials/kv_layout.rst, "Page Table Layout"
  /// @throws ArgumentError if there is no such layer, or it has heads with scored slots
  /// @par Cost  O(sequences · num_kv_heads) and the pages named; to be called again after every change of the tables
  [[nodiscard]] HeadPageIndices indices(std::int32_t layer, PagePart part = PagePart::whole) const {
    require_index(layer, slots_.num_layers(), "layer", "PagedHeads");
    return detail::page_indices(view(), state_.lengths(), layer, part);
  }
  /// @brief Returns one layer's tables for vLLM.
  /// @par Source  vllm-project/vllm, vllm/v1/attention/backends/flash_attn.py, block_table and seq_lens
  /// @throws ArgumentError as `indices`
  /// @par Cost  As `indices`, and entries · max_blocks
  [[nodiscard]] HeadBlockTable block_table(std::int32_t layer, PagePart part = PagePart::whole) const {
    return detail::dense_rows(indices(layer, part));
  }

  /// The tables as the CPU back end reads them; valid until they change.
  [[nodiscard]] PagedHeadsView view() const { return view_of(heads_.records().data(), heads_.heads(), table_.data()); }
  /// The heads' bytes to copy to the device: once, and after `set_policies`.
  [[nodiscard]] std::span<std::byte const> head_bytes() const { return heads_.bytes(); }
  /// The block table to copy to the device whenever it has changed: [num_sequences, entries of a sequence].
  [[nodiscard]] std::span<std::int32_t const> table() const { return table_; }
  /// The tables as the CUDA back end reads them.
  /// @param d_heads  device, a copy of `head_bytes()`, 16-byte aligned; @param d_table  device, a copy of `table()`
  [[nodiscard]] PagedHeadsView view_at(void const* d_heads, std::int32_t const* d_table) const {
    return view_of(static_cast<PagedHead const*>(d_heads), heads_.heads_at(d_heads), d_table);
  }

 private:
  [[nodiscard]] PagedHeadsView view_of(PagedHead const* records, LayerHeads const& layers,
                                       std::int32_t const* table) const {
    std::int64_t most = 0;
    for (PagedHead const& h : heads_.records()) most = std::max(most, h.entries() * h.page_size.value());
    return {records,
            layers.first_heads,
            table,
            layers.num_layers,
            shape_.num_sequences,
            layers.num_kv_heads,
            static_cast<std::int32_t>(layers.total()),
            shape_.limits.slack,
            slots_.view().max_scored,
            shape_.num_pages,
            shape_.layer_page_sizes(),
            slots_.token_limit(),
            most,
            generation_,
            slots_.view().id};
  }

  [[nodiscard]] static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  [[nodiscard]] std::int64_t first_held(PagedHead const& h, std::int64_t high_water) const {
    return h.first_held(high_water, shape_.limits.slack);
  }
  [[nodiscard]] std::size_t table_entries(std::span<PagedHead const> heads) const {
    return heads.empty() ? 0 : at(shape_.num_sequences) * at(heads.front().sequence_entries);
  }
  [[nodiscard]] std::int64_t sequence_entries() const {
    return heads_.records().empty() ? 0 : heads_.records().front().sequence_entries;
  }

  template <class F>
  void for_each_head(F const& f) const {
    for (std::int32_t layer = 0; layer < slots_.num_layers(); ++layer) {
      for (std::int32_t kv_head = 0; kv_head < slots_.heads().count(layer); ++kv_head) {
        f(layer, kv_head, heads_.at(layer, kv_head));
      }
    }
  }
  /// Calls `f(head, page)` for every page that a sequence holds.
  template <class F>
  void for_each_page(std::int32_t sequence, F const& f) const {
    for_each_head([&](std::int32_t, std::int32_t, PagedHead const& h) {
      std::int64_t const pages = h.pages(length(sequence));
      for (std::int64_t p = 0; p < std::min<std::int64_t>(pages, h.sink_pages); ++p) f(h, p);
      for (std::int64_t p = first_held(h, state_.high_water(sequence)); p < pages; ++p) f(h, p);
    });
  }
  /// Calls `f(entry)` for all pages of a sequence, those of scored slots too.
  template <class F>
  void for_each_entry(std::int32_t sequence, F const& f) const {
    for_each_page(sequence, [&](PagedHead const& h, std::int64_t p) { f(h.entry(sequence, p)); });
    for_each_head([&](std::int32_t, std::int32_t, PagedHead const& h) {
      for (std::int64_t p = 0; p < h.scored_pages(length(sequence)); ++p) f(h.scored_entry(sequence, p));
    });
  }
  /// Notes the heads in which a step changes anything.
  void find_changes(PageStep const& step) {
    changes_.clear();
    for (std::int32_t b = 0; b < shape_.num_sequences; ++b) {
      detail::PageGrowth const growth{step.lengths[at(b)], step.counts[at(b)], step.high_water[at(b)],
                                      shape_.limits.slack};
      if (growth.count == 0) continue;
      for_each_head([&](std::int32_t layer, std::int32_t kv_head, PagedHead const& h) {
        auto const change = detail::PageChange::of(h, {layer, b, kv_head}, growth,
                                                   [&](std::int64_t entry) { return is_shared(entry); });
        if (change.any()) changes_.push_back(change);
      });
    }
  }

  [[nodiscard]] bool is_shared(std::int64_t entry) const { return pool_.references(table_[at(entry)]) > 1; }
  void drop(std::int64_t entry) {
    pool_.release(table_[at(entry)]);
    table_[at(entry)] = -1;
  }

  PagedHeadsShape shape_;
  RollingSlots slots_;
  PagePool pool_;
  RollingState state_;
  detail::HeadRecords<PagedHead> heads_;
  std::vector<std::int32_t> table_;
  std::vector<detail::PageChange> changes_;  ///< of the append under way
  std::vector<std::int32_t> leaving_;        ///< pages that it releases
  std::uint64_t generation_ = detail::unique_id();
};

HEADAWARE_NAMESPACE_END
