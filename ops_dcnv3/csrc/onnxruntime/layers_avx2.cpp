// The layers for avx2; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 8
#include "layers_kernel.h"

const ops_dcnv3::Layers& ops_dcnv3::avx2_layers() { return kLayers; }
