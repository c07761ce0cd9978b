// ---- columns: (outer, length, lanes), a lane of one outer block shares statistics ----

// A launch: `outer` blocks of (length, lanes), the length in `chunks` chunks, the lanes in `tiles` tiles. A block of threads is
// `depth` outer blocks x `height` places of the length x `width` vectors of lanes; what its threads know of a lane is added up
// in `parts` parts. Where lanes are few, `folds` places side by side are taken for one, of folds * unfolded lanes.
struct ColumnsCall : Arrays {
  int64 outer, length, lanes, unfolded, chunk, chunks, tiles;
  Divisor given;
  double eps, inverse;
  int width, height, depth, parts, folds, by_length;
};

// What a thread is to do: it is at (z, y, x) of its block, and has V lanes of one outer block, and of its chunk of the length
// each `height`-th place, from the y-th on.
template <class T, int V> struct ColumnTask {
  const ColumnsCall& call;
  int x, y, z, count, whole, rest, places;  // of the chunk: `whole` for each y, one more for the first `rest`; of this thread
  unsigned outer, part, tile;               // where the block is
  int64 start;                              // of the thread, in x

  INLINE ColumnTask(const ColumnsCall& call, unsigned block) : call(call) {
    const int area = call.width * call.height;
    z = threadIdx.x / area;
    const int within = threadIdx.x - z * area;
    y = within / call.width;
    x = within - y * call.width;
    const unsigned at = block / (unsigned)call.tiles;
    tile = block - at * (unsigned)call.tiles;
    outer = at / (unsigned)call.chunks;
    part = at - outer * (unsigned)call.chunks;
    count = (int)min(call.chunk, call.length - part * call.chunk);
    whole = count / call.height;
    rest = count - whole * call.height;
    places = holds(z, x) ? whole + (y < rest) : 0;
    start = (of(z) * call.length + place(0)) * call.lanes + lane(x);
  }
  INLINE const T* from(int k) const { return static_cast<const T*>(call.x) + start + k * (call.height * call.lanes); }
  INLINE T* to(int k) const { return static_cast<T*>(call.out) + start + k * (call.height * call.lanes); }
  INLINE int64 place(int k) const { return part * call.chunk + y + (int64)k * call.height; }

  // Of the block's lane (z, x, c): its outer block, where it is in that, whether there is one, its set of statistics.
  INLINE int64 of(int z) const { return (int64)outer * call.depth + z; }
  INLINE int64 lane(int x, int c = 0) const { return (tile * (int64)call.width + x) * V + c; }
  INLINE bool holds(int z, int x) const { return of(z) < call.outer && lane(x) < call.lanes; }
  INLINE int fold(int x, int c) const { return call.folds > 1 ? (int)lane(x, c) / (int)call.unfolded : 0; }
  INLINE int64 unfolded(int x, int c) const { return lane(x, c) - fold(x, c) * call.unfolded; }
  INLINE int64 set(int z, int x, int c) const { return of(z) * call.unfolded + unfolded(x, c); }

  INLINE double inverse() const { return count == call.chunk ? call.inverse : 1.0 / count; }
  INLINE Moments given(int z, int x, int c) const {
    const int64 at = call.given.rest_of(set(z, x, c));
    return {call.mean[at], call.var[at]};
  }
  template <int STEP> INLINE void keep(int z, int x, int c, const Moments& m, double variance) const {
    if (STEP == MOMENTS) {
      call.moments[(set(z, x, c) * call.chunks + part) * call.folds + fold(x, c)] = m;
    } else if (call.mean != nullptr) {
      call.mean[set(z, x, c)] = m.mean;
      call.var[set(z, x, c)] = variance;
    }
  }
};

// K places of a thread in registers, from where they come by N lanes.
template <class T, int V, int K> struct HeldColumns {
  enum { N = sizeof(T) == 2 && V > 1 ? 2 : 1 };
  const ColumnTask<T, V>& task;
  Vector<T, V> held[K];

  INLINE explicit HeldColumns(const ColumnTask<T, V>& task) : task(task) { load(0); }
  INLINE void load(int first) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      held[k] = {};
      if (first + k < task.places) held[k].load(task.from(first + k));
    }
  }
  INLINE void store(int first) const {
    T* to = task.to(first) + anew(0);  // else the offsets of the loads stay in registers all the time
    const int64 step = task.call.height * task.call.lanes + anew(0);
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (first + k < task.places) held[k].store(to + k * step);
  }
  template <class A> INLINE void values(int k, int i, A (&values)[N]) const { held[k].template part<N>(i).widened(values); }
  template <class A> INLINE void replace(int k, int i, const A (&values)[N]) {
    Vector<T, N> some;
    some.narrowed(values);
    held[k].template replace<N>(i, some);
  }
};

