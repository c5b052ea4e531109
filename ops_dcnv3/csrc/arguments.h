// The scalar arguments of the operator, and what both bindings check before a kernel reads memory: `torch.ops.ops_dcnv3`
// can be called with anything, not only through ops_dcnv3.dcnv3, whose messages say more.
#pragma once

#include <cstdint>

#include "tensors.h"

namespace ops_dcnv3 {

struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  double offset_scale;
  bool remove_center, mask_is_logits;

  int64_t points() const { return kernel_h * kernel_w - (remove_center ? 1 : 0); }
  static int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
    return span < 0 ? 0 : span / stride + 1;
  }
};

inline bool is_between(int64_t low, int64_t value) { return low <= value && value < (int64_t{1} << 30); }

inline bool same_place(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline bool has_shape(const Tensor& t, int64_t n, int64_t h, int64_t w, int64_t c) {
  return t.dim() == 4 && t.size(0) == n && t.size(1) == h && t.size(2) == w && t.size(3) == c;
}

// Whether the pixels of (N, H, W, C) follow each other at the stride of dimension 2, each with its C numbers in a row.
inline bool has_regular_pixels(const Tensor& t) {
  const int64_t stride = t.stride(2);
  return (t.size(3) == 1 || t.stride(3) == 1) && stride >= t.size(3) && t.stride(1) == t.size(2) * stride &&
         (t.size(0) == 1 || t.stride(0) == t.size(1) * t.size(2) * stride) &&
         // The stride of a dimension of size one says nothing.
         t.size(2) > 1 && t.size(1) > 1 && t.size(0) > 0;
}

inline void check_arguments(const Tensor& input, const Tensor& offset, const Tensor& mask, const Window& w) {
  require(is_between(1, w.kernel_h) && is_between(1, w.kernel_w) && is_between(1, w.stride_h) &&
                      is_between(1, w.stride_w) && is_between(0, w.padding_h) && is_between(0, w.padding_w) &&
                      is_between(1, w.dilation_h) && is_between(1, w.dilation_w) && is_between(1, w.groups),
                  "ops_dcnv3: kernel, stride, dilation and groups must be in 1 to 2^30, padding in 0 to 2^30");
  require(!w.remove_center || (w.kernel_h % 2 && w.kernel_w % 2 && w.points() > 0),
                  "ops_dcnv3: remove_center needs odd kernel sizes, and more than one point");
  require(offset.scalar_type() == input.scalar_type() && mask.scalar_type() == input.scalar_type(),
                  "ops_dcnv3: input, offset and mask must have the same dtype");
  require(same_place(input, offset) && same_place(input, mask),
                  "ops_dcnv3: input, offset and mask must be on the same device");
  require(input.dim() == 4 && input.size(1) > 0 && input.size(2) > 0 && input.size(3) % w.groups == 0,
          "ops_dcnv3: input must have shape (N, H, W, G*D), H and W at least 1");
  const int64_t out_h = Window::out_size(input.size(1), w.kernel_h, w.stride_h, w.padding_h, w.dilation_h);
  const int64_t out_w = Window::out_size(input.size(2), w.kernel_w, w.stride_w, w.padding_w, w.dilation_w);
  const int64_t points = w.groups * w.points();
  if (!has_shape(offset, input.size(0), out_h, out_w, points * 2) ||
      !has_shape(mask, input.size(0), out_h, out_w, points)) {
    const std::string start = "(" + std::to_string(input.size(0)) + ", " + std::to_string(out_h) + ", " +
                              std::to_string(out_w) + ", ";
    fail("ops_dcnv3: offset must have shape " + start + std::to_string(points * 2) + ") and mask " + start +
         std::to_string(points) + ")");
  }
}

inline void check_grad_output(const Tensor& grad, const Tensor& input, const Tensor& offset) {
  require(grad.scalar_type() == input.scalar_type() && same_place(grad, input) &&
                      has_shape(grad, input.size(0), offset.size(1), offset.size(2), input.size(3)),
                  "ops_dcnv3: grad_output must have the output's shape (N, Ho, Wo, G*D), dtype and device");
}

}  // namespace ops_dcnv3
