// LayerNorm kernels over rows of channels, with the GELU, or the residual sum with layer scale and drop path, that
// stands beside it in a network. For nvcc, and for g++ with the emulation header.
//
// A thread owns eight neighbouring channels of a row and keeps them in registers: 16 bytes of a half type, 32 of
// float32. The `lanes` threads of a row lie in one warp (a power of two, several rows per warp), or are whole warps of a
// block, which then meet at a barrier. Blocks walk over rows with a stride, so that weights are read and the gradients
// of weights are summed in registers over many rows. The next row is loaded while this one is computed. Element types
// are arguments, not template parameters: a branch per access that all threads take alike.
#pragma once

#include "dcnv3_cuda_common.cuh"
#include "norm_cuda.h"

namespace dcnv3 {
namespace norm {

constexpr int kWidth = 8;  // channels per thread
constexpr int kWarp = 32;
constexpr int kSums = 3;   // gradients of parameters: weight, bias, extra

// What a launch adds to the arguments.
struct Layout {
  int rows, channels, lanes;
  FastDivisor by_image;
};

template <bool Block>
constexpr int kThreads = Block ? static_cast<int>(kMaxChannels) / kWidth : 256;

// ---- eight channels in registers -----------------------------------------------------------------------------------

struct Raw {
  uint32_t word[kWidth] = {};
};

__device__ __forceinline__ bool is_wide(Dtype dtype) { return dtype == Dtype::kFloat32; }

// Loads a thread's channels from `first` on; zeros if it has none.
__device__ __forceinline__ Raw load(const Source& source, int64_t first, bool present) {
  Raw raw;
  if (!present) return raw;
  const bool wide = is_wide(source.dtype);
  const char* p = static_cast<const char*>(source.data) + first * (wide ? 4 : 2);
  const uint4 low = __ldg(reinterpret_cast<const uint4*>(p));
  uint4 high = {0, 0, 0, 0};
  if (wide) high = __ldg(reinterpret_cast<const uint4*>(p) + 1);
  raw.word[0] = low.x, raw.word[1] = low.y, raw.word[2] = low.z, raw.word[3] = low.w;
  raw.word[4] = high.x, raw.word[5] = high.y, raw.word[6] = high.z, raw.word[7] = high.w;
  return raw;
}

// Calls run(T()) for the half type T of that name.
template <typename Run>
__device__ __forceinline__ auto with_half(Dtype dtype, Run run) {
  return dtype == Dtype::kBFloat16 ? run(__nv_bfloat16(0)) : run(__half(0));
}

__device__ __forceinline__ void expand(const Raw& raw, Dtype dtype, float* x) {
  if (is_wide(dtype)) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[i] = __uint_as_float(raw.word[i]);
    return;
  }
  with_half(dtype, [&](auto zero) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) unpack(raw.word + i, x + 2 * i, zero);
  });
}

// Two neighbouring values of a half type in one word.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  struct alignas(4) {
    T element[2];
  } pair;
  narrow(low, pair.element[0]);
  narrow(high, pair.element[1]);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ Raw compress(const float* x, Dtype dtype) {
  Raw raw;
  if (is_wide(dtype)) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) raw.word[i] = __float_as_uint(x[i]);
    return raw;
  }
  with_half(dtype, [&](auto zero) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) raw.word[i] = pack<decltype(zero)>(x[2 * i], x[2 * i + 1]);
  });
  return raw;
}

__device__ __forceinline__ void store(const Target& target, int64_t first, bool present, const Raw& raw) {
  if (!present) return;
  const bool wide = is_wide(target.dtype);
  char* p = static_cast<char*>(target.data) + first * (wide ? 4 : 2);
  *reinterpret_cast<uint4*>(p) = {raw.word[0], raw.word[1], raw.word[2], raw.word[3]};
  if (wide) reinterpret_cast<uint4*>(p)[1] = {raw.word[4], raw.word[5], raw.word[6], raw.word[7]};
}

__device__ __forceinline__ float load_one(const Source& source, uint32_t index) {
  if (is_wide(source.dtype)) return __ldg(static_cast<const float*>(source.data) + index);
  const uint32_t word = __ldg(static_cast<const uint16_t*>(source.data) + index);
  float pair[2];
  with_half(source.dtype, [&](auto zero) { unpack(&word, pair, zero); });
  return pair[0];
}

