// Vectors of the CPU kernels: `Vec<A, N>` holds N numbers of type A (float or double).
// The generic version is plain loops, which compilers vectorise for whatever the file is compiled for; AVX2 and AVX-512
// versions of `Vec<float, 8>` and `Vec<float, 16>` follow where the compiler allows them.
// Everything is in an anonymous namespace: the same header is compiled for several instruction sets, and no inline
// function of one may be picked by the linker for another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// How many floats a register holds is set by the file that is compiled: 4 (portable), 8 (AVX2) or 16 (AVX-512).
#if DCNV3_FLOAT_LANES >= 8
#include <immintrin.h>
#endif

// Vectors passed to or captured by a function stay in registers only if it is inlined: a call goes through memory.
#if defined(__GNUC__)
#define DCNV3_INLINE __attribute__((always_inline))
#else
#define DCNV3_INLINE
#endif

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

template <class A, int N>
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

template <class A, int N>
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
  friend Mask<A, N> inside(IntVec a, int32_t n) {
    Mask<A, N> r;
    for (int i = 0; i < N; ++i) r.v[i] = uint32_t(a.v[i]) < uint32_t(n);
    return r;
  }
};

template <class A, int N>
struct Vec {
  using Int = IntVec<A, N>;
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
  friend Mask<A, N> positive(Vec a) {
    Mask<A, N> r;
    for (int i = 0; i < N; ++i) r.v[i] = a.v[i] > 0;
    return r;
  }
  friend Vec keep(Mask<A, N> mask, Vec a) {
    for (int i = 0; i < N; ++i) a.v[i] = mask.v[i] ? a.v[i] : A(0);
    return a;
  }
  // floor(a) and a - floor(a). NaN and what lies beyond 2^30 come out near -2^30 and 2^30, outside every image; the
  // fraction is finite even then, since gradients multiply it by zero.
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

// e^a for a <= 0, relative error below 2e-7: a = n ln 2 + r, a polynomial in r, and n put into the exponent.
template <class V>
inline V exp_of_negative(V a) {
  const V magic = V::all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const V shifted = fma(at_least(a, -87.0f), V::all(1.44269504f), magic);
  const V n = shifted - magic;
  const V r = fma(n, V::all(2.12194440e-4f), fma(n, V::all(-0.693359375f), at_least(a, -87.0f)));
  constexpr float coefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  V sum = V::all(1.0f / 5040);
  for (const float c : coefficients) sum = fma(sum, r, V::all(c));
  return sum * power_of_two(shifted);
}

#if DCNV3_FLOAT_LANES >= 8

template <>
struct Mask<float, 8> {
  __m256i v;
  friend Mask operator&(Mask a, Mask b) { return {_mm256_and_si256(a.v, b.v)}; }
  friend Mask operator|(Mask a, Mask b) { return {_mm256_or_si256(a.v, b.v)}; }
  void store_bits(uint8_t* to) const { *to = uint8_t(_mm256_movemask_ps(_mm256_castsi256_ps(v))); }
};

template <>
struct IntVec<float, 8> {
  __m256i v;
  static IntVec load(const int32_t* from) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))}; }
  void store(int32_t* to) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
  friend IntVec operator+(IntVec a, IntVec b) { return {_mm256_add_epi32(a.v, b.v)}; }
  friend IntVec add(IntVec a, int32_t b) { return {_mm256_add_epi32(a.v, _mm256_set1_epi32(b))}; }
  friend IntVec flat_index(IntVec a, int32_t factor, IntVec b) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i row = _mm256_mullo_epi32(_mm256_max_epi32(a.v, zero), _mm256_set1_epi32(factor));
    return {_mm256_add_epi32(row, _mm256_max_epi32(b.v, zero))};
  }
  friend Mask<float, 8> inside(IntVec a, int32_t n) {
    return {_mm256_and_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), a.v),
                             _mm256_cmpgt_epi32(a.v, _mm256_set1_epi32(-1)))};
  }
};

template <>
struct Vec<float, 8> {
  using Int = IntVec<float, 8>;
  static constexpr int size = 8;
  __m256 v;

