// Prints as JSON what `argv[1]` threads together reach at most (see cpu_peak.py).
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// STEP(acc, a, b): one multiply-accumulate instruction (or the shortest sequence) on registers.
#if defined(__AVX512VNNI__)
#define INSTRUCTION "vpdpbusd zmm"
typedef __m512i vec;
#define OPERATIONS 128
#define STEP(acc, a, b) acc = _mm512_dpbusd_epi32(acc, a, b)
#elif defined(__AVXVNNI__)
#define INSTRUCTION "vpdpbusd ymm"
typedef __m256i vec;
#define OPERATIONS 64
#define STEP(acc, a, b) acc = _mm256_dpbusd_avx_epi32(acc, a, b)
#elif defined(__AVX2__)
#define INSTRUCTION "vpmaddwd ymm"  // of 16-bit values: no saturation between
typedef __m256i vec;
#define OPERATIONS 32
#define STEP(acc, a, b) acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
#elif defined(__ARM_FEATURE_DOTPROD)
#define INSTRUCTION "sdot"
typedef int32x4_t vec;
#define OPERATIONS 32
#define STEP(acc, a, b) \
  acc = vdotq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b))
#else
#error "no int8 multiply-accumulate instruction is known for this CPU"
#endif

#if defined(__x86_64__)
#define OPAQUE(x) __asm__ volatile("" : "+x"(x))
#else
#define OPAQUE(x) __asm__ volatile("" : "+w"(x))
#endif

enum { ACCUMULATORS = 12, ROUNDS = 10000000, REPEATS = 5 };
enum { MEMORY = 128 << 20, CACHE = 256 << 10 };  // bytes a thread

static pthread_barrier_t start, end;
static int mode;  // 0 stop, 1 multiply, 2 memory, 3 cache

// Named accumulators, whose address nobody takes: else the compiler keeps them in memory.
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define ZERO(j) vec acc##j = {0};
#define MULTIPLY(j) OPAQUE(a); STEP(acc##j, a, b);  // else the products are equal too
#define USE(j) OPAQUE(acc##j);

static void multiply(void) {
  vec a = {1}, b = {1};
  EACH(ZERO)
  EACH(USE)  // else they are equal, and one is enough
  for (int i = 0; i < ROUNDS; i++) { EACH(MULTIPLY) }
  EACH(USE)
}

static void read_bytes(const vec *data, size_t bytes, int times) {
  size_t count = bytes / sizeof(vec);
  for (int t = 0; t < times; t++)
    for (size_t i = 0; i < count; i += 8) {
      vec x[8];
      memcpy(x, data + i, sizeof x);
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) OPAQUE(x[j]);
    }
}

static void *work(void *unused) {
  (void)unused;
  vec *data = aligned_alloc(64, MEMORY);
  if (!data) exit(1);
  memset(data, 1, MEMORY);
  for (;;) {
    pthread_barrier_wait(&start);
    int now = mode;  // main changes it as soon as all have reached the end
    if (now == 1) multiply();
    if (now == 2) read_bytes(data, MEMORY, 2);
    if (now == 3) read_bytes(data, CACHE, 40000);
    pthread_barrier_wait(&end);
    if (now == 0) return 0;
  }
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double best(int which) {
  double shortest = 1e30;
  mode = which;
  for (int i = 0; i < REPEATS; i++) {
    double before = seconds();
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&end);
    double took = seconds() - before;
    if (took < shortest) shortest = took;
  }
  return shortest;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  pthread_barrier_init(&start, 0, threads + 1);
  pthread_barrier_init(&end, 0, threads + 1);
  for (int i = 0; i < threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, 0, work, 0)) return 1;
  }
  best(1);  // warm up: clock rate, pages
  double gops = 1e-9 * threads * OPERATIONS * ACCUMULATORS * ROUNDS / best(1);
  double memory = 1e-9 * threads * 2.0 * MEMORY / best(2);
  double cache = 1e-9 * threads * 40000.0 * CACHE / best(3);
  printf("{\"instruction\": \"%s\", \"gops\": %.1f, \"memory_gbs\": %.2f, \"cache_gbs\": %.1f}\n",
         INSTRUCTION, gops, memory, cache);
  mode = 0;
  pthread_barrier_wait(&start);
  pthread_barrier_wait(&end);
  return 0;
}
