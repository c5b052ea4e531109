// DCNv3 on the CPU (Wang et al., "InternImage", CVPR 2023): forward and backward for one instruction set.
//
// A unit is one output pixel of one group: `points` sampling points, `depth` channels. Units are numbered
// pixel * groups + group, the order of offset and mask in memory. A run of consecutive units is handled in three steps:
//   locate   coordinates, bilinear weights times mask, and pixel index of every point, vectorised over points
//   sample   (forward) or scatter (backward), vectorised over channels
//   finish   (backward) gradients of offset and mask from four dot products per point, vectorised over points
// A corner outside the image gets weight zero and the address of a corner inside; a point outside is skipped.
#pragma once

#include "simd.h"
#include "types.h"

namespace {

using ops_dcnv3::BackwardTensors;
using ops_dcnv3::DType;
using ops_dcnv3::ForwardTensors;
using ops_dcnv3::Problem;

// Points in a run: its tables (32 bytes a point, 52 in backward, fp32) share the L1 cache with a strip of the input.
constexpr int64_t kRunPoints = 512;

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t units_per_run(const Problem& p) { return p.points >= kRunPoints ? 1 : kRunPoints / p.points; }

// Groups whose 16-bit gradients are summed in one fp32 buffer, which is then as large as an image of the output.
inline int64_t groups_at_once(const Problem& p) { return p.groups > 2 ? p.groups / 2 : 1; }

// Lanes of the vectors over points: whole bytes of bits are stored, so at least 8.
template <class A>
struct Lanes {
  static constexpr int count = DCNV3_FLOAT_LANES < 16 || sizeof(A) == 8 ? 8 : 16;
};

// Tables of one run. Weights and dots are [point][corner], corners in the order (y0, x0), (y0, x1), (y1, x0), (y1, x1).
template <class A>
struct Scratch {
  A *weights, *dots, *mask, *grad_mask, *tap_fraction_x, *tap_fraction_y, *grad_input;
  int32_t *base_x, *base_y, *pixel, *tap_x, *tap_y;
  uint8_t *valid, *inner, *pair_x, *pair_y;  // bits: point counts; all corners inside; both columns, both rows inside
  bool fractional_taps;
  int64_t bytes;

  Scratch(const Problem& p, void* memory, bool backward, bool own_grad_input) {
    constexpr int N = Lanes<A>::count;
    const int64_t n = units_per_run(p) * p.points + 2 * N;
    char* next = static_cast<char*>(memory);
    const auto take = [&](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(next);
      next += (count * int64_t(sizeof(*pointer)) + 63) / 64 * 64;
    };
    take(weights, 4 * n), take(mask, n), take(tap_fraction_x, n), take(tap_fraction_y, n);
    take(base_x, n), take(base_y, n), take(pixel, n), take(tap_x, p.points + N), take(tap_y, p.points + N);
    take(valid, n / 8 + 8), take(inner, n / 8 + 8), take(pair_x, n / 8 + 8), take(pair_y, n / 8 + 8);
    take(dots, backward ? 4 * n : 0), take(grad_mask, backward ? n : 0);
    take(grad_input, own_grad_input ? p.height * p.width * groups_at_once(p) * p.depth : 0);
    bytes = next - static_cast<char*>(memory);
    if (memory == nullptr) return;
    for (int64_t k = 0; k < p.points + N; ++k) {
      tap_x[k] = k < p.points ? p.tap_x[k] : 0;
      tap_y[k] = k < p.points ? p.tap_y[k] : 0;
    }
    fractional_taps = false;
    for (int64_t k = 0; k < p.points; ++k)
      fractional_taps = fractional_taps || p.tap_fraction_x[k] != 0 || p.tap_fraction_y[k] != 0;
    if (!fractional_taps) return;
    for (int64_t i = 0; i < n; ++i) {
      tap_fraction_x[i] = A(p.tap_fraction_x[i % p.points]);
      tap_fraction_y[i] = A(p.tap_fraction_y[i % p.points]);
    }
  }
};

// Up to 57 bits from bit `at` on.
inline uint64_t read_bits(const uint8_t* bytes, int64_t at, int count) {
  uint64_t word;
  std::memcpy(&word, bytes + (at >> 3), sizeof(word));
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return (word >> (at & 7)) & ((uint64_t(1) << count) - 1);
}

inline int lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_ctzll(bits);
#else
  int index = 0;
  while (!((bits >> index) & 1)) ++index;
  return index;
#endif
}

