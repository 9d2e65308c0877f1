"""Run a PrimFunc's kernels on NumPy arrays, twice: see `emulate`."""

from __future__ import annotations

import concurrent.futures
import ctypes
import mmap
from collections.abc import Collection, Sequence

import numpy as np
import tvm
from tvm import tirx
from tvm.target import Target

from cuda_emulator.compiler import compile_kernels, with_line
from cuda_emulator.errors import EmulationError
from cuda_emulator.lowering import Launch, Program, Workspace, lower
from cuda_emulator.memory import GUARD_BYTES, GuardedArray, Region

_POISONS = (0xA5, 0x5A)  # of the two runs
_TIME_LIMIT_S = 300
_MESSAGE_BYTES = 4096


def emulate(
    func: tirx.PrimFunc | tvm.IRModule,
    target: Target,
    arrays: Sequence[np.ndarray],
    outputs: int = 1,
    races: bool = False,
    activations: Collection[int] = (0,),
) -> None:
    """Run a function scheduled for CUDA as a GPU would.

    It runs twice, with threads and blocks in opposite orders and with different bytes in all memory
    that was not written: a result that differs shows a missing barrier, a copy that was not waited
    for, or memory read before it was written.

    Args:
        func: the function, or a module whose "main" it is.
        target: of kind cuda; its arch is what `__CUDA_ARCH__` says.
        arrays: one for each parameter, in order.
        outputs: how many of them, the last ones, are written: in place. What they hold before is
            not seen by the kernels.
        races: also check every access to shared memory and to written arrays against the accesses
            of other threads that no barrier orders before it, and that none is to an activation
            before the kernel has waited for the one before it; about five times slower.
        activations: numbers of the arrays that other kernels write; outputs are activations too.

    Raises:
        EmulationError: different results; an access outside of the arrays, a write to an input, a
            misaligned access; a barrier or warp instruction that not all threads reach; anything
            that is not emulated.
    """
    emulate_program(lower(func, target), target, arrays, outputs, races, activations)


def emulate_program(
    program: Program,
    target: Target,
    arrays: Sequence[np.ndarray],
    outputs: int = 1,
    races: bool = False,
    activations: Collection[int] = (0,),
) -> None:
    """Like `emulate` for a function that was lowered before."""
    named = dict(zip(program.parameters, arrays, strict=True))
    names = {program.parameters[index] for index in activations}
    _run_twice(program, _arch(target), named, outputs, races, names)


def emulate_source(
    source: str,
    launches: Sequence[Launch],
    arrays: dict[str, np.ndarray],
    outputs: int = 1,
    races: bool = False,
    arch: int = 90,
    activations: Collection[str] = (),
) -> None:
    """Like `emulate` for CUDA source with `extern "C"` kernels; arrays are named as in launches.

    `arch` is what `__CUDA_ARCH__` says, such as 75.
    """
    program = Program(source, tuple(arrays), {}, tuple(launches))
    _run_twice(program, arch, arrays, outputs, races, activations)


def _arch(target: Target) -> int:
    return int("".join(c for c in str(target.attrs["arch"]) if c.isdigit()))


def _run_twice(
    program: Program,
    arch: int,
    arrays: dict[str, np.ndarray],
    outputs: int,
    races: bool,
    activations: Collection[str] = (),
) -> None:
    kernels = sorted({launch.kernel for launch in program.launches})
    library = compile_kernels(program.source, kernels, arch, races)
    written = list(arrays)[len(arrays) - outputs :]
    with concurrent.futures.ThreadPoolExecutor() as executor:
        first, second = executor.map(
            lambda order: _run(library, program, arrays, written, activations, order), (0, 1)
        )
    for name in written:
        a, b = (run[name].ravel() for run in (first, second))
        differing = np.flatnonzero(a != b)
        if len(differing):
            i = int(differing[0])
            raise EmulationError(
                f"{name} depends on the order of threads or on memory that was not written: "
                f"{len(differing)} of {a.size} elements, first element {i} is {a[i]} or {b[i]}"
            )
        arrays[name][...] = first[name]


def _run(
    library: ctypes.CDLL,
    program: Program,
    arrays: dict[str, np.ndarray],
    written: list[str],
    activations: Collection[str],
    order: int,
) -> dict[str, np.ndarray]:
    poison = _POISONS[order]
    memory = {}
    for name, array in arrays.items():
        writable = name in written
        activation = writable or name in activations
        memory[name] = GuardedArray(name, array.shape, array.dtype, poison, writable, activation)
        if name not in written:
            memory[name].array[...] = array
    for name, workspace in program.workspaces.items():
        memory[name] = _workspace(name, workspace, poison)
    regions = (Region * len(memory))(*(m.region for m in memory.values()))
    for launch in program.launches:
        _launch(library, launch, memory, regions, order)
        for guarded in memory.values():
            guarded.check_canaries(launch.kernel)
    return {name: memory[name].array for name in written}


def _workspace(name: str, workspace: Workspace, poison: int) -> GuardedArray:
    return GuardedArray(name, workspace.shape, np.dtype(workspace.dtype), poison, True, True)


class _Launch(ctypes.Structure):
    """`emu::Launch` of include/emulator.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint),
        ("dependent", ctypes.c_int),
        ("dynamic_shared", ctypes.c_size_t),
        ("descending", ctypes.c_int),
        ("poison", ctypes.c_uint),
        ("regions", ctypes.POINTER(Region)),
        ("region_count", ctypes.c_int),
        ("guard", ctypes.c_size_t),
        ("time_limit_s", ctypes.c_uint),
        ("message", ctypes.c_void_p),
        ("message_size", ctypes.c_size_t),
    )


def _launch(
    library: ctypes.CDLL,
    launch: Launch,
    memory: dict[str, GuardedArray],
    regions: ctypes.Array[Region],
    order: int,
) -> None:
    shared_page = mmap.mmap(-1, _MESSAGE_BYTES)  # the process that runs the kernel writes to it
    message = ctypes.c_char.from_buffer(shared_page)
    values = [
        np.array(memory[a].address if isinstance(a, str) else a).reshape(1)
        for a in launch.arguments
    ]
    arguments = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    description = _Launch(
        (ctypes.c_uint * 3)(*launch.extents[:3]),
        (ctypes.c_uint * 3)(*launch.extents[3:]),
        launch.cluster,
        launch.dependent,
        launch.dynamic_shared_bytes,
        order,
        _POISONS[order],
        regions,
        len(regions),
        GUARD_BYTES,
        _TIME_LIMIT_S,
        ctypes.addressof(message),
        _MESSAGE_BYTES,
    )
    entry = getattr(library, f"emulate_{launch.kernel}")
    if entry(ctypes.byref(description), arguments):
        text = shared_page[:].split(b"\0", 1)[0].decode(errors="replace")
        raise EmulationError(f"{launch.kernel}: {with_line(text, library)}")
