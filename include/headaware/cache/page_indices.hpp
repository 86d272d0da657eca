#pragma once

/// @file
/// Tables of pages of single heads as engines' kernels take them.

#include <headaware/cache/paged_head.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/policy/window_rule.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief The tokens that an engine's kernel is to read.
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
/// Neither library has a parameter for `kv_start`. A sliding window hides the same tokens: `window_left` (FlashInfer)
/// or `window_size` (FlashAttention) of `head(layer, kv_head).rule.window - 1` in the call for `window`, none in the
/// one for `sinks`. It is one number per call, so heads with different windows go into different calls, each with the
/// entries of its heads. One call over `whole` suffices for heads of any windows to a variant of FlashInfer's attention
/// that knows their rules: it shows the first `rule.sink` and the last `rule.window` of an entry's tokens
/// (examples/flashinfer). `headaware::attend` over `HeadPagesView` reads all heads exactly, too.
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
  std::int32_t page_size = 0;               ///< tokens per page of the layer
};

/// @brief The same as vLLM takes it: dense rows. For `kv_start` see `HeadPageIndices`.
struct HeadBlockTable {
  std::vector<std::int32_t> block_table;  ///< [entries, max_blocks]; 0 after a row's end
  std::vector<std::int32_t> seq_lens;     ///< [entries] tokens in a row's pages, those before `kv_start` included
  std::vector<std::int32_t> kv_start;     ///< [entries]
  std::int64_t max_blocks = 0;
  std::int32_t page_size = 0;  ///< tokens per page of the layer
};

namespace detail {

/// Adds one head of one sequence.
inline void add_page_indices(PagedHeadsView const& view, PagedHead const& head, std::int64_t sequence,
                             std::int64_t length, PagePart part, HeadPageIndices& result) {
  std::int64_t const size = head.page_size.value();
  WindowRange const kept = head.rule.range(length);
  // Where the window reaches the sinks all tokens count as sinks: no sliding window could hide those that both share.
  std::int64_t const sinks = kept.is_whole() ? length : kept.sinks;
  std::int64_t const begin = kept.is_whole() ? length : kept.begin;
  bool const has_window = begin < length;
  std::int64_t const sink_pages = head.pages(sinks);
  std::int64_t window_page = has_window ? begin / size : head.pages(length);
  std::int64_t const window_end = has_window ? head.pages(length) : window_page;
  if (part == PagePart::whole) window_page = std::max(window_page, sink_pages);
  std::int64_t last = -1;
  auto const add = [&](std::int64_t first_page, std::int64_t end) {
    for (std::int64_t p = first_page; p < end; ++p)
      result.indices.push_back(view.table[head.entry(sequence, last = p)]);
  };
  if (part != PagePart::window) add(0, sink_pages);
  if (part != PagePart::sinks) add(window_page, window_end);
  std::int64_t const end = part == PagePart::sinks ? sinks : length;
  result.indptr.push_back(static_cast<std::int32_t>(result.indices.size()));
  result.last_page_len.push_back(last < 0 ? 0 : static_cast<std::int32_t>(std::min(size, end - last * size)));
  result.kv_start.push_back(
      part == PagePart::window && has_window ? static_cast<std::int32_t>(begin - window_page * size) : 0);
}

/// Makes one layer's tables for FlashInfer. @param lengths  [num_sequences]
[[nodiscard]] inline HeadPageIndices page_indices(PagedHeadsView const& view, std::span<std::int32_t const> lengths,
                                                  std::int32_t layer, PagePart part) {
  for (std::int32_t kv_head = 0; kv_head < view.layer_heads().count(layer); ++kv_head) {
    // Engines' calls know of no slots whose tokens come in no order.
    refuse_scored_pages(view.head(layer, kv_head).scored, "PagedHeads::indices");
  }
  require(view.page_sizes.heads_alike(), "page sizes", "one for all heads of a layer, as engines' tables have it",
          "sizes of heads", "PagedHeads");
  HeadPageIndices result;
  result.page_size = static_cast<std::int32_t>(view.page_sizes.of(layer));
  result.indptr.push_back(0);
  for (std::int32_t b = 0; b < view.num_sequences; ++b) {
    for (std::int32_t kv_head = 0; kv_head < view.layer_heads().count(layer); ++kv_head) {
      add_page_indices(view, view.head(layer, kv_head), b, lengths[static_cast<std::size_t>(b)], part, result);
    }
  }
  return result;
}

/// Makes the same tables for vLLM.
[[nodiscard]] inline HeadBlockTable dense_rows(HeadPageIndices const& csr) {
  HeadBlockTable result;
  result.page_size = csr.page_size;
  std::size_t const rows = csr.last_page_len.size();
  for (std::size_t row = 0; row < rows; ++row) {
    result.max_blocks = std::max<std::int64_t>(result.max_blocks, csr.indptr[row + 1] - csr.indptr[row]);
  }
  auto const width = static_cast<std::size_t>(result.max_blocks);
  result.block_table.assign(rows * width, 0);
  for (std::size_t row = 0; row < rows; ++row) {
    std::int32_t const pages = csr.indptr[row + 1] - csr.indptr[row];
    std::copy_n(csr.indices.begin() + csr.indptr[row], pages,
                result.block_table.begin() + static_cast<std::ptrdiff_t>(row * width));
    result.seq_lens.push_back(pages == 0 ? 0 : (pages - 1) * csr.page_size + csr.last_page_len[row]);
  }
  result.kv_start = csr.kv_start;
  return result;
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
