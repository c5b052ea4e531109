// Multi-scale deformable attention on NVIDIA GPUs, forward and backward (Zhu et al., "Deformable DETR", 2021).
//
// Each query and head sums bilinear samples of `points` places in each of `levels` maps, weighted. The kernels are
// relatives of the DCNv3 ones and share their parts: a thread owns V neighbouring channels of one head at one query,
// coordinates and sums are fp32 (fp64 for double), no shared memory and no temporary. One launch does all levels: their
// sizes are read from device memory, so the host need not know them, and a CUDA graph may replay with others.
//
// With 32 half-precision channels a head's corner is 64 bytes, which its four lanes load as one piece of a cache line.
// More channels a thread would save a quarter of the instructions, but look up twice as many lines per load.
#pragma once

#include "dcnv3_cuda_kernels.cuh"

namespace dcnv3 {

// Small blocks: the 900 queries of a decoder shall reach all multiprocessors.
constexpr int kAttentionThreads = 128;

// What one launch needs to know. It covers whole queries from `first_query` on.
struct AttentionProblem {
  int keys, depth, levels, points;
  int key_bytes;         // from a key to the next: heads * depth elements
  int64_t image_bytes;
  uint32_t first_query;  // of all batch * queries
  uint32_t threads;      // threads with work in this launch
  FastDivisor lanes;     // threads that share one head of one query
  FastDivisor by_heads, by_queries;
};

// Where a thread works.
struct QuerySite {
  uint32_t image, head, lane;
  int64_t unit;  // (query, head) counted over the whole output: the index into locations and weights, in heads

  __device__ __forceinline__ QuerySite(const AttentionProblem& problem, uint32_t thread) {
    const uint32_t local = problem.lanes.quotient(thread);
    lane = thread - local * problem.lanes.divisor;
    const uint32_t local_query = problem.by_heads.quotient(local);
    head = local - local_query * problem.by_heads.divisor;
    const uint32_t query = problem.first_query + local_query;
    image = problem.by_queries.quotient(query);
    unit = int64_t{query} * problem.by_heads.divisor + head;
  }
};

// Walks over the levels, which lie one after the other in the keys. A level that reaches beyond the keys has no height,
// so that no point in it counts.
struct LevelWalk {
  const int64_t* shapes;
  int keys, next = 0;
  int height = 0, width = 0, start = 0;
  bool fits = true;

