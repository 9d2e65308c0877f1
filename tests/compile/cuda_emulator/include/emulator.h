// Launches a kernel: a forked process runs its clusters of blocks one after another.
#pragma once

#include <math.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "launch.h"
#include "ptx.h"
#include "undefined.h"

namespace emu {

static const size_t kStackBytes = 256 << 10, kPage = 4096, kSharedGuard = 1 << 20;
static const Launch* launch;

static void on_fault(int signal_number, siginfo_t* info, void* context) {
  if (signal_number == SIGALRM) fail("runs for more than %u s", launch->time_limit_s);
  const char* address = (const char*)info->si_addr;
  const char* access = "an access";
#ifdef __x86_64__
  const auto& registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  access = registers[REG_ERR] & 2 ? "a write" : "a read";
  code = (const void*)(registers[REG_RIP] + 1);  // behind the start, as return addresses are
#endif
  for (int i = 0; i < launch->region_count; ++i) {
    const Region& region = launch->regions[i];
    if (address < region.base || address >= region.base + region.total) continue;
    if (address >= region.data && address < region.data + region.bytes) {
      fail("%s of %s at byte %td, which is an input", access, region.name, address - region.data);
    }
    fail("%s outside of %s: byte %td of %zu", access, region.name, address - region.data,
         region.bytes);
  }
  for (const Block& block : blocks) {
    const char* start = block.dynamic_shared;
    if (address < start - kSharedGuard || address >= start + dynamic_shared_bytes + kSharedGuard) {
      continue;
    }
    fail("%s outside of dynamic shared memory: byte %td of %zu", access, address - start,
         dynamic_shared_bytes);
  }
  fail("%s at the address %p, which is in no array", access, address);
}

static void catch_faults() {
  stack_t stack = {};
  stack.ss_size = 64 << 10;
  stack.ss_sp = mmap(nullptr, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  const int numbers[] = {SIGSEGV, SIGBUS, SIGALRM};
  for (int number : numbers) sigaction(number, &action, nullptr);
  alarm(launch->time_limit_s);
}

static void protect() {
  for (int i = 0; i < launch->region_count; ++i) {
    const Region& region = launch->regions[i];
    size_t middle = region.total - 2 * launch->guard;
    mprotect(region.base, launch->guard, PROT_NONE);
    mprotect(region.base + launch->guard + middle, launch->guard, PROT_NONE);
    if (!region.writable) mprotect(region.base + launch->guard, middle, PROT_READ);
  }
}

static char* allocate_dynamic_shared(size_t bytes) {
  size_t pages = (bytes + kPage - 1) / kPage * kPage;
  char* base = (char*)mmap(nullptr, pages + 2 * kSharedGuard, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  mprotect(base + kSharedGuard, pages, PROT_READ | PROT_WRITE);
  return base + kSharedGuard + (pages - bytes) / 128 * 128;
}

static void create_blocks() {
  size_t static_bytes = __stop_cuda_shared - __start_cuda_shared;
  if (launch->cluster > 1 && static_bytes) fail("static shared memory in a cluster is not emulated");
  if (launch->cluster > 1 && launch->block[0] * launch->block[1] * launch->block[2] % 32) {
    fail("a cluster of blocks that are no whole warps is not emulated");
  }
  if (!launch->cluster || launch->cluster > 16 || launch->grid[0] % launch->cluster) {
    fail("%u blocks are no whole clusters of %u", launch->grid[0], launch->cluster);
  }
  dynamic_shared_bytes = launch->dynamic_shared;
  blocks.allocate(launch->cluster);
  for (Block& b : blocks) b.dynamic_shared = allocate_dynamic_shared(dynamic_shared_bytes);
}

template <class Body>
struct Fibers {
  static inline Body* body;
  static inline ucontext_t creator, created;

  // A thread's life: a kernel call for each block.
  static void live() {
    if (!_setjmp(current->context)) swapcontext(&created, &creator);
    for (;;) {
      (*body)();
      leave();
    }
  }

  static void create(unsigned count) {
    size_t each = kStackBytes + kPage;
    char* stacks = (char*)mmap(nullptr, each * count, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) fail("no memory for %u stacks", count);
    for (unsigned i = 0; i < count; ++i) {
      mprotect(stacks + i * each, kPage, PROT_NONE);
      getcontext(&created);
      created.uc_stack.ss_sp = stacks + i * each + kPage;
      created.uc_stack.ss_size = kStackBytes;
      makecontext(&created, live, 0);
      current = &threads[i];
      swapcontext(&creator, &created);
    }
    current = nullptr;
  }
};

static void watch_accesses() {
  watch(__start_cuda_shared, __stop_cuda_shared - __start_cuda_shared, "static shared memory", true);
  for (const Block& block : blocks) {
    watch(block.dynamic_shared, dynamic_shared_bytes, "dynamic shared memory", true);
  }
  for (int i = 0; i < launch->region_count; ++i) {
    const Region& region = launch->regions[i];
    if (region.writable) watch(region.data, region.bytes, region.name, false);
    if (region.activation && dependent) watch_activation(region.data, region.bytes, region.name);
  }
}

static void create_threads(const Launch& l) {
  blockDim = {l.block[0], l.block[1], l.block[2]};
  gridDim = {l.grid[0], l.grid[1], l.grid[2]};
  block_threads = l.block[0] * l.block[1] * l.block[2];
  unsigned count = l.cluster * block_threads;
  threads.allocate(count);
  order.allocate(count);
  warps.allocate((count + 31) / 32);
  warp_barriers.allocate(warps.size());
  for (unsigned i = 0; i < count; ++i) {
    threads[i].number = i;
    unsigned x = l.block[0], y = l.block[1], within = i % block_threads;
    threads[i].rank = i / block_threads;
    threads[i].index = {within % x, within / x % y, within / x / y};
    warps[i / 32].lanes |= 1u << i % 32;
    order[i] = l.descending ? count - 1 - i : i;
  }
}

__attribute__((noinline)) static void run_cluster(unsigned first) {
  size_t static_bytes = __stop_cuda_shared - __start_cuda_shared;
  if (static_bytes) memset(__start_cuda_shared, launch->poison, static_bytes);
  unsigned across = launch->grid[0], down = launch->grid[1];
  for (Block& b : blocks) {
    unsigned number = first + (&b - blocks.begin());
    memset(b.dynamic_shared, launch->poison, dynamic_shared_bytes);
    b.index = {number % across, number / across % down, number / across / down};
    b.waiting = b.finished = b.waited = b.read_before = 0;
  }
  for (Thread& t : threads) {
    t.state = State::ready, t.arrived = t.waited = 0, t.grid_waited = false;
  }
  for (Warp& w : warps) w.waiting = w.finished = 0;
  finished_count = cluster_barriers = cluster_arrived = 0;
  ++cluster_serial;
  if (!_setjmp(scheduler)) resume(0);
  current = nullptr;
}

template <class Body>
static void run_blocks(Body body) {
  catch_faults();
  protect();
  create_blocks();
  dependent = launch->dependent;
#ifdef EMU_RACES
  watch_accesses();
#endif
  async_poison = launch->poison;
  create_threads(*launch);
  Fibers<Body>::body = &body;
  Fibers<Body>::create(threads.size());
  unsigned clusters = launch->grid[0] * launch->grid[1] * launch->grid[2] / launch->cluster;
  for (unsigned i = 0; i < clusters; ++i) {
    run_cluster((launch->descending ? clusters - 1 - i : i) * launch->cluster);
  }
}

template <int...>
struct Indices {};

template <class... P>
static constexpr unsigned parameter_count(void (*)(P...)) {
  return sizeof...(P);
}

// Returns 0, or 1 with a line in l.message.
template <class... P>
static int run(const Launch& l, void (*kernel)(P...), void** arguments) {
  l.message[0] = 0;
  pid_t child = fork();
  if (child < 0) {
    snprintf(l.message, l.message_size, "no process for the kernel");
    return 1;
  }
  if (!child) {
    // Only here: threads of the parent launch kernels at the same time.
    launch = &l;
    message = l.message;
    message_size = l.message_size;
    [&]<int... I>(Indices<I...>) {
      run_blocks([&] { kernel(*(P*)arguments[I]...); });
    }(Indices<__integer_pack(sizeof...(P))...>());
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (status && !l.message[0]) snprintf(l.message, l.message_size, "ended with status %d", status);
  return status != 0;
}

}  // namespace emu
