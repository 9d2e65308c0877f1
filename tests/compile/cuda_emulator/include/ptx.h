// PTX instructions: `asm("name ...")` becomes emu::ptx::name_with_underscores(operands in order).
// Layouts and semantics after the PTX ISA manual, sections "Matrix Fragments for mma.m8n8k16",
// "... for mma.m16n8k32", ldmatrix, cp.async, dp4a, cvt.pack, griddepcontrol and wgmma ("Matrix Descriptor Format").
#pragma once

#include "functions.h"

namespace emu {

// Registers are 8 rows or columns of 4 bytes a lane; those of a go through the rows first.
template <class A, class B, int M, int K>
__attribute__((no_sanitize("undefined", "thread"), optimize("O3"))) static void mma(void** all, unsigned mask) {
  constexpr int kBlocks = M / 8;
  struct Operands {
    unsigned d[2 * kBlocks], a[kBlocks * K / 16], b[K / 16];
  };
  if (mask != ~0u) fail("mma: only lanes %#x of the warp", mask);
  int16_t left[M][K], right[8][K];  // right by columns
  for (int i = 0; i < 32; ++i) {
    const Operands& lane = *(Operands*)all[i];
    int group = i / 4, thread = i % 4;
    for (int byte = 0; byte < 4; ++byte) {
      int k = 4 * thread + byte;
      for (int r = 0; r < kBlocks * K / 16; ++r) {
        left[group + 8 * (r % kBlocks)][k + 16 * (r / kBlocks)] = (A)(lane.a[r] >> 8 * byte);
      }
      for (int r = 0; r < K / 16; ++r) right[group][k + 16 * r] = (B)(lane.b[r] >> 8 * byte);
    }
  }
  for (int i = 0; i < 32; ++i) {
    Operands& lane = *(Operands*)all[i];
    for (int r = 0; r < 2 * kBlocks; ++r) {
      const int16_t* row = left[i / 4 + 8 * (r / 2)];
      const int16_t* column = right[2 * (i % 4) + r % 2];
      int sum = 0;
      for (int k = 0; k < K; ++k) sum += row[k] * column[k];
      lane.d[r] += sum;
    }
  }
}

struct LdmatrixOperands {
  unsigned address, r[4];
};

template <int Count, bool Transposed>
EMU_UNCHECKED static void ldmatrix(void** all, unsigned mask) {
  const Thread* lanes = &threads[current->number / 32 * 32];
  if (mask != ~0u) fail("ldmatrix: only lanes %#x of the warp", mask);
  for (int matrix = 0; matrix < Count; ++matrix) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row) {
      unsigned address = ((LdmatrixOperands*)all[8 * matrix + row])->address;
      const char* from = shared_pointer(address, 16, "ldmatrix");
      EMU_NOTE(lanes[8 * matrix + row], from, 16, false);
      memcpy(elements[row], from, 16);
    }
    for (int i = 0; i < 32; ++i) {
      int row = i / 4, column = 2 * (i % 4);
      unsigned low = Transposed ? elements[column][row] : elements[row][column];
      unsigned high = Transposed ? elements[column + 1][row] : elements[row][column + 1];
      ((LdmatrixOperands*)all[i])->r[matrix] = high << 16 | low;
    }
  }
}

static unsigned char async_poison;

EMU_UNCHECKED static void start_copy(unsigned target, const void* source, int size, int bytes) {
  if ((uintptr_t)source % size) fail("cp.async: source not aligned to %d bytes", size);
  if (bytes < 0 || bytes > size) fail("cp.async: %d of %d bytes", bytes, size);
  Thread& thread = *current;
  if (thread.issued - thread.landed == kCopies) fail("cp.async: %u copies in flight", kCopies);
  char* to = shared_pointer(target, size, "cp.async");
  thread.copies[thread.issued++ % kCopies] = {to, (const char*)source, bytes, size, thread.groups};
  if (bytes) EMU_NOTE(thread, source, bytes, false);
  // Until it is waited for, nobody may count on the old bytes, nor on the new ones.
  EMU_NOTE(thread, to, size, true);
  memset(to, async_poison, size);
}

