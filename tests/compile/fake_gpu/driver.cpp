// What is used of libcuda.so.1: by cuda_driver.py, by TVM and by torch.
#include <cuda.h>
#include <driver_types.h>
#include <string.h>

#include "device.h"

using namespace fake;

#define API(NAME) extern "C" CUresult CUDAAPI NAME
#define USABLE \
  if (inherited()) return CUDA_ERROR_NOT_INITIALIZED
#define LOCKED \
  USABLE;      \
  std::lock_guard guard(fake::lock)

static const char* error_name(CUresult error) {
  switch (error) {
    case CUDA_SUCCESS: return "CUDA_SUCCESS";
    case CUDA_ERROR_INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case CUDA_ERROR_OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case CUDA_ERROR_INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
    case CUDA_ERROR_NO_BINARY_FOR_GPU: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION: return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
    case CUDA_ERROR_NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case CUDA_ERROR_ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case CUDA_ERROR_NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    default: return "CUDA_ERROR_UNKNOWN";
  }
}

API(cuInit)(unsigned) {
  USABLE;
  return CUDA_SUCCESS;
}

API(cuDriverGetVersion)(int* version) {
  *version = setting("FAKE_GPU_DRIVER", 13000);
  return CUDA_SUCCESS;
}

API(cuDeviceGetCount)(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}

API(cuDeviceGetName)(char* name, int size, CUdevice) {
  strncpy(name, "fake GPU (emulated by the CPU)", size);
  return CUDA_SUCCESS;
}

API(cuDeviceTotalMem_v2)(size_t* bytes, CUdevice) {
  *bytes = memory_size();
  return CUDA_SUCCESS;
}

API(cuDeviceGetAttribute)(int* value, CUdevice_attribute attribute, CUdevice) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability() / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability() % 10; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = setting("FAKE_GPU_PROCESSORS", 4); break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1000000; break;  // kHz
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 1 << 20; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 << 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = most_shared_memory(); break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *value = 64; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

API(cuDevicePrimaryCtxGetState)(CUdevice, unsigned* flags, int* active) {
  *flags = 0, *active = 1;
  return CUDA_SUCCESS;
}

API(cuGetErrorName)(CUresult error, const char** name) {
  *name = error_name(error);
  return CUDA_SUCCESS;
}

API(cuGetErrorString)(CUresult error, const char** text) {
  *text = error_name(error);
  return CUDA_SUCCESS;
}

API(cuModuleLoadData)(CUmodule* module, const void* image) {
  LOCKED;
  if (int prohibited = unsafe()) return CUresult(prohibited);
  return CUresult(load(image, (Module**)module));
}

API(cuModuleUnload)(CUmodule) { return CUDA_SUCCESS; }

API(cuModuleGetFunction)(CUfunction* function, CUmodule module, const char* name) {
  LOCKED;
  return CUresult(find((Module*)module, name, (Function**)function));
}

API(cuFuncSetAttribute)(CUfunction function, CUfunction_attribute attribute, int value) {
  LOCKED;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  return CUresult(allow_shared((Function*)function, value));
}

API(cuLaunchKernelEx)(const CUlaunchConfig* c, CUfunction function, void** arguments, void**) {
  LOCKED;
  Stream* stream = find_stream(c->hStream);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  const unsigned grid[] = {c->gridDimX, c->gridDimY, c->gridDimZ};
  const unsigned block[] = {c->blockDimX, c->blockDimY, c->blockDimZ};
  unsigned cluster = 1;
  bool dependent = false;
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      dependent = c->attrs[i].value.programmaticStreamSerializationAllowed;
      continue;
    }
    if (c->attrs[i].id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) return CUDA_ERROR_NOT_SUPPORTED;
    const auto& extents = c->attrs[i].value.clusterDim;
    if (!extents.x || extents.y != 1 || extents.z != 1) return CUDA_ERROR_NOT_SUPPORTED;
    cluster = extents.x;
  }
  if ((cluster > 1 || dependent) && capability() < 90) return CUDA_ERROR_INVALID_VALUE;
  return CUresult(launch((Function*)function, grid, block, cluster, dependent, c->sharedMemBytes,
                         stream, arguments));
}

API(cuTensorMapEncodeTiled)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                            const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                            const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
