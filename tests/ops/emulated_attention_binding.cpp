// The attention binding over the emulated kernels.
#include "emulated_torch.h"

#include "attention.cu"
#include "kernels.cu"

#include "attention_binding.cpp"
