"""Arrays of a kernel in pages of their own, so that accesses outside of them are found."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from cuda_emulator.errors import EmulationError

GUARD_BYTES = 256 << 10  # on each side, without access while the kernel runs
_ALIGNMENT = 16  # of the widest access
_CANARY = 0xC7


class Region(ctypes.Structure):
    """`emu::Region` of include/emulator.h."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("total", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("writable", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("name", ctypes.c_char_p),
    )


class GuardedArray:
    """A copy of an array, or memory filled with `poison`, that ends where its pages end."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        poison: int,
        writable: bool,
        activation: bool,
    ) -> None:
        self.name, self.writable = name, writable
        size = int(np.prod(shape)) * dtype.itemsize
        padded = -(-size // _ALIGNMENT) * _ALIGNMENT
        pages = max(mmap.PAGESIZE, -(-padded // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._memory = mmap.mmap(-1, pages + 2 * GUARD_BYTES)  # shared with the forked kernel
        everything = np.frombuffer(self._memory, np.uint8)
        self._pages = everything[GUARD_BYTES : GUARD_BYTES + pages]
        self._pages[:] = _CANARY
        self._start, self._end = pages - padded, pages - padded + size
        self._pages[self._start : self._end] = poison
        self.array = self._pages[self._start : self._end].view(dtype).reshape(shape)
        self.address = self.array.ctypes.data
        self.region = Region(
            everything.ctypes.data,
            len(everything),
            self.address,
            size,
            writable,
            activation,
            name.encode(),
        )

    def check_canaries(self, kernel: str) -> None:
        """Raise EmulationError where a byte next to the array was changed."""
        outside = np.concatenate([self._pages[: self._start], self._pages[self._end :]])
        changed = np.flatnonzero(outside != _CANARY)
        if len(changed):
            byte = int(changed[0]) - self._start
            byte += (self._end - self._start) * (byte >= 0)
            size = self._end - self._start
            raise EmulationError(f"{kernel} wrote outside of {self.name}: byte {byte} of {size}")
