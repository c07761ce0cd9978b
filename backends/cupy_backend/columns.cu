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
struct ColumnsCall : Arrays {
  int64 outer, length, lanes, chunk, chunks, tiles;
  Divisor given;
  double eps, inverse;
  int width, height, by_length;
};

// What a thread is to do: V lanes of one outer block, and of its chunk of the length each `height`-th place, `count` in all.
template <class T, class W, int V> struct ColumnTask {
  Tile tile;
  int64 part, first, lane, set;
  int count;
  const T* x;
  T* out;
  const W *weight, *bias;

  INLINE explicit ColumnTask(const ColumnsCall& call) {
    const int area = call.width * call.height, within = threadIdx.x % area;
    tile = {call.width, call.height, within % call.width, within / call.width};
    const int64 block = blockIdx.x, at = block / call.tiles;
    part = at % call.chunks;
    first = part * call.chunk;
    const int64 of = at / call.chunks * (blockDim.x / area) + threadIdx.x / area;  // which outer block
    lane = ((block - at * call.tiles) * call.width + tile.x) * V;                  // the first of V
    const int64 place = (of * call.length + first) * call.lanes + lane;
    set = of * call.lanes + lane;
    count = of < call.outer && lane < call.lanes ? (int)min(call.chunk, call.length - first) : 0;
    x = static_cast<const T*>(call.x) + place;
    out = static_cast<T*>(call.out) + place;
    weight = static_cast<const W*>(call.weight);
    bias = static_cast<const W*>(call.bias);
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
  const ColumnTask<T, W, V> task(call);
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
  each([&](int k, int c, A value) {
    const int64 own = call.by_length ? task.first + task.at(k) : task.lane + c;
    const A by = one_of(task.weight, own, A(1)), plus = one_of(task.bias, own, A(0));
    const double v = m[c].m2 + call.eps;
    T& to = task.out[task.offset(k, call) + c];
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
  const ColumnTask<T, W, V> task(call);
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
    w[c] = call.by_length ? 1 : one_of(task.weight, task.lane + c, A(1));
    b[c] = call.by_length ? 0 : one_of(task.bias, task.lane + c, A(0));
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (!task.holds(k)) continue;
    if (call.by_length) {
      const int64 own = task.first + task.at(k);
      const A down = one_of(task.weight, own, A(1)), up = one_of(task.bias, own, A(0));
#pragma unroll
      for (int c = 0; c < V; ++c) w[c] = down, b[c] = up;
    }
    A values[V];
    held[k].widened(values);
#pragma unroll
    for (int c = 0; c < V; ++c) values[c] = fused(scale[c].template operator()<STEP>(values[c]), w[c], b[c]);
    Vector<T, V> result;
    result.narrowed(values);
    result.store(task.out + task.offset(k, call));
  }
}
