// Moments, merge, apply: the three steps of every normalization, for the two layouts of normkit/problem.py.
//
// Reading. Memory is read and written 16 bytes at a time. A thread holds K vectors of V elements in registers, as they came,
// so that each element is read once for all the sweeps over it. Rows of an odd length start anywhere between two 16-byte
// boundaries: their vectors stay on the boundaries, what else the first and the last of them hold is passed over, and the
// elements of those two are written singly.
//
// Arithmetic. Elements are float (double for float64 input): d = (x - hi) - lo, where hi + lo is the mean as a pair, so that
// an offset costs nothing. The mean comes from two sweeps: sums of x - a guess, then of what is left around that first mean.
// Halves have digits to spare: one sweep around the guess does, if that was a good one. A float sum runs over at most K + V
// elements; everything beyond is double, once a thread and not once an element. Sums that lost digits, or left the range of
// float, are taken over again in double. docs/gpu.md has the error bound.
//
// Bits. The sums are the same for every alignment, grid and neighbour: an element is added by its place in the row, not by
// where a thread happens to hold it (`in_order`). No atomics; every tree is fixed by the length of the row alone.

enum { FUSED, MOMENTS, APPLY };                        // what a kernel does
enum { PARTIALS = 0, EXCHANGE = 768, BUFFER = 1024 };  // places in shared memory, in bytes
enum { WARP = 32, MOST_WARPS = 8 };

