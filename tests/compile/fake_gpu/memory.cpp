// Device memory: pages that the host cannot touch, shared with the processes that run kernels.
#include "device.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

namespace fake {

std::recursive_mutex lock;
int broken = 0;

static std::map<char*, size_t> allocations;
static std::map<const char*, size_t> pinned;
static size_t used = 0, count = 0;
static int accessible = 0;

size_t setting(const char* name, size_t otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}

bool inherited() {
  static const pid_t user = getpid();  // of the first call
  return user != getpid();
}

int capability() { return setting("FAKE_GPU_CAPABILITY", 90); }

size_t most_shared_memory() {
  int number = capability();
  size_t kib = number >= 90 ? 227 : number == 80 ? 163 : number > 80 ? 99 : number == 75 ? 64 : 96;
  return kib << 10;
}

static size_t pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

static void protect(int how) {
  for (auto& [address, bytes] : allocations) mprotect(address, pages(bytes), how);
}

Accessible::Accessible() {
  if (!accessible++) protect(PROT_READ | PROT_WRITE);
}

Accessible::~Accessible() {
  if (!--accessible) protect(PROT_NONE);
}

size_t memory_size() { return setting("FAKE_GPU_MEMORY", size_t(1) << 30); }
size_t memory_used() { return used; }

int allocate(void** address, size_t bytes) {
  if (used + pages(bytes) > memory_size()) return cudaErrorMemoryAllocation;
  size_t total = pages(bytes) + 2 * kGuard;
  char* base = (char*)mmap(nullptr, total, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return cudaErrorMemoryAllocation;
  char* data = base + kGuard;
  memset(data, 0xA5, pages(bytes));
  mprotect(data, pages(bytes), PROT_NONE);
  allocations[data] = bytes;
  used += pages(bytes), ++count;
  *address = data;
  return 0;
}

int release(void* address) {
  auto found = allocations.find((char*)address);
  if (found == allocations.end()) return cudaErrorInvalidValue;
  size_t bytes = pages(found->second);
  munmap((char*)address - kGuard, bytes + 2 * kGuard);
  used -= bytes;
  allocations.erase(found);
  return 0;
}

template <class Map, class Address>
static bool inside(const Map& map, Address address, size_t bytes) {
  auto next = map.upper_bound(address);
  if (next == map.begin()) return false;
  auto& [start, size] = *--next;
  return address + bytes <= start + size;
}

bool on_device(const void* address, size_t bytes) {
  return inside(allocations, (char*)address, bytes);
}

void add_pinned(void* address, size_t bytes) { pinned[(const char*)address] = bytes; }
bool drop_pinned(void* address) { return pinned.erase((const char*)address); }
bool is_pinned(const void* address) { return inside(pinned, (const char*)address, 0); }

void device_regions(std::vector<std::pair<char*, size_t>>& regions) {
  regions.assign(allocations.begin(), allocations.end());
}

// For tests: how often memory was allocated so far.
extern "C" size_t fake_gpu_allocations() {
  std::lock_guard guard(lock);
  return count;
}

}  // namespace fake
