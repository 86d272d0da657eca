#pragma once

/// @file
/// A compaction: the policies of all heads, and the sizes that they give to a batch of sequences.

#include <headaware/cache/segment.hpp>
#include <headaware/cache/sizes.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/table.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A compaction as kernels repeat it: the policies, the lengths, and the bounds that the host has worked out.
/// Passed by value; borrows its pointers. Made by `Compaction::on_device`.
/// @tparam Table  a `PolicyTableView` on device memory, a `UniformTable`, or `WithKeepLists` of one
template <class Table>
struct DeviceCompaction {
  Table table;
  std::int32_t const* d_lengths = nullptr;  ///< device, [num_sequences]: read when the kernels run
  std::int32_t num_sequences = 0;
  SegmentName min_evicted_segment{};  ///< one that evicts as few tokens as `min_evicted`
  std::int64_t max_length = 0;        ///< no length may exceed it
  std::int64_t max_rows = 0;          ///< bounds the kept rows of the whole model; decides the grid
  std::int64_t max_kept = 0;          ///< rows of the longest head; decides how many blocks share one in place
  /// The fewest tokens that a head evicts whose kept ones move, see `KeyRotation::evicting`; 0: none moves.
  std::int64_t min_evicted = 0;

  /// in, optional: device, [segments + 1], a copy of `CacheSizes::offsets()`: `compress` need not count on the device,
  /// and is one launch instead of two, where no output is asked for either. Lengths are then the very ones of the
  /// compaction; a head that keeps another number of tokens is left out.
  std::int64_t const* d_offsets = nullptr;
  /// out, optional: device, [num_layers, num_sequences * KV heads of the layer + 1]: see
  /// `CacheSizes::cu_seqlens_begin`
  std::int32_t* d_cu_seqlens = nullptr;
  std::int32_t* d_kept = nullptr;  ///< out, optional: device, one per segment
  /// out, optional: device, one: 0, or 1 if a length is out of range, the cache too small for what the
  /// lengths keep, or a layer too large for 32-bit `d_cu_seqlens`; then nothing is moved.
  std::int32_t* d_status = nullptr;

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t num_segments() const {
    return detail::layer_heads(table).total() * num_sequences;
  }
};

namespace detail {

/// The segment that evicts the fewest tokens, of those whose kept tokens move.
struct FewestEvicted {
  std::int64_t tokens = 0;  ///< 0: no segment's tokens move
  Segment segment{};
};

/// @param read_lists  whether entries of keep-lists are on the host; if not, their tokens count as staying
template <class Table>
FewestEvicted fewest_evicted(Table const& table, CacheSizes const& sizes, bool read_lists) {
  FewestEvicted fewest;
  for (std::int64_t s = 0; s < sizes.num_segments(); ++s) {
    Segment const segment = sizes.segment(s);
    std::int64_t const evicted = segment.length - segment.kept;
    if (evicted == 0 || segment.kept == 0 || (fewest.tokens != 0 && evicted >= fewest.tokens)) continue;
    bool const moves = visit_policy(table, segment.layer, segment.sequence, segment.kv_head, [&]<class P>(P const& p) {
      if (std::is_same_v<P, KeepList> && !read_lists) return false;
      // If any token moves, the last does.
      return source_token(p, segment.kept - 1, segment.length) != segment.kept - 1;
    });
    if (moves) fewest = {evicted, segment};
  }
  return fewest;
}

}  // namespace detail

/// @brief The policies of all heads applied to sequences of given lengths: what is kept, and the sizes of the cache
/// that holds it (`CacheSizes`, its base).
/// @tparam Table  `PolicyTable`, `UniformTable`, a view or `WithKeepLists`; held by value
template <class Table = PolicyTable>
class Compaction : public CacheSizes {
 public:
  /// @param table    policies of all layers and KV heads
  /// @param lengths  tokens of each sequence of the batch
  /// @throws ArgumentError on a negative length, keep-lists for another number of sequences, or a policy that keeps
  ///         more tokens than there are
  /// @par Cost  O(layers · sequences · heads)
  Compaction(Table table, std::span<std::int32_t const> lengths)
      : CacheSizes(
            detail::layer_heads(checked(table, lengths.size())), lengths,
            [&](std::int64_t s) {
              return detail::make_segment(table, s, static_cast<std::int32_t>(lengths.size()), lengths.data()).kept;
            },
            [&](std::int32_t layer, std::int32_t kv_head) { return detail::group_of(table, layer, kv_head); },
            [&](std::int32_t layer) { return window_of(table, layer); }),
        table_(std::move(table)) {}

  [[nodiscard]] Table const& table() const { return table_; }

  /// @brief The same compaction for the CUDA back end.
  /// @param d_table    the same policies on the device: `table().view_at(d_bytes)`, or the uniform table itself
  /// @param d_lengths  device, [num_sequences]; read when the kernels run, so a captured graph may be
  ///                   replayed with other lengths as long as they keep no more than these
  template <class DeviceTable>
  [[nodiscard]] DeviceCompaction<DeviceTable> on_device(DeviceTable const& d_table,
                                                        std::int32_t const* d_lengths) const {
    static_assert(PolicySource<DeviceTable>,
                  "headaware: a device compaction needs a trivially copyable table: a PolicyTableView (from "
                  "PolicyTable::view_at), a UniformTable or WithKeepLists of one");
    constexpr auto where = "Compaction::on_device";
    require(d_table.num_layers() == num_layers(), "device table's layers", num_layers(), d_table.num_layers(), where);
    require(d_table.num_kv_heads() == num_kv_heads(), "device table's KV heads", num_kv_heads(), d_table.num_kv_heads(),
            where);
    LayerHeads const d_heads = detail::layer_heads(d_table);
    bool const same =
        d_heads.total() == heads().total() && (d_heads.first_heads != nullptr) == (heads().first_heads != nullptr);
    require(same, "device table's KV heads of all layers", heads().total(), d_heads.total(), where);
    if constexpr (requires { d_table.num_sequences(); }) {
      require(d_table.num_sequences() == num_sequences(), "device keep-lists' sequences", num_sequences(),
              d_table.num_sequences(), where);
    }
    auto const fewest = detail::fewest_evicted(table_, *this, false);
    return {.table = d_table,
            .d_lengths = d_lengths,
            .num_sequences = num_sequences(),
            .min_evicted_segment = fewest.segment.name(),
            .max_length = max_length(),
            .max_rows = kept_total(),
            .max_kept = max_kept(),
            .min_evicted = fewest.tokens};
  }

 private:
  /// Returns the table after checking its keep-lists.
  static Table const& checked(Table const& table, std::size_t num_sequences) {
    if constexpr (requires { table.num_sequences(); }) {
      auto const expected = static_cast<std::int32_t>(num_sequences);
      require(table.num_sequences() == expected, "keep-lists' sequences", expected, table.num_sequences(),
              "Compaction");
      table.validate();
    }
    return table;
  }

  /// The window of a layer that slides; 0: it does not, or the table does not know.
  static std::int32_t window_of(Table const& table, std::int32_t layer) {
    if constexpr (requires { table.window(layer); }) {
      return table.window(layer);
    } else {
      return 0;
    }
  }

  Table table_;
};

HEADAWARE_NAMESPACE_END