// ---- locate --------------------------------------------------------------------------------------------------------

template <class V>
struct Location {
  typename V::Int x, y;  // floor
  V lx, ly;              // fraction
  decltype(positive(V())) x0, x1, y0, y1;
};

// The point counts if -1 < x < width and -1 < y < height, each corner only if inside.
template <class V, class A>
DCNV3_INLINE inline Location<V> locate(V x, V y, const Scratch<A>& s, int64_t at, const Problem& p) {
  Location<V> l;
  if (s.fractional_taps) {
    x = fma(x, V::all(A(p.offset_scale)), V::load(s.tap_fraction_x + at));
    y = fma(y, V::all(A(p.offset_scale)), V::load(s.tap_fraction_y + at));
  } else {
    x = x * V::all(A(p.offset_scale));
    y = y * V::all(A(p.offset_scale));
  }
  l.x = split(x, l.lx) + V::Int::load(s.base_x + at);
  l.y = split(y, l.ly) + V::Int::load(s.base_y + at);
  l.x0 = inside(l.x, int32_t(p.width));
  l.y0 = inside(l.y, int32_t(p.height));
  // Exactly -1 does not count: the right neighbour of column -1 needs a fraction.
  l.x1 = inside(add(l.x, 1), int32_t(p.width)) & (l.x0 | positive(l.lx));
  l.y1 = inside(add(l.y, 1), int32_t(p.height)) & (l.y0 | positive(l.ly));
  return l;
}

// Call f(at, x, y, count) with the offsets of N points at a time. The last call may hold fewer; the rest is zero.
template <class V, class T, class F>
inline void for_offsets(const T* offset, int64_t count, const F& f) {
  constexpr int N = V::size;
  V x, y;
  int64_t at = 0;
  for (; at + N <= count; at += N) {
    V::load_pairs(offset + 2 * at, x, y);
    f(at, x, y, N);
  }
  if (at < count) {
    T rest[2 * N] = {};
    std::memcpy(rest, offset + 2 * at, sizeof(T) * 2 * size_t(count - at));
    V::load_pairs(rest, x, y);
    f(at, x, y, int(count - at));
  }
}

template <class V, class A, class T>
inline void load_mask(const T* mask, int64_t units, const Problem& p, Scratch<A>& s) {
  constexpr int N = V::size;
  const int64_t count = units * p.points;
  int64_t at = 0;
  for (; at + N <= count; at += N) V::load(mask + at).store(s.mask + at);
  for (; at < count; ++at) s.mask[at] = widen(mask[at]);
  if (!p.mask_is_logits) return;
  for (int64_t u = 0; u < units; ++u) {
    A* logits = s.mask + u * p.points;
    A largest = logits[0];
    for (int64_t k = 1; k < p.points; ++k) largest = logits[k] > largest ? logits[k] : largest;
    for (int64_t k = 0; k < p.points; ++k) logits[k] -= largest;
  }
  for (at = 0; at < count; at += N) exp(V::load(s.mask + at)).store(s.mask + at);
  for (int64_t u = 0; u < units; ++u) {
    A* weights = s.mask + u * p.points;
    A sum = 0;
    for (int64_t k = 0; k < p.points; ++k) sum += weights[k];
    const A factor = 1 / sum;
    for (int64_t k = 0; k < p.points; ++k) weights[k] *= factor;
  }
}

