// A CUDA device in one CPU thread, in place of backends/cupy_backend/device.cuh, so that the kernels run without a GPU.
//
// Each CUDA thread is a fiber. It runs until it waits for its warp, block or cluster; then another one that can go on does:
// of the same warp while there is one, so that warps run far ahead of each other, and then of the next warp or the one
// before; or any at random. A missing barrier shows as a wrong result in one of these orders. Waiting for what never comes
// ends in an error. Shared memory is NaN before a block writes it and after it has left. Products and sums are not
// contracted, as in the GPU build.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define INLINE inline
#define NOINLINE inline
#define GRID_CONSTANT
#define CLUSTERS

typedef long long int64;
using std::fabs;
using std::max;
using std::min;

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

template <class To, class From> To as(From v) {
  To to;
  static_assert(sizeof(to) == sizeof(v));
  memcpy(&to, &v, sizeof(v));
  return to;
}

INLINE float widen(float v) { return v; }
INLINE double widen(double v) { return v; }
INLINE float widen(bf16 v) { return as<float>((unsigned)v.bits << 16); }
INLINE float widen(f16 v) { return (float)as<_Float16>(v.bits); }
INLINE void narrow(float v, float& element) { element = v; }
INLINE void narrow(double v, float& element) { element = (float)v; }
INLINE void narrow(double v, double& element) { element = v; }
INLINE void narrow(float v, f16& element) { element.bits = as<unsigned short>((_Float16)v); }
INLINE void narrow(float v, bf16& element) {
  const unsigned bits = as<unsigned>(v), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  element.bits = (unsigned short)((v == v ? rounded : bits | 0x400000u) >> 16);
}
INLINE void narrow(double v, f16& element) { narrow((float)v, element); }
INLINE void narrow(double v, bf16& element) { narrow((float)v, element); }
template <class T> void widen_pair(unsigned pair, float& low, float& high) {
  low = widen(T{(unsigned short)pair});
  high = widen(T{(unsigned short)(pair >> 16)});
}
template <class T> unsigned narrow_pair(float low, float high) {
  T a, b;
  narrow(low, a);
  narrow(high, b);
  return a.bits | (unsigned)b.bits << 16;
}
INLINE float reciprocal_root(float v) { return 1 / std::sqrt(v); }
INLINE int64 anew(int64 v) { return v; }
INLINE float fused(float a, float b, float c) { return std::fmaf(a, b, c); }
INLINE double fused(double a, double b, double c) { return std::fma(a, b, c); }

