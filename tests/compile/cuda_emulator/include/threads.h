// The threads of one cluster of blocks as fibers: they run one after another, and change at
// __syncthreads, at the barrier of the cluster and at the instructions that a whole warp executes
// together. A launch without clusters has clusters of one block.
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

enum class State { ready, barrier, warp, cluster, finished };

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
  unsigned number;  // in the cluster; of its warp's first thread a multiple of 32
  unsigned rank;    // of its block in the cluster
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
  unsigned arrived, waited;  // barriers of the cluster
  bool grid_waited;          // griddepcontrol.wait
};

struct Block {
  uint3 index;
  char* dynamic_shared;
  unsigned waiting, finished;  // threads: at __syncthreads, and that left
  unsigned barriers;           // that the block passed
  unsigned waited;             // barriers of the cluster that some of its threads waited for
  unsigned read_before;        // the one that orders other blocks' reads of its memory before it
};

struct Warp {
  unsigned lanes, waiting, finished;
};

static Array<Thread> threads;
static Array<Warp> warps;
static Array<Block> blocks;  // of the cluster
static unsigned block_threads;
static Array<unsigned> order;  // in which threads run
static unsigned position;            // of the running thread in it
static Thread* current;
static bool dependent;     // the launch: threads have to wait for the kernel before
static unsigned finished_count;
static unsigned cluster_barriers, cluster_arrived;  // complete ones, threads at the next
static char* dynamic_shared;                        // of the running thread's block
static jmp_buf scheduler;
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
static Block& block() { return blocks[current->rank]; }

[[noreturn]] static void deadlock() {
  unsigned in_warp = 0, in_block = 0, in_cluster = 0;
  const Thread* at_barrier = nullptr;
  const Thread* at_warp = nullptr;
  for (const Thread& t : threads) {
    if (t.state == State::barrier) at_barrier = &t, ++in_block;
    if (t.state == State::warp) at_warp = &t, ++in_warp;
    in_cluster += t.state == State::cluster;
  }
  fail("deadlock: %u threads wait at __syncthreads (line %d), %u for their warp (%s, mask %#x), "
       "%u for their cluster, %u left", in_block, at_barrier ? at_barrier->line : 0, in_warp,
       at_warp ? at_warp->what : "-", at_warp ? at_warp->mask : 0, in_cluster, finished_count);
}

static void resume(unsigned next) {
  position = next;
  current = &threads[order[next]];
  threadIdx = current->index;
  blockIdx = block().index;
  dynamic_shared = block().dynamic_shared;
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
  if (dependent && !current->grid_waited) fail("left the kernel without griddepcontrol.wait");
  warps[current->number / 32].finished |= 1u << lane();
  ++finished_count;
  Block& own = block();
  ++own.finished;
  if (own.waiting && own.waiting + own.finished == block_threads) {
    fail("left the kernel while %u threads wait at a __syncthreads", own.waiting);
  }
  if (current->arrived != current->waited) {
    fail("left the kernel without barrier.cluster.wait for its barrier.cluster.arrive");
  }
  if (own.finished == block_threads && own.waited < own.read_before) {
    fail("the block leaves, and no barrier.cluster orders other blocks' reads of its shared memory "
         "before that");
  }
  yield();
}

static void synchronize_block(int line) {
  current->state = State::barrier;
  current->line = line;
  Block& own = block();
  ++own.waiting;
  if (own.waiting + own.finished == block_threads) {
    if (own.finished) fail("__syncthreads of line %d: %u threads left before", line, own.finished);
    for (unsigned i = 0; i < block_threads; ++i) {
      Thread& t = threads[current->rank * block_threads + i];
      if (t.line != line) {
        fail("divergent __syncthreads: line %d here, line %d in thread (%u, %u, %u)", line, t.line,
             t.index.x, t.index.y, t.index.z);
      }
      t.state = State::ready;
    }
    own.waiting = 0;
    ++own.barriers;
  }
  yield();
}

// Its release orders what this thread did before; all threads of the cluster have to call it.
static void arrive_at_cluster() {
  if (current->arrived != current->waited) {
    fail("barrier.cluster.arrive without barrier.cluster.wait since the last one");
  }
  if (finished_count) fail("barrier.cluster.arrive: %u threads left before", finished_count);
  ++current->arrived;
  if (++cluster_arrived == threads.size()) {
    cluster_arrived = 0;
    ++cluster_barriers;
    for (Thread& t : threads) {
      if (t.state == State::cluster) t.state = State::ready;
    }
  }
}

static void wait_for_cluster() {
  if (current->arrived == current->waited) {
    fail("barrier.cluster.wait without barrier.cluster.arrive before it");
  }
  if (cluster_barriers < current->arrived) {
    current->state = State::cluster;
    yield();
  }
  ++current->waited;
  if (block().waited < current->waited) block().waited = current->waited;
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
