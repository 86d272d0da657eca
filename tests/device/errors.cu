// What functions that return `cudaError_t` make of exceptions, of memory that runs out and of others' errors.

#include "support/device_arena.cuh"

#include <headaware/attention/attend.cuh>
#include <headaware/attention/policy_mask.cuh>
#include <headaware/cache/paged_heads.cuh>
#include <headaware/cache/rolling.cuh>
#include <headaware/last_error.hpp>
#include <headaware/stats/attention_observer.cuh>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// Allocations of this thread that still succeed; negative: all of them.
thread_local int allocations_left = -1;

}  // namespace

#ifndef __CUDA_ARCH__  // to nvcc, these are functions of the device, too
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (allocations_left != 0) {
    if (allocations_left > 0) --allocations_left;
    if (void* const memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  }
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif

// Every public function that returns an error code throws nothing.
namespace declared {
template <class T>
T const& a() noexcept;
template <class T>
T& an() noexcept;
using Table = ha::PolicyTableView<>;
using Compaction = ha::DeviceCompaction<Table>;
using Strided = ha::StridedLayout;
using Layers = std::vector<ha::LayerKv<float>>;
using Transfer = ha::Transfer<float, Strided, ha::RaggedForm>;
using Rolling = ha::Destination<float, ha::RollingSlotsView>;
using Output = ha::AttentionOutput<float, Strided>;
using Qkv = std::vector<ha::DeviceQkv<float>>;
constexpr cudaStream_t stream = nullptr;
constexpr std::int32_t const* counts = nullptr;
constexpr double* sums = nullptr;
static_assert(noexcept(ha::device::compress(nullptr, an<std::size_t>(), a<Compaction>(), a<Transfer>(), stream)));
static_assert(noexcept(ha::device::compress(nullptr, an<std::size_t>(), a<Compaction>(), a<Transfer>(), a<Transfer>(),
                                            stream)));
static_assert(noexcept(ha::device::compress(nullptr, an<std::size_t>(), a<Compaction>(), a<Layers>(), a<Strided>(),
                                            a<ha::Destination<float, ha::RaggedForm>>(), stream)));
static_assert(noexcept(ha::device::compress_in_place(a<Compaction>(), a<Layers>(), a<Strided>(), a<ha::KeyRotation>(),
                                                     stream)));
static_assert(noexcept(ha::device::append(a<ha::RollingSlotsView>(), a<ha::RollingStateView>(), a<Layers>(),
                                          a<Strided>(), counts, 1, a<Rolling>(), a<ha::AppendOptions>(), stream)));
static_assert(noexcept(ha::device::append(a<ha::PagedHeadsView>(), a<ha::DevicePageStep>(), a<Layers>(), a<Strided>(),
                                          a<ha::PageStorage<float>>(), 0, stream)));
static_assert(noexcept(ha::device::advance(a<ha::RollingSlotsView>(), a<ha::RollingStateView>(), counts, stream)));
static_assert(noexcept(ha::device::rollback(a<ha::RollingSlotsView>(), a<ha::RollingStateView>(), counts, stream)));
static_assert(noexcept(ha::device::start(a<ha::RollingSlotsView>(), a<ha::RollingStateView>(), counts, stream)));
static_assert(noexcept(ha::device::copy_sequences(a<ha::RollingSlotsView>(), a<ha::RollingStateView>(),
                                                  a<std::span<ha::SequenceCopy const>>(), a<Rolling>(), stream)));
static_assert(noexcept(ha::device::fill_policy_mask(a<Table>(), a<ha::MaskShape>(), &an<float>(), stream)));
static_assert(noexcept(ha::device::attend(nullptr, an<std::size_t>(), a<ha::AttentionShape>(),
                                          a<ha::AttentionQueries<float, Strided>>(),
                                          a<ha::KeptCache<float, ha::RaggedView<std::int32_t>>>(), a<Output>(),
                                          a<ha::AttentionBounds>(), a<ha::AttentionOptions>(), stream)));
static_assert(noexcept(ha::device::merge_attention(a<ha::AttentionShape>(), a<Output>(), a<Output>(), stream)));
static_assert(noexcept(ha::device::observe(nullptr, an<std::size_t>(), a<ha::DeviceQkvShape<Strided>>(), a<Qkv>(),
                                           a<ha::AttentionScore>(), a<ha::ObserverParameters>(), sums, stream)));
static_assert(noexcept(ha::device::observe(a<ha::AttentionObserver>(), nullptr, an<std::size_t>(), 0,
                                           a<ha::DeviceQkvShape<Strided>>(), a<Qkv>(), a<ha::AttentionScore>(), sums,
                                           stream)));
static_assert(noexcept(ha::last_error_message()));
}  // namespace declared

namespace {

/// A layout that answers the host with an exception.
struct Throwing : ha::StridedLayout {
  enum class What { nothing, bad_alloc, capacity, runtime, number } what = What::nothing;
  [[nodiscard]] std::int64_t num_sequences() const {
    switch (what) {
      case What::bad_alloc: throw std::bad_alloc();
      case What::capacity: throw ha::CapacityError({"pages", "one", "none", "a user's layout"});
      case What::runtime: throw std::runtime_error("a user's words");
      case What::number: throw 7;
      default: return ha::StridedLayout::num_sequences();
    }
  }
};

bool says(std::string_view part) { return std::string_view(ha::last_error_message()).find(part) != std::string::npos; }

}  // namespace

TEST_CASE("every exception inside a call becomes an error code, and its text can be asked for", "[launch]") {
  HEADAWARE_REQUIRE_DEVICE();
  DeviceVector<float> const data(std::vector<float>(32, 1));
  Throwing layout{ha::strided_bhsd(1, 1, 1, 16)};
  auto const call = [&](Throwing::What what, ha::AttentionShape const& shape = {1, 1, 1, 1, 16}) {
    layout.what = what;
    return ha::device::merge_attention(shape, ha::AttentionOutput{data.data(), layout, data.data() + 16},
                                       ha::AttentionOutput{data.data(), layout, data.data() + 17}, nullptr);
  };
  using What = Throwing::What;
  CHECK(call(What::bad_alloc) == cudaErrorMemoryAllocation);
  CHECK(says("bad_alloc"));
  CHECK(call(What::capacity) == cudaErrorMemoryAllocation);
  CHECK(says("pages: expected one, got none (a user's layout)"));
  CHECK(call(What::runtime) == cudaErrorUnknown);
  CHECK(says("a user's words"));
  CHECK(call(What::number) == cudaErrorUnknown);
  CHECK(says("an exception without a text"));
  // Refusals say what the CPU's would; what succeeds changes nothing, and another thread has a text of its own.
  CHECK(call(What::nothing, {2, 1, 1, 1, 16}) == cudaErrorInvalidValue);
  CHECK(says("sequences: expected >= 2, got 1 (merge_attention"));
  REQUIRE_CUDA(call(What::nothing));
  CHECK(says("sequences: expected >= 2, got 1 (merge_attention"));
  std::string elsewhere = "?";
  std::thread([&] { elsewhere = ha::last_error_message(); }).join();
  CHECK(elsewhere.empty());
  REQUIRE_CUDA(cudaDeviceSynchronize());
}

TEST_CASE("memory that runs out in a call is an error code, and nothing is launched", "[launch]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::PolicyTable const table(1, 1, ha::WindowOnly{.window = 2});
  ha::RollingSlots const slots(table, 1, {});
  DeviceVector<std::byte> const d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  DeviceVector<std::int32_t> const counters(std::vector<std::int32_t>(4));
  DeviceVector<float> const data(std::vector<float>(64));
  DeviceVector<float> const tokens(std::vector<float>(64));
  auto const layout = ha::strided_bhsd(1, 1, 1, 8);
  std::vector<ha::LayerKv<float>> const layers{{tokens.data(), tokens.data() + 32}};
  auto const view = slots.view_at(d_heads.data());
  auto const cache = ha::rolling(slots, view, data.data(), data.data() + 32, 8);
  auto const call = [&] {
    return ha::device::append(view, ha::RollingStateView::at(counters.data(), 1), layers, layout, nullptr, 1, cache, {},
                              nullptr);
  };
  REQUIRE_CUDA(call());  // what the runtime allocates for a kernel's first launch is not what is looked at
  REQUIRE_CUDA(cudaDeviceSynchronize());
  // A thread keeps what its calls have allocated, so each try has a new one.
  for (int left = 0; left < 2; ++left) {
    cudaError_t error = cudaSuccess;
    bool said = false;
    std::thread([&] {
      allocations_left = left;
      error = call();
      allocations_left = -1;
      said = says("bad_alloc");
    }).join();
    CHECK(error == cudaErrorMemoryAllocation);
    CHECK(said);
  }
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(counters.host() == std::vector<std::int32_t>{1, 1, 0, 0});  // by the first call alone
}

TEST_CASE("an error of somebody else is neither reported nor cleared, and one of a launch is ours", "[launch]") {
  HEADAWARE_REQUIRE_DEVICE();
  DeviceVector<float> const mask(std::vector<float>(8));
  auto const call = [&](cudaStream_t stream) {
    return ha::device::fill_policy_mask(ha::UniformTable(ha::Prune{}, 1, 1), {.group = 1, .queries = 1, .keys = 1},
                                        mask.data(), stream);
  };
  REQUIRE(cudaSetDevice(12345) == cudaErrorInvalidDevice);
  CHECK(call(nullptr) == cudaSuccess);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice);
  (void)cudaGetLastError();
  REQUIRE_CUDA(cudaDeviceSynchronize());
  // The default stream waits for one that is captured: CUDA refuses.
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  REQUIRE_CUDA(cudaStreamCreate(&stream));
  REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  CHECK(call(nullptr) == cudaErrorStreamCaptureImplicit);
  CHECK(says("launch of a kernel: expected cudaSuccess, got "));
  CHECK(says("(fill_policy_mask)"));
  (void)cudaStreamEndCapture(stream, &graph);
  (void)cudaGetLastError();
  if (graph != nullptr) REQUIRE_CUDA(cudaGraphDestroy(graph));
  REQUIRE_CUDA(cudaStreamDestroy(stream));
}
