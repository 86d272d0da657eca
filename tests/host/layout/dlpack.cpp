// DLPack is optional: without its header there is nothing to test.
#if __has_include(<dlpack/dlpack.h>)

#include "support/catch.hpp"

#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/dlpack.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace ha = headaware;

namespace {

/// A tensor as a framework would hand it over.
struct Tensor {
  std::vector<float> memory;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  DLTensor tensor{};

  Tensor(std::vector<std::int64_t> extents, std::vector<std::int64_t> steps, std::size_t elements = 4096)
      : memory(elements), shape(std::move(extents)), strides(std::move(steps)) {
    tensor.data = memory.data();
    tensor.device = {kDLCPU, 0};
    tensor.ndim = static_cast<std::int32_t>(shape.size());
    tensor.dtype = {kDLFloat, 32, 1};
    tensor.shape = shape.data();
    tensor.strides = strides.empty() ? nullptr : strides.data();
  }
  Tensor(Tensor const&) = delete;
};

ha::ErrorDetail error_of(std::function<void()> const& call) {
  try {
    call();
  } catch (ha::ArgumentError const& error) {
    return error.detail();
  }
  return {"no error", "", "", ""};
}
template <class T = float>
ha::ErrorDetail error_of(DLTensor const& tensor, ha::DlpackOrder order) {
  return error_of([&] { (void)ha::strided_from_dlpack<T>(tensor, order); });
}

void check_same(ha::StridedLayout const& a, ha::StridedLayout const& b) {
  CHECK(a.num_sequences() == b.num_sequences());
  CHECK(a.num_kv_heads() == b.num_kv_heads());
  CHECK(a.token_capacity() == b.token_capacity());
  CHECK(a.num_channels() == b.num_channels());
  CHECK(a.channel_run() == b.channel_run());
  CHECK(a.required_span_size() == b.required_span_size());
  for (std::int64_t s = 0; s < a.num_sequences(); ++s) {
    for (std::int64_t h = 0; h < a.num_kv_heads(); ++h) {
      for (std::int64_t t = 0; t < a.token_capacity(); ++t) {
        for (std::int64_t c = 0; c < a.num_channels(); ++c) REQUIRE(a.offset(s, h, t, c) == b.offset(s, h, t, c));
      }
    }
  }
}

constexpr DLDevice cpu{kDLCPU, 0};

}  // namespace

TEST_CASE("contiguous DLPack tensors are taken in by the order of their dimensions", "[layout][dlpack]") {
  Tensor const four({2, 3, 4, 5}, {});
  check_same(ha::strided_from_dlpack<float>(four.tensor, "bhsd").layout, ha::strided_bhsd(2, 3, 4, 5));
  check_same(ha::strided_from_dlpack<float>(four.tensor, "bshd").layout, ha::strided_bshd(2, 3, 4, 5));
  check_same(ha::strided_from_dlpack<float>(four.tensor, "bhds").layout, ha::strided_bhds(2, 3, 4, 5));
  Tensor const three({7, 3, 8}, {});
  check_same(ha::strided_from_dlpack<float>(three.tensor, "shd").layout, ha::strided_shd(7, 3, 8));
  check_same(ha::strided_from_dlpack<float>(three.tensor, "bhs").layout, ha::strided_bhsd(7, 3, 8, 1));
  Tensor const two({7, 8}, {});
  check_same(ha::strided_from_dlpack<float>(two.tensor, "sd").layout, ha::strided_shd(7, 1, 8));
}

TEST_CASE("DLPack strides, byte_offset, device and constness are kept", "[layout][dlpack]") {
  Tensor sliced({2, 3, 4, 5}, {480, 160, 40, 1});
  sliced.tensor.byte_offset = 64;
  auto const taken = ha::strided_from_dlpack<float const>(sliced.tensor, "bhsd");
  static_assert(std::is_same_v<decltype(taken.data), float const*>);
  CHECK(taken.data == sliced.memory.data() + 16);
  CHECK(taken.layout.offset(1, 2, 3, 4) == 480 + 320 + 120 + 4);
  CHECK(taken.layout.channel_run() == 5);
  CHECK((taken.on_host() && !taken.on_device()));

  sliced.tensor.device = {kDLCUDA, 3};
  auto const device = ha::strided_from_dlpack<float>(sliced.tensor, "bhsd");
  CHECK((device.on_device() && !device.on_host()));
  CHECK(device.device.device_id == 3);
  for (auto const type : {kDLCUDAHost, kDLCUDAManaged}) {
    sliced.tensor.device = {type, 0};
    auto const both = ha::strided_from_dlpack<float>(sliced.tensor, "bhsd");
    CHECK((both.on_device() && both.on_host()));
  }
}

