// Errors and tensors for the bindings.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

namespace ops_dcnv3 {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Thrown within torch, by a function of its C interface. STD_TORCH_CHECK, which composes its text with a stream and throws
// from here, ended the process with a segmentation fault where torch brings parts of another libstdc++ than the
// compiler's (Ubuntu 24.04, GCC 13, torch 2.11).
[[noreturn]] inline void fail(const std::string& message) {
  aoti_torch_check(false, "ops_dcnv3", "", 0, message.c_str());
  std::abort();  // not reached
}

inline void require(bool condition, const char* message) {
  if (!condition) fail(message);
}

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A contiguous tensor of undefined contents on the device of `like`, by default of its type. torch/csrc/stable/ops.h has
// this too, but looks up an operator by name each time: two to three microseconds, which small feature maps notice.
inline Tensor new_tensor(const Tensor& like, Sizes sizes, std::optional<ScalarType> type = std::nullopt) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
  int32_t dtype = 0, device_type = 0;
  AtenTensorHandle handle = nullptr;
  bool made = aoti_torch_get_dtype(like.get(), &dtype) == AOTI_TORCH_SUCCESS &&
              aoti_torch_get_device_type(like.get(), &device_type) == AOTI_TORCH_SUCCESS;
  if (type) dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*type));
  made = made && aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                          device_type, like.get_device_index(), &handle) == AOTI_TORCH_SUCCESS;
  require(made, "ops_dcnv3: torch could not allocate a tensor; its own message stands above");
  return Tensor(handle);
}

}  // namespace ops_dcnv3
