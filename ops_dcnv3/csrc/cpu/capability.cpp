// Which instruction set the CPU kernels use: "portable", "avx2" or "avx512".
#include <atomic>
#include <cstring>

#include "types.h"

#if defined(_WIN32)
#define OPS_DCNV3_EXPORT extern "C" __declspec(dllexport)
#else
#define OPS_DCNV3_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define OPS_DCNV3_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#endif
#endif

namespace {

struct Capability {
  const char* name;
  bool usable;
  const ops_dcnv3::Kernels& (*kernels)();
};

#if defined(OPS_DCNV3_X86) && defined(_MSC_VER)
// The operating system must save the wider registers too (XCR0).
bool has_avx2() {
  int info[4];
  __cpuidex(info, 1, 0);
  const bool fma_f16c_osxsave = (info[2] >> 12 & 1) && (info[2] >> 29 & 1) && (info[2] >> 27 & 1);
  if (!fma_f16c_osxsave || (_xgetbv(0) & 0x6) != 0x6) return false;
  __cpuidex(info, 7, 0);
  return info[1] >> 5 & 1;
}
bool has_avx512() {
  if (!has_avx2() || (_xgetbv(0) & 0xe6) != 0xe6) return false;
  int info[4];
  __cpuidex(info, 7, 0);
  return (info[1] >> 16 & 1) && (info[1] >> 17 & 1) && (info[1] >> 30 & 1) && (info[1] >> 31 & 1);  // F, DQ, BW, VL
}
#elif defined(OPS_DCNV3_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

const Capability* find(const char* name) {
  static const Capability all[] = {
#if defined(OPS_DCNV3_X86)
      {"avx512", has_avx512(), ops_dcnv3::avx512_kernels},
      {"avx2", has_avx2(), ops_dcnv3::avx2_kernels},
#endif
      {"portable", true, ops_dcnv3::portable_kernels},
  };
  for (const Capability& capability : all)
    if (capability.usable && (name == nullptr || std::strcmp(name, capability.name) == 0)) return &capability;
  return nullptr;
}

std::atomic<const Capability*>& chosen() {
  static std::atomic<const Capability*> capability = find(nullptr);
  return capability;
}

}  // namespace

const ops_dcnv3::Kernels& ops_dcnv3::chosen_kernels() { return chosen().load()->kernels(); }

// The name of the instruction set in use. The first choice is the best that this machine has.
OPS_DCNV3_EXPORT const char* ops_dcnv3_cpu_capability() { return chosen().load()->name; }

// Changes it; 0 if this machine or this build cannot.
OPS_DCNV3_EXPORT int ops_dcnv3_set_cpu_capability(const char* name) {
  const Capability* capability = find(name);
  if (capability != nullptr) chosen().store(capability);
  return capability != nullptr;
}