struct Moments {
  double mean, m2;  // m2: the sum of squared deviations from the mean
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

// Merge chunks of one set of statistics, all of length `chunk` but the last: Chan's formula around the first mean.
template <class F> INLINE Moments merged(F part, int64 chunks, int64 chunk, int64 length, const Group& group) {
  const double base = chunks > 0 ? part(0).mean : 0;
  double sum[1] = {0}, m2[1] = {0};
  for (int64 i = group.rank; i < chunks; i += group.size) sum[0] += min(chunk, length - i * chunk) * (part(i).mean - base);
  group_sum<0>(sum, group);
  const double shift = sum[0] / length;
  for (int64 i = group.rank; i < chunks; i += group.size) {
    const Moments m = part(i);
    const double d = (m.mean - base) - shift;
    m2[0] += m.m2 + min(chunk, length - i * chunk) * d * d;
  }
  group_sum<1>(m2, group);
  return {base + shift, m2[0]};
}

// ---- rows: (rows, length), a row is neighbours in memory ----

// A first mean: that of some elements in front, which all threads read; of one, where a row may have no more.
template <class A, bool RAGGED, class T> INLINE A guess(const T* x, int count) {
  constexpr int V = 16 / sizeof(T) < 4 ? 2 : 4;
  Vector<T, V> front = {};
  if (RAGGED) {
    front.gather(x, 0, count);
  } else if (count > 0) {
    front.load(x);
  }
  A v[V];
  front.widened(v);
  if (RAGGED && count < V) return v[0];
#pragma unroll
  for (int c = 0; c < V; ++c) v[c] *= A(1) / V;  // before they are added: a constant comes out exactly, and no sum overflows
  return V == 2 ? v[0] + v[1] : (v[0] + v[1]) + (v[V - 2] + v[V - 1]);
}

// Moments of what each(f) passes to f as (column, value), from sums around hi + lo, or of halves around hi. `off`: whether that
// was so far from the mean, 8 standard deviations or more, that digits were lost.
template <class A, int V, bool RAGGED, bool SPARE, class Each>
INLINE Moments moments_around(Each each, double around, double inverse, const Group& group, bool& off) {
  const A hi = (A)around, lo = SPARE ? 0 : (A)(around - (double)hi);
  A sums[V] = {}, squares[V] = {};
  each([&](int c, A value) {
    const A d = (value - hi) - lo;
    sums[c] += d;
    squares[c] = fused(d, d, squares[c]);
  });
  double totals[2];
  totals[0] = in_order<RAGGED>(sums, group);
  totals[1] = in_order<RAGGED>(squares, group);
  group_sum<0>(totals, group);
  const double rest = totals[0] * inverse, m2 = totals[1] - totals[0] * rest;
  off = m2 < totals[1] * 0x1p-6;
  return {around + rest, m2 < 0 ? 0 : m2};
}

// The mean, good to a millionth of the mean distance from `shift`.
template <class A, int V, bool RAGGED, class Each>
INLINE double first_mean(Each each, A shift, double inverse, const Group& group) {
  A own[V] = {};
  each([&](int c, A value) { own[c] += value - shift; });
  double sum[1] = {in_order<RAGGED>(own, group)};
  group_sum<2>(sum, group);
  return (double)shift + sum[0] * inverse;
}

// Elements of a row as a thread meets them: vector k of its K begins at element e(k), before the row where there is a head.
template <class T, int V> struct Span {
  const T* x;
  int count, begin, stride;
  Group group;

  INLINE int e(int k) const { return begin + k * stride; }
  INLINE bool touches(int k) const { return e(k) < count; }
  INLINE bool holds(int element) const { return (unsigned)element < (unsigned)count; }
  INLINE bool whole(int k) const { return e(k) >= 0 && e(k) + V <= count; }
};

// A launch: `rows` rows of `length`, each in `chunks` chunks, each held by 2^threads threads. Null: an array is not there.
struct RowsCall {
  const void* x;
  void* out;
  const void *weight, *bias;
  double *mean, *var;
  Moments* moments;
  int64 rows, length, chunk, runs;
  Divisor period, given;
  double eps, inverse, inverse_of_last, inverse_of_row;  // of the elements of a chunk, of the last one, of a row
  int chunks, threads;
};

// What a thread is to do: its chunk of a row, `count` elements of it from `first` on. Where rows have several, a block has one.
template <class T, int STEP, bool RAGGED, int CLUSTER> struct Task {
  enum { V = 16 / sizeof(T) };
  int64 row, first, place;
  Span<T, V> span;

  INLINE explicit Task(const RowsCall& call) {
    const int shift = call.threads, size = 1 << shift;
    if (STEP == FUSED && CLUSTER == 1) {
      row = (int64)blockIdx.x * (blockDim.x >> shift) + (threadIdx.x >> shift);
      first = 0;
    } else {
      const unsigned chunks = CLUSTER > 1 ? CLUSTER : call.chunks;
      row = chunks == 1 ? (int64)blockIdx.x * (blockDim.x >> shift) + (threadIdx.x >> shift) : blockIdx.x / chunks;
      first = chunks == 1 ? 0 : (blockIdx.x - (unsigned)row * chunks) * call.chunk;
    }
    place = row * call.length + first;
    span.x = static_cast<const T*>(call.x) + place;
    span.count = row < call.rows ? (int)min(call.chunk, call.length - first) : 0;
    const int head = RAGGED && span.count > 0 ? (int)(reinterpret_cast<unsigned long long>(span.x) / sizeof(T) % V) : 0;
    span.group = {size, (int)threadIdx.x & (size - 1), head};
    span.begin = span.group.rank * V - head;
    span.stride = V << shift;
  }
  INLINE T* out(const RowsCall& call) const { return static_cast<T*>(call.out) + place; }
  INLINE double inverse(const RowsCall& call) const { return span.count == call.chunk ? call.inverse : call.inverse_of_last; }
};

// Weight and bias of a chunk: one of each for each element, or one for the row, where null means 1, or 0.
template <class W> struct Affine {
  const W *weight, *bias;

  template <class Task> INLINE Affine(const Task& task, const RowsCall& call) {
    const int64 at = (call.period.by > 1 ? call.period.rest_of(task.row) * call.runs : 0) + (call.runs > 1 ? task.first : 0);
    weight = call.weight != nullptr ? static_cast<const W*>(call.weight) + at : nullptr;
    bias = call.bias != nullptr ? static_cast<const W*>(call.bias) + at : nullptr;
  }
};
template <class A, class W> INLINE A one_of(const W* p, int64 e, A missing) { return p != nullptr ? (A)widen(p[e]) : missing; }

// V weights or biases from p[e] on, in vectors of N; where rows are ragged, only those of a row of `count` are read.
template <class W, int V> struct Parameters {
  enum { AT_ONCE = 16 / sizeof(W), N = V < AT_ONCE ? V : AT_ONCE, PARTS = V / N };
  Vector<W, N> part[PARTS];

  template <bool RAGGED> INLINE void load(const W* p, int e, int count) {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      const int from = e + i * N;
      RAGGED ? part[i].load_across(p + from, -from, count - from) : part[i].load(p + from);
    }
  }
  template <class A> INLINE void widened(A (&values)[V]) const {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) part[i].template each<A>([&](int c, A value) { values[i * N + c] = value; });
  }
};

