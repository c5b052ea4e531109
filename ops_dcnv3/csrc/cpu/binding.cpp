// The CPU kernels as torch operators, through the stable ABI: one binary serves every torch from 2.10 on.
// The schemas are defined in ops_dcnv3/schema.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "../arguments.h"
#include "../tensors.h"
#include "types.h"

using namespace ops_dcnv3;

namespace {

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: fail("ops_dcnv3: expected float32, float64, bfloat16 or float16");
  }
}

// A tensor (N, H, W, C) whose pixels follow each other at one stride, copied only if it is not one already. Parts of a
// wider tensor, such as the two halves of a merged projection, pass without a copy.
struct Pixels {
  Tensor tensor;
  int64_t stride;

  explicit Pixels(const Tensor& t) : tensor(t), stride(t.stride(2)) {
    if (!has_regular_pixels(t)) {
      tensor = dense(t);
      stride = t.size(3);
    }
  }
  const void* data() const { return tensor.const_data_ptr(); }
};

// Where the points of a kernel sit, column by column, for the last fields of `Problem`.
struct Taps {
  std::vector<int32_t> x, y;
  std::vector<double> fraction_x, fraction_y;

  Taps(int64_t kernel_h, int64_t kernel_w, int64_t dilation_h, int64_t dilation_w, double scale, bool remove_center) {
    const size_t points = size_t(kernel_h * kernel_w);
    x.reserve(points), y.reserve(points), fraction_x.reserve(points), fraction_y.reserve(points);
    for (int64_t i = 0; i < kernel_w; ++i) {
      for (int64_t j = 0; j < kernel_h; ++j) {
        if (remove_center && i == kernel_w / 2 && j == kernel_h / 2) continue;
        add(i, kernel_w, dilation_w, scale, x, fraction_x);
        add(j, kernel_h, dilation_h, scale, y, fraction_y);
      }
    }
  }

 private:
  // On one axis: centre - centre * scale + index * dilation * scale.
  static void add(int64_t index, int64_t kernel, int64_t dilation, double scale, std::vector<int32_t>& whole,
                  std::vector<double>& fraction) {
    const double centre = double(dilation * (kernel - 1) / 2);
    const double position = centre - centre * scale + double(index * dilation) * scale;
    const double floor = std::floor(position);
    whole.push_back(int32_t(floor));
    fraction.push_back(position - floor);
  }
};

struct Call {
  Problem problem;
  Taps taps;

  Call(const Pixels& input, const Pixels& offset, const Pixels& mask, const Window& w)
      : taps(w.kernel_h, w.kernel_w, w.dilation_h, w.dilation_w, w.offset_scale, w.remove_center) {
    const Tensor& t = input.tensor;
    problem = {t.size(0), t.size(1), t.size(2), w.groups, t.size(3) / w.groups,
               mask.tensor.size(1), mask.tensor.size(2), int64_t(taps.x.size()),
               w.stride_h, w.stride_w, w.padding_h, w.padding_w,
               input.stride, offset.stride, mask.stride, w.offset_scale, w.mask_is_logits,
               taps.x.data(), taps.y.data(), taps.fraction_x.data(), taps.fraction_y.data()};
    constexpr int64_t limit = int64_t(1) << 30;
    require(problem.height * problem.width <= limit && problem.out_height * w.stride_h + w.padding_h <= limit &&
                        problem.out_width * w.stride_w + w.padding_w <= limit,
                    "ops_dcnv3: an image of more than 2^30 pixels; split it into parts");
  }
};

// Memory for the tables of one thread, on a cache line.
struct FreeScratch {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};
using Scratch = std::unique_ptr<void, FreeScratch>;
Scratch new_scratch(int64_t bytes) { return Scratch(::operator new(size_t(bytes), std::align_val_t(64))); }

int64_t at_least_one(int64_t value) { return value > 1 ? value : 1; }

// A thread is worth waking for about a thousand units (one pixel of one group).
constexpr int64_t kUnitsPerThread = 1024;

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t kernel_h, int64_t kernel_w,
               int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
               int64_t dilation_w, int64_t groups, double offset_scale, bool remove_center, bool mask_is_logits) {
  const Window window = {kernel_h,   kernel_w, stride_h,     stride_w,      padding_h,     padding_w,
                         dilation_h, dilation_w, groups, offset_scale, remove_center, mask_is_logits};
  check_arguments(input, offset, mask, window);
  const Pixels x(input), o(offset), m(mask);
  Tensor output = new_tensor(input, {input.size(0), offset.size(1), offset.size(2), input.size(3)});
  if (output.numel() == 0) return output;
  const Call call(x, o, m, window);
  const Problem& p = call.problem;
  const DType dtype = dtype_of(input);
  const Kernels& kernels = chosen_kernels();
  const ForwardTensors tensors = {x.data(), o.data(), m.data(), output.mutable_data_ptr()};
  const int64_t bytes = kernels.scratch_bytes(dtype, p, false);
  torch::stable::parallel_for(0, p.batch * p.out_height * p.out_width, at_least_one(kUnitsPerThread / p.groups),
                              [&](int64_t begin, int64_t end) {
                                const Scratch scratch = new_scratch(bytes);
                                kernels.forward(dtype, p, tensors, begin, end, scratch.get());
                              });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                            const Tensor& mask, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                                            int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
                                            int64_t dilation_w, int64_t groups, double offset_scale, bool remove_center,
                                            bool mask_is_logits) {
  const Window window = {kernel_h,   kernel_w, stride_h,     stride_w,      padding_h,     padding_w,
                         dilation_h, dilation_w, groups, offset_scale, remove_center, mask_is_logits};
  check_arguments(input, offset, mask, window);
  check_grad_output(grad_output, input, offset);
  const Pixels x(input), o(offset), m(mask);
  const Tensor grad = dense(grad_output);
  Tensor grad_input = new_tensor(input, input.sizes());
  Tensor grad_offset = new_tensor(offset, offset.sizes());
  Tensor grad_mask = new_tensor(mask, mask.sizes());
  if (grad.numel() == 0) {
    torch::stable::zero_(grad_input), torch::stable::zero_(grad_offset), torch::stable::zero_(grad_mask);
    return {grad_input, grad_offset, grad_mask};
  }
  const Call call(x, o, m, window);
  const Problem& p = call.problem;
  const DType dtype = dtype_of(input);
  const Kernels& kernels = chosen_kernels();
  const BackwardTensors tensors = {x.data(), o.data(), m.data(), grad.const_data_ptr(),
                                              grad_input.mutable_data_ptr(), grad_offset.mutable_data_ptr(),
                                              grad_mask.mutable_data_ptr()};
  const int64_t bytes = kernels.scratch_bytes(dtype, p, true);
  torch::stable::parallel_for(0, p.batch * p.groups, at_least_one(kUnitsPerThread / (p.out_height * p.out_width)),
                              [&](int64_t begin, int64_t end) {
                                const Scratch scratch = new_scratch(bytes);
                                kernels.backward(dtype, p, tensors, begin, end, scratch.get());
                              });
  return {grad_input, grad_offset, grad_mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
