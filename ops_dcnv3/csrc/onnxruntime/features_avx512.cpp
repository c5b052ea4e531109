// The features' kernel for avx512; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 16
#include "features_kernel.h"

void ops_dcnv3::avx512_features(const Features& features, int64_t begin, int64_t end) {
  feature_rows(features, begin, end);
}
