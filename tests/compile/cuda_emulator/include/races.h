// Finds pairs of accesses to one byte, at least one a write, that no barrier orders. g++
// -fsanitize=thread calls the functions at the end at every access (its own library is not linked).
//
// __syncthreads orders all threads of a block, __syncwarp those of a warp, barrier.cluster what all
// threads of a cluster did before they arrived and do after they waited; shuffles and the other warp
// instructions order nothing, and no two clusters are ordered. cp.async writes when it is issued and
// when it is waited for.
//
// Where a kernel may start before the one before it has ended, it also finds accesses to activations
// by a thread that has not executed griddepcontrol.wait.
#pragma once

#include <sys/mman.h>

#include "threads.h"

#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))

namespace emu {

struct Epoch {
  unsigned cluster = 0, barriers = 0, warp_barriers = 0;
  unsigned arrived = 0;  // at barriers of the cluster, and
  unsigned waited = 0;   // waited for them
  int thread = -1, warp = -1, rank = -1;  // kSeveral
};

struct Shadow {  // of a byte
  Epoch writer, reader;
  bool read_by_other_cluster = false, written_by_other_cluster = false;
};

struct Watched {
  const char *begin, *end;
  const char* name;
  Shadow* shadow;
  bool shared;  // memory of a block
};

static const int kSeveral = -2;
static Watched watched[64];
static int watched_count;
static Watched activations[64];
static int activation_count;
static unsigned cluster_serial;

static void watch(const void* begin, size_t bytes, const char* name, bool shared) {
  if (!bytes || watched_count == 64) return;
  size_t size = bytes * sizeof(Shadow);
  void* shadow = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (shadow == MAP_FAILED) fail("no memory to watch %s", name);
  watched[watched_count++] = {(const char*)begin, (const char*)begin + bytes, name,
                              (Shadow*)shadow, shared};
}

static void watch_activation(const void* begin, size_t bytes, const char* name) {
  if (activation_count == 64) fail("too many activations");
  activations[activation_count++] = {(const char*)begin, (const char*)begin + bytes, name};
}

EMU_UNCHECKED static void refuse_activation(const char* p, bool write) {
  for (int i = 0; i < activation_count; ++i) {
    const Watched& a = activations[i];
    if (p < a.begin || p >= a.end) continue;
    fail("byte %td of %s is %s before griddepcontrol.wait", p - a.begin, a.name,
         write ? "written" : "read");
  }
}

EMU_UNCHECKED static bool ordered(const Epoch& before, const Epoch& now) {
  if (before.thread == now.thread || before.arrived < now.waited) return true;
  if (before.rank != now.rank) return false;
  if (before.barriers != now.barriers) return true;
  return before.warp == now.warp && before.warp_barriers != now.warp_barriers;
}

[[noreturn]] static void race(const Watched& w, const char* address, const char* first,
                              const Epoch& other, const char* second) {
  if (other.thread < 0) {
    fail("race on byte %td of %s: %s by several threads, %s by this one, and no barrier between",
         address - w.begin, w.name, first, second);
  }
  const uint3& t = threads[other.thread].index;
  const char* where = other.rank == (int)current->rank ? "" : " of another block of the cluster";
  fail("race on byte %td of %s: %s by thread (%u, %u, %u)%s, %s by this one, and no barrier between",
       address - w.begin, w.name, first, t.x, t.y, t.z, where, second);
}

EMU_UNCHECKED static void enter_cluster(const Watched& w, const char* address, Shadow& s, bool write) {
  unsigned last = s.writer.cluster > s.reader.cluster ? s.writer.cluster : s.reader.cluster;
  if (last != cluster_serial) {
    if (!w.shared) {
      s.read_by_other_cluster |= s.reader.cluster != 0;
      s.written_by_other_cluster |= s.writer.cluster != 0;
    }
    s.reader = s.writer = Epoch();
  }
  if (s.written_by_other_cluster || (write && s.read_by_other_cluster)) {
    fail("race on byte %td of %s: %s by this thread and %s by another %s", address - w.begin, w.name,
         write ? "written" : "read", s.written_by_other_cluster ? "written" : "read",
         blocks.size() > 1 ? "cluster" : "block");
  }
}

EMU_UNCHECKED static void note(const Thread& thread, const void* pointer, unsigned bytes, bool write) {
  const char* p = (const char*)pointer;
  if (!thread.grid_waited) refuse_activation(p, write);
  for (int i = 0; i < watched_count; ++i) {
    const Watched& w = watched[i];
    if (p < w.begin || p >= w.end) continue;
    int warp = thread.number / 32;
    Epoch now;
    now.cluster = cluster_serial, now.rank = thread.rank;
    now.barriers = blocks[thread.rank].barriers, now.warp_barriers = warp_barriers[warp];
    now.arrived = thread.arrived, now.waited = thread.waited;
    now.thread = thread.number, now.warp = warp;
    for (const char* byte = p; byte < p + bytes && byte < w.end; ++byte) {
      Shadow& s = w.shadow[byte - w.begin];
      enter_cluster(w, byte, s, write);
      if (s.writer.cluster && !ordered(s.writer, now)) {
        race(w, byte, "written", s.writer, write ? "written" : "read");
      }
      Epoch& r = s.reader;
      if (write) {
        if (r.cluster && !ordered(r, now)) {
          race(w, byte, "read", r, "written");
        }
        s.writer = now;
      } else if (!r.cluster || r.arrived < now.waited) {
        r = now;
      } else if (r.rank != now.rank) {
        r.rank = r.warp = r.thread = kSeveral;
        if (r.arrived < now.arrived) r.arrived = now.arrived;
      } else if (r.barriers != now.barriers) {
        r = now;
      } else if (r.warp != warp) {
        r.warp = r.thread = kSeveral;
      } else if (r.warp_barriers != now.warp_barriers) {
        r = now;
      } else if (r.thread != now.thread) {
        r.thread = kSeveral;
      }
    }
    return;
  }
}

}  // namespace emu

