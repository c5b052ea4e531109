// DCNv3 sampling on NVIDIA GPUs, forward and backward (InternImage, Wang et al., CVPR 2023, equation 2).
//
// One source for two compilers: nvcc builds it for GPUs, and g++ builds it against tests/ops/cuda_emulation.h, so that it
// can be executed and checked on a machine without a GPU. No ATen, no torch: plain pointers and a Problem.
//
// Shape of the work. A thread owns V neighbouring channels of one group at one output pixel, V chosen so that they are
// one 16-byte load. It walks over the P sampling points, for each gathers four corners, and accumulates in fp32 (fp64
// for double). Nothing is staged: no im2col buffer, no shared memory. What binds is instruction issue, so the address,
// weight and bounds arithmetic of a point is paid once per V channels, and P = 9 or 8 is unrolled at compile time.
#pragma once

#include "dcnv3_cuda_common.cuh"

namespace dcnv3 {

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T, int V, typename Acc>
__device__ __forceinline__ void accumulate(Acc (&sum)[V], Acc weight, const Pack<T, V>& values) {
  Acc x[V];
  values.widen_to(x);
#pragma unroll
  for (int c = 0; c < V; ++c) sum[c] = fma(weight, x[c], sum[c]);
}

// The four corners of a sampling point, in the order top left, top right, bottom left, bottom right: which are inside,
// their weights in the point's `weight`, and their values.
template <typename Acc>
__device__ __forceinline__ void corners_inside(const Coordinate<Acc>& h, const Coordinate<Acc>& w, bool (&inside)[4]) {
  inside[0] = h.low_inside && w.low_inside;
  inside[1] = h.low_inside && w.high_inside;
  inside[2] = h.high_inside && w.low_inside;
  inside[3] = h.high_inside && w.high_inside;
}

template <typename Acc>
__device__ __forceinline__ void corner_weights(Acc weight, const Coordinate<Acc>& h, const Coordinate<Acc>& w,
                                               Acc (&weights)[4]) {
  const Acc bottom = weight * h.fraction, top = weight - bottom;
  weights[1] = top * w.fraction;
  weights[0] = top - weights[1];
  weights[3] = bottom * w.fraction;
  weights[2] = bottom - weights[3];
}

template <typename T, int V>
__device__ __forceinline__ void load_corners(const char* corner, int64_t pixel_bytes, int64_t row_bytes,
                                             const bool (&inside)[4], Pack<T, V> (&values)[4]) {
  const char* below = corner + row_bytes;
  if (inside[0]) values[0].load(corner);
  if (inside[1]) values[1].load(corner + pixel_bytes);
  if (inside[2]) values[2].load(below);
  if (inside[3]) values[3].load(below + pixel_bytes);
}

// How many forward blocks shall fit on a multiprocessor, which tells ptxas how many registers it may use. With these
// numbers it spills nothing on any architecture; left to itself, it spills a few bytes on some to fit more blocks.
template <typename T, int Points, bool Logits>
constexpr int forward_blocks() {
  if (sizeof(T) == 8) return 6;
  if (sizeof(T) == 4 || Points == 0) return 8;
#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ >= 860 && __CUDA_ARCH__ < 1000
  return Logits ? (__CUDA_ARCH__ == 800 ? 5 : 6) : 10;
#else
  return Logits ? 5 : 8;
#endif
}

// Whether logits stay in registers between the search for the largest and their use. On an H200 that saves a tenth of the
// time (84 us instead of 92, with 2^x for e^x); on most other architectures ptxas spills a few registers for it.
#if __CUDA_ARCH__ == 900
constexpr bool kKeepLogits = true;
#else
constexpr bool kKeepLogits = false;
#endif

// Points: 9 or 8 for a 3x3 window without or with its centre removed, 0 for any window known at run time only, in which
// case Logits is ignored for problem.mask_is_logits.
template <typename T, int V, int Points, bool Logits>
__global__ void __launch_bounds__(kForwardThreads, (forward_blocks<T, Points, Logits>()))
    forward_kernel(const Problem<typename Accumulator<T>::type> problem, const T* __restrict__ input,
                   const T* __restrict__ offset, const T* __restrict__ mask, T* __restrict__ output) {
  using Acc = typename Accumulator<T>::type;
  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= problem.threads) return;

