// The layers for portable; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 4
#include "layers_kernel.h"

const ops_dcnv3::Layers& ops_dcnv3::portable_layers() { return kLayers; }
