// Grouped convolution for CPU, of float32 maps [b, h, w, m, d] with a group for
// each of the d channels. Vectors hold channels, which are next to each other
// in memory, so nothing is moved; pixels beyond the border are read from zeros.

#include <algorithm>
#include <vector>

#include "shift_convolution_maps.h"
#include "vectors.h"

namespace acmix {
namespace {

namespace ffi = xla::ffi;
using NewBuffer = ffi::Result<Buffer>;
using Parts = ffi::Buffer<ffi::F32, 6>;

// Maps, and pixels of so many maps each, whose sums are in registers together.
constexpr int kMaps = 4;
constexpr int kPixels = kRegisters / kMaps - 1;

Input Read(const Buffer& x) { return {x.typed_data(), x}; }
Output Write(NewBuffer y) { return {y->typed_data(), *y}; }

std::vector<Input> Read(const ffi::RemainingArgs& arguments) {
  std::vector<Input> maps;
  for (size_t i = 0; i < arguments.size(); ++i) {
    maps.push_back(Read(*arguments.get<Buffer>(i)));
  }
  return maps;
}

// The weights of a vector of channels in the order in which they are read:
// [blocks of outputs, taps, inputs, outputs of the block].
class Weights {
 public:
  // From the m maps of the kernel to its n, or backwards.
  Weights(const Kernel& kernel, bool backwards, const std::vector<Output>& outs)
      : inputs(backwards ? kernel.n : kernel.m),
        kernel_(kernel),
        backwards_(backwards),
        outs_(outs),
        data_(kernel.taps() * kernel.m * kernel.n) {}

  void Read(int64_t channel) {
    Vector* out = data_.data();
    int64_t map = 0;
    for (const Output& maps : outs_) {
      InBlocks<kMaps>(maps.count, [&](auto block, int64_t first) {
        for (int64_t tap = 0; tap < kernel_.taps(); ++tap) {
          for (int64_t i = 0; i < inputs; ++i) {
            for (int n = 0; n < decltype(block)::value; ++n) {
              *out++ = Load(At(tap, i, map + first + n) + channel);
            }
          }
        }
      });
      map += maps.count;
    }
  }

  // Weights of one tap of the block of `count` outputs that starts with `map`.
  const Vector* at(int64_t row, int64_t column, int64_t map, int count) const {
    int64_t tap = row * kernel_.columns + column;
    return data_.data() + (map * kernel_.taps() + tap * count) * inputs;
  }

  const int64_t inputs;

 private:
  const float* At(int64_t tap, int64_t in, int64_t out) const {
    int64_t m = backwards_ ? out : in, n = backwards_ ? in : out;
    return kernel_.data +
           ((tap * kernel_.m + m) * kernel_.n + n) * kernel_.depth;
  }

  const Kernel& kernel_;
  const bool backwards_;
  const std::vector<Output>& outs_;
  std::vector<Vector> data_;
};

// Convolves one image for one vector of channels.
class Convolution {
 public:
  Convolution(const std::vector<Input>& inputs, const Weights& weights,
              const float* zeros, int64_t image, int64_t channel)
      : inputs_(inputs),
        weights_(weights),
        zeros_(zeros),
        image_(image),
        channel_(channel) {}

  // Writes some outputs, the first of which has the weights of `map`.
  void Write(const Output& out, int64_t map, const std::vector<Run>& all_rows,
             const std::vector<Run>& all_columns) const {
    for (const Run& rows : all_rows) {
      for (int64_t y = 0; y < rows.count; ++y) {
        float* row = out.row(image_, rows.first + y * rows.step) + channel_;
        for (const Run& columns : all_columns) {
          int64_t pixel = columns.step * out.pixel();
          float* first = row + columns.first * out.pixel();
          InBlocks<kMaps>(out.count, [&](auto maps, int64_t n) {
            InBlocks<kPixels>(columns.count, [&](auto pixels, int64_t x) {
              Block<decltype(pixels)::value, decltype(maps)::value>(
                  rows, y, columns, x, map + n,
                  first + x * pixel + n * out.depth, pixel);
            });
          });
        }
      }
    }
  }

