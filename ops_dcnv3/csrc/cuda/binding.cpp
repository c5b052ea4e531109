// The CUDA kernels as torch operators, through the stable ABI: one binary serves every torch from 2.10 on that has the
// same CUDA major version. The schemas are defined in ops_dcnv3/schema.py.
#include "torch_tensors.h"

#include <tuple>

#include "../arguments.h"

using namespace ops_dcnv3;

namespace {

// Offset and mask may also be columns of a wider matrix, such as the result of one projection for both.
Tensor pitched(const Tensor& tensor, int64_t per_point, int64_t& pitch) {
  pitch = tensor.stride(2);
  if (has_regular_pixels(tensor) && pitch % per_point == 0 &&
      begins_on(tensor, per_point * tensor.element_size())) {
    return tensor;
  }
  pitch = tensor.size(3);
  return prepared(tensor);
}

dcnv3::Shape shape_of(const Tensor& input, const Window& w) {
  return {input.size(0), input.size(1), input.size(2), w.groups, input.size(3) / w.groups, w.kernel_h, w.kernel_w,
          w.stride_h, w.stride_w, w.padding_h, w.padding_w, w.dilation_h, w.dilation_w, w.offset_scale,
          w.remove_center, w.mask_is_logits, 0, 0};
}

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t kernel_h, int64_t kernel_w,
               int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
               int64_t dilation_w, int64_t groups, double offset_scale, bool remove_center, bool mask_is_logits) {
  const Window window = {kernel_h,   kernel_w,   stride_h, stride_w,     padding_h,     padding_w,
                         dilation_h, dilation_w, groups,   offset_scale, remove_center, mask_is_logits};
  check_arguments(input, offset, mask, window);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  dcnv3::Shape shape = shape_of(input, window);
  const Tensor x = prepared(input);
  const Tensor o = pitched(offset, 2, shape.offset_pitch), m = pitched(mask, 1, shape.mask_pitch);
  Tensor output = new_tensor(input, {input.size(0), offset.size(1), offset.size(2), input.size(3)});
  require_launch(dcnv3::forward(dtype_of(input), shape, x.const_data_ptr(), o.const_data_ptr(), m.const_data_ptr(),
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
  check_arguments(input, offset, mask, window);
  check_grad_output(grad_output, input, offset);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor grad_offset = new_tensor(offset, offset.sizes());
  Tensor grad_mask = new_tensor(mask, mask.sizes());
  Tensor sums = zero_sums(input);
  if (grad_output.numel() == 0) {  // no channels, no images: nothing below would write the gradients
    torch::stable::zero_(grad_offset), torch::stable::zero_(grad_mask);
  }
  dcnv3::Shape shape = shape_of(input, window);
  const Tensor g = prepared(grad_output), x = prepared(input);
  const Tensor o = pitched(offset, 2, shape.offset_pitch), m = pitched(mask, 1, shape.mask_pitch);
  void* stream = current_stream(input);
  require_launch(dcnv3::backward(dtype_of(input), shape, g.const_data_ptr(), x.const_data_ptr(), o.const_data_ptr(),
                                 m.const_data_ptr(), sums.mutable_data_ptr(), grad_offset.mutable_data_ptr(),
                                 grad_mask.mutable_data_ptr(), stream));
  return {narrowed(sums, input, stream), grad_offset, grad_mask};
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
