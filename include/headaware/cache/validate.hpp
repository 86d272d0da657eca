#pragma once

/// @file
/// The argument checks of `compress`, without moving data.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_pages.hpp>
#include <headaware/cache/detail/check_transfer.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/config.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Runs the argument checks of `compress` that read neither tensors nor tables, without moving data.
/// @param sizes      a `Compaction`, or its sizes
/// @param transfers  made by `transfer`
/// @throws ArgumentError on missing layers, shapes that disagree with the sizes, lengths beyond the
///         source, null or misaligned pointers, and destinations that overlap a source or each other, of whichever
///         of the transfers. Pages of a source and of a destination may lie in one pool: `compress` reads the tables
///         that tell them apart
template <class... Transfers>
void validate(CacheSizes const& sizes, Transfers const&... transfers) {
  detail::check_transfers(detail::bounds_of(sizes), true, transfers...);
}

/// @brief Runs the argument checks of `device::compress`, which returns `cudaErrorInvalidValue` where they fail and
/// leaves the text to `last_error_message`.
/// @throws ArgumentError as above; also if a source and a destination lie in one pool of pages, if `paged` was told its
///         `num_pages`
template <class Table, class... Transfers>
void validate(DeviceCompaction<Table> const& compaction, Transfers const&... transfers) {
  detail::check_transfers(detail::bounds_of(compaction), false, transfers...);
}

/// @brief Checks a destination's block table in host memory as the CPU back end does: for those who compress on a
/// device.
/// @param kept  made by `paged`, with host copies of `block_table` and `indptr`; the pages themselves are not touched
/// @throws ArgumentError on table rows too short for what heads keep, pages beyond the pool (if `paged` was told its
///         `num_pages`), and pages given to two heads
/// @par Cost  O(pages), and sorting those of a layer that do not ascend, or all where layers' pages interleave
template <class Table, class T, class Form>
void validate_tables(Compaction<Table> const& compaction, Destination<T, Form> const& kept) {
  constexpr auto where = "validate_tables";
  detail::check_capacity(compaction, kept);
  detail::WrittenPages written;
  detail::check_block_table(compaction, kept, written, where);
  detail::check_pages_apart(compaction, written, where);
}

HEADAWARE_NAMESPACE_END
