// What CUDA's own headers need of this one, which pip's nvidia-cuda-runtime lacks.
#pragma once

#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __specialization_static
#define CUDARTAPI
#define CUDARTAPI_CDECL
