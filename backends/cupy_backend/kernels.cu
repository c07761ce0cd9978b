// Moments, merge, apply: the three steps of every normalization, for the two layouts of normkit/problem.py.
//
// Reading. Memory is read and written 16 bytes at a time. A thread holds K vectors of V elements in registers, as they came,
// so that each element is read once for all the sweeps over it. Rows of an odd length start anywhere between two 16-byte
// boundaries: their vectors stay on the boundaries, and the elements before the first and after the last one go singly.
//
// Arithmetic. Elements are float (double for float64 input): d = (x - hi) - lo, where hi + lo is the mean as a pair, so that
// an offset costs nothing. The mean comes from two sweeps: sums of x - x[0], then of what is left around that first mean.
// A float sum runs over at most K + V elements; everything beyond is double, once a thread and not once an element. Sums of
// squares that leave the range of float are taken over again in double. docs/gpu.md has the error bound.
//
// Bits. The sums are the same for every alignment, grid and neighbour: an element is added by its place in the row, not by
// where a thread happens to hold it (`in_order`). No atomics; every tree is fixed by the length of the row alone.

enum { FUSED, MOMENTS, APPLY };                        // what a kernel does
enum { PARTIALS = 0, EXCHANGE = 512, BUFFER = 1024 };  // places in shared memory, in bytes
enum { WARP = 32, MOST_WARPS = 16 };

struct Moments {
  double mean, m2;  // m2: the sum of squared deviations from the mean
};

// What elements are computed in, and whether their squares can leave its range.
template <class T> struct Traits { using Real = float; static constexpr bool can_leave_range = true; };
template <> struct Traits<f16> { using Real = float; static constexpr bool can_leave_range = false; };
template <> struct Traits<double> { using Real = double; static constexpr bool can_leave_range = false; };

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
  INLINE void load(const T* from) { bits = *reinterpret_cast<const decltype(bits)*>(from); }
  INLINE void store(T* to) const { store_whole(reinterpret_cast<typename Word<sizeof(T) * V>::type*>(to), bits); }

  // Singly, and only the elements low <= c < high.
  INLINE void gather(const T* from, int low, int high) {
    T elements[V] = {};
#pragma unroll
    for (int c = 0; c < V; ++c)
      if (low <= c && c < high) elements[c] = from[c];
    pack(elements);
  }
  INLINE void scatter(T* to, int low, int high) const {
    T elements[V];
    unpack(elements);
#pragma unroll
    for (int c = 0; c < V; ++c)
      if (low <= c && c < high) to[c] = elements[c];
  }
  template <class F> INLINE void each(F f) const {
    T elements[V];
    unpack(elements);
#pragma unroll
    for (int c = 0; c < V; ++c) f(c, elements[c]);
  }
};

// Whether sums of squares in float are safe from overflow and underflow.
INLINE bool in_range(double m2, int count) { return m2 > count * 0x1p-100 && m2 < 0x1p120; }

// Whether float serves to apply: at the ends of its range, results are computed in double.
INLINE bool serves(double mean, double v) { return fabs(mean) < 0x1p100 && (v == 0 || (v > 0x1p-100 && v < 0x1p100)); }

// (x - mean) * r with mean = hi + lo and r = r_hi + r_lo, as fma(d, r_hi, fma(d, r_lo, -lo * r_hi)), d = x - hi.
template <class A> struct Scale {
  A hi, r, low, rest;

  INLINE Scale() {}
  INLINE Scale(double mean, double v) {  // v: variance + eps
    double root;
    if (sizeof(A) == sizeof(float) && v != 0) {  // a float root and a Newton step: double divisions are slow on many GPUs
      root = 1.0f / sqrtf((float)v);
      root *= 1.5 - 0.5 * v * root * root;
    } else {
      root = v == 0 ? 0 : 1 / sqrt(v);  // eps = 0 and no variance: 0, not NaN
    }
    hi = (A)mean;
    r = (A)root;
    low = (A)(root - (double)r);
    const A lo = (A)(mean - (double)hi);
    rest = lo == lo ? -lo * r : 0;
  }

  template <int STEP> INLINE A operator()(A x) const {
    const A d = x - hi;
    A small = fused(d, low, rest);
    if (STEP == APPLY && !(small - small == 0)) small = 0;  // given statistics and an infinite x: infinite, not NaN
    return fused(d, r, small);
  }
};