namespace device {

struct Dim { unsigned x; };
struct Barrier { int members = 0, waiting = 0; long generation = 0; bool any = false, result = false; };
struct Block {
  std::vector<char> shared;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<double> slots;
  unsigned left = 0;  // threads that have ended
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Dim thread, block;
  Block* of;
  Barrier* waits = nullptr;
  long generation = 0;
  bool done = false;
};

inline ucontext_t scheduler;
inline Fiber* current;
inline Dim block_size, grid_size;
inline std::vector<Block> blocks;  // of the cluster that runs
inline Barrier cluster;
inline void (*body)(void*);
inline const uintptr_t* readable;  // first and last byte of each array, widened to 16-byte boundaries
inline int readables;
inline long read_outside;  // times that something else was read
inline void* arguments;

inline bool wait(Barrier& barrier, bool flag = false) {
  barrier.any |= flag;
  const long generation = barrier.generation;
  if (++barrier.waiting == barrier.members) {
    barrier.waiting = 0;
    barrier.result = barrier.any;
    barrier.any = false;
    ++barrier.generation;
  } else {
    current->waits = &barrier;
    current->generation = generation;
    swapcontext(&current->context, &scheduler);
    current->waits = nullptr;
  }
  return barrier.result;
}

inline void enter() {
  body(arguments);
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

// Run one cluster to its end. Returns false if threads wait for each other for ever.
inline bool run_cluster(std::vector<Fiber>& fibers, int order, unsigned& random) {
  const size_t size = fibers.size(), warps = size / 32 + (size % 32 != 0);
  size_t left = size, warp = order == 1 ? warps - 1 : 0, idle = 0;
  const auto step = [&](Fiber& fiber) {
    if (fiber.done || (fiber.waits != nullptr && fiber.waits->generation == fiber.generation)) return false;
    current = &fiber;
    swapcontext(&scheduler, &fiber.context);
    left -= fiber.done;
    if (fiber.done && ++fiber.of->left == block_size.x) std::fill(fiber.of->shared.begin(), fiber.of->shared.end(), (char)0xff);
    return true;
  };
  while (left > 0) {
    bool ran = false;
    if (order == 2) {
      random = random * 1664525u + 1013904223u;
      ran = step(fibers[(random >> 8) % size]);
    } else {
      for (bool again = true; again; ran |= again) {
        again = false;
        for (size_t i = 32 * warp; i < std::min(size, 32 * warp + 32); ++i) again |= step(fibers[i]);
      }
      warp = (warp + (order == 0 ? 1 : warps - 1)) % warps;
    }
    idle = ran ? 0 : idle + 1;
    if (idle > 64 * size + 1024) return false;
  }
  return true;
}

inline int launch(void (*kernel)(void*), void* values, unsigned grid, unsigned block, unsigned in_cluster, size_t shared,
                  int order) {
  constexpr size_t STACK = 128 * 1024;
  body = kernel, arguments = values, block_size = {block}, grid_size = {grid};
  std::vector<Fiber> fibers(block * in_cluster);
  for (auto& fiber : fibers) fiber.stack.reset(new char[STACK]);
  unsigned random = 1;
  for (unsigned first = 0; first < grid; first += in_cluster) {
    blocks.assign(in_cluster, {});
    cluster = {(int)(block * in_cluster)};
    for (auto& b : blocks) {
      b.shared.assign(shared, (char)0xff);
      b.all.members = block;
      b.slots.resize(block);
      b.warps.resize((block + 31) / 32);
      for (size_t w = 0; w < b.warps.size(); ++w) b.warps[w].members = std::min(32u, block - 32 * (unsigned)w);
    }
    for (size_t i = 0; i < fibers.size(); ++i) {
      Fiber& fiber = fibers[i];
      fiber.thread = {(unsigned)(i % block)}, fiber.block = {(unsigned)(first + i / block)}, fiber.of = &blocks[i / block];
      fiber.waits = nullptr, fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = STACK;
      makecontext(&fiber.context, enter, 0);
    }
    if (!run_cluster(fibers, order, random)) return 1;
  }
  return 0;
}

template <auto KERNEL, class... P, size_t... I> void call(void (*)(P...), void** values, std::index_sequence<I...>) {
  KERNEL(*static_cast<P*>(values[I])...);
}
template <auto KERNEL, class... P> void unpack(void (*kernel)(P...), void* values) {
  call<KERNEL>(kernel, static_cast<void**>(values), std::index_sequence_for<P...>());
}
template <class... P> constexpr int size_of(void (*)(P...), int i) {
  const int sizes[] = {(int)sizeof(P)...};
  return i < (int)sizeof...(P) ? sizes[i] : -1;
}

}  // namespace device

#define threadIdx (device::current->thread)
#define blockIdx (device::current->block)
#define blockDim (device::block_size)
#define gridDim (device::grid_size)

template <class Bits> INLINE Bits load_whole(const Bits* from) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from);
  if (at % sizeof(Bits)) abort();
  bool found = false;
  for (int i = 0; i < device::readables && !found; ++i)
    found = device::readable[2 * i] <= at && at + sizeof(Bits) - 1 <= device::readable[2 * i + 1];
  if (found) return *from;
  ++device::read_outside;
  return Bits();
}
template <class Bits> INLINE void store_whole(Bits* to, const Bits& bits) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Bits)) abort();  // as a GPU would
  *to = bits;
}
INLINE void block_sync() { device::wait(device::current->of->all); }
INLINE void warp_sync() { device::wait(device::current->of->warps[threadIdx.x / 32]); }
INLINE bool warp_any(bool v) { return device::wait(device::current->of->warps[threadIdx.x / 32], v); }
INLINE bool block_any(bool v) { return device::wait(device::current->of->all, v); }
INLINE void cluster_arrive() {}
INLINE void cluster_wait() { device::wait(device::cluster); }
INLINE double shuffle_xor(double v, int step) {
  device::Block& block = *device::current->of;
  device::Barrier& warp = block.warps[threadIdx.x / 32];
  block.slots[threadIdx.x] = v;
  device::wait(warp);
  const double other = block.slots[threadIdx.x ^ step];
  device::wait(warp);
  return other;
}
template <class S> INLINE S* scratch(int offset) {
  if (offset + sizeof(S) > device::current->of->shared.size()) abort();
  return reinterpret_cast<S*>(device::current->of->shared.data() + offset);
}
template <class S> void tell(S* here, const S& value, int rank) {
  const ptrdiff_t offset = reinterpret_cast<const char*>(here) - device::current->of->shared.data();
  memcpy(device::blocks[rank].shared.data() + offset, &value, sizeof(value));
}

// What the tests call, for the kernel of that name.
#define DEVICE_ENTRY(...)                                                                                                \
  extern "C" long device_read_outside() { return device::read_outside; }                                                 \
  extern "C" int device_launch(void** values, unsigned grid, unsigned block, unsigned in_cluster, size_t shared,         \
                               int order, const uintptr_t* readable, int readables) {                                    \
    device::readable = readable, device::readables = readables, device::read_outside = 0;                                \
    const auto kernel = [](void* v) { device::unpack<__VA_ARGS__>(__VA_ARGS__, v); };                                    \
    return device::launch(kernel, values, grid, block, in_cluster, shared, order);                                       \
  }                                                                                                                      \
  extern "C" int device_parameter_size(int i) { return device::size_of(__VA_ARGS__, i); }
