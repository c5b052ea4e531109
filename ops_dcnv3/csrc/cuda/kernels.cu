// The compiled kernels: every element type behind the functions of dcnv3_cuda.h.
#include "launch.h"

namespace dcnv3 {
const char* forward(Dtype dtype, const Shape& shape, const void* input, const void* offset, const void* mask,
                    void* output, void* stream, int64_t max_threads) {
  const char* reason = check(shape);
  if (reason || is_empty(shape)) return reason;
  with_element_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_forward(shape, static_cast<const T*>(input), static_cast<const T*>(offset), static_cast<const T*>(mask),
                   static_cast<T*>(output), static_cast<cudaStream_t>(stream), max_threads);
  });
  return launch_error();
}

const char* backward(Dtype dtype, const Shape& shape, const void* grad_output, const void* input, const void* offset,
                     const void* mask, void* grad_input, void* grad_offset, void* grad_mask, void* stream,
                     int64_t max_threads) {
  const char* reason = check(shape);
  if (reason || is_empty(shape)) return reason;
  with_element_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_backward(shape, static_cast<const T*>(grad_output), static_cast<const T*>(input),
                    static_cast<const T*>(offset), static_cast<const T*>(mask),
                    static_cast<typename Accumulator<T>::type*>(grad_input), static_cast<T*>(grad_offset),
                    static_cast<T*>(grad_mask), static_cast<cudaStream_t>(stream), max_threads);
  });
  return launch_error();
}

const char* narrow(Dtype dtype, const void* wide, void* result, int64_t count, void* stream) {
  const auto* source = static_cast<const float*>(wide);
  const auto on = static_cast<cudaStream_t>(stream);
  if (dtype == Dtype::kFloat16) launch_narrow(source, static_cast<__half*>(result), count, on);
  if (dtype == Dtype::kBFloat16) launch_narrow(source, static_cast<__nv_bfloat16*>(result), count, on);
  return launch_error();
}

}  // namespace dcnv3