__device__ __forceinline__ void store_one(const Target& target, int index, float x) {
  if (is_wide(target.dtype)) {
    static_cast<float*>(target.data)[index] = x;
  } else {
    with_half(target.dtype, [&](auto zero) { narrow(x, static_cast<decltype(zero)*>(target.data)[index]); });
  }
}

// ---- the threads of a row ------------------------------------------------------------------------------------------

struct Place {
  int slot, slots;  // which of the rows that the block works on at a time
  int channel;      // the first of the thread's channels
  bool present;     // whether it has any

  __device__ __forceinline__ explicit Place(const Layout& layout) {
    const int thread = static_cast<int>(threadIdx.x);
    slot = thread / layout.lanes;
    slots = static_cast<int>(blockDim.x) / layout.lanes;
    channel = (thread - slot * layout.lanes) * kWidth;
    present = channel < layout.channels;
  }
};

// Eight channels of a parameter, or `absent` eight times.
__device__ __forceinline__ void load_parameter(const Source& source, const Place& place, float absent, float* x) {
  if (source.data) {
    expand(load(source, place.channel, place.present), source.dtype, x);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[i] = absent;
  }
}

// Shared memory, in functions that are no templates: g++ would not poison it there.
constexpr int kMostThreads = kThreads<true>, kMostWarps = kMostThreads / kWarp;

__device__ __forceinline__ float* shared_sums() {
  __shared__ float sums[2 * kMostWarps * 2];
  return sums;
}
__device__ __forceinline__ float* shared_tile() {
  __shared__ float tile[kMostThreads * kWidth];
  return tile;
}

// Sums N values over the threads of a row; all of them get the result. Every thread of the block must call this.
template <bool Block, int N>
struct RowSum {
  int turn = 0;

  __device__ __forceinline__ void operator()(float (&x)[N], int lanes) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      if (!Block && distance >= lanes) continue;
#pragma unroll
      for (int n = 0; n < N; ++n) x[n] += __shfl_xor_sync(0xffffffffu, x[n], distance);
    }
    if constexpr (Block) {
      if (lanes == kWarp) return;
      // Two sets in turn: whoever writes a set again has met the others at a barrier since they read it.
      float* cells = shared_sums() + turn * kMostWarps * N;
      const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = lanes / kWarp, first = warp / warps * warps;
      if (threadIdx.x % kWarp == 0) {
#pragma unroll
        for (int n = 0; n < N; ++n) cells[warp * N + n] = x[n];
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < N; ++n) x[n] = 0;
      for (int i = 0; i < warps; ++i) {
#pragma unroll
        for (int n = 0; n < N; ++n) x[n] += cells[(first + i) * N + n];
      }
      turn ^= 1;
    }
  }
};

