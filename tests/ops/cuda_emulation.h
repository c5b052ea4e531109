// Runs CUDA kernels on the CPU, so that they can be checked without a GPU. For g++ on Linux; never part of what ships.
//
// Written from the CUDA programming model: every CUDA thread is a fiber with a stack. Fibers run one at a time, in an
// order drawn from a seed, and give way at barriers and warp collectives only: the result of a correct kernel does not
// depend on the seed. The emulator is stricter than hardware where that finds bugs:
//   - threads of a warp never run in lockstep;
//   - shared memory is filled with NaN patterns at the start of each block;
//   - a barrier or shuffle that some of its threads never reach ends the program with a message;
//   - vector accesses must be aligned.
// It says nothing about speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_emulation_types.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// The architecture whose code paths run; -D__CUDA_ARCH__=800 selects the scalar atomics.
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Shared variables live in a linker section of their own, which is poisoned as a whole.
#define __shared__ static __attribute__((section("emulated_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_emulated_shared[], __stop_emulated_shared[];

using cudaStream_t = void*;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// ---- fibers ---------------------------------------------------------------------------------------------------------

namespace emulation {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned kWarp = 32;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel, block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  std::abort();
}

inline void require_alignment(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail("misaligned address");
}

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // AddressSanitizer's
  bool done = true;
  // What the fiber waits for: a place in the source (0: nothing) and the threads, first to last, that must come there.
  int place = 0;
  unsigned lane_mask = 0;  // 0: the whole block
  uint64_t sent = 0, received[kWarp];
};

struct Machine {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::mt19937 random;
  std::function<void()> kernel;
  unsigned current = 0;
};
inline Machine machine;

inline void set_seed(unsigned seed) { machine.random.seed(seed); }

// Switches between the scheduler and the current fiber, telling AddressSanitizer about the stacks.
inline void enter(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack.get(), kStackBytes);
#endif
  swapcontext(&machine.scheduler, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void leave(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, machine.scheduler_stack,
                                 machine.scheduler_stack_bytes);
#endif
  swapcontext(&fiber.context, &machine.scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
}

inline void fiber_main() {
  Fiber& fiber = machine.fibers[machine.current];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
  machine.kernel();
  fiber.done = true;
  leave(fiber);
}

// Blocks the current fiber until all the others that `lane_mask` names (0: all of the block) are at the same place.
inline Fiber& wait_at(int place, unsigned lane_mask, uint64_t sent = 0) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.place = place;
  fiber.lane_mask = lane_mask;
  fiber.sent = sent;
  leave(fiber);
  return fiber;
}

// Lets the party that fiber `t` waits for go on, if it is complete.
inline bool release(unsigned t) {
  const Fiber& first = machine.fibers[t];
  const unsigned begin = first.lane_mask ? t / kWarp * kWarp : 0;
  const unsigned end = first.lane_mask ? begin + kWarp : machine.fibers.size();
  const auto member = [&](unsigned i) { return !first.lane_mask || (first.lane_mask >> (i - begin) & 1); };
  for (unsigned i = begin; i < end; ++i) {
    if (!member(i)) continue;
    if (i >= machine.fibers.size()) fail("a warp collective names a lane that does not exist");
    const Fiber& other = machine.fibers[i];
    if (other.done) fail("a thread left the kernel while others wait for it at a barrier or warp collective");
    if (other.place != first.place || other.lane_mask != first.lane_mask) return false;
  }
  const unsigned party = first.lane_mask;
  for (unsigned i = begin; i < end; ++i) {
    if (!member(i)) continue;
    Fiber& fiber = machine.fibers[i];
    fiber.place = 0;
    for (unsigned lane = 0; party && lane < kWarp; ++lane) {
      fiber.received[lane] = member(begin + lane) ? machine.fibers[begin + lane].sent : ~uint64_t{0};
    }
  }
  return true;
}

inline void run_block(unsigned threads) {
  if (__start_emulated_shared) {
    std::memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  }
  machine.fibers.resize(threads);
  std::vector<unsigned> runnable(threads);
  std::iota(runnable.begin(), runnable.end(), 0u);
  for (Fiber& fiber : machine.fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.done = false;
    fiber.place = 0;
    makecontext(&fiber.context, fiber_main, 0);
  }
  while (!runnable.empty()) {
    std::swap(runnable[machine.random() % runnable.size()], runnable.back());
    machine.current = runnable.back();
    runnable.pop_back();
    threadIdx.x = machine.current;
    Fiber& fiber = machine.fibers[machine.current];
    enter(fiber);
    if (!fiber.done && release(machine.current)) {
      for (unsigned i = 0; i < threads; ++i) {
        const unsigned mask = fiber.lane_mask;
        const bool member = !mask || (i / kWarp == machine.current / kWarp && (mask >> i % kWarp & 1));
        if (member) runnable.push_back(i);
      }
    }
  }
  for (unsigned i = 0; i < threads; ++i) {
    threadIdx.x = i;
    if (!machine.fibers[i].done) fail("waits at a barrier or warp collective that others do not reach");
  }
}

// A launch of one-dimensional blocks; the blocks run in random order.
template <typename Kernel>
void launch(unsigned blocks, unsigned threads, cudaStream_t, Kernel kernel) {
  machine.kernel = kernel;
  blockDim.x = threads;
  gridDim.x = blocks;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), machine.random);
  for (unsigned block : order) {
    blockIdx.x = block;
    run_block(threads);
  }
}

}  // namespace emulation

// ---- barriers and warp collectives: a place is a source line --------------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) { emulation::wait_at(line, 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) { emulation::wait_at(line, mask); }

template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int line = __builtin_LINE()) {
  return emulation::from_bits<T>(emulation::wait_at(line, mask, emulation::to_bits(x)).received[source % 32]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int distance, int line = __builtin_LINE()) {
  return __shfl_sync(mask, x, static_cast<int>(threadIdx.x % 32) ^ distance, line);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, int line = __builtin_LINE()) {
  const auto& received = emulation::wait_at(line, mask, vote).received;
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= (mask >> lane & 1 && received[lane]) ? 1u << lane : 0u;
  return votes;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int min(int a, int b) { return a < b ? a : b; }
template <typename T>
T __ldg(const T* p) {
  emulation::require_alignment(p, sizeof(T));
  return *p;
}
template <typename T>
T atomicAdd(T* p, T x) {
  emulation::require_alignment(p, sizeof(T));
  const T old = *p;
  *p = old + x;
  return old;
}
