#pragma once

/// @file
/// The sizes of a compressed cache, known from lengths and policies alone, before anything moves.

#include <headaware/cache/segment.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/token_bytes.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Pages of `page_size` tokens that so many tokens need, without a sum that overflows. @pre  tokens >= 0, page_size > 0
[[nodiscard]] constexpr std::int64_t pages_for(std::int64_t tokens, std::int64_t page_size) {
  return tokens / page_size + (tokens % page_size != 0 ? 1 : 0);
}

/// Whether a segment's last kept token is moved by compaction, as it is if any is. Tokens of a keep-list are not read
/// while sizes are planned: no.
struct LastTokenMoves {
  Segment segment;
  template <class P>
  bool operator()(P const& policy) const {
    if constexpr (std::is_same_v<P, KeepList>) {
      return false;
    } else {
      return segment.kept > 0 && source_token(policy, segment.kept - 1, segment.length) != segment.kept - 1;
    }
  }
};

}  // namespace detail

/// @brief What a device needs to repeat a plan there: the policies, the lengths, and the bounds
/// that the host planned with. Passed by value; borrows its pointers.
/// @tparam Table  a `PolicyTableView` on device memory, a `UniformTable`, or `WithKeepLists` of one
template <class Table>
struct DeviceCompaction {
  Table table;
  std::int32_t const* d_lengths = nullptr;  ///< device, [num_sequences]: read when the kernels run
  std::int32_t num_sequences = 0;
  std::int64_t max_length = 0;  ///< no length may exceed it
  std::int64_t max_rows = 0;    ///< bounds the kept rows of the whole model; decides the grid
  /// The fewest tokens that a head evicts whose kept ones move, see `KeyRotation::evicting`; 0: none moves.
  std::int64_t min_evicted = 0;
  std::int64_t min_evicted_segment = 0;  ///< one that evicts so few

  std::int32_t* d_cu_seqlens = nullptr;  ///< out, optional: device, [num_layers, num_sequences * num_kv_heads + 1]
  std::int32_t* d_kept = nullptr;        ///< out, optional: device, [num_layers, num_sequences, num_kv_heads]
  /// out, optional: device, one: 0, or 1 if a length is out of range, the cache too small for what the
  /// lengths keep, or a layer too large for 32-bit `d_cu_seqlens`; then nothing is moved.
  std::int32_t* d_status = nullptr;
};

/// @brief How many tokens every (layer, sequence, KV head) keeps, and where its rows lie. What has been moved from is
/// the plan of no sequence.
/// @tparam Table  `PolicyTable`, `UniformTable`, a view or `WithKeepLists`; held by value
template <class Table = PolicyTable>
class Compaction {
 public:
  /// @param table    policies of all layers and KV heads
  /// @param lengths  tokens of each sequence of the batch
  /// @throws ArgumentError on a negative length, keep-lists for another number of sequences, or a policy that keeps
  ///         more tokens than there are
  /// @par Cost  O(layers · sequences · heads)
  Compaction(Table table, std::span<std::int32_t const> lengths)
      : table_(std::move(table)), lengths_(lengths.begin(), lengths.end()) {
    for (std::size_t i = 0; i < lengths_.size(); ++i) {
      require(lengths_[i] >= 0, "negative length", "tokens >= 0", lengths_[i], {"Compaction, sequence ", i});
    }
    if constexpr (requires { table_.num_sequences(); }) {
      require(table_.num_sequences() == num_sequences(), "keep-lists' sequences", num_sequences(),
              table_.num_sequences(), "Compaction");
      table_.validate();
    }
    offsets_.resize(static_cast<std::size_t>(num_segments()) + 1);
    for (std::int64_t s = 0; s < num_segments(); ++s) {
      Segment const segment = detail::make_segment(table_, s, num_sequences(), lengths_.data());
      if (segment.kept < 0 || segment.kept > segment.length) {
        require(false, "kept tokens", {"in [0, ", segment.length, "]"}, segment.kept,
                {"Compaction, layer ", segment.layer, ", sequence ", segment.sequence, ", KV head ", segment.kv_head});
      }
      offsets_[index(s) + 1] = offsets_[index(s)] + segment.kept;
    }
  }

  [[nodiscard]] Table const& table() const { return table_; }
  [[nodiscard]] std::int32_t num_layers() const { return table_.num_layers(); }
  [[nodiscard]] std::int32_t num_kv_heads() const { return table_.num_kv_heads(); }
  [[nodiscard]] std::int32_t num_sequences() const { return static_cast<std::int32_t>(lengths_.size()); }
  [[nodiscard]] std::int64_t layer_segments() const { return std::int64_t{num_sequences()} * num_kv_heads(); }
  [[nodiscard]] std::int64_t num_segments() const { return num_layers() * layer_segments(); }
  [[nodiscard]] std::span<std::int32_t const> lengths() const { return lengths_; }
  [[nodiscard]] std::int64_t max_length() const {
    return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
  }

