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
  const auto i = [](int64_t x) { return static_cast<int>(x); };
  const auto divisor = [](int64_t x) { return FastDivisor(static_cast<uint32_t>(x)); };
  const int64_t key_bytes = s.heads * s.depth * int64_t{sizeof(T)};
  return {i(s.keys), i(s.depth), i(s.levels), i(s.points), i(key_bytes), s.keys * key_bytes, 0, 0,
          FastDivisor(lanes), divisor(s.heads), divisor(s.queries)};
}

// Calls launch(blocks) for parts of the queries: one, unless there are 2^31 threads.
template <typename Launch>
void for_each_launch(const AttentionShape& s, AttentionProblem& problem, int64_t max_threads, Launch launch) {
  const int64_t threads_per_query = s.heads * problem.lanes.divisor;
  for_each_part(s.batch * s.queries, threads_per_query, max_threads, [&](int64_t first, int64_t count) {
    problem.first_query = static_cast<uint32_t>(first);
    problem.threads = static_cast<uint32_t>(count * threads_per_query);
    launch((problem.threads + kAttentionThreads - 1) / kAttentionThreads);
  });
}

// Calls run(Step). Kernels that read four points at once exist for full vectors of channels, and not for double.
template <bool Specialise, typename Run>
void with_step(const AttentionShape& s, Run run) {
  if constexpr (Specialise) {
    if (s.points % 4 == 0) return run(std::integral_constant<int, 4>());
  }
  run(std::integral_constant<int, 1>());
}

}  // namespace

const char* attention_forward(Dtype dtype, const AttentionShape& s, const void* value, const int64_t* shapes,
                              const void* locations, const void* weights, void* output, void* stream,
                              int64_t max_threads) {
  const char* reason = check(s);
  if (reason || is_empty(s)) return reason;
  with_vector(dtype, s.depth, [&](auto zero, auto v) {
    using T = decltype(zero);
    constexpr int V = decltype(v)::value;
    const auto in = [](const void* tensor) { return static_cast<const T*>(tensor); };
    with_step<is_special<T, V>()>(s, [&](auto step) {
      const auto kernel = attention_forward_kernel<T, V, decltype(step)::value>;
      auto problem = make_problem<T>(s, static_cast<uint32_t>(s.depth / V));
      for_each_launch(s, problem, max_threads, [&](unsigned blocks) {
        DCNV3_LAUNCH(kernel, blocks, kAttentionThreads, stream, problem, in(value), shapes, in(locations), in(weights),
                     static_cast<T*>(output));
      });
    });
  });
  return launch_error();
}

const char* attention_backward(Dtype dtype, const AttentionShape& s, const void* grad_output, const void* value,
                               const int64_t* shapes, const void* locations, const void* weights, void* grad_value,
                               void* grad_locations, void* grad_weights, void* stream, int64_t max_threads) {
  const char* reason = check(s);
  if (reason || is_empty(s)) return reason;
  with_element_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename Accumulator<T>::type;
    const auto in = [](const void* tensor) { return static_cast<const T*>(tensor); };
    const auto out = [](void* tensor) { return static_cast<T*>(tensor); };
    // A chunk is one vector addition to grad_value. What fills 16 bytes of the value is one chunk, or two of a half
    // type.
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
          DCNV3_LAUNCH(kernel, blocks, kAttentionThreads, stream, problem, in(grad_output), in(value), shapes,
                       in(locations), in(weights), static_cast<Acc*>(grad_value), out(grad_locations),
                       out(grad_weights));
        });
      };
      if constexpr (kChunks > 0 && V == kWidest) {
        if (lanes * owned == s.depth) return run(std::integral_constant<int, kChunks>());
      }
      run(std::integral_constant<int, 0>());
    });
  });
  return launch_error();
}

}  // namespace dcnv3
