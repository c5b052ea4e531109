// Plain types shared by the CPU kernels and their binding: the problem, the taps, half-precision scalars.
// No ATen here, so that the kernels can be compiled and checked on their own.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace ops_dcnv3 {

enum class DType { f32, f64, bf16, f16 };

// One call of the operator. Pixel strides are in elements; the channels of a pixel are contiguous.
struct Problem {
  int64_t batch, height, width, groups, depth;  // input (batch, height, width, groups * depth)
  int64_t out_height, out_width, points;        // offset (batch, out_height, out_width, groups * points * 2)
  int64_t stride_h, stride_w, padding_h, padding_w;
  int64_t input_stride, offset_stride, mask_stride;
  double offset_scale;
  bool mask_is_logits;
  // Where tap k sits relative to the pixel (ho * stride_h - padding_h, wo * stride_w - padding_w): a whole part and a
  // fraction in [0, 1). Splitting them keeps fp32 coordinates as exact in the last row of an image as in the first.
  const int32_t *tap_x, *tap_y;
  const double *tap_fraction_x, *tap_fraction_y;
};

struct ForwardTensors {
  const void *input, *offset, *mask;
  void* output;
};

struct BackwardTensors {
  const void *input, *offset, *mask, *grad_output;
  void *grad_input, *grad_offset, *grad_mask;
};

// The kernels of one instruction set. `forward` handles the output pixels [begin, end) of batch * out_height *
// out_width; `backward` the planes [begin, end) of batch * groups, which nobody else writes: the result does not depend
// on the number of threads. `scratch_bytes` says how much 64-byte aligned memory each such call needs.
struct Kernels {
  void (*forward)(DType, const Problem&, const ForwardTensors&, int64_t begin, int64_t end, void* scratch);
  void (*backward)(DType, const Problem&, const BackwardTensors&, int64_t begin, int64_t end, void* scratch);
  int64_t (*scratch_bytes)(DType, const Problem&, bool backward);
};

const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& chosen_kernels();  // capability.cpp

}  // namespace ops_dcnv3
