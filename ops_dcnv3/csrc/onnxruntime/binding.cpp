// The CPU kernels as an operator of ONNX Runtime: domain "ops_dcnv3", type "DCNv3", forward only.
// Inputs: input (N, H, W, G*D), offset (N, Ho, Wo, G*P*2), mask (N, Ho, Wo, G*P); output (N, Ho, Wo, G*D); float32 or
// float16. Attributes are the arguments of the torch operator of the same name, whose schema is in functional.py.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "../cpu/capability.h"
#include "../cpu_types.h"
#include "ort_abi.h"

using ops_dcnv3::DType;
using ops_dcnv3::Problem;

namespace {

constexpr const char* kDomain = "ops_dcnv3";
constexpr const char* kType = "DCNv3";
// A thread is worth waking for about a thousand units (one pixel of one group).
constexpr int64_t kUnitsPerChunk = 1024;

struct Shape4 {
  int64_t size[4];
  int64_t operator[](int i) const { return size[i]; }
};

std::string text(const int64_t* sizes, size_t count) {
  std::string result = "(";
  for (size_t i = 0; i < count; ++i) result += (i ? ", " : "") + std::to_string(sizes[i]);
  return result + ")";
}
std::string text(const Shape4& shape) { return text(shape.size, 4); }

// The attributes of a node and what follows from them.
struct Kernel {
  const ort::Api* api;
  DType dtype;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  int64_t remove_center, mask_is_logits;
  float offset_scale;
  std::vector<int32_t> tap_x, tap_y;
  std::vector<double> fraction_x, fraction_y;

  ort::Status* error(const std::string& message) const {
    return api->CreateStatus(ort::kInvalidArgument, ("ops_dcnv3: " + message).c_str());
  }

  ort::Status* read(const ort::KernelInfo* info);
  ort::Status* compute(ort::KernelContext* context) const;

 private:
  ort::Status* shape_of(const ort::Value* value, const char* name, Shape4& shape) const;
  ort::Status* check(const Shape4& input, const Shape4& offset, const Shape4& mask) const;
  void add_taps();
};

// Where the taps of one axis sit: centre - centre * scale + index * dilation * scale.
void add_tap(int64_t index, int64_t kernel, int64_t dilation, double scale, std::vector<int32_t>& whole,
             std::vector<double>& fraction) {
  const double centre = double(dilation * (kernel - 1) / 2);
  const double position = centre - centre * scale + double(index * dilation) * scale;
  const double floor = std::floor(position);
  whole.push_back(int32_t(floor));
  fraction.push_back(position - floor);
}

void Kernel::add_taps() {
  for (int64_t i = 0; i < kernel_w; ++i) {
    for (int64_t j = 0; j < kernel_h; ++j) {
      if (remove_center && i == kernel_w / 2 && j == kernel_h / 2) continue;
      add_tap(i, kernel_w, dilation_w, offset_scale, tap_x, fraction_x);
      add_tap(j, kernel_h, dilation_h, offset_scale, tap_y, fraction_y);
    }
  }
}

ort::Status* Kernel::read(const ort::KernelInfo* info) {
  const struct {
    const char* name;
    int64_t* value;
    int64_t least;
  } integers[] = {{"kernel_h", &kernel_h, 1},     {"kernel_w", &kernel_w, 1},
                  {"stride_h", &stride_h, 1},     {"stride_w", &stride_w, 1},
                  {"padding_h", &padding_h, 0},   {"padding_w", &padding_w, 0},
                  {"dilation_h", &dilation_h, 1}, {"dilation_w", &dilation_w, 1},
                  {"groups", &groups, 1},         {"remove_center", &remove_center, 0},
                  {"mask_is_logits", &mask_is_logits, 0}};
  for (const auto& attribute : integers) {
    if (ort::Status* status = api->KernelInfoGetAttribute_int64(info, attribute.name, attribute.value)) return status;
    if (*attribute.value < attribute.least)
      return error(std::string("attribute ") + attribute.name + " must be at least " +
                   std::to_string(attribute.least) + "; it is " + std::to_string(*attribute.value));
  }
  if (ort::Status* status = api->KernelInfoGetAttribute_float(info, "offset_scale", &offset_scale)) return status;
  if (remove_center && !(kernel_h % 2 && kernel_w % 2)) return error("remove_center needs odd kernel sizes");
  add_taps();
  return tap_x.empty() ? error("remove_center with a 1x1 kernel leaves no point to sample") : nullptr;
}

ort::Status* Kernel::shape_of(const ort::Value* value, const char* name, Shape4& shape) const {
  ort::Shape* info = nullptr;
  if (ort::Status* status = api->GetTensorTypeAndShape(value, &info)) return status;
  size_t count = 0;
  ort::Status* status = api->GetDimensionsCount(info, &count);
  std::vector<int64_t> sizes(count);
  if (status == nullptr) status = api->GetDimensions(info, sizes.data(), count);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status != nullptr) return status;
  if (count != 4)
    return error(std::string(name) + " must have 4 dimensions, channels last; it has shape " +
                 text(sizes.data(), count));
  for (int i = 0; i < 4; ++i) shape.size[i] = sizes[i];
  return nullptr;
}

