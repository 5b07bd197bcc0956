// What the kernels for CPU share: vectors, blocks of registers, and threads.

#ifndef ACMIX_JAX_CPU_KERNELS_VECTORS_H_
#define ACMIX_JAX_CPU_KERNELS_VECTORS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace acmix {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
inline constexpr int kLanes = kVectorBytes / sizeof(float);

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif

// GCC and Clang compile arithmetic of these types to that of the machine.
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));

inline Vector Load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

inline void Store(float* out, Vector x) { std::memcpy(out, &x, sizeof(x)); }

inline int64_t RoundUp(int64_t count, int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

// Lanes of a pair of vectors that a step of a transposition puts into the
// first, or into the second.
template <int kStep, bool kSecond, size_t... kLane>
inline Vector Pick(Vector a, Vector b, std::index_sequence<kLane...>) {
  constexpr auto kFrom = [](int lane) {
    bool from_b = lane & kStep;
    int shift = (kSecond ? kStep : 0) - (from_b ? kStep : 0);
    return lane + shift + (from_b ? kLanes : 0);
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kFrom(kLane)...);
#else
  return __builtin_shuffle(a, b, Integers{kFrom(kLane)...});
#endif
}

template <int kStep = kLanes / 2>
inline void Transpose(Vector (&x)[kLanes]) {
  constexpr std::make_index_sequence<kLanes> kAll;
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    Vector a = x[i], b = x[i + kStep];
    x[i] = Pick<kStep, false>(a, b, kAll);
    x[i + kStep] = Pick<kStep, true>(a, b, kAll);
  }
  if constexpr (kStep > 1) Transpose<kStep / 2>(x);
}

// e to the x for x <= 0, to a unit in the last place; below -87, where numbers
// soon cease to be normal, it stays what it is there.
inline Vector Exp(Vector x) {
  const Vector kLowest = Vector{} - 87.0f;
  x = x < kLowest ? kLowest : x;
  // Adding 1.5 * 2^23 rounds to an integer, which the last bits then hold.
  const Vector kRound = Vector{} + 12582912.0f;
  Vector rounded = x * 1.44269504f + kRound;
  Vector n = rounded - kRound;
  // log(2) in two parts, the first of which is exact in products with n.
  x = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector y = Vector{} + 1.0f / 5040;
  for (float factor :
       {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    y = y * x + factor;
  }
  Integers bits, round_bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  std::memcpy(&round_bits, &kRound, sizeof(round_bits));
  Integers exponent = (bits - round_bits + 127) << 23;
  Vector power;
  std::memcpy(&power, &exponent, sizeof(power));
  return y * power;
}

// Calls body(size, first) for blocks of `count` items, as many of the largest
// size as there are; size is a constant, so that what a block sums can stay in
// registers.
template <int kLargest, typename Body>
inline void InBlocks(int64_t count, Body&& body, int64_t first = 0) {
  for (; first + kLargest <= count; first += kLargest) {
    body(std::integral_constant<int, kLargest>{}, first);
  }
  if constexpr (kLargest > 1) {
    if (first < count) InBlocks<kLargest - 1>(count, body, first);
  }
}

// Calls body(task, scratch) for each task on the threads of XLA, and waits.
// Every thread makes its own scratch once. The caller takes tasks as well, so
// that waiting never needs a thread that waits.
template <typename MakeScratch, typename Body>
void ForEachTask(xla::ffi::ThreadPool& pool, int64_t count,
                 MakeScratch make_scratch, Body body) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto state = std::make_shared<State>();
  // A helper that starts when nothing is left must not touch what the caller
  // owns: it may have returned by then.
  auto work = [state, count, &make_scratch, &body] {
    int64_t task = state->next++;
    if (task >= count) return;
    auto scratch = make_scratch();
    int64_t done = 0;
    for (; task < count; task = state->next++, ++done) body(task, scratch);
    std::lock_guard<std::mutex> lock(state->mutex);
    state->done += done;
    if (state->done == count) state->all_done.notify_all();
  };
  int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == count; });
}

}  // namespace acmix

#endif  // ACMIX_JAX_CPU_KERNELS_VECTORS_H_
