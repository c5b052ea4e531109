#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

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

const char* wish_of_environment() {
  const char* wish = std::getenv("OPS_DCNV3_CPU_CAPABILITY");
  return wish != nullptr && *wish != '\0' ? wish : nullptr;
}

std::atomic<const Capability*>& chosen() {
  static std::atomic<const Capability*> capability = [] {
    const char* wish = wish_of_environment();
    const Capability* wished = wish != nullptr ? find(wish) : nullptr;
    return wished != nullptr ? wished : find(nullptr);
  }();
  return capability;
}

}  // namespace

const ops_dcnv3::Kernels& ops_dcnv3::chosen_kernels() { return chosen().load()->kernels(); }

const char* ops_dcnv3_cpu_capability() { return chosen().load()->name; }

const char* ops_dcnv3_cpu_capability_error() {
  static const std::string error = [] {
    const char* wish = wish_of_environment();
    if (wish == nullptr || find(wish) != nullptr) return std::string();
    std::string names;
    for (const char* name : {"portable", "avx2", "avx512"})
      if (find(name) != nullptr) names += (names.empty() ? "" : ", ") + std::string(name);
    return "OPS_DCNV3_CPU_CAPABILITY is '" + std::string(wish) + "'; this machine can use " + names +
           "; set one of these, or unset it";
  }();
  return error.empty() ? nullptr : error.c_str();
}

int ops_dcnv3_set_cpu_capability(const char* name) {
  const Capability* capability = find(name);
  if (capability != nullptr) chosen().store(capability);
  return capability != nullptr;
}
