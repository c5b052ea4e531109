// The CPU kernels as operators of ONNX Runtime, domain "ops_dcnv3". Built by ort_build.py.
#include <mutex>

#include "dcnv3_node.h"
#include "layer_nodes.h"

namespace {

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
  using namespace ops_dcnv3;
  const ort::Api* api = base->GetApi(ort::kVersion);
  if (api == nullptr) {
    const ort::Api* oldest = base->GetApi(1);
    return guarded(oldest, [&] {
      throw Invalid(std::string("the custom operators need ONNX Runtime 1.17 or newer; this is ") +
                    base->GetVersionString());
    });
  }
  static const ort::CustomOp operators[] = {describe<Dcnv3Node<DType::f32>, ort::kFloat>(),
                                            describe<Dcnv3Node<DType::f16>, ort::kFloat16>(),
                                            describe<FeaturesNode, ort::kFloat>(),
                                            describe<NormalisationNode, ort::kFloat>(),
                                            describe<GeluNode, ort::kFloat>()};
  static Registered registered;
  static std::mutex mutex;
  return guarded(api, [&] {
    if (const char* error = ops_dcnv3_cpu_capability_error()) throw Invalid(error);
    const std::lock_guard<std::mutex> lock(mutex);
    if (registered.domain == nullptr) {
      ort::Domain* domain = nullptr;
      check(api->CreateCustomOpDomain("ops_dcnv3", &domain));
      std::unique_ptr<ort::Domain, void(ORT_CALL*)(ort::Domain*)> owner(domain, api->ReleaseCustomOpDomain);
      for (const ort::CustomOp& op : operators) check(api->CustomOpDomain_Add(domain, &op));
      registered.api = api;
      registered.domain = owner.release();
    }
    check(api->AddCustomOpDomain(options, registered.domain));
  });
}
