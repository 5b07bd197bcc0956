// Maps of pixels, and which of them the taps of a convolution see.

#ifndef ACMIX_JAX_CPU_KERNELS_SHIFT_CONVOLUTION_MAPS_H_
#define ACMIX_JAX_CPU_KERNELS_SHIFT_CONVOLUTION_MAPS_H_

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace acmix {

using Buffer = xla::ffi::Buffer<xla::ffi::F32, 5>;

// Some maps of each pixel: [b, h, w, count, d].
template <typename Number>
struct Maps {
  Maps(Number* data, const Buffer& buffer)
      : data(data),
        images(buffer.dimensions()[0]),
        height(buffer.dimensions()[1]),
        width(buffer.dimensions()[2]),
        count(buffer.dimensions()[3]),
        depth(buffer.dimensions()[4]) {}

  Number* row(int64_t image, int64_t y) const {
    return data + (image * height + y) * width * pixel();
  }
  int64_t pixel() const { return count * depth; }

  Number* data;
  int64_t images, height, width, count, depth;
};
using Input = Maps<const float>;
using Output = Maps<float>;

// What a tap sees: output i of its run sees pixel start + i * stride.
struct Tap {
  int64_t number, start;
};

// Outputs first, first + step, ... of a side, which see the same taps.
struct Run {
  int64_t first, step, count, stride;
  std::vector<Tap> taps;
};

// A side whose output i sees pixels i * strides + tap * dilation - padding.
struct Side {
  int64_t size, out_size, kernel_size, strides, dilation;

  std::vector<Run> Forwards() const {
    Run run{0, 1, out_size, strides, {}};
    for (int64_t t = 0; t < kernel_size; ++t) run.taps.push_back({t, Start(t)});
    return {run};
  }

  // The same from the pixels: which outputs see them.
  std::vector<Run> Backwards() const {
    std::vector<Run> runs;
    for (int64_t phase = 0; phase < std::min(strides, size); ++phase) {
      Run run{phase, strides, (size - phase + strides - 1) / strides, 1, {}};
      for (int64_t t = 0; t < kernel_size; ++t) {
        int64_t distance = phase - Start(t);
        if (distance % strides == 0) {
          run.taps.push_back({t, distance / strides});
        }
      }
      runs.push_back(run);
    }
    return runs;
  }

 private:
  int64_t Start(int64_t tap) const {
    return tap * dilation - dilation * (kernel_size - 1) / 2;
  }
};

// Weights [rows, columns, m, n, d] of the taps.
struct Kernel {
  explicit Kernel(const Buffer& x)
      : data(x.typed_data()),
        rows(x.dimensions()[0]),
        columns(x.dimensions()[1]),
        m(x.dimensions()[2]),
        n(x.dimensions()[3]),
        depth(x.dimensions()[4]) {}

  int64_t taps() const { return rows * columns; }

  const float* data;
  int64_t rows, columns, m, n, depth;
};

}  // namespace acmix

#endif  // ACMIX_JAX_CPU_KERNELS_SHIFT_CONVOLUTION_MAPS_H_