  const Site site(problem, thread);
  const int points = point_count<Points>(problem);
  const bool logits = Points ? Logits : problem.mask_is_logits;
  const char* image = reinterpret_cast<const char*>(input + site.group * problem.group_channels + site.lane * V) +
                      site.image * problem.image_bytes;
  const Sampler<Points, Acc> sample(problem, site.row, site.column, problem.height);
  const MaskReader<T, Points, (kKeepLogits && Points && Logits)> weight_of(
      mask + site.pixel * problem.mask_pitch + site.group * points, points, logits);
  offset += site.pixel * problem.offset_pitch + site.group * points * 2;

  Acc sum[V] = {}, total = 0;
  for_each_point<Points>(problem, [&](int k, int i, int j) {
    Pack<T, 2> shift;
    shift.load(offset + 2 * k);
    const auto [h, w] = sample(shift, i, j);
    bool inside[4];
    corners_inside(h, w, inside);
    Pack<T, V> values[4];
    load_corners(image + int64_t{h.low * problem.width + w.low} * problem.pixel_bytes, problem.pixel_bytes,
                 problem.row_bytes, inside, values);
    const Acc weight = weight_of(k);
    total += weight;
    Acc weights[4];
    corner_weights(weight, h, w, weights);
#pragma unroll
    for (int q = 0; q < 4; ++q) accumulate(sum, weights[q], values[q]);
  });
  if (logits) {
    const Acc scale = Acc(1) / total;
#pragma unroll
    for (int c = 0; c < V; ++c) sum[c] *= scale;
  }
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

// Adds grad * value to the dot product of each corner; with `scatter` also weight * grad to the corners of grad_input,
// whose strides are those of the input times the growth of the type.
template <typename T, int V, typename Acc>
__device__ __forceinline__ void visit_corners(const T* input, Acc* grad_input, int64_t pixel_bytes, int64_t row_bytes,
                                              const bool (&inside)[4], const Acc (&weights)[4], const Acc (&grad)[V],
                                              bool scatter, Acc (&dots)[4]) {
  constexpr int kGrowth = sizeof(Acc) / sizeof(T);
  Pack<T, V> values[4];
  load_corners(reinterpret_cast<const char*>(input), pixel_bytes, row_bytes, inside, values);
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    Acc x[V];
    values[q].widen_to(x);
#pragma unroll
    for (int c = 0; c < V; ++c) dots[q] = fma(grad[c], x[c], dots[q]);
    if (inside[q] && scatter) {
#pragma unroll
      for (int c = 0; c < V; ++c) x[c] = weights[q] * grad[c];
      const int64_t distance = (q / 2 * row_bytes + q % 2 * pixel_bytes) * kGrowth;
      atomic_add<V>(reinterpret_cast<Acc*>(reinterpret_cast<char*>(grad_input) + distance), x);
    }
  }
}

// The sampled value is bilinear in the fractions: its value and its slopes along w and h from the four dot products.
template <typename Acc>
__device__ __forceinline__ void value_and_slopes(const Acc (&dots)[4], const Coordinate<Acc>& h,
                                                 const Coordinate<Acc>& w, Acc (&result)[3]) {
  const Acc slope_top = dots[1] - dots[0], slope_bottom = dots[3] - dots[2];
  const Acc along_top = fma(w.fraction, slope_top, dots[0]);
  const Acc along_bottom = fma(w.fraction, slope_bottom, dots[2]);
  result[2] = along_bottom - along_top;
  result[1] = fma(h.fraction, slope_bottom - slope_top, slope_top);
  result[0] = fma(h.fraction, result[2], along_top);
}

// Sums three values over the `lanes` neighbouring threads (a power of two) that share a group; each gets the sums.
template <typename Acc>
__device__ __forceinline__ void sum_over_lanes(Acc (&x)[3], uint32_t lanes) {
  for (uint32_t distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < 3; ++i) x[i] += __shfl_xor_sync(0xffffffffu, x[i], distance);
  }
}

