// One decoding step's attention over one layer, for counting what it asks of memory: run it under the CUDA emulator
// with CUDA_EMU_REPORT=FILE (tests/device_code/attend_traffic.cmake does and checks the counts), or under a profiler
// on a device. The argument chooses the case: ragged, paged (16 rows a page, in a scattered order), rolling (4 sinks,
// and a ring that has wrapped and has some slack), wide (ragged, 512 channels), latent (rows of 576 channels, of which
// 512 are the value, in pages) or coded (ragged, each head in formats of its own), and the number of query heads per KV
// head. After paged, a third one chooses FlashInfer's kernels for the same pages, where its headers were found
// (support/flashinfer_pages.cuh). Two cases are prefill chunks of 128 tokens, or as many as the third argument says,
// after one of the two sequences: chunk, over ragged rows that all queries see, and chunk_rolling, each token with its
// own window in a rolling cache.
//
// Two sequences × 8 KV heads × 128 channels of 2 bytes: every eighth head holds 4,096 rows, the others 512. The latent:
// 16 sequences of twice as many rows.

#include "support/gpu.cuh"
#ifdef HEADAWARE_HAS_FLASHINFER
#include "support/flashinfer_pages.cuh"
#endif

#include <headaware/attention/attend.cuh>
#include <headaware/attention/rolling_view.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

namespace ha = headaware;