// `EACH`: every element has a weight and a bias of its own. They are read one vector ahead: those of long rows come from far.
template <int STEP, bool RAGGED, bool EACH, class A, class T, class W, int V, int K>
INLINE void apply_row(const Vector<T, V> (&held)[K], T* out, const Affine<W>& affine, const Scale<A, Traits<T>::spare>& scale,
                      const Span<T, V>& span) {
  const A weight = EACH ? 1 : one_of(affine.weight, 0, A(1)), bias = EACH ? 0 : one_of(affine.bias, 0, A(0));
  Parameters<W, V> weights, biases, next_weights, next_biases;
  const auto read_ahead = [&](int k) {
    if (!span.touches(k)) return;
    next_weights.template load<RAGGED>(affine.weight, span.e(k), span.count);
    next_biases.template load<RAGGED>(affine.bias, span.e(k), span.count);
  };
  if (EACH) read_ahead(0);
  Vector<T, V> result, edge = {};
  int at_edge = -1;  // which of the vectors is not whole; where two are, the first is stored at once
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (!span.touches(k)) continue;
    const int e = span.e(k);
    A values[V], w[V], b[V];
    if constexpr (EACH) {
      weights = next_weights;
      biases = next_biases;
      if (k + 1 < K) read_ahead(k + 1);
      weights.widened(w);
      biases.widened(b);
    }
    held[k].widened(values);
#pragma unroll
    for (int c = 0; c < V; ++c)
      values[c] = fused(scale.template operator()<STEP>(values[c]), EACH ? w[c] : weight, EACH ? b[c] : bias);
    result.narrowed(values);
    if (!RAGGED || span.whole(k)) {
      result.store(out + e);
    } else {
      if (at_edge >= 0) edge.scatter(out + span.e(at_edge), -span.e(at_edge), span.count - span.e(at_edge));
      edge = result;
      at_edge = k;
    }
  }
  if (RAGGED && at_edge >= 0) edge.scatter(out + span.e(at_edge), -span.e(at_edge), span.count - span.e(at_edge));
}

// Moments of a chunk to those of the row, and those to memory if they are wanted. Returns mean and variance.
template <int STEP, int CLUSTER, class Task> INLINE Moments of_row(Moments m, const Task& task, const RowsCall& call) {
  double inverse = call.inverse;
#ifdef CLUSTERS
  if constexpr (CLUSTER > 1) {  // the blocks of a cluster hold the chunks of one row, and each tells all
    Moments* of_all = scratch<Moments>(EXCHANGE);
    cluster_wait();  // all are there
    if (threadIdx.x < CLUSTER) tell(of_all + blockIdx.x % CLUSTER, m, threadIdx.x);
    cluster_arrive();
    cluster_wait();
    m = merged([&](int64 i) { return of_all[i]; }, CLUSTER, call.chunk, call.length, Group{1, 0, 0});
    inverse = call.inverse_of_row;
  }
#endif
  m.m2 *= inverse;
  if (call.mean != nullptr && task.span.count > 0 && task.first == 0 && task.span.group.rank == 0) {
    call.mean[task.row] = m.mean;
    call.var[task.row] = m.m2;
  }
  return m;
}

// What is rare is done in functions of their own, which read their elements again: the common way keeps its registers.
template <class T, int V, int K, class F> INLINE void read_again(const Span<T, V>& span, F f) {
#pragma unroll 1
  for (int k = 0; k < K; ++k) {
    const int e = span.e(k);
#pragma unroll
    for (int c = 0; c < V; ++c)
      if (span.holds(e + c)) f(e + c, c, widen(span.x[e + c]));
  }
}

// (x - mean) / sqrt(v) * weight + bias, one element after the other, in double at the ends of float's range. A row that
// float serves gets the bits of `apply_row`.
template <class T, class W, int K, int STEP, bool RAGGED, int CLUSTER>
NOINLINE void apply_slowly(const RowsCall& call, double mean, double v) {
  using A = typename Traits<T>::Real;
  const Task<T, STEP, RAGGED, CLUSTER> task(call);
  T* out = task.out(call);
  const bool served = sizeof(A) == sizeof(double) || serves(mean, v);
  const Scale<A, Traits<T>::spare> scale(mean, v);
  const Scale<double, false> wide(mean, v);
  const Affine<W> affine(task, call);
  read_again<T, 16 / sizeof(T), K>(task.span, [&](int e, int, A value) {
    const int own = call.runs > 1 ? e : 0;
    const A w = one_of(affine.weight, own, A(1)), b = one_of(affine.bias, own, A(0));
    if (served) {
      narrow(fused(scale.template operator()<STEP>(value), w, b), out[e]);
    } else {
      narrow(fused(wide.template operator()<STEP>((double)value), (double)w, (double)b), out[e]);
    }
  });
}

