#pragma once

// A cache on the device beside its copy on the host, compressed by both back ends and compared bit for bit.

#include "support/device.hpp"
#include "support/reference_cache.hpp"
#include "support/table_upload.hpp"

#include <headaware/compressor.cuh>

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

namespace headaware_test {

#define REQUIRE_CUDA(call) REQUIRE((call) == cudaSuccess)

/// Device memory with what a vector holds.
template <class T>
class DeviceVector {
 public:
  explicit DeviceVector(std::vector<T> const& host) : size_(host.size()) {
    REQUIRE_CUDA(cudaMalloc(&data_, size_ * sizeof(T) + 64));
    REQUIRE_CUDA(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceVector(DeviceVector&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
  DeviceVector(DeviceVector const&) = delete;
  DeviceVector& operator=(DeviceVector const&) = delete;
  DeviceVector& operator=(DeviceVector&&) = delete;
  ~DeviceVector() { cudaFree(data_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> result(size_);
    REQUIRE_CUDA(cudaMemcpy(result.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return result;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};
using DeviceUpload = TableUpload<DeviceVector>;

/// A stream that the default one does not wait for.
class Stream {
 public:
  Stream() { REQUIRE_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(Stream const&) = delete;
  Stream& operator=(Stream const&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A captured call, `call(stream)`, replayed.
class Graph {
 public:
  template <class Call>
  Graph(cudaStream_t stream, Call const& call) {
    cudaGraph_t graph = nullptr;
    REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    REQUIRE_CUDA(call(stream));
    REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
    REQUIRE_CUDA(cudaGraphInstantiate(&executable_, graph, 0));
    REQUIRE_CUDA(cudaGraphDestroy(graph));
  }
  Graph(Graph const&) = delete;
  Graph& operator=(Graph const&) = delete;
  ~Graph() { cudaGraphExecDestroy(executable_); }
  void replay(cudaStream_t stream) const {
    REQUIRE_CUDA(cudaGraphLaunch(executable_, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

/// The source's tensors on the device; `shift` moves their base by so many elements off its alignment.
template <class T, class Source>
struct DeviceSource {
  std::vector<DeviceVector<T>> tensors;
  std::vector<ha::LayerKv<T>> layers;

  explicit DeviceSource(SourceCache<T, Source> const& cache, std::size_t shift = 0) {
    auto const upload = [&](std::vector<T> tensor) {
      tensor.insert(tensor.begin(), shift, T{});
      tensors.emplace_back(tensor);
      return tensors.back().data() + shift;
    };
    for (std::size_t l = 0; l < cache.keys.size(); ++l)
      layers.push_back({upload(cache.keys[l]), upload(cache.values[l])});
  }
  [[nodiscard]] std::vector<T> tensor(std::size_t index, std::size_t shift = 0) const {
    auto all = tensors[index].host();
    return {all.begin() + static_cast<std::ptrdiff_t>(shift), all.end()};
  }
};

/// Runs both calls on a stream of its own and waits.
template <class Table, class... Transfers>
void run_compress(ha::DeviceCompaction<Table> const& compaction, Transfers const&... transfers) {
  Stream const stream;
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::compress(nullptr, bytes, compaction, transfers..., stream));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  REQUIRE_CUDA(ha::device::compress(temp.data(), bytes, compaction, transfers..., stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
}

/// Compresses on both sides into `rows` rows of one buffer and compares all of it, gaps included.
/// `make(compaction, keys, values)` makes the destination, `device_make` the same with device pointers.
template <class T, class Source, class Compaction, class DeviceTable, class Make, class DeviceMake>
void compare_forms(SourceCache<T, Source> const& cache, Source const& device_layout, Compaction const& compaction,
                   DeviceTable const& d_table, std::int64_t rows, Make const& make, DeviceMake const& device_make,
                   std::size_t shift = 0) {
  std::vector<T> keys(static_cast<std::size_t>(rows * cache.head_dim) + 8);
  std::vector<T> values(static_cast<std::size_t>(rows * cache.value_dim) + 8);
  std::memset(static_cast<void*>(keys.data()), 0xA7, keys.size() * sizeof(T));
  std::memset(static_cast<void*>(values.data()), 0xA7, values.size() * sizeof(T));
  DeviceSource<T, Source> const source(cache, shift);
  DeviceVector<std::int32_t> const d_lengths(
      std::vector<std::int32_t>(compaction.lengths().begin(), compaction.lengths().end()));
  DeviceVector<std::int64_t> const d_offsets(
      std::vector<std::int64_t>(compaction.offsets().begin(), compaction.offsets().end()));
  auto d_compaction = compaction.on_device(d_table, d_lengths.data());
  std::vector<T> const untouched_keys = keys;
  std::vector<T> const untouched_values = values;
  ha::compress(compaction, cache.layers(), cache.source, make(keys.data() + shift, values.data() + shift));
  for (bool const planned : {false, true}) {
    INFO("planned by the host: " << planned);
    d_compaction.d_offsets = planned ? d_offsets.data() : nullptr;
    DeviceVector<T> const d_keys(untouched_keys);
    DeviceVector<T> const d_values(untouched_values);
    run_compress(d_compaction, ha::transfer(source.layers, device_layout,
                                            device_make(d_keys.data() + shift, d_values.data() + shift)));
    REQUIRE(first_difference(d_keys.host(), keys) == "");
    REQUIRE(first_difference(d_values.host(), values) == "");
  }
}

}  // namespace headaware_test