  static Vec load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Vec load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static Vec load(const Half* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  static Vec all(float value) { return {_mm256_set1_ps(value)}; }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
  void store(BFloat16* to) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
  }
  void store(Half* to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec at_least(Vec a, float b) { return {_mm256_max_ps(_mm256_set1_ps(b), a.v)}; }  // NaN stays
  friend Vec power_of_two(Vec shifted) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)))};
  }
  friend Vec exp(Vec a) { return exp_of_negative(a); }
  friend Mask<float, 8> positive(Vec a) {
    return {_mm256_castps_si256(_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_GT_OQ))};
  }
  friend Vec keep(Mask<float, 8> mask, Vec a) { return {_mm256_and_ps(_mm256_castsi256_ps(mask.v), a.v)}; }
  friend Int split(Vec a, Vec& fraction) {
    const __m256 floor = _mm256_floor_ps(a.v);
    fraction.v = _mm256_max_ps(_mm256_sub_ps(a.v, floor), _mm256_setzero_ps());  // NaN becomes zero
    return {_mm256_cvttps_epi32(floor)};  // NaN and what is out of range give INT_MIN, outside every image
  }
  template <class T>
  static void load_pairs(const T* from, Vec& x, Vec& y) {
    const __m256 a = load(from).v, b = load(from + 8).v;
    x.v = in_order(_mm256_shuffle_ps(a, b, 0x88));
    y.v = in_order(_mm256_shuffle_ps(a, b, 0xdd));
  }
  template <class T>
  static void store_pairs(T* to, Vec x, Vec y) {
    const __m256 low = _mm256_unpacklo_ps(x.v, y.v), high = _mm256_unpackhi_ps(x.v, y.v);
    Vec{_mm256_permute2f128_ps(low, high, 0x20)}.store(to);
    Vec{_mm256_permute2f128_ps(low, high, 0x31)}.store(to + 8);
  }
  static void load_quads(const float* from, Vec& a, Vec& b, Vec& c, Vec& d) {
    const __m256 q0 = _mm256_loadu_ps(from), q1 = _mm256_loadu_ps(from + 8);
    const __m256 q2 = _mm256_loadu_ps(from + 16), q3 = _mm256_loadu_ps(from + 24);
    a.v = _mm256_permute2f128_ps(q0, q2, 0x20), b.v = _mm256_permute2f128_ps(q0, q2, 0x31);
    c.v = _mm256_permute2f128_ps(q1, q3, 0x20), d.v = _mm256_permute2f128_ps(q1, q3, 0x31);
    transpose(a.v, b.v, c.v, d.v);
  }
  static void store_quads(float* to, Vec a, Vec b, Vec c, Vec d) {
    transpose(a.v, b.v, c.v, d.v);
    _mm256_storeu_ps(to, _mm256_permute2f128_ps(a.v, b.v, 0x20));
    _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(c.v, d.v, 0x20));
    _mm256_storeu_ps(to + 16, _mm256_permute2f128_ps(a.v, b.v, 0x31));
    _mm256_storeu_ps(to + 24, _mm256_permute2f128_ps(c.v, d.v, 0x31));
  }
  static void spread(const float* from, Vec (&to)[4]) {
    const __m256 quad = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
    to[0].v = _mm256_permute_ps(quad, 0x00), to[1].v = _mm256_permute_ps(quad, 0x55);
    to[2].v = _mm256_permute_ps(quad, 0xaa), to[3].v = _mm256_permute_ps(quad, 0xff);
  }
  static void store_sums(float* to, Vec a, Vec b, Vec c, Vec d) {
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }

 private:
  static __m256 in_order(__m256 a) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8));
  }
  // The 4 x 4 matrix in each half.
  static void transpose(__m256& a, __m256& b, __m256& c, __m256& d) {
    const __m256d ab0 = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)), ab1 = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
    const __m256d cd0 = _mm256_castps_pd(_mm256_unpacklo_ps(c, d)), cd1 = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
    a = _mm256_castpd_ps(_mm256_unpacklo_pd(ab0, cd0)), b = _mm256_castpd_ps(_mm256_unpackhi_pd(ab0, cd0));
    c = _mm256_castpd_ps(_mm256_unpacklo_pd(ab1, cd1)), d = _mm256_castpd_ps(_mm256_unpackhi_pd(ab1, cd1));
  }
};

#endif  // AVX2

#if DCNV3_FLOAT_LANES >= 16

template <>
struct Mask<float, 16> {
  __mmask16 v;
  friend Mask operator&(Mask a, Mask b) { return {__mmask16(a.v & b.v)}; }
  friend Mask operator|(Mask a, Mask b) { return {__mmask16(a.v | b.v)}; }
  void store_bits(uint8_t* to) const {
    const uint16_t bits = v;
    std::memcpy(to, &bits, 2);
  }
};

