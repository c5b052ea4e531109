// Multi-scale deformable attention as torch operators, through the stable ABI (torch 2.10 on). The schemas are defined
// in ops_dcnv3/schema.py. Whatever reaches the kernels was checked here: they are called by other projects' code too.
#include "torch_tensors.h"

#include <initializer_list>
#include <string>
#include <tuple>

#include "attention_cuda.h"

namespace dcnv3_attention_binding {

using namespace ops_dcnv3;

std::string text(const Tensor& tensor) {
  std::string result = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) result += (i ? ", " : "") + std::to_string(tensor.size(i));
  return result + ")";
}

// What the tensors of a call must have in common; -1 allows any size.
void check_tensor(const char* name, const Tensor& tensor, const Tensor& value, ScalarType type,
                  std::initializer_list<int64_t> sizes, const char* expected) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; fits && i < tensor.dim(); ++i) {
    const int64_t wanted = sizes.begin()[i];
    fits = wanted < 0 || tensor.size(i) == wanted;
  }
  const std::string start = std::string("ms_deform_attn: ") + name + " must ";
  if (!fits) fail(start + "have shape " + expected + "; got " + text(tensor) + " for a value " + text(value));
  if (tensor.scalar_type() != type) {
    fail(start + "be of " + (type == ScalarType::Long ? "int64" : "the type of value; convert it"));
  }
  if (tensor.is_cuda() != value.is_cuda() || tensor.get_device_index() != value.get_device_index()) {
    fail(start + "be on the device of value; move it there");
  }
}

dcnv3::AttentionShape checked_shape(const Tensor& value, const Tensor& shapes, const Tensor& locations,
                                    const Tensor& weights) {
  const ScalarType type = value.scalar_type();
  check_tensor("value", value, value, type, {-1, -1, -1, -1}, "(N, keys, heads, D)");
  check_tensor("spatial_shapes", shapes, value, ScalarType::Long, {-1, 2}, "(levels, 2)");
  const int64_t batch = value.size(0), heads = value.size(2), levels = shapes.size(0);
  check_tensor("sampling_locations", locations, value, type, {batch, -1, heads, levels, -1, 2},
               "(N, queries, heads, levels, points, 2)");
  const int64_t queries = locations.size(1), points = locations.size(4);
  check_tensor("attention_weights", weights, value, type, {batch, queries, heads, levels, points},
               "(N, queries, heads, levels, points)");
  return {batch, value.size(1), queries, heads, value.size(3), levels, points};
}

Tensor forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& sampling_locations,
               const Tensor& attention_weights) {
  const dcnv3::AttentionShape shape = checked_shape(value, spatial_shapes, sampling_locations, attention_weights);
  const dcnv3::Dtype dtype = dtype_of(value);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor v = prepared(value), s = prepared(spatial_shapes), l = prepared(sampling_locations);
  const Tensor w = prepared(attention_weights);
  Tensor output = new_tensor(value, {shape.batch, shape.queries, shape.heads * shape.depth});
  require_launch(dcnv3::attention_forward(dtype, shape, v.const_data_ptr(), s.const_data_ptr<int64_t>(),
                                        l.const_data_ptr(), w.const_data_ptr(), output.mutable_data_ptr(),
                                        current_stream(value)));
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value,
                                            const Tensor& spatial_shapes, const Tensor& sampling_locations,
                                            const Tensor& attention_weights) {
  const dcnv3::AttentionShape shape = checked_shape(value, spatial_shapes, sampling_locations, attention_weights);
  const dcnv3::Dtype dtype = dtype_of(value);
  check_tensor("grad_output", grad_output, value, value.scalar_type(),
               {shape.batch, shape.queries, shape.heads * shape.depth}, "(N, queries, heads * D)");
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor g = prepared(grad_output), v = prepared(value), s = prepared(spatial_shapes);
  const Tensor l = prepared(sampling_locations), w = prepared(attention_weights);
  Tensor sums = zero_sums(value);
  // Without channels no kernel runs that would write these.
  const auto create = [&](const Tensor& like) {
    return shape.depth ? new_tensor(like, like.sizes()) : torch::stable::new_zeros(like, like.sizes());
  };
  Tensor grad_locations = create(sampling_locations), grad_weights = create(attention_weights);
  void* stream = current_stream(value);
  require_launch(dcnv3::attention_backward(dtype, shape, g.const_data_ptr(), v.const_data_ptr(),
                                         s.const_data_ptr<int64_t>(), l.const_data_ptr(), w.const_data_ptr(),
                                         sums.mutable_data_ptr(), grad_locations.mutable_data_ptr(),
                                         grad_weights.mutable_data_ptr(), stream));
  return {narrowed(sums, value, stream), grad_locations, grad_weights};
}

}  // namespace dcnv3_attention_binding

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&dcnv3_attention_binding::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&dcnv3_attention_binding::backward));
}
