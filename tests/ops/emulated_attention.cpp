// The CUDA kernels of multi-scale deformable attention under emulation, as functions that ctypes can call.
#include "attention.cu"

extern "C" {

// sizes: the members of dcnv3::AttentionShape in order.
static dcnv3::AttentionShape attention_shape(const int64_t* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
}

const char* emulated_attention_forward(int dtype, const int64_t* sizes, unsigned seed, int64_t max_threads,
                                       const void* value, const int64_t* shapes, const void* locations,
                                       const void* weights, void* output) {
  emulation::set_seed(seed);
  return dcnv3::attention_forward(static_cast<dcnv3::Dtype>(dtype), attention_shape(sizes), value, shapes, locations,
                                  weights, output, nullptr, max_threads);
}

const char* emulated_attention_backward(int dtype, const int64_t* sizes, unsigned seed, int64_t max_threads,
                                        const void* grad_output, const void* value, const int64_t* shapes,
                                        const void* locations, const void* weights, void* grad_value,
                                        void* grad_locations, void* grad_weights) {
  emulation::set_seed(seed);
  return dcnv3::attention_backward(static_cast<dcnv3::Dtype>(dtype), attention_shape(sizes), grad_output, value, shapes,
                                   locations, weights, grad_value, grad_locations, grad_weights, nullptr, max_threads);
}
}