template <>
struct IntVec<float, 16> {
  __m512i v;
  static IntVec load(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
  void store(int32_t* to) const { _mm512_storeu_si512(to, v); }
  friend IntVec operator+(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
  friend IntVec add(IntVec a, int32_t b) { return {_mm512_add_epi32(a.v, _mm512_set1_epi32(b))}; }
  friend IntVec flat_index(IntVec a, int32_t factor, IntVec b) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i row = _mm512_mullo_epi32(_mm512_max_epi32(a.v, zero), _mm512_set1_epi32(factor));
    return {_mm512_add_epi32(row, _mm512_max_epi32(b.v, zero))};
  }
  friend Mask<float, 16> inside(IntVec a, int32_t n) { return {_mm512_cmplt_epu32_mask(a.v, _mm512_set1_epi32(n))}; }
};

template <>
struct Vec<float, 16> {
  using Int = IntVec<float, 16>;
  static constexpr int size = 16;
  __m512 v;

  static Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Vec load(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Vec load(const Half* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static Vec all(float value) { return {_mm512_set1_ps(value)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  void store(BFloat16* to) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(words));
  }
  void store(Half* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec at_least(Vec a, float b) { return {_mm512_max_ps(_mm512_set1_ps(b), a.v)}; }  // NaN stays
  friend Vec power_of_two(Vec shifted) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)))};
  }
  friend Vec exp(Vec a) { return exp_of_negative(a); }
  friend Mask<float, 16> positive(Vec a) { return {_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_GT_OQ)}; }
  friend Vec keep(Mask<float, 16> mask, Vec a) { return {_mm512_maskz_mov_ps(mask.v, a.v)}; }
  friend Int split(Vec a, Vec& fraction) {
    const __m512 floor = _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    fraction.v = _mm512_max_ps(_mm512_sub_ps(a.v, floor), _mm512_setzero_ps());
    return {_mm512_cvttps_epi32(floor)};
  }
  template <class T>
  static void load_pairs(const T* from, Vec& x, Vec& y) {
    const __m512 a = load(from).v, b = load(from + 16).v;
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    x.v = _mm512_permutex2var_ps(a, even, b);
    y.v = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
  }
  template <class T>
  static void store_pairs(T* to, Vec x, Vec y) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    Vec{_mm512_permutex2var_ps(x.v, low, y.v)}.store(to);
    Vec{_mm512_permutex2var_ps(x.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), y.v)}.store(to + 16);
  }
  static void load_quads(const float* from, Vec& a, Vec& b, Vec& c, Vec& d) {
    a = load(from), b = load(from + 16), c = load(from + 32), d = load(from + 48);
    transpose_quarters(a.v, b.v, c.v, d.v);
    transpose(a.v, b.v, c.v, d.v);
  }
  static void store_quads(float* to, Vec a, Vec b, Vec c, Vec d) {
    transpose(a.v, b.v, c.v, d.v);
    transpose_quarters(a.v, b.v, c.v, d.v);
    a.store(to), b.store(to + 16), c.store(to + 32), d.store(to + 48);
  }
  static void spread(const float* from, Vec (&to)[4]) {
    const __m512 quad = _mm512_broadcast_f32x4(_mm_loadu_ps(from));
    to[0].v = _mm512_permute_ps(quad, 0x00), to[1].v = _mm512_permute_ps(quad, 0x55);
    to[2].v = _mm512_permute_ps(quad, 0xaa), to[3].v = _mm512_permute_ps(quad, 0xff);
  }
  static void store_sums(float* to, Vec a, Vec b, Vec c, Vec d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
    const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
  }

 private:
  // The 4 x 4 matrix in each quarter.
  static void transpose(__m512& a, __m512& b, __m512& c, __m512& d) {
    const __m512d ab0 = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), ab1 = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d cd0 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)), cd1 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    a = _mm512_castpd_ps(_mm512_unpacklo_pd(ab0, cd0)), b = _mm512_castpd_ps(_mm512_unpackhi_pd(ab0, cd0));
    c = _mm512_castpd_ps(_mm512_unpacklo_pd(ab1, cd1)), d = _mm512_castpd_ps(_mm512_unpackhi_pd(ab1, cd1));
  }
  // The 4 x 4 matrix of quarters.
  static void transpose_quarters(__m512& a, __m512& b, __m512& c, __m512& d) {
    const __m512 ab0 = _mm512_shuffle_f32x4(a, b, 0x44), ab1 = _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 cd0 = _mm512_shuffle_f32x4(c, d, 0x44), cd1 = _mm512_shuffle_f32x4(c, d, 0xee);
    a = _mm512_shuffle_f32x4(ab0, cd0, 0x88), b = _mm512_shuffle_f32x4(ab0, cd0, 0xdd);
    c = _mm512_shuffle_f32x4(ab1, cd1, 0x88), d = _mm512_shuffle_f32x4(ab1, cd1, 0xdd);
  }
};

#endif  // AVX-512

}  // namespace
