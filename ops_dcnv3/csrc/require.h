// Errors of the bindings: RuntimeError in Python.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdlib>
#include <string>

namespace ops_dcnv3 {

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

}  // namespace ops_dcnv3
