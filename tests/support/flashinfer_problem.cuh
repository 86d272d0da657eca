#pragma once

// A layer's cache in pages of single KV heads in half precision, and attention over it by FlashInfer's kernels, by ours
// and by plain loops over what the policies keep.

#include "support/device_attention.cuh"
#include "support/kept_rows.hpp"

#include <headaware/attention/head_pages_view.hpp>
#include <headaware/cache/paged_append.hpp>
#include <headaware/cache/paged_heads.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <flashinfer/flashinfer_decoder.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace headaware_test {

/// Output and log-sum-exp in device memory; nothing of what is there before may be left.
struct FoldedState {
  DeviceVector<ha::float16> output;
  DeviceVector<float> lse;

  FoldedState(std::int64_t rows, std::int64_t head_dim)
      : output(std::vector<ha::float16>(at(rows * head_dim), ha::from_float<ha::float16>(77))),
        lse(std::vector<float>(at(rows), 77)) {}
  [[nodiscard]] FlashInferState view() const { return {reinterpret_cast<__half*>(output.data()), lse.data()}; }
};

struct FlashInferProblem {
  using Element = ha::float16;

  /// @param lengths  of the sequences
  /// @param joined   keys and values of a page one after the other
  FlashInferProblem(ha::PolicyTable table, std::vector<std::int32_t> lengths, FlashInferShape const& of, bool joined)
      : shape(of),
        kept({static_cast<std::int32_t>(lengths.size()), of.group * table.num_kv_heads(), table.num_kv_heads(), 1,
              of.head_dim},
             {}, 71),
        pages(table, {.num_sequences = kept.shape.num_sequences,
                      .page_size = of.page_size,
                      .num_pages = 12000 / of.page_size,
                      .limits = {.max_tokens = 4000}}),
        page_stride(joined ? 2 * of.page_size * of.head_dim : 0) {
    for (float& x : kept.queries) {
      queries_.push_back(ha::from_float<Element>(x));
      x = ha::to_float(queries_.back());
    }
    write(table, lengths);
  }

  [[nodiscard]] std::int32_t entries() const { return kept.shape.num_sequences * kept.shape.num_kv_heads; }
  [[nodiscard]] std::int64_t rows() const { return std::int64_t{entries()} * shape.group; }
  [[nodiscard]] std::int32_t window(std::int32_t kv_head) const { return pages.head(0, kv_head).rule.window; }

  /// FlashInfer's attention to one part of the tables. @param splits  whether the plan must divide entries
  [[nodiscard]] FoldedState part(FlashInferCores cores, ha::HeadPageIndices const& tables, FlashInferMask const& mask,
                                 bool splits = false) const {
    Stream const stream;
    DeviceUpload const upload;
    DeviceVector<Element> const d_queries(queries_);
    FoldedState state(rows(), shape.head_dim);
    FlashInferDecoder decoder(cores, shape);
    decoder.plan(tables.indptr, mask, stream);
    if (splits) REQUIRE(decoder.splits());
    auto const as_half = [](Element const* pointer) { return reinterpret_cast<__half const*>(pointer); };
    decoder.run(as_half(d_queries.data()),
                {as_half(d_keys()), as_half(d_values()), page_stride, upload(tables.indptr), upload(tables.indices),
                 upload(tables.last_page_len)},
                state.view(), stream);
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    return state;
  }
  /// Its attention to the sinks and to a window of so many tokens, merged.
  [[nodiscard]] FoldedState merged(FlashInferCores cores, std::int32_t window, bool splits = false) const {
    FoldedState const sinks = part(cores, pages.indices(0, ha::PagePart::sinks), {}, splits);
    FoldedState const newest = part(cores, pages.indices(0, ha::PagePart::window), {.window = window}, splits);
    FoldedState result(rows(), shape.head_dim);
    Stream const stream;
    flashinfer_merge(shape, entries(), sinks.view(), newest.view(), result.view(), stream);
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    return result;
  }
  /// Its attention to what every head keeps, in one call over whole pages.
  [[nodiscard]] FoldedState in_one_call(FlashInferCores cores, bool splits = false) const {
    std::vector<FlashInferRule> rules;
    for (std::int32_t h = 0; h < kept.shape.num_kv_heads; ++h) {
      rules.push_back({pages.head(0, h).rule.sink, window(h)});
    }
    DeviceVector<FlashInferRule> const d_rules(rules);
    return part(cores, pages.indices(0), {.rules = d_rules.data(), .num_kv_heads = kept.shape.num_kv_heads}, splits);
  }

  /// Compares with plain loops in double precision, and with our kernels.
  void check(FoldedState const& state) const {
    auto const output = state.output.host();
    Attended expected = naive_attention(kept);
    check_attended(output, {}, expected);
    auto const lse = state.lse.host();
    double worst = 0;
    for (std::size_t i = 0; i < lse.size(); ++i) {
      double const error = std::abs(double(lse[i]) * std::numbers::ln2 - expected.lse[i]);
      bool const empty = std::isinf(expected.lse[i]);
      worst = empty ? (lse[i] == -std::numeric_limits<float>::infinity() ? worst : 1) : std::max(worst, error);
      if (!empty && std::isnan(error)) worst = 1;
    }
    CHECK(worst < 5e-4);
    expected.output = ours();
    check_attended(output, {}, expected);
  }

