// Multi-scale deformable attention on CUDA as the rest of the project sees it: sizes and two functions. The fp32
// gradient of a half type's value is converted by narrow() of dcnv3_cuda.h. No CUDA or torch headers.
#pragma once

#include "dcnv3_cuda.h"

namespace dcnv3 {

// Sizes of one call. Tensors are contiguous and begin on 16-byte boundaries: value (batch, keys, heads, depth),
// shapes (levels, 2) of int64, locations (batch, queries, heads, levels, points, 2), weights (batch, queries, heads,
// levels, points), output (batch, queries, heads * depth).
struct AttentionShape {
  int64_t batch, keys, queries, heads, depth, levels, points;
};

// `stream` and `max_threads` as in dcnv3_cuda.h; both return nullptr, or in words why nothing was launched.
// All pointers are to device memory, `shapes` too: the host never waits for it. Where the areas of the levels do not
// add up to the keys, output, grad_locations and grad_weights are NaN, and nothing outside `value` is touched.
const char* attention_forward(Dtype dtype, const AttentionShape& shape, const void* value, const int64_t* shapes,
                              const void* locations, const void* weights, void* output, void* stream,
                              int64_t max_threads = kMaxThreads);

// Adds to grad_value, which is fp32 for the half types and begins as zero; writes grad_locations and grad_weights,
// unless depth is 0.
const char* attention_backward(Dtype dtype, const AttentionShape& shape, const void* grad_output, const void* value,
                               const int64_t* shapes, const void* locations, const void* weights, void* grad_value,
                               void* grad_locations, void* grad_weights, void* stream,
                               int64_t max_threads = kMaxThreads);

}  // namespace dcnv3
