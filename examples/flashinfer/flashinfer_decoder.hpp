#pragma once

// FlashInfer's own kernels for decoding, over pages of single KV heads, behind a plain interface. Its headers come with
// a libcudacxx that does not go together with the toolkit's CUB, so they and ours stay in translation units apart: this
// header includes neither.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>

/// Which of FlashInfer's kernels: that for decoding, on CUDA cores (groups of 1, 4 or 8: FlashInfer has 2, 3, 6 and 16,
/// too, which are not compiled here), or that for prefill, on tensor cores with one query token per entry, as its
/// wrappers have it under `use_tensor_cores` (groups of up to 16).
enum class FlashInferCores : std::uint8_t { cuda, tensor };

/// Heads are folded into the batch: entry `sequence * num_kv_heads + kv_head` is one KV head with its query heads.
struct FlashInferShape {
  std::int32_t group = 1;       ///< query heads per KV head
  std::int32_t head_dim = 128;  ///< 64 or 128
  std::int32_t page_size = 16;  ///< tokens
};

/// Pages of one layer in device memory, and the tables that `PagedHeads::indices` gives, copied there.
struct FlashInferPages {
  __half const* keys = nullptr;    ///< page p at p * page_stride
  __half const* values = nullptr;  ///< likewise
  std::int64_t page_stride = 0;    ///< elements; 0: page_size * head_dim
  std::int32_t const* indptr = nullptr;
  std::int32_t const* indices = nullptr;
  std::int32_t const* last_page_len = nullptr;
};

/// Tokens that a KV head keeps: `ha::WindowRule`.
struct FlashInferRule {
  std::int32_t sink = 0;
  std::int32_t window = 0;
};

/// The tokens of an entry's pages that its queries see.
struct FlashInferMask {
  /// FlashInfer's own sliding window, for the parts `sinks` (none) and `window` of the tables: the newest tokens, as
  /// many of every entry; 0: all.
  std::int32_t window = 0;
  /// Device, [num_kv_heads], for the part `whole`: an attention variant of ours shows exactly what each KV head keeps,
  /// so that heads with any windows go into one call; nullptr: FlashInfer's own.
  FlashInferRule const* rules = nullptr;
  std::int32_t num_kv_heads = 0;
};

/// Attention over some tokens, in device memory.
struct FlashInferState {
  __half* output = nullptr;  ///< [entries, group, head_dim]; 0 where an entry has no pages
  float* lse = nullptr;      ///< [entries, group] log-sum-exp of base 2; -inf where an entry has no pages
};

/// A plan of FlashInfer's and the memory that it needs, for one stream. Errors are exceptions.
class FlashInferDecoder {
 public:
  FlashInferDecoder(FlashInferCores cores, FlashInferShape const& shape);
  ~FlashInferDecoder();
  FlashInferDecoder(FlashInferDecoder const&) = delete;
  FlashInferDecoder& operator=(FlashInferDecoder const&) = delete;

  /// Shares the entries' pages out among the multiprocessors; again whenever tables change.
  /// @param indptr  host, [entries + 1]
  void plan(std::span<std::int32_t const> indptr, FlashInferMask const& mask, cudaStream_t stream);
  /// Attends as planned. @param queries  device, [entries, group, head_dim]
  void run(__half const* queries, FlashInferPages const& pages, FlashInferState const& state,
           cudaStream_t stream) const;
  /// Whether the plan divides the tokens of an entry among several blocks.
  [[nodiscard]] bool splits() const;

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

/// Merges two states over different tokens by FlashInfer's `MergeState`. @param merged  may be neither of them
void flashinfer_merge(FlashInferShape const& shape, std::int32_t entries, FlashInferState const& a,
                      FlashInferState const& b, FlashInferState const& merged, cudaStream_t stream);
