// The calls with which memory accesses are checked: every type, group size, window and switch. Under emulation and, by
// benchmarks/gpu.py, on a GPU.
#pragma once

#include <cstdint>

#include "dcnv3_cuda.h"

// Calls run(dtype, sizes, offset_scale) for each. sizes: the integers of dcnv3::Shape in order, then remove_center and
// mask_is_logits.
template <typename Run>
void for_each_memory_case(Run run) {
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (int64_t depth : {1, 3, 4, 6, 8, 12, 16}) {
      for (int64_t window : {3, 5}) {
        for (int64_t switches = 0; switches < 4; ++switches) {
          const int64_t stride = 1 + depth % 2;
          const int64_t sizes[15] = {2,      3,          4, 1, depth,         window,       window, stride, 1,
                                     window / 2, window / 2, 1, 1, switches & 1, switches >> 1};
          run(dtype, sizes, 1.0 + switches);
        }
      }
    }
  }
}
