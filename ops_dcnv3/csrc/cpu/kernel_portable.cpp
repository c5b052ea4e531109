// The CPU kernels for portable; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 4
#include "kernel.h"

const ops_dcnv3::Kernels& ops_dcnv3::portable_kernels() { return kKernels; }
