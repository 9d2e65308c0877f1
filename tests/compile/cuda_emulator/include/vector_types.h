// The vector types of CUDA: TVM's generated code holds packed integers in them.
#pragma once

#define EMU_VECTORS(T, NAME, A1, A2, A3, A4)                                                      \
  struct alignas(A1) NAME##1 { T x; };                                                            \
  struct alignas(A2) NAME##2 { T x, y; };                                                         \
  struct alignas(A3) NAME##3 { T x, y, z; };                                                      \
  struct alignas(A4) NAME##4 { T x, y, z, w; };                                                   \
  static inline NAME##1 make_##NAME##1(T x) { return {x}; }                                       \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                               \
  static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                       \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMU_VECTORS(signed char, char, 1, 2, 1, 4)
EMU_VECTORS(unsigned char, uchar, 1, 2, 1, 4)
EMU_VECTORS(short, short, 2, 4, 2, 8)
EMU_VECTORS(unsigned short, ushort, 2, 4, 2, 8)
EMU_VECTORS(int, int, 4, 8, 4, 16)
EMU_VECTORS(unsigned int, uint, 4, 8, 4, 16)
EMU_VECTORS(long long, longlong, 8, 16, 8, 16)
EMU_VECTORS(unsigned long long, ulonglong, 8, 16, 8, 16)
EMU_VECTORS(float, float, 4, 8, 4, 16)
#undef EMU_VECTORS

struct dim3 {
  unsigned x, y, z;
};
