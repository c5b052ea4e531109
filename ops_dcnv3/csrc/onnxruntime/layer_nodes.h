// Node types of layers.h, float32.
//   "DCNv3Features": input (N, H, W, C), weight (Kh, Kw, C), bias (C), scale (C), shift (C) to (N, Ho, Wo, C);
//   attributes stride_h, stride_w, padding_h, padding_w, epsilon.
//   "LayerNormalization": input (..., C), scale (C), shift (C) to (..., C); attribute epsilon.
//   "Gelu": input to output of the same shape; exact.
#pragma once

#include "../cpu/capability.h"
#include "layers.h"
#include "operator.h"

namespace ops_dcnv3 {

inline const Layers& chosen_layers() {
#if defined(__x86_64__) || defined(_M_X64)
  const Kernels* kernels = &chosen_kernels();
  if (kernels == &avx512_kernels()) return avx512_layers();
  if (kernels == &avx2_kernels()) return avx2_layers();
#endif
  return portable_layers();
}

// A thread is worth waking for about 30 microseconds.
constexpr int64_t kNumbersPerThread = 65536;

// A vector with one number for each of `channels`, the last dimension of `input`.
inline const float* channel_vector(const Execution& execution, size_t index, const char* name, const Tensor& input) {
  const Tensor vector = execution.input(index, name, 1, "(C)");
  if (vector[0] != input.shape.back())
    throw Invalid(std::string(name) + " must have shape (" + std::to_string(input.shape.back()) + ") for input " +
                  text(input.shape) + "; it has " + text(vector.shape));
  return static_cast<const float*>(vector.data);
}

class GeluNode {
 public:
  static constexpr const char* type = "Gelu";
  static constexpr size_t inputs = 1;

  explicit GeluNode(const Attributes&) {}

  void compute(const Execution& execution) const {
    const Tensor input = execution.input(0);
    auto* output = static_cast<float*>(execution.output(input.shape));
    const auto* numbers = static_cast<const float*>(input.data);
    const auto run = chosen_layers().gelu;
    execution.parallel(input.count(), kNumbersPerThread,
                       [&](int64_t begin, int64_t end) { run(numbers, output, begin, end); });
  }
};

class NormalisationNode {
 public:
  static constexpr const char* type = "LayerNormalization";
  static constexpr size_t inputs = 3;

  explicit NormalisationNode(const Attributes& a) : epsilon_(a.number("epsilon")) {}

  void compute(const Execution& execution) const {
    const Tensor input = execution.input(0);
    if (input.shape.empty()) throw Invalid("input must have at least one dimension");
    const float* scale = channel_vector(execution, 1, "scale", input);
    const float* shift = channel_vector(execution, 2, "shift", input);
    auto* output = static_cast<float*>(execution.output(input.shape));
    const int64_t channels = input.shape.back();
    if (input.count() == 0) return;
    const Normalisation norm = {channels, epsilon_, static_cast<const float*>(input.data), scale, shift, output};
    const auto run = chosen_layers().normalise;
    execution.parallel(input.count() / channels, kNumbersPerThread / channels,
                       [&](int64_t begin, int64_t end) { run(norm, begin, end); });
  }

 private:
  float epsilon_;
};

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
    const float* bias = channel_vector(execution, 2, "bias", input);
    const float* scale = channel_vector(execution, 3, "scale", input);
    const float* shift = channel_vector(execution, 4, "shift", input);
    const int64_t room_h = input[1] + 2 * padding_h_ - weight[0], room_w = input[2] + 2 * padding_w_ - weight[1];
    if (room_h < 0 || room_w < 0 || input[1] < 1 || input[2] < 1)
      throw Invalid("input " + text(input.shape) + " is too small for the kernel; enlarge the image");
    const int64_t out_h = room_h / stride_h_ + 1, out_w = room_w / stride_w_ + 1;
    void* output = execution.output({input[0], out_h, out_w, channels});
    if (input[0] == 0 || channels == 0) return;

    const Features features = {input[1], input[2], channels, out_h, out_w,
                               weight[0], weight[1], stride_h_, stride_w_, padding_h_, padding_w_, epsilon_,
                               static_cast<const float*>(input.data), static_cast<const float*>(weight.data),
                               bias, scale, shift, static_cast<float*>(output)};
    const auto run = chosen_layers().features;
    execution.parallel(input[0] * out_h, kNumbersPerThread / (out_w * channels) + 1,
                       [&](int64_t begin, int64_t end) { run(features, begin, end); });
  }

 private:
  int64_t stride_h_, stride_w_, padding_h_, padding_w_;
  float epsilon_;
};

}  // namespace ops_dcnv3
