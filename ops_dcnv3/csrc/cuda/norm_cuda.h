// LayerNorm and what surrounds it in a network, as the rest of the project sees it. No CUDA or torch headers.
#pragma once

#include <cstdint>

#include "dcnv3_cuda.h"

namespace dcnv3 {
namespace norm {

// What is computed for every row of channels, LN(x) = (x - mean) / sqrt(variance + eps):
//   kPlain: out = LN(x) * weight + bias
//   kGelu:  out = gelu(LN(x + extra) * weight + bias)                       extra: the bias of the layer before
//   kPost:  out = residual + keep * extra * (LN(x) * weight + bias)         extra: the layer scale
//   kPre:   sum = residual + keep * extra * x, out = LN(sum) * weight + bias
enum class Form { kPlain, kGelu, kPost, kPre };
constexpr int kForms = 4;

// Contiguous tensors on 16-byte boundaries. Without data: absent, a layer scale of 1 or a bias of 0.
struct Source {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};
struct Target {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};

struct Shape {
  int64_t rows, channels, rows_per_image;
};
constexpr int64_t kMaxChannels = 4096;
constexpr int64_t kMaxRows = int64_t{1} << 30;

struct Forward {
  Source x, residual, weight, bias, extra, keep;  // keep: a number for every image
  Target out, sum;
  float* stats = nullptr;  // mean and 1 / standard deviation of every row, (2, rows); not written if absent
  float eps = 0;
};

struct Backward {
  Source grad, grad_sum;                    // of out, and of sum if anything else reads it
  Source source;                            // what was normalised, without the bias of kGelu: x, or for kPre sum
  Source branch;                            // x of kPre, if there is a layer scale
  Source weight, bias, extra, keep;
  const float* stats = nullptr;
  Target grad_x, grad_residual;             // the latter of kPre; either may be absent
  Target grad_weight, grad_bias, grad_extra;
  float* partial = nullptr;  // (backward_blocks(), 3, channels); absent: no gradients of parameters
};

// `stream` is a cudaStream_t of the current device. Both return nullptr, or in words why nothing was launched.
const char* forward(Form form, const Shape& shape, const Forward& tensors, void* stream);
const char* backward(Form form, const Shape& shape, const Backward& tensors, void* stream);

// How many blocks backward() uses on the current device.
int64_t backward_blocks(Form form, const Shape& shape);

}  // namespace norm
}  // namespace dcnv3
