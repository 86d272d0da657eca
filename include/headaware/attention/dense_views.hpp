#pragma once

/// @file
/// Ragged and padded caches as attention reads them.

#include <headaware/attention/attention.hpp>
#include <headaware/attention/kept_view.hpp>
#include <headaware/cache/adjacent_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/detail/global_pointer.hpp>
#include <headaware/error.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief `ha::ragged`: `[rows, channels]`, the heads of each sequence back to back.
/// @tparam Offset  `int32_t` for `cu_seqlens`, `int64_t` for `CacheSizes::offsets`
template <class Offset>
struct RaggedView {
  /// [sequences * num_kv_heads + 1], first row of each head of each sequence, from the base pointer; host or device
  Offset const* offsets = nullptr;
  std::int32_t num_kv_heads = 0;
  std::int32_t const* positions = nullptr;  ///< [rows], the token of each row; nullptr: a head's row i is token i

  [[nodiscard]] HEADAWARE_HOST_DEVICE AdjacentRows head(std::int64_t sequence, std::int64_t kv_head) const {
    std::int64_t const index = sequence * num_kv_heads + kv_head;
    Offset const* const from = detail::global_pointer(offsets);
    std::int64_t const first = from[index];
    return {first, from[index + 1] - first, positions != nullptr ? positions + first : nullptr};
  }
  void check(AttentionShape const& shape, AttentionOptions const&) const {
    constexpr auto where = "attend, RaggedView";
    require_pointer(offsets, "offsets", where);
    require(shape.num_kv_heads == num_kv_heads, "KV heads", num_kv_heads, shape.num_kv_heads, where);
  }
  /// Offsets beyond the tensor stay unseen: the view does not know how many rows it has. Numbers of rows below 0 are
  /// seen by `attend`.
  void check_tables(AttentionShape const& shape) const {
    for (std::int64_t i = 0; i < shape.segments(); ++i) {
      std::int64_t const held = std::int64_t{offsets[i + 1]} - offsets[i];
      detail::SegmentPlace const place{"RaggedView", i / num_kv_heads, i % num_kv_heads};
      require(offsets[i] >= 0, "offsets", ">= 0", offsets[i], place);
      require(held >= 0, "rows held", ">= 0", held, place);
    }
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }
};
template <class Offset>
RaggedView(Offset const*, std::int32_t) -> RaggedView<Offset>;
template <class Offset>
RaggedView(Offset const*, std::int32_t, std::int32_t const*) -> RaggedView<Offset>;
static_assert(KeptView<RaggedView<std::int32_t>>);

/// @brief `ha::padded`, and any full cache `[sequences, num_kv_heads, head_rows, channels]`: pads are never read.
struct PaddedView {
  std::int32_t const* lengths = nullptr;  ///< [sequences, num_kv_heads], rows held; host or device
  std::int32_t num_kv_heads = 0;
  std::int64_t head_rows = 0;  ///< rows from one head to the next
  Alignment alignment = Alignment::left;
  std::int32_t const* positions =
      nullptr;  ///< [sequences, num_kv_heads, head_rows]; nullptr: a head's row i is token i

  [[nodiscard]] HEADAWARE_HOST_DEVICE AdjacentRows head(std::int64_t sequence, std::int64_t kv_head) const {
    std::int64_t const index = sequence * num_kv_heads + kv_head;
    AdjacentRows rows = AdjacentRows::padded(index, head_rows, detail::global_pointer(lengths)[index], alignment);
    if (positions != nullptr) rows.positions = positions + rows.first;
    return rows;
  }
  void check(AttentionShape const& shape, AttentionOptions const&) const {
    constexpr auto where = "attend, PaddedView";
    require_pointer(lengths, "lengths", where);
    require(shape.num_kv_heads == num_kv_heads, "KV heads", num_kv_heads, shape.num_kv_heads, where);
    check_size(shape);
  }
  void check_tables(AttentionShape const& shape) const {
    check_size(shape);
    for (std::int64_t i = 0; i < shape.segments(); ++i) {
      require(lengths[i] >= 0 && lengths[i] <= head_rows, "rows held", {"at least 0 and at most ", head_rows},
              lengths[i], detail::SegmentPlace{"PaddedView", i / num_kv_heads, i % num_kv_heads});
    }
  }
  [[nodiscard]] std::int64_t row_run(std::int64_t channels) const { return channels; }

 private:
  /// The tensor's elements must fit 64 bits.
  void check_size(AttentionShape const& shape) const {
    constexpr auto where = "attend, PaddedView";
    require(head_rows >= 0, "head_rows", ">= 0", head_rows, where);
    for (std::int64_t const channels : {shape.head_dim, shape.output_dim()}) {
      (void)detail::elements(where, {shape.num_sequences, num_kv_heads, head_rows, channels});
    }
  }
};
static_assert(KeptView<PaddedView>);

HEADAWARE_NAMESPACE_END