  __device__ __forceinline__ LevelWalk(const int64_t* shapes, int keys) : shapes(shapes), keys(keys) {}
  __device__ __forceinline__ void enter(int level) {
    Pack<double, 2> words;  // two int64 as one load, of which the low words are wanted
    words.load(shapes + 2 * level);
    start = next;
    const uint64_t area = uint64_t{words.word[0]} * words.word[2];
    const bool inside = area <= static_cast<uint32_t>(keys - start);
    fits = fits && inside;
    height = inside ? static_cast<int>(words.word[0]) : 0;
    width = inside ? static_cast<int>(words.word[2]) : 0;
    next += inside ? static_cast<int>(area) : 0;
  }
  // Whether the levels, all entered, make up the keys.
  __device__ __forceinline__ bool complete() const { return fits && next == keys; }
};

// Loads Count values, a power of two, with as few accesses as 16 bytes each allow.
template <int Count, typename T, typename Acc>
__device__ __forceinline__ void read(const T* p, Acc (&x)[Count]) {
  constexpr int kStep = Count * sizeof(T) > 16 ? 16 / sizeof(T) : Count;
#pragma unroll
  for (int i = 0; i < Count; i += kStep) {
    Pack<T, kStep> packed;
    packed.load(p + i);
    packed.widen_to(x + i);
  }
}

// The sampling point at x, y (0 and 1 are the edges of the map): the first pixel's centre is half a pixel inside.
template <typename Acc>
__device__ __forceinline__ Coordinate<Acc> place(Acc location, int size) {
  return Coordinate<Acc>(fma(location, Acc(size), Acc(-0.5)), size);
}

template <typename Acc>
__device__ __forceinline__ Acc not_a_number() {
  return Acc(__uint_as_float(0x7fc00000u));
}

// Step: how many points are read at once, 4 or 1; divides the points of a level. At least 8 blocks to a multiprocessor,
// 64 registers: without a number ptxas spills on some architectures to fit ten.
template <typename T, int V, int Step>
__global__ void __launch_bounds__(kAttentionThreads, 8)
    attention_forward_kernel(const AttentionProblem problem, const T* __restrict__ value,
                             const int64_t* __restrict__ shapes, const T* __restrict__ locations,
                             const T* __restrict__ weights, T* __restrict__ output) {
  using Acc = typename Accumulator<T>::type;
  const uint32_t thread = blockIdx.x * kAttentionThreads + threadIdx.x;
  if (thread >= problem.threads) return;

  const QuerySite site(problem, thread);
  const char* image = reinterpret_cast<const char*>(value + site.head * problem.depth + site.lane * V) +
                      site.image * problem.image_bytes;
  const int64_t first_point = site.unit * (problem.levels * problem.points);
  locations += first_point * 2;
  weights += first_point;

  Acc sum[V] = {};
  LevelWalk level(shapes, problem.keys);
  for (int l = 0; l < problem.levels; ++l) {
    level.enter(l);
    const char* map = image + int64_t{level.start} * problem.key_bytes;
    const int64_t row_bytes = int64_t{level.width} * problem.key_bytes;
    for (int k = 0; k < problem.points; k += Step, locations += 2 * Step, weights += Step) {
      Acc xy[2 * Step], weight[Step];
      read(locations, xy);
      read(weights, weight);
#pragma unroll
      for (int i = 0; i < Step; ++i) {
        const Coordinate<Acc> h = place(xy[2 * i + 1], level.height), w = place(xy[2 * i], level.width);
        bool inside[4];
        corners_inside(h, w, inside);
        Pack<T, V> values[4];
        load_corners(map + int64_t{h.low * level.width + w.low} * problem.key_bytes, problem.key_bytes, row_bytes,
                     inside, values);
        Acc corner_weight[4];
        corner_weights(weight[i], h, w, corner_weight);
#pragma unroll
        for (int q = 0; q < 4; ++q) accumulate(sum, corner_weight[q], values[q]);
      }
    }
  }
  if (!level.complete()) {
#pragma unroll
    for (int c = 0; c < V; ++c) sum[c] = not_a_number<Acc>();
  }
  store<V>(output + site.unit * problem.depth + site.lane * V, sum);
}

// A thread's channels come in chunks of V, `lanes` * V apart, so that the lanes of a head add to neighbouring addresses.
// Chunks > 0: as many per thread, which make up the depth exactly; 0: known at run time only, and no lane need have any.
// grad_value is in Acc and starts as zero; the order of the atomic additions to it is not deterministic.
// Points are walked over one by one: four at once take 131 instructions per half-precision channel instead of 145, but
// their corners need registers that spill. One block leaves ptxas free; without a number it spills here too.
template <typename T, int V, int Chunks>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    attention_backward_kernel(const AttentionProblem problem, const T* __restrict__ grad_output,
                              const T* __restrict__ value, const int64_t* __restrict__ shapes,
                              const T* __restrict__ locations, const T* __restrict__ weights,
                              typename Accumulator<T>::type* __restrict__ grad_value, T* __restrict__ grad_locations,
                              T* __restrict__ grad_weights) {
  using Acc = typename Accumulator<T>::type;
  // Threads past the end go through all shuffles with the rest of their warp, on levels of height zero: no point
  // counts, nothing is loaded or added.
  const uint32_t thread = blockIdx.x * kAttentionThreads + threadIdx.x;
  const bool active = thread < problem.threads;
  const QuerySite site(problem, active ? thread : 0);
  const bool leader = active && site.lane == 0;

  const int first_channel = site.lane * V, channel_step = problem.lanes.divisor * V;
  const int64_t start = site.image * (problem.image_bytes / int64_t{sizeof(T)}) + site.head * problem.depth;
  const int64_t first_point = site.unit * (problem.levels * problem.points);
  grad_output += site.unit * problem.depth;

  Acc grad[Chunks ? Chunks : 1][V];
#pragma unroll
  for (int chunk = 0; chunk < Chunks; ++chunk) read(grad_output + first_channel + chunk * channel_step, grad[chunk]);

  LevelWalk level(shapes, problem.keys);
  int64_t point = first_point;
  for (int l = 0; l < problem.levels; ++l) {
    level.enter(l);
    const int height = active ? level.height : 0;
    const int64_t row_bytes = int64_t{level.width} * problem.key_bytes;
#pragma unroll 1
    for (int k = 0; k < problem.points; ++k, ++point) {
      Acc xy[2];
      read(locations + 2 * point, xy);
      const Acc weight = widen(weights[point]);
      const Coordinate<Acc> h = place(xy[1], height), w = place(xy[0], level.width);
      bool inside[4];
      corners_inside(h, w, inside);
      Acc corner_weight[4], dots[4] = {};
      corner_weights(weight, h, w, corner_weight);
      const int64_t key =
          int64_t{level.start + h.low * level.width + w.low} * (problem.key_bytes / int{sizeof(T)}) + start;
      const auto visit = [&](int channel, const Acc(&gradient)[V]) {
        visit_corners(value + key + channel, grad_value + key + channel, problem.key_bytes, row_bytes, inside,
                      corner_weight, gradient, true, dots);
      };
      if constexpr (Chunks > 0) {
#pragma unroll
        for (int chunk = 0; chunk < Chunks; ++chunk) visit(first_channel + chunk * channel_step, grad[chunk]);
      } else {
        for (int channel = first_channel; channel < problem.depth; channel += channel_step) {
          read(grad_output + channel, grad[0]);
          visit(channel, grad[0]);
        }
      }

      Acc sums[3];
      value_and_slopes(dots, h, w, sums);
      sum_over_lanes(sums, problem.lanes.divisor);
      if (leader) {
        const Acc gradient[2] = {weight * Acc(level.width) * sums[1], weight * Acc(height) * sums[2]};
        store<2>(grad_locations + 2 * point, gradient);
        narrow(sums[0], grad_weights[point]);
      }
    }
  }
  if (leader && !level.complete()) {
    const Acc gradient[2] = {not_a_number<Acc>(), not_a_number<Acc>()};
    for (int64_t k = first_point; k < point; ++k) {
      store<2>(grad_locations + 2 * k, gradient);
      narrow(gradient[0], grad_weights[k]);
    }
  }
}

}  // namespace dcnv3
