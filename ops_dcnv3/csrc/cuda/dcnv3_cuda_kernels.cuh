// DCNv3 sampling on NVIDIA GPUs, forward and backward (InternImage, Wang et al., CVPR 2023, equation 2).
//
// One source for two compilers: nvcc builds it for GPUs, g++ builds it against cuda_emulation.h so that every kernel can be
// executed and checked on a machine without a GPU. No ATen, no torch: plain pointers and a Problem.
//
// Shape of the work. A thread owns V neighbouring channels of one group at one output pixel, V chosen so that they are one
// 16-byte load. It walks over the P sampling points, for each gathers four corners, and accumulates in fp32 (fp64 for
// double). Nothing is staged: no im2col buffer, no shared memory. What binds is instruction issue, so the address, weight
// and bounds arithmetic of a point is paid once per V channels, and P = 9 or 8 is unrolled at compile time.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulation.h"
#endif

#include <cstdint>

namespace dcnv3 {

constexpr int kForwardThreads = 256;
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

// What one launch needs to know. A launch covers whole output rows from `first_row` on, few enough that its threads can be
// counted in 31 bits; every address is computed in 64 bits, so tensors may have any size.
template <typename Acc>
struct Problem {
  int height, width, out_height, out_width, groups, group_channels;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  Acc offset_scale;
  bool remove_center, mask_is_logits;
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
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
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
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float minimum(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double minimum(double a, double b) { return fmin(a, b); }
__device__ __forceinline__ float maximum(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double maximum(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

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

template <int Words>
struct Vector;
template <>
struct Vector<1> {
  using type = uint32_t;
};
template <>
struct Vector<2> {
  using type = uint2;
};
template <>
struct Vector<4> {
  using type = uint4;
};

// V elements in registers, loaded as one access and widened only where they are used.
template <typename T, int V>
struct Pack {
  using Acc = typename Accumulator<T>::type;
  static constexpr int kWords = sizeof(T) * V / 4;
  using W = typename Vector<kWords>::type;
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
  int64_t unit;  // (pixel, group) counted over the whole output: the index into offset and mask, in groups

  template <typename Acc>
  __device__ __forceinline__ Site(const Problem<Acc>& problem, uint32_t thread) {
    const uint32_t local = problem.lanes.quotient(thread);
    lane = thread - local * problem.lanes.divisor;
    const uint32_t pixel = problem.by_groups.quotient(local);
    group = local - pixel * problem.by_groups.divisor;
    const uint32_t local_row = problem.by_out_width.quotient(pixel);
    column = pixel - local_row * problem.by_out_width.divisor;
    const uint32_t global_row = problem.first_row + local_row;
    image = problem.by_out_height.quotient(global_row);
    row = global_row - image * problem.by_out_height.divisor;
    unit = (int64_t{global_row} * problem.out_width + column) * problem.groups + group;
  }
};

// The position that a zero offset samples at kernel index 0; kernel index i adds i * dilation * offset_scale.
template <typename Acc>
__device__ __forceinline__ Acc first_tap(uint32_t out, int stride, int padding, int kernel, int dilation, Acc offset_scale) {
  const int center = dilation * (kernel - 1) / 2;
  return Acc(static_cast<int>(out) * stride - padding + center) - Acc(center) * offset_scale;
}

// One coordinate of a sampling point: its lower neighbour, the way to the upper one, and which of the two exist.
template <typename Acc>
struct Coordinate {
  int low;
  Acc fraction, rest;
  bool low_inside, high_inside;

  __device__ __forceinline__ Coordinate(Acc x, int size) {
    // A point that does not count (x <= -1, x >= size, NaN) moves to where neither neighbour exists, which also keeps
    // huge values away from the conversion to int.
    const bool above = x > Acc(-1);
    x = minimum(maximum(x, Acc(-2)), Acc(size));
    low = floor_to_int(x);
    fraction = x - Acc(low);
    rest = Acc(1) - fraction;
    low_inside = static_cast<unsigned>(low) < static_cast<unsigned>(size);
    high_inside = above && static_cast<unsigned>(low + 1) < static_cast<unsigned>(size);
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

// The weight of each point from its mask value: the value itself, or a softmax over the group's points.
template <typename T, int Points>
struct MaskReader {
  using Acc = typename Accumulator<T>::type;
  const T* mask;
  Acc largest = 0, scale = 1;

  __device__ __forceinline__ MaskReader(const T* values, int points, bool logits) : mask(values) {
    if (!logits) return;
    largest = widen(mask[0]);
#pragma unroll(Points ? Points : 1)
    for (int k = 1; k < points; ++k) largest = maximum(largest, widen(mask[k]));
    Acc total = 0;
#pragma unroll(Points ? Points : 1)
    for (int k = 0; k < points; ++k) total += exponential(widen(mask[k]) - largest);
    scale = Acc(1) / total;
  }
  __device__ __forceinline__ Acc operator()(int k, bool logits) const {
    const Acc value = widen(mask[k]);
    return logits ? exponential(value - largest) * scale : value;
  }
};

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T, int V, typename Acc>
__device__ __forceinline__ void accumulate(Acc (&sum)[V], Acc weight, const Pack<T, V>& values) {
  Acc x[V];
  values.widen_to(x);
#pragma unroll
  for (int c = 0; c < V; ++c) sum[c] = multiply_add(weight, x[c], sum[c]);
}

// Points: 9 or 8 for a 3x3 window without or with its centre removed, 0 for any window known at run time only, in which
// case Logits is ignored for problem.mask_is_logits.
template <typename T, int V, int Points, bool Logits>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(const Problem<typename Accumulator<T>::type> problem, const T* __restrict__ input,
                   const T* __restrict__ offset, const T* __restrict__ mask, T* __restrict__ output) {
  using Acc = typename Accumulator<T>::type;
  const uint32_t thread = blockIdx.x * kForwardThreads + threadIdx.x;
  if (thread >= problem.threads) return;

  const Site site(problem, thread);
  const int points = point_count<Points>(problem);
  const bool logits = Points ? Logits : problem.mask_is_logits;
  const char* image = reinterpret_cast<const char*>(input + site.group * problem.group_channels + site.lane * V) +
                      site.image * problem.image_bytes;
  offset += site.unit * points * 2;
  const MaskReader<T, Points> weight_of(mask + site.unit * points, points, logits);

  const Acc scale = problem.offset_scale;
  const Acc first_h =
      first_tap(site.row, problem.stride_h, problem.padding_h, Points ? 3 : problem.kernel_h, problem.dilation_h, scale);
  const Acc first_w =
      first_tap(site.column, problem.stride_w, problem.padding_w, Points ? 3 : problem.kernel_w, problem.dilation_w, scale);

  Acc sum[V] = {};
  for_each_point<Points>(problem, [&](int k, int i, int j) {
    Pack<T, 2> pair;
    pair.load(offset + 2 * k);
    Acc shift[2];
    pair.widen_to(shift);
    const Coordinate<Acc> h(multiply_add(shift[1], scale, multiply_add(Acc(j * problem.dilation_h), scale, first_h)), problem.height);
    const Coordinate<Acc> w(multiply_add(shift[0], scale, multiply_add(Acc(i * problem.dilation_w), scale, first_w)), problem.width);

    const char* corner = image + int64_t{h.low * problem.width + w.low} * problem.pixel_bytes;
    const char* below = corner + problem.row_bytes;
    Pack<T, V> top_left, top_right, bottom_left, bottom_right;
    if (h.low_inside && w.low_inside) top_left.load(corner);
    if (h.low_inside && w.high_inside) top_right.load(corner + problem.pixel_bytes);
    if (h.high_inside && w.low_inside) bottom_left.load(below);
    if (h.high_inside && w.high_inside) bottom_right.load(below + problem.pixel_bytes);

    const Acc weight = weight_of(k, logits);
    const Acc bottom = weight * h.fraction, top = weight - bottom;
    const Acc w01 = top * w.fraction, w00 = top - w01, w11 = bottom * w.fraction, w10 = bottom - w11;
    accumulate(sum, w00, top_left);
    accumulate(sum, w01, top_right);
    accumulate(sum, w10, bottom_left);
    accumulate(sum, w11, bottom_right);
  });
  store<V>(output + site.unit * problem.group_channels + site.lane * V, sum);
}

// ---- backward ------------------------------------------------------------------------------------------------------

// Adds V neighbouring accumulators in global memory, with as few memory operations as the architecture has.
template <int V, typename Acc>
__device__ __forceinline__ void atomic_add(Acc* p, const Acc (&x)[V]) {
#if __CUDA_ARCH__ >= 900
  constexpr int kStep = sizeof(Acc) == 8 ? 1 : V < 4 ? V : 4;
#else
  constexpr int kStep = 1;
#endif
#pragma unroll
  for (int c = 0; c < V; c += kStep) {
    if constexpr (kStep == 4) {
      atomicAdd(reinterpret_cast<float4*>(p + c), make_float4(x[c], x[c + 1], x[c + 2], x[c + 3]));
    } else if constexpr (kStep == 2) {
      atomicAdd(reinterpret_cast<float2*>(p + c), make_float2(x[c], x[c + 1]));
    } else {
      atomicAdd(p + c, x[c]);
    }
  }
}

// One corner of a sampling point: adds grad * value to `dot`, and sends weight * grad back to the corner.
template <typename T, int V, typename Acc>
__device__ __forceinline__ void visit_corner(const Pack<T, V>& values, const Acc (&grad)[V], Acc weight, bool scatter,
                                             Acc* grad_input, Acc& dot) {
  Acc x[V];
  values.widen_to(x);
#pragma unroll
  for (int c = 0; c < V; ++c) dot = multiply_add(grad[c], x[c], dot);
  if (scatter) {
#pragma unroll
    for (int c = 0; c < V; ++c) x[c] = weight * grad[c];
    atomic_add<V>(grad_input, x);
  }
}

// Sums three values over the `lanes` neighbouring threads (a power of two) that share a group; each gets the sums.
template <typename Acc>
__device__ __forceinline__ void sum_over_lanes(Acc (&x)[3], uint32_t lanes) {
  for (uint32_t distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < 3; ++i) x[i] += __shfl_xor_sync(0xffffffffu, x[i], distance);
  }
}

// Points and Logits as in the forward kernel; with Points > 0 the lanes' V channels make up the group exactly.
// grad_input is in Acc and starts as zero; the order of the atomic additions to it is not deterministic.
template <typename T, int V, int Points, bool Logits>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(const Problem<typename Accumulator<T>::type> problem, const T* __restrict__ grad_output,
                    const T* __restrict__ input, const T* __restrict__ offset, const T* __restrict__ mask,
                    typename Accumulator<T>::type* __restrict__ grad_input, T* __restrict__ grad_offset,
                    T* __restrict__ grad_mask) {
  using Acc = typename Accumulator<T>::type;
  // Threads past the end go through all shuffles with the rest of their warp, on an input of height zero: no point
  // counts, nothing is loaded or added.
  const uint32_t thread = blockIdx.x * kBackwardThreads + threadIdx.x;
  const bool active = thread < problem.threads;
  const Site site(problem, active ? thread : 0);
  const int height = active ? problem.height : 0;
  const bool leader = active && site.lane == 0;

  const int points = point_count<Points>(problem);
  const bool logits = Points ? Logits : problem.mask_is_logits;
  const int first_channel = site.lane * V, channel_step = problem.lanes.divisor * V;
  const int64_t start = site.image * (problem.image_bytes / int64_t{sizeof(T)}) + site.group * problem.group_channels;
  constexpr int kGrowth = sizeof(Acc) / sizeof(T);  // strides of grad_input are those of the input times this
  grad_output += site.unit * problem.group_channels;
  offset += site.unit * points * 2;
  grad_offset += site.unit * points * 2;
  grad_mask += site.unit * points;
  const MaskReader<T, Points> weight_of(mask + site.unit * points, points, logits);

  const Acc scale = problem.offset_scale;
  const Acc first_h =
      first_tap(site.row, problem.stride_h, problem.padding_h, Points ? 3 : problem.kernel_h, problem.dilation_h, scale);
  const Acc first_w =
      first_tap(site.column, problem.stride_w, problem.padding_w, Points ? 3 : problem.kernel_w, problem.dilation_w, scale);

  Acc grad[V];
  const auto load_grad = [&](int channel) {
    Pack<T, V> packed;
    packed.load(grad_output + channel);
    packed.widen_to(grad);
  };
  if (Points) load_grad(first_channel);

  // Gives the gradient of a point's weight; with `scatter` also writes the point's grad_offset and adds to grad_input.
  const auto visit = [&](int k, int i, int j, Acc weight, bool scatter) -> Acc {
    Pack<T, 2> pair;
    pair.load(offset + 2 * k);
    Acc shift[2];
    pair.widen_to(shift);
    const Coordinate<Acc> h(multiply_add(shift[1], scale, multiply_add(Acc(j * problem.dilation_h), scale, first_h)), height);
    const Coordinate<Acc> w(multiply_add(shift[0], scale, multiply_add(Acc(i * problem.dilation_w), scale, first_w)),
                            problem.width);
    const bool inside00 = h.low_inside && w.low_inside, inside01 = h.low_inside && w.high_inside;
    const bool inside10 = h.high_inside && w.low_inside, inside11 = h.high_inside && w.high_inside;
    const Acc bottom = weight * h.fraction, top = weight - bottom;
    const Acc w01 = top * w.fraction, w00 = top - w01, w11 = bottom * w.fraction, w10 = bottom - w11;

    Acc dot00 = 0, dot01 = 0, dot10 = 0, dot11 = 0;
    const int64_t pixel = int64_t{h.low * problem.width + w.low} * (problem.groups * problem.group_channels) + start;
    for (int channel = first_channel; channel < problem.group_channels; channel += channel_step) {
      if (!Points) load_grad(channel);
      const char* corner = reinterpret_cast<const char*>(input + pixel + channel);
      char* target = reinterpret_cast<char*>(grad_input + pixel + channel);
      const char* below = corner + problem.row_bytes;
      char* target_below = target + problem.row_bytes * kGrowth;
      const int64_t next = int64_t{problem.pixel_bytes} * kGrowth;
      Pack<T, V> value00, value01, value10, value11;
      if (inside00) value00.load(corner);
      if (inside01) value01.load(corner + problem.pixel_bytes);
      if (inside10) value10.load(below);
      if (inside11) value11.load(below + problem.pixel_bytes);
      visit_corner(value00, grad, w00, inside00 && scatter, reinterpret_cast<Acc*>(target), dot00);
      visit_corner(value01, grad, w01, inside01 && scatter, reinterpret_cast<Acc*>(target + next), dot01);
      visit_corner(value10, grad, w10, inside10 && scatter, reinterpret_cast<Acc*>(target_below), dot10);
      visit_corner(value11, grad, w11, inside11 && scatter, reinterpret_cast<Acc*>(target_below + next), dot11);
      if (Points) break;
    }

    // The sampled value is bilinear in the fractions: its value and its two slopes from the four dot products.
    const Acc slope_top = dot01 - dot00, slope_bottom = dot11 - dot10;
    const Acc along_top = multiply_add(w.fraction, slope_top, dot00);
    const Acc along_bottom = multiply_add(w.fraction, slope_bottom, dot10);
    const Acc slope_h = along_bottom - along_top;
    const Acc slope_w = multiply_add(h.fraction, slope_bottom - slope_top, slope_top);
    Acc sums[3] = {multiply_add(h.fraction, slope_h, along_top), slope_w, slope_h};
    sum_over_lanes(sums, problem.lanes.divisor);
    if (leader && scatter) {
      const Acc gradient[2] = {weight * scale * sums[1], weight * scale * sums[2]};
      store<2>(grad_offset + 2 * k, gradient);
    }
    return sums[0];
  };

  if constexpr (Points > 0 && Logits) {
    Acc weight[Points], gradient[Points], inner = 0;
    for_each_point<Points>(problem, [&](int k, int i, int j) {
      weight[k] = weight_of(k, true);
      gradient[k] = visit(k, i, j, weight[k], true);
      inner = multiply_add(weight[k], gradient[k], inner);
    });
    if (!leader) return;
#pragma unroll
    for (int k = 0; k < Points; ++k) narrow(weight[k] * (gradient[k] - inner), grad_mask[k]);
  } else {
    // A window of unknown size has no registers to keep its gradients in: with logits it is walked over twice.
    Acc inner = 0;
    for (int pass = !Points && logits ? 0 : 1; pass < 2; ++pass) {
      for_each_point<Points>(problem, [&](int k, int i, int j) {
        const Acc weight = weight_of(k, logits);
        const Acc gradient = visit(k, i, j, weight, pass == 1);
        if (pass == 0) {
          inner = multiply_add(weight, gradient, inner);
        } else if (leader) {
          narrow(logits ? weight * (gradient - inner) : gradient, grad_mask[k]);
        }
      });
    }
  }
}

// grad_input of the half types: from the fp32 in which it was accumulated.
template <typename T>
__global__ void __launch_bounds__(kForwardThreads)
    narrow_kernel(const float* __restrict__ wide, T* __restrict__ result, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * kForwardThreads * 4;
  for (int64_t i = (int64_t{blockIdx.x} * kForwardThreads + threadIdx.x) * 4; i < count; i += step) {
    if (i + 4 <= count) {
      Pack<float, 4> packed;
      packed.load(wide + i);
      float x[4];
      packed.widen_to(x);
      store<4>(result + i, x);
    } else {
      for (int64_t tail = i; tail < count; ++tail) narrow(wide[tail], result[tail]);
    }
  }
}

}  // namespace dcnv3
