// Compressed caches handed to FlashAttention and FlashInfer: nothing but pointers, offsets and strides, heads folded
// into the batch. This program needs neither library: it fills in their argument lists and reads the caches as their
// documentation says, to see that every kept row is where they will look.

#include <headaware/compressor.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace ha = headaware;

namespace {

/// FlashAttention's `flash_attn_varlen_func`, as far as the cache goes: each (sequence, KV head) is a sequence of its
/// own with one head. Queries are [sequences * num_kv_heads, group, head_dim], each KV head's group of query heads
/// beside one KV head; `cu_seqlens_q` is 0, 1, 2, … for decoding.
struct FlashAttentionVarlen {
  float const* k;                    ///< [total_k, 1, head_dim]
  float const* v;                    ///< [total_k, 1, head_dim]
  std::int64_t k_row_stride;         ///< elements from one row to the next
  std::int64_t k_head_stride;        ///< one head: never used
  std::int32_t const* cu_seqlens_k;  ///< [batch + 1]
  std::int32_t batch;                ///< sequences * num_kv_heads
  std::int32_t max_seqlen_k;

  /// Row `i` of a sequence, as FlashAttention finds it.
  [[nodiscard]] float const* key(std::int32_t sequence, std::int64_t i) const {
    return k + (cu_seqlens_k[sequence] + i) * k_row_stride;
  }
  [[nodiscard]] float const* value(std::int32_t sequence, std::int64_t i) const {
    return v + (cu_seqlens_k[sequence] + i) * k_row_stride;
  }
};

/// FlashInfer's `BatchDecodeWithPagedKVCacheWrapper`: plan(indptr, indices, last_page_len, num_qo_heads = group,
/// num_kv_heads = 1, head_dim, page_size), run(q, (k_cache, v_cache)). With one KV head a page, NHD
/// [pages, page_size, 1, head_dim] and HND [pages, 1, page_size, head_dim] are the same bytes; their strides differ in
/// name only.
struct FlashInferPaged {
  float const* k_cache;
  float const* v_cache;
  std::int64_t stride_page;  ///< elements
  std::int64_t stride_n;     ///< between tokens of a page
  std::int64_t stride_h;     ///< between heads of a page
  std::int32_t page_size;
  std::int32_t batch;                 ///< sequences * num_kv_heads
  std::int32_t const* indptr;         ///< [batch + 1]
  std::int32_t const* indices;        ///< [indptr[batch]]
  std::int32_t const* last_page_len;  ///< [batch]

  [[nodiscard]] std::int64_t length(std::int32_t sequence) const {
    std::int32_t const pages = indptr[sequence + 1] - indptr[sequence];
    return pages == 0 ? 0 : std::int64_t{pages - 1} * page_size + last_page_len[sequence];
  }
  /// Element offset of token `i`, head 0, as FlashInfer's `paged_kv_t` computes it.
  [[nodiscard]] std::int64_t offset(std::int32_t sequence, std::int64_t i) const {
    std::int64_t const page = indices[indptr[sequence] + i / page_size];
    return page * stride_page + i % page_size * stride_n + 0 * stride_h;
  }
};

constexpr std::int64_t head_dim = 16;

/// A number that tells where a row comes from.
float mark(std::int64_t layer, std::int64_t sequence, std::int64_t head, std::int64_t token) {
  return static_cast<float>(((layer * 2 + sequence) * 4 + head) * 1000 + token);
}

}  // namespace

