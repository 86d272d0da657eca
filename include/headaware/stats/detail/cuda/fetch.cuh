#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/detail/cuda/vector_access.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows of one head of a tensor: positions first, first + stride, …
struct FetchRows {
  std::int64_t sequence;
  std::int64_t head;
  std::int64_t first;
  std::int64_t stride;
  std::int32_t count;  ///< rows that exist; the others up to `total` are zeroed
  std::int32_t total;
};

/// @brief Copies rows to shared memory, channels padded with zeros; asynchronously where 16 bytes move at once.
/// @param to  [rows.total, pitch]
template <class E, class Layout>
__device__ void fetch_rows(E const* from, Layout const& layout, FetchOrder order, FetchRows const& rows,
                           std::int32_t head_dim, std::int32_t channels, std::int32_t pitch, E* to) {
  auto const thread = static_cast<std::int32_t>(threadIdx.x);
  if (order == FetchOrder::rows) {
    // Eight threads per row: whole lines of memory, and few offsets to compute.
    constexpr std::int32_t width = 16 / sizeof(E);
    constexpr std::int32_t row_threads = 8;
    for (std::int32_t row = thread / row_threads; row < rows.total; row += observe_threads / row_threads) {
      bool const exists = row < rows.count;
      E const* const source =
          exists ? from + layout.offset(rows.sequence, rows.head, rows.first + row * rows.stride, 0) : from;
      E* const target = to + row * pitch;
      for (std::int32_t c = thread % row_threads * width; c < channels; c += row_threads * width) {
        bool const valid = exists && c < head_dim;
        copy_async(target + c, valid ? source + c : from, valid);
      }
    }
    return;
  }
  if (order == FetchOrder::wide) {
    constexpr std::int32_t width = 16 / sizeof(E);
    for (RowCursor at(channels / width, observe_threads); at.row < rows.total; at.advance()) {
      std::int32_t const channel = at.column * width;
      bool const valid = at.row < rows.count && channel < head_dim;
      E const* const source =
          valid ? from + layout.offset(rows.sequence, rows.head, rows.first + at.row * rows.stride, channel) : from;
      copy_async(to + at.row * pitch + channel, source, valid);
    }
    return;
  }
  bool const by_token = order == FetchOrder::tokens;
  std::int32_t const run = by_token ? rows.total : channels;
  for (std::int32_t i = thread; i < rows.total * channels; i += observe_threads) {
    std::int32_t const row = by_token ? i % run : i / run;
    std::int32_t const channel = by_token ? i / run : i % run;
    bool const valid = row < rows.count && channel < head_dim;
    to[row * pitch + channel] =
        valid ? from[layout.offset(rows.sequence, rows.head, rows.first + row * rows.stride, channel)] : E{};
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
