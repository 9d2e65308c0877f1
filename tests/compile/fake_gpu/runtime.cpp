// What is used of libcudart.so.13: by cuda_driver.py, by TVM, and by torch for memory, streams and
// graphs. The rest of that library is there too and says "not supported": library.py.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

using namespace fake;

#define API(NAME) extern "C" cudaError_t CUDARTAPI NAME
#define USABLE \
  if (inherited()) return cudaErrorInitializationError
#define LOCKED \
  USABLE;      \
  std::lock_guard guard(fake::lock)
#define STREAM(HANDLE)                                                   \
  Stream* stream = find_stream(HANDLE);                                  \
  if (!stream) return done(cudaErrorInvalidResourceHandle)
#define SAFE()                                      \
  if (int prohibited = unsafe()) return done(prohibited)

static thread_local cudaError_t last = cudaSuccess;

static cudaError_t done(int status) {
  if (status) last = cudaError_t(status);
  return cudaError_t(status);
}

API(cudaGetLastError)() {
  cudaError_t error = last;
  last = cudaError_t(broken);
  return error;
}

API(cudaPeekAtLastError)() { return last; }

extern "C" const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  const char* name;
  cuGetErrorName(CUresult(error), &name);
  return name;
}

extern "C" const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorName(error);
}

// The device

API(cudaGetDeviceCount)(int* count) {
  USABLE;
  return *count = 1, cudaSuccess;
}

API(cudaGetDevice)(int* device) { return *device = 0, cudaSuccess; }

API(cudaSetDevice)(int device) {
  USABLE;
  return done(device ? cudaErrorInvalidDevice : cudaSuccess);
}

API(cudaDriverGetVersion)(int* version) { return cudaError_t(cuDriverGetVersion(version)); }
API(cudaRuntimeGetVersion)(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

API(cudaDeviceGetAttribute)(int* value, cudaDeviceAttr attribute, int) {
  return cudaError_t(cuDeviceGetAttribute(value, CUdevice_attribute(attribute), 0));
}

API(cudaGetDeviceProperties)(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  cuDeviceGetName(p->name, sizeof p->name, 0);
  p->totalGlobalMem = memory_size();
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = most_shared_memory();
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsPerMultiProcessor = 2048;
  p->major = capability() / 10, p->minor = capability() % 10;
  p->multiProcessorCount = setting("FAKE_GPU_PROCESSORS", 4);
  p->l2CacheSize = 1 << 20;
  return cudaSuccess;
}

API(cudaDeviceGetStreamPriorityRange)(int* least, int* greatest) {
  return *least = *greatest = 0, cudaSuccess;
}

API(cudaDeviceSynchronize)() {
  LOCKED;
  SAFE();
  return done(drain_all());
}

// Memory

API(cudaMalloc)(void** address, size_t bytes) {
  LOCKED;
  SAFE();
  return done(broken ? broken : allocate(address, bytes));
}

API(cudaFree)(void* address) {
  LOCKED;
  SAFE();
  int status = drain_all();
  return done(status || !address ? status : release(address));
}

API(cudaMemGetInfo)(size_t* free, size_t* total) {
  LOCKED;
  *total = memory_size(), *free = *total - memory_used();
  return cudaSuccess;
}

API(cudaHostAlloc)(void** address, size_t bytes, unsigned) {
  LOCKED;
  SAFE();
  *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  add_pinned(*address, bytes);
  return cudaSuccess;
}

API(cudaMallocHost)(void** address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }

API(cudaFreeHost)(void* address) {
  LOCKED;
  SAFE();
  drain_all();
  if (!drop_pinned(address)) return done(cudaErrorInvalidValue);
  free(address);
  return cudaSuccess;
}

API(cudaPointerGetAttributes)(cudaPointerAttributes* attributes, const void* address) {
  LOCKED;
  memset(attributes, 0, sizeof *attributes);
  bool device = on_device(address, 0);
  attributes->type = device               ? cudaMemoryTypeDevice
                     : is_pinned(address) ? cudaMemoryTypeHost
                                          : cudaMemoryTypeUnregistered;
  attributes->devicePointer = device ? (void*)address : nullptr;
  attributes->hostPointer = device ? nullptr : (void*)address;
  return cudaSuccess;
}

API(cudaMemcpyAsync)(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                     cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  bool in = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool out = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault && (in != on_device(to, bytes) || out != on_device(from, bytes))) {
    return done(cudaErrorInvalidValue);
  }
  return done(copy(to, from, bytes, stream));
}

API(cudaMemcpy)(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  LOCKED;
  SAFE();
  cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return status ? status : done(drain(find_stream(nullptr)));
}

API(cudaMemcpyPeerAsync)(void* to, int, const void* from, int, size_t bytes, cudaStream_t handle) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, handle);
}

API(cudaMemsetAsync)(void* to, int value, size_t bytes, cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  return done(fill(to, value, bytes, stream));
}

// Streams

API(cudaStreamCreateWithFlags)(cudaStream_t* stream, unsigned flags) {
  LOCKED;
  *stream = (cudaStream_t)new_stream(!(flags & cudaStreamNonBlocking));
  return cudaSuccess;
}

API(cudaStreamCreate)(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }

API(cudaStreamCreateWithPriority)(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

API(cudaStreamGetPriority)(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }

API(cudaStreamDestroy)(cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  return done(destroy_stream(stream));
}

API(cudaStreamSynchronize)(cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  SAFE();
  if (stream->capture) return done(cudaErrorStreamCaptureUnsupported);
  return done(drain(stream));
}

API(cudaStreamQuery)(cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  SAFE();
  if (stream->queue.empty()) return cudaSuccess;
  int status = step(stream);  // or a program that asks again and again would do so for ever
  return status ? done(status) : cudaErrorNotReady;
}

API(cudaStreamWaitEvent)(cudaStream_t handle, cudaEvent_t event, unsigned) {
  LOCKED;
  STREAM(handle);
  return done(wait(stream, (Event*)event));
}

// Events

API(cudaEventCreateWithFlags)(cudaEvent_t* event, unsigned flags) {
  *event = (cudaEvent_t) new Event{!(flags & cudaEventDisableTiming), nullptr};
  return cudaSuccess;
}

API(cudaEventCreate)(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

API(cudaEventDestroy)(cudaEvent_t event) {
  LOCKED;
  delete (Event*)event;
  return cudaSuccess;
}

API(cudaEventRecord)(cudaEvent_t event, cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  return done(record((Event*)event, stream));
}

API(cudaEventRecordWithFlags)(cudaEvent_t event, cudaStream_t handle, unsigned) {
  return cudaEventRecord(event, handle);
}

API(cudaEventSynchronize)(cudaEvent_t handle) {
  LOCKED;
  SAFE();
  auto last_record = ((Event*)handle)->last;
  if (!last_record) return cudaSuccess;
  if (last_record->capture) return done(cudaErrorCapturedEvent);
  return done(complete(*last_record));
}

API(cudaEventQuery)(cudaEvent_t handle) {
  LOCKED;
  SAFE();
  auto last_record = ((Event*)handle)->last;
  if (!last_record || last_record->done) return cudaSuccess;
  if (last_record->capture) return done(cudaErrorCapturedEvent);
  int status = step(last_record->stream);
  return status ? done(status) : cudaErrorNotReady;
}

API(cudaEventElapsedTime)(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  LOCKED;
  auto from = (Event*)start, to = (Event*)end;
  if (!from->timing || !to->timing) return done(cudaErrorInvalidResourceHandle);
  if (!from->last || !to->last) return done(cudaErrorInvalidResourceHandle);
  if (!from->last->done || !to->last->done) return done(cudaErrorNotReady);
  *milliseconds = (to->last->seconds - from->last->seconds) * 1e3;
  return cudaSuccess;
}

// Captures and graphs

API(cudaStreamIsCapturing)(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  LOCKED;
  STREAM(handle);
  *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

API(cudaStreamGetCaptureInfo)(cudaStream_t handle, cudaStreamCaptureStatus* status,
                              unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
                              const cudaGraphEdgeData**, size_t*) {
  LOCKED;
  STREAM(handle);
  *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = (unsigned long long)stream->capture;
  return cudaSuccess;
}

API(cudaThreadExchangeStreamCaptureMode)(cudaStreamCaptureMode* mode) {
  int before = capture_mode;
  capture_mode = *mode;
  *mode = cudaStreamCaptureMode(before);
  return cudaSuccess;
}

API(cudaStreamBeginCapture)(cudaStream_t handle, cudaStreamCaptureMode mode) {
  LOCKED;
  STREAM(handle);
  return done(begin_capture(stream, mode));
}

API(cudaStreamEndCapture)(cudaStream_t handle, cudaGraph_t* graph) {
  LOCKED;
  STREAM(handle);
  return done(end_capture(stream, (Graph**)graph));
}

API(cudaGraphInstantiate)(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  LOCKED;
  *executable = (cudaGraphExec_t) new Graph(*(Graph*)graph);
  return cudaSuccess;
}

API(cudaGraphInstantiateWithFlags)(cudaGraphExec_t* executable, cudaGraph_t graph,
                                   unsigned long long flags) {
  return cudaGraphInstantiate(executable, graph, flags);
}

API(cudaGraphLaunch)(cudaGraphExec_t executable, cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  return done(put(stream, [graph = *(Graph*)executable] {
    for (auto& operation : graph.operations) {
      if (int status = operation()) return status;
    }
    return 0;
  }));
}

API(cudaGraphGetNodes)(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return *count = ((Graph*)graph)->operations.size(), cudaSuccess;
}

API(cudaGraphDestroy)(cudaGraph_t graph) { return delete (Graph*)graph, cudaSuccess; }

API(cudaGraphExecDestroy)(cudaGraphExec_t graph) { return delete (Graph*)graph, cudaSuccess; }

// Torch's own kernels are registered when it is imported; all but one cannot be launched.

extern "C" void** __cudaRegisterFatBinary(void*) {
  static void* nothing;
  return &nothing;
}
extern "C" void __cudaRegisterFatBinaryEnd(void**) {}
extern "C" void __cudaUnregisterFatBinary(void**) {}
extern "C" void __cudaRegisterVar() {}
extern "C" int __cudaPushCallConfiguration() { return 0; }
extern "C" int __cudaPopCallConfiguration() { return 0; }

static const void* spin;  // of torch.cuda._sleep, which has nothing to compute

extern "C" void __cudaRegisterFunction(void**, const void* function, char*, const char* name) {
  if (strstr(name, "spin_kernel")) spin = function;
}

extern "C" cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
  return *kernel = function, cudaSuccess;
}

extern "C" cudaError_t __cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t,
                                          cudaStream_t handle) {
  LOCKED;
  STREAM(handle);
  if (!spin || kernel != spin) return done(cudaErrorNotSupported);
  return done(put(stream, [] { return 0; }));
}

API(cudaLaunchKernel)(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                      cudaStream_t stream) {
  return __cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
