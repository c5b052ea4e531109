// CUDA's vector and half types and the arithmetic that the kernels use, for the CPU. Part of cuda_emulation.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 operator+(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
inline float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

namespace emulation {

template <typename T>
uint64_t to_bits(T x) {
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

}  // namespace emulation

// ---- arithmetic -----------------------------------------------------------------------------------------------------

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
using std::exp2, std::fma, std::fmax, std::fmin;  // for float and double, as in CUDA
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __uint_as_float(uint32_t x) { return emulation::from_bits<float>(x); }
inline uint32_t __float_as_uint(float x) { return static_cast<uint32_t>(emulation::to_bits(x)); }
inline double __hiloint2double(int high, int low) {
  return emulation::from_bits<double>(uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low));
}
// Conversions saturate, and NaN becomes 0 (fp32) or INT_MIN (fp64), as on the GPU.
inline int __double2int_rd(double x) {
  if (std::isnan(x)) return INT32_MIN;
  return static_cast<int>(std::floor(std::clamp(x, double{INT32_MIN}, double{INT32_MAX})));
}
inline int __float2int_rd(float x) { return std::isnan(x) ? 0 : __double2int_rd(x); }

// ---- half types: storage with conversions, rounding to nearest even -------------------------------------------------

struct __half {
  uint16_t bits = 0;
  __half() = default;
  explicit __half(int zero) : bits(static_cast<uint16_t>(zero)) {}
};
struct alignas(4) __half2 {
  __half x, y;
};
struct __nv_bfloat16 {
  uint16_t bits = 0;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(int zero) : bits(static_cast<uint16_t>(zero)) {}
};

inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
  const float sign = h.bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24));
}
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline __half __float2half_rn(float x) {
  __half h;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) {
    h.bits = 0x7fff;
  } else if (size >= 65520.f) {
    h.bits = sign | 0x7c00;
  } else {
    // One unit in the last place is 2^(e - 10), but never below 2^-24. nearbyint rounds to even; a carry moves into
    // the exponent.
    const int e = size < std::ldexp(1.f, -14) ? -14 : std::ilogb(size);
    const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - e)));
    h.bits = sign | static_cast<uint16_t>(units + (e + 14) * 1024);
  }
  return h;
}
inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float(uint32_t{h.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  __nv_bfloat16 h;
  const uint32_t bits = __float_as_uint(x);
  h.bits = std::isnan(x) ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  return h;
}
