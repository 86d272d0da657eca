#pragma once

/// @file
/// The layouts that inference engines use, by name. Each is the engine's own definition of a contiguous
/// tensor; for a slice or a padded tensor give strides to `StridedLayout`, `RaggedLayout` or
/// `PagedLayout` directly.
///
/// A single layout is for keys and for values in tensors of their own. Where both share a tensor
/// (*joined*), the result is a pair, and both count from the tensor's first element: give that pointer
/// for the keys and for the values.

#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/paged.hpp>
#include <headaware/layout/ragged.hpp>
#include <headaware/layout/strided.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Hugging Face Transformers: `[batch, num_kv_heads, tokens, head_dim]`.
/// @param tokens  tokens the tensor has room for (a static cache: its length, not the filled part)
/// @par Source  huggingface/transformers, src/transformers/cache_utils.py, DynamicLayer and StaticLayer
[[nodiscard]] inline StridedLayout hugging_face(std::int64_t batch, std::int64_t num_kv_heads, std::int64_t tokens,
                                                std::int64_t head_dim) {
  return strided_bhsd(batch, num_kv_heads, tokens, head_dim);
}

/// @brief FlashAttention: `[batch, tokens, num_kv_heads, head_dim]`.
/// @par Source  Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py, flash_attn_func and
///              flash_attn_with_kvcache
[[nodiscard]] inline StridedLayout flash_attention(std::int64_t batch, std::int64_t tokens, std::int64_t num_kv_heads,
                                                   std::int64_t head_dim) {
  return strided_bshd(batch, tokens, num_kv_heads, head_dim);
}

/// @brief FlashAttention, variable lengths: `[total, num_kv_heads, head_dim]`.
/// @param cu_seqlens_k  [batch + 1], host or device, as the tensor
/// @par Source  Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py, flash_attn_varlen_func
[[nodiscard]] inline RaggedLayout flash_attention_varlen(std::int32_t const* cu_seqlens_k, std::int64_t batch,
                                                         std::int64_t total, std::int64_t num_kv_heads,
                                                         std::int64_t head_dim) {
  return ragged_thd(cu_seqlens_k, batch, total, num_kv_heads, head_dim);
}

/// @brief FlashAttention, paged: `[num_blocks, page_block_size, num_kv_heads, head_dim]`.
/// @param block_table  `PageTable::dense` of [batch, max_num_blocks_per_seq]
/// @par Source  Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py, flash_attn_with_kvcache
[[nodiscard]] inline PagedLayout flash_attention_paged(PageTable const& block_table, PagedShape const& shape) {
  return paged_layout(block_table, shape, PageOrder::nhd);
}

/// @brief FlashInfer, keys and values apart: `[pages, page, num_kv_heads, head_dim]` (NHD) or
/// `[pages, num_kv_heads, page, head_dim]` (HND).
/// @param table  `PageTable::csr` of `paged_kv_indices` and `paged_kv_indptr`
/// @par Source  flashinfer-ai/flashinfer, docs/tutorials/kv_layout.rst, "Page Table Layout"
[[nodiscard]] inline PagedLayout flashinfer_split(PageTable const& table, PagedShape const& shape, PageOrder order) {
  return paged_layout(table, shape, order);
}

/// @brief FlashInfer, keys and values joined: `[pages, 2, page, num_kv_heads, head_dim]` (NHD) or
/// `[pages, 2, num_kv_heads, page, head_dim]` (HND). Those of vLLM's FlashInfer back end, too, with
/// `PageTable::dense`.
/// @par Source  flashinfer-ai/flashinfer, docs/tutorials/kv_layout.rst, "Page Table Layout";
///              vllm-project/vllm, vllm/v1/attention/backends/flashinfer.py, get_kv_cache_shape
[[nodiscard]] inline KvLayouts<PagedLayout, PagedLayout> flashinfer_joined(PageTable const& table,
                                                                           PagedShape const& shape, PageOrder order) {
  PagedStrides strides = detail::page_strides(shape, order);
  std::int64_t const plane = strides.page;
  strides.page = detail::elements("flashinfer_joined", {strides.page, 2});
  return {PagedLayout(table, shape, strides), PagedLayout(table, shape, strides, plane)};
}

