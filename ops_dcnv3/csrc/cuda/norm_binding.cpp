// The LayerNorm kernels as torch operators, through the stable ABI. The schemas are defined in ops_dcnv3/norm.py.
#include "torch_tensors.h"

#include <optional>
#include <string>
#include <vector>

#include "norm_cuda.h"

using namespace ops_dcnv3;
using Optional = std::optional<Tensor>;
using Form = dcnv3::norm::Form;

namespace {
namespace norm {

dcnv3::Dtype single_or_half(const Tensor& tensor) {
  const dcnv3::Dtype dtype = dtype_of(tensor);
  require(dtype != dcnv3::Dtype::kFloat64, "ops_dcnv3: LayerNorm kernels expect float32, bfloat16 or float16");
  return dtype;
}

// The tensors of one call on their way to a kernel: checked, prepared, and alive until it is launched.
class Arguments {
 public:
  Arguments(const Tensor& first, int64_t form) : device_(first.get_device_index()), on_cpu_(first.is_cpu()) {
    require(first.dim() > 0 && first.size(-1) > 0, "ops_dcnv3: x must have shape (..., C)");
    require(form >= 0 && form < dcnv3::norm::kForms, "ops_dcnv3: form must be in 0 to 3");
    held_.reserve(10);
    shape.channels = first.size(-1);
    shape.rows = shape.rows_per_image = first.numel() / shape.channels;
  }

  dcnv3::norm::Source read(const Optional& given, int64_t count, const char* name) {
    if (!given) return {};
    const Tensor& tensor = *given;
    if (tensor.numel() != count || tensor.is_cpu() != on_cpu_ || tensor.get_device_index() != device_) {
      fail(std::string("ops_dcnv3: ") + name + " must have " + std::to_string(count) +
           " elements, on the device of the others; got " + std::to_string(tensor.numel()));
    }
    held_.push_back(prepared(tensor));
    return {held_.back().const_data_ptr(), single_or_half(tensor)};
  }
  dcnv3::norm::Source rows(const Optional& tensor, const char* name) {
    return read(tensor, shape.rows * shape.channels, name);
  }
  dcnv3::norm::Source parameter(const Optional& tensor, const char* name) { return read(tensor, shape.channels, name); }
  dcnv3::norm::Source images(const Optional& keep) {
    if (!keep) return {};
    const int64_t count = keep->numel();
    if (count == 0 || shape.rows % count != 0) {
      fail("ops_dcnv3: keep must have a number for every image; got " + std::to_string(count) + " for " +
           std::to_string(shape.rows) + " rows");
    }
    shape.rows_per_image = shape.rows / count > 0 ? shape.rows / count : 1;
    return read(keep, count, "keep");
  }

  dcnv3::norm::Shape shape;

 private:
  std::vector<Tensor> held_;
  int32_t device_;
  bool on_cpu_;
};

dcnv3::norm::Target write(Tensor& tensor) { return {tensor.mutable_data_ptr(), single_or_half(tensor)}; }

// out, then sum for the form kPre, then the statistics (2, rows) if asked for.
std::vector<Tensor> forward(const Tensor& x, const Optional& residual, const Tensor& weight, const Tensor& bias,
                            const Optional& extra, const Optional& keep, double eps, int64_t form, ScalarType out_type,
                            ScalarType sum_type, bool with_stats) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Arguments arguments(x, form);
  const bool is_pre = Form(form) == Form::kPre;
  require(residual.has_value() == (is_pre || Form(form) == Form::kPost),
          "ops_dcnv3: the forms 2 and 3 have a residual, the others none");
  dcnv3::norm::Forward f;
  f.x = arguments.rows(x, "x");
  f.residual = arguments.rows(residual, "residual");
  f.weight = arguments.parameter(weight, "weight");
  f.bias = arguments.parameter(bias, "bias");
  f.extra = arguments.parameter(extra, "extra");
  f.keep = arguments.images(keep);
  f.eps = static_cast<float>(eps);
  std::vector<Tensor> results;
  results.push_back(new_tensor(x, x.sizes(), out_type));
  f.out = write(results.back());
  if (is_pre) {
    results.push_back(new_tensor(x, x.sizes(), sum_type));
    f.sum = write(results.back());
  }
  if (with_stats) {
    results.push_back(new_tensor(x, {2, arguments.shape.rows}, ScalarType::Float));
    f.stats = static_cast<float*>(results.back().mutable_data_ptr());
  }
  require_launch(dcnv3::norm::forward(Form(form), arguments.shape, f, current_stream(x)));
  return results;
}

// grad_x, then those of weight, bias and extra (if there is one) if asked for, then for the form kPre the residual's,
// unless it equals grad_x.
std::vector<Tensor> backward(const Tensor& grad, const Optional& grad_sum, const Tensor& source, const Tensor& stats,
                             const Tensor& weight, const Tensor& bias, const Optional& extra, const Optional& keep,
                             const Optional& branch, int64_t form, ScalarType x_type, bool with_parameters) {
  const torch::stable::accelerator::DeviceGuard guard(source.get_device_index());
  Arguments arguments(source, form);
  const bool is_pre = Form(form) == Form::kPre;
  require(branch.has_value() == (is_pre && extra.has_value()), "ops_dcnv3: branch belongs to the form 3 with extra");
  require(is_pre || !grad_sum, "ops_dcnv3: grad_sum belongs to the form 3");
  require(stats.scalar_type() == ScalarType::Float, "ops_dcnv3: stats must be float32");
  dcnv3::norm::Backward b;
  b.grad = arguments.rows(grad, "grad");
  b.grad_sum = arguments.rows(grad_sum, "grad_sum");
  b.source = arguments.rows(source, "source");
  b.branch = arguments.rows(branch, "branch");
  b.weight = arguments.parameter(weight, "weight");
  b.bias = arguments.parameter(bias, "bias");
  b.extra = arguments.parameter(extra, "extra");
  b.keep = arguments.images(keep);
  b.stats = static_cast<const float*>(arguments.read(stats, 2 * arguments.shape.rows, "stats").data);
  std::vector<Tensor> results;
  results.push_back(new_tensor(source, source.sizes(), x_type));
  b.grad_x = write(results.back());
  Tensor partial;
  if (with_parameters) {
    const int64_t blocks = dcnv3::norm::backward_blocks(Form(form), arguments.shape);
    partial = new_tensor(source, {blocks, 3, arguments.shape.channels}, ScalarType::Float);
    b.partial = static_cast<float*>(partial.mutable_data_ptr());
    const auto gradient_of = [&](const Tensor& parameter) {
      results.push_back(new_tensor(parameter, parameter.sizes()));
      if (arguments.shape.rows == 0) torch::stable::zero_(results.back());
      return write(results.back());
    };
    b.grad_weight = gradient_of(weight);
    b.grad_bias = gradient_of(bias);
    if (extra) b.grad_extra = gradient_of(*extra);
  }
  if (is_pre && (extra || keep || x_type != source.scalar_type())) {
    results.push_back(new_tensor(source, source.sizes()));
    b.grad_residual = write(results.back());
  }
  require_launch(dcnv3::norm::backward(Form(form), arguments.shape, b, current_stream(source)));
  return results;
}

}  // namespace norm
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, m) {
  m.impl("norm_forward", TORCH_BOX(&norm::forward));
  m.impl("norm_backward", TORCH_BOX(&norm::backward));
}