  /// One segment with all its sizes. @throws ArgumentError if there is no such segment
  [[nodiscard]] Segment segment(std::int64_t s) const {
    require_index(s, num_segments(), "segment", "Compaction::segment");
    Segment result = detail::make_segment(table_, s, num_sequences(), lengths_.data());
    result.first_row = offset(s) - layer_begin(result.layer);
    return result;
  }

  /// Tokens kept by one head of one sequence. @throws ArgumentError if it is out of range
  [[nodiscard]] std::int64_t kept(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head) const {
    check_layer(layer);
    require_index(sequence, num_sequences(), "sequence", "Compaction::kept");
    require_index(kv_head, num_kv_heads(), "KV head", "Compaction::kept");
    std::int64_t const s = layer * layer_segments() + std::int64_t{sequence} * num_kv_heads() + kv_head;
    return offset(s + 1) - offset(s);
  }

  /// Rows (tokens of a head) that the whole model keeps.
  [[nodiscard]] std::int64_t kept_total() const { return offset(num_segments()); }
  /// Rows that one layer keeps.
  [[nodiscard]] std::int64_t kept_total(std::int32_t layer) const {
    return layer_begin(layer + 1) - layer_begin(layer);
  }
  /// Rows before compression: every head holding every token.
  [[nodiscard]] std::int64_t full_total() const {
    std::int64_t tokens = 0;
    for (std::int32_t const length : lengths_) tokens += length;
    return detail::elements("Compaction::full_total", {tokens, num_layers(), num_kv_heads()});
  }

  /// Prefix sums of kept rows over all segments, [num_segments + 1].
  [[nodiscard]] std::span<std::int64_t const> offsets() const { return offsets_; }
  /// The first row of a layer when all layers lie back to back. @pre 0 <= layer <= num_layers
  [[nodiscard]] std::int64_t layer_begin(std::int32_t layer) const {
    if (layer != num_layers()) check_layer(layer);
    return offset(layer * layer_segments());
  }

  /// @brief A layer's offsets as FlashAttention takes them, heads folded into the batch:
  /// [num_sequences * num_kv_heads + 1].
  /// @throws ArgumentError if the layer keeps more rows than int32 counts
  [[nodiscard]] std::vector<std::int32_t> cu_seqlens(std::int32_t layer) const {
    require(kept_total(layer) <= std::numeric_limits<std::int32_t>::max(), "rows of a layer",
            "at most 2147483647 for 32-bit cu_seqlens", kept_total(layer), "Compaction::cu_seqlens");
    std::vector<std::int32_t> result;
    for (std::int64_t s = 0; s <= layer_segments(); ++s) {
      result.push_back(static_cast<std::int32_t>(offset(layer * layer_segments() + s) - layer_begin(layer)));
    }
    return result;
  }

  /// The most tokens any head of the layer keeps.
  [[nodiscard]] std::int64_t max_kept(std::int32_t layer) const {
    std::int64_t most = 0;
    auto const first = index(layer * layer_segments());
    check_layer(layer);
    for (std::size_t s = first; s < first + index(layer_segments()); ++s) {
      most = std::max(most, offsets_[s + 1] - offsets_[s]);
    }
    return most;
  }

  /// Pages of `page_size` tokens that the whole model keeps when every head owns its pages.
  [[nodiscard]] std::int64_t pages_total(std::int64_t page_size) const {
    require(page_size > 0, "page size", "> 0", page_size, "Compaction::pages_total");
    std::int64_t pages = 0;
    for (std::size_t s = 0; s + 1 < offsets_.size(); ++s) {
      pages += detail::pages_for(offsets_[s + 1] - offsets_[s], page_size);
    }
    return pages;
  }