/// @brief vLLM with FlashAttention: `[2, num_blocks, block_size, num_kv_heads, head_dim]`, joined.
/// @param block_table  `PageTable::dense` of [num_reqs, max_num_blocks_per_req]
/// @param order        hnd: the tensor that VLLM_KV_CACHE_LAYOUT=HND gives,
///                     `[2, num_blocks, num_kv_heads, block_size, head_dim]` in memory
/// @note   A version or back end whose shape begins `[num_blocks, 2, ...]` has the tensors of
///         `flashinfer_joined`.
/// @par Source  vllm-project/vllm, vllm/v1/attention/backends/flash_attn.py, get_kv_cache_shape and
///              get_kv_cache_stride_order
[[nodiscard]] inline KvLayouts<PagedLayout, PagedLayout> vllm_flash(PageTable const& block_table,
                                                                    PagedShape const& shape,
                                                                    PageOrder order = PageOrder::nhd) {
  PagedStrides const strides = detail::page_strides(shape, order);
  return {PagedLayout(block_table, shape, strides),
          PagedLayout(block_table, shape, strides, detail::elements("vllm_flash", {shape.num_pages, strides.page}))};
}

/// @brief vLLM's own paged attention: keys `[num_blocks, num_kv_heads, head_dim / x, block_size, x]`, values
/// `[num_blocks, num_kv_heads, head_dim, block_size]`, each from its own pointer.
/// @param x  elements in 16 bytes
/// @throws ArgumentError as `PagedSplitXLayout`
/// @par Source  vllm-project/vllm, csrc/attention/attention_kernels.cuh, paged_attention_kernel
[[nodiscard]] inline KvLayouts<PagedSplitXLayout, PagedLayout> vllm_paged_attention(PageTable const& block_table,
                                                                                    PagedShape const& shape,
                                                                                    std::int64_t x) {
  constexpr auto where = "vllm_paged_attention";
  std::int64_t const head = detail::elements(where, {shape.channels, shape.page_size});
  std::int64_t const page = detail::elements(where, {shape.num_kv_heads, head});
  std::int64_t const group = detail::elements(where, {shape.page_size, x});
  return {PagedSplitXLayout(block_table, shape, x, {.page = page, .head = head, .group = group, .token = x}),
          PagedLayout(block_table, shape, {.page = page, .head = head, .token = 1, .channel = shape.page_size})};
}

