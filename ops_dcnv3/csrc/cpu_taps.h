// The places of a kernel's points, for the bindings. Not in cpu_types.h: the files compiled for AVX2 and AVX-512 include
// that one, and the linker must not take an inline function from them.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace ops_dcnv3 {

// Where the points of a kernel sit, column by column, for the last fields of `Problem`.
struct Taps {
  std::vector<int32_t> x, y;
  std::vector<double> fraction_x, fraction_y;

  Taps(int64_t kernel_h, int64_t kernel_w, int64_t dilation_h, int64_t dilation_w, double scale, bool remove_center) {
    const size_t points = size_t(kernel_h * kernel_w);
    x.reserve(points), y.reserve(points), fraction_x.reserve(points), fraction_y.reserve(points);
    for (int64_t i = 0; i < kernel_w; ++i) {
      for (int64_t j = 0; j < kernel_h; ++j) {
        if (remove_center && i == kernel_w / 2 && j == kernel_h / 2) continue;
        add(i, kernel_w, dilation_w, scale, x, fraction_x);
        add(j, kernel_h, dilation_h, scale, y, fraction_y);
      }
    }
  }

 private:
  // On one axis: centre - centre * scale + index * dilation * scale.
  static void add(int64_t index, int64_t kernel, int64_t dilation, double scale, std::vector<int32_t>& whole,
                  std::vector<double>& fraction) {
    const double centre = double(dilation * (kernel - 1) / 2);
    const double position = centre - centre * scale + double(index * dilation) * scale;
    const double floor = std::floor(position);
    whole.push_back(int32_t(floor));
    fraction.push_back(position - floor);
  }
};

}  // namespace ops_dcnv3
