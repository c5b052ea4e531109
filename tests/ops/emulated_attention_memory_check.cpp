// Runs every attention kernel on buffers of exactly the right size. Built with sanitizers: an access outside ends the
// program.
#include "emulated_attention.cpp"

namespace {

std::mt19937 random_bits(1);

// Random values below 2 in size, of both signs: the exponent's top bits stay clear.
std::vector<char> random_values(int dtype, size_t count) {
  const size_t size = dtype < 2 ? 2 : dtype == 2 ? 4 : 8;
  std::vector<char> bytes(count * size);
  for (char& byte : bytes) byte = static_cast<char>(random_bits());
  for (size_t i = size - 1; i < bytes.size(); i += size) bytes[i] = static_cast<char>((bytes[i] & 0x80) | 0x3f);
  bytes.shrink_to_fit();
  return bytes;
}

// `excess`: how many keys are missing for what the shapes say.
void run(int dtype, int64_t depth, int64_t levels, int64_t points, int64_t excess, unsigned seed) {
  const std::vector<int64_t> shapes = [&] {
    std::vector<int64_t> sides;
    for (int64_t level = 0; level < levels; ++level) sides.insert(sides.end(), {4 - level, 3});
    return sides;
  }();
  int64_t keys = -excess;
  for (int64_t level = 0; level < levels; ++level) keys += shapes[2 * level] * shapes[2 * level + 1];
  const int64_t sizes[7] = {2, keys, 3, 2, depth, levels, points};
  const size_t units = 2 * 3 * 2;
  const auto value = random_values(dtype, 2 * keys * 2 * depth), grad_output = random_values(dtype, units * depth);
  const auto locations = random_values(dtype, units * levels * points * 2);
  const auto weights = random_values(dtype, units * levels * points);
  auto output = grad_output, grad_locations = locations, grad_weights = weights;
  std::vector<char> wide(2 * keys * 2 * depth * (dtype == 3 ? 8 : 4));
  emulated_attention_forward(dtype, sizes, seed, 100, value.data(), shapes.data(), locations.data(), weights.data(),
                             output.data());
  emulated_attention_backward(dtype, sizes, seed, 100, grad_output.data(), value.data(), shapes.data(),
                              locations.data(), weights.data(), wide.data(), grad_locations.data(),
                              grad_weights.data());
}

}  // namespace

int main() {
  unsigned runs = 0;
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (int64_t depth : {1, 2, 3, 4, 6, 8, 12, 16, 32}) {
      for (int64_t points : {1, 3, 4, 8}) {
        for (int64_t excess : {0, 1}) run(dtype, depth, 1 + depth % 3, points, excess, ++runs);
      }
    }
  }
  std::printf("%u runs\n", runs);
}