// One lane of a thread's, in memory.
template <class T, int V> struct ColumnInMemory {
  const ColumnTask<T, V>& task;
  int c, first = 0;

  INLINE void load(int first) { this->first = first; }
  template <class A> INLINE void values(int k, int, A (&values)[1]) const {
    values[0] = first + k < task.places ? (A)widen(task.from(first + k)[c]) : A(0);
  }
};

// Shared memory of a block: some numbers for each thread and each of its V lanes, and before them room to add up.
template <class B, int V> struct Slots {
  const ColumnsCall& call;
  double* totals;  // (parts * lanes, 2), where there are several parts
  B* first;        // (numbers, V, apart)
  int lanes, apart;
  float across;

  INLINE explicit Slots(const ColumnsCall& call) : call(call) {
    lanes = call.depth * V * call.width;
    totals = scratch<double>(BUFFER);
    first = scratch<B>(BUFFER + (call.parts > 1 ? call.parts * lanes * 2 * (int)sizeof(double) : 0));
    apart = blockDim.x + call.width;  // so that lanes c and c + 1 are not in the same banks
    across = 1.0f / call.width;
  }
  INLINE B& at(int number, int c, int thread) const { return first[(number * V + c) * apart + thread]; }
  // Of the block's lane (z, x, c): at y = 0.
  INLINE B& of(int number, int z, int x, int c) const { return at(number, c, z * call.width * call.height + x); }

  // f(z, x, c), in one thread for each of the block's lanes.
  template <class F> INLINE void each_lane(F f) const {
#pragma unroll 1
    for (int lane = threadIdx.x; lane < lanes; lane += blockDim.x) in_place(lane, f);
  }
  template <class F> INLINE void in_place(int lane, F f) const {
    const int row = (int)((lane + 0.5f) * across), z = row / V;  // lane / width, which would take longer
    f(z, lane - row * call.width, row - z * V);
  }
};

// What a thread knows of V lanes: the mean of its first K places, and sums around that. It is put into slots 0 to 2.
template <class A, int V> struct Sums {
  A around[V] = {}, sum[V] = {}, square[V] = {};

  // All places of a thread; where these are MANY, K of them after others.
  template <int K, int N, bool MANY, class Source, class B>
  INLINE void add(Source& source, int places, const Slots<B, V>& slots) {
    if constexpr (MANY) {
#pragma unroll 1
      for (int first = 0; first < places; first += K) {
        if (first > 0) source.load(first);
        add_some<K, N>(source, places - first, first == 0, [](int) {});
      }
#pragma unroll
      for (int c = 0; c < V; ++c) put(c, slots);
    } else {
      add_some<K, N>(source, places, true, [&](int c) { put(c, slots); });  // one after the other: it takes fewer registers
    }
  }

 private:
  template <class B> INLINE void put(int c, const Slots<B, V>& slots) const {
    slots.at(0, c, threadIdx.x) = around[c];
    slots.at(1, c, threadIdx.x) = sum[c];
    slots.at(2, c, threadIdx.x) = square[c];
  }
  template <int K, int N, class Source, class Done> INLINE void add_some(Source& source, int count, bool initial, Done done) {
    if (count >= K) {  // most are whole, and need no look at each place
      add_some<K, N, true>(source, K, initial, done);
    } else {
      add_some<K, N, false>(source, max(count, 0), initial, done);
    }
  }
  template <int K, int N, bool WHOLE, class Source, class Done>
  INLINE void add_some(Source& source, int count, bool initial, Done done) {
    const auto each = [&](int i, auto f) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (!WHOLE && k >= count) continue;
        A values[N];
        source.values(k, i, values);
#pragma unroll
        for (int n = 0; n < N; ++n) f(n, values[n]);
      }
    };
    const A inverse = WHOLE ? A(1) / K : A(1) / max(count, 1);
#pragma unroll
    for (int i = 0; i < V; i += N) {
      A sums[N] = {}, squares[N] = {};
      if (initial) {
        A front[N];
        source.values(0, i, front);
        each(i, [&](int n, A value) { sums[n] += value - front[n]; });
#pragma unroll
        for (int n = 0; n < N; ++n) {
          around[i + n] = front[n] + sums[n] * inverse;  // of a constant: itself
          sums[n] = 0;
        }
      }
      each(i, [&](int n, A value) {
        const A d = value - around[i + n];
        sums[n] += d;
        squares[n] = fused(d, d, squares[n]);
      });
#pragma unroll
      for (int n = 0; n < N; ++n) {
        sum[i + n] += sums[n];
        square[i + n] += squares[n];
        done(i + n);
      }
    }
  }
};

