// Any DLPack tensor: it is taken in, or throws headaware::ArgumentError. Of one that is taken in, every element lies
// where its shape and strides say, and it can be handed out again as it came.

#if __has_include(<dlpack/dlpack.h>)

#include <headaware/layout/dlpack.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace ha = headaware;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

/// The input, value by value; zeros after its end.
class Bytes {
 public:
  Bytes(std::uint8_t const* data, std::size_t size) : data_(data), size_(size) {}
  template <class T>
  T take() {
    T value{};
    std::size_t const count = std::min(sizeof(T), size_);
    std::memcpy(&value, data_, count);
    data_ += count;
    size_ -= count;
    return value;
  }
  /// Mostly small, now and then anything.
  std::int64_t number() {
    auto const first = take<std::int8_t>();
    return first == 127 ? take<std::int64_t>() : first == 126 ? take<std::int16_t>() : first;
  }

 private:
  std::uint8_t const* data_;
  std::size_t size_;
};

template <class T>
void take_in(DLTensor const& tensor, ha::DlpackOrder order) {
  try {
    auto const taken = ha::strided_from_dlpack<T>(tensor, order);
    ha::LayoutShape const& shape = taken.layout.shape();
    std::array<std::int64_t, 4> const extents{shape.num_sequences, shape.num_kv_heads, shape.tokens, shape.channels};
    for (std::int64_t const extent : extents) require(extent >= 0);
    if (std::find(extents.begin(), extents.end(), 0) != extents.end()) return;
    auto const last = taken.layout.offset(extents[0] - 1, extents[1] - 1, extents[2] - 1, extents[3] - 1);
    require(taken.layout.offset(0, 0, 0, 0) == 0 && last >= 0);
    auto view = ha::dlpack_view(taken.data, taken.layout, order, taken.device);
    DLTensor const again = view.tensor();
    require(again.data == static_cast<std::byte*>(tensor.data) + tensor.byte_offset && again.ndim == tensor.ndim);
    for (int i = 0; i < tensor.ndim; ++i) {
      require(again.shape[i] == tensor.shape[i]);
      bool const told = tensor.strides == nullptr || tensor.shape[i] <= 1 || order[i] == 'd';
      require(told || again.strides[i] == tensor.strides[i]);
    }
  } catch (ha::ArgumentError const& error) {
    require(!error.detail().got.empty() && !error.detail().where.empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  Bytes bytes(data, size);
  auto const flags = bytes.take<std::uint8_t>();
  alignas(64) static std::array<std::byte, 64> memory{};  // never read: offsets alone count
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> strides{};
  DLTensor tensor{};
  tensor.data = (flags & 1U) != 0 ? nullptr : memory.data();
  tensor.device = {static_cast<DLDeviceType>((flags & 2U) != 0 ? bytes.take<std::uint8_t>() & 15U : kDLCPU), 0};
  tensor.dtype = (flags & 4U) != 0 ? bytes.take<DLDataType>() : ha::dlpack_type<float>();
  tensor.ndim = (flags & 8U) != 0 ? bytes.take<std::int32_t>() : 4;
  tensor.byte_offset = (flags & 16U) != 0 ? bytes.take<std::uint64_t>() : 0;
  tensor.shape = (flags & 32U) != 0 ? nullptr : shape.data();
  tensor.strides = (flags & 64U) != 0 ? nullptr : strides.data();
  for (std::size_t i = 0; i < 4; ++i) {
    shape[i] = bytes.number();
    strides[i] = bytes.number();
  }
  take_in<float>(tensor, "bshd");
  take_in<std::uint8_t>(tensor, "bhds");
  tensor.ndim = std::min(tensor.ndim, 3);
  take_in<ha::float16 const>(tensor, "shd");
  return 0;
}

#else

extern "C" int LLVMFuzzerTestOneInput(unsigned char const*, unsigned long) { return 0; }

#endif