 private:
  // Writes a block of outputs: the columns of a run from x on, of its row y.
  template <int kPixels, int kMaps>
  void Block(const Run& rows, int64_t y, const Run& columns, int64_t x,
             int64_t map, float* out, int64_t pixel) const {
    Vector sums[kPixels][kMaps] = {};
    for (const Tap& row_tap : rows.taps) {
      int64_t row = row_tap.start + y * rows.stride;
      if (row < 0 || row >= inputs_[0].height) continue;
      for (const Tap& tap : columns.taps) {
        const Vector* weights =
            weights_.at(row_tap.number, tap.number, map, kMaps);
        int64_t column = tap.start + x * columns.stride;
        for (const Input& maps : inputs_) {
          const float* start = maps.row(image_, row) + channel_;
          const float* pixels[kPixels];
          for (int p = 0; p < kPixels; ++p) {
            int64_t here = column + p * columns.stride;
            bool inside = here >= 0 && here < maps.width;
            pixels[p] = inside ? start + here * maps.pixel() : zeros_;
          }
          for (int64_t i = 0; i < maps.count; ++i, weights += kMaps) {
            for (int p = 0; p < kPixels; ++p) {
              Vector value = Load(pixels[p] + i * maps.depth);
              for (int n = 0; n < kMaps; ++n) sums[p][n] += value * weights[n];
            }
          }
        }
      }
    }
    int64_t depth = inputs_[0].depth;
    for (int p = 0; p < kPixels; ++p) {
      for (int n = 0; n < kMaps; ++n) {
        Store(out + p * pixel + n * depth, sums[p][n]);
      }
    }
  }

