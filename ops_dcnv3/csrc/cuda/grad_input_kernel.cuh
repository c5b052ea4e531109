// The gradient of the input for 3x3 windows, summed tile by tile in shared memory.
//
// Every input pixel receives 36 contributions on average: 4 corners of 9 points. As additions in global memory they are
// what the backward pass waits for (91% of the level 2 cache's throughput on an H200). Here a warp walks over a tile of
// output pixels and adds to a region of the input in shared memory, which goes out once at the end: at most four additions
// in global memory for each pixel, and one more for each corner of a point that leaves the region.
//
// No synchronisation and no atomic addition in shared memory: lane l owns bytes 16 l to 16 l + 15 of every pixel of the
// region, four channels of one group of one tile, and touches nothing else. D / 4 neighbouring lanes make up a group.
#pragma once

#include "dcnv3_cuda_kernels.cuh"

namespace dcnv3 {

// The region, 32 KB. A tile's window centres keep kHalo pixels from its edges.
constexpr int kRegionRows = 8, kRegionColumns = 8, kHalo = 2;

// How the output is cut: a unit is one group of one tile.
struct Tiles {
  int rows, columns;      // of one tile, in output pixels
  uint32_t first_image, units;  // of this launch
  FastDivisor lanes, by_groups, by_columns, by_rows;  // groups, tiles in a row and tiles in a column of an image
};

// What one lane needs to know of one output pixel.
template <typename T, int Points>
struct Contribution {
  Pack<T, 2> offset[Points];
  Pack<T, 4> grad;
  T mask[Points];
};

template <typename T, int Points, bool Logits>
__global__ void __launch_bounds__(32)
    grad_input_kernel(const Problem<float> problem, const Tiles tiles, const T* __restrict__ grad_output,
                      const T* __restrict__ offset, const T* __restrict__ mask, float* __restrict__ grad_input) {
  __shared__ float4 region[kRegionRows * kRegionColumns * 32];
  const uint32_t warp_units = 32 / tiles.lanes.divisor, local = tiles.lanes.quotient(threadIdx.x);
  const uint32_t unit = blockIdx.x * warp_units + local, lane = threadIdx.x - local * tiles.lanes.divisor;
  if (unit >= tiles.units) return;
  const uint32_t tile = tiles.by_groups.quotient(unit), group = unit - tile * tiles.by_groups.divisor;
  const uint32_t tile_row = tiles.by_columns.quotient(tile), column = tile - tile_row * tiles.by_columns.divisor;
  const uint32_t local_image = tiles.by_rows.quotient(tile_row), row = tile_row - local_image * tiles.by_rows.divisor;
  const int64_t image = int64_t{tiles.first_image} + local_image;

  // The part of the region that this size of tiles reaches.
  const int used_rows = (tiles.rows - 1) * problem.stride_h + 2 * kHalo + 1;
  const int used_columns = (tiles.columns - 1) * problem.stride_w + 2 * kHalo + 1;
  float4* const sums = region + threadIdx.x;
  for (int y = 0; y < used_rows; ++y) {
#pragma unroll 4
    for (int x = 0; x < used_columns; ++x) sums[(y * kRegionColumns + x) * 32] = make_float4(0, 0, 0, 0);
  }

  const int channels = problem.groups * problem.group_channels, channel = group * problem.group_channels + lane * 4;
  const int first_row = row * tiles.rows, first_column = column * tiles.columns;
  const int origin_h = first_row * problem.stride_h - problem.padding_h + problem.dilation_h - kHalo;
  const int origin_w = first_column * problem.stride_w - problem.padding_w + problem.dilation_w - kHalo;
  const int rows = min(tiles.rows, problem.out_height - first_row);
  const int columns = min(tiles.columns, problem.out_width - first_column);
  const int64_t first_pixel = (image * problem.out_height + first_row) * problem.out_width + first_column;
  offset += group * Points * 2;
  mask += group * Points;
  grad_input += image * problem.height * problem.width * channels + channel;

  const auto read = [&](int r, int c, Contribution<T, Points>& to) {
    const int64_t pixel = first_pixel + int64_t{r} * problem.out_width + c;
#pragma unroll
    for (int k = 0; k < Points; ++k) {
      to.offset[k].load(offset + pixel * problem.offset_pitch + 2 * k);
      to.mask[k] = __ldg(mask + pixel * problem.mask_pitch + k);
    }
    to.grad.load(grad_output + pixel * channels + channel);
  };

  Contribution<T, Points> now, next;
  read(0, 0, next);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      now = next;
      // The next pixel's loads are under way while this one is added.
      if (c + 1 < columns) {
        read(r, c + 1, next);
      } else if (r + 1 < rows) {
        read(r + 1, 0, next);
      }
      float grad[4];
      now.grad.widen_to(grad);
      MaskReader<T, Points> weight_of(now.mask, Logits);
      weight_of.normalise();
      const Sampler<Points, float> sample(problem, first_row + r, first_column + c, problem.height);
      // First all points' places and weights, whose chains of arithmetic overlap, then the additions, which cannot.
      float4* at[Points];
      float weights[Points][4];
      uint32_t near = 0, far = 0;
      for_each_point<Points>(problem, [&](int k, int i, int j) {
        const auto [h, w] = sample(now.offset[k], i, j);
        corner_weights(weight_of(k), h, w, weights[k]);
        const int y = h.low - origin_h, x = w.low - origin_w;
        const bool counts = (h.low_inside || h.high_inside) && (w.low_inside || w.high_inside);
        const bool is_near = static_cast<unsigned>(y) < static_cast<unsigned>(used_rows - 1) &&
                             static_cast<unsigned>(x) < static_cast<unsigned>(used_columns - 1);
        at[k] = sums + (is_near ? y * kRegionColumns + x : 0) * 32;
        near |= (counts && is_near ? 1u : 0u) << k;
        far |= (counts && !is_near ? 1u : 0u) << k;
      });
#pragma unroll
      for (int k = 0; k < Points; ++k) {
        // Corners outside the image are added to pixels of the region that never leave it.
        float4* const corners[4] = {at[k], at[k] + 32, at[k] + kRegionColumns * 32, at[k] + kRegionColumns * 32 + 32};
        float4 sum[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) sum[q] = *corners[q];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          sum[q].x = fmaf(weights[k][q], grad[0], sum[q].x);
          sum[q].y = fmaf(weights[k][q], grad[1], sum[q].y);
          sum[q].z = fmaf(weights[k][q], grad[2], sum[q].z);
          sum[q].w = fmaf(weights[k][q], grad[3], sum[q].w);
          if (near >> k & 1) *corners[q] = sum[q];
        }
      }
      // Few points lie outside the region; a loop for them keeps the code above short.
      for (; far != 0; far &= far - 1) {
        const int k = __ffs(far) - 1, tap = k + (Points == 8 && k >= 4 ? 1 : 0);
        const int64_t pixel = first_pixel + int64_t{r} * problem.out_width + c;
        Pack<T, 2> shift;
        shift.load(offset + pixel * problem.offset_pitch + 2 * k);
        const auto [h, w] = sample(shift, tap / 3, tap % 3);
        float weight4[4];
        corner_weights(weight_of.of(widen(__ldg(mask + pixel * problem.mask_pitch + k))), h, w, weight4);
        bool inside[4];
        corners_inside(h, w, inside);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          if (!inside[q]) continue;
          const float x4[4] = {weight4[q] * grad[0], weight4[q] * grad[1], weight4[q] * grad[2], weight4[q] * grad[3]};
          atomic_add<4>(grad_input + (int64_t{h.low + q / 2} * problem.width + w.low + q % 2) * channels, x4);
        }
      }
    }
  }

  for (int y = 0; y < used_rows; ++y) {
    const int h = origin_h + y;
    if (static_cast<unsigned>(h) >= static_cast<unsigned>(problem.height)) continue;
#pragma unroll 4
    for (int x = 0; x < used_columns; ++x) {
      const int w = origin_w + x;
      const float4 sum = sums[(y * kRegionColumns + x) * 32];
      const bool untouched = sum.x == 0 && sum.y == 0 && sum.z == 0 && sum.w == 0;
      if (untouched || static_cast<unsigned>(w) >= static_cast<unsigned>(problem.width)) continue;
      const float x4[4] = {sum.x, sum.y, sum.z, sum.w};
      atomic_add<4>(grad_input + (int64_t{h} * problem.width + w) * channels, x4);
    }
  }
}

}  // namespace dcnv3