// Fill the tables for `units` units from `first` on, all in one image.
template <class A, class T>
void locate_run(const T* offset, const T* mask, int64_t first, int64_t units, const Problem& p, Scratch<A>& s) {
  using V = Vec<A, Lanes<A>::count>;
  int64_t group = first % p.groups;
  const int64_t pixel = first / p.groups % (p.out_height * p.out_width);
  int64_t column = pixel % p.out_width;
  int32_t x = int32_t(column * p.stride_w - p.padding_w), y = int32_t(pixel / p.out_width * p.stride_h - p.padding_h);
  for (int64_t u = 0; u < units; ++u) {
    // Whole vectors: what is written beyond a unit's points is overwritten by the next.
    for (int64_t k = 0; k < p.points; k += V::size) {
      add(V::Int::load(s.tap_x + k), x).store(s.base_x + u * p.points + k);
      add(V::Int::load(s.tap_y + k), y).store(s.base_y + u * p.points + k);
    }
    if (++group < p.groups) continue;
    group = 0, x += int32_t(p.stride_w);
    if (++column < p.out_width) continue;
    column = 0, x = int32_t(-p.padding_w), y += int32_t(p.stride_h);
  }
  load_mask<V>(mask, units, p, s);
  for_offsets<V>(offset, units * p.points, [&](int64_t at, V x, V y, int) DCNV3_INLINE {
    const Location<V> l = locate(x, y, s, at, p);
    const V mask_k = V::load(s.mask + at), one = V::all(1);
    const V x0 = keep(l.x0, one - l.lx), x1 = keep(l.x1, l.lx);
    const V y0 = keep(l.y0, one - l.ly) * mask_k, y1 = keep(l.y1, l.ly) * mask_k;
    V::store_quads(s.weights + 4 * at, y0 * x0, y0 * x1, y1 * x0, y1 * x1);
    flat_index(l.y, int32_t(p.width), l.x).store(s.pixel + at);
    const auto pair_x = l.x0 & l.x1, pair_y = l.y0 & l.y1;
    ((l.x0 | l.x1) & (l.y0 | l.y1)).store_bits(s.valid + at / 8);
    (pair_x & pair_y).store_bits(s.inner + at / 8);
    pair_x.store_bits(s.pair_x + at / 8);
    pair_y.store_bits(s.pair_y + at / 8);
  });
}

// Call f(k, top_left, right, down) for the points of a unit that count: pixel index of the top left corner and what
// leads to the other corners, in pixels (0 where the neighbour is outside, its weight is zero then).
template <int P, class A, class F>
DCNV3_INLINE inline void for_points(const Scratch<A>& s, int64_t at, const Problem& p, const F& f) {
  constexpr int64_t word = 32;
  const int64_t end = at + (P > 0 ? P : p.points), down = p.width;
  bool inner = true;
  for (int64_t k = at; k < end; k += word) {
    const int count = int(min64(word, end - k));
    inner = inner && read_bits(s.inner, k, count) == (uint64_t(1) << count) - 1;
  }
  if (inner) {
    for (int64_t k = at; k < end; ++k) f(k, int64_t(s.pixel[k]), int64_t(1), down);
    return;
  }
  for (int64_t first = at; first < end; first += word) {
    const int count = int(min64(word, end - first));
    const uint64_t pair_x = read_bits(s.pair_x, first, count), pair_y = read_bits(s.pair_y, first, count);
    for (uint64_t left = read_bits(s.valid, first, count); left != 0; left &= left - 1) {
      const int i = lowest_bit(left);
      const int64_t k = first + i;
      f(k, int64_t(s.pixel[k]), int64_t(pair_x >> i & 1), (pair_y >> i & 1) ? down : int64_t(0));
    }
  }
}

// ---- sample --------------------------------------------------------------------------------------------------------

// NV vectors of channels of one unit.
template <int P, class V, int NV, class A, class T>
inline void sample(const T* input, int64_t at, const Problem& p, const Scratch<A>& s, T* output) {
  constexpr int chains = NV >= 4 ? 1 : 4;  // independent sums hide the latency of the multiply-adds
  V sum[chains][NV];
  for (int c = 0; c < chains; ++c)
    for (int v = 0; v < NV; ++v) sum[c][v] = V::all(0);
  for_points<P>(s, at, p, [&](int64_t k, int64_t pixel, int64_t right, int64_t down) DCNV3_INLINE {
    V weight[4];
    V::spread(s.weights + 4 * k, weight);
    const T* row0 = input + pixel * p.input_stride;
    const T* row1 = row0 + down * p.input_stride;
    right *= p.input_stride;
    const T* corner[4] = {row0, row0 + right, row1, row1 + right};
    for (int c = 0; c < 4; ++c)
      for (int v = 0; v < NV; ++v)
        sum[c % chains][v] = fma(weight[c], V::load(corner[c] + v * V::size), sum[c % chains][v]);
  });
  for (int v = 0; v < NV; ++v) {
    V total = sum[0][v];
    if constexpr (chains == 4) total = (total + sum[1][v]) + (sum[2][v] + sum[3][v]);
    total.store(output + v * V::size);
  }
}

// ---- scatter -------------------------------------------------------------------------------------------------------