// The threads that share a row, or a chunk of one: `size` of them, a power of two, this one at `rank`. `head` elements lie
// between the 16-byte boundary before the row and its start.
struct Group {
  int size, rank, head;
};

template <int N> INLINE void group_sum(double (&v)[N], const Group& group) {
  for (int step = 1; step < group.size && step < WARP; step *= 2)
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] += shuffle_xor(v[n], step);
  if (group.size <= WARP) return;
  double* partials = scratch<double>(PARTIALS);
  const int warp = threadIdx.x / WARP, warps = group.size / WARP, first = warp - warp % warps;
  if (threadIdx.x % WARP == 0)
#pragma unroll
    for (int n = 0; n < N; ++n) partials[n * MOST_WARPS + warp] = v[n];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    v[n] = 0;
#pragma unroll 1
    for (int w = 0; w < warps; ++w) v[n] += partials[n * MOST_WARPS + first + w];
  }
  __syncthreads();
}

// The sum of V neighbouring places of the row. A place is the sum of elements V * size apart, which one thread holds in one
// column; with a head, thread t's places are the columns from `head` on, and the first ones of thread t + 1.
template <bool RAGGED, class A, int V> INLINE A in_order(A (&own)[V], const Group& group) {
  if constexpr (RAGGED) {
    A* buffer = scratch<A>(BUFFER);  // (V, threads of the block)
    const int next = threadIdx.x - group.rank + ((group.rank + 1) & (group.size - 1));
#pragma unroll
    for (int c = 0; c < V; ++c) buffer[c * blockDim.x + threadIdx.x] = own[c];
    __syncthreads();
#pragma unroll
    for (int c = 0; c < V; ++c) {
      const int column = c + group.head;
      own[c] = column < V ? buffer[column * blockDim.x + threadIdx.x] : buffer[(column - V) * blockDim.x + next];
    }
    __syncthreads();
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
  group_sum(sum, group);
  const double shift = sum[0] / length;
  for (int64 i = group.rank; i < chunks; i += group.size) {
    const Moments m = part(i);
    const double d = (m.mean - base) - shift;
    m2[0] += m.m2 + min(chunk, length - i * chunk) * d * d;
  }
  group_sum(m2, group);
  return {base + shift, m2[0]};
}

// ---- rows: (rows, length), a row is neighbours in memory ----

// Moments of what get(k, f) passes to f as (column, element), for k = 0 .. K - 1.
template <class A, int V, int K, int UNROLL, bool RAGGED, class T, class Get>
INLINE Moments row_moments(Get get, T origin, double inverse, const Group& group, bool& varied) {
  const A shift = widen(origin);
  A own[V] = {};
#pragma unroll UNROLL
  for (int k = 0; k < K; ++k)
    get(k, [&](int c, T element) {
      const A d = (A)widen(element) - shift;
      varied |= d != 0;
      own[c] += d;
    });
  double first[1] = {in_order<RAGGED>(own, group)};
  group_sum(first, group);
  const double mean = (double)shift + first[0] * inverse;
  const A hi = (A)mean, lo = (A)(mean - (double)hi);
  A sums[V] = {}, squares[V] = {};
#pragma unroll UNROLL
  for (int k = 0; k < K; ++k)
    get(k, [&](int c, T element) {
      const A d = ((A)widen(element) - hi) - lo;
      sums[c] += d;
      squares[c] = fused(d, d, squares[c]);
    });
  double totals[2];
  totals[0] = in_order<RAGGED>(sums, group);
  totals[1] = in_order<RAGGED>(squares, group);
  group_sum(totals, group);
  const double rest = totals[0] * inverse, m2 = totals[1] - totals[0] * rest;
  return {mean + rest, m2 < 0 ? 0 : m2};
}

// Weight or bias along a row: one for all of it, or one for each element.
template <class A, class W> struct Parameter {
  const W* p;  // of the row's first element; null: there is one for all
  A all;

  INLINE Parameter(const W* of_row, int64 runs, A missing) {
    p = runs == 1 ? nullptr : of_row;
    all = of_row != nullptr && runs == 1 ? (A)widen(of_row[0]) : missing;
  }
  INLINE A at(int64 e) const { return p != nullptr ? (A)widen(p[e]) : all; }
  template <bool RAGGED, int V> INLINE void at(int64 e, int low, int high, A (&values)[V]) const {
#pragma unroll
    for (int c = 0; c < V; ++c) values[c] = all;
    if (p == nullptr) return;
    if constexpr (RAGGED) {
#pragma unroll
      for (int c = 0; c < V; ++c)
        if (low <= c && c < high) values[c] = (A)widen(p[e + c]);
    } else {
      constexpr int AT_ONCE = 16 / sizeof(W), N = V < AT_ONCE ? V : AT_ONCE;
#pragma unroll
      for (int from = 0; from < V; from += N) {
        Vector<W, N> some;
        some.load(p + e + from);
        some.each([&](int c, W value) { values[from + c] = (A)widen(value); });
      }
    }
  }
};

// Elements of a row as a thread meets them: vector k of its K begins at element e(k), before the row where there is a head.
template <class T, int V> struct Span {
  const T* x;
  int count;
  Group group;

  INLINE int e(int k) const { return (k * group.size + group.rank) * V - group.head; }
  INLINE bool holds(int element) const { return (unsigned)element < (unsigned)count; }
  INLINE bool whole(int k) const { return e(k) >= 0 && e(k) + V <= count; }

  // The two vectors that need not be whole; the second is of interest only if it is not the first.
  INLINE bool begins() const { return group.rank == 0 && group.head > 0 && count > 0; }
  INLINE int last() const { return (group.head + count) / V; }
  INLINE bool ends() const {
    return last() % group.size == group.rank && (group.head + count) % V != 0 && (last() > 0 || group.head == 0);
  }
  INLINE int last_k() const { return last() / group.size; }
};

template <int STEP, bool RAGGED, class A, class T, class W, int V, int K>
INLINE void apply_row(const Vector<T, V> (&held)[K], T* out, const Parameter<A, W>& weight, const Parameter<A, W>& bias,
                      const Scale<A>& scale, int64 first, const Span<T, V>& span) {
  Vector<T, V> result = {}, edge = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int e = span.e(k);
    if (e >= span.count) continue;
    A w[V], b[V];
    weight.template at<RAGGED>(first + e, -e, span.count - e, w);
    bias.template at<RAGGED>(first + e, -e, span.count - e, b);
    T elements[V];
    held[k].unpack(elements);
#pragma unroll
    for (int c = 0; c < V; ++c) narrow(fused(scale.template operator()<STEP>((A)widen(elements[c])), w[c], b[c]), elements[c]);
    result.pack(elements);
    if (!RAGGED || span.whole(k)) {
      result.store(out + e);
    } else if (k == 0 && span.begins()) {
      result.scatter(out + e, -e, span.count - e);
    } else {
      edge = result;
    }
  }
  if (RAGGED && span.ends()) {
    const int e = span.e(span.last_k());
    edge.scatter(out + e, -e, span.count - e);
  }
}

