// A decoding step's attention over one layer of 8 KV heads × 128 channels, timed beside a device-to-device copy that
// moves as many bytes as are held (support/gpu_timing.cuh), and beside FlashInfer's kernels over the same pages where
// its headers were found.
//
// pages: 16 rows each, in a scattered order, half precision. packed4, int8: ragged rows of one format; mixed: keys of 3
// to 8 bits, and every seventh head of 16. `even` heads hold `kept` rows each; of `uneven` ones the first of eight
// does, the others 64.

#include "support/gpu_timing.cuh"
#ifdef HEADAWARE_HAS_FLASHINFER
#include "support/flashinfer_pages.cuh"
#endif

#include <headaware/attention/attend.cuh>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/strided.hpp>

#include <benchmark/benchmark.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

namespace {

namespace ha = headaware;
using bench::DeviceArray;

constexpr cudaStream_t stream = nullptr;
constexpr std::int32_t num_kv_heads = 8;
constexpr std::int64_t head_dim = 128;
constexpr std::int32_t page_size = 16;
constexpr std::int64_t row_bytes = 2 * head_dim * std::int64_t{sizeof(__half)};

struct Case {
  std::int32_t batch = 1;
  std::int32_t kept = 64;
  std::int32_t group = 4;  ///< query heads per KV head
  bool even = true;

  [[nodiscard]] std::int32_t rows(std::int32_t segment) const {
    return even || segment % num_kv_heads == 0 ? kept : std::min(kept, 64);
  }
  [[nodiscard]] std::int32_t segments() const { return batch * num_kv_heads; }
  [[nodiscard]] std::int64_t held() const {
    std::int64_t sum = 0;
    for (std::int32_t s = 0; s < segments(); ++s) sum += rows(s);
    return sum;
  }
  [[nodiscard]] ha::AttentionShape shape() const { return {batch, num_kv_heads * group, num_kv_heads, 1, head_dim}; }
  [[nodiscard]] std::string name() const {
    return "/batch:" + std::to_string(batch) + "/kept:" + std::to_string(kept) + (even ? "/even" : "/uneven") +
           "/group:" + std::to_string(group);
  }
};

/// Queries and results, and the step itself.
class Step {
 public:
  explicit Step(Case const& of)
      : shape_(of.shape()),
        layout_(ha::strided_bhsd(shape_.num_sequences, shape_.num_query_heads, 1, head_dim)),
        queries_(static_cast<std::size_t>(layout_.required_span_size())),
        output_(queries_.size()) {
    BENCH_CHECK(cudaMemset(queries_.data(), 0x34, queries_.size() * sizeof(__half)));
  }

  /// @param bytes  that the cache holds
  template <class Cache>
  void time(benchmark::State& state, Cache const& cache, std::int64_t rows, std::int64_t bytes) const {
    bench::timed_with_storage(state, stream, bytes, [&](void* temp, std::size_t& temp_bytes) {
      BENCH_CHECK(ha::device::attend(temp, temp_bytes, shape_, ha::AttentionQueries{queries_.data(), layout_}, cache,
                                     ha::AttentionOutput{output_.data(), layout_}, {rows}, {}, stream));
    });
  }

 private:
  ha::AttentionShape shape_;
  ha::StridedLayout layout_;
  DeviceArray<__half> queries_;
  DeviceArray<__half> output_;
};

/// The pages of every head's rows, on the device.
class Pages {
 public:
  explicit Pages(Case const& of)
      : indptr(starts(of)), indices_(scattered(indptr.back())), indptr_(indptr), last_(of_last_pages(of)) {}

  std::vector<std::int32_t> indptr;

  [[nodiscard]] ha::PagedView view() const {
    return ha::PagedView::csr(indices_.data(), indptr_.data(), last_.data(), num_kv_heads, page_size);
  }
#ifdef HEADAWARE_HAS_FLASHINFER
  [[nodiscard]] bench::FullPages tables() const { return {indices_.data(), indptr_.data(), last_.data(), indptr}; }
#endif

 private:
  static std::int32_t pages_of(std::int32_t rows) { return (rows + page_size - 1) / page_size; }
  static std::vector<std::int32_t> starts(Case const& of) {
    std::vector<std::int32_t> result{0};
    for (std::int32_t s = 0; s < of.segments(); ++s) result.push_back(result.back() + pages_of(of.rows(s)));
    return result;
  }
  static std::vector<std::int32_t> scattered(std::int32_t count) {
    std::vector<std::int32_t> result(static_cast<std::size_t>(count));
    // 7,919 is prime: no page comes twice, as no number of pages here is a multiple of it.
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = static_cast<std::int32_t>(i * 7919 % result.size());
    return result;
  }
  static std::vector<std::int32_t> of_last_pages(Case const& of) {
    std::vector<std::int32_t> result;
    for (std::int32_t s = 0; s < of.segments(); ++s) {
      std::int32_t const rows = of.rows(s);
      result.push_back(rows - (pages_of(rows) - 1) * page_size);
    }
    return result;
  }

