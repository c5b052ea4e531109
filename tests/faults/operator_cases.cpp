// Runs the CPU kernels on random calls, in buffers of exactly the right size. Built with sanitizers: an access outside,
// or undefined behaviour, ends the program. In calls whose values are all finite no result may be left unwritten.
//
//     operator_cases COUNT SEED
#include "cpu/types.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

namespace {

using ops_dcnv3::DType;
using ops_dcnv3::Kernels;
using ops_dcnv3::Problem;

std::mt19937_64 random_bits;

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

template <class T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[between(0, int64_t(values.size()) - 1)];
}

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Memory that holds exactly `count` numbers, aligned for them and no more. Every bit set is NaN in each type.
struct Buffer {
  DType dtype;
  int64_t count;
  std::vector<char> bytes;

  Buffer(DType dtype, int64_t count) : dtype(dtype), count(count), bytes(size_t(count * size_of(dtype)), char(0xff)) {
    bytes.shrink_to_fit();
  }
  void put(int64_t at, double value) {
    char* place = bytes.data() + at * size_of(dtype);
    if (dtype == DType::f64) {
      std::memcpy(place, &value, 8);
      return;
    }
    const float single = float(value);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    if (dtype == DType::f32) {
      std::memcpy(place, &bits, 4);
    } else if (dtype == DType::bf16) {
      const uint16_t half = uint16_t(bits >> 16);
      std::memcpy(place, &half, 2);
    } else {
      const _Float16 half = _Float16(single);
      std::memcpy(place, &half, 2);
    }
  }
  bool has_nan() const {
    for (int64_t at = 0; at < count; ++at) {
      const char* place = bytes.data() + at * size_of(dtype);
      uint64_t bits = 0;
      std::memcpy(&bits, place, size_t(size_of(dtype)));
      const uint64_t exponent = dtype == DType::f64    ? 0x7ff0000000000000
                                : dtype == DType::f32  ? 0x7f800000
                                : dtype == DType::bf16 ? 0x7f80
                                                       : 0x7c00;
      const uint64_t sign = uint64_t(1) << (8 * size_of(dtype) - 1);
      if ((bits & ~sign) > exponent) return true;
    }
    return false;
  }
};

// Values of a call: mostly ordinary, in some calls also what nobody should pass. `edge` is where an image ends.
struct Values {
  bool finite;
  int64_t edge;

  double next() const {
    if (between(0, 7) == 0) return one_of({0.0, -0.0, 0.5, 1.0, -1.0, double(edge), double(edge) - 1, 2.0 * double(edge)});
    if (!finite && between(0, 3) == 0) {
      const double infinity = std::numeric_limits<double>::infinity();
      return one_of({infinity, -infinity, std::nan(""), 1e300, -1e300, 1e30, -1e30, 2147483647.0, -2147483649.0, 1e-310});
    }
    return std::normal_distribution<double>(0, 2)(random_bits);
  }
  Buffer fill(DType dtype, int64_t count) const {
    Buffer buffer(dtype, count);
    for (int64_t at = 0; at < count; ++at) buffer.put(at, next());
    return buffer;
  }
};

struct Scratch {
  std::vector<char> bytes;
  explicit Scratch(int64_t size) : bytes(size_t(size) + 64) {}
  void* get() { return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64; }
};

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