// ---- GELU ----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f + 0.5f * erff(x * 0.70710678118654752f); }
__device__ __forceinline__ float gelu(float x) { return x * normal_cdf(x); }
__device__ __forceinline__ float gelu_slope(float x) {
  return fmaf(x, 0.39894228040143268f * expf(-0.5f * x * x), normal_cdf(x));
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <Form F, bool Block>
__global__ void __launch_bounds__(kThreads<Block>, Block ? 1 : 3) forward_kernel(const Forward a, const Layout layout) {
  RowSum<Block, 1> sum_over_row;
  const Place place(layout);
  const int step = static_cast<int>(gridDim.x) * place.slots;
  const float scale = 1.f / static_cast<float>(layout.channels);

  float weight[kWidth], bias[kWidth], extra[kWidth];
  load_parameter(a.weight, place, 1.f, weight);
  load_parameter(a.bias, place, 0.f, bias);
  if constexpr (F != Form::kPlain) {
    load_parameter(a.extra, place, F == Form::kGelu ? 0.f : 1.f, extra);
  }

  Raw next_x, next_residual;
  const auto fetch = [&](int row) {
    const bool present = row < layout.rows && place.present;
    const int64_t first = int64_t{row} * layout.channels + place.channel;
    next_x = load(a.x, first, present);
    if constexpr (F == Form::kPost || F == Form::kPre) next_residual = load(a.residual, first, present);
  };

  fetch(static_cast<int>(blockIdx.x) * place.slots + place.slot);
  for (int start = static_cast<int>(blockIdx.x) * place.slots; start < layout.rows; start += step) {
    const int row = start + place.slot;
    const bool present = row < layout.rows && place.present;
    const int64_t first = int64_t{row} * layout.channels + place.channel;
    float x[kWidth], residual[kWidth];
    expand(next_x, a.x.dtype, x);
    if constexpr (F == Form::kPost || F == Form::kPre) expand(next_residual, a.residual.dtype, residual);
    if (start + step < layout.rows) fetch(row + step);

    float keep = 1.f;
    if constexpr (F == Form::kPost || F == Form::kPre) {
      if (a.keep.data && present) keep = load_one(a.keep, layout.by_image.quotient(static_cast<uint32_t>(row)));
    }
    if constexpr (F == Form::kGelu) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x[i] += extra[i];
    }
    if constexpr (F == Form::kPre) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x[i] = fmaf(keep * extra[i], x[i], residual[i]);
      const Raw rounded = compress(x, a.sum.dtype);  // what backward will read
      store(a.sum, first, present, rounded);
      expand(rounded, a.sum.dtype, x);
    }

    float total[1] = {0};
#pragma unroll
    for (int i = 0; i < kWidth; ++i) total[0] += x[i];
    // Channels that do not exist are zero, as their biases are.
    sum_over_row(total, layout.lanes);
    const float mean = total[0] * scale;
    total[0] = 0;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x[i] = place.present ? x[i] - mean : 0.f;
      total[0] = fmaf(x[i], x[i], total[0]);
    }
    sum_over_row(total, layout.lanes);
    const float inverse = rsqrtf(fmaf(total[0], scale, a.eps));
    if (a.stats && place.channel == 0 && row < layout.rows) {
      a.stats[row] = mean;
      a.stats[int64_t{layout.rows} + row] = inverse;
    }

#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x[i] = fmaf(x[i] * inverse, weight[i], bias[i]);
      if constexpr (F == Form::kGelu) x[i] = gelu(x[i]);
      if constexpr (F == Form::kPost) x[i] = fmaf(keep * extra[i], x[i], residual[i]);
    }
    store(a.out, first, present, compress(x, a.out.dtype));
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// What a thread reads of a row before it can do anything.
struct Incoming {
  Raw grad, source;
  float mean = 0, inverse = 0;
};