template <class T, class W, int K, int STEP, bool RAGGED, int CLUSTER>
INLINE void normalize_rows(const T* x, T* out, const W* __restrict__ weight, const W* __restrict__ bias, double* mean,
                           double* var, Moments* moments, int64 rows, int64 length, int64 chunk, int64 chunks, int64 runs,
                           int64 period, int64 given, int threads, double eps, double inverse) {
  using A = typename Traits<T>::Real;
  constexpr int V = 16 / sizeof(T);
  const int64 unit = (int64)blockIdx.x * (blockDim.x / threads) + threadIdx.x / threads;  // a chunk of a row
  const int64 row = chunks == 1 ? unit : unit / chunks, first = (unit - row * chunks) * chunk, start = row * length + first;
  const int count = row < rows ? (int)min(chunk, length - first) : 0;
  x += start;
  out += start;
  const int head = RAGGED ? (int)(reinterpret_cast<unsigned long long>(x) / sizeof(T) % V) : 0;
  const Span<T, V> span = {x, count, {threads, (int)threadIdx.x & (threads - 1), head}};

  Vector<T, V> held[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    held[k] = {};
    if (RAGGED ? span.whole(k) : span.e(k) < count) held[k].load(x + span.e(k));
  }
  if (RAGGED && span.begins()) held[0].gather(x - head, head, head + count);
  if (RAGGED && span.ends()) {
    Vector<T, V> edge;
    edge.gather(x + span.e(span.last_k()), 0, count - span.e(span.last_k()));
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k == span.last_k()) held[k] = edge;
  }
  const auto as_held = [&](int k, auto f) {
    const int e = span.e(k);
    if (!RAGGED && e >= count) return;
    held[k].each([&](int c, T element) {
      if (!RAGGED || span.holds(e + c)) f(c, element);
    });
  };
  const auto read_again = [&](int k, auto f) {  // for what is rare and should not take room
    const int e = span.e(k);
#pragma unroll
    for (int c = 0; c < V; ++c)
      if (span.holds(e + c)) f(c, x[e + c]);
  };

  double center = 0, variance = 0;
  if constexpr (STEP == APPLY) {
    if (count > 0) {
      center = mean[row % given];
      variance = var[row % given];
    }
  } else {
    const T origin = count > 0 ? x[0] : T{};
    bool varied = false;
    if (count != chunk && count > 0) inverse = 1.0 / count;
    Moments m = row_moments<A, V, K, K, RAGGED>(as_held, origin, inverse, span.group, varied);
    if constexpr (Traits<T>::can_leave_range) {
      const bool left = !in_range(m.m2, count);
      if (block_any(left && varied)) {
        const Moments wide = row_moments<double, V, K, 1, RAGGED>(read_again, origin, inverse, span.group, varied);
        if (left) m = wide;
      }
    }
    if constexpr (STEP == MOMENTS) {
      if (count > 0 && span.group.rank == 0) moments[unit] = m;
      return;
    }
#ifdef CLUSTERS
    if constexpr (CLUSTER > 1) {  // the blocks of a cluster hold the chunks of one row
      Moments* mine = scratch<Moments>(EXCHANGE);
      if (threadIdx.x == 0) *mine = m;
      cluster_sync();
      m = merged([&](int64 i) { return Moments{remote(&mine->mean, (int)i), remote(&mine->m2, (int)i)}; }, CLUSTER, chunk,
                 length, Group{1, 0, 0});
      cluster_sync();  // no block leaves while another reads its shared memory
      inverse = 1.0 / length;
    }
#endif
    center = m.mean;
    variance = m.m2 * inverse;
    if (mean != nullptr && count > 0 && first == 0 && span.group.rank == 0) {
      mean[row] = center;
      var[row] = variance;
    }
  }
  if (count == 0) return;
  const int64 run = period == 1 ? 0 : row % period * runs;
  const W *w = weight != nullptr ? weight + run : nullptr, *b = bias != nullptr ? bias + run : nullptr;
  const double v = variance + eps;
  if (sizeof(A) == sizeof(double) || serves(center, v)) {
    const Parameter<A, W> weights(w, runs, 1), biases(b, runs, 0);
    apply_row<STEP, RAGGED>(held, out, weights, biases, Scale<A>(center, v), first, span);
    return;
  }
  const Scale<double> scale(center, v);
  const Parameter<double, W> weights(w, runs, 1), biases(b, runs, 0);
