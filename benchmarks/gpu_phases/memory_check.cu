// The CUDA kernels without torch, for compute-sanitizer and ncu.
//
//   memory_check                every call of tests/ops/memory_cases.h, on allocations of exactly the right size
//   memory_check profile DTYPE  one forward and one backward pass at 64x56x56x64 on logits; DTYPE as in dcnv3::Dtype
//
// Results are poisoned before each call and must be finite afterwards. Ends with code 1 and a message otherwise.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "dcnv3_cuda.h"
#include "memory_cases.h"

namespace {

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
  }
}

void require(const char* reason, const char* what) {
  if (reason) {
    std::fprintf(stderr, "%s: %s\n", what, reason);
    std::exit(1);
  }
}

__device__ void store(double* to, float value) { *to = value; }
__device__ void store(float* to, float value) { *to = value; }
__device__ void store(__half* to, float value) { *to = __float2half(value); }
__device__ void store(__nv_bfloat16* to, float value) { *to = __float2bfloat16(value); }

__device__ uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Normally distributed values, by Box and Muller.
template <typename T>
__global__ void fill_normal(T* values, int64_t count, uint32_t seed) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint32_t bits = mixed(static_cast<uint32_t>(i) ^ mixed(seed));
    const float radius = sqrtf(-2 * logf((static_cast<float>(bits >> 8) + 0.5f) * 0x1p-24f));
    store(values + i, radius * cospif(2 * static_cast<float>(mixed(bits + 0x9e3779b9u) >> 8) * 0x1p-24f));
  }
}

size_t size_of(int dtype) { return dtype < 2 ? 2 : dtype == 2 ? 4 : 8; }

struct Buffer {
  void* data = nullptr;
  int64_t count;
  int dtype;

  Buffer(int64_t count, int dtype) : count(count), dtype(dtype) {
    require(cudaMalloc(&data, count * size_of(dtype)), "cudaMalloc");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data); }

  void set(int byte) { require(cudaMemset(data, byte, count * size_of(dtype)), "cudaMemset"); }

  void randomise(uint32_t seed) {
    const unsigned blocks = static_cast<unsigned>(count < 256 * 4096 ? (count + 255) / 256 : 4096);
    switch (dtype) {
      case 0: fill_normal<<<blocks, 256>>>(static_cast<__half*>(data), count, seed); break;
      case 1: fill_normal<<<blocks, 256>>>(static_cast<__nv_bfloat16*>(data), count, seed); break;
      case 2: fill_normal<<<blocks, 256>>>(static_cast<float*>(data), count, seed); break;
      default: fill_normal<<<blocks, 256>>>(static_cast<double*>(data), count, seed);
    }
    require(cudaGetLastError(), "fill_normal");
  }

  void require_finite(const char* name) const {
    const size_t size = size_of(dtype);
    std::vector<unsigned char> bytes(count * size);
    require(cudaMemcpy(bytes.data(), data, bytes.size(), cudaMemcpyDeviceToHost), name);
    // Infinite and NaN: all bits of the exponent are set.
    const uint64_t exponent = dtype == 0 ? 0x7c00 : dtype == 1 ? 0x7f80 : dtype == 2 ? 0x7f800000 : 0x7ffull << 52;
    for (int64_t i = 0; i < count; ++i) {
      uint64_t bits = 0;
      std::memcpy(&bits, &bytes[i * size], size);
      if ((bits & exponent) == exponent) {
        std::fprintf(stderr, "%s, type %d: element %lld of %lld is not finite, or was not written\n", name, dtype,
                     static_cast<long long>(i), static_cast<long long>(count));
        std::exit(1);
      }
    }
  }
};

dcnv3::Shape shape_of(const int64_t* sizes, double offset_scale) {
  dcnv3::Shape s{};
  int64_t* const fields[] = {&s.batch,    &s.height,   &s.width,     &s.groups,    &s.group_channels,
                             &s.kernel_h, &s.kernel_w, &s.stride_h,  &s.stride_w,  &s.padding_h,
                             &s.padding_w, &s.dilation_h, &s.dilation_w};
  for (int i = 0; i < 13; ++i) *fields[i] = sizes[i];
  s.offset_scale = offset_scale;
  s.remove_center = sizes[13] != 0;
  s.mask_is_logits = sizes[14] != 0;
  return s;
}

void run(int type, const int64_t* sizes, double offset_scale, uint32_t seed) {
  const dcnv3::Shape s = shape_of(sizes, offset_scale);
  const auto dtype = static_cast<dcnv3::Dtype>(type);
  const int64_t pixels = s.batch * s.out_height() * s.out_width();
  const int64_t features = s.batch * s.height * s.width * s.channels(), masks = pixels * s.groups * s.points();
  Buffer input(features, type), offset(2 * masks, type), mask(masks, type), grad_output(pixels * s.channels(), type);
  Buffer output(pixels * s.channels(), type), grad_offset(2 * masks, type), grad_mask(masks, type);
  Buffer wide(features, type < 2 ? 2 : type), narrowed(features, type);
  for (Buffer* buffer : {&input, &offset, &mask, &grad_output}) buffer->randomise(++seed);
  for (Buffer* buffer : {&output, &grad_offset, &grad_mask, &narrowed}) buffer->set(0xff);
  wide.set(0);
  require(dcnv3::forward(dtype, s, input.data, offset.data, mask.data, output.data, nullptr), "forward");
  require(dcnv3::backward(dtype, s, grad_output.data, input.data, offset.data, mask.data, wide.data, grad_offset.data,
                          grad_mask.data, nullptr), "backward");
  if (type < 2) require(dcnv3::narrow(dtype, wide.data, narrowed.data, features, nullptr), "narrow");
  require(cudaDeviceSynchronize(), "kernels");
  output.require_finite("output");
  (type < 2 ? narrowed : wide).require_finite("grad_input");
  grad_offset.require_finite("grad_offset");
  grad_mask.require_finite("grad_mask");
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && std::strcmp(arguments[1], "profile") == 0) {
    const int64_t sizes[15] = {64, 56, 56, 4, 16, 3, 3, 1, 1, 1, 1, 1, 1, 0, 1};
    run(std::atoi(arguments[2]), sizes, 1.0, 1);
    return 0;
  }
  uint32_t runs = 0;
  for_each_memory_case([&](int dtype, const int64_t* sizes, double offset_scale) {
    run(dtype, sizes, offset_scale, 100 * ++runs);
  });
  std::printf("%u runs\n", runs);
}
