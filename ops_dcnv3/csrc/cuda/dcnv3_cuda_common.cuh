// What the DCNv3 kernels are built from: element types and their vector access, the sizes of a launch, where the
// sampling points lie, the mask. For nvcc, and for g++ with the tests' emulation of CUDA.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulation.h"  // tests/ops
#endif

#include <cstdint>
#include <type_traits>

namespace dcnv3 {

constexpr int kForwardThreads = 128;
constexpr int kBackwardThreads = 128;

// x / divisor for x < 2^31 in three instructions (multiply-high, add, shift; Granlund and Montgomery 1994).
struct FastDivisor {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  FastDivisor() = default;
  explicit FastDivisor(uint32_t d) : divisor(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t x) const { return (__umulhi(x, multiplier) + x) >> shift; }
};

// What one launch needs to know. A launch covers whole output rows from `first_row` on, few enough that its threads can
// be counted in 31 bits; every address is computed in 64 bits, so tensors may have any size.
template <typename Acc>
struct Problem {
  int height, width, out_height, out_width, groups, group_channels;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  Acc offset_scale;
  bool remove_center, mask_is_logits;
  int64_t offset_pitch, mask_pitch;  // from a pixel to the next, in elements
  int pixel_bytes;     // from a pixel of the input to its right neighbour
  int64_t row_bytes, image_bytes;
  uint32_t first_row;  // of all N * out_height output rows
  uint32_t threads;    // threads with work in this launch
  FastDivisor lanes;   // threads that share one group of one pixel
  FastDivisor by_groups, by_out_width, by_out_height;
};

// ---- element types -------------------------------------------------------------------------------------------------

template <typename T>
struct Accumulator {
  using type = std::conditional_t<sizeof(T) == 8, double, float>;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(double x, double& y) { y = x; }
__device__ __forceinline__ void narrow(float x, __half& y) { y = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

__device__ __forceinline__ int floor_to_int(float x) { return __float2int_rd(x); }
__device__ __forceinline__ int floor_to_int(double x) { return __double2int_rd(x); }

// One 4-byte word holds one float or two half-precision values; a double takes two words.
__device__ __forceinline__ void unpack(const uint32_t* word, float* x, float) { x[0] = __uint_as_float(word[0]); }
__device__ __forceinline__ void unpack(const uint32_t* word, double* x, double) {
  x[0] = __hiloint2double(static_cast<int>(word[1]), static_cast<int>(word[0]));
}
__device__ __forceinline__ void unpack(const uint32_t* word, float* x, __half) {
  __half2 pair;
  *reinterpret_cast<uint32_t*>(&pair) = word[0];
  const float2 wide = __half22float2(pair);
  x[0] = wide.x;
  x[1] = wide.y;
}
__device__ __forceinline__ void unpack(const uint32_t* word, float* x, __nv_bfloat16) {
  x[0] = __uint_as_float(word[0] << 16);
  x[1] = __uint_as_float(word[0] & 0xffff0000u);
}

// V elements in registers, loaded as one access and widened only where they are used.
template <typename T, int V>
struct Pack {
  using Acc = typename Accumulator<T>::type;
  static constexpr int kWords = sizeof(T) * V / 4;
  using W = std::conditional_t<kWords == 1, uint32_t, std::conditional_t<kWords == 2, uint2, uint4>>;
  uint32_t word[kWords] = {};

  __device__ __forceinline__ void load(const void* p) {
    const W w = __ldg(static_cast<const W*>(p));
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = reinterpret_cast<const uint32_t*>(&w)[i];
  }
  __device__ __forceinline__ void widen_to(Acc* x) const {
    constexpr int kPerStep = sizeof(T) == 2 ? 2 : 1;
    constexpr int kWordsPerStep = sizeof(T) == 8 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < V / kPerStep; ++i) unpack(word + i * kWordsPerStep, x + i * kPerStep, T());
  }
};

template <typename T>
struct Pack<T, 1> {
  using Acc = typename Accumulator<T>::type;
  T value = T(0);
  __device__ __forceinline__ void load(const void* p) { value = __ldg(static_cast<const T*>(p)); }
  __device__ __forceinline__ void widen_to(Acc* x) const { x[0] = widen(value); }
};

// Converts and stores V values as one access.
template <int V, typename T, typename Acc>
__device__ __forceinline__ void store(T* p, const Acc* x) {
  struct alignas(sizeof(T) * V) {
    T element[V];
  } packed;
#pragma unroll
  for (int i = 0; i < V; ++i) narrow(x[i], packed.element[i]);
  *reinterpret_cast<decltype(packed)*>(p) = packed;
}

// ---- geometry ------------------------------------------------------------------------------------------------------

// Where a thread works.
struct Site {
  uint32_t image, row, column, group, lane;
  int64_t pixel, unit;  // counted over the whole output; a unit is one group of a pixel

  template <typename Acc>
  __device__ __forceinline__ Site(const Problem<Acc>& problem, uint32_t thread) {
    const uint32_t local = problem.lanes.quotient(thread);
    lane = thread - local * problem.lanes.divisor;
    const uint32_t local_pixel = problem.by_groups.quotient(local);
    group = local - local_pixel * problem.by_groups.divisor;
    const uint32_t local_row = problem.by_out_width.quotient(local_pixel);
    column = local_pixel - local_row * problem.by_out_width.divisor;
    const uint32_t global_row = problem.first_row + local_row;
    image = problem.by_out_height.quotient(global_row);
    row = global_row - image * problem.by_out_height.divisor;
    pixel = int64_t{global_row} * problem.out_width + column;
    unit = pixel * problem.groups + group;
  }
};

// One coordinate of a sampling point: its lower neighbour, the way to the upper one, and which of the two exist.
template <typename Acc>
struct Coordinate {
  int low;
  Acc fraction;
  bool low_inside, high_inside;

