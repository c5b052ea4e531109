// What the launchers of all kernels share: the launch itself, through one macro, and the choice of instantiations.
// Host code for both compilers.
#pragma once

#include "dcnv3_cuda.h"
#include "dcnv3_cuda_common.cuh"

#include <type_traits>

#ifdef __CUDACC__
#define DCNV3_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#define DCNV3_LAUNCH(kernel, blocks, threads, stream, ...) \
  ::emulation::launch(blocks, threads, stream, [&] { kernel(__VA_ARGS__); })
#endif

namespace dcnv3 {

inline const char* launch_error() {
#ifdef __CUDACC__
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return cudaGetErrorString(error);
#endif
  return nullptr;
}

// Calls run(T()) with the element type.
template <typename Run>
void with_element_type(Dtype dtype, Run run) {
  switch (dtype) {
    case Dtype::kFloat16: return run(__half());
    case Dtype::kBFloat16: return run(__nv_bfloat16());
    case Dtype::kFloat32: return run(float());
    case Dtype::kFloat64: return run(double());
  }
}

// Calls run(std::integral_constant<int, V>) with the most channels per 16-byte access that divide a group.
template <typename T, int V = 16 / sizeof(T), typename Run>
void with_vector_size(int64_t group_channels, Run run) {
  if constexpr (V > 1) {
    if (group_channels % V != 0) return with_vector_size<T, V / 2>(group_channels, run);
  }
  run(std::integral_constant<int, V>());
}

// Calls run(T(), V) with the element type and the vector size.
template <typename Run>
void with_vector(Dtype dtype, int64_t group_channels, Run run) {
  with_element_type(dtype, [&](auto zero) {
    with_vector_size<decltype(zero)>(group_channels, [&](auto v) { run(zero, v); });
  });
}

// Only full vectors have kernels for 3x3 windows, and not those of double, which is there for checking gradients.
template <typename T, int V>
constexpr bool is_special() {
  return V * sizeof(T) == 16 && sizeof(T) < 8;
}

// Calls launch(first, count) for as many whole rows at a time as `max_threads` allows.
template <typename Launch>
void for_each_part(int64_t rows, int64_t threads_per_row, int64_t max_threads, Launch launch) {
  const int64_t most = threads_per_row < max_threads ? max_threads / threads_per_row : 1;
  for (int64_t first = 0; first < rows; first += most) launch(first, rows - first < most ? rows - first : most);
}

}  // namespace dcnv3