// The moments of each of the block's lanes from sums in slots 0 to 2: take(z, x, c, moments) in one thread each.
// take may write to this lane's slots. The block has to wait before others read them.
template <class B, int V, class Task, class Take>
INLINE void merge_lanes(const Slots<B, V>& slots, const Task& task, double inverse, Take take) {
  const ColumnsCall& call = slots.call;
  const int rows = call.parts == 1 ? call.height : (call.height + call.parts - 1) / call.parts;
  block_sync();
  const auto finish = [&](int z, int x, int c, double sum, double square) {
    const double mean = sum * inverse, m2 = square - sum * mean;
    take(z, x, c, Moments{(double)slots.of(0, z, x, c) + mean, m2 < 0 ? 0 : m2});
  };
#pragma unroll 1
  for (int i = threadIdx.x; i < slots.lanes * call.parts; i += blockDim.x) {
    const int part = call.parts == 1 ? 0 : i / slots.lanes, end = min(min(call.height, task.count), (part + 1) * rows);
    slots.in_place(i - part * slots.lanes, [&](int z, int x, int c) {
      const int top = z * call.width * call.height + x;
      const B base = slots.at(0, c, top);
      double sum = 0, square = 0;
#pragma unroll 4
      for (int y = part * rows; y < end; ++y) {
        const int at = top + y * call.width;
        const B n = task.whole + (y < task.rest), d = slots.at(0, c, at) - base, s = slots.at(1, c, at);
        sum += fused(n, d, s);
        square += fused(d, fused(n, d, 2 * s), slots.at(2, c, at));
      }
      if (call.parts == 1) {
        finish(z, x, c, sum, square);
      } else {
        slots.totals[2 * i] = sum;
        slots.totals[2 * i + 1] = square;
      }
    });
  }
  if (call.parts == 1) return;
  block_sync();
  slots.each_lane([&](int z, int x, int c) {
    const int lane = (z * V + c) * call.width + x;
    double sum = 0, square = 0;
    for (int part = 0; part < call.parts; ++part) {
      sum += slots.totals[2 * (part * slots.lanes + lane)];
      square += slots.totals[2 * (part * slots.lanes + lane) + 1];
    }
    finish(z, x, c, sum, square);
  });
}

// All of it, where a lane of the block is out of float's range: its moments are taken over again in double, and those results
// are computed in double. Lanes that float serves get the bits of `columns`.
template <class T, class W, int V, int K, int STEP> NOINLINE void columns_slowly(const ColumnsCall& call, unsigned block) {
  using A = typename Traits<T>::Real;
  const ColumnTask<T, V> task(call, block);
#pragma unroll 1
  for (int c = 0; c < V; ++c) {
    ColumnInMemory<T, V> column{task, c};
    Moments m = {};
    if constexpr (STEP == APPLY) {
      if (task.places > 0) m = task.given(task.z, task.x, c);
    } else {
      const double inverse = task.inverse();
      const Slots<double, 1> slots(call);
      const auto merged_in = [&](auto real) {
        column.load(0);
        Sums<decltype(real), 1>().template add<K, 1, STEP == MOMENTS>(column, task.places, slots);
        merge_lanes(slots, task, inverse, [&](int z, int x, int, const Moments& of) {
          slots.of(0, z, x, 0) = of.mean;
          slots.of(1, z, x, 0) = of.m2;
        });
        block_sync();
        const Moments result = {slots.of(0, task.z, task.x, 0), slots.of(1, task.z, task.x, 0)};
        block_sync();
        return result;
      };
      m = merged_in(A());
      const bool out_of_range = Traits<T>::can_leave_range && !in_range(m.m2, task.count);
      bool varied = false;  // a constant has no variance, and is no reason
      for (int k = 0; k < task.places; ++k)
        varied |= widen(task.from(k)[c]) != widen(task.from(0)[c - task.y * call.lanes]);
      if (block_any(varied && out_of_range)) {
        const Moments wide = merged_in(double());
        if (out_of_range) m = wide;
      }
      const double variance = m.m2 * inverse;
      if (task.places > 0 && task.y == 0) task.template keep<STEP>(task.z, task.x, c, m, variance);
      m.m2 = variance;
    }
    if constexpr (STEP != MOMENTS) {
      const double v = m.m2 + call.eps;
      const bool served = sizeof(A) == sizeof(double) || serves(m.mean, v);
      const Scale<A, Traits<T>::spare> scale(m.mean, v);
      const Scale<double, false> wide(m.mean, v);
      for (int k = 0; k < task.places; ++k) {
        const int64 own = call.by_length ? task.place(k) : task.unfolded(task.x, c);
        const A by = one_of(static_cast<const W*>(call.weight), own, A(1));
        const A plus = one_of(static_cast<const W*>(call.bias), own, A(-0.0));
        const A value = widen(task.from(k)[c]);
        T& to = task.to(k)[c];
        if (served) {
          narrow(fused(scale.template operator()<STEP>(value), by, plus), to);
        } else {
          narrow(fused(wide.template operator()<STEP>((double)value), (double)by, (double)plus), to);
        }
      }
    }
  }
}

