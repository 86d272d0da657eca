#pragma once

/// @file
/// DLPack tensors in and out. Not included by any other header: needs `dlpack/dlpack.h`, version 0.6 or
/// later.
///
/// @par Source  dmlc/dlpack, include/dlpack/dlpack.h

#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/layout/strided.hpp>

#include <dlpack/dlpack.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief DLPack's name for an element type. Specialise it for an element type of your own:
/// `static constexpr std::uint8_t code` and `bits`.
template <class T>
struct DlpackElement {
  static_assert(sizeof(T) == 0, "headaware: DlpackElement knows float, double, float16, bfloat16, int8_t, uint8_t, "
                                "int32_t and int64_t; specialise it for another element type");
};
template <>
struct DlpackElement<float> {
  static constexpr std::uint8_t code = kDLFloat;
  static constexpr std::uint8_t bits = 32;
};
template <>
struct DlpackElement<double> {
  static constexpr std::uint8_t code = kDLFloat;
  static constexpr std::uint8_t bits = 64;
};
template <>
struct DlpackElement<float16> {
  static constexpr std::uint8_t code = kDLFloat;
  static constexpr std::uint8_t bits = 16;
};
template <>
struct DlpackElement<bfloat16> {
  static constexpr std::uint8_t code = kDLBfloat;
  static constexpr std::uint8_t bits = 16;
};
template <>
struct DlpackElement<std::int8_t> {
  static constexpr std::uint8_t code = kDLInt;
  static constexpr std::uint8_t bits = 8;
};
/// Bytes: taken in, they may also be 8-bit floats, where DLPack has those (1.1).
template <>
struct DlpackElement<std::uint8_t> {
  static constexpr std::uint8_t code = kDLUInt;
  static constexpr std::uint8_t bits = 8;
};
template <>
struct DlpackElement<std::int32_t> {
  static constexpr std::uint8_t code = kDLInt;
  static constexpr std::uint8_t bits = 32;
};
template <>
struct DlpackElement<std::int64_t> {
  static constexpr std::uint8_t code = kDLInt;
  static constexpr std::uint8_t bits = 64;
};

/// @brief DLPack's data type of `T`.
template <class T>
[[nodiscard]] constexpr DLDataType dlpack_type() {
  using Element = DlpackElement<std::remove_cv_t<T>>;
  static_assert(Element::bits == 8 * sizeof(T), "headaware: DlpackElement::bits is not the size of the element");
  return {Element::code, Element::bits, 1};
}

/// @brief Meaning of each dimension of a tensor, outermost first, as a string literal: `b` sequence
/// (batch), `h` KV head, `s` token (sequence position), `d` channel (head_dim). For example "bhsd", "bshd",
/// "shd" or "bhds". A direction that is left out has one element. A mistake does not compile.
class DlpackOrder {
 public:
  template <std::size_t N>
  consteval DlpackOrder(char const (&letters)[N]) : size_(static_cast<std::int32_t>(N - 1)) {
    static_assert(N >= 2 && N <= 5, "headaware: an order has one to four dimensions");
    for (std::size_t i = 0; i + 1 < N; ++i) {
      letters_[i] = letters[i];
      bool const known = letters[i] == 'b' || letters[i] == 'h' || letters[i] == 's' || letters[i] == 'd';
      if (!known) throw std::invalid_argument("headaware: an order consists of the letters b, h, s and d");
      for (std::size_t j = 0; j < i; ++j) {
        if (letters[j] == letters[i]) throw std::invalid_argument("headaware: an order names a dimension twice");
      }
    }
  }

  [[nodiscard]] constexpr std::int32_t size() const { return size_; }
  /// The letter of a dimension.
  [[nodiscard]] constexpr char operator[](std::int32_t dimension) const {
    return letters_[static_cast<std::size_t>(dimension)];
  }
  /// The dimension of a letter; -1 where it is left out.
  [[nodiscard]] constexpr std::int32_t find(char letter) const {
    for (std::int32_t i = 0; i < size_; ++i) {
      if ((*this)[i] == letter) return i;
    }
    return -1;
  }
  [[nodiscard]] std::string text() const { return {letters_.data(), static_cast<std::size_t>(size_)}; }

