// DCNv3's compiled kernels behind the functions of dcnv3_cuda.h: checks sizes, picks the instantiation, cuts the work
// into launches.
#include "dcnv3_cuda_kernels.cuh"
#include "grad_input_kernel.cuh"
#include "launch.h"

namespace dcnv3 {
namespace {

// Work of fewer threads than this goes in blocks of kSmallBlock: 132 multiprocessors take four blocks of 128 each.
constexpr int64_t kFewThreads = 65536;
constexpr int kSmallBlock = 64;
constexpr int64_t kFewTiles = 512;  // warps; seven fit on a multiprocessor

// What keeps a shape from running, in words, or nullptr. Tensors may be larger than 2^31 elements; one image of the
// input, counted in pixels, and one row of the output may not.
const char* check(const Shape& s) {
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

bool is_empty(const Shape& s) { return s.batch * s.out_height() * s.out_width() * s.channels() == 0; }

template <typename T>
Problem<typename Accumulator<T>::type> make_problem(const Shape& s, uint32_t lanes) {
  using Acc = typename Accumulator<T>::type;
  const auto i = [](int64_t x) { return static_cast<int>(x); };
  const auto divisor = [](int64_t x) { return FastDivisor(static_cast<uint32_t>(x)); };
  const int64_t mask_row = s.groups * s.points(), pixel_bytes = s.channels() * int64_t{sizeof(T)};
  return {i(s.height), i(s.width), i(s.out_height()), i(s.out_width()), i(s.groups), i(s.group_channels),
          i(s.kernel_h), i(s.kernel_w), i(s.stride_h), i(s.stride_w), i(s.padding_h), i(s.padding_w),
          i(s.dilation_h), i(s.dilation_w), static_cast<Acc>(s.offset_scale), s.remove_center, s.mask_is_logits,
          s.offset_pitch ? s.offset_pitch : 2 * mask_row, s.mask_pitch ? s.mask_pitch : mask_row,
          i(pixel_bytes), s.width * pixel_bytes, s.height * s.width * pixel_bytes, 0, 0,
          FastDivisor(lanes), divisor(s.groups), divisor(s.out_width()), divisor(s.out_height())};
}

// Calls launch(blocks, threads) for parts of the output rows, the problem set accordingly, in blocks of `block` threads,
// or smaller ones where those would not reach every multiprocessor.
template <typename Acc, typename Launch>
void for_each_launch(const Shape& s, Problem<Acc>& problem, int block, int64_t max_threads, Launch launch) {
  const int64_t rows = s.batch * s.out_height();
  const int64_t threads_per_row = s.out_width() * s.groups * problem.lanes.divisor;
  if (rows * threads_per_row < kFewThreads && block > kSmallBlock) block = kSmallBlock;
  for_each_part(rows, threads_per_row, max_threads, [&](int64_t first, int64_t count) {
    problem.first_row = static_cast<uint32_t>(first);
    problem.threads = static_cast<uint32_t>(count * threads_per_row);
    launch(static_cast<unsigned>((problem.threads + block - 1) / block), static_cast<unsigned>(block));
  });
}

// Calls run(Points, Logits) with what is known at compile time of a 3x3 window.
template <typename Run>
void with_small_window(const Shape& s, Run run) {
  const auto with_points = [&](auto points) {
    s.mask_is_logits ? run(points, std::true_type()) : run(points, std::false_type());
  };
  s.remove_center ? with_points(std::integral_constant<int, 8>()) : with_points(std::integral_constant<int, 9>());
}

// Whether grad_input_kernel can take this: a group's fours of channels are a power of two of a warp's lanes.
template <typename T>
bool sums_by_tiles(const Shape& s) {
  const int64_t lanes = s.group_channels / 4;
  return sizeof(T) < 8 && s.kernel_h == 3 && s.kernel_w == 3 && s.group_channels % 4 == 0 && lanes > 0 && lanes <= 32 &&
         (lanes & (lanes - 1)) == 0;
}

// Output pixels whose window centres lie in a region's middle.
int tile_size(int region, int64_t stride) { return static_cast<int>((region - 2 * kHalo - 1) / stride + 1); }

template <typename T>
void launch_grad_input(const Shape& s, const T* grad_output, const T* offset, const T* mask, float* grad_input,
                       void* stream, int64_t max_threads) {
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
  for_each_part(s.batch, units * lanes, max_threads, [&](int64_t first, int64_t count) {
    tiles.first_image = static_cast<uint32_t>(first);
    tiles.units = static_cast<uint32_t>(count * units);
    const auto blocks = static_cast<unsigned>((count * units * lanes + 31) / 32);
    with_small_window(s, [&](auto points, auto logits) {
      const auto kernel = grad_input_kernel<T, decltype(points)::value, decltype(logits)::value>;
      DCNV3_LAUNCH(kernel, blocks, 32, stream, problem, tiles, grad_output, offset, mask, grad_input);
    });
  });
}

}  // namespace

const char* forward(Dtype dtype, const Shape& s, const void* input, const void* offset, const void* mask, void* output,
                    void* stream, int64_t max_threads) {
  const char* reason = check(s);
  if (reason || is_empty(s)) return reason;
  with_vector(dtype, s.group_channels, [&](auto zero, auto v) {
    using T = decltype(zero);
    constexpr int V = decltype(v)::value;
    const auto in = [](const void* tensor) { return static_cast<const T*>(tensor); };
    const auto run = [&](auto points, auto logits) {
      const auto kernel = forward_kernel<T, V, decltype(points)::value, decltype(logits)::value>;
      auto problem = make_problem<T>(s, static_cast<uint32_t>(s.group_channels / V));
      for_each_launch(s, problem, kForwardThreads, max_threads, [&](unsigned blocks, unsigned threads) {
        DCNV3_LAUNCH(kernel, blocks, threads, stream, problem, in(input), in(offset), in(mask),
                     static_cast<T*>(output));
      });
    };
    if constexpr (is_special<T, V>()) {
      if (s.kernel_h == 3 && s.kernel_w == 3) return with_small_window(s, run);
    }
    run(std::integral_constant<int, 0>(), std::false_type());
  });
  return launch_error();
}

const char* backward(Dtype dtype, const Shape& s, const void* grad_output, const void* input, const void* offset,
                     const void* mask, void* grad_input, void* grad_offset, void* grad_mask, void* stream,
                     int64_t max_threads) {
  const char* reason = check(s);
  if (reason || is_empty(s)) return reason;
  with_vector(dtype, s.group_channels, [&](auto zero, auto v) {
    using T = decltype(zero);
    constexpr int V = decltype(v)::value;
    const auto in = [](const void* tensor) { return static_cast<const T*>(tensor); };
    const auto out = [](void* tensor) { return static_cast<T*>(tensor); };
    auto* const sums = static_cast<typename Accumulator<T>::type*>(grad_input);
    // The lanes of a group lie in one warp; with fewer lanes than vectors, or idle lanes, the general kernel loops.
    uint32_t lanes = 1;
    while (lanes < 32 && int64_t{lanes} * V < s.group_channels) lanes *= 2;
    const auto run = [&](auto points, auto logits) {
      const auto kernel = backward_kernel<T, V, decltype(points)::value, decltype(logits)::value>;
      auto problem = make_problem<T>(s, lanes);
      for_each_launch(s, problem, kBackwardThreads, max_threads, [&](unsigned blocks, unsigned threads) {
        DCNV3_LAUNCH(kernel, blocks, threads, stream, problem, in(grad_output), in(input), in(offset), in(mask), sums,
                     out(grad_offset), out(grad_mask));
      });
    };
    if constexpr (is_special<T, V>()) {
      if (sums_by_tiles<T>(s) && int64_t{lanes} * V == s.group_channels) {
        with_small_window(s, run);
        return launch_grad_input(s, in(grad_output), in(offset), in(mask), sums, stream, max_threads);
      }
    }
    run(std::integral_constant<int, 0>(), std::false_type());
  });
  return launch_error();
}

const char* narrow(Dtype dtype, const void* wide, void* result, int64_t count, void* stream) {
  const auto convert = [&](auto zero) {
    using T = decltype(zero);
    const int64_t blocks = (count + 4 * kForwardThreads - 1) / (4 * kForwardThreads);
    const auto kernel = narrow_kernel<T>;
    if (blocks > 0) {
      DCNV3_LAUNCH(kernel, static_cast<unsigned>(blocks < 65536 ? blocks : 65536), kForwardThreads, stream,
                   static_cast<const float*>(wide), static_cast<T*>(result), count);
    }
  };
  if (dtype == Dtype::kFloat16) convert(__half());
  if (dtype == Dtype::kBFloat16) convert(__nv_bfloat16());
  return launch_error();
}

}  // namespace dcnv3
