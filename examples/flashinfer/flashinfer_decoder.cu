// FlashInfer's part: calls of its headers, and an attention variant for them.

#include "flashinfer_decoder.hpp"

#include <flashinfer/utils.cuh>

#include <cstddef>
#include <sstream>

// Groups of query heads for which the kernel on CUDA cores is compiled here, instead of FlashInfer's seven: each takes
// 12 instances (numbers of channels, attentions, depths of its pipeline).
#undef DISPATCH_GQA_GROUP_SIZE
#define DISPATCH_GQA_GROUP_SIZE(group_size, GROUP_SIZE, ...)    \
  if (group_size == 1) {                                        \
    constexpr std::size_t GROUP_SIZE = 1;                       \
    __VA_ARGS__                                                 \
  } else if (group_size == 4) {                                 \
    constexpr std::size_t GROUP_SIZE = 4;                       \
    __VA_ARGS__                                                 \
  } else if (group_size == 8) {                                 \
    constexpr std::size_t GROUP_SIZE = 8;                       \
    __VA_ARGS__                                                 \
  } else {                                                      \
    std::ostringstream message;                                 \
    message << "group: expected 1, 4 or 8, got " << group_size; \
    FLASHINFER_ERROR(message.str());                            \
  }

#include <flashinfer/attention/cascade.cuh>
#include <flashinfer/attention/decode.cuh>
#include <flashinfer/attention/default_decode_params.cuh>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>

#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace fi = flashinfer;

namespace {

constexpr auto no_position = fi::PosEncodingMode::kNone;  // keys in the cache are rotated already
constexpr std::uint32_t tile_rows = 16;                   // query rows of a block on tensor cores

/// FlashInfer's own attention.
template <bool window>
struct Stock {
  using Variant = fi::DefaultAttention<false, window, false, false>;
  using Decode = fi::BatchDecodeParams<half, half, half, std::int32_t>;
  using Prefill = fi::BatchPrefillPagedParams<half, half, half, std::int32_t>;
  static constexpr auto mask_mode = fi::MaskMode::kNone;
};

template <class Params>
struct WithRules : Params {
  FlashInferRule const* rules = nullptr;
  std::int32_t num_kv_heads = 1;
};

/// Attention to what each KV head keeps, over its whole pages: those of the sinks, then those of the window.
struct KeptVariant : fi::AttentionVariantBase {
  std::uint32_t qo_len, kv_len, window_left, sink, window;
  float sm_scale_log2;

  template <class Params>
  __device__ __host__ KeptVariant(Params const& params, std::uint32_t entry, std::uint8_t*)
      : qo_len(static_cast<std::uint32_t>(params.get_qo_len(entry))),
        kv_len(static_cast<std::uint32_t>(params.get_kv_len(entry))),
        window_left(kv_len),  // of the sliding window, which there is none of
        sm_scale_log2(params.sm_scale * fi::math::log2e) {
    FlashInferRule const rule = params.rules[entry % params.num_kv_heads];
    sink = static_cast<std::uint32_t>(rule.sink);
    window = static_cast<std::uint32_t>(rule.window);
  }
  // The window ends where the pages do, whether there are pages between it and the sinks or not.
  REGISTER_LOGITS_MASK(params, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx,
                       { return kv_idx < sink || kv_idx + window >= kv_len; })
};

struct Kept {
  using Variant = KeptVariant;
  using Decode = WithRules<Stock<false>::Decode>;
  using Prefill = WithRules<Stock<false>::Prefill>;
  static constexpr auto mask_mode = fi::MaskMode::kCustom;  // the variant is asked about every token
};

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("FlashInfer: ") + cudaGetErrorString(error));
}

/// Device memory that grows.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { cudaFree(data_); }
  Buffer(Buffer const&) = delete;
  Buffer& operator=(Buffer const&) = delete;

  void reserve(std::size_t bytes) {
    if (bytes <= bytes_) return;
    check(cudaFree(data_));
    data_ = nullptr;
    bytes_ = 0;
    check(cudaMalloc(&data_, bytes));
    bytes_ = bytes;
  }
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  template <class T>
  [[nodiscard]] T* at(std::int64_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Calls `f` with the number of channels as a constant and with a tag of the attention.
template <class F>
void with_types(std::int32_t head_dim, FlashInferMask const& mask, F const& f) {
  auto const with_attention = [&](auto channels) {
    if (mask.rules != nullptr) return f(channels, std::type_identity<Kept>{});
    if (mask.window > 0) return f(channels, std::type_identity<Stock<true>>{});
    f(channels, std::type_identity<Stock<false>>{});
  };
  if (head_dim == 64) return with_attention(std::integral_constant<std::uint32_t, 64>{});
  if (head_dim == 128) return with_attention(std::integral_constant<std::uint32_t, 128>{});
  throw std::invalid_argument("FlashInferDecoder: head_dim: expected 64 or 128, got " + std::to_string(head_dim));
}

template <class T>
T* mutable_pointer(T const* pointer) {  // FlashInfer's parameters know no constant memory
  return const_cast<T*>(pointer);
}

}  // namespace