int64_t at_least_one(int64_t value) { return value > 1 ? value : 1; }

int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

ort::Status* Kernel::check(const Shape4& input, const Shape4& offset, const Shape4& mask) const {
  const int64_t points = int64_t(tap_x.size());
  if (input[3] % groups)
    return error("groups must divide the channels; there are " + std::to_string(groups) + " groups and input is " +
                 text(input));
  const int64_t out_h = output_size(input[1], kernel_h, stride_h, padding_h, dilation_h);
  const int64_t out_w = output_size(input[2], kernel_w, stride_w, padding_w, dilation_w);
  if (input[1] < 1 || input[2] < 1 || out_h < 1 || out_w < 1)
    return error("input " + text(input) + " is too small for the kernel; enlarge the image");
  const Shape4 expected_offset = {{input[0], out_h, out_w, groups * points * 2}};
  const Shape4 expected_mask = {{input[0], out_h, out_w, groups * points}};
  const auto differ = [](const Shape4& a, const Shape4& b) {
    return a[0] != b[0] || a[1] != b[1] || a[2] != b[2] || a[3] != b[3];
  };
  if (differ(offset, expected_offset))
    return error("offset must have shape " + text(expected_offset) + " for input " + text(input) + "; it has " +
                 text(offset));
  if (differ(mask, expected_mask))
    return error("mask must have shape " + text(expected_mask) + " for input " + text(input) + "; it has " +
                 text(mask));
  constexpr int64_t limit = int64_t(1) << 30;
  if (input[1] > limit / input[2] || out_h * stride_h + padding_h > limit || out_w * stride_w + padding_w > limit)
    return error("an image of more than 2^30 pixels: input " + text(input) + "; split it into parts");
  return nullptr;
}

// Memory for the tables of one thread, on a cache line, kept from call to call: asking the system for it each time
// would cost half as much as sampling a small feature map. Null if there is none left.
char* scratch_memory(int64_t bytes) {
  constexpr int64_t line = 64;
  thread_local std::unique_ptr<char[]> memory;
  thread_local int64_t size = 0;
  if (size < bytes + line) {
    memory.reset(new (std::nothrow) char[size_t(bytes + line)]);
    size = memory != nullptr ? bytes + line : 0;
  }
  if (memory == nullptr) return nullptr;
  return memory.get() + (line - reinterpret_cast<uintptr_t>(memory.get()) % line) % line;
}

// What the threads share in one call: chunk i is `rows_per_chunk` rows of output pixels.
struct Work {
  const ops_dcnv3::Kernels& kernels;
  DType dtype;
  const Problem& problem;
  ops_dcnv3::ForwardTensors tensors;
  int64_t rows, rows_per_chunk, scratch_bytes;
  std::atomic<bool> out_of_memory{false};

  void run(size_t chunk) {
    char* scratch = scratch_memory(scratch_bytes);
    if (scratch == nullptr) {
      out_of_memory = true;
      return;
    }
    const int64_t begin = int64_t(chunk) * rows_per_chunk;
    const int64_t end = begin + rows_per_chunk < rows ? begin + rows_per_chunk : rows;
    kernels.forward(dtype, problem, tensors, begin * problem.out_width, end * problem.out_width, scratch);
  }
};

