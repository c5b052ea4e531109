// DCNv3 as a TensorRT plugin (IPluginV3): name "DCNv3", version "1", namespace "ops_dcnv3", which is where TensorRT
// looks for the node that `--core custom` exports. Inputs (input, offset, mask), channels last, as the operator has
// them; float32, float16 or bfloat16, all alike. The kernel is that of ops_dcnv3.
//
// State: compiled against declarations written for the tests, not NVIDIA's headers. Executed under emulation; registered
// and created by the plugin registry of TensorRT for RTX 1.7, which has no plugin layers. Never part of an engine, never
// run on a GPU.
#include <NvInfer.h>

#include <cstdio>
#include <new>
#include <vector>

#include "attributes.h"

namespace dcnv3 {
namespace {

using namespace nvinfer1;

constexpr const char* kName = "DCNv3";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "ops_dcnv3";

ILoggerFinder* logger_finder = nullptr;

// Reports `reason`, if there is one. True if there is none.
bool passes(const char* reason) {
  if (!reason) return true;
  ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
  if (logger) {
    logger->log(ILogger::Severity::kERROR, reason);
  } else {
    std::fprintf(stderr, "%s\n", reason);
  }
  return false;
}

// The attributes as TensorRT's fields, which point into them. With nullptr: the fields' names only.
std::vector<PluginField> fields_of(const Attributes* attributes) {
  std::vector<PluginField> fields;
  for (const IntegerAttribute& integer : kIntegers) {
    const int32_t* value = attributes ? &(attributes->*integer.value) : nullptr;
    fields.emplace_back(integer.name, value, PluginFieldType::kINT32, 1);
  }
  fields.emplace_back(kOffsetScale, attributes ? &attributes->offset_scale : nullptr, PluginFieldType::kFLOAT32, 1);
  return fields;
}

// Takes over one field; a name that is no attribute (plugin_version, plugin_namespace) is passed by.
void read(const PluginField& field, Attributes& attributes) {
  if (!field.data || field.length != 1) return;
  switch (field.type) {
    case PluginFieldType::kINT32: set(attributes, field.name, int64_t{*static_cast<const int32_t*>(field.data)}); break;
    case PluginFieldType::kINT64: set(attributes, field.name, *static_cast<const int64_t*>(field.data)); break;
    case PluginFieldType::kFLOAT32: set(attributes, field.name, double{*static_cast<const float*>(field.data)}); break;
    case PluginFieldType::kFLOAT64: set(attributes, field.name, *static_cast<const double*>(field.data)); break;
    default: break;
  }
}

bool has_three_inputs(int32_t count) {
  return passes(count == 3 ? nullptr : "DCNv3: expected the inputs input, offset and mask");
}

bool is_supported(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
 public:
  explicit Plugin(const Attributes& attributes) : attributes_(attributes) {}

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(attributes_); }

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // ---- building

  int32_t getNbOutputs() const noexcept override { return 1; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs, int32_t count) const noexcept override {
    if (!has_three_inputs(count)) return 1;
    outputs[0] = inputs[0];
    return 0;
  }

  // Offset has the output's batch, height and width, so nothing needs to be computed.
  int32_t getOutputShapes(const DimsExprs* inputs, int32_t count, const DimsExprs*, int32_t, DimsExprs* outputs, int32_t,
                          IExprBuilder&) noexcept override {
    if (!has_three_inputs(count)) return 1;
    for (int32_t i = 0; i < count; ++i) {
      if (!passes(inputs[i].nbDims == 4 ? nullptr : "DCNv3: inputs must have 4 dimensions, channels last")) return 1;
    }
    outputs[0].nbDims = 4;
    for (int i = 0; i < 3; ++i) outputs[0].d[i] = inputs[1].d[i];
    outputs[0].d[3] = inputs[0].d[3];
    return 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[position].desc;
    return tensor.format == TensorFormat::kLINEAR && is_supported(tensor.type) && tensor.type == tensors[0].desc.type;
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc* in, int32_t count, const DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    if (!has_three_inputs(count)) return 1;
    return passes(check(attributes_, in[0].opt.d, in[1].opt.d, in[2].opt.d)) ? 0 : 1;
  }

  // ---- running

  int32_t onShapeChange(const PluginTensorDesc* in, int32_t, const PluginTensorDesc*, int32_t) noexcept override {
    return passes(check(attributes_, in[0].dims.d, in[1].dims.d, in[2].dims.d)) ? 0 : 1;
  }

  // TensorRT's buffers begin on 256-byte boundaries and are dense: what the kernels ask for.
  int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                  void*, cudaStream_t stream) noexcept override {
    Dtype dtype = Dtype::kFloat32;
    if (in[0].type == DataType::kHALF) dtype = Dtype::kFloat16;
    if (in[0].type == DataType::kBF16) dtype = Dtype::kBFloat16;
    const Shape shape = shape_of(attributes_, in[0].dims.d);
    return passes(forward(dtype, shape, inputs[0], inputs[1], inputs[2], outputs[0], stream)) ? 0 : 1;
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_ = fields_of(&attributes_);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }

 private:
  Attributes attributes_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_;
};

class Creator final : public IPluginCreatorV3One {
 public:
  Creator() : fields_(fields_of(nullptr)), collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

  IPluginV3* createPlugin(const char*, const PluginFieldCollection* given, TensorRTPhase) noexcept override {
    Attributes attributes;
    for (int32_t i = 0; given && i < given->nbFields; ++i) read(given->fields[i], attributes);
    return passes(check(attributes)) ? new (std::nothrow) Plugin(attributes) : nullptr;
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_;
};

Creator creator;

}  // namespace
}  // namespace dcnv3

// What IPluginRegistry::loadLibrary looks for (Python: load_library; trtexec: --dynamicPlugins).
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  dcnv3::logger_finder = finder;
}
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&dcnv3::creator};
  count = 1;
  return creators;
}
