#pragma once

#include <headaware/config.hpp>

#include <cstddef>
#include <new>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Memory for floats, aligned to a cache line.
class FloatBuffer {
 public:
  explicit FloatBuffer(std::size_t count)
      : data_(static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t{64}))) {}
  FloatBuffer(FloatBuffer const&) = delete;
  FloatBuffer& operator=(FloatBuffer const&) = delete;
  ~FloatBuffer() { ::operator delete[](data_, std::align_val_t{64}); }
  [[nodiscard]] float* data() const { return data_; }

 private:
  float* data_;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