 private:
  std::array<char, 4> letters_{};
  std::int32_t size_;
};

/// @brief A tensor taken in from DLPack: where its first element is, and how it lies. Borrowed.
template <class T>
struct DlpackTensor {
  T* data = nullptr;
  StridedLayout layout;
  DLDevice device{};

  /// Whether the CPU back end may read it.
  [[nodiscard]] bool on_host() const { return device.device_type != kDLCUDA; }
  /// Whether the CUDA back end may read it.
  [[nodiscard]] bool on_device() const { return device.device_type != kDLCPU; }
};

namespace detail {

[[nodiscard]] inline std::string dlpack_type_text(DLDataType const& type) {
  static constexpr char const* names[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  std::string const name = type.code < 7 ? names[type.code] : "code " + std::to_string(type.code) + ", bits ";
  return name + std::to_string(type.bits) + (type.lanes == 1 ? "" : " x " + std::to_string(type.lanes) + " lanes");
}

/// Whether the bytes of a `got` are those of a `T`.
template <class T>
[[nodiscard]] constexpr bool dlpack_type_fits(DLDataType const& got) {
  constexpr DLDataType expected = dlpack_type<T>();
  if (got.bits != expected.bits || got.lanes != 1) return false;
#if defined(DLPACK_MAJOR_VERSION) && (DLPACK_MAJOR_VERSION > 1 || DLPACK_MINOR_VERSION >= 1)
  if constexpr (std::is_same_v<std::remove_cv_t<T>, std::uint8_t>) {
    if (got.code >= kDLFloat8_e3m4 && got.code <= kDLFloat8_e8m0fnu) return true;
  }
#endif
  return got.code == expected.code;
}

/// Extents and strides of a DLPack tensor, checked so that no offset overflows.
struct DlpackDimensions {
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> strides{};
  bool empty = false;
};

[[nodiscard]] inline DlpackDimensions dlpack_dimensions(DLTensor const& tensor, char const* where) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  DlpackDimensions result;
  for (std::int32_t i = 0; i < tensor.ndim; ++i) {
    auto const k = static_cast<std::size_t>(i);
    result.shape[k] = tensor.shape[k];
    require(result.shape[k] >= 0, "extent", ">= 0", result.shape[k], {where, ", dimension ", i});
    result.empty = result.empty || result.shape[k] == 0;
  }
  std::int64_t compact = 1;
  std::int64_t last = 0;
  for (std::int32_t i = tensor.ndim - 1; i >= 0; --i) {
    auto const k = static_cast<std::size_t>(i);
    std::int64_t const extent = result.shape[k];
    std::int64_t& stride = result.strides[k];
    stride = tensor.strides != nullptr ? tensor.strides[k] : compact;
    if (extent <= 1 || result.empty) {
      // Nothing is ever that far apart, and producers differ in what they write here.
      stride = stride < 0 ? 0 : stride;
      continue;
    }
    require(stride >= 0, "stride", ">= 0", stride, {where, ", dimension ", i});
    require(stride == 0 || extent - 1 <= (most - 1 - last) / stride, "tensor", "offsets that fit 64 bits",
            {"extent ", extent, " at stride ", stride}, {where, ", dimension ", i});
    last += (extent - 1) * stride;
    // Without strides the offset of the last element is one less than the elements so far.
    compact = last + 1;
  }
  return result;
}

}  // namespace detail

