// CUDA's keywords and built-in functions, as far as integer kernels use them.
#pragma once

#include "races.h"
#include "threads.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__
// All of them lie in one section, which is filled with a pattern before each block.
#define __shared__ static __attribute__((section("cuda_shared"), used))
#define __constant__ static const

#define __syncthreads() emu::synchronize_block(__LINE__)

template <class T>
static inline T max(T a, T b) { return a > b ? a : b; }
template <class T>
static inline T min(T a, T b) { return a < b ? a : b; }

extern "C" {
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emu {

static size_t dynamic_shared_bytes;

// Shared memory as instructions address it; dynamic memory lies behind the static one.
// Aligned as the source declares it and no better: what needs more has to align itself.
static const unsigned kStaticBase = 1 << 20;
extern const unsigned kSharedAlignment;  // of the source that is compiled with this
static inline unsigned dynamic_base() { return (2 << 20) + kSharedAlignment; }

// What mapa adds for the memory of a block of the cluster, times one more than its rank.
static const unsigned kRankStep = 1 << 24;

static unsigned shared_address(const void* pointer) {
  const char* p = (const char*)pointer;
  if (p >= dynamic_shared && p <= dynamic_shared + dynamic_shared_bytes) {
    return dynamic_base() + (p - dynamic_shared);
  }
  if (p >= __start_cuda_shared && p <= __stop_cuda_shared) {
    return kStaticBase + (p - __start_cuda_shared);
  }
  fail("a pointer that is not into shared memory is used as one");
}

static char* shared_pointer(unsigned address, unsigned bytes, const char* what) {
  if (address % bytes) fail("%s: shared address not aligned to %u bytes", what, bytes);
  if (address >= dynamic_base() && address - dynamic_base() + bytes <= dynamic_shared_bytes) {
    return dynamic_shared + (address - dynamic_base());
  }
  size_t static_bytes = __stop_cuda_shared - __start_cuda_shared;
  if (address >= kStaticBase && address - kStaticBase + bytes <= static_bytes) {
    return __start_cuda_shared + (address - kStaticBase);
  }
  fail("%s: outside of shared memory, %lld bytes behind the start of its dynamic part (%zu bytes)",
       what, (long long)address - dynamic_base(), dynamic_shared_bytes);
}

static unsigned map_shared_address(unsigned address, unsigned rank) {
  if (rank >= blocks.size()) fail("mapa: block %u of a cluster of %u", rank, blocks.size());
  if (address >= kRankStep) fail("mapa: not an address in the block's own shared memory");
  return address + (rank + 1) * kRankStep;
}

// Of an address that mapa gave, or of one in the block's own memory.
static const char* cluster_pointer(unsigned address, unsigned bytes, const char* what) {
  if (address < kRankStep) return shared_pointer(address, bytes, what);
  Block& other = blocks[address / kRankStep - 1];
  if (other.finished == block_threads) fail("%s: the block has left the kernel", what);
  if (&other != &block() && other.read_before <= current->arrived) {
    other.read_before = current->arrived + 1;
  }
  const char* own = shared_pointer(address % kRankStep, bytes, what);
  return other.dynamic_shared + (own - dynamic_shared);
}

template <class T>
static T shuffle(unsigned mask, T value, int source, const char* what) {
  struct Operands {
    T value, result;
    int source;
  } mine = {value, value, source};
  collective(mask, what, &mine, [what](void** all, unsigned mask) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      Operands& lane = *(Operands*)all[i];
      if (!(mask >> lane.source & 1)) fail("%s: lane %d reads lane %d", what, i, lane.source);
      lane.result = ((Operands*)all[lane.source])->value;
    }
  });
  return mine.result;
}

template <class Reduce>
static unsigned reduce(unsigned mask, unsigned value, const char* what, Reduce two) {
  collective(mask, what, &value, [two](void** all, unsigned mask) {
    int first = __builtin_ctz(mask);
    unsigned total = *(unsigned*)all[first];
    for (int i = first + 1; i < 32; ++i) {
      if (mask >> i & 1) total = two(total, *(unsigned*)all[i]);
    }
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) *(unsigned*)all[i] = total;
    }
  });
  return value;
}

}  // namespace emu

