// Moments, merge, apply: the three steps of every normalization, for the two layouts of normkit/problem.py.
//
// Reading. Memory is read and written 16 bytes at a time. A thread holds K vectors of V elements in registers, as they came,
// so that each element is read once for all the sweeps over it. Rows of an odd length start anywhere between two 16-byte
// boundaries: their vectors stay on the boundaries, what else the first and the last of them hold is passed over, and the
// elements of those two are written singly.
//
// Arithmetic. Elements are float (double for float64 input): d = (x - hi) - lo, where hi + lo is the mean as a pair, so that
// an offset costs nothing. The mean comes from two sweeps: sums of x - a guess, then of what is left around that first mean.
// Halves have digits to spare: one sweep around the guess does, if that was a good one. Columns are summed around means of
// each thread's own. A float sum runs over at most K + V elements; everything beyond is double, once a thread and not once
// an element. Sums that lost digits, or left the range of float, are taken over again in double. docs/gpu.md has the error
// bound.
//
// Bits. The sums are the same for every alignment, grid and neighbour: an element is added by its place in the row, not by
// where a thread happens to hold it (`in_order`). No atomics; every tree is fixed by the length of the row alone.

enum { FUSED, MOMENTS, APPLY };                        // what a kernel does
enum { PARTIALS = 0, EXCHANGE = 768, BUFFER = 1024 };  // places in shared memory, in bytes
enum { WARP = 32, MOST_WARPS = 8 };

struct Moments {
  double mean, m2;  // m2: the sum of squared deviations from the mean
};

// What a launch is about, before what each kernel has to know of it. Null: an array is not there.
struct Arrays {
  const void* x;
  void* out;
  const void *weight, *bias;
  double *mean, *var;
  Moments* moments;
};

// What elements are computed in, whether it has digits to spare for them, and whether their squares can leave its range.
template <class T> struct Traits { using Real = float; static constexpr bool spare = false, can_leave_range = true; };
template <> struct Traits<f16> { using Real = float; static constexpr bool spare = true, can_leave_range = false; };
template <> struct Traits<bf16> { using Real = float; static constexpr bool spare = true, can_leave_range = true; };
template <> struct Traits<double> { using Real = double; static constexpr bool spare = false, can_leave_range = false; };

template <int BYTES> struct Word;
template <> struct Word<16> { using type = uint4; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<4> { using type = unsigned; };
template <> struct Word<2> { using type = unsigned short; };

// V elements of type T, as loaded.
template <class T, int V> struct Vector {
  typename Word<sizeof(T) * V>::type bits;

  INLINE void unpack(T (&elements)[V]) const { memcpy(elements, &bits, sizeof(bits)); }
  INLINE void pack(const T (&elements)[V]) { memcpy(&bits, elements, sizeof(bits)); }
  INLINE void load(const T* from) { bits = load_whole(reinterpret_cast<const decltype(bits)*>(from)); }
  INLINE void store(T* to) const { store_whole(reinterpret_cast<typename Word<sizeof(T) * V>::type*>(to), bits); }

  // N of them, from element i on.
  template <int N> INLINE Vector<T, N> part(int i) const {
    Vector<T, N> some;
    memcpy(&some.bits, reinterpret_cast<const char*>(&bits) + i * sizeof(T), sizeof(some.bits));
    return some;
  }
  template <int N> INLINE void replace(int i, const Vector<T, N>& some) {
    memcpy(reinterpret_cast<char*>(&bits) + i * sizeof(T), &some.bits, sizeof(some.bits));
  }
  // Singly, and only the elements low <= c < high.
  INLINE void gather(const T* from, int low, int high) {
    T elements[V] = {};
#pragma unroll
    for (int c = 0; c < V; ++c)
      if (low <= c && c < high) elements[c] = from[c];
    pack(elements);
  }
  // From anywhere between 16-byte boundaries; of the two vectors on boundaries that it touches, those are read that hold an
  // element low <= c < high. What else they hold may be others', or nobody's: no page ends between two boundaries.
  INLINE void load_across(const T* from, int low, int high) {
    static_assert(sizeof(T) * V == 16);
    const int start = (int)(reinterpret_cast<unsigned long long>(from) % 16), before = start / sizeof(T);
    const T* whole = from - before;
    Vector part[2] = {};
    if (low < V - before && high > -before) part[0].load(whole);
    if (before > 0 && low < 2 * V - before && high > V - before) part[1].load(whole + V);
    unsigned words[8];
    memcpy(words, part, sizeof(words));
    if (start & 8)
#pragma unroll
      for (int i = 0; i < 6; ++i) words[i] = words[i + 2];
    if (start & 4)
#pragma unroll
      for (int i = 0; i < 5; ++i) words[i] = words[i + 1];
    if (start & 2)
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = words[i] >> 16 | words[i + 1] << 16;
    memcpy(&bits, words, sizeof(bits));
  }
  INLINE void scatter(T* to, int low, int high) const {
    T elements[V];
    unpack(elements);
#pragma unroll
    for (int c = 0; c < V; ++c)
      if (low <= c && c < high) to[c] = elements[c];
  }

  // As they are computed in. Halves go by twos, as a GPU converts them.
  template <class A> INLINE void widened(A (&values)[V]) const {
    if constexpr (sizeof(T) == 2 && V % 2 == 0) {
      unsigned pairs[V / 2];
      memcpy(pairs, &bits, sizeof(bits));
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        float low, high;
        widen_pair<T>(pairs[i], low, high);
        values[2 * i] = low;
        values[2 * i + 1] = high;
      }
    } else {
      T elements[V];
      unpack(elements);
#pragma unroll
      for (int c = 0; c < V; ++c) values[c] = (A)widen(elements[c]);
    }
  }
  template <class A> INLINE void narrowed(const A (&values)[V]) {
    if constexpr (sizeof(T) == 2 && V % 2 == 0) {
      unsigned pairs[V / 2];
#pragma unroll
      for (int i = 0; i < V / 2; ++i) pairs[i] = narrow_pair<T>(values[2 * i], values[2 * i + 1]);
      memcpy(&bits, pairs, sizeof(bits));
    } else {
      T elements[V];
#pragma unroll
      for (int c = 0; c < V; ++c) narrow(values[c], elements[c]);
      pack(elements);
    }
  }
  template <class A, class F> INLINE void each(F f) const {
    A values[V];
    widened(values);
#pragma unroll
    for (int c = 0; c < V; ++c) f(c, values[c]);
  }
};

