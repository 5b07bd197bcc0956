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

// out[t] = sum over channels c of queries[c] * keys[t][c].
void Products(const Layout& layout, Rows& queries,
              const std::vector<const float*>& keys, Rows& out) {
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
      for (int t = 0; t < kCount; ++t) Store(out.row(first + t) + x, sums[t]);
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

// out[c] = sum over terms of factors * values[c], or adds that to what is
// there.
void Sum(const std::vector<Term>& terms, int64_t value_stride, int64_t depth,
         bool add, const Lanes& out) {
  InBlocks<kChannels>(depth, [&](auto block, int64_t first) {
    constexpr int kCount = decltype(block)::value;
    for (int64_t x = 0; x < out.count; x += kLanes) {
      float* target = out.data + first * out.stride + x;
      Vector sums[kCount] = {};
      for (int c = 0; add && c < kCount; ++c) {
        sums[c] = Load(target + c * out.stride);
      }
      for (const Term& term : terms) {
        Vector factor = Load(term.factors + x);
        const float* values = term.values + first * value_stride + x;
        for (int c = 0; c < kCount; ++c) {
          sums[c] += factor * Load(values + c * value_stride);
        }
      }
      for (int c = 0; c < kCount; ++c) Store(target + c * out.stride, sums[c]);
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

// Turns gradients of the weights into gradients of the logits, in place.
void DifferentiateSoftmax(const Layout& layout, Rows& weights, Rows& dlogits) {
  for (int64_t x = 0; x < layout.query_lanes; x += kLanes) {
    Vector mean = {};
    for (int64_t t = 0; t < layout.taps(); ++t) {
      mean += Load(weights.row(t) + x) * Load(dlogits.row(t) + x);
    }
    for (int64_t t = 0; t < layout.taps(); ++t) {
      Vector dweight = Load(dlogits.row(t) + x) - mean;
      Store(dlogits.row(t) + x, Load(weights.row(t) + x) * dweight);
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
  void ReadRow(const Map& map, int64_t task, int64_t row, Rows& rows) {
    const float* from = map.typed_data() + layout_.QueryStart(task, row);
    Gather(layout_, from, layout_.query_sources, rows.row(0), rows.stride);
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
    float* out = map.typed_data() + layout_.QueryStart(task, row);
    ClearRow(layout_, layout_.out_width, out);
    ScatterAdd(layout_, sums_.row(0), sums_.stride, layout_.query_sources, out);
  }

  const Layout& layout_;
  Plane k_, v_;
  Rows q_, weights_, sums_;
  std::vector<const float*> shifted_;
  std::vector<Term> terms_;
};

// What one thread needs in addition for the gradient.
class Gradient : public Attention {
 public:
  explicit Gradient(const Layout& layout)
      : Attention(layout),
        dk_(layout),
        dv_(layout),
        dout_(layout, layout.depth),
        dlogits_(layout, layout.taps()) {}

  void Clear() {
    dk_.Clear();
    dv_.Clear();
  }

  // Writes a row of dq, and keeps what it adds to dk and dv.
  void Differentiate(const Map& q, const Map& dout, int64_t task, int64_t row,
                     Map& dq) {
    Weigh(q, task, row);
    ReadRow(dout, task, row, dout_);
    ShiftTo(v_, row);
    Products(layout_, dout_, shifted_, dlogits_);
    DifferentiateSoftmax(layout_, weights_, dlogits_);
    SumOverKeys(dlogits_, k_, row, task, dq);
    AddToKeys(dlogits_, q_, row, dk_);
    AddToKeys(weights_, dout_, row, dv_);
  }

  void WriteKeys(Map& dk, Map& dv, int64_t task) {
    dk_.Write(dk.typed_data(), task);
    dv_.Write(dv.typed_data(), task);
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

  Plane dk_, dv_;
  Rows dout_, dlogits_;
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

ffi::Error Backward(ffi::ThreadPool pool, Map q, Map k, Map v, Map dout,
                    NewMap dq, NewMap dk, NewMap dv, int64_t kernel_size,
                    int64_t strides, int64_t dilation) {
  const Layout layout(q, k, kernel_size, strides, dilation);
  ForEachTask(
      pool, layout.tasks, [&] { return Gradient(layout); },
      [&](int64_t task, Gradient& gradient) {
        gradient.ReadKeys(k, v, task);
        gradient.Clear();
        for (int64_t row = 0; row < layout.out_height; ++row) {
          gradient.Differentiate(q, dout, task, row, *dq);
        }
        gradient.WriteKeys(*dk, *dv, task);
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
