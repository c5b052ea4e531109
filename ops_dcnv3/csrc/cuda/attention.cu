// The compiled kernels of multi-scale deformable attention: from a call to launches, every element type.
#include "attention_cuda.h"
#include "attention_kernels.cuh"
#include "launch.h"

namespace dcnv3 {
namespace {

const char* check(const AttentionShape& s) {
  constexpr int64_t limit = 0x7fffffff;
  // Key indices of corners outside the map need room too.
  if (s.keys >= limit / 4) return "ms_deform_attn on CUDA: there must be less than 2^29 keys; split the maps";
  if (s.batch * s.queries > limit) {
    return "ms_deform_attn on CUDA: batch * queries must be below 2^31; split the batch";
  }
  if (s.heads * s.depth * 8 > limit || s.levels * s.points * 2 > limit) {
    return "ms_deform_attn on CUDA: heads * depth must be below 2^28 and levels * points below 2^30";
  }
  return nullptr;
}

bool is_empty(const AttentionShape& s) { return s.batch * s.queries * s.heads * s.depth == 0; }

template <typename T>
AttentionProblem make_problem(const AttentionShape& s, uint32_t lanes) {
  AttentionProblem p;
  p.keys = static_cast<int>(s.keys);
  p.depth = static_cast<int>(s.depth);
  p.levels = static_cast<int>(s.levels);
  p.points = static_cast<int>(s.points);
  p.key_bytes = static_cast<int>(s.heads * s.depth * sizeof(T));
  p.image_bytes = s.keys * p.key_bytes;
  p.lanes = FastDivisor(lanes);
  p.by_heads = FastDivisor(static_cast<uint32_t>(s.heads));
  p.by_queries = FastDivisor(static_cast<uint32_t>(s.queries));
  return p;
}

// Calls launch(blocks) for as many whole queries at a time as `max_threads` allows: all, unless there are 2^31 threads.
template <typename Launch>
void for_each_launch(const AttentionShape& s, AttentionProblem& problem, int64_t max_threads, Launch launch) {
  const int64_t queries = s.batch * s.queries, threads_per_query = s.heads * problem.lanes.divisor;
  const int64_t per_launch = threads_per_query < max_threads ? max_threads / threads_per_query : 1;
  for (int64_t first = 0; first < queries; first += per_launch) {
    const int64_t count = queries - first < per_launch ? queries - first : per_launch;
    problem.first_query = static_cast<uint32_t>(first);
    problem.threads = static_cast<uint32_t>(count * threads_per_query);
    launch((problem.threads + kAttentionThreads - 1) / kAttentionThreads);
  }
}

// Calls run(Step). Kernels that read four points at once exist for full vectors of channels, and not for double.
template <bool Specialise, typename Run>
void with_step(const AttentionShape& s, Run run) {
  if constexpr (Specialise) {
    if (s.points % 4 == 0) return run(std::integral_constant<int, 4>());
  }
  run(std::integral_constant<int, 1>());
}

template <typename T>
void launch_attention(const AttentionShape& s, const T* value, const int64_t* shapes, const T* locations,
                      const T* weights, T* output, cudaStream_t stream, int64_t max_threads) {
  with_vector_size<T>(s.depth, [&](auto v) {
    constexpr int V = decltype(v)::value;
    with_step<is_special<T, V>()>(s, [&](auto step) {
      const auto kernel = attention_forward_kernel<T, V, decltype(step)::value>;
      auto problem = make_problem<T>(s, static_cast<uint32_t>(s.depth / V));
      for_each_launch(s, problem, max_threads, [&](unsigned blocks) {
        DCNV3_LAUNCH(kernel, blocks, kAttentionThreads, stream, problem, value, shapes, locations, weights, output);
      });
    });
  });
}

template <typename T>
void launch_attention_backward(const AttentionShape& s, const T* grad_output, const T* value, const int64_t* shapes,
                               const T* locations, const T* weights, typename Accumulator<T>::type* grad_value,
                               T* grad_locations, T* grad_weights, cudaStream_t stream, int64_t max_threads) {
  using Acc = typename Accumulator<T>::type;
  // A chunk is one vector addition to grad_value. What fills 16 bytes of the value is one chunk, or two of a half type.
  constexpr int kWidest = 16 / sizeof(Acc), kChunks = sizeof(T) == 8 ? 0 : sizeof(Acc) / sizeof(T);
  with_vector_size<T, kWidest>(s.depth, [&](auto v) {
    constexpr int V = decltype(v)::value;
    // The lanes of a head lie in one warp; with fewer lanes than chunks, or idle lanes, the general kernel loops.
    const int64_t owned = int64_t{V} * (kChunks ? kChunks : 1);
    uint32_t lanes = 1;
    while (lanes < 32 && lanes * owned < s.depth) lanes *= 2;
    const auto run = [&](auto chunks) {
      const auto kernel = attention_backward_kernel<T, V, decltype(chunks)::value>;
      auto problem = make_problem<T>(s, lanes);
      for_each_launch(s, problem, max_threads, [&](unsigned blocks) {
        DCNV3_LAUNCH(kernel, blocks, kAttentionThreads, stream, problem, grad_output, value, shapes, locations,
                     weights, grad_value, grad_locations, grad_weights);
      });
    };
    if constexpr (kChunks > 0 && V == kWidest) {
      if (lanes * owned == s.depth) return run(std::integral_constant<int, kChunks>());
    }
    run(std::integral_constant<int, 0>());
  });
}

}  // namespace

const char* attention_forward(Dtype dtype, const AttentionShape& shape, const void* value, const int64_t* shapes,
                              const void* locations, const void* weights, void* output, void* stream,
                              int64_t max_threads) {
  const char* reason = check(shape);
  if (reason || is_empty(shape)) return reason;
  with_element_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_attention(shape, static_cast<const T*>(value), shapes, static_cast<const T*>(locations),
                     static_cast<const T*>(weights), static_cast<T*>(output), static_cast<cudaStream_t>(stream),
                     max_threads);
  });
  return launch_error();
}

const char* attention_backward(Dtype dtype, const AttentionShape& shape, const void* grad_output, const void* value,
                               const int64_t* shapes, const void* locations, const void* weights, void* grad_value,
                               void* grad_locations, void* grad_weights, void* stream, int64_t max_threads) {
  const char* reason = check(shape);
  if (reason || is_empty(shape)) return reason;
  with_element_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_attention_backward(shape, static_cast<const T*>(grad_output), static_cast<const T*>(value), shapes,
                              static_cast<const T*>(locations), static_cast<const T*>(weights),
                              static_cast<typename Accumulator<T>::type*>(grad_value), static_cast<T*>(grad_locations),
                              static_cast<T*>(grad_weights), static_cast<cudaStream_t>(stream), max_threads);
  });
  return launch_error();
}

}  // namespace dcnv3
