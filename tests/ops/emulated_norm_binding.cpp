// The LayerNorm binding over the emulated kernels, registered for CPU tensors. Only the device guard and the stream,
// which need a GPU, are replaced.
#define USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

// After torch's headers, which would take __CUDA_ARCH__ for nvcc.
#include "norm.cu"

namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(int) {}
  ~NoGuard() {}
};
}  // namespace torch::stable::accelerator

inline AOTITorchError no_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

extern "C" __attribute__((visibility("default"))) void emulated_norm_seed(unsigned seed) { emulation::set_seed(seed); }

#undef USE_CUDA
#define DeviceGuard NoGuard
#define aoti_torch_get_current_cuda_stream no_stream
#define CUDA CPU
#include "norm_binding.cpp"