/// @brief Takes in a dense tensor.
/// @tparam T      float, float16, bfloat16, int8_t, uint8_t, int32_t, …, or const of it
/// @param tensor  borrowed; strides may be nullptr: contiguous
/// @param order   what its dimensions are, for example "bhsd"
/// @return its pointer, `byte_offset` included, its layout, and its device
/// @throws ArgumentError if the data type is not `T`'s, the device is neither CPU nor CUDA, the number of
///         dimensions is not the order's, an extent or stride is negative, the data is missing or
///         misaligned, or offsets (`byte_offset` too) exceed 64 bits
/// @note   Does not synchronise: that is between the producer's stream and the caller's.
template <class T>
[[nodiscard]] DlpackTensor<T> strided_from_dlpack(DLTensor const& tensor, DlpackOrder order) {
  constexpr auto where = "strided_from_dlpack";
  require(detail::dlpack_type_fits<T>(tensor.dtype), "data type", detail::dlpack_type_text(dlpack_type<T>()),
          detail::dlpack_type_text(tensor.dtype), where);
  auto const device = tensor.device.device_type;
  bool const known = device == kDLCPU || device == kDLCUDA || device == kDLCUDAHost || device == kDLCUDAManaged;
  require(known, "device type", "kDLCPU (1), kDLCUDA (2), kDLCUDAHost (3) or kDLCUDAManaged (13)",
          static_cast<std::int32_t>(device), where);
  require(tensor.ndim == order.size(), "dimensions", {order.size(), " (", order.text(), ")"}, tensor.ndim, where);
  require(tensor.shape != nullptr, "shape", "a pointer", "nullptr", where);
  detail::DlpackDimensions const dimensions = detail::dlpack_dimensions(tensor, where);

  auto const address = reinterpret_cast<std::uintptr_t>(tensor.data) + static_cast<std::uintptr_t>(tensor.byte_offset);
  require(dimensions.empty || tensor.data != nullptr, "data", "a pointer", "nullptr", where);
  require(address >= reinterpret_cast<std::uintptr_t>(tensor.data), "byte_offset",
          "one that stays within the address space", tensor.byte_offset, where);
  require(address % alignof(T) == 0, "data with byte_offset", {"an address aligned to ", alignof(T), " bytes"},
          {address % alignof(T), " beyond one"}, where);

  auto const extent = [&](char letter) {
    std::int32_t const i = order.find(letter);
    return i < 0 ? std::int64_t{1} : dimensions.shape[static_cast<std::size_t>(i)];
  };
  auto const stride = [&](char letter) {
    std::int32_t const i = order.find(letter);
    return i < 0 ? std::int64_t{0} : dimensions.strides[static_cast<std::size_t>(i)];
  };
  LayoutShape const shape{extent('b'), extent('h'), extent('s'), extent('d')};
  // A single channel lies beside itself, whatever its stride.
  LayoutStrides const strides{stride('b'), stride('h'), stride('s'), shape.channels <= 1 ? 1 : stride('d')};
  return {reinterpret_cast<T*>(address), StridedLayout(shape, strides), tensor.device};
}

/// @brief A tensor for DLPack, with room for its shape and strides. Made by `dlpack_view`; may be copied.
class DlpackView {
 public:
  /// @brief The tensor, valid while this view lives and stays where it is.
  [[nodiscard]] DLTensor tensor() & {
    DLTensor result{};
    result.data = data_;
    result.device = device_;
    result.ndim = ndim_;
    result.dtype = type_;
    result.shape = shape_.data();
    result.strides = strides_.data();
    result.byte_offset = 0;
    return result;
  }

 private:
  template <class T>
  friend DlpackView dlpack_view(T* data, StridedLayout const& layout, DlpackOrder order, DLDevice device,
                                DLDataType type);

  void* data_ = nullptr;
  DLDevice device_{};
  DLDataType type_{};
  std::int32_t ndim_ = 0;
  std::array<std::int64_t, 4> shape_{};
  std::array<std::int64_t, 4> strides_{};
};