static inline size_t __cvta_generic_to_shared(const void* p) { return emu::shared_address(p); }

static inline void __syncwarp(unsigned mask = ~0u) {
  unsigned& passed = emu::warp_barriers[emu::current->number / 32];
  emu::collective(mask, "__syncwarp", nullptr, [&passed](void**, unsigned) { ++passed; });
}
static inline unsigned __activemask() {
  const emu::Warp& warp = emu::warps[emu::current->number / 32];
  return warp.lanes & ~warp.finished;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  int lane = emu::lane();
  return emu::shuffle(mask, v, lane / width * width + (source & (width - 1)), "__shfl_sync");
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  int lane = emu::lane(), source = lane ^ bits;
  // A later segment is not read; an earlier one is.
  return emu::shuffle(mask, v, source / width > lane / width ? lane : source, "__shfl_xor_sync");
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  int lane = emu::lane(), source = lane - (int)delta;
  return emu::shuffle(mask, v, source < lane / width * width ? lane : source, "__shfl_up_sync");
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  int lane = emu::lane(), source = lane + (int)delta;
  int end = (lane / width + 1) * width;
  return emu::shuffle(mask, v, source >= end ? lane : source, "__shfl_down_sync");
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned bit = predicate ? 1u << emu::lane() : 0;
  return emu::reduce(mask, bit, "__ballot_sync", [](unsigned a, unsigned b) { return a | b; });
}
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }

#define EMU_REDUCE(NAME, T, EXPRESSION)                                                  \
  static inline T NAME(unsigned mask, T value) {                                         \
    return (T)emu::reduce(mask, (unsigned)value, #NAME, [](unsigned x, unsigned y) {     \
      T a = (T)x, b = (T)y;                                                              \
      return (unsigned)(EXPRESSION);                                                     \
    });                                                                                  \
  }
EMU_REDUCE(__reduce_add_sync, int, a + b)
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_and_sync, unsigned, a & b)
EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef EMU_REDUCE

template <class T>
static inline T __ldg(const T* p) { return *p; }
template <class T>
static inline T __ldcg(const T* p) { return *p; }
template <class T>
static inline T __ldcs(const T* p) { return *p; }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __mulhi(int a, int b) { return ((long long)a * b) >> 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return ((unsigned long long)a * b) >> 32;
}
static inline long long __mul64hi(long long a, long long b) { return ((__int128)a * b) >> 64; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return ((unsigned __int128)a * b) >> 64;
}
static inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned nibble = selector >> 4 * i & 15, byte = bytes >> 8 * (nibble & 7) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return ((unsigned long long)high << 32 | low) << (shift & 31) >> 32;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return ((unsigned long long)high << 32 | low) >> (shift & 31);
}
static inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
  return ((unsigned long long)high << 32 | low) >> (shift < 32 ? shift : 32);
}
static inline int __viaddmax_s32(int a, int b, int c) { return max(a + b, c); }
static inline int __viaddmin_s32(int a, int b, int c) { return min(a + b, c); }
static inline int __vimax3_s32(int a, int b, int c) { return max(max(a, b), c); }
static inline int __vimin3_s32(int a, int b, int c) { return min(min(a, b), c); }
static inline int __viaddmax_s32_relu(int a, int b, int c) { return max(max(a + b, c), 0); }
static inline int __vimin_s32_relu(int a, int b) { return max(min(a, b), 0); }

namespace emu {

template <class A, class B>
static unsigned dot4(unsigned a, unsigned b, unsigned total) {
  for (int i = 0; i < 4; ++i) total += (int)(A)(a >> 8 * i) * (int)(B)(b >> 8 * i);
  return total;
}

}  // namespace emu

// TVM's code defines the mixed forms itself.
static inline int __dp4a(int a, int b, int c) { return emu::dot4<int8_t, int8_t>(a, b, c); }
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  return emu::dot4<uint8_t, uint8_t>(a, b, c);
}

static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T>
static inline T atomicAdd(T* p, T v) { T old = *p; *p = old + v; return old; }
template <class T>
static inline T atomicMax(T* p, T v) { T old = *p; *p = max(old, v); return old; }
