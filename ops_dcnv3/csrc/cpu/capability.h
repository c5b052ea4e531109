// Which instruction set the CPU kernels use.
#pragma once

#include "../cpu_types.h"

#if defined(_WIN32)
#define OPS_DCNV3_EXPORT extern "C" __declspec(dllexport)
#else
#define OPS_DCNV3_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ops_dcnv3 {
const Kernels& chosen_kernels();
}

// The name in use: "portable", "avx2" or "avx512". The first choice is OPS_DCNV3_CPU_CAPABILITY, else the best that
// this machine has.
OPS_DCNV3_EXPORT const char* ops_dcnv3_cpu_capability();
// Null, or why OPS_DCNV3_CPU_CAPABILITY cannot be followed. An empty one counts as not set.
OPS_DCNV3_EXPORT const char* ops_dcnv3_cpu_capability_error();
// Change it; 0 if this machine or this build cannot.
OPS_DCNV3_EXPORT int ops_dcnv3_set_cpu_capability(const char* name);