// From moments on, where those of some row of this block, or warp, are `off`: they are taken over again in double, unless
// all of the row is one constant.
template <class T, class W, int K, int STEP, bool RAGGED, int CLUSTER>
NOINLINE void finish_slowly(const RowsCall& call, Moments m, bool off) {
  constexpr int V = 16 / sizeof(T);
  const Task<T, STEP, RAGGED, CLUSTER> task(call);
  const auto& span = task.span;
  const double front = span.count > 0 ? (double)widen(span.x[0]) : 0;
  bool varied = false;
  read_again<T, V, K>(span, [&](int, int, double value) { varied |= value != front; });
  if (group_any(off && varied, span.group)) {
    const auto each = [&](auto f) { read_again<T, V, K>(span, [&](int, int c, double value) { f(c, value); }); };
    const double inverse = task.inverse(call), mean = first_mean<double, V, RAGGED>(each, front, inverse, span.group);
    bool unused;
    const Moments wide = moments_around<double, V, RAGGED, false>(each, mean, inverse, span.group, unused);
    if (off) m = wide;
  }
  if constexpr (STEP == MOMENTS) {
    if (span.count > 0 && span.group.rank == 0) call.moments[task.row * call.chunks + task.first / call.chunk] = m;
  } else {
    m = of_row<STEP, CLUSTER>(m, task, call);
    if (span.count > 0) apply_slowly<T, W, K, STEP, RAGGED, CLUSTER>(call, m.mean, m.m2 + call.eps);
  }
}

template <class T, class W, int K, int STEP, bool RAGGED, int CLUSTER> INLINE void normalize_rows(const RowsCall& call) {
  using A = typename Traits<T>::Real;
  constexpr int V = 16 / sizeof(T);
  constexpr bool SPARE = Traits<T>::spare;
  const Task<T, STEP, RAGGED, CLUSTER> task(call);
  const auto& span = task.span;
#ifdef CLUSTERS
  if (CLUSTER > 1) cluster_arrive();
#endif

  Vector<T, V> held[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    held[k] = {};
    if (span.touches(k)) held[k].load(span.x + span.e(k));
  }
  Moments m = {};  // from `of_row` on, mean and variance
  if constexpr (STEP == APPLY) {
    if (span.count == 0) return;
    m = {call.mean[call.given.rest_of(task.row)], call.var[call.given.rest_of(task.row)]};
  } else {
    const auto each = [&](auto f) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (!span.touches(k)) continue;
        held[k].template each<A>([&](int c, A value) {
          if (!RAGGED || span.holds(span.e(k) + c)) f(c, value);
        });
      }
    };
    const double inverse = task.inverse(call);
    double around = guess<A, RAGGED>(span.x, span.count);
    if (!SPARE) around = first_mean<A, V, RAGGED>(each, (A)around, inverse, span.group);
    bool off;
    m = moments_around<A, V, RAGGED, SPARE>(each, around, inverse, span.group, off);
    off = (SPARE && off) || (Traits<T>::can_leave_range && !in_range(m.m2, span.count));
    if constexpr (SPARE || Traits<T>::can_leave_range)
      if (group_any(off, span.group)) return finish_slowly<T, W, K, STEP, RAGGED, CLUSTER>(call, m, off);
    if constexpr (STEP == MOMENTS) {
      if (span.count > 0 && span.group.rank == 0) call.moments[task.row * call.chunks + task.first / call.chunk] = m;
      return;
    }
    m = of_row<STEP, CLUSTER>(m, task, call);
    if (span.count == 0) return;
  }
  const double v = m.m2 + call.eps;
  if (sizeof(A) < sizeof(double) && !serves(m.mean, v))
    return apply_slowly<T, W, K, STEP, RAGGED, CLUSTER>(call, m.mean, v);
  const Affine<W> affine(task, call);
  const Scale<A, SPARE> scale(m.mean, v);
  if (call.runs > 1) {
    apply_row<STEP, RAGGED, true>(held, task.out(call), affine, scale, span);
  } else {
    apply_row<STEP, RAGGED, false>(held, task.out(call), affine, scale, span);
  }
}