#ifdef EMU_RACES
#define EMU_NOTE(THREAD, POINTER, BYTES, WRITE) emu::note(THREAD, POINTER, BYTES, WRITE)
#define EMU_ACCESS(NAME, BYTES, WRITE)                                                         \
  extern "C" __attribute__((visibility("hidden"), used)) EMU_UNCHECKED void NAME(void* p) {    \
    if (!emu::current) return;                                                                 \
    const void* before = emu::code;                                                            \
    emu::code = __builtin_return_address(0);                                                   \
    emu::note(*emu::current, p, BYTES, WRITE);                                                 \
    emu::code = before;                                                                        \
  }
#define EMU_ACCESSES(BYTES)                                                                    \
  EMU_ACCESS(__tsan_read##BYTES, BYTES, false)                                                 \
  EMU_ACCESS(__tsan_write##BYTES, BYTES, true)                                                 \
  EMU_ACCESS(__tsan_unaligned_read##BYTES, BYTES, false)                                       \
  EMU_ACCESS(__tsan_unaligned_write##BYTES, BYTES, true)
EMU_ACCESSES(1)
EMU_ACCESSES(2)
EMU_ACCESSES(4)
EMU_ACCESSES(8)
EMU_ACCESSES(16)
#define EMU_RANGE(NAME, WRITE)                                                                 \
  extern "C" __attribute__((visibility("hidden"), used)) EMU_UNCHECKED void NAME(void* p,      \
                                                                                size_t bytes) { \
    if (emu::current) emu::note(*emu::current, p, bytes, WRITE);                               \
  }
EMU_RANGE(__tsan_read_range, false)
EMU_RANGE(__tsan_write_range, true)
#define EMU_IGNORED(NAME) \
  extern "C" __attribute__((visibility("hidden"), used)) EMU_UNCHECKED void NAME(void*) {}
EMU_IGNORED(__tsan_init)
EMU_IGNORED(__tsan_func_entry)
EMU_IGNORED(__tsan_func_exit)
EMU_IGNORED(__tsan_vptr_update)
#else
#define EMU_NOTE(THREAD, POINTER, BYTES, WRITE) ((void)0)
#endif