template <Form F, bool Block>
__global__ void __launch_bounds__(kThreads<Block>, Block ? 1 : 2) backward_kernel(const Backward a, const Layout layout) {
  constexpr bool kHasExtra = F != Form::kPlain;
  RowSum<Block, 2> sum_over_row;
  const Place place(layout);
  const int step = static_cast<int>(gridDim.x) * place.slots;
  const float scale = 1.f / static_cast<float>(layout.channels);

  float weight[kWidth], bias[kWidth], extra[kWidth], sums[kSums][kWidth] = {};
  load_parameter(a.weight, place, 1.f, weight);
  if constexpr (F == Form::kGelu || F == Form::kPost) {
    load_parameter(a.bias, place, 0.f, bias);
  }
  if constexpr (kHasExtra) {
    load_parameter(a.extra, place, F == Form::kGelu ? 0.f : 1.f, extra);
  }

  Incoming next;
  const auto fetch = [&](int row) {
    const bool present = row < layout.rows && place.present;
    const int64_t first = int64_t{row} * layout.channels + place.channel;
    next.grad = load(a.grad, first, present);
    next.source = load(a.source, first, present);
    next.mean = present ? __ldg(a.stats + row) : 0.f;
    next.inverse = present ? __ldg(a.stats + int64_t{layout.rows} + row) : 0.f;
  };

  fetch(static_cast<int>(blockIdx.x) * place.slots + place.slot);
  for (int start = static_cast<int>(blockIdx.x) * place.slots; start < layout.rows; start += step) {
    const int row = start + place.slot;
    const bool present = row < layout.rows && place.present;
    const int64_t first = int64_t{row} * layout.channels + place.channel;
    const Incoming now = next;
    if (start + step < layout.rows) fetch(row + step);
    float keep = 1.f;
    if constexpr (F == Form::kPost || F == Form::kPre) {
      if (a.keep.data && present) keep = load_one(a.keep, layout.by_image.quotient(static_cast<uint32_t>(row)));
    }

    Raw grad_sum, branch;  // wanted after the sum over the row
    if constexpr (F == Form::kPre) {
      if (a.grad_sum.data) grad_sum = load(a.grad_sum, first, present);
      if (a.branch.data) branch = load(a.branch, first, present);
    }
    float grad[kWidth], x[kWidth];  // x: normalised
    expand(now.grad, a.grad.dtype, grad);
    expand(now.source, a.source.dtype, x);
    float total[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if constexpr (F == Form::kGelu) x[i] += extra[i];
      x[i] = present ? (x[i] - now.mean) * now.inverse : 0.f;
      if constexpr (F == Form::kGelu) grad[i] *= gelu_slope(fmaf(x[i], weight[i], bias[i]));
      if constexpr (F == Form::kPost) {
        grad[i] *= keep;
        sums[2][i] = fmaf(grad[i], fmaf(x[i], weight[i], bias[i]), sums[2][i]);
        grad[i] *= extra[i];
      }
      sums[0][i] = fmaf(grad[i], x[i], sums[0][i]);
      sums[1][i] += grad[i];
      grad[i] *= weight[i];
      total[0] += grad[i];
      total[1] = fmaf(grad[i], x[i], total[1]);
    }
    sum_over_row(total, layout.lanes);
    total[0] *= scale;
    total[1] *= scale;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x[i] = now.inverse * (grad[i] - fmaf(x[i], total[1], total[0]));  // the gradient of what was normalised
      if (F == Form::kGelu && present) sums[2][i] += x[i];
    }
    if constexpr (F == Form::kPre) {
      if (a.grad_sum.data) {
        float other[kWidth];
        expand(grad_sum, a.grad_sum.dtype, other);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) x[i] += other[i];
      }
      if (a.grad_residual.data) store(a.grad_residual, first, present, compress(x, a.grad_residual.dtype));
      if (a.branch.data) {
        float other[kWidth];
        expand(branch, a.branch.dtype, other);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[2][i] = fmaf(keep * other[i], x[i], sums[2][i]);
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x[i] *= keep * extra[i];
    }
    if (a.grad_x.data) store(a.grad_x, first, present, compress(x, a.grad_x.dtype));
  }

  // The block's share of the parameters' gradients, its rows added in the order of their slots.
  if (!a.partial) return;
  float* tile = shared_tile();
#pragma unroll
  for (int s = 0; s < (kHasExtra ? 3 : 2); ++s) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) tile[threadIdx.x * kWidth + i] = sums[s][i];
    __syncthreads();
    float* result = a.partial + (int64_t{blockIdx.x} * kSums + s) * layout.channels;
    for (int c = static_cast<int>(threadIdx.x); c < layout.channels; c += static_cast<int>(blockDim.x)) {
      float sum = 0;
      for (int slot = 0; slot < place.slots; ++slot) sum += tile[slot * layout.lanes * kWidth + c];
      result[c] = sum;
    }
    __syncthreads();
  }
}

constexpr int kFinishThreads = 256;

// Adds up the shares of all blocks, always in the same order: a column of (blocks, 3, channels) for each lane of a warp,
// cut into as many pieces as the block has warps.
inline __global__ void __launch_bounds__(kFinishThreads) finish_kernel(const Backward a, int channels, int blocks) {
  constexpr int kPieces = kFinishThreads / kWarp;
  __shared__ float pieces[kPieces][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, piece = static_cast<int>(threadIdx.x) / kWarp;
  const int column = static_cast<int>(blockIdx.x) * kWarp + lane, columns = kSums * channels;
  const int which = column / channels;
  const Target target = which == 0 ? a.grad_weight : which == 1 ? a.grad_bias : a.grad_extra;
  const bool wanted = column < columns && target.data;
  float sum = 0;
  if (wanted) {
#pragma unroll 4
    for (int block = piece; block < blocks; block += kPieces) sum += __ldg(a.partial + int64_t{block} * columns + column);
  }
  pieces[piece][lane] = sum;
  __syncthreads();
  if (piece != 0 || !wanted) return;
  for (int i = 1; i < kPieces; ++i) sum += pieces[i][lane];
  store_one(target, column - which * channels, sum);
}

}  // namespace norm
}  // namespace dcnv3