struct FlashInferDecoder::Plan {
  FlashInferCores cores = FlashInferCores::cuda;
  FlashInferShape shape;
  FlashInferMask mask;
  std::int32_t entries = 0;
  fi::DecodePlanInfo decode;
  fi::PrefillPlanInfo prefill;
  Buffer partial;     ///< states of divided entries
  Buffer tables;      ///< of the plan
  Buffer query_rows;  ///< [entries + 1]: one query token per entry
  // Pageable memory, which may change again as soon as a copy of it is enqueued.
  std::vector<std::byte> tables_on_host;
  std::vector<std::int32_t> rows;

  [[nodiscard]] std::int32_t window_left() const { return mask.window > 0 ? mask.window - 1 : -1; }

  void reserve(std::size_t partial_bytes, std::size_t table_bytes) {
    partial.reserve(partial_bytes);
    tables.reserve(table_bytes);
    if (tables_on_host.size() < table_bytes) tables_on_host.resize(table_bytes);
  }

  template <std::uint32_t head_dim, class Attention>
  void plan_decode(std::int32_t* indptr, cudaStream_t stream) {
    using Params = typename Attention::Decode;
    using Variant = typename Attention::Variant;
    auto const group = static_cast<std::uint32_t>(shape.group);
    DISPATCH_GQA_GROUP_SIZE(group, GROUP_SIZE, {
      auto const estimate =
          fi::BatchDecodeWithPagedKVCacheWorkEstimationDispatched<GROUP_SIZE, head_dim, no_position, Variant, Params>;
      std::size_t partial_bytes = 0;
      std::size_t table_bytes = 0;
      check(fi::DecodePlanWorkspaceSize<head_dim, no_position, Variant, Params>(
          partial_bytes, table_bytes, indptr, entries, group, shape.page_size, false, stream, estimate));
      reserve(partial_bytes, table_bytes);
      check(fi::DecodePlan<head_dim, no_position, Variant, Params>(
          partial.data(), partial.bytes(), tables.data(), tables_on_host.data(), tables.bytes(), decode, indptr,
          entries, group, shape.page_size, false, stream, estimate));
    })
  }

  void plan_prefill(std::int32_t* indptr, cudaStream_t stream) {
    rows.resize(static_cast<std::size_t>(entries) + 1);
    std::iota(rows.begin(), rows.end(), 0);
    std::size_t const bytes = rows.size() * sizeof(std::int32_t);
    query_rows.reserve(bytes);
    check(cudaMemcpyAsync(query_rows.data(), rows.data(), bytes, cudaMemcpyHostToDevice, stream));
    auto const plan_by = [&](auto const& function, auto&&... memory) {
      check(function(memory..., rows.data(), indptr, entries, entries, shape.group, 1, shape.head_dim, shape.head_dim,
                     shape.page_size, false, sizeof(half), window_left(), -1, false, 0, 0, stream));
    };
    std::size_t partial_bytes = 0;
    std::size_t table_bytes = 0;
    plan_by([](auto&&... arguments) { return fi::PrefillPlanWorkspaceSize<std::int32_t>(arguments..., 2); },
            partial_bytes, table_bytes);
    reserve(partial_bytes, table_bytes);
    plan_by([](auto&&... arguments) { return fi::PrefillPlan<std::int32_t>(arguments..., 2); }, partial.data(),
            partial.bytes(), tables.data(), tables_on_host.data(), tables.bytes(), prefill);
    if (prefill.cta_tile_q != tile_rows) {
      throw std::invalid_argument("FlashInferDecoder: group: expected at most 16 on tensor cores, got " +
                                  std::to_string(shape.group));
    }
  }

  [[nodiscard]] auto paged(FlashInferPages const& pages) const {
    std::int64_t const page = std::int64_t{shape.page_size} * shape.head_dim;
    std::int64_t const stride = pages.page_stride != 0 ? pages.page_stride : page;
    std::int64_t const strides[] = {stride, page, shape.head_dim};  // of pages, heads (of which each has one), tokens
    return fi::paged_kv_t<half, std::int32_t>(
        1, static_cast<std::uint32_t>(shape.page_size), static_cast<std::uint32_t>(shape.head_dim),
        static_cast<std::uint32_t>(entries), fi::QKVLayout::kHND, mutable_pointer(pages.keys),
        mutable_pointer(pages.values), strides, mutable_pointer(pages.indices), mutable_pointer(pages.indptr),
        mutable_pointer(pages.last_page_len));
  }