EMU_UNCHECKED static void wait_for_copies(unsigned pending) {
  Thread& thread = *current;
  while (thread.landed != thread.issued) {
    const Copy& copy = thread.copies[thread.landed % kCopies];
    if (copy.group + pending >= thread.groups) return;
    EMU_NOTE(thread, copy.target, copy.size, true);
    memset(copy.target, 0, copy.size);
    memcpy(copy.target, copy.source, copy.bytes);
    ++thread.landed;
  }
}

// 16 bytes, from byte k on, of a row of the tile that a descriptor of wgmma names.
EMU_UNCHECKED static const char* tile_chunk(uint64_t descriptor, int row, int k) {
  int swizzle = descriptor >> 62;
  if (!swizzle) fail("wgmma: only swizzled tiles are emulated");
  unsigned chunks = 16 >> swizzle, bytes = 16 * chunks;  // of a row
  unsigned address = (dynamic_base() & ~0x3ffff) + ((descriptor & 0x3fff) << 4);
  unsigned eight_rows = (descriptor >> 32 & 0x3fff) << 4;
  address += row / 8 * eight_rows + row % 8 * bytes + k;
  address ^= (address >> 7 & (chunks - 1)) << 4;
  const char* p = shared_pointer(address, 16, "wgmma");
  EMU_NOTE(*current, p, 16, false);
  return p;
}

__attribute__((no_sanitize("undefined", "thread"), optimize("O3"))) static void multiply(
    const Multiplication& work) {
  int16_t left[2][32];
  int group = lane() / 4, column = 2 * (lane() % 4), first = current->number / 32 % 4 * 16;
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 32; ++k) {
      left[half][k] = (uint8_t)tile_chunk(work.a, first + group + 8 * half, k & 16)[k & 15];
    }
  }
  for (int block = 0; block < work.columns / 8; ++block) {
    for (int i = 0; i < 2; ++i) {
      int8_t right[32];
      for (int k = 0; k < 32; k += 16) {
        memcpy(right + k, tile_chunk(work.b, 8 * block + column + i, k), 16);
      }
      for (int half = 0; half < 2; ++half) {
        int sum = 0;
        for (int k = 0; k < 32; ++k) sum += left[half][k] * right[k];
        work.results[4 * block + 2 * half + i] += sum;
      }
    }
  }
}

// As late as allowed, so that a slot which is filled again too early gives wrong results.
static void wait_for_multiplications(unsigned pending) {
  Thread& thread = *current;
  while (thread.finished != thread.started) {
    const Multiplication& work = thread.multiplications[thread.finished % kMultiplications];
    if (work.group + pending >= thread.multiplication_groups) return;
    multiply(work);
    ++thread.finished;
  }
}

template <int Columns, class... Operands>
static inline void start_multiplication(Operands&&... operands) {
  const int count = Columns / 2;
  int* registers[] = {(int*)&operands...};
  uint64_t values[] = {(uint64_t)operands...};
  static_assert(sizeof...(operands) == count + 3, "wgmma: number of operands");
  for (int i = 0; i < count; ++i) {
    if (registers[i] != registers[0] + i) fail("wgmma: results that are not of one array");
  }
  if (values[count + 2] != 1) fail("wgmma: scale-d that is not 1");
  Thread& thread = *current;
  if (thread.started - thread.finished == kMultiplications) {
    fail("wgmma: %u multiplications in flight", kMultiplications);
  }
  thread.multiplications[thread.started++ % kMultiplications] = {
      registers[0], Columns, values[count], values[count + 1], thread.multiplication_groups};
}

static unsigned saturated(unsigned x, int low, int high) {
  return (unsigned)max(low, min((int)x, high));
}

