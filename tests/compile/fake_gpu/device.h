// The one fake device: memory, streams, graphs and kernels. Functions return a cudaError_t, whose
// numbers are those of CUresult too. All of them are called with the lock held.
#pragma once

#include <driver_types.h>
#include <stddef.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace fake {

extern std::recursive_mutex lock;
extern int broken;  // what the first kernel that failed makes every later call return

bool inherited();  // CUDA was used before this process was forked: it cannot be used here any more

size_t setting(const char* name, size_t otherwise);  // of the environment
int capability();  // 90
size_t most_shared_memory();  // bytes of a block

// memory.cpp: device memory is in pages that the host can use only while `Accessible` lives.
struct Accessible {
  Accessible();
  ~Accessible();
};
size_t memory_size();
size_t memory_used();
int allocate(void** address, size_t bytes);
int release(void* address);
bool on_device(const void* address, size_t bytes);
void add_pinned(void* address, size_t bytes);
bool drop_pinned(void* address);
bool is_pinned(const void* address);

// streams.cpp: what is put into a stream runs as late as possible, when something waits for it.
using Operation = std::function<int()>;

struct Capture;

struct Stream {
  bool blocking;  // waits for the legacy stream, and that for it
  std::deque<Operation> queue;
  unsigned long long put = 0, done = 0;  // operations
  unsigned long long kernels = 0;
  Capture* capture = nullptr;
};

struct Graph {
  std::vector<Operation> operations;
};

struct Recording {  // one cudaEventRecord
  Stream* stream;
  bool done = false;
  double seconds = 0;
  Capture* capture = nullptr;  // in which it was recorded
};

struct Event {
  bool timing;
  std::shared_ptr<Recording> last;
};

Stream* new_stream(bool blocking);
Stream* find_stream(const void* handle);  // null when there is none
int destroy_stream(Stream* stream);
int put(Stream* stream, Operation operation);
int step(Stream* stream);  // runs the first operation
int drain(Stream* stream);
int drain_all();
int record(Event* event, Stream* stream);
int wait(Stream* stream, Event* event);
int complete(Recording& recording);

extern thread_local int capture_mode;
int begin_capture(Stream* stream, int mode);
int end_capture(Stream* stream, Graph** graph);
int unsafe();  // 0, or the error of a call that this thread must not make during a capture
int copy(void* to, const void* from, size_t bytes, Stream* stream);
int fill(void* to, int value, size_t bytes, Stream* stream);

// kernels.cpp
struct Module;
struct Function;
int load(const void* image, Module** module);
int find(Module* module, const char* name, Function** function);
int allow_shared(Function* function, size_t bytes);
int launch(Function* function, const unsigned grid[3], const unsigned block[3], unsigned cluster,
           bool dependent, size_t shared, Stream* stream, void** arguments);
void device_regions(std::vector<std::pair<char*, size_t>>& regions);  // memory.cpp
constexpr size_t kGuard = 256 << 10;  // bytes before and behind an allocation

}  // namespace fake