// False if the call has no result, which the binding returns without a kernel.
bool run(const Kernels& kernels) {
  const DType dtype = one_of({DType::f32, DType::f64, DType::bf16, DType::f16});
  const int64_t kernel_h = between(1, 5), kernel_w = between(1, 5), dilation = between(1, 3);
  const bool remove_center = kernel_h % 2 && kernel_w % 2 && kernel_h * kernel_w > 1 && between(0, 1);
  Problem p{};
  p.batch = between(1, 2), p.height = between(1, 9), p.width = between(1, 9), p.groups = between(1, 5);
  p.depth = one_of<int64_t>({1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 32, 33});
  p.stride_h = between(1, 3), p.stride_w = between(1, 3), p.padding_h = between(0, 4), p.padding_w = between(0, 4);
  p.out_height = out_size(p.height, kernel_h, p.stride_h, p.padding_h, dilation);
  p.out_width = out_size(p.width, kernel_w, p.stride_w, p.padding_w, dilation);
  if (p.out_height * p.out_width == 0) return false;
  p.offset_scale = one_of({1.0, 0.5, 0.0, -1.0, 2.0, 1e3, 1e8});
  p.mask_is_logits = between(0, 1);

  std::vector<int32_t> tap_x, tap_y;
  std::vector<double> fraction_x, fraction_y;
  for (int64_t i = 0; i < kernel_w; ++i) {
    for (int64_t j = 0; j < kernel_h; ++j) {
      if (remove_center && i == kernel_w / 2 && j == kernel_h / 2) continue;
      const double centre_x = double(dilation * (kernel_w - 1) / 2), centre_y = double(dilation * (kernel_h - 1) / 2);
      const double x = centre_x + (double(i * dilation) - centre_x) * p.offset_scale;
      const double y = centre_y + (double(j * dilation) - centre_y) * p.offset_scale;
      tap_x.push_back(int32_t(std::floor(x))), fraction_x.push_back(x - std::floor(x));
      tap_y.push_back(int32_t(std::floor(y))), fraction_y.push_back(y - std::floor(y));
    }
  }
  p.points = int64_t(tap_x.size());
  p.tap_x = tap_x.data(), p.tap_y = tap_y.data();
  p.tap_fraction_x = fraction_x.data(), p.tap_fraction_y = fraction_y.data();

  const int64_t channels = p.groups * p.depth, taps = p.groups * p.points;
  const int64_t pixels = p.batch * p.height * p.width, out_pixels = p.batch * p.out_height * p.out_width;
  p.input_stride = channels + one_of<int64_t>({0, 0, 1, 8});
  p.offset_stride = 2 * taps + one_of<int64_t>({0, 0, 1, 8});
  p.mask_stride = taps + one_of<int64_t>({0, 0, 1, 8});
  const Values values{between(0, 2) > 0, one_of({p.width, p.height})};
  // The last pixel has no gap behind it.
  const Buffer input = values.fill(dtype, (pixels - 1) * p.input_stride + channels);
  const Buffer offset = values.fill(dtype, (out_pixels - 1) * p.offset_stride + 2 * taps);
  const Buffer mask = values.fill(dtype, (out_pixels - 1) * p.mask_stride + taps);
  const Buffer grad_output = values.fill(dtype, out_pixels * channels);
  Buffer output(dtype, out_pixels * channels), grad_input(dtype, pixels * channels);
  Buffer grad_offset(dtype, 2 * out_pixels * taps), grad_mask(dtype, out_pixels * taps);

  // Parts of any size, as several threads take them.
  const ops_dcnv3::ForwardTensors forward = {input.bytes.data(), offset.bytes.data(), mask.bytes.data(),
                                             output.bytes.data()};
  for (int64_t begin = 0; begin < out_pixels;) {
    const int64_t end = between(begin + 1, out_pixels);
    Scratch scratch(kernels.scratch_bytes(dtype, p, false));
    kernels.forward(dtype, p, forward, begin, end, scratch.get());
    begin = end;
  }
  const ops_dcnv3::BackwardTensors backward = {
      input.bytes.data(),      offset.bytes.data(),      mask.bytes.data(),     grad_output.bytes.data(),
      grad_input.bytes.data(), grad_offset.bytes.data(), grad_mask.bytes.data()};
  for (int64_t begin = 0; begin < p.batch * p.groups;) {
    const int64_t end = between(begin + 1, p.batch * p.groups);
    Scratch scratch(kernels.scratch_bytes(dtype, p, true));
    kernels.backward(dtype, p, backward, begin, end, scratch.get());
    begin = end;
  }
  // 16-bit results of a large scale overflow, and infinity times zero is no number.
  if (values.finite && (size_of(dtype) > 2 || p.offset_scale <= 2)) {
    for (const Buffer* result : {&output, &grad_input, &grad_offset, &grad_mask}) {
      if (result->has_nan()) {
        std::fprintf(stderr, "finite values gave NaN, or a result was not written: dtype %d, %ld x %ld of %ld x %ld "
                     "channels, kernel %ld x %ld, offset_scale %g\n", int(dtype), long(p.height), long(p.width),
                     long(p.groups), long(p.depth), long(kernel_h), long(kernel_w), p.offset_scale);
        std::exit(1);
      }
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  random_bits.seed(std::strtoull(argv[2], nullptr, 10));
  std::vector<const Kernels*> sets = {&ops_dcnv3::portable_kernels()};
#if VECTORS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&ops_dcnv3::avx2_kernels());
#endif
  const long count = std::strtol(argv[1], nullptr, 10);
  for (long done = 0; done < count;) done += run(*sets[size_t(between(0, int64_t(sets.size()) - 1))]);
  std::printf("%ld calls\n", count);
}
