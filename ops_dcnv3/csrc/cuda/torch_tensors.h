// What the bindings share: element types, memory as the kernels read it, the current stream.
#pragma once

#define USE_CUDA  // declares torch's function for the current stream
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../tensors.h"
#include "dcnv3_cuda.h"

namespace ops_dcnv3 {

inline dcnv3::Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return dcnv3::Dtype::kFloat16;
    case ScalarType::BFloat16: return dcnv3::Dtype::kBFloat16;
    case ScalarType::Float: return dcnv3::Dtype::kFloat32;
    case ScalarType::Double: return dcnv3::Dtype::kFloat64;
    default: fail("ops_dcnv3: expected float32, float64, bfloat16 or float16");
  }
}

inline bool begins_on(const Tensor& tensor, size_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

// Contiguous, and on a 16-byte boundary, where a view into a larger tensor may not begin.
inline Tensor prepared(const Tensor& tensor) {
  const Tensor whole = dense(tensor);
  return begins_on(whole, 16) ? whole : torch::stable::clone(whole);
}

inline void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  require(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
          "ops_dcnv3: torch has no current CUDA stream");
  return stream;
}

// Of a launcher's answer.
inline void require_launch(const char* reason) { require(reason == nullptr, reason); }

// What kernels add a gradient up in: zeros of the size of `like`, float32 for the half types.
inline Tensor zero_sums(const Tensor& like) {
  return torch::stable::new_zeros(like, like.sizes(), like.element_size() == 2 ? ScalarType::Float : like.scalar_type());
}

// The sums in the type of `like`.
inline Tensor narrowed(const Tensor& sums, const Tensor& like, void* stream) {
  if (sums.scalar_type() == like.scalar_type()) return sums;
  Tensor result = new_tensor(like, like.sizes());
  require_launch(dcnv3::narrow(dtype_of(like), sums.const_data_ptr(), result.mutable_data_ptr(), like.numel(), stream));
  return result;
}

}  // namespace ops_dcnv3
