// Runs every kernel on buffers of exactly the right size. Built with sanitizers: an access outside ends the program.
#include "emulated_dcnv3.cpp"

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
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (int64_t depth : {1, 3, 4, 6, 8, 12, 16}) {
      for (int64_t window : {3, 5}) {
        for (int64_t switches = 0; switches < 4; ++switches) {
          const int64_t stride = 1 + depth % 2;
          const int64_t sizes[15] = {2,      3,          4, 1, depth,         window,       window, stride, 1,
                                     window / 2, window / 2, 1, 1, switches & 1, switches >> 1};
          run(dtype, sizes, 1.0 + switches, ++runs);
        }
      }
    }
  }
  std::printf("%u runs\n", runs);
}
