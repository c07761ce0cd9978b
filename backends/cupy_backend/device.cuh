// What the kernels ask of the GPU, and nothing else: element types, warp shuffles, shared memory, clusters.
// A test puts another file in this one's place and runs the same kernels on a CPU (tests/cuda_on_cpu.h).

typedef long long int64;

struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

#define INLINE __device__ __forceinline__

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

INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
INLINE double fused(double a, double b, double c) { return fma(a, b, c); }

// A store that the compiler does not take apart.
template <class Bits> INLINE void store_whole(Bits* to, const Bits& bits) { __stwb(to, bits); }

INLINE double shuffle_xor(double v, int step) { return __shfl_xor_sync(0xffffffffu, v, step); }
INLINE bool block_any(bool v) { return __syncthreads_or(v); }

// Dynamic shared memory, from an offset in bytes.
template <class S> INLINE S* scratch(int offset) {
  extern __shared__ uint4 shared_memory[];  // aligned to 16 bytes
  return reinterpret_cast<S*>(reinterpret_cast<char*>(shared_memory) + offset);
}

#if __CUDA_ARCH__ >= 900
INLINE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A double in the shared memory of another block of the cluster.
INLINE double remote(const double* here, int rank) {
  unsigned there;
  double v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((unsigned)__cvta_generic_to_shared(here)), "r"(rank));
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(v) : "r"(there) : "memory");
  return v;
}
#endif
