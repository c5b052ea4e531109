// The layers for avx512; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 16
#include "layers_kernel.h"

const ops_dcnv3::Layers& ops_dcnv3::avx512_layers() { return kLayers; }
