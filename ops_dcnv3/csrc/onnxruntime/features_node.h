// Node type "DCNv3Features": see features.h. Inputs: input (N, H, W, C), weight (Kh, Kw, C), bias (C), scale (C),
// shift (C); output (N, Ho, Wo, C). Attributes: stride_h, stride_w, padding_h, padding_w, epsilon.
#pragma once

#include "../cpu/capability.h"
#include "features.h"
#include "operator.h"

namespace ops_dcnv3 {

inline FeatureRows& chosen_features() {
  const Kernels* kernels = &chosen_kernels();
#if defined(__x86_64__) || defined(_M_X64)
  if (kernels == &avx512_kernels()) return avx512_features;
  if (kernels == &avx2_kernels()) return avx2_features;
#endif
  return portable_features;
}

class FeaturesNode {
 public:
  static constexpr const char* type = "DCNv3Features";
  static constexpr size_t inputs = 5;

  explicit FeaturesNode(const Attributes& a)
      : stride_h_(a.integer("stride_h", 1)), stride_w_(a.integer("stride_w", 1)),
        padding_h_(a.integer("padding_h", 0)), padding_w_(a.integer("padding_w", 0)), epsilon_(a.number("epsilon")) {}

  void compute(const Execution& execution) const {
    const Tensor input = execution.input(0, "input", 4, "channels last");
    const Tensor weight = execution.input(1, "weight", 3, "(Kh, Kw, C)");
    const int64_t channels = input[3];
    if (weight[2] != channels)
      throw Invalid("weight must have " + std::to_string(channels) + " channels for input " + text(input.shape) +
                    "; it has shape " + text(weight.shape));
    const float* vectors[3];
    const char* names[] = {"bias", "scale", "shift"};
    for (size_t i = 0; i < 3; ++i) {
      const Tensor vector = execution.input(2 + i, names[i], 1, "(C)");
      if (vector[0] != channels)
        throw Invalid(std::string(names[i]) + " must have shape (" + std::to_string(channels) + ") for input " +
                      text(input.shape) + "; it has " + text(vector.shape));
      vectors[i] = static_cast<const float*>(vector.data);
    }
    const int64_t room_h = input[1] + 2 * padding_h_ - weight[0], room_w = input[2] + 2 * padding_w_ - weight[1];
    if (room_h < 0 || room_w < 0 || input[1] < 1 || input[2] < 1)
      throw Invalid("input " + text(input.shape) + " is too small for the kernel; enlarge the image");
    const int64_t out_h = room_h / stride_h_ + 1, out_w = room_w / stride_w_ + 1;
    void* output = execution.output({input[0], out_h, out_w, channels});
    if (input[0] == 0 || channels == 0) return;

    const Features features = {input[1], input[2], channels, out_h, out_w,
                               weight[0], weight[1], stride_h_, stride_w_, padding_h_, padding_w_, epsilon_,
                               static_cast<const float*>(input.data), static_cast<const float*>(weight.data),
                               vectors[0], vectors[1], vectors[2], static_cast<float*>(output)};
    FeatureRows& rows = chosen_features();
    // A thread is worth waking for about 30 microseconds.
    execution.parallel(input[0] * out_h, 32768 / (out_w * channels) + 1,
                       [&](int64_t begin, int64_t end) { rows(features, begin, end); });
  }

 private:
  int64_t stride_h_, stride_w_, padding_h_, padding_w_;
  float epsilon_;
};

}  // namespace ops_dcnv3
