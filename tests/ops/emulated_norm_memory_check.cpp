// Runs every LayerNorm kernel on buffers of exactly the right size. Built with sanitizers: an access outside ends the
// program.
#include "norm.cu"

namespace {

using dcnv3::Dtype;
using dcnv3::norm::Form;

// Buffers of one run; finite values of a type.
struct Buffers {
  std::vector<std::unique_ptr<char[]>> held;
  std::mt19937 random{1};

  char* bytes(size_t count) {
    held.emplace_back(new char[count]);  // on a 16-byte boundary
    for (size_t i = 0; i < count; ++i) held.back()[i] = static_cast<char>(random());
    return held.back().get();
  }
  char* values(Dtype dtype, size_t count) {
    const size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
    char* data = bytes(count * size);
    for (size_t i = size - 1; i < count * size; i += size) data[i] = static_cast<char>((data[i] & 0x80) | 0x3f);
    return data;
  }
};

void run(Form form, int64_t channels, int64_t rows, Dtype half, bool is_mixed, bool with_options, unsigned seed) {
  emulation::set_seed(seed);
  Buffers b;
  const Dtype wide = is_mixed ? Dtype::kFloat32 : half;
  const bool is_pre = form == Form::kPre, has_residual = is_pre || form == Form::kPost;
  const size_t count = rows * channels;
  const dcnv3::norm::Shape shape = {rows, channels, rows};
  dcnv3::norm::Forward f;
  f.x = {b.values(half, count), half};
  if (has_residual) f.residual = {b.values(wide, count), wide};
  f.weight = {b.values(wide, channels), wide};
  f.bias = {b.values(wide, channels), wide};
  if (with_options && form != Form::kPlain) f.extra = {b.values(wide, channels), wide};
  if (with_options && has_residual) f.keep = {b.values(half, 1), half};
  f.out = {b.values(half, count), half};
  if (is_pre) f.sum = {b.values(wide, count), wide};
  f.stats = reinterpret_cast<float*>(b.bytes(2 * rows * sizeof(float)));
  if (dcnv3::norm::forward(form, shape, f, nullptr)) std::abort();

  dcnv3::norm::Backward g;
  g.grad = {b.values(half, count), half};
  g.source = is_pre ? dcnv3::norm::Source{f.sum.data, wide} : f.x;
  if (is_pre) {
    g.grad_residual = {b.values(wide, count), wide};
    if (with_options) g.grad_sum = {b.values(wide, count), wide};
    if (f.extra.data) g.branch = f.x;
  }
  g.weight = f.weight, g.bias = f.bias, g.extra = f.extra, g.keep = f.keep, g.stats = f.stats;
  g.grad_x = {b.values(half, count), half};
  g.grad_weight = {b.values(wide, channels), wide};
  g.grad_bias = {b.values(wide, channels), wide};
  if (f.extra.data) g.grad_extra = {b.values(wide, channels), wide};
  const int64_t blocks = dcnv3::norm::backward_blocks(form, shape);
  g.partial = reinterpret_cast<float*>(b.bytes(blocks * 3 * channels * sizeof(float)));
  if (dcnv3::norm::backward(form, shape, g, nullptr)) std::abort();
}

}  // namespace

int main() {
  unsigned runs = 0;
  for (Form form : {Form::kPlain, Form::kGelu, Form::kPost, Form::kPre}) {
    for (int64_t channels : {8, 24, 64, 256, 264, 520}) {
      for (int64_t rows : {1, 37}) {
        for (Dtype half : {Dtype::kFloat16, Dtype::kBFloat16}) {
          for (bool is_mixed : {false, true}) {
            for (bool with_options : {false, true}) run(form, channels, rows, half, is_mixed, with_options, ++runs);
          }
        }
      }
    }
  }
  std::printf("%u runs\n", runs);
}