TEST_CASE("strides of DLPack dimensions of one element do not matter", "[layout][dlpack]") {
  Tensor const odd({1, 3, 4, 5}, {-7, 20, 5, 1});
  check_same(ha::strided_from_dlpack<float>(odd.tensor, "bhsd").layout, ha::strided_bhsd(1, 3, 4, 5));
  Tensor const scales({2, 3, 4, 1}, {12, 4, 1, 99});
  auto const layout = ha::strided_from_dlpack<float>(scales.tensor, "bhsd").layout;
  check_same(layout, ha::strided_bhsd(2, 3, 4, 1));
  CHECK(layout.rows_contiguous());
}

TEST_CASE("empty DLPack tensors need no memory", "[layout][dlpack]") {
  Tensor empty({2, 0, 4, 5}, {});
  empty.tensor.data = nullptr;
  auto const taken = ha::strided_from_dlpack<float>(empty.tensor, "bhsd");
  CHECK(taken.data == nullptr);
  CHECK(taken.layout.required_span_size() == 0);
}

TEST_CASE("DLPack tensors beyond 32 bits", "[layout][dlpack]") {
  Tensor const large({64, 8, 131072, 128}, {});
  auto const layout = ha::strided_from_dlpack<float>(large.tensor, "bhsd").layout;
  CHECK(layout.offset(63, 7, 131071, 127) == std::int64_t{8589934591});
  CHECK(layout.required_span_size() == std::int64_t{8589934592});
}

TEMPLATE_TEST_CASE("DLPack element types go out and come back", "[layout][dlpack]", float, double, ha::float16,
                   ha::bfloat16, std::int8_t, std::uint8_t, std::int32_t, std::int64_t) {
  std::vector<TestType> memory(2 * 3 * 4 * 5);
  ha::LayoutShape const shape{2, 3, 4, 5};
  for (ha::DlpackOrder const order : {ha::DlpackOrder("bhsd"), ha::DlpackOrder("bshd"), ha::DlpackOrder("shbd"),
                                      ha::DlpackOrder("dshb"), ha::DlpackOrder("hbds")}) {
    CAPTURE(order.text());
    ha::StridedLayout const layout(shape, {60, 20, 5, 1});
    auto view = ha::dlpack_view(memory.data(), layout, order, cpu);
    DLTensor const tensor = view.tensor();
    REQUIRE(tensor.ndim == 4);
    CHECK(tensor.data == memory.data());
    CHECK(tensor.shape[order.find('h')] == 3);
    CHECK(tensor.strides[order.find('h')] == 20);
    CHECK(tensor.dtype.lanes == 1);
    CHECK(tensor.dtype.bits == 8 * sizeof(TestType));
    auto const back = ha::strided_from_dlpack<TestType>(tensor, order);
    CHECK(back.data == memory.data());
    check_same(back.layout, layout);
  }
  auto rows = ha::dlpack_view(std::as_const(memory).data(), ha::strided_shd(24, 1, 5), "sd", cpu);
  CHECK(rows.tensor().ndim == 2);
  check_same(ha::strided_from_dlpack<TestType const>(rows.tensor(), "sd").layout, ha::strided_shd(24, 1, 5));
}

TEST_CASE("DLPack's type codes", "[layout][dlpack]") {
  CHECK(ha::dlpack_type<float>().code == kDLFloat);
  CHECK(ha::dlpack_type<ha::float16 const>().code == kDLFloat);
  CHECK(ha::dlpack_type<ha::bfloat16>().code == kDLBfloat);
  CHECK(ha::dlpack_type<std::int8_t>().code == kDLInt);
  CHECK(ha::dlpack_type<std::uint8_t>().code == kDLUInt);
  CHECK(ha::dlpack_type<std::int32_t>().code == kDLInt);
}