// The gradients of offset and mask; and, where Points is 0, that of the input too. For 3x3 windows that one has a kernel
// of its own, in grad_input_kernel.cuh. Points and Logits as in the forward kernel; with Points > 0 the lanes' V channels
// make up the group exactly.
// grad_input is in Acc and starts as zero; the order of the atomic additions to it is not deterministic.
template <typename T, int V, int Points, bool Logits>
__global__ void __launch_bounds__(kBackwardThreads, sizeof(T) == 8 ? 4 : 7)  // left to itself, ptxas spills
    backward_kernel(const Problem<typename Accumulator<T>::type> problem, const T* __restrict__ grad_output,
                    const T* __restrict__ input, const T* __restrict__ offset, const T* __restrict__ mask,
                    typename Accumulator<T>::type* __restrict__ grad_input, T* __restrict__ grad_offset,
                    T* __restrict__ grad_mask) {
  using Acc = typename Accumulator<T>::type;
  // Threads past the end go through all shuffles with the rest of their warp, on an input of height zero: no point
  // counts, nothing is loaded or added.
  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  const bool active = thread < problem.threads;
  const Site site(problem, active ? thread : 0);
  const int height = active ? problem.height : 0;
  const bool leader = active && site.lane == 0;

  const int points = point_count<Points>(problem);
  const bool logits = Points ? Logits : problem.mask_is_logits;
  const int first_channel = site.lane * V, channel_step = problem.lanes.divisor * V;
  const int64_t start = site.image * (problem.image_bytes / int64_t{sizeof(T)}) + site.group * problem.group_channels;
  grad_output += site.unit * problem.group_channels;
  offset += site.pixel * problem.offset_pitch + site.group * points * 2;
  grad_offset += site.unit * points * 2;
  grad_mask += site.unit * points;
  const Sampler<Points, Acc> sample(problem, site.row, site.column, height);
  MaskReader<T, Points> weight_of(mask + site.pixel * problem.mask_pitch + site.group * points, points, logits);
  weight_of.normalise();

  Acc grad[V];
  const auto load_grad = [&](int channel) {
    Pack<T, V> packed;
    packed.load(grad_output + channel);
    packed.widen_to(grad);
  };
  if (Points) load_grad(first_channel);

  // Gives the gradient of a point's weight; unless `only_weight`, writes the point's grad_offset, and adds to grad_input.
  const auto visit = [&](int k, int i, int j, Acc weight, bool only_weight) -> Acc {
    Pack<T, 2> shift;
    shift.load(offset + 2 * k);
    const auto [h, w] = sample(shift, i, j);
    bool inside[4];
    corners_inside(h, w, inside);
    Acc weights[4], dots[4] = {};
    corner_weights(weight, h, w, weights);
    const int64_t pixel = int64_t{h.low * problem.width + w.low} * (problem.groups * problem.group_channels) + start;
    for (int channel = first_channel; channel < problem.group_channels; channel += channel_step) {
      if (!Points) load_grad(channel);
      visit_corners(input + pixel + channel, grad_input + pixel + channel, problem.pixel_bytes, problem.row_bytes,
                    inside, weights, grad, !Points && !only_weight, dots);
      if (Points) break;
    }
    Acc sums[3];
    value_and_slopes(dots, h, w, sums);
    sum_over_lanes(sums, problem.lanes.divisor);
    if (leader && !only_weight) {
      const Acc steepness = weight * problem.offset_scale;
      const Acc gradient[2] = {steepness * sums[1], steepness * sums[2]};
      store<2>(grad_offset + 2 * k, gradient);
    }
    return sums[0];
  };

  if constexpr (Points > 0) {
    Acc weight[Points], gradient[Points], inner = 0;
    for_each_point<Points>(problem, [&](int k, int i, int j) {
      weight[k] = weight_of(k);
      gradient[k] = visit(k, i, j, weight[k], false);
      inner = fma(weight[k], gradient[k], inner);
    });
    if (!leader) return;
#pragma unroll
    for (int k = 0; k < Points; ++k) {
      narrow(Logits ? weight[k] * (gradient[k] - inner) : gradient[k], grad_mask[k]);
    }
  } else {
    // A window of unknown size has no registers to keep its gradients in: with logits it is walked over twice.
    Acc inner = 0;
    for (int pass = logits ? 0 : 1; pass < 2; ++pass) {
      for_each_point<Points>(problem, [&](int k, int i, int j) {
        const Acc weight = weight_of(k);
        const Acc gradient = visit(k, i, j, weight, pass == 0);
        if (pass == 0) {
          inner = fma(weight, gradient, inner);
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
