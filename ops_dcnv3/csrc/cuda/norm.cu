// The compiled LayerNorm kernels behind the functions of norm_cuda.h: how rows are spread over threads and blocks.
#include "launch.h"
#include "norm_kernels.cuh"

namespace dcnv3 {
namespace norm {
namespace {

#ifdef __CUDACC__
int processors() {
  constexpr int kDevices = 64;
  static int known[kDevices] = {};  // a race writes the same number twice
  int device = 0, count = 0;
  cudaGetDevice(&device);
  if (device < kDevices && known[device]) return known[device];
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (device < kDevices) known[device] = count;
  return count > 0 ? count : 1;
}
#else
int processors() { return 2; }
#endif

// How many blocks of a kernel a processor works on at a time.
template <auto kKernel>
int resident_blocks(int threads) {
#ifdef __CUDACC__
  static int known[kThreads<true> / kWarp + 1] = {};
  int& blocks = known[threads / kWarp];
  if (blocks < 1) cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, 0);
  return blocks < 1 ? 1 : blocks;
#else
  return threads > 0 ? 4 : 1;
#endif
}

struct Plan {
  bool block;
  int slots, threads;
  Layout layout;

  explicit Plan(const Shape& s) {
    const int vectors = static_cast<int>(s.channels / kWidth);
    block = vectors > kWarp;
    int lanes = 1;
    while (lanes < vectors && lanes < kWarp) lanes *= 2;
    if (block) lanes = (vectors + kWarp - 1) / kWarp * kWarp;
    slots = kThreads<false> / lanes > 1 ? kThreads<false> / lanes : 1;
    // Little work is spread over the chip in blocks of few rows.
    while (slots > 1 && slots * lanes > kWarp && s.rows < int64_t{slots} * processors()) slots /= 2;
    threads = slots * lanes;
    layout = {static_cast<int>(s.rows), static_cast<int>(s.channels), lanes,
              FastDivisor(static_cast<uint32_t>(s.rows_per_image))};
  }
  // No more than are at work at a time, so that every block walks over many rows.
  template <auto kKernel>
  unsigned blocks() const {
    const int needed = (layout.rows + slots - 1) / slots, limit = processors() * resident_blocks<kKernel>(threads);
    return static_cast<unsigned>(needed < limit ? needed : limit);
  }
};

const char* check(const Shape& s) {
  if (s.channels < 1 || s.channels > kMaxChannels || s.channels % kWidth || s.rows > kMaxRows) {
    return "LayerNorm on CUDA: channels must be a multiple of 8 up to 4096, rows at most 2^30; use torch.nn.LayerNorm";
  }
  return nullptr;
}

template <Form F>
using FormConstant = std::integral_constant<Form, F>;

// Calls run(form, block) with what is known at compile time.
template <typename Run>
void with_variant(Form form, const Plan& plan, Run run) {
  const auto pick = [&](auto f) { plan.block ? run(f, std::true_type()) : run(f, std::false_type()); };
  switch (form) {
    case Form::kPlain: return pick(FormConstant<Form::kPlain>());
    case Form::kGelu: return pick(FormConstant<Form::kGelu>());
    case Form::kPost: return pick(FormConstant<Form::kPost>());
    case Form::kPre: return pick(FormConstant<Form::kPre>());
  }
}

}  // namespace

int64_t backward_blocks(Form form, const Shape& shape) {
  unsigned blocks = 0;
  const Plan plan(shape);
  with_variant(form, plan, [&](auto f, auto block) {
    blocks = plan.blocks<backward_kernel<decltype(f)::value, decltype(block)::value>>();
  });
  return blocks;
}

const char* forward(Form form, const Shape& shape, const Forward& tensors, void* stream) {
  const char* reason = check(shape);
  if (reason || shape.rows == 0) return reason;
  const Plan plan(shape);
  with_variant(form, plan, [&](auto f, auto block) {
    constexpr auto kernel = forward_kernel<decltype(f)::value, decltype(block)::value>;
    DCNV3_LAUNCH(kernel, plan.blocks<kernel>(), static_cast<unsigned>(plan.threads), stream, tensors, plan.layout);
  });
  return launch_error();
}

const char* backward(Form form, const Shape& shape, const Backward& tensors, void* stream) {
  const char* reason = check(shape);
  if (reason || shape.rows == 0) return reason;
  const Plan plan(shape);
  unsigned blocks = 0;
  with_variant(form, plan, [&](auto f, auto block) {
    constexpr auto kernel = backward_kernel<decltype(f)::value, decltype(block)::value>;
    blocks = plan.blocks<kernel>();
    DCNV3_LAUNCH(kernel, blocks, static_cast<unsigned>(plan.threads), stream, tensors, plan.layout);
  });
  if (tensors.partial) {
    const int columns = kSums * plan.layout.channels;
    DCNV3_LAUNCH(finish_kernel, static_cast<unsigned>((columns + kWarp - 1) / kWarp), kFinishThreads, stream, tensors,
                 plan.layout.channels, static_cast<int>(blocks));
  }
  return launch_error();
}

}  // namespace norm
}  // namespace dcnv3