  __device__ __forceinline__ Coordinate(Acc x, int size) {
    // A point that does not count (x <= -1, x >= size, NaN) moves to where neither neighbour exists, which also keeps
    // huge values away from the conversion to int.
    const bool above = x > Acc(-1);
    x = fmin(fmax(x, Acc(-2)), Acc(size));
    low = floor_to_int(x);
    fraction = x - Acc(low);
    low_inside = static_cast<unsigned>(low) < static_cast<unsigned>(size);
    high_inside = above && static_cast<unsigned>(low + 1) < static_cast<unsigned>(size);
  }
};

// Where the points of one group at one output pixel lie. Points > 0 says at compile time that the window is 3x3.
template <int Points, typename Acc>
struct Sampler {
  struct Point {
    Coordinate<Acc> h, w;
  };
  const Problem<Acc>& problem;
  int height;
  Acc first_h, first_w;  // what point (0, 0) samples with a zero offset

  __device__ __forceinline__ Sampler(const Problem<Acc>& problem, uint32_t row, uint32_t column, int height)
      : problem(problem), height(height) {
    first_h = first_tap(row, problem.stride_h, problem.padding_h, problem.kernel_h, problem.dilation_h);
    first_w = first_tap(column, problem.stride_w, problem.padding_w, problem.kernel_w, problem.dilation_w);
  }
  // Window and offsets are both scaled around the window's centre.
  __device__ __forceinline__ Acc first_tap(uint32_t out, int stride, int padding, int kernel, int dilation) const {
    const int center = dilation * ((Points ? 3 : kernel) - 1) / 2;
    return Acc(static_cast<int>(out) * stride - padding + center) - Acc(center) * problem.offset_scale;
  }
  // The point of the window's column i, row j, with its offset (x, y).
  template <typename T>
  __device__ __forceinline__ Point operator()(const Pack<T, 2>& offset, int i, int j) const {
    Acc xy[2];
    offset.widen_to(xy);
    const Acc scale = problem.offset_scale;
    const Acc tap_h = fma(Acc(j * problem.dilation_h), scale, first_h);
    const Acc tap_w = fma(Acc(i * problem.dilation_w), scale, first_w);
    return {Coordinate<Acc>(fma(xy[1], scale, tap_h), height),
            Coordinate<Acc>(fma(xy[0], scale, tap_w), problem.width)};
  }
};

// Calls visit(k, i, j) for the points in the paper's order: over columns i, within them rows j, the centre left out on
// request. Points > 0 says at compile time that the window is 3x3.
template <int Points, typename Acc, typename Visit>
__device__ __forceinline__ void for_each_point(const Problem<Acc>& problem, Visit visit) {
  const int kernel_h = Points ? 3 : problem.kernel_h;
  const int kernel_w = Points ? 3 : problem.kernel_w;
  const bool remove_center = Points ? Points == 8 : problem.remove_center;
  int k = 0;
#pragma unroll(Points ? 3 : 1)
  for (int i = 0; i < kernel_w; ++i) {
#pragma unroll(Points ? 3 : 1)
    for (int j = 0; j < kernel_h; ++j) {
      if (remove_center && i == kernel_w / 2 && j == kernel_h / 2) continue;
      visit(k, i, j);
      ++k;
    }
  }
}

template <int Points, typename Acc>
__device__ __forceinline__ int point_count(const Problem<Acc>& problem) {
  return Points ? Points : problem.kernel_h * problem.kernel_w - (problem.remove_center ? 1 : 0);
}

// The weight of each point from its mask value: the value itself, or for logits 2^(value - largest) with the values in
// units of log 2, which normalise() turns into the softmax over the group's points.
template <typename T, int Points, bool Keep = (Points > 0)>
struct MaskReader {
  using Acc = typename Accumulator<T>::type;
  static constexpr double kLog2e = 1.4426950408889634;
  const T* mask;
  int points;
  bool logits;
  Acc value[Keep ? Points : 1], largest = 0, scale = 1;

  __device__ __forceinline__ MaskReader(const T* mask, int points, bool logits)
      : mask(mask), points(points), logits(logits) {
    if constexpr (Keep) {
#pragma unroll
      for (int k = 0; k < Points; ++k) value[k] = widen(__ldg(mask + k));
    }
    if (logits) find_largest();
  }
  // From values in registers.
  __device__ __forceinline__ MaskReader(const T (&loaded)[Keep ? Points : 1], bool logits)
      : mask(nullptr), points(Points), logits(logits) {
#pragma unroll
    for (int k = 0; k < Points; ++k) value[k] = widen(loaded[k]);
    if (logits) find_largest();
  }
  __device__ __forceinline__ void find_largest() {
    largest = read(0);
#pragma unroll(Points ? Points : 1)
    for (int k = 1; k < points; ++k) largest = fmax(largest, read(k));
    largest *= Acc(kLog2e);
  }
  __device__ __forceinline__ Acc read(int k) const {
    if constexpr (Keep) {
      return value[k];
    } else {
      return widen(__ldg(mask + k));
    }
  }
  __device__ __forceinline__ Acc of(Acc x) const {
    return logits ? exp2(fma(x, Acc(kLog2e), -largest)) * scale : x;
  }
  __device__ __forceinline__ Acc operator()(int k) const { return of(read(k)); }
  __device__ __forceinline__ void normalise() {
    if (!logits) return;
    Acc total = 0;
#pragma unroll(Points ? Points : 1)
    for (int k = 0; k < points; ++k) total += (*this)(k);
    scale = Acc(1) / total;
  }
};

}  // namespace dcnv3