/// @brief Describes a tensor for DLPack.
/// @param data    host or device, as `device` says; borrowed. DLPack cannot say that it is const
/// @param layout  how it lies; a compressed ragged cache is `strided_shd(rows, 1, head_dim)` with order "sd"
/// @param order   DLPack's dimensions, outermost first
/// @param device  for example {kDLCUDA, 0}
/// @param type    for elements that have another name in DLPack, such as bytes that are 8-bit floats
/// @throws ArgumentError if the order leaves out a direction that has other than one element, or an
///         element of `type` is not as large as one of `T`
template <class T>
[[nodiscard]] DlpackView dlpack_view(T* data, StridedLayout const& layout, DlpackOrder order, DLDevice device,
                                     DLDataType type) {
  constexpr auto where = "dlpack_view";
  require(std::size_t{type.bits} * type.lanes == 8 * sizeof(T), "bits of an element", 8 * sizeof(T),
          std::size_t{type.bits} * type.lanes, where);
  LayoutShape const& shape = layout.shape();
  LayoutStrides const& strides = layout.strides();
  struct Direction {
    char letter;
    char const* name;
    std::int64_t extent;
    std::int64_t stride;
  };
  DlpackView view;
  view.data_ = const_cast<std::remove_const_t<T>*>(data);
  view.device_ = device;
  view.type_ = type;
  view.ndim_ = order.size();
  for (Direction const& direction : {Direction{'b', "sequences left out", shape.num_sequences, strides.sequence},
                                     Direction{'h', "KV heads left out", shape.num_kv_heads, strides.head},
                                     Direction{'s', "tokens left out", shape.tokens, strides.token},
                                     Direction{'d', "channels left out", shape.channels, strides.channel}}) {
    std::int32_t const i = order.find(direction.letter);
    if (i < 0) {
      require(direction.extent == 1, direction.name, 1, direction.extent, where);
    } else {
      view.shape_[static_cast<std::size_t>(i)] = direction.extent;
      view.strides_[static_cast<std::size_t>(i)] = direction.stride;
    }
  }
  return view;
}
/// @overload
template <class T>
[[nodiscard]] DlpackView dlpack_view(T* data, StridedLayout const& layout, DlpackOrder order, DLDevice device) {
  return dlpack_view(data, layout, order, device, dlpack_type<T>());
}

/// Calls a managed tensor's deleter.
struct DlpackDelete {
  template <class Managed>
  void operator()(Managed* managed) const {
    if (managed->deleter != nullptr) managed->deleter(managed);
  }
};

/// @brief A managed tensor until a consumer takes it over: `release()` it into a `dltensor` capsule.
using ManagedDlpack = std::unique_ptr<DLManagedTensor, DlpackDelete>;

namespace detail {

/// A managed tensor, the room it points to, and what is to be done at its end.
template <class Managed, class Release>
struct DlpackOwner {
  Managed managed{};
  DlpackView view;
  Release release;

  static void destroy(Managed* self) {
    std::unique_ptr<DlpackOwner> const owner(static_cast<DlpackOwner*>(self->manager_ctx));
    owner->release();
  }
};

template <class Managed, class Release>
[[nodiscard]] std::unique_ptr<Managed, DlpackDelete> manage_dlpack(DlpackView const& view, Release release) {
  using Owner = DlpackOwner<Managed, Release>;
  auto owner = std::make_unique<Owner>(Owner{{}, view, std::move(release)});
  owner->managed.dl_tensor = owner->view.tensor();
  owner->managed.manager_ctx = owner.get();
  owner->managed.deleter = &Owner::destroy;
  return std::unique_ptr<Managed, DlpackDelete>(&owner.release()->managed);
}

}  // namespace detail

/// @brief Hands memory to another framework.
/// @param view     made by `dlpack_view`; copied
/// @param release  called once, without arguments, when the consumer is done; must not throw. Not called if
///                 this function throws (std::bad_alloc)
template <class Release>
[[nodiscard]] ManagedDlpack managed_dlpack(DlpackView const& view, Release release) {
  return detail::manage_dlpack<DLManagedTensor>(view, std::move(release));
}

#if defined(DLPACK_MAJOR_VERSION)
/// @brief The same of DLPack 1 and later.
using ManagedDlpackVersioned = std::unique_ptr<DLManagedTensorVersioned, DlpackDelete>;

/// @brief Hands memory to another framework, as DLPack 1 and later take it.
/// @param flags  for example DLPACK_FLAG_BITMASK_READ_ONLY
template <class Release>
[[nodiscard]] ManagedDlpackVersioned managed_dlpack_versioned(DlpackView const& view, Release release,
                                                              std::uint64_t flags = 0) {
  ManagedDlpackVersioned managed = detail::manage_dlpack<DLManagedTensorVersioned>(view, std::move(release));
  managed->version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
  managed->flags = flags;
  return managed;
}
#endif

HEADAWARE_NAMESPACE_END
