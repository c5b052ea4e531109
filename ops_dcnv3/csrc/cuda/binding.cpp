// The CUDA kernels as torch operators, through the stable ABI: one binary serves every torch from 2.10 on that has the
// same CUDA major version. The schemas are defined in ops_dcnv3/functional.py.
#define USE_CUDA  // declares torch's function for the current stream
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../arguments.h"
#include "dcnv3_cuda.h"

using ops_dcnv3::Window;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

dcnv3::Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return dcnv3::Dtype::kFloat16;
    case ScalarType::BFloat16: return dcnv3::Dtype::kBFloat16;
    case ScalarType::Float: return dcnv3::Dtype::kFloat32;
    case ScalarType::Double: return dcnv3::Dtype::kFloat64;
    default: STD_TORCH_CHECK(false, "ops_dcnv3: expected float32, float64, bfloat16 or float16");
  }
  return dcnv3::Dtype::kFloat32;
}

bool begins_on(const Tensor& tensor, size_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

// What the kernels read: contiguous, and on a 16-byte boundary, where a view into a larger tensor may not begin.
Tensor prepared(const Tensor& tensor) {
  const Tensor dense = torch::stable::contiguous(tensor);
  return begins_on(dense, 16) ? dense : torch::stable::clone(dense);
}

// Offset and mask may also be columns of a wider matrix, such as the result of one projection for both.
Tensor prepared(const Tensor& tensor, int64_t per_point, int64_t& pitch) {
  pitch = tensor.stride(2);
  if (ops_dcnv3::has_regular_pixels(tensor) && pitch % per_point == 0 &&
      begins_on(tensor, per_point * tensor.element_size())) {
    return tensor;
  }
  pitch = tensor.size(3);
  return prepared(tensor);
}

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

void check(const char* reason) { STD_TORCH_CHECK(reason == nullptr, reason); }

dcnv3::Shape shape_of(const Tensor& input, const Window& w) {
  return {input.size(0), input.size(1), input.size(2), w.groups,       input.size(3) / w.groups,
          w.kernel_h,    w.kernel_w,    w.stride_h,    w.stride_w,     w.padding_h,
          w.padding_w,   w.dilation_h,  w.dilation_w,  w.offset_scale, w.remove_center,
          w.mask_is_logits, 0, 0};
}

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t kernel_h, int64_t kernel_w,
               int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
               int64_t dilation_w, int64_t groups, double offset_scale, bool remove_center, bool mask_is_logits) {
  const Window window = {kernel_h,   kernel_w,   stride_h, stride_w,     padding_h,     padding_w,
                         dilation_h, dilation_w, groups,   offset_scale, remove_center, mask_is_logits};
  ops_dcnv3::check_arguments(input, offset, mask, window);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  dcnv3::Shape shape = shape_of(input, window);
  const Tensor x = prepared(input);
  const Tensor o = prepared(offset, 2, shape.offset_pitch), m = prepared(mask, 1, shape.mask_pitch);
  Tensor output = torch::stable::new_empty(input, {input.size(0), offset.size(1), offset.size(2), input.size(3)});
  check(dcnv3::forward(dtype_of(input), shape, x.const_data_ptr(), o.const_data_ptr(), m.const_data_ptr(),
                       output.mutable_data_ptr(), current_stream(input)));
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                            const Tensor& mask, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                                            int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
                                            int64_t dilation_w, int64_t groups, double offset_scale, bool remove_center,
                                            bool mask_is_logits) {
  const Window window = {kernel_h,   kernel_w,   stride_h, stride_w,     padding_h,     padding_w,
                         dilation_h, dilation_w, groups,   offset_scale, remove_center, mask_is_logits};
  ops_dcnv3::check_arguments(input, offset, mask, window);
  ops_dcnv3::check_grad_output(grad_output, input, offset);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const dcnv3::Dtype dtype = dtype_of(input);
  const bool is_half = dtype == dcnv3::Dtype::kFloat16 || dtype == dcnv3::Dtype::kBFloat16;
  Tensor grad_offset = torch::stable::new_empty(offset, offset.sizes());
  Tensor grad_mask = torch::stable::new_empty(mask, mask.sizes());
  Tensor wide = torch::stable::new_zeros(input, input.sizes(), is_half ? ScalarType::Float : input.scalar_type());
  if (grad_output.numel() == 0) {  // no channels, no images: nothing below would write the gradients
    torch::stable::zero_(grad_offset), torch::stable::zero_(grad_mask);
  }
  dcnv3::Shape shape = shape_of(input, window);
  const Tensor g = prepared(grad_output), x = prepared(input);
  const Tensor o = prepared(offset, 2, shape.offset_pitch), m = prepared(mask, 1, shape.mask_pitch);
  void* stream = current_stream(input);
  check(dcnv3::backward(dtype, shape, g.const_data_ptr(), x.const_data_ptr(), o.const_data_ptr(), m.const_data_ptr(),
                        wide.mutable_data_ptr(), grad_offset.mutable_data_ptr(), grad_mask.mutable_data_ptr(), stream));
  if (!is_half) return {wide, grad_offset, grad_mask};
  Tensor grad_input = torch::stable::new_empty(input, input.sizes());
  check(dcnv3::narrow(dtype, wide.const_data_ptr(), grad_input.mutable_data_ptr(), input.numel(), stream));
  return {grad_input, grad_offset, grad_mask};
}

}  // namespace

// For ops_dcnv3/build.py, which finds these words in the file: the architectures that there is code for.
#ifndef DCNV3_TARGETS
#define DCNV3_TARGETS ""
#endif
extern "C" __attribute__((visibility("default"))) const char ops_dcnv3_cuda_targets[] = DCNV3_TARGETS;

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
