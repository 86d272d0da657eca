#pragma once

#include <headaware/config.hpp>

#include <cstddef>
#include <new>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Memory for floats, aligned to a cache line.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  explicit FloatBuffer(std::size_t count) { grow(count); }
  FloatBuffer(FloatBuffer const&) = delete;
  FloatBuffer& operator=(FloatBuffer const&) = delete;
  ~FloatBuffer() { ::operator delete[](data_, alignment); }
  [[nodiscard]] float* data() const { return data_; }
  /// Makes room for `count` floats, if there is less; the contents are lost then.
  float* grow(std::size_t count) {
    if (data_ != nullptr && count <= count_) return data_;
    auto* const data = static_cast<float*>(::operator new[](count * sizeof(float), alignment));
    ::operator delete[](data_, alignment);
    data_ = data;
    count_ = count;
    return data_;
  }

 private:
  static constexpr std::align_val_t alignment{64};
  float* data_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