  DeviceArray<std::int32_t> indices_;
  DeviceArray<std::int32_t> indptr_;
  DeviceArray<std::int32_t> last_;
};

void pages(benchmark::State& state, Case const& of) {
  Pages const tables(of);
  DeviceArray<__half> const keys(static_cast<std::size_t>(tables.indptr.back()) *
                                 static_cast<std::size_t>(page_size * head_dim));
  DeviceArray<__half> const values(keys.size());
  BENCH_CHECK(cudaMemset(keys.data(), 0x34, keys.size() * sizeof(__half)));
  BENCH_CHECK(cudaMemset(values.data(), 0x34, values.size() * sizeof(__half)));
  Step(of).time(state, ha::KeptCache{keys.data(), values.data(), tables.view()}, of.held(), of.held() * row_bytes);
}

/// Heads take the formats in turn.
void coded(benchmark::State& state, Case const& of, std::vector<ha::HeadFormats> const& formats) {
  std::vector<std::int32_t> offsets{0};
  std::vector<ha::PackedSegment<>> segments;
  std::int64_t units = 0;
  for (std::int32_t s = 0; s < of.segments(); ++s) {
    ha::HeadFormats const& here = formats[static_cast<std::size_t>(s) % formats.size()];
    auto const width = static_cast<std::int32_t>(here.row_units(head_dim, head_dim));
    segments.push_back({here, width, units - std::int64_t{offsets.back()} * width});
    units += std::int64_t{of.rows(s)} * width;
    offsets.push_back(offsets.back() + of.rows(s));
  }
  DeviceArray<ha::RowUnit> const rows(static_cast<std::size_t>(units));
  DeviceArray<ha::PackedSegment<>> const d_segments(segments);
  DeviceArray<std::int32_t> const d_offsets(offsets);
  BENCH_CHECK(cudaMemset(rows.data(), 0x34, rows.size() * sizeof(ha::RowUnit)));
  ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int32_t>> const cache{
      rows.data(), d_segments.data(), {d_offsets.data(), num_kv_heads}};
  Step(of).time(state, cache, offsets.back(), units * std::int64_t{sizeof(ha::RowUnit)});
}

#ifdef HEADAWARE_HAS_FLASHINFER
void flashinfer(benchmark::State& state, Case const& of, FlashInferCores cores) {
  try {
    Pages const tables(of);
    bench::FlashInferPagesRun const run(cores, false, {of.group, head_dim, page_size}, num_kv_heads, tables.tables());
    bench::timed(state, stream, of.held() * row_bytes, [&] { run(stream); });
  } catch (std::exception const& error) {
    state.SkipWithError(error.what());
  }
}
#endif

/// @param with_formats  whether caches of other formats are timed, too
void add_cases(Case const& of, bool with_formats) {
  using Packed4 = ha::Packed<4>;
  std::int64_t const memory = of.held() * row_bytes;
  bench::add("attend/pages" + of.name(), memory, [=](benchmark::State& state) { pages(state, of); });
#ifdef HEADAWARE_HAS_FLASHINFER
  bench::add("flashinfer_tensor/pages" + of.name(), memory,
             [=](benchmark::State& state) { flashinfer(state, of, FlashInferCores::tensor); });
  if (of.group != 16) {  // whose kernels on CUDA cores are not compiled (examples/flashinfer)
    bench::add("flashinfer_cuda/pages" + of.name(), memory,
               [=](benchmark::State& state) { flashinfer(state, of, FlashInferCores::cuda); });
  }
#endif
  if (!with_formats) return;
  auto const add = [&](char const* name, std::vector<ha::HeadFormats> const& formats) {
    bench::add(std::string("attend/") + name + of.name(), memory,
               [=](benchmark::State& state) { coded(state, of, formats); });
  };
  add("packed4", {{Packed4{}, Packed4{}}});
  add("int8", {{ha::Int8{}, ha::Int8{}}});
  add("mixed", {{ha::Packed<5>{}, Packed4{}},
                {ha::Int8{}, Packed4{}},
                {Packed4{}, ha::Packed<3>{}},
                {ha::Fp16{}, ha::Bf16{}},
                {ha::LlamaQ8{}, ha::LlamaQ4{}},
                {ha::Packed<6>{}, ha::Packed<6>{}},
                {ha::Fp8E4M3{}, ha::Fp8E5M2{}}});
}

void register_all() {
  if (bench::options().reduced) {
    add_cases({2, 48, 4, true}, true);
    add_cases({2, 96, 1, false}, false);
    add_cases({1, 40, 16, true}, false);
    return;
  }
  for (std::int32_t const batch : {1, 4, 16, 64}) {
    for (std::int32_t const kept : {64, 512, 4096, 32768}) {
      add_cases({batch, kept, 4, true}, (batch == 1 || batch == 16) && (kept == 512 || kept == 4096));
    }
  }
  for (std::int32_t const batch : {1, 16}) {
    for (std::int32_t const kept : {4096, 32768}) add_cases({batch, kept, 4, false}, false);
    for (std::int32_t const group : {1, 8, 16}) {
      for (std::int32_t const kept : {512, 4096}) add_cases({batch, kept, group, true}, batch == 16 && kept == 4096);
    }
  }
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, register_all); }
