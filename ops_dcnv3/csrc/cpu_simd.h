// Vectors of the CPU kernels: `Vec<A, N>` holds N numbers of type A (float or double).
// The generic version is plain loops, which compilers vectorise for whatever the file is compiled for; AVX2 and AVX-512
// versions of `Vec<float, 8>` and `Vec<float, 16>` follow where the compiler allows them.
// Everything is in an anonymous namespace: the same header is compiled for several instruction sets, and no inline
// function of one may be picked by the linker for another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }
inline float widen(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return bit_cast<float>(sign | 0x7f800000u | magnitude);  // infinity, NaN
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f));
}

// Round to the storage type, to nearest even.
inline void narrow(float value, float* to) { *to = value; }
inline void narrow(double value, double* to) { *to = value; }
inline void narrow(float value, BFloat16* to) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = value == value ? uint16_t(rounded) : uint16_t(0x7fc0);
}
inline void narrow(float value, Half* to) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;  // subnormal: the addition rounds
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to->bits = uint16_t(sign | half);
}

template <int N>
struct Mask {
  bool v[N];
  friend Mask operator&(Mask a, Mask b) {
    for (int i = 0; i < N; ++i) a.v[i] = a.v[i] && b.v[i];
    return a;
  }
  friend Mask operator|(Mask a, Mask b) {
    for (int i = 0; i < N; ++i) a.v[i] = a.v[i] || b.v[i];
    return a;
  }
  // Lane i becomes bit i % 8 of byte i / 8.
  void store_bits(uint8_t* to) const {
    for (int byte = 0; byte < N / 8; ++byte) {
      unsigned bits = 0;
      for (int i = 0; i < 8; ++i) bits |= unsigned(v[byte * 8 + i]) << i;
      to[byte] = uint8_t(bits);
    }
  }
};

template <int N>
struct IntVec {
  int32_t v[N];
  static IntVec load(const int32_t* from) {
    IntVec r;
    for (int i = 0; i < N; ++i) r.v[i] = from[i];
    return r;
  }
  void store(int32_t* to) const {
    for (int i = 0; i < N; ++i) to[i] = v[i];
  }
  friend IntVec operator+(IntVec a, IntVec b) {
    for (int i = 0; i < N; ++i) a.v[i] += b.v[i];
    return a;
  }
  friend IntVec add(IntVec a, int32_t b) {
    for (int i = 0; i < N; ++i) a.v[i] += b;
    return a;
  }
  // max(a, 0) * factor + max(b, 0), modulo 2^32: lanes outside the image are never used.
  friend IntVec flat_index(IntVec a, int32_t factor, IntVec b) {
    for (int i = 0; i < N; ++i) {
      const uint32_t row = a.v[i] > 0 ? uint32_t(a.v[i]) : 0u, column = b.v[i] > 0 ? uint32_t(b.v[i]) : 0u;
      a.v[i] = int32_t(row * uint32_t(factor) + column);
    }
    return a;
  }
  // 0 <= a < n
  friend Mask<N> inside(IntVec a, int32_t n) {
    Mask<N> r;
    for (int i = 0; i < N; ++i) r.v[i] = uint32_t(a.v[i]) < uint32_t(n);
    return r;
  }
};

template <class A, int N>
struct Vec {
  using Int = IntVec<N>;
  static constexpr int size = N;
  A v[N];

  template <class T>
  static Vec load(const T* from) {
    Vec r;
    for (int i = 0; i < N; ++i) r.v[i] = widen(from[i]);
    return r;
  }
  static Vec all(A value) {
    Vec r;
    for (int i = 0; i < N; ++i) r.v[i] = value;
    return r;
  }
  template <class T>
  void store(T* to) const {
    for (int i = 0; i < N; ++i) narrow(v[i], to + i);
  }
  friend Vec operator+(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.v[i] += b.v[i];
    return a;
  }
  friend Vec operator-(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.v[i] -= b.v[i];
    return a;
  }
  friend Vec operator*(Vec a, Vec b) {
    for (int i = 0; i < N; ++i) a.v[i] *= b.v[i];
    return a;
  }
  friend Vec fma(Vec a, Vec b, Vec c) {
    for (int i = 0; i < N; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  friend Vec exp(Vec a) {
    for (int i = 0; i < N; ++i) a.v[i] = std::exp(a.v[i]);
    return a;
  }
  friend Mask<N> positive(Vec a) {
    Mask<N> r;
    for (int i = 0; i < N; ++i) r.v[i] = a.v[i] > 0;
    return r;
  }
  friend Vec keep(Mask<N> mask, Vec a) {
    for (int i = 0; i < N; ++i) a.v[i] = mask.v[i] ? a.v[i] : A(0);
    return a;
  }
  // floor(a) and a - floor(a). NaN and what lies beyond 2^30 come out near -2^30 and 2^30, outside every image.
  friend Int split(Vec a, Vec& fraction) {
    constexpr A limit = A(1 << 30);
    Int whole;
    for (int i = 0; i < N; ++i) {
      A value = a.v[i] > -limit ? a.v[i] : -limit;
      value = value < limit ? value : limit;
      int32_t truncated = int32_t(value);
      truncated -= A(truncated) > value;
      fraction.v[i] = value - A(truncated);
      whole.v[i] = truncated;
    }
    return whole;
  }
  // x0 y0 x1 y1 ... <-> x, y
  template <class T>
  static void load_pairs(const T* from, Vec& x, Vec& y) {
    for (int i = 0; i < N; ++i) x.v[i] = widen(from[2 * i]), y.v[i] = widen(from[2 * i + 1]);
  }
  template <class T>
  static void store_pairs(T* to, Vec x, Vec y) {
    for (int i = 0; i < N; ++i) narrow(x.v[i], to + 2 * i), narrow(y.v[i], to + 2 * i + 1);
  }
  // a0 b0 c0 d0 a1 ... <-> a, b, c, d
  static void load_quads(const A* from, Vec& a, Vec& b, Vec& c, Vec& d) {
    for (int i = 0; i < N; ++i) {
      a.v[i] = from[4 * i], b.v[i] = from[4 * i + 1], c.v[i] = from[4 * i + 2], d.v[i] = from[4 * i + 3];
    }
  }
  static void store_quads(A* to, Vec a, Vec b, Vec c, Vec d) {
    for (int i = 0; i < N; ++i) {
      to[4 * i] = a.v[i], to[4 * i + 1] = b.v[i], to[4 * i + 2] = c.v[i], to[4 * i + 3] = d.v[i];
    }
  }
  // Four numbers, each in all lanes.
  static void spread(const A* from, Vec (&to)[4]) {
    for (int j = 0; j < 4; ++j) to[j] = all(from[j]);
  }
  // The four sums over lanes.
  static void store_sums(A* to, Vec a, Vec b, Vec c, Vec d) {
    A sum[4] = {0, 0, 0, 0};
    for (int i = 0; i < N; ++i) sum[0] += a.v[i], sum[1] += b.v[i], sum[2] += c.v[i], sum[3] += d.v[i];
    for (int j = 0; j < 4; ++j) to[j] = sum[j];
  }
};

}  // namespace