// grad_input += weight * grad_output at the four corners; dots = <grad_output, input> at the four corners.
template <int P, class V, int NV, class A, class T>
inline void scatter(const T* input, const T* grad_output, A* grad_input, int64_t grad_stride, bool first_channels,
                    int64_t at, const Problem& p, Scratch<A>& s) {
  V grad[NV];
  for (int v = 0; v < NV; ++v) grad[v] = V::load(grad_output + v * V::size);
  // Two passes: in one, every load would wait for the stores before it.
  for_points<P>(s, at, p, [&](int64_t k, int64_t pixel, int64_t right, int64_t down) DCNV3_INLINE {
    const T* row0 = input + pixel * p.input_stride;
    const T* row1 = row0 + down * p.input_stride;
    right *= p.input_stride;
    const T* corner[4] = {row0, row0 + right, row1, row1 + right};
    V dot[4];
    for (int c = 0; c < 4; ++c) {
      dot[c] = V::load(corner[c]) * grad[0];
      for (int v = 1; v < NV; ++v) dot[c] = fma(V::load(corner[c] + v * V::size), grad[v], dot[c]);
    }
    A sums[4];
    A* dots = s.dots + 4 * k;
    V::store_sums(first_channels ? dots : sums, dot[0], dot[1], dot[2], dot[3]);
    if (!first_channels)
      for (int c = 0; c < 4; ++c) dots[c] += sums[c];
  });
  for_points<P>(s, at, p, [&](int64_t k, int64_t pixel, int64_t right, int64_t down) DCNV3_INLINE {
    V weight[4];
    V::spread(s.weights + 4 * k, weight);
    A* row0 = grad_input + pixel * grad_stride;
    A* row1 = row0 + down * grad_stride;
    right *= grad_stride;
    A* corner[4] = {row0, row0 + right, row1, row1 + right};
    for (int c = 0; c < 4; ++c)
      for (int v = 0; v < NV; ++v) {
        A* to = corner[c] + v * V::size;
        fma(weight[c], grad[v], V::load(to)).store(to);
      }
  });
}

// Split the channels of a unit into blocks of vectors: f(block, first channel), with block() = (vector, how many).
template <class V, int NV>
struct Block {
  using Vector = V;
  static constexpr int vectors = NV;
};

template <int D, class A, class F>
inline void for_channels(int64_t depth, const F& f) {
  constexpr int N = DCNV3_FLOAT_LANES * 4 / int(sizeof(A));
  if constexpr (D > 0) {
    constexpr int lanes = D < N ? D : N;
    f(Block<Vec<A, lanes>, D / lanes>(), int64_t(0));
  } else {
    int64_t channel = 0;
    for (; channel + 2 * N <= depth; channel += 2 * N) f(Block<Vec<A, N>, 2>(), channel);
    for (; channel + 4 <= depth; channel += 4) f(Block<Vec<A, 4>, 1>(), channel);
    for (; channel < depth; ++channel) f(Block<Vec<A, 1>, 1>(), channel);
  }
}

template <int value>
using Constant = std::integral_constant<int, value>;

// Call f(depth, points) with compile-time constants for the usual ones, 0 for any other. Fewer of them for the rarer
// types T, since each takes time to compile.
template <class T, class F>
inline void with_shape(const Problem& p, const F& f) {
  const auto with_points = [&](auto depth) {
    if constexpr (sizeof(T) == 4) {
      if (p.points == 9) return f(depth, Constant<9>());
      if (p.points == 8) return f(depth, Constant<8>());
    }
    f(depth, Constant<0>());
  };
  if constexpr (sizeof(T) == 8) return f(Constant<0>(), Constant<0>());
  switch (p.depth) {
    case 4: return with_points(Constant<4>());
    case 8: return with_points(Constant<8>());
    case 16: return with_points(Constant<16>());
    case 32: return with_points(Constant<32>());
    default: return f(Constant<0>(), Constant<0>());
  }
}

// Call f(first unit, units) for runs covering the groups [group_begin, group_end) of the pixels [begin, end), which lie
// in one image. A run spans pixels only where offset and mask go on without a gap.
template <class F>
inline void for_runs(const Problem& p, int64_t begin, int64_t end, int64_t group_begin, int64_t group_end, const F& f) {
  const int64_t most = units_per_run(p);
  const int64_t groups = group_end - group_begin;
  const bool dense = groups == p.groups && p.mask_stride == p.groups * p.points && p.offset_stride == 2 * p.mask_stride;
  // The order of pixels, and so of the sums in grad_input, depends on the problem only, not on who does which groups.
  const int64_t width = p.out_width, strip_limit = most > p.groups ? most / p.groups : 1;
  const auto row_part = [&](int64_t from, int64_t to) {
    if (dense && most >= groups) {
      for (; from < to; from += strip_limit) f(from * groups, min64(strip_limit, to - from) * groups);
    } else {
      for (; from < to; ++from)
        for (int64_t group = group_begin; group < group_end; group += most)
          f(from * p.groups + group, min64(most, group_end - group));
    }
  };
  const int64_t first_row = (begin + width - 1) / width * width, last_row = end / width * width;
  if (strip_limit >= width || first_row >= last_row) return row_part(begin, end);
  // Whole rows are walked in strips of columns, so that the input rows of a strip stay in the L1 cache.
  row_part(begin, first_row);
  const int64_t strips = (width + strip_limit - 1) / strip_limit, strip = (width + strips - 1) / strips;
  for (int64_t column = 0; column < width; column += strip)
    for (int64_t row = first_row; row < last_row; row += width)
      row_part(row + column, row + column + min64(strip, width - column));
  row_part(last_row, end);
}

