// From a DCNv3 call to kernel launches: checks sizes, picks the instantiation, cuts the work into launches.
// Host code for both compilers; the launch itself goes through one macro.
#pragma once

#include "dcnv3_cuda.h"
#include "dcnv3_cuda_kernels.cuh"
#include "grad_input_kernel.cuh"

#include <type_traits>

#ifdef __CUDACC__
#define DCNV3_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#else
#define DCNV3_LAUNCH(kernel, blocks, threads, stream, ...) \
  ::emulation::launch(blocks, threads, stream, [&] { kernel(__VA_ARGS__); })
#endif

namespace dcnv3 {

// Work of fewer threads than this goes in blocks of kSmallBlock: 132 multiprocessors take four blocks of 128 each.
constexpr int64_t kFewThreads = 65536;
constexpr int kSmallBlock = 64;
constexpr int64_t kFewTiles = 512;  // warps; seven fit on a multiprocessor

// What keeps a shape from running, in words, or nullptr. Tensors may be larger than 2^31 elements; one image of the
// input, counted in pixels, and one row of the output may not.
inline const char* check(const Shape& s) {
  constexpr int64_t limit = 0x7fffffff;
  if (s.height * s.width > limit || s.batch * s.out_height() > limit) {
    return "dcnv3 on CUDA: height * width of the input and batch * height of the output must be below 2^31; "
           "split the batch or the image";
  }
  if (s.out_width() * s.channels() > kMaxThreads / 2 || s.channels() * 8 > limit || s.groups * s.points() * 2 > limit) {
    return "dcnv3 on CUDA: one row of the output must have less than 2^30 elements; split the image by columns";
  }
  return nullptr;
}

inline bool is_empty(const Shape& s) { return s.batch * s.out_height() * s.out_width() * s.channels() == 0; }

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

template <typename T>
Problem<typename Accumulator<T>::type> make_problem(const Shape& s, uint32_t lanes) {
  Problem<typename Accumulator<T>::type> p;
  p.height = static_cast<int>(s.height);
  p.width = static_cast<int>(s.width);
  p.out_height = static_cast<int>(s.out_height());
  p.out_width = static_cast<int>(s.out_width());
  p.groups = static_cast<int>(s.groups);
  p.group_channels = static_cast<int>(s.group_channels);
  p.kernel_h = static_cast<int>(s.kernel_h);
  p.kernel_w = static_cast<int>(s.kernel_w);
  p.stride_h = static_cast<int>(s.stride_h);
  p.stride_w = static_cast<int>(s.stride_w);
  p.padding_h = static_cast<int>(s.padding_h);
  p.padding_w = static_cast<int>(s.padding_w);
  p.dilation_h = static_cast<int>(s.dilation_h);
  p.dilation_w = static_cast<int>(s.dilation_w);
  p.offset_scale = static_cast<typename Accumulator<T>::type>(s.offset_scale);
  p.remove_center = s.remove_center;
  p.mask_is_logits = s.mask_is_logits;
  p.offset_pitch = s.offset_pitch ? s.offset_pitch : s.groups * s.points() * 2;
  p.mask_pitch = s.mask_pitch ? s.mask_pitch : s.groups * s.points();
  p.pixel_bytes = static_cast<int>(s.channels() * sizeof(T));
  p.row_bytes = s.width * p.pixel_bytes;
  p.image_bytes = s.height * p.row_bytes;
  p.lanes = FastDivisor(lanes);
  p.by_groups = FastDivisor(static_cast<uint32_t>(p.groups));
  p.by_out_width = FastDivisor(static_cast<uint32_t>(p.out_width));
  p.by_out_height = FastDivisor(static_cast<uint32_t>(p.out_height));
  return p;
}

// Calls launch(blocks, threads) for as many whole output rows at a time as `max_threads` allows, the problem set
// accordingly, in blocks of `block` threads, or smaller ones where those would not reach every multiprocessor.
template <typename Acc, typename Launch>
void for_each_launch(const Shape& s, Problem<Acc>& problem, int block, int64_t max_threads, Launch launch) {
  const int64_t rows = s.batch * s.out_height();
  const int64_t threads_per_row = s.out_width() * s.groups * problem.lanes.divisor;
  const int64_t rows_per_launch = threads_per_row < max_threads ? max_threads / threads_per_row : 1;
  if (rows * threads_per_row < kFewThreads && block > kSmallBlock) block = kSmallBlock;
  for (int64_t first = 0; first < rows; first += rows_per_launch) {
    const int64_t count = rows - first < rows_per_launch ? rows - first : rows_per_launch;
    problem.first_row = static_cast<uint32_t>(first);
    problem.threads = static_cast<uint32_t>(count * threads_per_row);
    launch(static_cast<unsigned>((problem.threads + block - 1) / block), static_cast<unsigned>(block));
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

// Only full vectors have kernels for 3x3 windows, and not those of double, which is there for checking gradients.
template <typename T, int V>
constexpr bool is_special() {
  return V * sizeof(T) == 16 && sizeof(T) < 8;
}

// Calls run(Points, Logits) with what is known at compile time of a 3x3 window.
template <typename Run>
void with_small_window(const Shape& s, Run run) {
  using std::integral_constant;
  if (s.remove_center) {
    s.mask_is_logits ? run(integral_constant<int, 8>(), std::true_type())
                     : run(integral_constant<int, 8>(), std::false_type());
  } else {
    s.mask_is_logits ? run(integral_constant<int, 9>(), std::true_type())
                     : run(integral_constant<int, 9>(), std::false_type());
  }
}

// Writes output, for a shape that passes check() and is not empty.
template <typename T>
void launch_forward(const Shape& s, const T* input, const T* offset, const T* mask, T* output, cudaStream_t stream, int64_t max_threads) {
  with_vector_size<T>(s.group_channels, [&](auto v) {
    constexpr int V = decltype(v)::value;
    const auto run = [&](auto points, auto logits) {
      const auto kernel = forward_kernel<T, V, decltype(points)::value, decltype(logits)::value>;
      auto problem = make_problem<T>(s, static_cast<uint32_t>(s.group_channels / V));
      for_each_launch(s, problem, kForwardThreads, max_threads, [&](unsigned blocks, unsigned threads) {
        DCNV3_LAUNCH(kernel, blocks, threads, stream, problem, input, offset, mask, output);
      });
    };
    if constexpr (is_special<T, V>()) {
      if (s.kernel_h == 3 && s.kernel_w == 3) return with_small_window(s, run);
    }
    run(std::integral_constant<int, 0>(), std::false_type());
  });
}

// Whether grad_input_kernel can take this: a group's fours of channels are a power of two of a warp's lanes.
template <typename T>
bool sums_by_tiles(const Shape& s) {
  const int64_t lanes = s.group_channels / 4;
  return sizeof(T) < 8 && s.kernel_h == 3 && s.kernel_w == 3 && s.group_channels % 4 == 0 && lanes > 0 && lanes <= 32 &&
         (lanes & (lanes - 1)) == 0;
}

// Output pixels whose window centres lie in a region's middle.
inline int tile_size(int region, int64_t stride) { return static_cast<int>((region - 2 * kHalo - 1) / stride + 1); }

template <typename T, typename Acc>
void launch_grad_input(const Shape& s, const T* grad_output, const T* offset, const T* mask, Acc* grad_input,
                       cudaStream_t stream, int64_t max_threads) {
  const auto problem = make_problem<T>(s, 1);
  Tiles tiles;
  tiles.rows = tile_size(kRegionRows, s.stride_h);
  tiles.columns = tile_size(kRegionColumns, s.stride_w);
  const int64_t lanes = s.group_channels / 4;
  int64_t down, across, units;  // units of one image
  while (true) {
    down = (s.out_height() + tiles.rows - 1) / tiles.rows;
    across = (s.out_width() + tiles.columns - 1) / tiles.columns;
    units = down * across * s.groups;
    // A small problem is cut finer, so that every multiprocessor has something to do.
    int& larger = tiles.columns > tiles.rows ? tiles.columns : tiles.rows;
    if (s.batch * units * lanes / 32 >= kFewTiles || larger == 1) break;
    larger = (larger + 1) / 2;
  }
  tiles.lanes = FastDivisor(static_cast<uint32_t>(lanes));
  tiles.by_groups = FastDivisor(static_cast<uint32_t>(s.groups));
  tiles.by_columns = FastDivisor(static_cast<uint32_t>(across));
  tiles.by_rows = FastDivisor(static_cast<uint32_t>(down));
  const int64_t images = units * lanes < max_threads ? max_threads / (units * lanes) : 1;
  for (int64_t first = 0; first < s.batch; first += images) {
    const int64_t count = s.batch - first < images ? s.batch - first : images;
    tiles.first_image = static_cast<uint32_t>(first);
    tiles.units = static_cast<uint32_t>(count * units);
    const auto blocks = static_cast<unsigned>((count * units * lanes + 31) / 32);
    const auto run = [&](auto points, auto logits) {
      const auto kernel = grad_input_kernel<T, decltype(points)::value, decltype(logits)::value>;
      DCNV3_LAUNCH(kernel, blocks, 32, stream, problem, tiles, grad_output, offset, mask, grad_input);
    };
    with_small_window(s, run);
  }
}

// Adds to grad_input (accumulator type, zeroed by the caller), writes grad_offset and grad_mask.
template <typename T>
void launch_backward(const Shape& s, const T* grad_output, const T* input, const T* offset, const T* mask,
                     typename Accumulator<T>::type* grad_input, T* grad_offset, T* grad_mask, cudaStream_t stream,
                     int64_t max_threads) {
  with_vector_size<T>(s.group_channels, [&](auto v) {
    constexpr int V = decltype(v)::value;
    // The lanes of a group lie in one warp; with fewer lanes than vectors, or idle lanes, the general kernel loops.
    uint32_t lanes = 1;
    while (lanes < 32 && int64_t{lanes} * V < s.group_channels) lanes *= 2;
    const auto run = [&](auto points, auto logits) {
      const auto kernel = backward_kernel<T, V, decltype(points)::value, decltype(logits)::value>;
      auto problem = make_problem<T>(s, lanes);
      for_each_launch(s, problem, kBackwardThreads, max_threads, [&](unsigned blocks, unsigned threads) {
        DCNV3_LAUNCH(kernel, blocks, threads, stream, problem, grad_output, input, offset, mask, grad_input,
                     grad_offset, grad_mask);
      });
    };
    if constexpr (is_special<T, V>()) {
      if (sums_by_tiles<T>(s) && int64_t{lanes} * V == s.group_channels) {
        with_small_window(s, run);
        launch_grad_input(s, grad_output, offset, mask, grad_input, stream, max_threads);
        return;
      }
    }
    run(std::integral_constant<int, 0>(), std::false_type());
  });
}

// Converts `count` accumulated values, both pointers on 16-byte boundaries.
template <typename T>
void launch_narrow(const float* wide, T* result, int64_t count, cudaStream_t stream) {
  const int64_t blocks = (count + 4 * kForwardThreads - 1) / (4 * kForwardThreads);
  const auto kernel = narrow_kernel<T>;
  if (blocks > 0) {
    DCNV3_LAUNCH(kernel, static_cast<unsigned>(blocks < 65536 ? blocks : 65536), kForwardThreads, stream, wide, result,
                 count);
  }
}

}  // namespace dcnv3
