// The CPU kernels for avx512; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 16
#include "kernel.h"

const ops_dcnv3::Kernels& ops_dcnv3::avx512_kernels() { return kKernels; }
