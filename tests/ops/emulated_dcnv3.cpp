// The CUDA kernels under emulation, as functions that ctypes can call.
#include "kernels.cu"

extern "C" {

// sizes: the integers of dcnv3::Shape in order, then remove_center and mask_is_logits.
static dcnv3::Shape shape_of(const int64_t* sizes, double offset_scale) {
  return {sizes[0], sizes[1], sizes[2],  sizes[3],  sizes[4],  sizes[5],  sizes[6],       sizes[7],
          sizes[8], sizes[9], sizes[10], sizes[11], sizes[12], offset_scale, sizes[13] != 0, sizes[14] != 0};
}

const char* emulated_forward(int dtype, const int64_t* sizes, double offset_scale, unsigned seed, int64_t max_threads,
                             const void* input, const void* offset, const void* mask, void* output) {
  emulation::set_seed(seed);
  return dcnv3::forward(static_cast<dcnv3::Dtype>(dtype), shape_of(sizes, offset_scale), input, offset, mask, output,
                        nullptr, max_threads);
}

const char* emulated_backward(int dtype, const int64_t* sizes, double offset_scale, unsigned seed, int64_t max_threads,
                              const void* grad_output, const void* input, const void* offset, const void* mask,
                              void* grad_input, void* grad_offset, void* grad_mask) {
  emulation::set_seed(seed);
  return dcnv3::backward(static_cast<dcnv3::Dtype>(dtype), shape_of(sizes, offset_scale), grad_output, input, offset,
                         mask, grad_input, grad_offset, grad_mask, nullptr, max_threads);
}

const char* emulated_narrow(int dtype, const void* wide, void* result, int64_t count) {
  return dcnv3::narrow(static_cast<dcnv3::Dtype>(dtype), wide, result, count, nullptr);
}
}
