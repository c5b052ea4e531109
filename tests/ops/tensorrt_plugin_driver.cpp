// The TensorRT plugin as functions that ctypes can call: what TensorRT would do with it, one call at a time.
#include "dcnv3_plugin.cpp"

#include <string>

using namespace nvinfer1;

namespace {

std::string messages;

struct Logger : ILogger {
  void log(Severity, const char* message) noexcept override { messages += message; }
} logger;
struct Finder : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

IPluginCreatorV3One& creator() {
  int32_t count = 0;
  setLoggerFinder(&finder);
  return *static_cast<IPluginCreatorV3One*>(getCreators(count)[0]);
}

template <typename Capability>
Capability& capability(IPluginV3* plugin, PluginCapabilityType type) {
  return *static_cast<Capability*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneBuild& build_of(IPluginV3* plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime& runtime_of(IPluginV3* plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

// Three tensors of four dimensions.
struct Tensors {
  PluginTensorDesc descriptions[3] = {};
  DynamicPluginTensorDesc dynamic[3] = {};

  Tensors(int type, const int64_t* sizes) {
    for (int i = 0; i < 3; ++i) {
      Dims dims{4, {sizes[4 * i], sizes[4 * i + 1], sizes[4 * i + 2], sizes[4 * i + 3]}};
      descriptions[i] = {dims, static_cast<DataType>(type), TensorFormat::kLINEAR, 1.0f};
      dynamic[i] = {descriptions[i], dims, dims, dims};
    }
  }
};

}  // namespace

extern "C" {

const char* take_messages() {
  static std::string taken;
  taken.swap(messages);
  messages.clear();
  return taken.c_str();
}

const char* creator_identity() {
  static std::string text;
  text = std::string(creator().getPluginNamespace()) + " " + creator().getPluginName() + " " + creator().getPluginVersion();
  return text.c_str();
}

// The names of the fields that the parser looks for in a node.
const char* field_names() {
  static std::string text;
  text.clear();
  const PluginFieldCollection& fields = *creator().getFieldNames();
  for (int i = 0; i < fields.nbFields; ++i) text += std::string(i ? " " : "") + fields.fields[i].name;
  return text.c_str();
}

// Values arrive as doubles; `types` are PluginFieldTypes.
void* create(int count, const char** names, const double* values, const int* types) {
  std::vector<PluginField> fields;
  std::vector<int32_t> int32(count);
  std::vector<int64_t> int64(count);
  std::vector<float> float32(count);
  for (int i = 0; i < count; ++i) {
    const auto type = static_cast<PluginFieldType>(types[i]);
    int32[i] = static_cast<int32_t>(values[i]);
    int64[i] = static_cast<int64_t>(values[i]);
    float32[i] = static_cast<float>(values[i]);
    const void* data = &values[i];
    if (type == PluginFieldType::kINT32) data = &int32[i];
    if (type == PluginFieldType::kINT64) data = &int64[i];
    if (type == PluginFieldType::kFLOAT32) data = &float32[i];
    fields.emplace_back(names[i], data, type, 1);
  }
  const PluginFieldCollection collection{count, fields.data()};
  return creator().createPlugin("node", &collection, TensorRTPhase::kBUILD);
}

// What TensorRT does when it saves an engine and loads it again. The first plugin is gone before the second is used.
void* saved_and_loaded(void* plugin) {
  auto* first = static_cast<IPluginV3*>(plugin);
  IPluginV3* second = creator().createPlugin("node", runtime_of(first).getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
  delete first;
  IPluginV3* attached = runtime_of(second).attachToContext(nullptr);
  delete second;
  return attached;
}

void* cloned(void* plugin) {
  IPluginV3* copy = static_cast<IPluginV3*>(plugin)->clone();
  delete static_cast<IPluginV3*>(plugin);
  return copy;
}

void destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

// Each dimension of the output as 10 * (input it is taken from) + (dimension there).
int output_shape(void* plugin, int count, int rank, int* result) {
  DimsExprs inputs[4] = {}, output = {};
  for (intptr_t i = 0; i < count; ++i) {
    inputs[i].nbDims = rank;
    for (intptr_t j = 0; j < rank; ++j) inputs[i].d[j] = reinterpret_cast<const IDimensionExpr*>(10 * i + j + 1);
  }
  auto& builder = *reinterpret_cast<IExprBuilder*>(result);  // must not be used
  const int code = build_of(static_cast<IPluginV3*>(plugin)).getOutputShapes(inputs, count, nullptr, 0, &output, 1, builder);
  for (int j = 0; j < output.nbDims; ++j) result[j] = static_cast<int>(reinterpret_cast<intptr_t>(output.d[j])) - 1;
  return code;
}

int output_type(void* plugin, int input_type) {
  const DataType inputs[3] = {static_cast<DataType>(input_type), DataType::kINT8, DataType::kINT8};
  DataType output = DataType::kBOOL;
  build_of(static_cast<IPluginV3*>(plugin)).getOutputDataTypes(&output, 1, inputs, 3);
  return static_cast<int>(output);
}

// `position` with the types and formats of input, offset, mask and output.
int supports(void* plugin, int position, const int* types, const int* formats) {
  DynamicPluginTensorDesc tensors[4] = {};
  for (int i = 0; i < 4; ++i) {
    tensors[i].desc.type = static_cast<DataType>(types[i]);
    tensors[i].desc.format = static_cast<TensorFormat>(formats[i]);
  }
  return build_of(static_cast<IPluginV3*>(plugin)).supportsFormatCombination(position, tensors, 3, 1);
}

int configure(void* plugin, const int64_t* sizes) {
  const Tensors tensors(0, sizes);
  return build_of(static_cast<IPluginV3*>(plugin)).configurePlugin(tensors.dynamic, 3, tensors.dynamic, 1);
}

int run(void* plugin, int type, const int64_t* sizes, const void* input, const void* offset, const void* mask,
        void* output) {
  const Tensors tensors(type, sizes);
  const void* inputs[3] = {input, offset, mask};
  IPluginV3OneRuntime& runtime = runtime_of(static_cast<IPluginV3*>(plugin));
  const int code = runtime.onShapeChange(tensors.descriptions, 3, tensors.descriptions, 1);
  return code ? code : runtime.enqueue(tensors.descriptions, nullptr, inputs, &output, nullptr, nullptr);
}
}
