// What the kernels ask of the GPU, and nothing else: element types, warp shuffles, shared memory, clusters.
// A test puts another file in this one's place and runs the same kernels on a CPU (tests/cuda_on_cpu.h).

typedef long long int64;

struct f16 { static constexpr bool IEEE = true; unsigned short bits; };
struct bf16 { static constexpr bool IEEE = false; unsigned short bits; };

#define INLINE __device__ __forceinline__
#define NOINLINE __device__ __noinline__
#define GRID_CONSTANT __grid_constant__  // an argument that may be passed on by reference without a copy

// Elements to float, exactly.
INLINE float widen(float v) { return v; }
INLINE double widen(double v) { return v; }
INLINE float widen(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }
INLINE float widen(f16 v) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
}

// Results to elements, rounded to nearest even.
INLINE void narrow(float v, float& element) { element = v; }
INLINE void narrow(double v, float& element) { element = (float)v; }
INLINE void narrow(double v, double& element) { element = v; }
INLINE void narrow(float v, f16& element) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(element.bits) : "f"(v)); }
INLINE void narrow(float v, bf16& element) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(element.bits) : "f"(v));
#else
  const unsigned bits = __float_as_uint(v), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  element.bits = (unsigned short)((v == v ? rounded : bits | 0x400000u) >> 16);
#endif
}
INLINE void narrow(double v, f16& element) { narrow((float)v, element); }
INLINE void narrow(double v, bf16& element) { narrow((float)v, element); }

// Halves by twos, the first in the low bits.
template <class T> INLINE void widen_pair(unsigned pair, float& low, float& high);
template <> INLINE void widen_pair<bf16>(unsigned pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000u);
}
template <> INLINE void widen_pair<f16>(unsigned pair, float& low, float& high) {
  asm("{.reg .f16 a, b;\n\tmov.b32 {a, b}, %2;\n\tcvt.f32.f16 %0, a;\n\tcvt.f32.f16 %1, b;}"
      : "=f"(low), "=f"(high)
      : "r"(pair));
}
template <class T> INLINE unsigned narrow_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
  unsigned pair;
  if constexpr (T::IEEE) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  T a, b;
  narrow(low, a);
  narrow(high, b);
  return a.bits | (unsigned)b.bits << 16;
#endif
}

// The same number, which the compiler does not know: what is made of it is computed anew, rather than kept.
INLINE int64 anew(int64 v) {
  asm volatile("" : "+l"(v));
  return v;
}

INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
INLINE double fused(double a, double b, double c) { return fma(a, b, c); }

INLINE float reciprocal_root(float v) { return rsqrtf(v); }

template <class Bits> INLINE Bits load_whole(const Bits* from) { return *from; }

// A store that the compiler does not take apart. (`__stwb` takes 3% of the speed of it all.)
template <class Bits> INLINE void store_whole(Bits* to, const Bits& bits) { *to = bits; }
INLINE void store_whole(uint4* to, const uint4& bits) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w));
}

INLINE double shuffle_xor(double v, int step) { return __shfl_xor_sync(0xffffffffu, v, step); }
INLINE void warp_sync() { __syncwarp(); }
INLINE void block_sync() { __syncthreads(); }
INLINE bool warp_any(bool v) { return __any_sync(0xffffffffu, v); }
INLINE bool block_any(bool v) { return __syncthreads_or(v); }

// Dynamic shared memory, from an offset in bytes.
template <class S> INLINE S* scratch(int offset) {
  extern __shared__ uint4 shared_memory[];  // aligned to 16 bytes
  return reinterpret_cast<S*>(reinterpret_cast<char*>(shared_memory) + offset);
}

#if __CUDA_ARCH__ >= 900
// A barrier of a cluster in two halves, between which a thread may do other work.
INLINE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
INLINE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Write 16 bytes to the same place in the shared memory of another block of the cluster.
template <class S> INLINE void tell(S* here, const S& value, int rank) {
  unsigned there;
  uint4 bits;
  static_assert(sizeof(bits) == sizeof(value));
  memcpy(&bits, &value, sizeof(bits));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((unsigned)__cvta_generic_to_shared(here)), "r"(rank));
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(there), "r"(bits.x), "r"(bits.y), "r"(bits.z),
               "r"(bits.w)
               : "memory");
}
#endif
