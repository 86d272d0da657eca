#pragma once

// The elements of one of the engine's tensors, wherever it lies and however it is strided.

#include <headaware/error.hpp>

#include <ggml-backend.h>
#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace llama_adapter {

/// The bytes that a tensor or view spans, on the host.
class TensorBytes {
 public:
  explicit TensorBytes(ggml_tensor const* tensor) {
    ggml_backend_buffer_t const buffer = tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
    headaware::require(tensor->data != nullptr && buffer != nullptr, "tensor", "memory of its own",
                       {"none: ", tensor->name}, "TensorBytes");
    if (ggml_backend_buffer_is_host(buffer)) {
      data_ = static_cast<std::byte const*>(tensor->data);
    } else {
      copy_.resize(ggml_nbytes(tensor));
      ggml_backend_tensor_get(tensor, copy_.data(), 0, copy_.size());
      data_ = copy_.data();
    }
  }
  TensorBytes(TensorBytes const&) = delete;
  TensorBytes& operator=(TensorBytes const&) = delete;
  [[nodiscard]] std::byte const* data() const { return data_; }

 private:
  std::byte const* data_ = nullptr;
  std::vector<std::byte> copy_;
};

/// The single-precision elements of a tensor, row by row in the order [ne3][`outer`][`inner`][ne0], where `outer` and
/// `inner` are dimensions 2 and 1 or, for a permuted view, 1 and 2.
inline std::vector<float> floats_of(ggml_tensor const* tensor, int outer = 2, int inner = 1) {
  headaware::require(tensor->type == GGML_TYPE_F32 && tensor->nb[0] == sizeof(float), "tensor",
                     "single precision, rows without gaps", {ggml_type_name(tensor->type), ": ", tensor->name},
                     "floats_of");
  TensorBytes const bytes(tensor);
  auto const row = static_cast<std::size_t>(tensor->ne[0]);
  std::vector<float> elements(static_cast<std::size_t>(ggml_nelements(tensor)));
  float* next = elements.data();
  for (std::int64_t l = 0; l < tensor->ne[3]; ++l) {
    for (std::int64_t k = 0; k < tensor->ne[outer]; ++k) {
      for (std::int64_t j = 0; j < tensor->ne[inner]; ++j) {
        std::size_t const offset = static_cast<std::size_t>(l) * tensor->nb[3] +
                                   static_cast<std::size_t>(k) * tensor->nb[outer] +
                                   static_cast<std::size_t>(j) * tensor->nb[inner];
        std::memcpy(next, bytes.data() + offset, row * sizeof(float));
        next += row;
      }
    }
  }
  return elements;
}

}  // namespace llama_adapter
