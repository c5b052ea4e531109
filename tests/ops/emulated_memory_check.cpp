// Runs every kernel on buffers of exactly the right size. Built with sanitizers: an access outside ends the program.
#include "emulated_dcnv3.cpp"
#include "memory_cases.h"

namespace {

// Random finite bits of a type: the exponent's top bits stay clear.
std::vector<char> random_values(int dtype, size_t count) {
  const size_t size = dtype < 2 ? 2 : dtype == 2 ? 4 : 8;
  std::vector<char> bytes(count * size);
  static std::mt19937 random(1);
  for (char& byte : bytes) byte = static_cast<char>(random());
  for (size_t i = size - 1; i < bytes.size(); i += size) bytes[i] = static_cast<char>((bytes[i] & 0x80) | 0x3f);
  bytes.shrink_to_fit();
  return bytes;
}

void run(int dtype, const int64_t* sizes, double offset_scale, unsigned seed) {
  const dcnv3::Shape s = shape_of(sizes, offset_scale);
  const int64_t pixels = s.batch * s.out_height() * s.out_width();
  const auto input = random_values(dtype, s.batch * s.height * s.width * s.channels());
  const auto offset = random_values(dtype, pixels * s.groups * s.points() * 2);
  const auto mask = random_values(dtype, pixels * s.groups * s.points());
  const auto grad_output = random_values(dtype, pixels * s.channels());
  auto output = grad_output, grad_offset = offset, grad_mask = mask, narrowed = input;
  const int64_t count = s.batch * s.height * s.width * s.channels();
  std::vector<char> wide(count * (dtype == 3 ? 8 : 4));
  emulated_forward(dtype, sizes, offset_scale, seed, 1000, input.data(), offset.data(), mask.data(), output.data());
  emulated_backward(dtype, sizes, offset_scale, seed, 1000, grad_output.data(), input.data(), offset.data(),
                    mask.data(), wide.data(), grad_offset.data(), grad_mask.data());
  if (dtype < 2) emulated_narrow(dtype, wide.data(), narrowed.data(), count);
}

}  // namespace

int main() {
  unsigned runs = 0;
  for_each_memory_case([&](int dtype, const int64_t* sizes, double offset_scale) {
    run(dtype, sizes, offset_scale, ++runs);
  });
  std::printf("%u runs\n", runs);
}
