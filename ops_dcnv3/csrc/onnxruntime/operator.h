// What the custom operators share: reading attributes and tensors, threads, and errors as the runtime wants them.
#pragma once

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ort_abi.h"

namespace ops_dcnv3 {

inline int64_t at_least_one(int64_t value) { return value > 1 ? value : 1; }

inline std::string text(const std::vector<int64_t>& sizes) {
  std::string result = "(";
  for (size_t i = 0; i < sizes.size(); ++i) result += (i ? ", " : "") + std::to_string(sizes[i]);
  return result + ")";
}

// Reported to the user as an invalid argument, with this text.
struct Invalid : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An error of the runtime itself, passed on as it is.
struct Failed {
  ort::Status* status;
};

inline void check(ort::Status* status) {
  if (status != nullptr) throw Failed{status};
}

// Run `f`; exceptions must not reach the runtime and become its errors.
template <class F>
ort::Status* guarded(const ort::Api* api, const F& f) {
  try {
    f();
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const Invalid& error) {
    return api->CreateStatus(ort::kInvalidArgument, (std::string("ops_dcnv3: ") + error.what()).c_str());
  } catch (const std::exception& error) {
    return api->CreateStatus(ort::kFail, (std::string("ops_dcnv3: ") + error.what()).c_str());
  }
  return nullptr;
}

// A node's attributes, read once.
struct Attributes {
  const ort::Api* api;
  const ort::KernelInfo* info;

  int64_t integer(const char* name, int64_t least) const {
    int64_t value = 0;
    check(api->KernelInfoGetAttribute_int64(info, name, &value));
    if (value < least)
      throw Invalid(std::string("attribute ") + name + " must be at least " + std::to_string(least) + "; it is " +
                    std::to_string(value));
    return value;
  }
  float number(const char* name) const {
    float value = 0;
    check(api->KernelInfoGetAttribute_float(info, name, &value));
    return value;
  }
};

struct Tensor {
  std::vector<int64_t> shape;
  void* data;
  int64_t operator[](size_t i) const { return shape[i]; }
  int64_t count() const {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
  }
};

// One execution of a node.
struct Execution {
  const ort::Api* api;
  ort::KernelContext* context;

  Tensor input(size_t index) const {
    const ort::Value* value = nullptr;
    check(api->KernelContext_GetInput(context, index, &value));
    ort::Shape* info = nullptr;
    check(api->GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<ort::Shape, void(ORT_CALL*)(ort::Shape*)> owner(info, api->ReleaseTensorTypeAndShapeInfo);
    size_t count = 0;
    check(api->GetDimensionsCount(info, &count));
    Tensor tensor{std::vector<int64_t>(count), nullptr};
    check(api->GetDimensions(info, tensor.shape.data(), count));
    check(api->GetTensorMutableData(const_cast<ort::Value*>(value), &tensor.data));
    return tensor;
  }

  // Throws Invalid unless the input has `rank` dimensions, called `layout` in the message.
  Tensor input(size_t index, const char* name, size_t rank, const char* layout) const {
    Tensor tensor = input(index);
    if (tensor.shape.size() != rank)
      throw Invalid(std::string(name) + " must have " + std::to_string(rank) + " dimensions, " + layout +
                    "; it has shape " + text(tensor.shape));
    return tensor;
  }

  void* output(const std::vector<int64_t>& shape) const {
    ort::Value* value = nullptr;
    check(api->KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(api->GetTensorMutableData(value, &data));
    return data;
  }

  // Call f(begin, end) for ranges that cover [0, rows), on the runtime's threads; `f` must not throw. A range has at
  // least `least` rows, and there are no more ranges than processors.
  template <class F>
  void parallel(int64_t rows, int64_t least, const F& f) const {
    // A question to the system, a fifth of the time of a small feature map.
    static const int64_t processors = at_least_one(int64_t(std::thread::hardware_concurrency()));
    const int64_t even = (rows + processors - 1) / processors;
    struct Ranges {
      const F& f;
      int64_t rows, length;
    } ranges{f, rows, even > least ? even : at_least_one(least)};
    const auto run = [](void* shared, size_t index) {
      const auto& ranges = *static_cast<const Ranges*>(shared);
      const int64_t begin = int64_t(index) * ranges.length, end = begin + ranges.length;
      ranges.f(begin, end < ranges.rows ? end : ranges.rows);
    };
    const size_t count = size_t((rows + ranges.length - 1) / ranges.length);
    check(api->KernelContext_ParallelFor(context, run, count, 0, &ranges));
  }
};

// Describe the operator `Node` to the runtime: a class with `type` (its name), `inputs` (their number), a constructor
// from Attributes and `void compute(const Execution&) const`. `element` is the type of all inputs and of the output.
template <class Node, int element>
ort::CustomOp describe() {
  struct Kernel {
    const ort::Api* api;
    Node node;
  };
  ort::CustomOp op = {};
  op.version = ort::kVersion;
  op.GetName = [](const ort::CustomOp*) { return Node::type; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = [](const ort::CustomOp*, size_t) { return element; };
  op.GetInputTypeCount = [](const ort::CustomOp*) { return Node::inputs; };
  op.GetOutputType = [](const ort::CustomOp*, size_t) { return element; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return 0; };  // required
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return 0; };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
  op.CreateKernelV2 = [](const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = new Kernel{api, Node(Attributes{api, info})}; });
  };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) {
    const auto& self = *static_cast<const Kernel*>(kernel);
    return guarded(self.api, [&] { self.node.compute(Execution{self.api, context}); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace ops_dcnv3