TEST_CASE("a DLPack view may be copied: each copy has its own shape", "[layout][dlpack]") {
  float memory[24];
  ha::DlpackView original = ha::dlpack_view(memory, ha::strided_bhsd(1, 2, 3, 4), "bhsd", cpu);
  ha::DlpackView copy = original;
  CHECK(copy.tensor().shape != original.tensor().shape);
  CHECK(copy.tensor().shape[2] == 3);
}

TEST_CASE("what is wrong with a DLPack tensor is said", "[layout][dlpack]") {
  Tensor good({2, 3, 4, 5}, {60, 20, 5, 1});
  REQUIRE(error_of(good.tensor, "bhsd").what == "no error");

  SECTION("data type") {
    good.tensor.dtype = {kDLFloat, 16, 1};
    auto const detail = error_of(good.tensor, "bhsd");
    CHECK(detail.what == "data type");
    CHECK(detail.expected == "float32");
    CHECK(detail.got == "float16");
    CHECK(detail.where == "strided_from_dlpack");
    good.tensor.dtype = {kDLInt, 32, 1};
    CHECK(error_of(good.tensor, "bhsd").got == "int32");
    good.tensor.dtype = {kDLFloat, 32, 4};
    CHECK(error_of(good.tensor, "bhsd").got == "float32 x 4 lanes");
    good.tensor.dtype = {kDLBfloat, 16, 1};
    CHECK(error_of<ha::float16>(good.tensor, "bhsd").got == "bfloat16");
    good.tensor.dtype = {200, 32, 1};
    CHECK(error_of(good.tensor, "bhsd").got == "code 200, bits 32");
  }
  SECTION("device") {
    good.tensor.device = {kDLROCM, 0};
    auto const detail = error_of(good.tensor, "bhsd");
    CHECK(detail.what == "device type");
    CHECK(detail.got == "10");
  }
  SECTION("dimensions") {
    auto const detail = error_of(good.tensor, "shd");
    CHECK(detail.what == "dimensions");
    CHECK(detail.expected == "3 (shd)");
    CHECK(detail.got == "4");
    good.tensor.ndim = -1;
    CHECK(error_of(good.tensor, "shd").got == "-1");
  }
  SECTION("shape") {
    good.tensor.shape = nullptr;
    CHECK(error_of(good.tensor, "bhsd").what == "shape");
  }
  SECTION("negative extent") {
    good.shape[1] = -3;
    auto const detail = error_of(good.tensor, "bhsd");
    CHECK(detail.what == "extent");
    CHECK(detail.got == "-3");
    CHECK(detail.where == "strided_from_dlpack, dimension 1");
  }
  SECTION("negative stride") {
    good.strides[2] = -5;
    auto const detail = error_of(good.tensor, "bhsd");
    CHECK(detail.what == "stride");
    CHECK(detail.expected == ">= 0");
    CHECK(detail.got == "-5");
    CHECK(detail.where == "strided_from_dlpack, dimension 2");
  }
  SECTION("no data") {
    good.tensor.data = nullptr;
    CHECK(error_of(good.tensor, "bhsd").what == "data");
  }
  SECTION("misaligned data") {
    good.tensor.byte_offset = 6;
    auto const detail = error_of(good.tensor, "bhsd");
    CHECK(detail.what == "data with byte_offset");
    CHECK(detail.got == "2 beyond one");
  }
  SECTION("a byte_offset beyond the address space") {
    good.tensor.byte_offset = ~std::uint64_t{255};
    auto const detail = error_of(good.tensor, "bhsd");
    CHECK(detail.what == "byte_offset");
    CHECK(detail.got == "18446744073709551360");
  }
  SECTION("offsets beyond 64 bits") {
    good.strides[0] = std::numeric_limits<std::int64_t>::max();
    CHECK(error_of(good.tensor, "bhsd").what == "tensor");
    Tensor const vast({std::int64_t{1} << 40, std::int64_t{1} << 40, 4, 5}, {});
    CHECK(error_of(vast.tensor, "bhsd").what == "tensor");
  }
}