  const std::vector<Input>& inputs_;
  const Weights& weights_;
  const float* const zeros_;
  const int64_t image_, channel_;
};

// Maps whose gradients of weights are summed together: `count` from the first
// of x on, which is `map` of all maps.
struct MapBlock {
  const Input& x;
  int64_t first, count, map;
};

std::vector<MapBlock> MapBlocks(const std::vector<Input>& inputs) {
  std::vector<MapBlock> blocks;
  int64_t map = 0;
  for (const Input& x : inputs) {
    InBlocks<kMaps>(x.count, [&](auto block, int64_t first) {
      blocks.push_back({x, first, decltype(block)::value, map + first});
    });
    map += x.count;
  }
  return blocks;
}

// Adds to sums [kCount, n] the products of maps of a row x with a row of
// gradients, for a tap of a run of columns.
template <int kCount>
void AddProducts(const Input& x, const float* x_row, const Input& dout,
                 const float* dout_row, const Run& columns, int64_t start,
                 Vector* sums) {
  // The outputs whose pixel exists.
  int64_t stride = columns.stride;
  int64_t first = start < 0 ? (stride - 1 - start) / stride : 0;
  int64_t end = start < x.width ? (x.width - 1 - start) / stride + 1 : 0;
  end = std::min(end, columns.count);
  InBlocks<kMaps>(dout.count, [&](auto block, int64_t n) {
    constexpr int kGradients = decltype(block)::value;
    Vector products[kCount][kGradients] = {};
    for (int64_t i = first; i < end; ++i) {
      const float* values = x_row + (start + i * stride) * x.pixel();
      const float* gradients = dout_row + i * dout.pixel() + n * dout.depth;
      for (int m = 0; m < kCount; ++m) {
        Vector value = Load(values + m * x.depth);
        for (int j = 0; j < kGradients; ++j) {
          products[m][j] += value * Load(gradients + j * dout.depth);
        }
      }
    }
    for (int m = 0; m < kCount; ++m) {
      for (int j = 0; j < kGradients; ++j) {
        sums[m * dout.count + n + j] += products[m][j];
      }
    }
  });
}

// Adds to sums [rows, columns, count, n] the products of one image.
void AddImage(const MapBlock& block, const Input& dout, int64_t image,
              int64_t channel, const Run& rows, const Run& columns,
              Vector* sums) {
  const Input& x = block.x;
  for (int64_t y = 0; y < dout.height; ++y) {
    for (const Tap& row_tap : rows.taps) {
      int64_t row = row_tap.start + y * rows.stride;
      if (row < 0 || row >= x.height) continue;
      const float* x_row = x.row(image, row) + block.first * x.depth + channel;
      for (const Tap& tap : columns.taps) {
        int64_t number = row_tap.number * columns.taps.size() + tap.number;
        InBlocks<kMaps>(block.count, [&](auto count, int64_t) {
          AddProducts<decltype(count)::value>(
              x, x_row, dout, dout.row(image, y) + channel, columns, tap.start,
              sums + number * block.count * dout.count);
        });
      }
    }
  }
}

// Convolves all images, forwards or backwards.
void Convolve(ffi::ThreadPool& pool, const Kernel& kernel,
              const std::vector<Input>& inputs, const std::vector<Output>& outs,
              bool backwards, int64_t strides, int64_t dilation) {
  auto runs = [&](int64_t in, int64_t out, int64_t kernel_size) {
    if (backwards) std::swap(in, out);
    Side side{in, out, kernel_size, strides, dilation};
    return backwards ? side.Backwards() : side.Forwards();
  };
  const auto rows = runs(inputs[0].height, outs[0].height, kernel.rows);
  const auto columns = runs(inputs[0].width, outs[0].width, kernel.columns);
  const int64_t vectors = kernel.depth / kLanes;
  const std::vector<float> zeros(std::max(kernel.m, kernel.n) * kernel.depth);
  ForEachTask(
      pool, inputs[0].images * vectors,
      [&] { return Weights(kernel, backwards, outs); },
      [&](int64_t task, Weights& weights) {
        int64_t channel = task % vectors * kLanes;
        weights.Read(channel);
        Convolution convolution(inputs, weights, zeros.data(), task / vectors,
                                channel);
        int64_t map = 0;
        for (const Output& out : outs) {
          convolution.Write(out, map, rows, columns);
          map += out.count;
        }
      });
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer kernel, ffi::RemainingArgs maps,
                   NewBuffer y, int64_t strides, int64_t dilation) {
  Convolve(pool, Kernel(kernel), Read(maps), {Write(y)}, false, strides,
           dilation);
  return ffi::Error::Success();
}

ffi::Error MapGradient(ffi::ThreadPool pool, Buffer kernel, Buffer dout,
                       ffi::RemainingRets dmaps, int64_t strides,
                       int64_t dilation) {
  std::vector<Output> outs;
  for (size_t i = 0; i < dmaps.size(); ++i) {
    outs.push_back(Write(*dmaps.get<Buffer>(i)));
  }
  Convolve(pool, Kernel(kernel), {Read(dout)}, outs, true, strides, dilation);
  return ffi::Error::Success();
}

// dkernel [parts, rows, columns, m, n, d]: each part is a sum over some images.
ffi::Error KernelGradient(ffi::ThreadPool pool, Buffer dout_buffer,
                          ffi::RemainingArgs maps, ffi::Result<Parts> dkernel,
                          int64_t strides, int64_t dilation) {
  const auto shape = dkernel->dimensions();
  const int64_t parts = shape[0], taps = shape[1] * shape[2], m = shape[3],
                n = shape[4], depth = shape[5], vectors = depth / kLanes;
  const std::vector<Input> inputs = Read(maps);
  const Input dout = Read(dout_buffer), x = inputs[0];
  const Side down{x.height, dout.height, shape[1], strides, dilation};
  const Side across{x.width, dout.width, shape[2], strides, dilation};
  const Run rows = down.Forwards()[0], columns = across.Forwards()[0];
  const std::vector<MapBlock> blocks = MapBlocks(inputs);
  const int64_t block_count = blocks.size();
  ForEachTask(
      pool, parts * vectors * block_count,
      [&] { return std::vector<Vector>(taps * kMaps * n); },
      [&](int64_t task, std::vector<Vector>& sums) {
        const MapBlock& block = blocks[task % block_count];
        int64_t channel = task / block_count % vectors * kLanes;
        int64_t part = task / block_count / vectors;
        std::fill(sums.begin(), sums.end(), Vector{});
        int64_t end = (part + 1) * dout.images / parts;
        for (int64_t b = part * dout.images / parts; b < end; ++b) {
          AddImage(block, dout, b, channel, rows, columns, sums.data());
        }
        const Vector* sum = sums.data();
        for (int64_t tap = 0; tap < taps; ++tap) {
          int64_t first = ((part * taps + tap) * m + block.map) * n;
          float* out = dkernel->typed_data() + first * depth + channel;
          for (int64_t i = 0; i < block.count * n; ++i, ++sum, out += depth) {
            Store(out, *sum);
          }
        }
      });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ShiftConvolution, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .RemainingArgs()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("dilation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(ShiftConvolutionMapGradient, MapGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .RemainingRets()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("dilation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(ShiftConvolutionKernelGradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .RemainingArgs()
                                  .Ret<Parts>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("dilation"));

}  // namespace acmix