/// @brief TensorRT-LLM: a pool `[blocks, layers, 2, num_kv_heads, tokens_per_block, head_dim]`, of which a
/// layer sees `[blocks, 2, num_kv_heads, tokens_per_block, head_dim]`, joined.
///
/// The table is the one that its attention kernels read: for each sequence a row for keys and a row for
/// values, whose entries count blocks of one layer's keys or values: `block · layers · 2`, and 1 more
/// for values. With plain block numbers instead, and one layer per pool, take `flashinfer_joined`, HND.
/// @param block_offsets   [sequences, 2, max_blocks], host or device, as the pool; a sequence for each
///                        beam; blocks in the primary pool only (bit 31 clear)
/// @param max_blocks      entries of a row, max_blocks_per_seq
/// @param shape           `num_pages` is the blocks of the pool
/// @param layers_in_pool  layers that share the pool
/// @note  Base pointer: the pool's, plus 2 · (the layer's place in the pool) · num_kv_heads ·
///        tokens_per_block · head_dim elements.
/// @throws ArgumentError as `PagedLayout`, or if `layers_in_pool` is not positive
/// @par Source  NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/kernels/kvCacheUtils.h, KVBlockArray;
///              cpp/include/tensorrt_llm/kernels/kvCacheIndex.h;
///              cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp, allocatePools and setOffsets
[[nodiscard]] inline KvLayouts<PagedLayout, PagedLayout> tensorrt_llm(std::int32_t const* block_offsets,
                                                                      std::int64_t max_blocks, PagedShape const& shape,
                                                                      std::int64_t layers_in_pool = 1) {
  require(layers_in_pool > 0, "layers_in_pool", "> 0", layers_in_pool, "tensorrt_llm");
  PagedStrides const strides = detail::page_strides(shape, PageOrder::hnd);
  // The table counts half blocks, from this layer's first: the last block's keys are the last-but-one of these.
  PagedShape half_blocks = shape;
  if (shape.num_pages > 0) {
    (void)detail::elements("tensorrt_llm", {shape.num_pages, layers_in_pool, 2});
    half_blocks.num_pages = (shape.num_pages - 1) * layers_in_pool * 2 + 1;
  }
  PagedLayout const keys(PageTable::dense(block_offsets, max_blocks, 2 * max_blocks), half_blocks, strides);
  if (shape.num_pages > 0) ++half_blocks.num_pages;
  std::int32_t const* const value_offsets = block_offsets == nullptr ? nullptr : block_offsets + max_blocks;
  return {keys, PagedLayout(PageTable::dense(value_offsets, max_blocks, 2 * max_blocks), half_blocks, strides)};
}

/// @brief Sizes of llama.cpp's KV cache, in its names.
struct LlamaCppShape {
  std::int64_t n_stream = 1;       ///< streams; 1 where the cache is unified
  std::int64_t kv_size = 0;        ///< cells of a stream
  std::int64_t n_head_kv = 0;      ///< KV heads
  std::int64_t n_embd_head_k = 0;  ///< channels of a key
  std::int64_t n_embd_head_v = 0;  ///< channels of a value
  bool v_trans = false;            ///< values transposed: so without flash attention
  std::int64_t n_embd_v_gqa = 0;   ///< values of a cell, where more than the heads need; 0: n_head_kv * n_embd_head_v
};

namespace detail {

/// The width of a cell's values. @throws ArgumentError if it has no room for the heads
inline std::int64_t llama_value_width(LlamaCppShape const& shape) {
  std::int64_t const needed = elements("llama_cpp", {shape.n_head_kv, shape.n_embd_head_v});
  require(shape.n_embd_v_gqa == 0 || shape.n_embd_v_gqa >= needed, "n_embd_v_gqa",
          {"0 or >= n_head_kv * n_embd_head_v (", needed, ")"}, shape.n_embd_v_gqa, "llama_cpp");
  return shape.n_embd_v_gqa == 0 ? needed : shape.n_embd_v_gqa;
}

}  // namespace detail

/// @brief llama.cpp: keys `[n_stream, kv_size, n_embd_k_gqa]`, a cell's heads side by side; values
/// likewise, or transposed `[n_stream, n_embd_v_gqa, kv_size]`. Keys and values from their own pointers.
///
/// Token t is cell t: so where each sequence has a stream of its own, or is the only one, and was stored
/// from cell 0 on. Otherwise take `llama_cpp_cells`. For a block-quantised type count bytes: elements of
/// one byte, and for `n_embd_head_k` the bytes of a head's row (`ggml_row_size`).
/// @throws ArgumentError on a negative extent, or an `n_embd_v_gqa` too small
/// @par Source  ggml-org/llama.cpp, src/llama-kv-cache.cpp, constructor, get_k and get_v
[[nodiscard]] inline KvLayouts<StridedLayout, StridedLayout> llama_cpp(LlamaCppShape const& shape) {
  constexpr auto where = "llama_cpp";
  std::int64_t const key_width = detail::elements(where, {shape.n_head_kv, shape.n_embd_head_k});
  std::int64_t const value_width = detail::llama_value_width(shape);
  StridedLayout const keys({shape.n_stream, shape.n_head_kv, shape.kv_size, shape.n_embd_head_k},
                           {.sequence = detail::elements(where, {shape.kv_size, key_width}),
                            .head = shape.n_embd_head_k,
                            .token = key_width,
                            .channel = 1});
  LayoutShape const values{shape.n_stream, shape.n_head_kv, shape.kv_size, shape.n_embd_head_v};
  std::int64_t const stream = detail::elements(where, {shape.kv_size, value_width});
  LayoutStrides const rows{.sequence = stream, .head = shape.n_embd_head_v, .token = value_width, .channel = 1};
  LayoutStrides const transposed{.sequence = stream,
                                 .head = detail::elements(where, {shape.kv_size, shape.n_embd_head_v}),
                                 .token = 1,
                                 .channel = shape.kv_size};
  return {keys, StridedLayout(values, shape.v_trans ? transposed : rows)};
}

