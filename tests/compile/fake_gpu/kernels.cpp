// Modules and kernels: image.py says what an image is; cuda_emulator runs the kernels.
#include "device.h"

#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "../cuda_emulator/include/launch.h"

namespace fake {

constexpr unsigned kFatbin = 0xBA55ED50;  // its header has 16 bytes
constexpr size_t kMessage = 4096, kArgument = 8, kDefaultShared = 48 << 10;

struct Function {
  std::string name;
  int (*entry)(const emu::Launch*, void**);
  unsigned parameters;
  size_t shared = kDefaultShared;
};

struct Module {
  void* library;
  std::map<std::string, Function> functions;
};

static int fail(const char* what, const char* detail, int status) {
  fprintf(stderr, "fake GPU: %s%s\n", what, detail);
  return status;
}

static bool runs(int arch) {
  int here = capability();
  return arch / 10 == here / 10 && arch <= here;
}

// The library in a cubin of image.py.
static const Elf64_Shdr* emulated(const char* elf) {
  auto header = (const Elf64_Ehdr*)elf;
  auto sections = (const Elf64_Shdr*)(elf + header->e_shoff);
  const char* names = elf + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (!strcmp(names + sections[i].sh_name, ".emulated")) return &sections[i];
  }
  return nullptr;
}

int load(const void* image, Module** module) {
  auto bytes = (const char*)image;
  unsigned magic;
  memcpy(&magic, bytes, sizeof magic);
  bool with_ptx = magic == kFatbin;
  if (with_ptx) bytes += 16;
  auto header = (const Elf64_Ehdr*)bytes;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG)) return cudaErrorInvalidKernelImage;
  int arch = header->e_flags >> 8 & 0xFF;
  if (!runs(arch) && !(with_ptx && arch <= capability())) return cudaErrorNoKernelImageForDevice;
  const Elf64_Shdr* section = emulated(bytes);
  if (!section) {
    return fail("this image is not of fake_gpu/image.py", "", cudaErrorInvalidKernelImage);
  }
  int file = memfd_create("kernels", 0);
  size_t size = section->sh_size;
  if (write(file, bytes + section->sh_offset, size) != (ssize_t)size) return cudaErrorUnknown;
  std::string path = "/proc/self/fd/" + std::to_string(file);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail("dlopen: ", dlerror(), cudaErrorInvalidKernelImage);
  // The file stays open: the loader knows libraries by their path, and must not meet it again.
  *module = new Module{library};
  return 0;
}

int find(Module* module, const char* name, Function** function) {
  auto found = module->functions.find(name);
  if (found == module->functions.end()) {
    std::string entry = std::string("emulate_") + name, count = std::string("parameters_") + name;
    auto code = (int (*)(const emu::Launch*, void**))dlsym(module->library, entry.c_str());
    auto parameters = (const unsigned*)dlsym(module->library, count.c_str());
    if (!code || !parameters) return cudaErrorSymbolNotFound;
    found = module->functions.emplace(name, Function{name, code, *parameters}).first;
  }
  *function = &found->second;
  return 0;
}

int allow_shared(Function* function, size_t bytes) {
  if (bytes > most_shared_memory()) return cudaErrorInvalidValue;
  function->shared = bytes;
  return 0;
}

static int run(const Function& function, emu::Launch launch, const std::string& values) {
  const char* fault = getenv("FAKE_GPU_FAULT");
  if (fault && function.name == fault) return fail("fault in ", fault, cudaErrorIllegalAddress);
  std::vector<std::pair<char*, size_t>> memory;
  device_regions(memory);
  std::vector<emu::Region> regions;
  for (auto& [data, bytes] : memory) {
    size_t padded = (bytes + 4095) / 4096 * 4096;
    regions.push_back({data - kGuard, padded + 2 * kGuard, data, bytes, 1, 0, "an allocation"});
  }
  std::vector<const void*> arguments;
  for (unsigned i = 0; i < function.parameters; ++i) arguments.push_back(&values[i * kArgument]);
  // The process that runs the kernel writes to it.
  static char* message = (char*)mmap(nullptr, kMessage, PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  launch.regions = regions.data();
  launch.region_count = regions.size();
  launch.guard = kGuard;
  launch.time_limit_s = 300;
  launch.poison = 0xA5;
  launch.message = message;
  launch.message_size = kMessage;
  Accessible now;
  int failed = function.entry(&launch, (void**)arguments.data());
  return failed ? fail("kernel: ", message, cudaErrorIllegalAddress) : 0;
}

int launch(Function* function, const unsigned grid[3], const unsigned block[3], unsigned cluster,
           bool dependent, size_t shared, Stream* stream, void** arguments) {
  unsigned threads = block[0] * block[1] * block[2];
  bool fits = threads && threads <= 1024 && block[2] <= 64 && grid[0] && grid[1] && grid[2] &&
              grid[1] <= 65535 && grid[2] <= 65535 && cluster <= 8 && grid[0] % cluster == 0;
  if (!fits || shared > function->shared) return cudaErrorInvalidValue;
  emu::Launch launch = {};
  memcpy(launch.grid, grid, sizeof launch.grid);
  memcpy(launch.block, block, sizeof launch.block);
  launch.cluster = cluster;
  launch.dependent = dependent;
  launch.dynamic_shared = shared;
  std::string values;  // of TVM: 8 bytes for each argument
  for (unsigned i = 0; i < function->parameters; ++i) {
    values.append((const char*)arguments[i], kArgument);
  }
  ++stream->kernels;
  return put(stream, [=] { return run(*function, launch, values); });
}

}  // namespace fake