  /// @brief Leading pages that a sequence still needs after compaction in place, where a page holds
  /// all heads of all layers' tensors: the rest may go back to the allocator.
  [[nodiscard]] std::int64_t pages_needed(std::int32_t sequence, std::int64_t page_size) const {
    require(page_size > 0, "page size", "> 0", page_size, "Compaction::pages_needed");
    std::int64_t most = 0;
    for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
      for (std::int32_t head = 0; head < num_kv_heads(); ++head) most = std::max(most, kept(layer, sequence, head));
    }
    return detail::pages_for(most, page_size);
  }

  /// Bytes of the kept keys and values; exact for ragged caches. @throws ArgumentError beyond 64 bits, as all bytes
  /// here
  [[nodiscard]] std::int64_t bytes_held(TokenBytes const& token) const {
    return detail::elements("Compaction::bytes_held", {kept_total(), token.total()});
  }
  /// The same for keys and values alike. @param head_dim channels; @param element_bytes bytes an element
  [[nodiscard]] std::int64_t bytes_held(std::int64_t head_dim, std::size_t element_bytes) const {
    return bytes_held(TokenBytes::of(head_dim, element_bytes));
  }
  /// Bytes of the pages that hold them when every head owns its pages.
  [[nodiscard]] std::int64_t bytes_held_paged(std::int64_t page_size, TokenBytes const& token) const {
    return detail::elements("Compaction::bytes_held_paged", {pages_total(page_size), page_size, token.total()});
  }
  /// Bytes before compression.
  [[nodiscard]] std::int64_t bytes_full(TokenBytes const& token) const {
    return detail::elements("Compaction::bytes_full", {full_total(), token.total()});
  }

  /// @brief This plan for the CUDA back end.
  /// @param d_table    the same policies on the device: `table().view_at(d_bytes)`, or the uniform table itself
  /// @param d_lengths  device, [num_sequences]; read when the kernels run, so a captured graph may be
  ///                   replayed with other lengths as long as they keep no more than was planned
  template <class DeviceTable>
  [[nodiscard]] DeviceCompaction<DeviceTable> on_device(DeviceTable const& d_table,
                                                        std::int32_t const* d_lengths) const {
    static_assert(PolicySource<DeviceTable>,
                  "headaware: a device plan needs a trivially copyable table: a PolicyTableView (from "
                  "PolicyTable::view_at), a UniformTable or WithKeepLists of one");
    require(d_table.num_layers() == num_layers(), "device table's layers", num_layers(), d_table.num_layers(),
            "Compaction::on_device");
    require(d_table.num_kv_heads() == num_kv_heads(), "device table's KV heads", num_kv_heads(), d_table.num_kv_heads(),
            "Compaction::on_device");
    if constexpr (requires { d_table.num_sequences(); }) {
      require(d_table.num_sequences() == num_sequences(), "device keep-lists' sequences", num_sequences(),
              d_table.num_sequences(), "Compaction::on_device");
    }
    DeviceCompaction<DeviceTable> plan;
    plan.table = d_table;
    plan.d_lengths = d_lengths;
    plan.num_sequences = num_sequences();
    plan.max_length = max_length();
    plan.max_rows = kept_total();
    for (std::int64_t s = 0; s < num_segments(); ++s) {
      Segment const segment = this->segment(s);
      std::int64_t const evicted = segment.length - segment.kept;
      if (evicted == 0 || (plan.min_evicted != 0 && evicted >= plan.min_evicted)) continue;
      bool const moves = detail::visit_policy(table_, segment.layer, segment.sequence, segment.kv_head,
                                              detail::LastTokenMoves{segment});
      if (!moves) continue;
      plan.min_evicted = evicted;
      plan.min_evicted_segment = s;
    }
    return plan;
  }

  /// @brief Which heads of a layer form the full group and which the streaming group of a grouped
  /// cache, and the rows of both dense tensors. Pruned heads are in neither.
  [[nodiscard]] LayerCapacity grouped_capacity(std::int32_t layer) const {
    check_layer(layer);
    LayerCapacity capacity;
    for (std::int64_t s = layer * layer_segments(); s < (layer + 1) * layer_segments(); ++s) {
      Segment const segment = this->segment(s);
      auto const group = detail::group_of(table_, layer, segment.kv_head);
      bool const counts = segment.sequence == 0;
      if (group == detail::HeadGroup::full) {
        capacity.full_heads += counts ? 1 : 0;
        capacity.full_head_rows = std::max(capacity.full_head_rows, segment.kept);
      } else if (group == detail::HeadGroup::window) {
        capacity.window_heads += counts ? 1 : 0;
        capacity.head_rows = std::max(capacity.head_rows, segment.kept);
      }
    }
    capacity.rows =
        num_sequences() * (capacity.full_heads * capacity.full_head_rows + capacity.window_heads * capacity.head_rows);
    return capacity;
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
  /// Rows before a segment; 0 in a plan that has been moved from.
  [[nodiscard]] std::int64_t offset(std::int64_t s) const { return offsets_.empty() ? 0 : offsets_[index(s)]; }
  void check_layer(std::int32_t layer) const { require_index(layer, num_layers(), "layer", "Compaction"); }

  Table table_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::int64_t> offsets_;
};

HEADAWARE_NAMESPACE_END