ort::Status* Kernel::compute(ort::KernelContext* context) const {
  Shape4 shapes[3];
  void* data[4];
  const char* names[] = {"input", "offset", "mask"};
  for (size_t i = 0; i < 3; ++i) {
    const ort::Value* value = nullptr;
    if (ort::Status* status = api->KernelContext_GetInput(context, i, &value)) return status;
    if (ort::Status* status = shape_of(value, names[i], shapes[i])) return status;
    if (ort::Status* status = api->GetTensorMutableData(const_cast<ort::Value*>(value), &data[i])) return status;
  }
  const auto& [input, offset, mask] = shapes;
  if (ort::Status* status = check(input, offset, mask)) return status;
  const Shape4 output_shape = {{input[0], offset[1], offset[2], input[3]}};
  ort::Value* output = nullptr;
  if (ort::Status* status = api->KernelContext_GetOutput(context, 0, output_shape.size, 4, &output)) return status;
  if (ort::Status* status = api->GetTensorMutableData(output, &data[3])) return status;
  if (input[0] == 0 || input[3] == 0) return nullptr;

  const Problem problem = {input[0], input[1], input[2], groups, input[3] / groups,
                           offset[1], offset[2], int64_t(tap_x.size()),
                           stride_h, stride_w, padding_h, padding_w,
                           input[3], offset[3], mask[3], offset_scale, mask_is_logits != 0,
                           tap_x.data(), tap_y.data(), fraction_x.data(), fraction_y.data()};
  const ops_dcnv3::Kernels& kernels = ops_dcnv3::chosen_kernels();
  const int64_t rows = input[0] * offset[1];
  // A question to the system, a fifth of the time of a small feature map.
  static const int64_t processors = at_least_one(int64_t(std::thread::hardware_concurrency()));
  const int64_t least = kUnitsPerChunk / (offset[2] * groups) + 1, even = (rows + processors - 1) / processors;
  const int64_t rows_per_chunk = even > least ? even : least;
  Work work{kernels, dtype, problem, {data[0], data[1], data[2], data[3]}, rows, rows_per_chunk,
            kernels.scratch_bytes(dtype, problem, false)};
  const auto run = [](void* shared, size_t chunk) { static_cast<Work*>(shared)->run(chunk); };
  const size_t chunks = size_t((rows + rows_per_chunk - 1) / rows_per_chunk);
  if (ort::Status* status = api->KernelContext_ParallelFor(context, run, chunks, 0, &work)) return status;
  return work.out_of_memory ? api->CreateStatus(ort::kFail, "ops_dcnv3: out of memory") : nullptr;
}

// C++ exceptions (no memory for a vector or a message) must not reach the runtime.
template <class F>
ort::Status* guarded(const ort::Api* api, const F& f) {
  try {
    return f();
  } catch (const std::exception& error) {
    return api->CreateStatus(ort::kFail, error.what());
  }
}

template <DType dtype>
ort::Status* ORT_CALL create(const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
  return guarded(api, [&] {
    auto created = std::make_unique<Kernel>();
    created->api = api;
    created->dtype = dtype;
    ort::Status* status = created->read(info);
    if (status == nullptr) *kernel = created.release();
    return status;
  });
}

ort::Status* ORT_CALL compute(void* kernel, ort::KernelContext* context) {
  const auto* self = static_cast<const Kernel*>(kernel);
  return guarded(self->api, [&] { return self->compute(context); });
}

template <DType dtype, int type>
ort::CustomOp describe() {
  ort::CustomOp op = {};
  op.version = ort::kVersion;
  op.GetName = [](const ort::CustomOp*) { return kType; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = [](const ort::CustomOp*, size_t) { return type; };
  op.GetInputTypeCount = [](const ort::CustomOp*) -> size_t { return 3; };
  op.GetOutputType = [](const ort::CustomOp*, size_t) { return type; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return 0; };   // required
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return 0; };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
  op.CreateKernelV2 = create<dtype>;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

// Lives until the library is unloaded; sessions refer to it.
struct Registered {
  const ort::Api* api = nullptr;
  ort::Domain* domain = nullptr;
  ~Registered() {
    if (domain != nullptr) api->ReleaseCustomOpDomain(domain);
  }
};

}  // namespace

// Called by SessionOptions.register_custom_ops_library.
ORT_EXPORT ort::Status* ORT_CALL RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Api* api = base->GetApi(ort::kVersion);
  if (api == nullptr) {
    const std::string message = std::string("ops_dcnv3: the custom operator needs ONNX Runtime 1.17 or newer; this is ") +
                                base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ort::kFail, message.c_str());
  }
  static const ort::CustomOp operators[] = {describe<DType::f32, ort::kFloat>(), describe<DType::f16, ort::kFloat16>()};
  static Registered registered;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (registered.domain == nullptr) {
    ort::Domain* domain = nullptr;
    if (ort::Status* status = api->CreateCustomOpDomain(kDomain, &domain)) return status;
    for (const ort::CustomOp& op : operators) {
      if (ort::Status* status = api->CustomOpDomain_Add(domain, &op)) {
        api->ReleaseCustomOpDomain(domain);
        return status;
      }
    }
    registered.api = api;
    registered.domain = domain;
  }
  return api->AddCustomOpDomain(options, registered.domain);
}