int main() {
  constexpr std::int32_t num_layers = 2;
  constexpr std::int32_t num_kv_heads = 4;
  constexpr std::int32_t tokens = 300;
  constexpr std::int32_t page_size = 16;
  std::vector<std::int32_t> const lengths{300, 45};
  auto table = ha::PolicyTable(num_layers, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 60});
  table.set(0, 1, ha::Full{});
  table.set(1, 2, ha::Prune{});
  ha::Compaction const plan(table, lengths);

  // The engine's full cache, each row marked with where it is.
  auto const source = ha::strided_bhsd(2, num_kv_heads, tokens, head_dim);
  std::vector<std::vector<float>> keys(num_layers,
                                       std::vector<float>(static_cast<std::size_t>(source.required_span_size())));
  auto values = keys;
  std::vector<ha::LayerKv<float const>> layers;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    auto const l = static_cast<std::size_t>(layer);
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t h = 0; h < num_kv_heads; ++h) {
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t c = 0; c < head_dim; ++c) {
            auto const at = static_cast<std::size_t>(source.offset(b, h, t, c));
            keys[l][at] = mark(layer, b, h, t);
            values[l][at] = -mark(layer, b, h, t);
          }
        }
      }
    }
    layers.push_back({keys[l].data(), values[l].data()});
  }

  // Ragged, for FlashAttention.
  auto const rows = static_cast<std::size_t>(plan.kept_total() * head_dim);
  std::vector<float> ragged_keys(rows);
  std::vector<float> ragged_values(rows);
  ha::compress(plan, layers, source, ha::ragged(plan, ragged_keys.data(), ragged_values.data(), head_dim));

  // Paged, for FlashInfer: all layers in one pool here, each layer with its part of the index arrays.
  ha::PageIndices const pages = ha::consecutive_pages(plan, page_size);
  auto const pool = static_cast<std::size_t>(plan.pages_total(page_size) * page_size * head_dim);
  std::vector<float> paged_keys(pool);
  std::vector<float> paged_values(pool);
  ha::PagedForm form;
  form.block_table = pages.indices.data();
  form.indptr = pages.indptr.data();
  form.page_size = page_size;
  std::vector<ha::LayerKv<float>> const pools(num_layers, {paged_keys.data(), paged_values.data()});
  ha::compress(plan, layers, source, ha::paged(plan, pools, form, head_dim, plan.pages_total(page_size)));

  std::int64_t wrong = 0;
  std::int64_t checked = 0;
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    auto const batch = static_cast<std::int32_t>(plan.layer_segments(layer));
    std::vector<std::int32_t> const cu_seqlens = plan.cu_seqlens(layer);
    FlashAttentionVarlen const flash{.k = ragged_keys.data() + plan.layer_begin(layer) * head_dim,
                                     .v = ragged_values.data() + plan.layer_begin(layer) * head_dim,
                                     .k_row_stride = head_dim,
                                     .k_head_stride = head_dim,
                                     .cu_seqlens_k = cu_seqlens.data(),
                                     .batch = batch,
                                     .max_seqlen_k = static_cast<std::int32_t>(plan.max_kept(layer))};
    // A layer's part of the model's index arrays; its `indptr` begins at 0, as FlashInfer has it.
    std::size_t const first = static_cast<std::size_t>(layer) * static_cast<std::size_t>(batch);
    std::int32_t const first_page = pages.indptr[first];
    std::vector<std::int32_t> indptr;
    for (std::int32_t s = 0; s <= batch; ++s) {
      indptr.push_back(pages.indptr[first + static_cast<std::size_t>(s)] - first_page);
    }
    FlashInferPaged const infer{.k_cache = paged_keys.data(),
                                .v_cache = paged_values.data(),
                                .stride_page = page_size * head_dim,
                                .stride_n = head_dim,
                                .stride_h = head_dim,
                                .page_size = page_size,
                                .batch = batch,
                                .indptr = indptr.data(),
                                .indices = pages.indices.data() + first_page,
                                .last_page_len = pages.last_page_len.data() + first};
    // HND: a head's tokens lie together, and a page has one head.
    FlashInferPaged infer_hnd = infer;
    infer_hnd.stride_h = page_size * head_dim;

    for (std::int32_t s = 0; s < batch; ++s) {
      std::int32_t const b = s / num_kv_heads;
      std::int32_t const h = s % num_kv_heads;
      std::int64_t const length = lengths[static_cast<std::size_t>(b)];
      std::int64_t row = 0;
      for (std::int64_t t = 0; t < length; ++t) {
        if (!table.visit(layer, h, [&](auto const& policy) { return policy.keeps(t, length); })) continue;
        float const expected = mark(layer, b, h, t);
        for (std::int64_t c = 0; c < head_dim; ++c) {
          auto const is = [&](float key, float value) { wrong += key == expected && value == -expected ? 0 : 1; };
          is(flash.key(s, row)[c], flash.value(s, row)[c]);
          for (auto const& view : {infer, infer_hnd}) {
            std::int64_t const at = view.offset(s, row) + c;
            is(view.k_cache[at], view.v_cache[at]);
          }
        }
        ++row;
        ++checked;
      }
      // And no row more.
      std::int64_t const seqlen = flash.cu_seqlens_k[s + 1] - flash.cu_seqlens_k[s];
      if (seqlen != row || seqlen > flash.max_seqlen_k || infer.length(s) != row) ++wrong;
    }
    std::printf("layer %d: flash_attn_varlen(k [%d, 1, %d], cu_seqlens_k [%d], max_seqlen_k %d); "
                "flashinfer plan(indptr [%d], indices [%d], last_page_len [%d], 1 KV head, page_size %d)\n",
                layer, cu_seqlens.back(), static_cast<int>(head_dim), batch + 1, flash.max_seqlen_k, batch + 1,
                infer.indptr[batch], batch, page_size);
  }
  std::printf("%lld rows looked up in both, %lld wrong\n", static_cast<long long>(checked),
              static_cast<long long>(wrong));
  return wrong == 0 && checked == plan.kept_total() ? 0 : 1;
}