#pragma unroll 1
  for (int k = 0; k < K; ++k)
    read_again(k, [&](int c, T element) {
      const int e = span.e(k) + c;
      const double y = scale.template operator()<STEP>((double)widen(element));
      narrow(fused(y, weights.at(first + e), biases.at(first + e)), out[e]);
    });
}

#define ROWS_ARGUMENTS                                                                                                       \
  const T *x, T *out, const W *__restrict__ weight, const W *__restrict__ bias, double *mean, double *var, Moments *moments, \
      int64 rows, int64 length, int64 chunk, int64 chunks, int64 runs, int64 period, int64 given, int threads, double eps,   \
      double inverse
#define ROWS_VALUES \
  x, out, weight, bias, mean, var, moments, rows, length, chunk, chunks, runs, period, given, threads, eps, inverse

template <class T, class W, int K, int STEP, bool RAGGED> __global__ void __launch_bounds__(512, 2) rows(ROWS_ARGUMENTS) {
  normalize_rows<T, W, K, STEP, RAGGED, 1>(ROWS_VALUES);
}

#ifdef CLUSTERS
template <class T, class W, int K, bool RAGGED>
__global__ void __launch_bounds__(512, 2) __cluster_dims__(2, 1, 1) rows_in_2(ROWS_ARGUMENTS) {
  normalize_rows<T, W, K, FUSED, RAGGED, 2>(ROWS_VALUES);
}
template <class T, class W, int K, bool RAGGED>
__global__ void __launch_bounds__(512, 2) __cluster_dims__(4, 1, 1) rows_in_4(ROWS_ARGUMENTS) {
  normalize_rows<T, W, K, FUSED, RAGGED, 4>(ROWS_VALUES);
}
template <class T, class W, int K, bool RAGGED>
__global__ void __launch_bounds__(512, 2) __cluster_dims__(8, 1, 1) rows_in_8(ROWS_ARGUMENTS) {
  normalize_rows<T, W, K, FUSED, RAGGED, 8>(ROWS_VALUES);
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
  __syncthreads();
  for (int half = tile.height / 2; half > 0; half /= 2) {
    if (tile.y < half)
#pragma unroll
      for (int c = 0; c < V; ++c) buffer[c * blockDim.x] += buffer[c * blockDim.x + half * tile.width];
    __syncthreads();
  }
  const double* top = buffer - tile.y * tile.width;
#pragma unroll
  for (int c = 0; c < V; ++c) total[c] = top[c * blockDim.x];
  __syncthreads();
}