namespace {

constexpr std::int32_t sequences = 2;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int64_t head_dim = 128;
constexpr std::int32_t page_size = 16;

/// @param make_cache  of keys and values; @param rows  held; @param room  rows of the buffers
template <class MakeCache>
void attend(ha::AttentionShape const& shape, std::int64_t rows, std::int64_t room, MakeCache const& make_cache,
            ha::AttentionOptions const& options = {}) {
  auto const layout = ha::strided_bhsd(shape.num_sequences, shape.num_query_heads, shape.query_tokens, shape.head_dim);
  auto const elements = static_cast<std::size_t>(layout.required_span_size());
  bench::DeviceArray<__half> const keys(static_cast<std::size_t>(room * shape.head_dim));
  bench::DeviceArray<__half> const values(keys.size());
  bench::DeviceArray<__half> const queries(elements);
  bench::DeviceArray<__half> const output(elements);
  for (auto const* array : {&keys, &values, &queries}) {
    BENCH_CHECK(cudaMemset(array->data(), 0x34, array->size() * sizeof(__half)));
  }
  bench::with_storage([&](void* temp, std::size_t& temp_bytes) {
    BENCH_CHECK(ha::device::attend(temp, temp_bytes, shape, ha::AttentionQueries{queries.data(), layout},
                                   make_cache(keys.data(), values.data()), ha::AttentionOutput{output.data(), layout},
                                   {rows}, options, nullptr));
  });
}

/// A chunk of one sequence. Prints how many pairs of a query row and a key there are, of which a query sees the key.
/// @param seen  keys that all tokens of a KV head's chunk see together
template <class View>
void attend_chunk(std::int32_t group, std::int64_t chunk_tokens, std::int64_t rows, View const& view, std::int64_t room,
                  std::int64_t seen, ha::AttentionOptions const& options) {
  attend(
      {1, num_kv_heads * group, num_kv_heads, chunk_tokens, head_dim}, rows, room,
      [&](__half const* keys, __half const* values) {
        return ha::KeptCache{keys, values, view};
      },
      options);
  std::printf("pairs %lld\n", static_cast<long long>(group * seen));
}

template <class View>
void attend(std::int32_t group, std::int64_t rows, View const& view, std::int64_t room,
            std::int64_t channels = head_dim) {
  attend({sequences, num_kv_heads * group, num_kv_heads, 1, channels}, rows, room,
         [&](__half const* keys, __half const* values) {
           return ha::KeptCache{keys, values, view};
         });
}

/// The same over encoded rows: keys of 3 to 8 bits, and every fourth head of 16. @return bytes held
std::int64_t attend_coded(std::int32_t group, std::vector<std::int32_t> const& offsets) {
  using Packed6 = ha::Packed<6>;
  using Packed5 = ha::Packed<5>;
  using Packed4 = ha::Packed<4>;
  using Packed3 = ha::Packed<3>;
  ha::HeadFormats const formats[] = {
      {Packed5{}, Packed4{}},         {ha::Int8{}, Packed4{}}, {Packed4{}, Packed3{}},        {ha::Fp16{}, ha::Bf16{}},
      {ha::LlamaQ8{}, ha::LlamaQ4{}}, {Packed6{}, Packed6{}},  {ha::Fp8E4M3{}, ha::Fp8E5M2{}}};
  std::vector<ha::PackedSegment<>> segments;
  std::int64_t units = 0;
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    ha::HeadFormats const& of = formats[s % std::size(formats)];
    auto const width = static_cast<std::int32_t>(of.row_units(head_dim, head_dim));
    segments.push_back({of, width, units - std::int64_t{offsets[s]} * width});
    units += std::int64_t{offsets[s + 1] - offsets[s]} * width;
  }
  ha::AttentionShape const shape{sequences, num_kv_heads * group, num_kv_heads, 1, head_dim};
  auto const layout = ha::strided_bhsd(sequences, shape.num_query_heads, 1, head_dim);
  auto const elements = static_cast<std::size_t>(layout.required_span_size());
  bench::DeviceArray<ha::RowUnit> const rows(static_cast<std::size_t>(units));
  bench::DeviceArray<ha::PackedSegment<>> const d_segments(segments);
  bench::DeviceArray<std::int32_t> const d_offsets(offsets);
  bench::DeviceArray<__half> const queries(elements);
  bench::DeviceArray<__half> const output(elements);
  BENCH_CHECK(cudaMemset(rows.data(), 0x34, rows.size() * sizeof(ha::RowUnit)));
  BENCH_CHECK(cudaMemset(queries.data(), 0x34, elements * sizeof(__half)));
  ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int32_t>> const cache{
      rows.data(), d_segments.data(), {d_offsets.data(), num_kv_heads}};
  bench::with_storage([&](void* temp, std::size_t& temp_bytes) {
    BENCH_CHECK(ha::device::attend(temp, temp_bytes, shape, ha::AttentionQueries{queries.data(), layout}, cache,
                                   ha::AttentionOutput{output.data(), layout}, {offsets.back()}, {}, nullptr));
  });
  return units * std::int64_t{sizeof(ha::RowUnit)};
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  bool const chunk = argc > 1 && std::strncmp(argv[1], "chunk", 5) == 0;
  bool const rolling = argc > 1 && std::strstr(argv[1], "rolling") != nullptr;
  bool const latent = argc > 1 && std::strcmp(argv[1], "latent") == 0;
  bool const wide = argc > 1 && std::strcmp(argv[1], "wide") == 0;
  bool const paged = argc > 1 && std::strcmp(argv[1], "paged") == 0;
  std::int32_t const group = argc > 2 ? std::atoi(argv[2]) : 4;
  std::int32_t const chunk_tokens = chunk && argc > 3 ? std::atoi(argv[3]) : 128;
  std::vector<std::int32_t> offsets{0};
  std::vector<std::int32_t> indptr{0};
  std::vector<std::int32_t> last_page_len;
  for (std::int32_t s = 0; s < sequences * num_kv_heads; ++s) {
    std::int32_t const rows = (s % num_kv_heads == 0 ? 4096 : 512) * (latent ? 2 : 1);
    offsets.push_back(offsets.back() + rows);
    indptr.push_back(indptr.back() + rows / page_size);
    last_page_len.push_back(page_size);
  }
  std::int64_t const rows = offsets.back();
  std::int64_t row_bytes = head_dim * 2 * 2;
  if (argc > 1 && std::strcmp(argv[1], "coded") == 0) {
    std::printf("held_bytes %lld\n", static_cast<long long>(attend_coded(group, offsets)));
    return 0;
  }
  if (paged || latent) {
    std::vector<std::int32_t> indices(static_cast<std::size_t>(indptr.back()));
    // 613 is prime and no divisor of the number of pages.
    for (std::size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<std::int32_t>(i * 613 % indices.size());
    bench::DeviceArray<std::int32_t> const d_indices(indices);
    bench::DeviceArray<std::int32_t> const d_indptr(indptr);
    bench::DeviceArray<std::int32_t> const d_last(last_page_len);
    auto const view =
        ha::PagedView::csr(d_indices.data(), d_indptr.data(), d_last.data(), latent ? 1 : num_kv_heads, page_size);
    if (latent) {
      ha::AttentionShape const shape{sequences * num_kv_heads, group, 1, 1, 576, 512};
      row_bytes = shape.head_dim * 2;
      attend(shape, rows, rows, [&](__half const* keys, __half const*) { return ha::LatentCache{keys, view}; });
    } else if (argc > 3) {
#ifdef HEADAWARE_HAS_FLASHINFER
      bench::attend_by_flashinfer(argv[3], {group, head_dim, page_size}, num_kv_heads,
                                  {d_indices.data(), d_indptr.data(), d_last.data(), indptr});
#else
      std::printf("skipped: built without FlashInfer's headers\n");
      return 0;
#endif
    } else {
      attend(group, rows, view, rows);
    }
  } else if (rolling) {
    ha::PolicyTable table(1, num_kv_heads, ha::SinkWindow{.sink = 4, .window = 508});
    table.set(0, 0, ha::SinkWindow{.sink = 4, .window = 4092});
    std::int32_t const taking = chunk ? 1 : sequences;
    ha::RollingSlots const slots(table, taking, {.slack = chunk ? chunk_tokens : 4});
    auto const* const heads = slots.bytes().data();
    bench::DeviceArray<std::byte> const d_heads(std::vector<std::byte>(heads, heads + slots.bytes().size()));
    bench::DeviceArray<std::int32_t> const d_lengths(std::vector<std::int32_t>(sequences, 10000));
    if (chunk) {
      bench::DeviceArray<std::int32_t> const d_first(std::vector<std::int32_t>(1, 10000 - chunk_tokens));
      auto const view = ha::RollingView::of_chunk(slots.view_at(d_heads.data()), 0, d_lengths.data(), chunk_tokens);
      attend_chunk(group, chunk_tokens, slots.rows_total(), view, slots.rows_total(), rows / sequences * chunk_tokens,
                   {.first_positions = d_first.data()});
      return 0;
    }
    attend(group, rows, ha::RollingView{slots.view_at(d_heads.data()), 0, d_lengths.data()}, slots.rows_total());
  } else {
    bench::DeviceArray<std::int32_t> const d_offsets(offsets);
    if (chunk) {
      attend_chunk(group, chunk_tokens, rows / sequences, ha::RaggedView{d_offsets.data(), num_kv_heads},
                   rows / sequences, rows / sequences * chunk_tokens, {});
      return 0;
    }
    std::int64_t const channels = wide ? 4 * head_dim : head_dim;
    row_bytes = channels * 2 * 2;
    attend(group, rows, ha::RaggedView{d_offsets.data(), num_kv_heads}, rows, channels);
  }
  std::printf("held_bytes %lld\n", static_cast<long long>(rows * row_bytes));
}