// What indices are divided by: a division of 64 bits takes a hundred instructions, a product in double a few.
struct Divisor {
  int64 by;
  double inverse;

  INLINE int64 rest_of(int64 a) const {
    if (a < by) return a;
    const int64 rest = a - (int64)((double)a * inverse) * by;  // the quotient is one off at most
    return rest < 0 ? rest + by : rest < by ? rest : rest - by;
  }
};

// Whether sums of squares in float are safe from overflow and underflow.
INLINE bool in_range(double m2, int count) { return m2 > count * 0x1p-100 && m2 < 0x1p120; }

// Whether float serves to apply: at the ends of its range, results are computed in double.
INLINE bool serves(double mean, double v) { return fabs(mean) < 0x1p100 && (v == 0 || (v > 0x1p-100 && v < 0x1p100)); }

// 1 / sqrt(v) in float, and a Newton step in double, whose divisions are slow on many GPUs. v of 0: 0, not infinity, as
// no variance and eps = 0 mean 0, not NaN.
INLINE double root_of(double v, float) {
  const double root = reciprocal_root((float)v);
  return v == 0 ? 0 : root * (1.5 - 0.5 * v * root * root);
}
INLINE double root_of(double v, double) { return v == 0 ? 0 : 1 / sqrt(v); }

// (x - mean) * r with mean = hi + lo and r = r_hi + r_lo, as fma(d, r_hi, fma(d, r_lo, -lo * r_hi)), d = x - hi. Where A has
// digits to spare, r_hi is good enough.
template <class A, bool SPARE> struct Scale {
  A hi, r, low, rest;

  INLINE Scale() {}
  INLINE Scale(double mean, double v) {  // v: variance + eps
    const double root = root_of(v, A());
    hi = (A)mean;
    r = (A)root;
    low = (A)(root - (double)r);
    const A lo = (A)(mean - (double)hi);
    rest = lo == lo ? -lo * r : 0;
  }

  template <int STEP> INLINE A operator()(A x) const {
    const A d = x - hi;
    A small = SPARE ? rest : fused(d, low, rest);
    if (STEP == APPLY && !(small - small == 0)) small = 0;  // given statistics and an infinite x: infinite, not NaN
    return fused(d, r, small);
  }
};

// A weight or a bias, or what stands for one that is not there.
template <class A, class W> INLINE A one_of(const W* p, int64 e, A missing) { return p != nullptr ? (A)widen(p[e]) : missing; }

// The threads that share a row, or a chunk of one: `size` of them, a power of two, this one at `rank`. `head` elements lie
// between the 16-byte boundary before the row and its start.
struct Group {
  int size, rank, head;
};

