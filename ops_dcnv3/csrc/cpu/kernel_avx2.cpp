// The CPU kernels for avx2; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 8
#include "kernel.h"

const ops_dcnv3::Kernels& ops_dcnv3::avx2_kernels() { return kKernels; }