namespace ptx {

#define EMU_MMA(NAME, A, B)                                                                       \
  template <class R>                                                                              \
  static inline void NAME(R& d0, R& d1, R& d2, R& d3, unsigned a0, unsigned a1, unsigned a2,      \
                          unsigned a3, unsigned b0, unsigned b1, unsigned c0, unsigned c1,        \
                          unsigned c2, unsigned c3) {                                             \
    unsigned operands[] = {c0, c1, c2, c3, a0, a1, a2, a3, b0, b1};                               \
    collective(~0u, #NAME, operands, mma<A, B, 16, 32>);                                          \
    d0 = operands[0], d1 = operands[1], d2 = operands[2], d3 = operands[3];                       \
  }
EMU_MMA(mma_sync_aligned_m16n8k32_row_col_s32_u8_s8_s32, uint8_t, int8_t)
EMU_MMA(mma_sync_aligned_m16n8k32_row_col_s32_s8_s8_s32, int8_t, int8_t)
EMU_MMA(mma_sync_aligned_m16n8k32_row_col_s32_u8_u8_s32, uint8_t, uint8_t)
EMU_MMA(mma_sync_aligned_m16n8k32_row_col_s32_s8_u8_s32, int8_t, uint8_t)
#undef EMU_MMA

#define EMU_MMA_8(NAME, A, B)                                                                     \
  template <class R>                                                                              \
  static inline void NAME(R& d0, R& d1, unsigned a, unsigned b, unsigned c0, unsigned c1) {       \
    unsigned operands[] = {c0, c1, a, b};                                                         \
    collective(~0u, #NAME, operands, mma<A, B, 8, 16>);                                           \
    d0 = operands[0], d1 = operands[1];                                                           \
  }
EMU_MMA_8(mma_sync_aligned_m8n8k16_row_col_s32_u8_s8_s32, uint8_t, int8_t)
EMU_MMA_8(mma_sync_aligned_m8n8k16_row_col_s32_s8_s8_s32, int8_t, int8_t)
#undef EMU_MMA_8

#define EMU_LDMATRIX(SUFFIX, TRANSPOSED)                                                          \
  template <class R>                                                                              \
  static inline void ldmatrix_sync_aligned_m8n8_x1##SUFFIX(R& r0, unsigned address) {             \
    LdmatrixOperands mine = {address, {}};                                                        \
    collective(~0u, "ldmatrix.x1" #SUFFIX, &mine, ldmatrix<1, TRANSPOSED>);                       \
    r0 = mine.r[0];                                                                               \
  }                                                                                               \
  template <class R>                                                                              \
  static inline void ldmatrix_sync_aligned_m8n8_x2##SUFFIX(R& r0, R& r1, unsigned address) {      \
    LdmatrixOperands mine = {address, {}};                                                        \
    collective(~0u, "ldmatrix.x2" #SUFFIX, &mine, ldmatrix<2, TRANSPOSED>);                       \
    r0 = mine.r[0], r1 = mine.r[1];                                                               \
  }                                                                                               \
  template <class R>                                                                              \
  static inline void ldmatrix_sync_aligned_m8n8_x4##SUFFIX(R& r0, R& r1, R& r2, R& r3,            \
                                                           unsigned address) {                    \
    LdmatrixOperands mine = {address, {}};                                                        \
    collective(~0u, "ldmatrix.x4" #SUFFIX, &mine, ldmatrix<4, TRANSPOSED>);                       \
    r0 = mine.r[0], r1 = mine.r[1], r2 = mine.r[2], r3 = mine.r[3];                               \
  }
EMU_LDMATRIX(_shared_b16, false)
EMU_LDMATRIX(_trans_shared_b16, true)
#undef EMU_LDMATRIX

static inline void cp_async_cg_shared_global(unsigned to, const void* from, int size, int bytes) {
  if (size != 16) fail("cp.async.cg copies 16 bytes, not %d", size);
  start_copy(to, from, size, bytes);
}
static inline void cp_async_cg_shared_global(unsigned to, const void* from, int size) {
  cp_async_cg_shared_global(to, from, size, size);
}
static inline void cp_async_ca_shared_global(unsigned to, const void* from, int size, int bytes) {
  start_copy(to, from, size, bytes);
}
static inline void cp_async_ca_shared_global(unsigned to, const void* from, int size) {
  start_copy(to, from, size, size);
}
static inline void cp_async_commit_group() { ++current->groups; }
static inline void cp_async_wait_group(unsigned pending) { wait_for_copies(pending); }
static inline void cp_async_wait_all() {
  cp_async_commit_group();
  wait_for_copies(0);
}

#define EMU_WGMMA(NAME, COLUMNS)                              \
  template <class... Operands>                                \
  static inline void NAME(Operands&&... operands) {           \
    collective(~0u, #NAME, nullptr, [](void**, unsigned) {}); \
    start_multiplication<COLUMNS>(operands...);               \
  }
EMU_WGMMA(wgmma_mma_async_sync_aligned_m64n32k32_s32_u8_s8, 32)
EMU_WGMMA(wgmma_mma_async_sync_aligned_m64n64k32_s32_u8_s8, 64)
EMU_WGMMA(wgmma_mma_async_sync_aligned_m64n96k32_s32_u8_s8, 96)
EMU_WGMMA(wgmma_mma_async_sync_aligned_m64n128k32_s32_u8_s8, 128)
EMU_WGMMA(wgmma_mma_async_sync_aligned_m64n192k32_s32_u8_s8, 192)
EMU_WGMMA(wgmma_mma_async_sync_aligned_m64n256k32_s32_u8_s8, 256)
#undef EMU_WGMMA
static inline void wgmma_fence_sync_aligned() {}
static inline void wgmma_commit_group_sync_aligned() { ++current->multiplication_groups; }
static inline void wgmma_wait_group_sync_aligned(unsigned pending) {
  wait_for_multiplications(pending);
}
static inline void fence_proxy_async_shared_cta() {}
static inline void fence_proxy_async() {}

#define EMU_DP4A(NAME, A, B)                                              \
  template <class R>                                                      \
  static inline void NAME(R& d, unsigned a, unsigned b, unsigned c) {     \
    d = dot4<A, B>(a, b, c);                                              \
  }
EMU_DP4A(dp4a_u32_s32, uint8_t, int8_t)
EMU_DP4A(dp4a_s32_u32, int8_t, uint8_t)
EMU_DP4A(dp4a_s32_s32, int8_t, int8_t)
EMU_DP4A(dp4a_u32_u32, uint8_t, uint8_t)
#undef EMU_DP4A

template <class R>
static inline void cvt_pack_sat_u8_s32_b32(R& d, unsigned a, unsigned b, unsigned c) {
  d = c << 16 | saturated(a, 0, 255) << 8 | saturated(b, 0, 255);
}
template <class R>
static inline void cvt_pack_sat_s8_s32_b32(R& d, unsigned a, unsigned b, unsigned c) {
  d = c << 16 | (saturated(a, -128, 127) & 255) << 8 | (saturated(b, -128, 127) & 255);
}
template <class R>
static inline void cvt_pack_sat_s16_s32(R& d, unsigned a, unsigned b) {
  d = saturated(a, -32768, 32767) << 16 | (saturated(b, -32768, 32767) & 65535);
}
template <class R>
static inline void cvt_pack_sat_u16_s32(R& d, unsigned a, unsigned b) {
  d = saturated(a, 0, 65535) << 16 | saturated(b, 0, 65535);
}

template <class... R>
EMU_UNCHECKED static inline void load_global(const void* source, R&... r) {
  const char* p = (const char*)source;
  const size_t bytes = (sizeof(R) + ...);
  if ((uintptr_t)p % bytes) fail("ld.global: not aligned to %zu bytes", bytes);
  EMU_NOTE(*current, p, bytes, false);
  ((memcpy(&r, p, sizeof r), p += sizeof r), ...);
}
template <class R>
static inline void ld_global_u16(R& r, const void* source) {
  load_global(source, r);
}
template <class R>
static inline void ld_global_b32(R& r, const void* source) {
  load_global(source, r);
}
template <class R>
static inline void ld_global_v2_b32(R& r0, R& r1, const void* source) {
  load_global(source, r0, r1);
}
template <class R>
static inline void ld_global_v4_b32(R& r0, R& r1, R& r2, R& r3, const void* source) {
  load_global(source, r0, r1, r2, r3);
}
static inline void griddepcontrol_launch_dependents() {}
static inline void griddepcontrol_wait() { current->grid_waited = true; }

template <class... R>
EMU_UNCHECKED static inline void load_shared(unsigned address, R&... r) {
  const char* p = shared_pointer(address, 4 * sizeof...(R), "ld.shared");
  EMU_NOTE(*current, p, 4 * sizeof...(R), false);
  ((memcpy(&r, p, 4), p += 4), ...);
}
template <class... R>
EMU_UNCHECKED static inline void store_shared(unsigned address, R... r) {
  char* p = shared_pointer(address, 4 * sizeof...(R), "st.shared");
  EMU_NOTE(*current, p, 4 * sizeof...(R), true);
  ((memcpy(p, &r, 4), p += 4), ...);
}
template <class R>
static inline void ld_shared_b32(R& r, unsigned address) {
  load_shared(address, r);
}
template <class R>
static inline void ld_shared_v2_b32(R& r0, R& r1, unsigned address) {
  load_shared(address, r0, r1);
}
template <class R>
static inline void ld_shared_v4_b32(R& r0, R& r1, R& r2, R& r3, unsigned address) {
  load_shared(address, r0, r1, r2, r3);
}
EMU_UNCHECKED static inline void load_cluster(unsigned address, int count, unsigned* r) {
  const char* p = cluster_pointer(address, 4 * count, "ld.shared::cluster");
  EMU_NOTE(*current, p, 4 * count, false);
  memcpy(r, p, 4 * count);
}
template <class R>
static inline void ld_shared_cluster_v4_b32(R& r0, R& r1, R& r2, R& r3, unsigned address) {
  unsigned r[4];
  load_cluster(address, 4, r);
  r0 = r[0], r1 = r[1], r2 = r[2], r3 = r[3];
}
EMU_UNCHECKED static inline void st_shared_cluster_v2_b32(unsigned address, unsigned r0, unsigned r1) {
  if (!current->waited) fail("st.shared::cluster: the other block may not have started");
  char* p = (char*)cluster_pointer(address, 8, "st.shared::cluster");
  EMU_NOTE(*current, p, 8, true);
  memcpy(p, &r0, 4);
  memcpy(p + 4, &r1, 4);
}
template <class R>
static inline void mapa_shared_cluster_u32(R& mapped, unsigned address, unsigned rank) {
  mapped = map_shared_address(address, rank);
}
static inline void barrier_cluster_arrive_release_aligned() {
  collective(~0u, "barrier.cluster.arrive", nullptr, [](void**, unsigned) {});
  arrive_at_cluster();
}
static inline void barrier_cluster_wait_acquire_aligned() {
  collective(~0u, "barrier.cluster.wait", nullptr, [](void**, unsigned) {});
  wait_for_cluster();
}
// Special registers.
static inline unsigned cluster_ctarank() { return current->rank; }
template <class R>
static inline void mov_u32(R& r, unsigned value) { r = value; }

static inline void st_shared_b32(unsigned address, unsigned r) { store_shared(address, r); }
static inline void st_shared_v2_b32(unsigned address, unsigned r0, unsigned r1) {
  store_shared(address, r0, r1);
}
static inline void st_shared_v4_b32(unsigned address, unsigned r0, unsigned r1, unsigned r2,
                                    unsigned r3) {
  store_shared(address, r0, r1, r2, r3);
}

}  // namespace ptx
}  // namespace emu