  /// Sets what both kernels' parameters have in common.
  template <class Params, class Info>
  void fill(Params& params, Info const& info, half const* queries, FlashInferPages const& pages,
            FlashInferState const& state) const {
    params.q = mutable_pointer(queries);
    params.paged_kv = paged(pages);
    params.o = state.output;
    params.lse = state.lse;
    params.num_qo_heads = static_cast<std::uint32_t>(shape.group);
    params.q_stride_n = shape.group * shape.head_dim;
    params.q_stride_h = shape.head_dim;
    params.window_left = window_left();
    params.sm_scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
    params.padded_batch_size = static_cast<std::uint32_t>(info.padded_batch_size);
    params.request_indices = tables.at<std::int32_t>(info.request_indices_offset);
    params.kv_tile_indices = tables.at<std::int32_t>(info.kv_tile_indices_offset);
    params.o_indptr = tables.at<std::int32_t>(info.o_indptr_offset);
    params.kv_chunk_size_ptr = tables.at<std::int32_t>(info.kv_chunk_size_ptr_offset);
    if constexpr (requires { params.rules; }) {
      params.rules = mask.rules;
      params.num_kv_heads = mask.num_kv_heads;
    }
  }
  template <class Info>
  [[nodiscard]] half* partial_output(Info const& info) const {
    return info.split_kv ? partial.at<half>(info.v_offset) : nullptr;
  }
  template <class Info>
  [[nodiscard]] float* partial_lse(Info const& info) const {
    return info.split_kv ? partial.at<float>(info.s_offset) : nullptr;
  }
};

FlashInferDecoder::FlashInferDecoder(FlashInferCores cores, FlashInferShape const& shape)
    : plan_(std::make_unique<Plan>()) {
  plan_->cores = cores;
  plan_->shape = shape;
}
FlashInferDecoder::~FlashInferDecoder() = default;

void FlashInferDecoder::plan(std::span<std::int32_t const> indptr, FlashInferMask const& mask, cudaStream_t stream) {
  Plan& plan = *plan_;
  std::vector<std::int32_t> pages(indptr.begin(), indptr.end());
  plan.entries = static_cast<std::int32_t>(pages.size()) - 1;
  plan.mask = mask;
  if (plan.entries == 0) return;
  if (plan.cores == FlashInferCores::tensor) {
    plan.plan_prefill(pages.data(), stream);
  } else {
    with_types(plan.shape.head_dim, mask, [&](auto channels, auto attention) {
      plan.plan_decode<channels(), typename decltype(attention)::type>(pages.data(), stream);
    });
  }
}

void FlashInferDecoder::run(__half const* queries, FlashInferPages const& pages, FlashInferState const& state,
                            cudaStream_t stream) const {
  Plan const& plan = *plan_;
  if (plan.entries == 0) return;
  with_types(plan.shape.head_dim, plan.mask, [&](auto channels, auto tag) {
    constexpr std::uint32_t head_dim = channels();
    using Attention = typename decltype(tag)::type;
    using Variant = typename Attention::Variant;
    if (plan.cores == FlashInferCores::cuda) {
      typename Attention::Decode params;
      plan.fill(params, plan.decode, queries, pages, state);
      check(fi::BatchDecodeWithPagedKVCacheDispatched<head_dim, no_position, Variant>(
          params, plan.partial_output(plan.decode), plan.partial_lse(plan.decode), false, stream));
    } else {
      typename Attention::Prefill params;
      plan.fill(params, plan.prefill, queries, pages, state);
      params.q_indptr = plan.query_rows.at<std::int32_t>(0);
      params.group_size = fi::uint_fastdiv(static_cast<std::uint32_t>(plan.shape.group));
      params.qo_tile_indices = plan.tables.at<std::int32_t>(plan.prefill.qo_tile_indices_offset);
      params.merge_indptr = plan.tables.at<std::int32_t>(plan.prefill.merge_indptr_offset);
      params.max_total_num_rows = static_cast<std::uint32_t>(plan.prefill.total_num_rows);
      check(fi::BatchPrefillWithPagedKVCacheDispatched<true, tile_rows, head_dim, head_dim, no_position, false,
                                                       Attention::mask_mode, Variant>(
          params, plan.partial_output(plan.prefill), plan.partial_lse(plan.prefill), false, stream));
    }
  });
}

bool FlashInferDecoder::splits() const {
  return plan_->cores == FlashInferCores::cuda ? plan_->decode.split_kv : plan_->prefill.split_kv;
}

void flashinfer_merge(FlashInferShape const& shape, std::int32_t entries, FlashInferState const& a,
                      FlashInferState const& b, FlashInferState const& merged, cudaStream_t stream) {
  check(fi::MergeState(a.output, a.lse, b.output, b.lse, merged.output, merged.lse, static_cast<std::uint32_t>(entries),
                       static_cast<std::uint32_t>(shape.group), static_cast<std::uint32_t>(shape.head_dim), stream));
}
