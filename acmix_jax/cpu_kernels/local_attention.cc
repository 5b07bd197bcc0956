// Local attention for CPU, of float32 maps.
//
// A row of pixels lies in vectors along its columns, one channel after the
// other, so that a window is a set of shifts of rows. Only the logits of one
// row of queries are in memory; the gradient computes them again.

#include <vector>

#include "local_attention_lanes.h"
#include "vectors.h"

namespace acmix {
namespace {

namespace ffi = xla::ffi;
using NewMap = ffi::Result<Map>;

// Taps and channels whose sums are in registers together.
constexpr int kTaps = 7;
constexpr int kChannels = 8;

// to[t] = sum over channels c of queries[c] * keys[t][c].
void Products(const Layout& layout, Rows& queries,
              const std::vector<const float*>& keys, Rows& to) {
  InBlocks<kTaps>(layout.taps(), [&](auto block, int64_t first) {
    constexpr int kCount = decltype(block)::value;
    for (int64_t x = 0; x < layout.query_lanes; x += kLanes) {
      Vector sums[kCount] = {};
      const float* shifted[kCount];
      for (int t = 0; t < kCount; ++t) shifted[t] = keys[first + t] + x;
      for (int64_t c = 0; c < layout.depth; ++c) {
        Vector query = Load(queries.row(c) + x);
        for (int t = 0; t < kCount; ++t) {
          sums[t] += query * Load(shifted[t] + c * layout.key_lanes);
        }
      }
      for (int t = 0; t < kCount; ++t) Store(to.row(first + t) + x, sums[t]);
    }
  });
}

// One term of a sum: where its factors are, and the first of its channels.
struct Term {
  const float* factors;
  const float* values;
};

// Channels of lanes.
struct Lanes {
  float* data;
  int64_t stride, count;
};

// to[c] = sum over terms of factors * values[c], or adds that to what is there.
void Sum(const std::vector<Term>& terms, int64_t value_stride, int64_t depth,
         bool add, const Lanes& to) {
  InBlocks<kChannels>(depth, [&](auto block, int64_t first) {
    constexpr int kCount = decltype(block)::value;
    for (int64_t x = 0; x < to.count; x += kLanes) {
      float* target = to.data + first * to.stride + x;
      Vector sums[kCount] = {};
      for (int c = 0; add && c < kCount; ++c) {
        sums[c] = Load(target + c * to.stride);
      }
      for (const Term& term : terms) {
        Vector factor = Load(term.factors + x);
        const float* values = term.values + first * value_stride + x;
        for (int c = 0; c < kCount; ++c) {
          sums[c] += factor * Load(values + c * value_stride);
        }
      }
      for (int c = 0; c < kCount; ++c) Store(target + c * to.stride, sums[c]);
    }
  });
}

void Softmax(const Layout& layout, Rows& logits) {
  for (int64_t x = 0; x < layout.query_lanes; x += kLanes) {
    Vector greatest = Load(logits.row(0) + x);
    for (int64_t t = 1; t < layout.taps(); ++t) {
      Vector logit = Load(logits.row(t) + x);
      greatest = logit > greatest ? logit : greatest;
    }
    Vector total = {};
    for (int64_t t = 0; t < layout.taps(); ++t) {
      Vector weight = Exp(Load(logits.row(t) + x) - greatest);
      total += weight;
      Store(logits.row(t) + x, weight);
    }
    Vector scale = 1.0f / total;
    for (int64_t t = 0; t < layout.taps(); ++t) {
      Store(logits.row(t) + x, Load(logits.row(t) + x) * scale);
    }
  }
}

// Turns gradients of the weights into those of the logits.
void DifferentiateSoftmax(const Layout& layout, Rows& weights,
                          Rows& gradients) {
  for (int64_t x = 0; x < layout.query_lanes; x += kLanes) {
    Vector mean = {};
    for (int64_t t = 0; t < layout.taps(); ++t) {
      mean += Load(weights.row(t) + x) * Load(gradients.row(t) + x);
    }
    for (int64_t t = 0; t < layout.taps(); ++t) {
      Vector gradient = Load(gradients.row(t) + x) - mean;
      Store(gradients.row(t) + x, Load(weights.row(t) + x) * gradient);
    }
  }
}

// What one thread needs to attend, one row of queries after the other.
class Attention {
 public:
  explicit Attention(const Layout& layout)
      : layout_(layout),
        k_(layout),
        v_(layout),
        q_(layout, layout.depth),
        weights_(layout, layout.taps()),
        sums_(layout, layout.depth),
        shifted_(layout.taps()) {}

  void ReadKeys(const Map& k, const Map& v, int64_t task) {
    k_.Read(k.typed_data(), task);
    v_.Read(v.typed_data(), task);
  }

  // Attends with a row of queries.
  void Attend(const Map& q, int64_t task, int64_t row, Map& out) {
    Weigh(q, task, row);
    SumOverKeys(weights_, v_, row, task, out);
  }

 protected:
  void ReadRow(const Map& map, int64_t task, int64_t row, Rows& to) {
    const float* from = map.typed_data() + layout_.QueryStart(task, row);
    Gather(layout_, from, layout_.query_sources, to.row(0), to.stride);
  }

