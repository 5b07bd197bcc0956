// How the kernel of local attention lays out pixels in vectors.

#ifndef ACMIX_JAX_CPU_KERNELS_LOCAL_ATTENTION_LANES_H_
#define ACMIX_JAX_CPU_KERNELS_LOCAL_ATTENTION_LANES_H_

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace acmix {

using Map = xla::ffi::Buffer<xla::ffi::F32, 5>;

inline int64_t Reflect(int64_t i, int64_t size) {
  if (i < 0) i = -i;
  return i < size ? i : 2 * (size - 1) - i;
}

// Where pixels are in the maps [b, h, w, n, d], and where in lanes.
//
// Lanes run over the columns of a row and, fastest, over a group of heads: as
// many as make a row of a small map a few vectors long. Columns of keys are
// padded by reflection and dealt to `strides` phases, so that neighbouring
// queries see neighbouring keys. A task is an image and a group of heads.
class Layout {
 public:
  Layout(const Map& q, const Map& k, int64_t kernel_size, int64_t strides,
         int64_t dilation)
      : height(k.dimensions()[1]),
        width(k.dimensions()[2]),
        out_height(q.dimensions()[1]),
        out_width(q.dimensions()[2]),
        heads(k.dimensions()[3]),
        depth(k.dimensions()[4]),
        kernel_size(kernel_size),
        strides(strides),
        dilation(dilation),
        reach(dilation * (kernel_size - 1) / 2),
        group(Group(out_width, heads)),
        tasks(k.dimensions()[0] * heads / group),
        query_lanes(RoundUp(out_width * group, kLanes)),
        margin((kernel_size - 1) * dilation / strides * group),
        key_lanes(RoundUp(query_lanes + margin, kLanes)),
        key_sources(strides) {
    for (int64_t x = 0; x < out_width; ++x) AddPixel(x, query_sources);
    for (int64_t x = 0; x < width + 2 * reach; ++x) {
      auto& phase = key_sources[x % strides];
      bool seen = phase.size() + group <= static_cast<size_t>(key_lanes);
      if (seen) AddPixel(Reflect(x - reach, width), phase);
    }
  }

  int64_t taps() const { return kernel_size * kernel_size; }

  // The row of keys that a row of taps sees.
  int64_t KeyRow(int64_t out_row, int64_t tap_row) const {
    return Reflect(out_row * strides + tap_row * dilation - reach, height);
  }
  int64_t Phase(int64_t tap_column) const {
    return tap_column * dilation % strides;
  }
  // By how many lanes the keys of a tap are before those of the first.
  int64_t Shift(int64_t tap_column) const {
    return tap_column * dilation / strides * group;
  }

  // The first element of a row of a task in the maps.
  int64_t QueryStart(int64_t task, int64_t row) const {
    return Start(task, row, out_height, out_width);
  }
  int64_t KeyStart(int64_t task, int64_t row) const {
    return Start(task, row, height, width);
  }

  const int64_t height, width, out_height, out_width, heads, depth;
  const int64_t kernel_size, strides, dilation;
  // Pixels that a window extends beyond its centre.
  const int64_t reach;
  const int64_t group, tasks;
  // Lanes of a row of queries, the most by which a tap shifts keys, and lanes
  // of one phase of a row of keys.
  const int64_t query_lanes, margin, key_lanes;
  // The first channel of each lane in a row of a map; for keys, by phase.
  std::vector<int64_t> query_sources;
  std::vector<std::vector<int64_t>> key_sources;

 private:
  static int64_t Group(int64_t width, int64_t heads) {
    for (int64_t group = 1; group < heads; ++group) {
      if (heads % group == 0 && width * group >= 7 * kLanes) return group;
    }
    return heads;
  }

  void AddPixel(int64_t x, std::vector<int64_t>& sources) const {
    for (int64_t head = 0; head < group; ++head) {
      sources.push_back((x * heads + head) * depth);
    }
  }

  int64_t Start(int64_t task, int64_t row, int64_t rows,
                int64_t columns) const {
    int64_t groups = heads / group;
    int64_t image = task / groups, head = task % groups * group;
    return ((image * rows + row) * columns * heads + head) * depth;
  }
};

// Calls body(lane, count, channel) for squares of kLanes channels and as many
// lanes, of which `count` exist, then rest(channel) for channels that are left.
template <typename Body, typename Rest>
inline void InSquares(int64_t lanes, int64_t depth, Body&& body, Rest&& rest) {
  int64_t channel = 0;
  for (; channel + kLanes <= depth; channel += kLanes) {
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
      body(lane, std::min<int64_t>(kLanes, lanes - lane), channel);
    }
  }
  for (; channel < depth; ++channel) rest(channel);
}

