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

// A launch: `rows` rows of `length`, each in `chunks` chunks, each held by 2^threads threads.
struct RowsCall : Arrays {
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

// Weight and bias of a chunk: one of each for each element, or one for the row, where null means 1, or -0, which changes nothing.
template <class W> struct Affine {
  const W *weight, *bias;

  template <class Task> INLINE Affine(const Task& task, const RowsCall& call) {
    const int64 at = (call.period.by > 1 ? call.period.rest_of(task.row) * call.runs : 0) + (call.runs > 1 ? task.first : 0);
    weight = call.weight != nullptr ? static_cast<const W*>(call.weight) + at : nullptr;
    bias = call.bias != nullptr ? static_cast<const W*>(call.bias) + at : nullptr;
  }
};

// V weights or biases from p[e] on, in vectors of N; where rows are ragged, only those of a row of `count` are read.
template <class W, int V> struct Parameters {
  enum { AT_ONCE = 16 / sizeof(W), N = V < AT_ONCE ? V : AT_ONCE, PARTS = V / N };
  Vector<W, N> part[PARTS];

  template <bool RAGGED> INLINE void load(const W* p, int e, int count) {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      const int from = e + i * N;
      if constexpr (RAGGED) {
        part[i].load_across(p + from, -from, count - from);
      } else {
        part[i].load(p + from);
      }
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
  const A weight = EACH ? 1 : one_of(affine.weight, 0, A(1)), bias = EACH ? 0 : one_of(affine.bias, 0, A(-0.0));
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
    m = merged([&](int64 i) { return of_all[i]; }, CLUSTER, call.chunk, call.length, 0, Group{1, 0, 0});
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
    const A w = one_of(affine.weight, own, A(1)), b = one_of(affine.bias, own, A(-0.0));
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
