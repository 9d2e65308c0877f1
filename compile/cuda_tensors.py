"""Tensors and streams of torch, CuPy and other libraries, by DLPack: the same memory, no copy."""

from __future__ import annotations

import sys
from typing import Any

from intswin.compile.tvm_runtime import CPU, CUDA
from intswin.models.errors import IntswinError

_ALIGNMENT = 16  # bytes; kernels load 16 at once


def imported(images: Any, shape: tuple[int, ...], device: int, ffi: Any) -> Any:
    """TVM's view of a tensor of another library, which nothing waits for.

    Args:
        images: has to be uint8 of `shape`, contiguous, on the GPU called `device`.
        shape: wanted.
        device: index.
        ffi: the module tvm_ffi.

    Raises:
        IntswinError: it is anything else; says what.
    """
    if not hasattr(images, "__dlpack__"):
        raise IntswinError(
            f"this network takes NumPy arrays and tensors with DLPack (torch, CuPy), "
            f"and got {type(images).__name__}"
        )
    try:
        kind, index = (int(number) for number in images.__dlpack_device__())
    except (BufferError, ValueError) as error:
        raise IntswinError(f"the tensor cannot be read through DLPack: {error}") from error
    if (kind, index) != (CUDA, device):
        where = {CPU: "in the CPU's memory", CUDA: f"on GPU {index}"}
        raise IntswinError(
            f"the tensor is {where.get(kind, f'on a device of kind {kind}')} and the network "
            f"on GPU {device}; move it there, or pass a NumPy array"
        )
    # A stream of -1: no stream waits for another one, the caller's order is kept.
    tensor = ffi.from_dlpack(images.__dlpack__(stream=-1))
    found, dtype = tuple(tensor.shape), str(tensor.dtype)
    if (found, dtype) != (shape, "uint8"):
        raise IntswinError(f"the tensor is {dtype} {found}; this network takes uint8 {shape}")
    if not tensor.is_contiguous():
        raise IntswinError("the tensor is not contiguous; call its .contiguous() first")
    if tensor.data_ptr() % _ALIGNMENT:
        raise IntswinError(
            f"the tensor does not start at a multiple of {_ALIGNMENT} bytes; copy it first"
        )
    return tensor


def exported(logits: Any, images: Any) -> Any:
    """TVM's tensor as one of the library of `images`; TVM's own for a library unknown here."""
    library = _library_of(images)
    if library in ("torch", "cupy"):
        return sys.modules[library].from_dlpack(logits)
    return logits


def stream_address(images: Any, stream: Any, ffi: Any) -> int:
    """The address of `stream`, or of the current one of the library of `images`.

    Raises:
        IntswinError: `stream` is no stream.
    """
    if stream is None:
        library = _library_of(images)
        if library == "torch":
            stream = sys.modules["torch"].cuda.current_stream(images.device)
        elif library == "cupy":
            stream = sys.modules["cupy"].cuda.get_current_stream()
        else:
            return ffi.get_raw_stream(ffi.device("cuda", images.__dlpack_device__()[1]))
    if isinstance(stream, int):
        return stream
    for attribute in ("cuda_stream", "ptr"):  # torch, CuPy
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    raise IntswinError(
        f"stream is {type(stream).__name__}; give a stream of torch or CuPy, or its address"
    )


def _library_of(images: Any) -> str:
    """The library that a tensor is of: "torch", "cupy" or another."""
    return type(images).__module__.split(".")[0]
