// Node type "DCNv3": the operator, forward only. Inputs: input (N, H, W, G*D), offset (N, Ho, Wo, G*P*2), mask
// (N, Ho, Wo, G*P); output (N, Ho, Wo, G*D). Attributes are the arguments of the torch operator of functional.py.
#pragma once

#include <atomic>
#include <new>

#include "../cpu/capability.h"
#include "../cpu_taps.h"
#include "../cpu_types.h"
#include "operator.h"

namespace ops_dcnv3 {

// Memory for the tables of one thread, on a cache line, kept from call to call. Null if there is none left.
inline char* scratch_memory(int64_t bytes) {
  constexpr int64_t line = 64;
  thread_local std::unique_ptr<char[]> memory;
  thread_local int64_t size = 0;
  if (size < bytes + line) {
    memory.reset(new (std::nothrow) char[size_t(bytes + line)]);
    size = memory != nullptr ? bytes + line : 0;
  }
  if (memory == nullptr) return nullptr;
  return memory.get() + (line - reinterpret_cast<uintptr_t>(memory.get()) % line) % line;
}

template <DType dtype>
class Dcnv3Node {
 public:
  static constexpr const char* type = "DCNv3";
  static constexpr size_t inputs = 3;

  explicit Dcnv3Node(const Attributes& a)
      : kernel_h_(a.integer("kernel_h", 1)), kernel_w_(a.integer("kernel_w", 1)),
        stride_h_(a.integer("stride_h", 1)), stride_w_(a.integer("stride_w", 1)),
        padding_h_(a.integer("padding_h", 0)), padding_w_(a.integer("padding_w", 0)),
        dilation_h_(a.integer("dilation_h", 1)), dilation_w_(a.integer("dilation_w", 1)),
        groups_(a.integer("groups", 1)), mask_is_logits_(a.integer("mask_is_logits", 0) != 0),
        remove_center_(a.integer("remove_center", 0) != 0), offset_scale_(a.number("offset_scale")),
        taps_(kernel_h_, kernel_w_, dilation_h_, dilation_w_, offset_scale_, remove_center_) {
    if (remove_center_ && !(kernel_h_ % 2 && kernel_w_ % 2)) throw Invalid("remove_center needs odd kernel sizes");
    if (taps_.x.empty()) throw Invalid("remove_center with a 1x1 kernel leaves no point to sample");
  }

  void compute(const Execution& execution) const {
    const Tensor input = execution.input(0, "input", 4, "channels last");
    const Tensor offset = execution.input(1, "offset", 4, "channels last");
    const Tensor mask = execution.input(2, "mask", 4, "channels last");
    const int64_t points = int64_t(taps_.x.size());
    check_shapes(input, offset, mask, points);
    void* output = execution.output({input[0], offset[1], offset[2], input[3]});
    if (input[0] == 0 || input[3] == 0) return;

    const Problem problem = {input[0], input[1], input[2], groups_, input[3] / groups_,
                             offset[1], offset[2], points,
                             stride_h_, stride_w_, padding_h_, padding_w_,
                             input[3], offset[3], mask[3], offset_scale_, mask_is_logits_,
                             taps_.x.data(), taps_.y.data(), taps_.fraction_x.data(), taps_.fraction_y.data()};
    const ForwardTensors tensors = {input.data, offset.data, mask.data, output};
    const Kernels& kernels = chosen_kernels();
    const int64_t bytes = kernels.scratch_bytes(dtype, problem, false);
    std::atomic<bool> out_of_memory{false};
    // A thread is worth waking for about a thousand units (one pixel of one group).
    const int64_t rows = input[0] * offset[1], least = 1024 / (offset[2] * groups_) + 1;
    execution.parallel(rows, least, [&](int64_t begin, int64_t end) {
      char* scratch = scratch_memory(bytes);
      if (scratch == nullptr)
        out_of_memory = true;
      else
        kernels.forward(dtype, problem, tensors, begin * offset[2], end * offset[2], scratch);
    });
    if (out_of_memory) throw std::bad_alloc();
  }

 private:
  int64_t kernel_h_, kernel_w_, stride_h_, stride_w_, padding_h_, padding_w_, dilation_h_, dilation_w_, groups_;
  bool mask_is_logits_, remove_center_;
  double offset_scale_;
  Taps taps_;

  static int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  }

  void check_shapes(const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t points) const {
    if (input[3] % groups_)
      throw Invalid("groups must divide the channels; there are " + std::to_string(groups_) +
                    " groups and input is " + text(input.shape));
    const int64_t out_h = output_size(input[1], kernel_h_, stride_h_, padding_h_, dilation_h_);
    const int64_t out_w = output_size(input[2], kernel_w_, stride_w_, padding_w_, dilation_w_);
    if (input[1] < 1 || input[2] < 1 || out_h < 1 || out_w < 1)
      throw Invalid("input " + text(input.shape) + " is too small for the kernel; enlarge the image");
    const std::vector<int64_t> offset_shape = {input[0], out_h, out_w, groups_ * points * 2};
    const std::vector<int64_t> mask_shape = {input[0], out_h, out_w, groups_ * points};
    if (offset.shape != offset_shape)
      throw Invalid("offset must have shape " + text(offset_shape) + " for input " + text(input.shape) +
                    "; it has " + text(offset.shape));
    if (mask.shape != mask_shape)
      throw Invalid("mask must have shape " + text(mask_shape) + " for input " + text(input.shape) + "; it has " +
                    text(mask.shape));
    constexpr int64_t limit = int64_t(1) << 30;
    if (input[1] > limit / input[2] || out_h * stride_h_ + padding_h_ > limit ||
        out_w * stride_w_ + padding_w_ > limit)
      throw Invalid("an image of more than 2^30 pixels: input " + text(input.shape) + "; split it into parts");
  }
};

}  // namespace ops_dcnv3
