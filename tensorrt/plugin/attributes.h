// The attributes of a DCNv3 node, and the sizes of a call: what the plugin knows without TensorRT or CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "dcnv3_cuda.h"

namespace dcnv3 {

// Named as the arguments of the operator; the defaults are the operator's.
struct Attributes {
  int32_t kernel_h = 3, kernel_w = 3, stride_h = 1, stride_w = 1, padding_h = 1, padding_w = 1;
  int32_t dilation_h = 1, dilation_w = 1, groups = 1, remove_center = 0, mask_is_logits = 0;
  float offset_scale = 1;
};

struct IntegerAttribute {
  const char* name;
  int32_t Attributes::*value;
};
constexpr IntegerAttribute kIntegers[] = {
    {"kernel_h", &Attributes::kernel_h},           {"kernel_w", &Attributes::kernel_w},
    {"stride_h", &Attributes::stride_h},           {"stride_w", &Attributes::stride_w},
    {"padding_h", &Attributes::padding_h},         {"padding_w", &Attributes::padding_w},
    {"dilation_h", &Attributes::dilation_h},       {"dilation_w", &Attributes::dilation_w},
    {"groups", &Attributes::groups},               {"remove_center", &Attributes::remove_center},
    {"mask_is_logits", &Attributes::mask_is_logits},
};
constexpr int32_t kIntegerCount = sizeof(kIntegers) / sizeof(kIntegers[0]);
constexpr const char* kOffsetScale = "offset_scale";

// Sets the attribute of that name. False if there is none, or none of that kind.
inline bool set(Attributes& attributes, const char* name, int64_t value) {
  for (const IntegerAttribute& integer : kIntegers) {
    if (std::strcmp(integer.name, name) == 0 && value == static_cast<int32_t>(value)) {
      attributes.*integer.value = static_cast<int32_t>(value);
      return true;
    }
  }
  return false;
}
inline bool set(Attributes& attributes, const char* name, double value) {
  if (std::strcmp(name, kOffsetScale) != 0) return false;
  attributes.offset_scale = static_cast<float>(value);
  return true;
}

// What is wrong with the attributes, or nullptr.
inline const char* check(const Attributes& a) {
  if (a.kernel_h < 1 || a.kernel_w < 1 || a.stride_h < 1 || a.stride_w < 1 || a.dilation_h < 1 || a.dilation_w < 1 ||
      a.groups < 1) {
    return "DCNv3: kernel, stride, dilation and groups must be at least 1";
  }
  if (a.padding_h < 0 || a.padding_w < 0) return "DCNv3: padding must not be negative";
  if (a.remove_center && (a.kernel_h % 2 == 0 || a.kernel_w % 2 == 0 || a.kernel_h * a.kernel_w == 1)) {
    return "DCNv3: remove_center needs an odd kernel larger than 1x1";
  }
  return nullptr;
}

// The sizes of a call on an input (N, H, W, C).
inline Shape shape_of(const Attributes& a, const int64_t* input) {
  return {input[0],     input[1],     input[2],     a.groups,       input[3] / a.groups, a.kernel_h,
          a.kernel_w,   a.stride_h,   a.stride_w,   a.padding_h,    a.padding_w,         a.dilation_h,
          a.dilation_w, a.offset_scale, a.remove_center != 0, a.mask_is_logits != 0};
}

// Which of the three inputs, each of four dimensions, does not fit the others; nullptr if all do.
inline const char* check(const Attributes& a, const int64_t* input, const int64_t* offset, const int64_t* mask) {
  if (input[3] % a.groups != 0) return "DCNv3: groups must divide the channels";
  const Shape s = shape_of(a, input);
  const int64_t expected[3] = {s.batch, s.out_height(), s.out_width()};
  for (int i = 0; i < 3; ++i) {
    if (offset[i] != expected[i]) return "DCNv3: offset does not have the output's batch, height and width";
    if (mask[i] != expected[i]) return "DCNv3: mask does not have the output's batch, height and width";
  }
  if (offset[3] != s.groups * s.points() * 2) return "DCNv3: offset must have groups * points * 2 channels";
  if (mask[3] != s.groups * s.points()) return "DCNv3: mask must have groups * points channels";
  return nullptr;
}

}  // namespace dcnv3