// From the factors of each lane in the slots to results, some lanes of all places after others: so few registers are needed.
template <int STEP, bool BY_LENGTH, class W, class A, class T, int V, int K>
INLINE void apply_columns(HeldColumns<T, V, K>& columns, const Slots<A, V>& slots, const ColumnTask<T, V>& task) {
  constexpr int N = HeldColumns<T, V, K>::N;
  const auto* weight = static_cast<const W*>(task.call.weight);
  const auto* bias = static_cast<const W*>(task.call.bias);
#pragma unroll 1
  for (int first = 0; first < (STEP == APPLY ? task.places : min(task.places, 1)); first += K) {
    if (STEP == APPLY && first > 0) columns.load(first);
    A by[BY_LENGTH ? K : N], plus[BY_LENGTH ? K : N];
    if (BY_LENGTH)
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const bool there = first + k < task.places;
        by[k] = one_of(there ? weight : nullptr, task.place(first + k), A(1));
        plus[k] = one_of(there ? bias : nullptr, task.place(first + k), A(-0.0));
      }
#pragma unroll
    for (int i = 0; i < V; i += N) {
      Scale<A, Traits<T>::spare> scale[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        scale[n].hi = slots.of(0, task.z, task.x, i + n);
        scale[n].r = slots.of(1, task.z, task.x, i + n);
        scale[n].rest = slots.of(2, task.z, task.x, i + n);
        if (!Traits<T>::spare) scale[n].low = slots.of(3, task.z, task.x, i + n);
        if (BY_LENGTH) continue;
        by[n] = one_of(weight, task.unfolded(task.x, i + n), A(1));
        plus[n] = one_of(bias, task.unfolded(task.x, i + n), A(-0.0));
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
        A value[N];
        columns.values(k, i, value);
#pragma unroll
        for (int n = 0; n < N; ++n)
          value[n] = fused(scale[n].template operator()<STEP>(value[n]), by[BY_LENGTH ? k : n], plus[BY_LENGTH ? k : n]);
        columns.replace(k, i, value);
      }
    }
    columns.store(first);
  }
}

// Threads of a block at most, and blocks on a multiprocessor.
constexpr int column_threads(int held) { return held == 8 ? 128 : 256; }
constexpr int column_blocks(int vector, int held) { return held == 4 ? (vector > 4 ? 3 : 4) : held == 8 ? 5 : 2; }

template <class T, class W, int V, int K, int STEP>
__global__ void __launch_bounds__(column_threads(K), column_blocks(V, K)) columns(const GRID_CONSTANT ColumnsCall call) {
  using A = typename Traits<T>::Real;
  constexpr bool SPARE = Traits<T>::spare;
  const unsigned block = STEP == APPLY ? gridDim.x - 1 - blockIdx.x : blockIdx.x;  // what was read last is still in the L2
  const ColumnTask<T, V> task(call, block);
  HeldColumns<T, V, K> columns(task);
  const Slots<A, V> slots(call);
  bool left = false;  // whether float is left
  const auto scale = [&](int z, int x, int c, double mean, double v) {
    left |= sizeof(A) < sizeof(double) && !serves(mean, v);
    const Scale<A, SPARE> of(mean, v);
    slots.of(0, z, x, c) = of.hi;
    slots.of(1, z, x, c) = of.r;
    slots.of(2, z, x, c) = of.rest;
    if (!SPARE) slots.of(3, z, x, c) = of.low;
  };
  if constexpr (STEP == APPLY) {
    slots.each_lane([&](int z, int x, int c) {
      if (!task.holds(z, x)) return;
      const Moments m = task.given(z, x, c);
      scale(z, x, c, m.mean, m.m2 + call.eps);
    });
  } else {
    Sums<A, V>().template add<K, HeldColumns<T, V, K>::N, STEP == MOMENTS>(columns, task.places, slots);
    const double inverse = task.inverse();
    merge_lanes(slots, task, inverse, [&](int z, int x, int c, const Moments& m) {
      if (!task.holds(z, x)) return;
      const double variance = m.m2 * inverse;
      left |= Traits<T>::can_leave_range && !in_range(m.m2, task.count);
      task.template keep<STEP>(z, x, c, m, variance);
      if (STEP == FUSED) scale(z, x, c, m.mean, variance + call.eps);
    });
  }
  if (block_any(left)) return columns_slowly<T, W, V, K, STEP>(call, block);
  if constexpr (STEP != MOMENTS) {
    if (call.by_length) {
      apply_columns<STEP, true, W>(columns, slots, task);
    } else {
      apply_columns<STEP, false, W>(columns, slots, task);
    }
  }
}
