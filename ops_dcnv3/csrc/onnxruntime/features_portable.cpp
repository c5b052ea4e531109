// The features' kernel for portable; build.py gives this file the matching compiler flags.
#define DCNV3_FLOAT_LANES 4
#include "features_kernel.h"

void ops_dcnv3::portable_features(const Features& features, int64_t begin, int64_t end) {
  feature_rows(features, begin, end);
}