  FlashInferShape shape;
  HeldProblem<Element> kept;  ///< queries, and what the policies keep
  ha::PagedHeads pages;       ///< of one layer
  std::int64_t page_stride;

 private:
  /// Appends all sequences but for their newest token, then that.
  void write(ha::PolicyTable const& table, std::vector<std::int32_t> const& lengths) {
    std::int64_t const page = std::int64_t{shape.page_size} * shape.head_dim;
    // Rows that nothing is written to are NaN.
    std::vector<Element> pool(at(2 * page * pages.shape().num_pages), Element{0xffff});
    value_offset_ = page_stride != 0 ? page : page * pages.shape().num_pages;
    std::int32_t const heads = table.num_kv_heads();
    std::vector<HeldRows<Element>> texts;  // of each sequence and KV head, all tokens
    for (std::int32_t s = 0; s < entries(); ++s) {
      std::int32_t const length = lengths[at(s / heads)];
      auto const seed = static_cast<unsigned>(200 + 2 * s);
      texts.push_back({random_elements<Element>(std::int64_t{length} * shape.head_dim, seed),
                       random_elements<Element>(std::int64_t{length} * shape.head_dim, seed + 1),
                       {}});
      HeldRows<Element> held;
      for (std::int64_t const t : kept_tokens(table, 0, 0, s % heads, length)) {
        held.positions.push_back(static_cast<std::int32_t>(t));
        auto const copy = [&](std::vector<Element>& to, std::vector<Element> const& from) {
          auto const row = from.begin() + static_cast<std::ptrdiff_t>(t) * shape.head_dim;
          to.insert(to.end(), row, row + shape.head_dim);
        };
        copy(held.keys, texts.back().keys);
        copy(held.values, texts.back().values);
      }
      kept.segments.push_back(std::move(held));
    }
    for (bool const newest : {false, true}) {
      std::vector<std::int32_t> counts;
      for (std::int32_t const length : lengths) counts.push_back(length == 0 ? 0 : newest ? 1 : length - 1);
      ha::PageStep const step = pages.append(counts);
      auto const layout = ha::strided_bshd(kept.shape.num_sequences, step.max_count, heads, shape.head_dim);
      std::vector<Element> keys(at(layout.required_span_size()));
      std::vector<Element> values(keys.size());
      for (std::int32_t s = 0; s < entries(); ++s) {
        for (std::int32_t t = 0; t < counts[at(s / heads)]; ++t) {
          std::int64_t const token = step.lengths[at(s / heads)] + t;
          std::int64_t const to = layout.offset(s / heads, s % heads, t, 0);
          std::copy_n(texts[at(s)].keys.begin() + token * shape.head_dim, shape.head_dim, keys.begin() + to);
          std::copy_n(texts[at(s)].values.begin() + token * shape.head_dim, shape.head_dim, values.begin() + to);
        }
      }
      ha::append(pages, step, std::array{ha::LayerKv<Element const>{keys.data(), values.data()}}, layout,
                 ha::PageStorage<Element>{pool.data(), pool.data() + value_offset_, shape.head_dim, shape.head_dim,
                                          page_stride});
    }
    pool_.emplace(pool);
  }
  [[nodiscard]] Element const* d_keys() const { return pool_->data(); }
  [[nodiscard]] Element const* d_values() const { return pool_->data() + value_offset_; }

  /// What `headaware::device::attend` makes of the same pages.
  [[nodiscard]] std::vector<double> ours() const {
    DeviceUpload const upload;
    DeviceVector<Element> const d_queries(queries_);
    DeviceVector<float> const d_output(std::vector<float>(kept.queries.size(), 77));
    auto const heads = pages.head_bytes();
    auto const table = pages.table();
    auto const lengths = pages.state().lengths();
    DeviceVector<std::byte> const d_heads(std::vector<std::byte>(heads.begin(), heads.end()));
    auto const view = pages.view_at(d_heads.data(), upload(std::vector<std::int32_t>(table.begin(), table.end())));
    auto const* const d_lengths = upload(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
    run_attend(kept.shape, ha::AttentionQueries{d_queries.data(), kept.query_layout()},
               ha::KeptCache{d_keys(), d_values(), ha::HeadPagesView(view, 0, d_lengths, page_stride)},
               ha::AttentionOutput{d_output.data(), kept.output_layout()}, {pages.slots().rows_total(0)}, {});
    auto const output = d_output.host();
    return {output.begin(), output.end()};
  }

  std::vector<Element> queries_;  ///< folded: [sequences, KV heads, group, head_dim]
  std::int64_t value_offset_ = 0;
  std::optional<DeviceVector<Element>> pool_;
};

}  // namespace headaware_test
