// The threads of one block as fibers: they run one after another, and change at __syncthreads and
// at the instructions that a whole warp executes together.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vector_types.h"

__attribute__((used)) static uint3 threadIdx, blockIdx;
__attribute__((used)) static dim3 blockDim, gridDim;
static const int warpSize = 32;

// The start of this library.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));

namespace emu {

enum class State { ready, barrier, warp, finished };

struct Copy {  // by cp.async
  char* target;
  const char* source;
  int bytes;  // that are read; the rest of the 16, 8 or 4 is zero
  int size;
  unsigned group;
};

static const unsigned kCopies = 256;  // of a thread, in flight

struct Multiplication {  // by wgmma
  int* results;
  int columns;
  uint64_t a, b;
  unsigned group;
};

static const unsigned kMultiplications = 64;  // of a thread, in flight

template <class T>
struct Array {  // the standard library costs more than most kernels to compile
  T* first = nullptr;
  unsigned count = 0;

  void allocate(unsigned n) { first = (T*)calloc(n, sizeof(T)), count = n; }
  T& operator[](unsigned i) { return first[i]; }
  T* begin() { return first; }
  T* end() { return first + count; }
  unsigned size() const { return count; }
};

struct Thread {
  jmp_buf context;
  uint3 index;
  unsigned number;
  State state;
  int line;              // of the barrier where it waits
  const char* what;      // the warp instruction where it waits
  unsigned mask;         // and its lanes
  void* operands;        // and its operands in this lane
  Copy copies[kCopies];  // a ring
  unsigned issued, landed;
  unsigned groups;  // committed
  Multiplication multiplications[kMultiplications];  // a ring, like that of the copies
  unsigned started, finished, multiplication_groups;
};

struct Warp {
  unsigned lanes, waiting, finished;
};

static Array<Thread> threads;
static Array<Warp> warps;
static Array<unsigned> order;  // in which threads run
static unsigned position;            // of the running thread in it
static Thread* current;
static unsigned finished_count, barrier_count;
static jmp_buf scheduler;
static unsigned barriers;                  // that the block passed
static Array<unsigned> warp_barriers;  // that each warp passed: __syncwarp
static char* message;
static size_t message_size;
static const void* code;  // the instruction that is to blame, where it is known

// Ends the process, which runs one kernel, with a line that says where and why.
[[noreturn]] __attribute__((format(printf, 1, 2))) static void fail(const char* format, ...) {
  size_t used = 0;
  if (current) {
    used = snprintf(message, message_size, "thread (%u, %u, %u) of block (%u, %u, %u): ",
                    threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z);
  }
  va_list arguments;
  va_start(arguments, format);
  used += vsnprintf(message + used, message_size - used, format, arguments);
  va_end(arguments);
  if (code && used < message_size) {
    // Which line of the source it is, the parent finds out.
    snprintf(message + used, message_size - used, " (+%#zx)",
             (size_t)((const char*)code - __ehdr_start));
  }
  _exit(1);
}

static unsigned lane() { return current->number % 32; }

[[noreturn]] static void deadlock() {
  unsigned in_warp = 0;
  const Thread* at_barrier = nullptr;
  const Thread* at_warp = nullptr;
  for (const Thread& t : threads) {
    if (t.state == State::barrier) at_barrier = &t;
    if (t.state == State::warp) at_warp = &t, ++in_warp;
  }
  fail("deadlock: %u threads wait at __syncthreads (line %d), %u for their warp (%s, mask %#x), "
       "%u left", barrier_count, at_barrier ? at_barrier->line : 0, in_warp,
       at_warp ? at_warp->what : "-", at_warp ? at_warp->mask : 0, finished_count);
}

static void resume(unsigned next) {
  position = next;
  current = &threads[order[next]];
  threadIdx = current->index;
  _longjmp(current->context, 1);
}

// Runs the next thread that can; returns when it is this one's turn again.
__attribute__((noinline)) static void yield() {
  if (_setjmp(current->context)) {
    asm volatile("" ::: "memory");  // other threads wrote to it
    return;
  }
  unsigned count = order.size();
  for (unsigned step = 1; step <= count; ++step) {
    unsigned next = position + step < count ? position + step : position + step - count;
    if (threads[order[next]].state == State::ready) resume(next);
  }
  if (finished_count < count) deadlock();
  _longjmp(scheduler, 1);
}

static void leave() {
  current->state = State::finished;
  current->landed = current->issued;
  warps[current->number / 32].finished |= 1u << lane();
  ++finished_count;
  if (barrier_count && barrier_count + finished_count == threads.size()) {
    fail("left the kernel while %u threads wait at a __syncthreads", barrier_count);
  }
  yield();
}

static void synchronize_block(int line) {
  current->state = State::barrier;
  current->line = line;
  ++barrier_count;
  if (barrier_count + finished_count == threads.size()) {
    if (finished_count) fail("__syncthreads of line %d: %u threads left before", line, finished_count);
    for (Thread& t : threads) {
      if (t.line != line) {
        fail("divergent __syncthreads: line %d here, line %d in thread (%u, %u, %u)", line, t.line,
             t.index.x, t.index.y, t.index.z);
      }
      t.state = State::ready;
    }
    barrier_count = 0;
    ++barriers;
  }
  yield();
}

// Waits until all lanes of `mask` are here; the last one calls combine(operands by lane, mask).
template <class Combine>
static void collective(unsigned mask, const char* what, void* operands, Combine combine) {
  Warp& warp = warps[current->number / 32];
  Thread* lanes = &threads[current->number / 32 * 32];
  mask &= warp.lanes;
  if (!(mask >> lane() & 1)) fail("%s: lane %u is not in its mask %#x", what, lane(), mask);
  if (mask & warp.finished) fail("%s: lanes %#x of its mask left", what, mask & warp.finished);
  current->state = State::warp;
  current->what = what;
  current->mask = mask;
  current->operands = operands;
  warp.waiting |= 1u << lane();
  if ((warp.waiting & mask) == mask) {
    void* all[32] = {};
    for (unsigned i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      if (lanes[i].mask != mask || strcmp(lanes[i].what, what)) {
        fail("divergent warp: %s with mask %#x here, %s with mask %#x in lane %u", what, mask,
             lanes[i].what, lanes[i].mask, i);
      }
      all[i] = lanes[i].operands;
    }
    combine(all, mask);
    for (unsigned i = 0; i < 32; ++i) {
      if (mask >> i & 1) lanes[i].state = State::ready;
    }
    warp.waiting &= ~mask;
    return;
  }
  yield();
}

}  // namespace emu
