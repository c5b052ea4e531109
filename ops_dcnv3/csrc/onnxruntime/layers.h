// What surrounds the operator in a network and takes ONNX Runtime longer than it need: the branch from which offsets and
// mask are predicted, LayerNorm, GELU. All in float32, channels last.
#pragma once

#include <cstdint>

namespace ops_dcnv3 {

// LayerNorm over the channels of each row; `input` and `output` may be the same memory.
struct Normalisation {
  int64_t channels;
  float epsilon;
  const float *input, *scale, *shift;
  float* output;
};

// Depthwise convolution, LayerNorm over the channels, GELU: one pass over channels-last images, where ONNX Runtime alone
// needs five with two changes of layout.
struct Features {
  int64_t height, width, channels, out_height, out_width;  // input (batch, height, width, channels)
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
  float epsilon;
  const float *input, *weight, *bias;  // weight (kernel_h * kernel_w, channels)
  const float *scale, *shift;          // of the LayerNorm
  float* output;                       // (batch, out_height, out_width, channels)
};

// The layers for one instruction set, each for the rows [begin, end): rows of numbers, of pixels' channels, of pixels
// (batch * out_height).
struct Layers {
  void (*gelu)(const float* input, float* output, int64_t begin, int64_t end);
  void (*normalise)(const Normalisation&, int64_t begin, int64_t end);
  void (*features)(const Features&, int64_t begin, int64_t end);
};

const Layers& portable_layers();
const Layers& avx2_layers();
const Layers& avx512_layers();

}  // namespace ops_dcnv3