TEST_CASE("what does not fit into a DLPack tensor is an error", "[layout][dlpack]") {
  float memory[120];
  auto const layout = ha::strided_bhsd(2, 3, 4, 5);
  auto const detail = error_of([&] { (void)ha::dlpack_view(memory, layout, "hsd", cpu); });
  CHECK(detail.what == "sequences left out");
  CHECK(detail.expected == "1");
  CHECK(detail.got == "2");
  CHECK(detail.where == "dlpack_view");
  CHECK(error_of([&] { (void)ha::dlpack_view(memory, layout, "bsd", cpu); }).what == "KV heads left out");
  CHECK(error_of([&] { (void)ha::dlpack_view(memory, layout, "bhd", cpu); }).what == "tokens left out");
  CHECK(error_of([&] { (void)ha::dlpack_view(memory, layout, "bhs", cpu); }).what == "channels left out");
  CHECK(error_of([&] {
          (void)ha::dlpack_view(memory, layout, "bhsd", cpu, {kDLFloat, 16, 1});
        }).what == "bits of an element");
  CHECK_NOTHROW(ha::dlpack_view(memory, layout, "bhsd", cpu, {kDLInt, 8, 4}));
}

TEST_CASE("a managed DLPack tensor releases its memory once", "[layout][dlpack]") {
  int released = 0;
  auto memory = std::make_unique<float[]>(120);
  float* const data = memory.get();
  {
    auto managed = ha::managed_dlpack(ha::dlpack_view(data, ha::strided_bhsd(2, 3, 4, 5), "bhsd", cpu),
                                      [&released, kept = std::move(memory)] { released += kept != nullptr; });
    auto const taken = ha::strided_from_dlpack<float>(managed->dl_tensor, "bhsd");
    CHECK(taken.data == data);
    check_same(taken.layout, ha::strided_bhsd(2, 3, 4, 5));

    // Another owner, as a capsule would be.
    DLManagedTensor* const consumer = managed.release();
    CHECK(released == 0);
    consumer->deleter(consumer);
    CHECK(released == 1);
  }
  CHECK(released == 1);
  {
    auto const dropped = ha::managed_dlpack(ha::DlpackView(), [&released] { ++released; });
  }
  CHECK(released == 2);
}

TEST_CASE("a foreign managed tensor without a deleter is let go", "[layout][dlpack]") {
  DLManagedTensor foreign{};
  { ha::ManagedDlpack const managed(&foreign); }
  CHECK(foreign.deleter == nullptr);
}

#if defined(DLPACK_MAJOR_VERSION)
TEST_CASE("versioned managed tensors say their version and flags", "[layout][dlpack]") {
  int released = 0;
  float memory[24];
  {
    auto const view = ha::dlpack_view(memory, ha::strided_bhsd(1, 2, 3, 4), "bhsd", cpu);
    auto const managed = ha::managed_dlpack_versioned(
        view, [&released] { ++released; }, DLPACK_FLAG_BITMASK_READ_ONLY);
    CHECK(managed->version.major == DLPACK_MAJOR_VERSION);
    CHECK(managed->flags == DLPACK_FLAG_BITMASK_READ_ONLY);
    check_same(ha::strided_from_dlpack<float>(managed->dl_tensor, "bhsd").layout, ha::strided_bhsd(1, 2, 3, 4));
  }
  CHECK(released == 1);
}
#endif

#if defined(DLPACK_MAJOR_VERSION) && (DLPACK_MAJOR_VERSION > 1 || DLPACK_MINOR_VERSION >= 1)
TEST_CASE("8-bit floats are bytes", "[layout][dlpack]") {
  std::uint8_t memory[24];
  auto view = ha::dlpack_view(memory, ha::strided_bhsd(1, 2, 3, 4), "bhsd", cpu, {kDLFloat8_e4m3fn, 8, 1});
  CHECK(view.tensor().dtype.code == kDLFloat8_e4m3fn);
  CHECK(ha::strided_from_dlpack<std::uint8_t>(view.tensor(), "bhsd").data == memory);
  CHECK(error_of<std::int8_t>(view.tensor(), "bhsd").got == "code 10, bits 8");
}
#endif

#endif  // dlpack/dlpack.h