// Blocks on a multiprocessor: so many that 64 KB and more are on their way.
constexpr int blocks_for(int held) { return held > 8 ? 2 : held > 4 ? 3 : 4; }

template <class T, class W, int K, int STEP, bool RAGGED>
__global__ void __launch_bounds__(256, blocks_for(K)) rows(const GRID_CONSTANT RowsCall call) {
  normalize_rows<T, W, K, STEP, RAGGED, 1>(call);
}

#ifdef CLUSTERS
template <class T, class W, int K, bool RAGGED>
__global__ void __launch_bounds__(256, blocks_for(K)) __cluster_dims__(2, 1, 1) rows_in_2(const GRID_CONSTANT RowsCall call) {
  normalize_rows<T, W, K, FUSED, RAGGED, 2>(call);
}
template <class T, class W, int K, bool RAGGED>
__global__ void __launch_bounds__(256, blocks_for(K)) __cluster_dims__(4, 1, 1) rows_in_4(const GRID_CONSTANT RowsCall call) {
  normalize_rows<T, W, K, FUSED, RAGGED, 4>(call);
}
template <class T, class W, int K, bool RAGGED>
__global__ void __launch_bounds__(256, blocks_for(K)) __cluster_dims__(8, 1, 1) rows_in_8(const GRID_CONSTANT RowsCall call) {
  normalize_rows<T, W, K, FUSED, RAGGED, 8>(call);
}
#endif

// ---- columns: (outer, length, lanes), a lane of one outer block shares statistics ----

// A block is some outer blocks x `height` places of the length x `width` vectors of lanes; this thread is at (y, x).
struct Tile {
  int width, height, x, y;
};

// Sums down the columns of a tile, the same in each of their threads.
template <class A, int V> INLINE void column_sum(const A (&own)[V], double (&total)[V], const Tile& tile) {
  double* buffer = scratch<double>(BUFFER) + threadIdx.x;  // (V, threads of the block)
#pragma unroll
  for (int c = 0; c < V; ++c) buffer[c * blockDim.x] = own[c];
  block_sync();
  for (int half = tile.height / 2; half > 0; half /= 2) {
    if (tile.y < half)
#pragma unroll
      for (int c = 0; c < V; ++c) buffer[c * blockDim.x] += buffer[c * blockDim.x + half * tile.width];
    block_sync();
  }
  const double* top = buffer - tile.y * tile.width;
#pragma unroll
  for (int c = 0; c < V; ++c) total[c] = top[c * blockDim.x];
  block_sync();
}

// Moments of each lane, of what each(f) passes to f as (lane, value); `front` has the first of each.
template <class A, int V, class T, class Each>
INLINE void column_moments(Each each, const Vector<T, V>& front, double inverse, const Tile& tile, Moments (&moments)[V]) {
  A hi[V], lo[V], own[V] = {};
  front.widened(hi);
  each([&](int c, A value) { own[c] += value - hi[c]; });
  double total[V];
  column_sum(own, total, tile);
  A squares[V] = {};
#pragma unroll
  for (int c = 0; c < V; ++c) {
    moments[c].mean = (double)hi[c] + total[c] * inverse;
    hi[c] = (A)moments[c].mean;
    lo[c] = (A)(moments[c].mean - (double)hi[c]);
    own[c] = 0;
  }
  each([&](int c, A value) {
    const A d = (value - hi[c]) - lo[c];
    own[c] += d;
    squares[c] = fused(d, d, squares[c]);
  });
  column_sum(own, total, tile);
#pragma unroll
  for (int c = 0; c < V; ++c) moments[c].mean += total[c] * inverse;
  double m2[V];
  column_sum(squares, m2, tile);
#pragma unroll
  for (int c = 0; c < V; ++c) {
    const double left = m2[c] - total[c] * (total[c] * inverse);
    moments[c].m2 = left < 0 ? 0 : left;
  }
}

// A launch: `outer` blocks of (length, lanes), the length in `chunks` chunks, the lanes in `tiles` tiles of blocks of threads.
struct ColumnsCall {
  const void* x;
  void* out;
  const void *weight, *bias;
  double *mean, *var;
  Moments* moments;
  int64 outer, length, lanes, chunk, chunks, tiles;
  Divisor given;
  double eps, inverse;
  int width, height, by_length, unused;
};