/// @brief llama.cpp's unified cache, in which sequences share the cells: the tensors of `llama_cpp` with
/// one stream, and a table of the cell that each token of each sequence is in.
/// @param cells      cell numbers, `PageTable::dense` of [sequences, max_tokens] or `PageTable::csr`
/// @param sequences  rows of the table
/// @throws ArgumentError as `llama_cpp` and `PagedLayout`, and if there is more than one stream
/// @par Source  ggml-org/llama.cpp, src/llama-kv-cache.cpp, get_k and get_v; src/llama-kv-cells.h
[[nodiscard]] inline KvLayouts<PagedLayout, PagedLayout> llama_cpp_cells(PageTable const& cells, std::int64_t sequences,
                                                                         LlamaCppShape const& shape) {
  require(shape.n_stream == 1, "n_stream", "1, a unified cache", shape.n_stream, "llama_cpp_cells");
  std::int64_t const value_width = detail::llama_value_width(shape);
  PagedShape paged{.num_sequences = sequences,
                   .num_kv_heads = shape.n_head_kv,
                   .channels = shape.n_embd_head_k,
                   .num_pages = shape.kv_size,
                   .page_size = 1};
  PagedLayout const keys(cells, paged,
                         {.page = detail::elements("llama_cpp_cells", {shape.n_head_kv, shape.n_embd_head_k}),
                          .head = shape.n_embd_head_k,
                          .channel = 1});
  paged.channels = shape.n_embd_head_v;
  PagedStrides const rows{.page = value_width, .head = shape.n_embd_head_v, .channel = 1};
  std::int64_t const head = detail::elements("llama_cpp_cells", {shape.kv_size, shape.n_embd_head_v});
  PagedStrides const transposed{.page = 1, .head = head, .channel = shape.kv_size};
  return {keys, PagedLayout(cells, paged, shape.v_trans ? transposed : rows)};
}

/// @brief SGLang: a pool of token slots `[slots, num_kv_heads, head_dim]`, whatever its page size.
/// @param slots  `PageTable::dense` of `req_to_token` [requests, max_context_len], sequences counted by
///               `req_pool_idx`; or `PageTable::csr` of the `kv_indices` and `kv_indptr` made from it for a batch
/// @param shape  `num_pages` is the slots of the pool, `page_size` 1
/// @throws ArgumentError as `PagedLayout`, or if the page size is not 1
/// @par Source  sgl-project/sglang, python/sglang/srt/mem_cache/memory_pool.py, ReqToTokenPool and
///              MHATokenToKVPool
[[nodiscard]] inline PagedLayout sglang(PageTable const& slots, PagedShape const& shape) {
  require(shape.page_size == 1, "page_size", "1: the table names slots, not pages", shape.page_size, "sglang");
  return paged_layout(slots, shape, PageOrder::nhd);
}

HEADAWARE_NAMESPACE_END
