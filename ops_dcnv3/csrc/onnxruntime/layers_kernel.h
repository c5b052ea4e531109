// The layers of layers.h for one instruction set.
#pragma once

#include "../cpu_simd.h"
#include "layers.h"

namespace {

using ops_dcnv3::Features;
using ops_dcnv3::Normalisation;

// Channels of one output pixel, NV vectors from `c` on: bias plus the taps inside the image.
template <class V, int NV>
inline void convolve(const Features& f, const float* image, int64_t y, int64_t x, int64_t c, float* output) {
  V sum[NV];
  for (int v = 0; v < NV; ++v) sum[v] = V::load(f.bias + c + v * V::size);
  const int64_t left = x < 0 ? -x : 0, right = x + f.kernel_w > f.width ? f.width - x : f.kernel_w;
  const int64_t top = y < 0 ? -y : 0, bottom = y + f.kernel_h > f.height ? f.height - y : f.kernel_h;
  for (int64_t i = top; i < bottom; ++i) {
    const float* pixel = image + ((y + i) * f.width + x + left) * f.channels + c;
    const float* weight = f.weight + (i * f.kernel_w + left) * f.channels + c;
    for (int64_t j = left; j < right; ++j, pixel += f.channels, weight += f.channels)
      for (int v = 0; v < NV; ++v)
        sum[v] = fma(V::load(pixel + v * V::size), V::load(weight + v * V::size), sum[v]);
  }
  for (int v = 0; v < NV; ++v) sum[v].store(output + c + v * V::size);
}

template <int N>
inline Vec<float, N> divide(Vec<float, N> a, Vec<float, N> b) {
  for (int i = 0; i < N; ++i) a.v[i] /= b.v[i];
  return a;
}
// NaN stays, in all of these.
template <int N>
inline Vec<float, N> at_least(Vec<float, N> a, float b) {
  for (int i = 0; i < N; ++i) a.v[i] = a.v[i] < b ? b : a.v[i];
  return a;
}
template <int N>
inline Vec<float, N> at_most(Vec<float, N> a, float b) {
  for (int i = 0; i < N; ++i) a.v[i] = a.v[i] > b ? b : a.v[i];
  return a;
}
#if DCNV3_FLOAT_LANES >= 8
inline Vec<float, 8> divide(Vec<float, 8> a, Vec<float, 8> b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec<float, 8> at_most(Vec<float, 8> a, float b) { return {_mm256_min_ps(_mm256_set1_ps(b), a.v)}; }
#endif
#if DCNV3_FLOAT_LANES >= 16
inline Vec<float, 16> divide(Vec<float, 16> a, Vec<float, 16> b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec<float, 16> at_most(Vec<float, 16> a, float b) { return {_mm512_min_ps(_mm512_set1_ps(b), a.v)}; }
#endif

// x Phi(x). Phi(x) = 1/2 + x p(x^2) / q(x^2) within 3e-8 / x^2, fitted for |x| <= 5.6, beyond which Phi is 0 or 1 in
// single precision.
template <class V>
inline V gelu(V x) {
  constexpr float p[] = {6.59058421e-6f, 1.90156333e-4f, 4.80542588e-3f, 3.58472882e-2f, 3.98941901e-1f};
  constexpr float q[] = {8.10113185e-5f, 2.00336042e-3f, 2.98040187e-2f, 2.56518570e-1f, 1.0f};
  // Below the limit the result is as good as zero, and x may not enlarge what is left of Phi.
  const V above = at_least(x, -5.6f), a = at_most(above, 5.6f), u = a * a;
  V numerator = V::all(2.17105007e-8f), denominator = V::all(1.18515137e-6f);
  for (int i = 0; i < 5; ++i) {
    numerator = fma(numerator, u, V::all(p[i]));
    denominator = fma(denominator, u, V::all(q[i]));
  }
  return above * fma(a, divide(numerator, denominator), V::all(0.5f));
}

// Call f(vector type's example, first channel) for all channels, the last ones one by one.
template <class V, class F>
DCNV3_INLINE inline void for_vectors(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + V::size <= channels; c += V::size) f(V(), c);
  for (; c < channels; ++c) f(Vec<float, 1>(), c);
}

// Rows whose statistics are computed side by side, since each is a chain of dependent steps.
constexpr int kRows = 4;

// The mean of (x - centre)^power over the channels of each row.
template <class V, int power>
inline void moments(int64_t channels, const float* const (&rows)[kRows], const float* centre, float* means) {
  V sums[kRows];
  for (V& sum : sums) sum = V::all(0);
  float rest[kRows] = {};
  for_vectors<V>(channels, [&](auto lanes, int64_t c) DCNV3_INLINE {
    using L = decltype(lanes);
    for (int i = 0; i < kRows; ++i) {
      L x = L::load(rows[i] + c);
      if constexpr (power == 2) x = x - L::all(centre[i]), x = x * x;
      if constexpr (L::size == 1) rest[i] += x.v[0];
      else sums[i] = sums[i] + x;
    }
  });
  V::store_sums(means, sums[0], sums[1], sums[2], sums[3]);
  for (int i = 0; i < kRows; ++i) means[i] = (means[i] + rest[i]) / float(channels);
}

// Normalise `count` rows, at most kRows, and perhaps put them through GELU.
template <class V, bool activate>
inline void normalise(const Normalisation& n, int64_t first, int64_t count) {
  const float* rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = n.input + (first + (i < count ? i : 0)) * n.channels;
  float mean[kRows], variance[kRows];
  moments<V, 1>(n.channels, rows, nullptr, mean);
  moments<V, 2>(n.channels, rows, mean, variance);
  for (int i = 0; i < kRows && i < count; ++i) {
    const float factor = 1 / std::sqrt(variance[i] + n.epsilon);
    float* output = n.output + (first + i) * n.channels;
    for_vectors<V>(n.channels, [&](auto lanes, int64_t c) DCNV3_INLINE {
      using L = decltype(lanes);
      const L normal = (L::load(rows[i] + c) - L::all(mean[i])) * L::all(factor);
      const L result = fma(normal, L::load(n.scale + c), L::load(n.shift + c));
      if constexpr (activate) gelu(result).store(output + c);
      else result.store(output + c);
    });
  }
}

using Widest = Vec<float, DCNV3_FLOAT_LANES < 16 ? 8 : 16>;

void gelu_rows(const float* input, float* output, int64_t begin, int64_t end) {
  for_vectors<Widest>(end - begin, [&](auto lanes, int64_t i) DCNV3_INLINE {
    gelu(decltype(lanes)::load(input + begin + i)).store(output + begin + i);
  });
}

void normalise_rows(const Normalisation& n, int64_t begin, int64_t end) {
  for (; begin < end; begin += kRows) normalise<Widest, false>(n, begin, end - begin);
}

void feature_rows(const Features& f, int64_t begin, int64_t end) {
  using V = Widest;
  constexpr int vectors = 4;
  const Normalisation norm = {f.channels, f.epsilon, f.output, f.scale, f.shift, f.output};
  for (int64_t row = begin; row < end; ++row) {
    const float* image = f.input + row / f.out_height * f.height * f.width * f.channels;
    const int64_t y = row % f.out_height * f.stride_h - f.padding_h;
    float* output = f.output + row * f.out_width * f.channels;
    for (int64_t column = 0; column < f.out_width; ++column) {
      float* pixel = output + column * f.channels;
      const int64_t x = column * f.stride_w - f.padding_w;
      int64_t c = 0;
      for (; c + vectors * V::size <= f.channels; c += vectors * V::size)
        convolve<V, vectors>(f, image, y, x, c, pixel);
      for_vectors<V>(f.channels - c, [&](auto lanes, int64_t rest) DCNV3_INLINE {
        convolve<decltype(lanes), 1>(f, image, y, x, c + rest, pixel);
      });
      const int64_t ready = column % kRows + 1;
      if (ready == kRows || column + 1 == f.out_width)
        normalise<V, true>(norm, row * f.out_width + column + 1 - ready, ready);
    }
  }
}

const ops_dcnv3::Layers kLayers = {gelu_rows, normalise_rows, feature_rows};

}  // namespace