// What a thread is to do: V lanes of one outer block, and of its chunk of the length each `height`-th place, `count` in all.
template <class T, int V> struct ColumnTask {
  Tile tile;
  int64 part, first, lane, set, place;
  int count;
  const T* x;

  INLINE explicit ColumnTask(const ColumnsCall& call) {
    const int area = call.width * call.height, within = threadIdx.x % area;
    tile = {call.width, call.height, within % call.width, within / call.width};
    const int64 block = blockIdx.x, at = block / call.tiles;
    part = at % call.chunks;
    first = part * call.chunk;
    const int64 of = at / call.chunks * (blockDim.x / area) + threadIdx.x / area;  // which outer block
    lane = ((block - at * call.tiles) * call.width + tile.x) * V;                  // the first of V
    place = (of * call.length + first) * call.lanes + lane;
    set = of * call.lanes + lane;
    count = of < call.outer && lane < call.lanes ? (int)min(call.chunk, call.length - first) : 0;
    x = static_cast<const T*>(call.x) + place;
  }
  INLINE int at(int k) const { return tile.y + k * tile.height; }
  INLINE bool holds(int k) const { return at(k) < count; }
  INLINE int64 offset(int k, const ColumnsCall& call) const { return at(k) * call.lanes; }
  INLINE double inverse(const ColumnsCall& call) const { return count != call.chunk && count > 0 ? 1.0 / count : call.inverse; }
  INLINE void given(const ColumnsCall& call, Moments (&m)[V]) const {
#pragma unroll
    for (int c = 0; c < V; ++c) m[c] = {call.mean[call.given.rest_of(set + c)], call.var[call.given.rest_of(set + c)]};
  }

  // The moments of this chunk to memory, for `merge`; or those of the set, of which m2 becomes the variance.
  template <int STEP> INLINE void keep(const ColumnsCall& call, Moments (&m)[V]) const {
    const double by = inverse(call);
#pragma unroll
    for (int c = 0; c < V; ++c) {
      if (STEP == MOMENTS) {
        if (tile.y == 0) call.moments[(set + c) * call.chunks + part] = m[c];
      } else {
        m[c].m2 *= by;
        if (tile.y == 0 && call.mean != nullptr) {
          call.mean[set + c] = m[c].mean;
          call.var[set + c] = m[c].m2;
        }
      }
    }
  }
};

// All of it, where a lane of the block is out of float's range: its moments are taken over again in double, and those results
// are computed in double. Lanes that float serves get the bits of `columns`.
template <class T, class W, int V, int K, int STEP> NOINLINE void columns_slowly(const ColumnsCall& call) {
  using A = typename Traits<T>::Real;
  constexpr bool SPARE = Traits<T>::spare;
  const ColumnTask<T, V> task(call);
  const W *weight = static_cast<const W*>(call.weight), *bias = static_cast<const W*>(call.bias);
  const auto each = [&](auto f) {
#pragma unroll 1
    for (int k = 0; k < K; ++k)
      if (task.holds(k))
#pragma unroll
        for (int c = 0; c < V; ++c) f(k, c, widen(task.x[task.offset(k, call) + c]));
  };
  Moments m[V];
  if constexpr (STEP == APPLY) {
    if (task.count == 0) return;
    task.given(call, m);
  } else {
    Vector<T, V> front = {};
    if (task.count > 0) front.load(task.x);
    A constant[V];
    front.widened(constant);
    const double inverse = task.inverse(call);
    const auto as_before = [&](auto f) { each([&](int, int c, A value) { f(c, value); }); };
    column_moments<A, V>(as_before, front, inverse, task.tile, m);
    bool varied = false;  // a constant has no variance, and is no reason
    each([&](int, int c, A value) { varied |= value != constant[c] && !in_range(m[c].m2, task.count); });
    if (block_any(varied)) {
      Moments wide[V];
      const auto in_double = [&](auto f) { each([&](int, int c, double value) { f(c, value); }); };
      column_moments<double, V>(in_double, front, inverse, task.tile, wide);
#pragma unroll
      for (int c = 0; c < V; ++c)
        if (Traits<T>::can_leave_range && !in_range(m[c].m2, task.count)) m[c] = wide[c];
    }
    if (task.count == 0) return;
    task.template keep<STEP>(call, m);
    if (STEP == MOMENTS) return;
  }
  T* out = static_cast<T*>(call.out) + task.place;
  each([&](int k, int c, A value) {
    const int64 own = call.by_length ? task.first + task.at(k) : task.lane + c;
    const A by = one_of(weight, own, A(1)), plus = one_of(bias, own, A(0));
    const double v = m[c].m2 + call.eps;
    T& to = out[task.offset(k, call) + c];
    if (sizeof(A) == sizeof(double) || serves(m[c].mean, v)) {
      narrow(fused(Scale<A, SPARE>(m[c].mean, v).template operator()<STEP>(value), by, plus), to);
    } else {
      const Scale<double, false> wide(m[c].mean, v);
      narrow(fused(wide.template operator()<STEP>((double)value), (double)by, (double)plus), to);
    }
  });
}

