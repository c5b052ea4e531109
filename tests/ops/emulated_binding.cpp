// The operator's binding over the emulated kernels.
#include "emulated_torch.h"

#include "kernels.cu"

#include "binding.cpp"
