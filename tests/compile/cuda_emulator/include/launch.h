// How a kernel's library is called from outside: emulate.py and ../../fake_gpu do.
#pragma once

#include <stddef.h>

namespace emu {

struct Region {  // an array in whole pages of its own, guards included
  char* base;
  size_t total;
  char* data;
  size_t bytes;
  int writable;
  int activation;  // other kernels of the network read or write it
  const char* name;
};

struct Launch {
  unsigned grid[3], block[3];
  unsigned cluster;  // blocks, neighbours in x
  int dependent;     // it may start before the kernel before it has ended
  size_t dynamic_shared;
  int descending;  // order of threads and blocks
  unsigned poison;
  const Region* regions;
  int region_count;
  size_t guard;
  unsigned time_limit_s;
  char* message;
  size_t message_size;
};

}  // namespace emu
