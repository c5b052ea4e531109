// The LayerNorm binding over the emulated kernels.
#include "emulated_torch.h"

#include "norm.cu"

extern "C" __attribute__((visibility("default"))) void emulated_norm_seed(unsigned seed) { emulation::set_seed(seed); }

#include "norm_binding.cpp"