// Moments of each lane, of what get(k, f) passes to f as (lane, element), for k = 0 .. K - 1.
template <class A, int V, int K, int UNROLL, class T, class Get>
INLINE void column_moments(Get get, const Vector<T, V>& origin, double inverse, const Tile& tile, Moments (&moments)[V],
                           bool (&varied)[V]) {
  A hi[V], lo[V], own[V] = {};
  origin.each([&](int c, T element) { hi[c] = widen(element); });
#pragma unroll UNROLL
  for (int k = 0; k < K; ++k)
    get(k, [&](int c, T element) {
      const A d = (A)widen(element) - hi[c];
      varied[c] |= d != 0;
      own[c] += d;
    });
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
#pragma unroll UNROLL
  for (int k = 0; k < K; ++k)
    get(k, [&](int c, T element) {
      const A d = ((A)widen(element) - hi[c]) - lo[c];
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

template <class T, class W, int V, int K, int STEP>
__global__ void __launch_bounds__(512, 1)
    columns(const T* x, T* out, const W* __restrict__ weight, const W* __restrict__ bias, double* mean, double* var,
            Moments* moments, int64 outer, int64 length, int64 lanes, int64 chunk, int64 chunks, int64 tiles, int64 given,
            int width, int height, int by_length, double eps, double inverse) {
  using A = typename Traits<T>::Real;
  const int area = width * height, within = threadIdx.x % area;
  const Tile tile = {width, height, within % width, within / width};
  const int64 block = blockIdx.x, at = block / tiles, part = at % chunks, first = part * chunk;
  const int64 of = at / chunks * (blockDim.x / area) + threadIdx.x / area;  // which outer block
  const int64 lane = ((block - at * tiles) * width + tile.x) * V;           // the first of V
  const int64 start = (of * length + first) * lanes + lane, set = of * lanes + lane;
  const int count = of < outer && lane < lanes ? (int)min(chunk, length - first) : 0;
  x += start;
  out += start;

  const auto place = [&](int k) { return tile.y + k * height; };
  Vector<T, V> held[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    held[k] = {};
    if (place(k) < count) held[k].load(x + place(k) * lanes);
  }
  const auto as_held = [&](int k, auto f) {
    if (place(k) < count) held[k].each(f);
  };
  const auto read_again = [&](int k, auto f) {  // for what is rare and should not take room
    if (place(k) >= count) return;
#pragma unroll
    for (int c = 0; c < V; ++c) f(c, x[place(k) * lanes + c]);
  };

  Moments m[V];  // from here on: m2 / count, the variance, once moments are found
  if constexpr (STEP == APPLY) {
    if (count == 0) return;
#pragma unroll
    for (int c = 0; c < V; ++c) m[c] = {mean[(set + c) % given], var[(set + c) % given]};
  } else {
    Vector<T, V> origin = {};
    if (count > 0) origin.load(x);
    if (count != chunk && count > 0) inverse = 1.0 / count;
    bool varied[V] = {};
    column_moments<A, V, K, K>(as_held, origin, inverse, tile, m, varied);
    if constexpr (Traits<T>::can_leave_range) {
      bool any = false;
#pragma unroll
      for (int c = 0; c < V; ++c) any |= varied[c] && !in_range(m[c].m2, count);
      if (block_any(any)) {
        Moments wide[V];
        column_moments<double, V, K, 1>(read_again, origin, inverse, tile, wide, varied);
#pragma unroll
        for (int c = 0; c < V; ++c)
          if (!in_range(m[c].m2, count)) m[c] = wide[c];
      }
    }
    if (count == 0) return;
    if constexpr (STEP == MOMENTS) {
#pragma unroll
      for (int c = 0; c < V; ++c)
        if (tile.y == 0) moments[(set + c) * chunks + part] = m[c];
      return;
    } else {
#pragma unroll
      for (int c = 0; c < V; ++c) {
        m[c].m2 *= inverse;
        if (tile.y == 0 && mean != nullptr) {
          mean[set + c] = m[c].mean;
          var[set + c] = m[c].m2;
        }
      }
    }
  }

  const auto parameter = [&](const W* p, int k, int c) { return p[by_length ? first + place(k) : lane + c]; };
  bool all = true;
#pragma unroll
  for (int c = 0; c < V; ++c) all &= sizeof(A) == sizeof(double) || serves(m[c].mean, m[c].m2 + eps);
  if (!all) {  // a lane that float serves gets the same bits here as below
#pragma unroll 1
    for (int k = 0; k < K; ++k)
      read_again(k, [&](int c, T element) {
        const double v = m[c].m2 + eps, by = weight != nullptr ? (double)widen(parameter(weight, k, c)) : 1,
                     plus = bias != nullptr ? (double)widen(parameter(bias, k, c)) : 0;
        T& to = out[place(k) * lanes + c];
        if (serves(m[c].mean, v)) {
          narrow(fused(Scale<A>(m[c].mean, v).template operator()<STEP>((A)widen(element)), (A)by, (A)plus), to);
        } else {
          narrow(fused(Scale<double>(m[c].mean, v).template operator()<STEP>((double)widen(element)), by, plus), to);
        }
      });
    return;
  }
  Scale<A> scale[V];
  A w[V], b[V];
#pragma unroll
  for (int c = 0; c < V; ++c) {
    scale[c] = Scale<A>(m[c].mean, m[c].m2 + eps);
    w[c] = weight != nullptr && !by_length ? (A)widen(weight[lane + c]) : 1;
    b[c] = bias != nullptr && !by_length ? (A)widen(bias[lane + c]) : 0;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (place(k) >= count) continue;
    if (by_length) {
      const A down = weight != nullptr ? (A)widen(weight[first + place(k)]) : 1;
      const A up = bias != nullptr ? (A)widen(bias[first + place(k)]) : 0;
#pragma unroll
      for (int c = 0; c < V; ++c) w[c] = down, b[c] = up;
    }
    T elements[V];
    held[k].unpack(elements);
#pragma unroll
    for (int c = 0; c < V; ++c)
      narrow(fused(scale[c].template operator()<STEP>((A)widen(elements[c])), w[c], b[c]), elements[c]);
    Vector<T, V> result;
    result.pack(elements);
    result.store(out + place(k) * lanes);
  }
}

// ---- merge: (sets, chunks) moments to mean and variance, a warp for each set ----

__global__ void __launch_bounds__(128)
    merge(const Moments* moments, double* mean, double* var, int64 sets, int64 chunks, int64 chunk, int64 length) {
  const int64 set = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  const Group group = {WARP, (int)threadIdx.x % WARP, 0};
  const Moments* of = moments + set * chunks;
  const Moments m = merged([&](int64 i) { return of[i]; }, set < sets ? chunks : 0, chunk, length, group);
  if (set < sets && group.rank == 0) {
    mean[set] = m.mean;
    var[set] = m.m2 / length;
  }
}