  // Where each tap of a row of queries finds the channels of its keys.
  void ShiftTo(Plane& plane, int64_t row) {
    for (int64_t t = 0; t < layout_.taps(); ++t) {
      int64_t i = t / layout_.kernel_size, j = t % layout_.kernel_size;
      shifted_[t] =
          plane.at(layout_.KeyRow(row, i), layout_.Phase(j)) + layout_.Shift(j);
    }
  }

  void Weigh(const Map& q, int64_t task, int64_t row) {
    ReadRow(q, task, row, q_);
    ShiftTo(k_, row);
    Products(layout_, q_, shifted_, weights_);
    Softmax(layout_, weights_);
  }

  // Writes a row of sums over taps of factors * keys.
  void SumOverKeys(Rows& factors, Plane& plane, int64_t row, int64_t task,
                   Map& map) {
    ShiftTo(plane, row);
    terms_.clear();
    for (int64_t t = 0; t < layout_.taps(); ++t) {
      terms_.push_back({factors.row(t), shifted_[t]});
    }
    Sum(terms_, layout_.key_lanes, layout_.depth, false,
        {sums_.row(0), sums_.stride, layout_.query_lanes});
    float* to = map.typed_data() + layout_.QueryStart(task, row);
    ClearRow(layout_, layout_.out_width, to);
    ScatterAdd(layout_, sums_.row(0), sums_.stride, layout_.query_sources, to);
  }

  const Layout& layout_;
  Plane k_, v_;
  Rows q_, weights_, sums_;
  std::vector<const float*> shifted_;
  std::vector<Term> terms_;
};

// What it needs in addition for the gradient.
class Gradient : public Attention {
 public:
  explicit Gradient(const Layout& layout)
      : Attention(layout),
        to_k_(layout),
        to_v_(layout),
        to_out_(layout, layout.depth),
        to_logits_(layout, layout.taps()) {}

  void Clear() {
    to_k_.Clear();
    to_v_.Clear();
  }

  // Writes a row of the gradient of q, and keeps what it adds to those of keys.
  void Differentiate(const Map& q, const Map& to_out, int64_t task, int64_t row,
                     Map& to_q) {
    Weigh(q, task, row);
    ReadRow(to_out, task, row, to_out_);
    ShiftTo(v_, row);
    Products(layout_, to_out_, shifted_, to_logits_);
    DifferentiateSoftmax(layout_, weights_, to_logits_);
    SumOverKeys(to_logits_, k_, row, task, to_q);
    AddToKeys(to_logits_, q_, row, to_k_);
    AddToKeys(weights_, to_out_, row, to_v_);
  }

  void WriteKeys(Map& to_k, Map& to_v, int64_t task) {
    to_k_.Write(to_k.typed_data(), task);
    to_v_.Write(to_v.typed_data(), task);
  }

 private:
  // Adds factors * values of the queries to the keys that their taps see.
  void AddToKeys(Rows& factors, Rows& values, int64_t row, Plane& plane) {
    for (int64_t i = 0; i < layout_.kernel_size; ++i) {
      for (int64_t phase = 0; phase < layout_.strides; ++phase) {
        terms_.clear();
        for (int64_t j = 0; j < layout_.kernel_size; ++j) {
          if (layout_.Phase(j) != phase) continue;
          int64_t shift = layout_.Shift(j), tap = i * layout_.kernel_size + j;
          terms_.push_back({factors.row(tap) - shift, values.row(0) - shift});
        }
        Sum(terms_, values.stride, layout_.depth, true,
            {plane.at(layout_.KeyRow(row, i), phase), layout_.key_lanes,
             layout_.key_lanes});
      }
    }
  }

  Plane to_k_, to_v_;
  Rows to_out_, to_logits_;
};

ffi::Error Forward(ffi::ThreadPool pool, Map q, Map k, Map v, NewMap out,
                   int64_t kernel_size, int64_t strides, int64_t dilation) {
  const Layout layout(q, k, kernel_size, strides, dilation);
  ForEachTask(
      pool, layout.tasks, [&] { return Attention(layout); },
      [&](int64_t task, Attention& attention) {
        attention.ReadKeys(k, v, task);
        for (int64_t row = 0; row < layout.out_height; ++row) {
          attention.Attend(q, task, row, *out);
        }
      });
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, Map q, Map k, Map v, Map to_out,
                    NewMap to_q, NewMap to_k, NewMap to_v, int64_t kernel_size,
                    int64_t strides, int64_t dilation) {
  const Layout layout(q, k, kernel_size, strides, dilation);
  ForEachTask(
      pool, layout.tasks, [&] { return Gradient(layout); },
      [&](int64_t task, Gradient& gradient) {
        gradient.ReadKeys(k, v, task);
        gradient.Clear();
        for (int64_t row = 0; row < layout.out_height; ++row) {
          gradient.Differentiate(q, to_out, task, row, *to_q);
        }
        gradient.WriteKeys(*to_k, *to_v, task);
      });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LocalAttention, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Ret<Map>()
                                  .Attr<int64_t>("kernel_size")
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("dilation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LocalAttentionGradient, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Ret<Map>()
                                  .Ret<Map>()
                                  .Ret<Map>()
                                  .Attr<int64_t>("kernel_size")
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("dilation"));

}  // namespace acmix
