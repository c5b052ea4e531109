// DCNv3 on CUDA as the rest of the project sees it: sizes, element types and three functions. No CUDA or torch headers.
#pragma once

#include <cstdint>

namespace dcnv3 {

enum class Dtype { kFloat16, kBFloat16, kFloat32, kFloat64 };

// Sizes of one call. Tensors are channels last: input (batch, height, width, groups * group_channels), offset
// (batch, out_height, out_width, groups * points * 2), mask (..., groups * points), output (..., groups *
// group_channels), and their gradients. All are contiguous and begin on 16-byte boundaries, but for offset and mask: what
// follows a pixel's numbers may be others' (a pitch; even for offset, whose pairs lie on boundaries of their size).
struct Shape {
  int64_t batch, height, width, groups, group_channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  double offset_scale;
  bool remove_center, mask_is_logits;
  int64_t offset_pitch = 0, mask_pitch = 0;  // from a pixel to the next, in elements; 0: contiguous

  int64_t out_height() const { return (height + 2 * padding_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int64_t out_width() const { return (width + 2 * padding_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
  int64_t points() const { return kernel_h * kernel_w - (remove_center ? 1 : 0); }
  int64_t channels() const { return groups * group_channels; }
};

constexpr int64_t kMaxThreads = 0x7fffff00;  // per launch, so that thread indices fit in 31 bits

// `stream` is a cudaStream_t. All return nullptr, or in words why nothing was launched.
// `max_threads` is only ever lowered by tests, which see the work cut into several launches that way.
const char* forward(Dtype dtype, const Shape& shape, const void* input, const void* offset, const void* mask,
                    void* output, void* stream, int64_t max_threads = kMaxThreads);

// Adds to grad_input, which is fp32 for the half types and begins as zero; writes grad_offset and grad_mask.
const char* backward(Dtype dtype, const Shape& shape, const void* grad_output, const void* input, const void* offset,
                     const void* mask, void* grad_input, void* grad_offset, void* grad_mask, void* stream,
                     int64_t max_threads = kMaxThreads);

// Converts the fp32 grad_input of a half type to that type.
const char* narrow(Dtype dtype, const void* wide, void* result, int64_t count, void* stream);

}  // namespace dcnv3