// Reads a row of a map into lanes, channel after channel.
inline void Gather(const Layout& layout, const float* row,
                   const std::vector<int64_t>& sources, float* lanes,
                   int64_t stride) {
  InSquares(
      sources.size(), layout.depth,
      [&](int64_t lane, int64_t count, int64_t channel) {
        Vector square[kLanes] = {};
        for (int64_t i = 0; i < count; ++i) {
          square[i] = Load(row + sources[lane + i] + channel);
        }
        Transpose(square);
        for (int c = 0; c < kLanes; ++c) {
          Store(lanes + (channel + c) * stride + lane, square[c]);
        }
      },
      [&](int64_t channel) {
        for (size_t lane = 0; lane < sources.size(); ++lane) {
          lanes[channel * stride + lane] = row[sources[lane] + channel];
        }
      });
}

inline void ScatterAdd(const Layout& layout, const float* lanes, int64_t stride,
                       const std::vector<int64_t>& sources, float* row) {
  InSquares(
      sources.size(), layout.depth,
      [&](int64_t lane, int64_t count, int64_t channel) {
        Vector square[kLanes];
        for (int c = 0; c < kLanes; ++c) {
          square[c] = Load(lanes + (channel + c) * stride + lane);
        }
        Transpose(square);
        for (int64_t i = 0; i < count; ++i) {
          float* pixel = row + sources[lane + i] + channel;
          Store(pixel, Load(pixel) + square[i]);
        }
      },
      [&](int64_t channel) {
        for (size_t lane = 0; lane < sources.size(); ++lane) {
          row[sources[lane] + channel] += lanes[channel * stride + lane];
        }
      });
}

// Sets the group's heads to zero in a row of a map.
inline void ClearRow(const Layout& layout, int64_t columns, float* row) {
  for (int64_t x = 0; x < columns; ++x) {
    float* pixel = row + x * layout.heads * layout.depth;
    std::fill_n(pixel, layout.group * layout.depth, 0.0f);
  }
}

// Rows of lanes of queries, with zeros wherever shifts reach.
class Rows {
 public:
  Rows(const Layout& layout, int64_t count)
      : stride(RoundUp(layout.margin, kLanes) + layout.key_lanes),
        first_(RoundUp(layout.margin, kLanes)),
        lanes_(first_ + count * stride) {}

  float* row(int64_t i) { return lanes_.data() + first_ + i * stride; }

  const int64_t stride;

 private:
  const int64_t first_;
  std::vector<float> lanes_;
};

// The keys or values of a task: [rows, phases, channels, lanes].
class Plane {
 public:
  explicit Plane(const Layout& layout)
      : layout_(layout),
        phase_(layout.depth * layout.key_lanes),
        lanes_(layout.height * layout.strides * phase_) {}

  float* at(int64_t row, int64_t phase) {
    return lanes_.data() + (row * layout_.strides + phase) * phase_;
  }
  void Clear() { std::fill(lanes_.begin(), lanes_.end(), 0.0f); }

  void Read(const float* map, int64_t task) {
    for (int64_t row = 0; row < layout_.height; ++row) {
      const float* from = map + layout_.KeyStart(task, row);
      for (int64_t phase = 0; phase < layout_.strides; ++phase) {
        Gather(layout_, from, layout_.key_sources[phase], at(row, phase),
               layout_.key_lanes);
      }
    }
  }

  // Reflected columns add to the columns they mirror.
  void Write(float* map, int64_t task) {
    for (int64_t row = 0; row < layout_.height; ++row) {
      float* out = map + layout_.KeyStart(task, row);
      ClearRow(layout_, layout_.width, out);
      for (int64_t phase = 0; phase < layout_.strides; ++phase) {
        ScatterAdd(layout_, at(row, phase), layout_.key_lanes,
                   layout_.key_sources[phase], out);
      }
    }
  }

 private:
  const Layout& layout_;
  const int64_t phase_;
  std::vector<float> lanes_;
};

}  // namespace acmix

#endif  // ACMIX_JAX_CPU_KERNELS_LOCAL_ATTENTION_LANES_H_
