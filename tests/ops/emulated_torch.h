// For a CUDA binding over the emulated kernels, registered for CPU tensors: what it does around the kernels can then be
// executed without a GPU. Only the device guard and the stream, which need one, are replaced. To be included first: torch's
// headers would take the emulation's __CUDA_ARCH__ for nvcc.
#pragma once

#define USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#undef USE_CUDA

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

#define DeviceGuard NoGuard
#define aoti_torch_get_current_cuda_stream no_stream
#define CUDA CPU
