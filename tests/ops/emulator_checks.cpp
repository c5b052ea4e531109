// Small kernels, right and wrong, that show what the CUDA emulator does and what it catches. The argument names one.
#include "cuda_emulation.h"

#include <string>

constexpr unsigned kThreads = 64;

// The sum of 0..63 by shuffles within warps and shared memory between them. Without the barrier it is a race.
void block_sum(bool barrier, float* result) {
  __shared__ float partial[2];
  float x = threadIdx.x;
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  if (barrier) __syncthreads();
  if (threadIdx.x == 0) *result = partial[0] + partial[1];
}

void votes(unsigned* result) {
  const unsigned ballot = __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0);
  if (threadIdx.x == 0) *result = ballot;
}

// Half of each warp takes part in a shuffle of its own; the other half goes another way.
void half_warp(float* result) {
  const bool low = threadIdx.x % 32 < 16;
  const float x = low ? __shfl_sync(0x0000ffffu, float(threadIdx.x), 3) : -1.f;
  __syncwarp();
  atomicAdd(result, x);
}

int main(int, char** arguments) {
  const std::string name = arguments[1];
  emulation::set_seed(static_cast<unsigned>(std::atoi(arguments[2])));
  float sum = 0;
  unsigned ballot = 0;
  alignas(16) float four[8] = {};
  const auto run = [](auto kernel) { emulation::launch(2, kThreads, nullptr, kernel); };
  if (name == "block sum") run([&] { block_sum(true, &sum); });
  if (name == "missing barrier") run([&] { block_sum(false, &sum); });
  if (name == "ballot") run([&] { votes(&ballot); });
  if (name == "half warp") run([&] { half_warp(&sum); });
  if (name == "order") run([] { std::printf("%u ", blockIdx.x * kThreads + threadIdx.x); });
  if (name == "early exit") run([] { if (threadIdx.x != 7) __syncthreads(); });
  if (name == "different barriers") {
    run([] {
      if (threadIdx.x < 32) __syncthreads();
      else __syncwarp(), __syncthreads();
    });
  }
  if (name == "missing lane") run([] { if (threadIdx.x < 5) __syncwarp(); else __syncthreads(); });
  if (name == "misaligned") {
    run([&] { atomicAdd(reinterpret_cast<float4*>(four + 1), make_float4(1, 1, 1, 1)); });
  }
  std::printf("%g %u\n", sum, ballot);
}
