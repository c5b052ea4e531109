// The branch of a DCNv3 layer from which its offsets and mask are computed: depthwise convolution, LayerNorm over the
// channels, GELU. One pass over channels-last images, where ONNX Runtime alone needs five with two changes of layout.
#pragma once

#include <cstdint>

namespace ops_dcnv3 {

struct Features {
  int64_t height, width, channels, out_height, out_width;  // input (batch, height, width, channels)
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
  float epsilon;
  const float *input, *weight, *bias;  // weight (kernel_h * kernel_w, channels)
  const float *scale, *shift;          // of the LayerNorm
  float* output;                       // (batch, out_height, out_width, channels)
};

// Compute the rows [begin, end) of batch * out_height.
using FeatureRows = void(const Features&, int64_t begin, int64_t end);
FeatureRows portable_features, avx2_features, avx512_features;

}  // namespace ops_dcnv3
