// Streams, events, captures and graphs.
//
// Nothing runs before something waits for it: a result that is read too early is wrong every time,
// and so is one in a stream that does not wait for another one.
#include "device.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace fake {

struct Capture {
  int mode;
  pid_t thread;
  Stream* origin;
  std::vector<Stream*> streams;
  std::vector<Operation> operations;
  bool valid = true;
};

thread_local int capture_mode = cudaStreamCaptureModeGlobal;
static std::set<Capture*> captures;
static Stream legacy{true};
static std::set<Stream*> streams{&legacy};

Stream* find_stream(const void* handle) {
  if (!handle || handle == cudaStreamLegacy) return &legacy;
  auto found = streams.find((Stream*)handle);
  return found == streams.end() ? nullptr : *found;
}

Stream* new_stream(bool blocking) { return *streams.insert(new Stream{blocking}).first; }

int destroy_stream(Stream* stream) {
  int status = drain(stream);
  streams.erase(stream);
  delete stream;
  return status;
}

int step(Stream* stream) {
  Operation operation = std::move(stream->queue.front());
  stream->queue.pop_front();
  int status = broken ? broken : operation();
  if (status) broken = status;
  ++stream->done;
  return broken;
}

static int advance(Stream* stream, unsigned long long until) {
  while (stream->done < until && !stream->queue.empty()) step(stream);
  return broken;
}

int drain(Stream* stream) {
  if (stream == &legacy) {
    for (Stream* other : streams) {
      if (other->blocking) advance(other, other->put);
    }
  }
  return advance(stream, stream->put);
}

int drain_all() {
  for (Stream* stream : streams) advance(stream, stream->put);
  return broken;
}

static void queue(Stream* stream, Operation operation) {
  stream->queue.push_back(std::move(operation));
  ++stream->put;
}

static int invalidate(int error) {
  for (Capture* capture : captures) capture->valid = false;
  return error;
}

int put(Stream* stream, Operation operation) {
  if (broken) return broken;
  if (stream->capture) {
    if (!stream->capture->valid) return cudaErrorStreamCaptureInvalidated;
    stream->capture->operations.push_back(std::move(operation));
    return 0;
  }
  if (stream == &legacy) {
    for (Stream* other : streams) {
      if (other == stream || !other->blocking) continue;
      if (other->capture) return invalidate(cudaErrorStreamCaptureImplicit);
      if (!other->queue.empty()) queue(stream, [=, at = other->put] { return advance(other, at); });
    }
  } else if (stream->blocking && !legacy.queue.empty()) {
    queue(stream, [at = legacy.put] { return advance(&legacy, at); });
  }
  queue(stream, std::move(operation));
  return 0;
}

int record(Event* event, Stream* stream) {
  auto recording = std::make_shared<Recording>();
  recording->stream = stream;
  recording->capture = stream->capture;
  event->last = recording;
  if (stream->capture) return 0;
  return put(stream, [recording] {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    recording->seconds = now.tv_sec + now.tv_nsec * 1e-9;
    recording->done = true;
    return 0;
  });
}

int complete(Recording& recording) {
  while (!recording.done && !broken) {
    if (recording.stream->queue.empty()) return cudaErrorUnknown;
    step(recording.stream);
  }
  return broken;
}

int wait(Stream* stream, Event* event) {
  if (!event->last) return 0;
  Capture* of = event->last->capture;
  if (of && !captures.count(of)) return cudaErrorCapturedEvent;
  if (of && !stream->capture) {  // the stream takes part from now on
    stream->capture = of;
    of->streams.push_back(stream);
    return 0;
  }
  if (of != stream->capture) return invalidate(cudaErrorStreamCaptureIsolation);
  if (of) return 0;
  return put(stream, [recording = event->last] { return complete(*recording); });
}

int begin_capture(Stream* stream, int mode) {
  if (stream == &legacy) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture) return cudaErrorIllegalState;
  stream->capture = new Capture{mode, gettid(), stream, {stream}};
  captures.insert(stream->capture);
  return 0;
}

int end_capture(Stream* stream, Graph** graph) {
  Capture* capture = stream->capture;
  *graph = nullptr;
  if (!capture) return cudaErrorIllegalState;
  if (capture->origin != stream) return cudaErrorStreamCaptureUnmatched;
  bool elsewhere = capture->thread != gettid() && capture->mode != cudaStreamCaptureModeRelaxed;
  if (elsewhere) return cudaErrorStreamCaptureWrongThread;
  for (Stream* each : capture->streams) each->capture = nullptr;
  if (capture->valid) *graph = new Graph{std::move(capture->operations)};
  captures.erase(capture);
  delete capture;
  return *graph ? 0 : cudaErrorStreamCaptureInvalidated;
}

// CUDA's documentation of cudaThreadExchangeStreamCaptureMode.
int unsafe() {
  if (capture_mode == cudaStreamCaptureModeRelaxed) return 0;
  bool prohibited = std::any_of(captures.begin(), captures.end(), [](Capture* capture) {
    if (capture->thread == gettid()) return capture->mode != cudaStreamCaptureModeRelaxed;
    return capture_mode == cudaStreamCaptureModeGlobal &&
           capture->mode == cudaStreamCaptureModeGlobal;
  });
  return prohibited ? invalidate(cudaErrorStreamCaptureUnsupported) : 0;
}

int copy(void* to, const void* from, size_t bytes, Stream* stream) {
  bool out = on_device(from, bytes), in = on_device(to, bytes);
  if (!out && !in && !is_pinned(to) && !is_pinned(from)) return cudaErrorInvalidValue;
  if (!out && !is_pinned(from) && !stream->capture) {  // the host may change it at once
    std::string staged((const char*)from, bytes);
    return put(stream, [=] {
      Accessible now;
      memcpy(to, staged.data(), bytes);
      return 0;
    });
  }
  int status = put(stream, [=] {
    Accessible now;
    memmove(to, from, bytes);
    return 0;
  });
  if (status || stream->capture || in || is_pinned(to)) return status;
  return drain(stream);  // into memory that is not pinned: when this returns it is there
}

int fill(void* to, int value, size_t bytes, Stream* stream) {
  if (!on_device(to, bytes)) return cudaErrorInvalidValue;
  return put(stream, [=] {
    Accessible now;
    memset(to, value, bytes);
    return 0;
  });
}

// For tests: operations that a stream has not run yet.
extern "C" size_t fake_gpu_pending(const void* handle) {
  std::lock_guard guard(lock);
  Stream* stream = find_stream(handle);
  return stream ? stream->queue.size() : 0;
}

// For tests: kernels that were put into a stream so far.
extern "C" size_t fake_gpu_kernels(const void* handle) {
  std::lock_guard guard(lock);
  Stream* stream = find_stream(handle);
  return stream ? stream->kernels : 0;
}

}  // namespace fake