template <class T, class W, int V, int K, int STEP>
__global__ void __launch_bounds__(512, 1) columns(const GRID_CONSTANT ColumnsCall call) {
  using A = typename Traits<T>::Real;
  constexpr bool SPARE = Traits<T>::spare;
  const ColumnTask<T, V> task(call);
  const W *weight = static_cast<const W*>(call.weight), *bias = static_cast<const W*>(call.bias);
  Vector<T, V> held[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    held[k] = {};
    if (task.holds(k)) held[k].load(task.x + task.offset(k, call));
  }
  Moments m[V];  // from `keep` on: m2 / count, the variance
  if constexpr (STEP == APPLY) {
    if (task.count == 0) return;
    task.given(call, m);
  } else {
    Vector<T, V> front = {};
    if (task.count > 0) front.load(task.x);
    const auto each = [&](auto f) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (task.holds(k)) held[k].template each<A>(f);
    };
    column_moments<A, V>(each, front, task.inverse(call), task.tile, m);
    if constexpr (sizeof(A) < sizeof(double)) {
      bool left = false;
#pragma unroll
      for (int c = 0; c < V; ++c) {
        left |= Traits<T>::can_leave_range && !in_range(m[c].m2, task.count);
        left |= STEP == FUSED && task.count > 0 && !serves(m[c].mean, m[c].m2 * task.inverse(call) + call.eps);
      }
      if (block_any(left)) return columns_slowly<T, W, V, K, STEP>(call);
    }
    if (task.count == 0) return;
    task.template keep<STEP>(call, m);
    if (STEP == MOMENTS) return;
  }

  if constexpr (STEP == APPLY && sizeof(A) < sizeof(double)) {
    bool all = true;
#pragma unroll
    for (int c = 0; c < V; ++c) all &= serves(m[c].mean, m[c].m2 + call.eps);
    if (!all) return columns_slowly<T, W, V, K, STEP>(call);
  }
  Scale<A, SPARE> scale[V];
  A w[V], b[V];
#pragma unroll
  for (int c = 0; c < V; ++c) {
    scale[c] = Scale<A, SPARE>(m[c].mean, m[c].m2 + call.eps);
    w[c] = weight != nullptr && !call.by_length ? (A)widen(weight[task.lane + c]) : 1;
    b[c] = bias != nullptr && !call.by_length ? (A)widen(bias[task.lane + c]) : 0;
  }
  T* out = static_cast<T*>(call.out) + task.place;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (!task.holds(k)) continue;
    if (call.by_length) {
      const A down = one_of(weight, task.first + task.at(k), A(1)), up = one_of(bias, task.first + task.at(k), A(0));
#pragma unroll
      for (int c = 0; c < V; ++c) w[c] = down, b[c] = up;
    }
    A values[V];
    held[k].widened(values);
#pragma unroll
    for (int c = 0; c < V; ++c) values[c] = fused(scale[c].template operator()<STEP>(values[c]), w[c], b[c]);
    Vector<T, V> result;
    result.narrowed(values);
    result.store(out + task.offset(k, call));
  }
}

// ---- merge: (sets, chunks) moments to mean and variance, a warp for each set ----

struct MergeCall {
  const Moments* moments;
  double *mean, *var;
  int64 sets, chunks, chunk, length;
};

__global__ void __launch_bounds__(128) merge(const GRID_CONSTANT MergeCall call) {
  const int64 set = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  const Group group = {WARP, (int)threadIdx.x % WARP, 0};
  const Moments* of = call.moments + set * call.chunks;
  const Moments m = merged([&](int64 i) { return of[i]; }, set < call.sets ? call.chunks : 0, call.chunk, call.length, group);
  if (set < call.sets && group.rank == 0) {
    call.mean[set] = m.mean;
    call.var[set] = m.m2 / call.length;
  }
}
