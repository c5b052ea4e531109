// The part of ONNX Runtime's C interface that the custom operator uses, declared here because the Python package of
// ONNX Runtime brings no C headers. The interface is a table of functions that only grows at its end, so each function
// keeps its slot for good; the table is asked for by version (17: ONNX Runtime 1.17, the first with ParallelFor), and an
// older runtime has none to give. Names are those of ONNX Runtime's own documentation.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#define ORT_EXPORT extern "C" __declspec(dllexport)
#else
#define ORT_CALL
#define ORT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ort {

constexpr uint32_t kVersion = 17;
constexpr int kFail = 1, kInvalidArgument = 2;  // error codes
constexpr int kFloat = 1, kFloat16 = 10;        // element types

struct Status;  // null means success; whoever receives one releases it
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct Shape;
struct CustomOp;

// One function of the table in its slot; `Unused<n>` stands for n functions of no use here.
template <class... Arguments>
using Function = Status*(ORT_CALL*)(Arguments...);
template <size_t count>
struct Unused {
  void* slots[count];
};

struct Api {
  Function<int, const char*> CreateStatus;
  Unused<25> a;
  Function<const char*, Domain**> CreateCustomOpDomain;
  Function<Domain*, const CustomOp*> CustomOpDomain_Add;
  Function<SessionOptions*, Domain*> AddCustomOpDomain;
  Unused<22> b;
  Function<Value*, void**> GetTensorMutableData;
  Unused<9> c;
  Function<const Shape*, size_t*> GetDimensionsCount;
  Function<const Shape*, int64_t*, size_t> GetDimensions;
  Unused<2> d;
  Function<const Value*, Shape**> GetTensorTypeAndShape;
  Unused<19> e;
  Function<const KernelInfo*, const char*, float*> KernelInfoGetAttribute_float;
  Function<const KernelInfo*, const char*, int64_t*> KernelInfoGetAttribute_int64;
  Unused<3> f;
  Function<const KernelContext*, size_t, const Value**> KernelContext_GetInput;
  Function<KernelContext*, size_t, const int64_t*, size_t, Value**> KernelContext_GetOutput;
  Unused<1> g;
  void(ORT_CALL* ReleaseStatus)(Status*);
  Unused<5> h;
  void(ORT_CALL* ReleaseTensorTypeAndShapeInfo)(Shape*);
  Unused<1> i;
  void(ORT_CALL* ReleaseCustomOpDomain)(Domain*);
  Unused<172> j;
  Function<const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*> KernelContext_ParallelFor;
};
static_assert(offsetof(Api, CreateCustomOpDomain) == 26 * sizeof(void*), "slots must not move");
static_assert(offsetof(Api, GetTensorMutableData) == 51 * sizeof(void*), "slots must not move");
static_assert(offsetof(Api, GetTensorTypeAndShape) == 65 * sizeof(void*), "slots must not move");
static_assert(offsetof(Api, KernelContext_GetOutput) == 91 * sizeof(void*), "slots must not move");
static_assert(offsetof(Api, ReleaseCustomOpDomain) == 101 * sizeof(void*), "slots must not move");
static_assert(offsetof(Api, KernelContext_ParallelFor) == 274 * sizeof(void*), "slots must not move");

struct ApiBase {
  const Api*(ORT_CALL* GetApi)(uint32_t version);  // null if the runtime is older than `version`
  const char*(ORT_CALL* GetVersionString)();
};

// An operator as the runtime sees it. Functions of no use here are declared as plain pointers and stay null.
struct CustomOp {
  uint32_t version;
  void* CreateKernel;
  const char*(ORT_CALL* GetName)(const CustomOp*);
  const char*(ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  int(ORT_CALL* GetInputType)(const CustomOp*, size_t);
  size_t(ORT_CALL* GetInputTypeCount)(const CustomOp*);
  int(ORT_CALL* GetOutputType)(const CustomOp*, size_t);
  size_t(ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void* KernelCompute;
  void(ORT_CALL* KernelDestroy)(void* kernel);
  int(ORT_CALL* GetInputCharacteristic)(const CustomOp*, size_t);
  int(ORT_CALL* GetOutputCharacteristic)(const CustomOp*, size_t);
  int(ORT_CALL* GetInputMemoryType)(const CustomOp*, size_t);
  void *GetVariadicInputMinArity, *GetVariadicInputHomogeneity;
  void *GetVariadicOutputMinArity, *GetVariadicOutputHomogeneity;
  Function<const CustomOp*, const Api*, const KernelInfo*, void**> CreateKernelV2;
  Function<void*, KernelContext*> KernelComputeV2;
  void* InferOutputShapeFn;
  int(ORT_CALL* GetStartVersion)(const CustomOp*);
  int(ORT_CALL* GetEndVersion)(const CustomOp*);
  void *GetMayInplace, *ReleaseMayInplace, *GetAliasMap, *ReleaseAliasMap;  // from version 18 on
};

}  // namespace ort