template <class A, class T>
void forward(const Problem& p, const ForwardTensors& t, int64_t begin, int64_t end, void* memory) {
  Scratch<A> s(p, memory, false, false);
  const int64_t image_pixels = p.out_height * p.out_width, channels = p.groups * p.depth;
  with_shape<T>(p, [&](auto depth, auto points) {
    while (begin < end) {
      const int64_t image = begin / image_pixels;
      const int64_t stop = min64(end, (image + 1) * image_pixels);
      const T* input = static_cast<const T*>(t.input) + image * p.height * p.width * p.input_stride;
      for_runs(p, begin, stop, 0, p.groups, [&](int64_t first, int64_t units) {
        int64_t pixel = first / p.groups, group = first % p.groups;
        locate_run<A>(static_cast<const T*>(t.offset) + pixel * p.offset_stride + group * p.points * 2,
                      static_cast<const T*>(t.mask) + pixel * p.mask_stride + group * p.points, first, units, p, s);
        for (int64_t u = 0; u < units; ++u) {
          T* output = static_cast<T*>(t.output) + pixel * channels + group * p.depth;
          for_channels<decltype(depth)::value, A>(p.depth, [&](auto block, int64_t c) {
            using B = decltype(block);
            sample<decltype(points)::value, typename B::Vector, B::vectors>(input + group * p.depth + c, u * p.points,
                                                                            p, s, output + c);
          });
          if (++group == p.groups) group = 0, ++pixel;
        }
      });
      begin = stop;
    }
  });
}

// ---- finish --------------------------------------------------------------------------------------------------------

template <class A, class T>
void finish_run(const T* offset, int64_t units, const Problem& p, Scratch<A>& s, T* grad_offset, T* grad_mask) {
  using V = Vec<A, Lanes<A>::count>;
  const int64_t count = units * p.points;
  for_offsets<V>(offset, count, [&](int64_t at, V x, V y, int n) DCNV3_INLINE {
    const Location<V> l = locate(x, y, s, at, p);
    V d00, d01, d10, d11;
    V::load_quads(s.dots + 4 * at, d00, d01, d10, d11);
    d00 = keep(l.y0 & l.x0, d00), d01 = keep(l.y0 & l.x1, d01);
    d10 = keep(l.y1 & l.x0, d10), d11 = keep(l.y1 & l.x1, d11);
    const V hx = V::all(1) - l.lx, hy = V::all(1) - l.ly;
    const V scaled_mask = V::load(s.mask + at) * V::all(A(p.offset_scale));
    fma(hy, fma(hx, d00, l.lx * d01), l.ly * fma(hx, d10, l.lx * d11)).store(s.grad_mask + at);
    const V grad_x = scaled_mask * fma(hy, d01 - d00, l.ly * (d11 - d10));
    const V grad_y = scaled_mask * fma(hx, d10 - d00, l.lx * (d11 - d01));
    if (n == V::size) {
      V::store_pairs(grad_offset + 2 * at, grad_x, grad_y);
    } else {
      T rest[2 * V::size];
      V::store_pairs(rest, grad_x, grad_y);
      std::memcpy(grad_offset + 2 * at, rest, sizeof(T) * 2 * size_t(n));
    }
  });
  if (p.mask_is_logits) {
    for (int64_t u = 0; u < units; ++u) {
      A* grad = s.grad_mask + u * p.points;
      const A* mask = s.mask + u * p.points;
      A mean = 0;
      for (int64_t k = 0; k < p.points; ++k) mean += mask[k] * grad[k];
      for (int64_t k = 0; k < p.points; ++k) grad[k] = mask[k] * (grad[k] - mean);
    }
  }
  int64_t at = 0;
  for (; at + V::size <= count; at += V::size) V::load(s.grad_mask + at).store(grad_mask + at);
  for (; at < count; ++at) narrow(s.grad_mask[at], grad_mask + at);
}