// A group waits for its own threads alone where it is part of a warp.
INLINE void group_sync(const Group& group) { group.size <= WARP ? warp_sync() : block_sync(); }
INLINE bool group_any(bool v, const Group& group) { return group.size <= WARP ? warp_any(v) : block_any(v); }

// Sums over a group, the same in all of its threads. Two calls that follow one another have different PLACEs in shared memory:
// then a warp that is ahead writes where nobody still reads.
template <int PLACE, int N> INLINE void group_sum(double (&v)[N], const Group& group) {
  static_assert((PLACE + N) * MOST_WARPS * sizeof(double) <= EXCHANGE - PARTIALS);
#pragma unroll
  for (int step = 1; step < WARP; step *= 2)
    if (step < group.size)
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] += shuffle_xor(v[n], step);
  if (group.size <= WARP) return;
  double* partials = scratch<double>(PARTIALS) + PLACE * MOST_WARPS;
  const int warp = threadIdx.x / WARP, warps = group.size / WARP, first = warp & -warps;
  if (threadIdx.x % WARP == 0)
#pragma unroll
    for (int n = 0; n < N; ++n) partials[n * MOST_WARPS + warp] = v[n];
  block_sync();
#pragma unroll
  for (int n = 0; n < N; ++n) v[n] = partials[n * MOST_WARPS + first] + partials[n * MOST_WARPS + first + 1];
#pragma unroll 1
  for (int w = first + 2; w < first + warps; w += 2)
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] += partials[n * MOST_WARPS + w] + partials[n * MOST_WARPS + w + 1];
}

// The sum of V neighbouring places of the row. A place is the sum of elements V * size apart, which one thread holds in one
// column; with a head, thread t's places are the columns from `head` on, and the first ones of thread t + 1.
template <bool RAGGED, class A, int V> INLINE A in_order(A (&own)[V], const Group& group) {
  if constexpr (RAGGED) {
    A* buffer = scratch<A>(BUFFER);  // (V, threads of the block)
    const int next = threadIdx.x - group.rank + ((group.rank + 1) & (group.size - 1));
#pragma unroll
    for (int c = 0; c < V; ++c) buffer[c * blockDim.x + threadIdx.x] = own[c];
    group_sync(group);
#pragma unroll
    for (int c = 0; c < V; ++c) {
      const int column = c + group.head;
      own[c] = column < V ? buffer[column * blockDim.x + threadIdx.x] : buffer[(column - V) * blockDim.x + next];
    }
    group_sync(group);
  }
#pragma unroll
  for (int step = 1; step < V; step *= 2)
#pragma unroll
    for (int c = 0; c < V; c += 2 * step) own[c] += own[c + step];
  return own[0];
}

// Merge chunks of one set of statistics: Chan's formula around the first mean. Of `length` places in chunks of `chunk`, all but
// the last are whole; 2^folds chunks next to each other are of the same places.
template <class F>
INLINE Moments merged(F part, int64 chunks, int64 chunk, int64 length, int folds, const Group& group) {
  const auto size = [&](int64 i) { return min(chunk, length - (i >> folds) * chunk); };
  const double base = chunks > 0 ? part(0).mean : 0;
  double sum[1] = {0}, m2[1] = {0};
  for (int64 i = group.rank; i < chunks; i += group.size) sum[0] += size(i) * (part(i).mean - base);
  group_sum<0>(sum, group);
  const double shift = sum[0] / (length << folds);
  for (int64 i = group.rank; i < chunks; i += group.size) {
    const Moments m = part(i);
    const double d = (m.mean - base) - shift;
    m2[0] += m.m2 + size(i) * d * d;
  }
  group_sum<1>(m2, group);
  return {base + shift, m2[0]};
}

// ---- merge: (sets, chunks) moments to mean and variance, a warp for each set ----

struct MergeCall {
  const Moments* moments;
  double *mean, *var;
  int64 sets, chunks, chunk, length, folds;
};

__global__ void __launch_bounds__(128) merge(const GRID_CONSTANT MergeCall call) {
  const int64 set = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  const Group group = {WARP, (int)threadIdx.x % WARP, 0};
  const Moments* of = call.moments + set * call.chunks;
  const auto part = [&](int64 i) { return of[i]; };
  const Moments m = merged(part, set < call.sets ? call.chunks : 0, call.chunk, call.length, (int)call.folds, group);
  if (set < call.sets && group.rank == 0) {
    call.mean[set] = m.mean;
    call.var[set] = m.m2 / (call.length << call.folds);
  }
}