template <class A, class T>
void backward(const Problem& p, const BackwardTensors& t, int64_t begin, int64_t end, void* memory) {
  constexpr bool own_grad_input = sizeof(T) < sizeof(A);  // 16-bit gradients are summed in fp32, then rounded once
  Scratch<A> s(p, memory, true, own_grad_input);
  const int64_t image_pixels = p.out_height * p.out_width, channels = p.groups * p.depth;
  const int64_t input_pixels = p.height * p.width;
  while (begin < end) {
    const int64_t image = begin / p.groups, group_begin = begin % p.groups;
    int64_t stop = min64(end, (image + 1) * p.groups);
    if constexpr (own_grad_input) stop = min64(stop, begin + groups_at_once(p));
    const int64_t group_end = group_begin + (stop - begin);
    const int64_t width = (group_end - group_begin) * p.depth;
    const T* input = static_cast<const T*>(t.input) + image * input_pixels * p.input_stride;
    T* grad_input = static_cast<T*>(t.grad_input) + image * input_pixels * channels + group_begin * p.depth;
    A* sums;
    int64_t sums_stride;
    if constexpr (own_grad_input) {
      sums = s.grad_input, sums_stride = width;
    } else {
      sums = grad_input, sums_stride = channels;
    }
    for (int64_t i = 0; i < input_pixels; ++i) std::memset(sums + i * sums_stride, 0, sizeof(A) * size_t(width));
    with_shape<T>(p, [&](auto depth, auto points) {
      for_runs(p, image * image_pixels, (image + 1) * image_pixels, group_begin, group_end,
               [&](int64_t first, int64_t units) {
        int64_t pixel = first / p.groups, group = first % p.groups;
        const T* offset = static_cast<const T*>(t.offset) + pixel * p.offset_stride + group * p.points * 2;
        locate_run<A>(offset, static_cast<const T*>(t.mask) + pixel * p.mask_stride + group * p.points, first, units, p,
                      s);
        for (int64_t u = 0; u < units; ++u) {
          const T* grad_output = static_cast<const T*>(t.grad_output) + pixel * channels + group * p.depth;
          for_channels<decltype(depth)::value, A>(p.depth, [&](auto block, int64_t c) {
            using B = decltype(block);
            scatter<decltype(points)::value, typename B::Vector, B::vectors>(
                input + group * p.depth + c, grad_output + c, sums + (group - group_begin) * p.depth + c, sums_stride,
                c == 0, u * p.points, p, s);
          });
          if (++group == p.groups) group = 0, ++pixel;
        }
        finish_run(offset, units, p, s, static_cast<T*>(t.grad_offset) + first * p.points * 2,
                   static_cast<T*>(t.grad_mask) + first * p.points);
      });
    });
    if constexpr (own_grad_input) {
      for (int64_t i = 0; i < input_pixels; ++i)
        for (int64_t c = 0; c < width; ++c) narrow(sums[i * sums_stride + c], grad_input + i * channels + c);
    }
    begin = stop;
  }
}

// ---- by dtype ------------------------------------------------------------------------------------------------------

// Call f(zero of the accumulator, zero of the storage type).
template <class F>
void with_types(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: return f(float(), float());
    case DType::f64: return f(double(), double());
    case DType::bf16: return f(float(), BFloat16());
    case DType::f16: return f(float(), Half());
  }
}

void forward_any(DType dtype, const Problem& p, const ForwardTensors& t, int64_t begin, int64_t end, void* memory) {
  with_types(dtype, [&](auto a, auto b) { forward<decltype(a), decltype(b)>(p, t, begin, end, memory); });
}

void backward_any(DType dtype, const Problem& p, const BackwardTensors& t, int64_t begin, int64_t end, void* memory) {
  with_types(dtype, [&](auto a, auto b) { backward<decltype(a), decltype(b)>(p, t, begin, end, memory); });
}

int64_t scratch_bytes(DType dtype, const Problem& p, bool backward) {
  if (dtype == DType::f64) return Scratch<double>(p, nullptr, backward, false).bytes;
  return Scratch<float>(p, nullptr, backward, backward && dtype != DType::f32).bytes;
}

const ops_dcnv3::Kernels kKernels = {forward_any, backward_any, scratch_bytes};

}  // namespace
