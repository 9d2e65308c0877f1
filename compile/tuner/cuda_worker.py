"""Measure and check CUDA candidates on this machine's GPU, in a process that may die.

Times are of launches recorded in a CUDA graph, one after the other, as in a network: what was
written last is in the L2 cache where it fits. Every candidate is compared with the NumPy reference
in some rows, and with the default schedule, which was itself compared so, in all of them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from intswin.compile.cuda_driver import CudaError
from intswin.compile.cuda_runtime import open_device
from intswin.compile.cuda_timing import time_launches
from intswin.compile.tuner.cuda_data import Problem, random_problem
from intswin.compile.tuner.kernel_data import KernelSpec
from intswin.compile.tuner.worker import WrongResultError, load_kernel

_PROBLEMS = 2  # different random inputs that a kernel is checked on
_GRAPH_SECONDS = 2e-3  # so many launches in a graph that it lasts about that long
_MOST_LAUNCHES = 100
_REPLAYS = 5


def measure(spec: KernelSpec, reference: str, candidate: str, give_up: float) -> float:
    """Like `worker.measure`, on the GPU."""
    with _process_ends_with_its_context():
        data = _data(spec, reference)
        kernel = load_kernel(candidate)
        data.check(kernel)
        first = float(np.median(data.times(kernel, 2, 3)))
        if first > give_up:
            return first
        return min(data.median(kernel, first) for _ in range(2))


def compare(
    spec: KernelSpec, reference: str, candidates: Sequence[str], rounds: int
) -> list[float]:
    """Like `worker.compare`, on the GPU."""
    with _process_ends_with_its_context():
        data = _data(spec, reference)
        kernels = [load_kernel(path) for path in candidates]
        for kernel in kernels:
            data.check(kernel)
        first = [float(np.median(data.times(kernel, 2, 3))) for kernel in kernels]
        medians = [
            [data.median(kernel, seconds) for kernel, seconds in zip(kernels, first, strict=True)]
            for _ in range(rounds)
        ]
        return [min(column) for column in zip(*medians, strict=True)]


class _KernelData:
    """Problems on the GPU and their results."""

    def __init__(self, spec: KernelSpec, reference: str) -> None:
        self._cuda, self._stream = _stream()
        self._device = tvm.cuda(0)
        shape, dtype = spec.arguments[-1]
        self._out = tvm.runtime.empty(shape, dtype, self._device)
        # Copied to for every candidate: new memory would take longer than the copy.
        self._on_host = tvm.runtime.empty(shape, dtype)
        self._garbage = tvm.runtime.tensor(np.full(shape, 0x55, dtype), self._device)
        kernel = load_kernel(reference)
        self._problems: list[tuple[Problem, list[Any], np.ndarray]] = []
        for seed in range(_PROBLEMS):
            problem = random_problem(spec, np.random.default_rng(seed))
            tensors = [tvm.runtime.tensor(array, self._device) for array in problem.arguments]
            result = self._run(kernel, tensors).copy()
            _compare(result.reshape(-1, shape[-1])[problem.rows], problem.expected)
            # The arrays are on the GPU now.
            kept = Problem([], problem.rows, problem.expected)
            self._problems.append((kept, tensors, result))

    def check(self, kernel: Any) -> None:
        """Raise WrongResultError when the kernel differs in any number."""
        for problem, tensors, expected in self._problems:
            result = self._run(kernel, tensors)
            _compare(result.reshape(-1, result.shape[-1])[problem.rows], problem.expected)
            _compare(result, expected)

    def median(self, kernel: Any, seconds: float) -> float:
        """Seconds of a launch that takes about `seconds`."""
        launches = min(_MOST_LAUNCHES, max(2, round(_GRAPH_SECONDS / seconds)))
        return float(np.median(self.times(kernel, launches, _REPLAYS)))

    def times(self, kernel: Any, launches: int, replays: int) -> list[float]:
        """Seconds of a launch, a number for each replay."""
        tensors = self._problems[0][1]
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), self._stream):
            return time_launches(
                self._cuda, self._stream, lambda: kernel(*tensors, self._out), launches, replays
            )

    def _run(self, kernel: Any, tensors: list[Any]) -> np.ndarray:
        """The output, until the next call."""
        self._garbage.copyto(self._out)
        kernel(*tensors, self._out)
        self._out.copyto(self._on_host)
        return np.from_dlpack(self._on_host)


def _compare(actual: np.ndarray, expected: np.ndarray) -> None:
    if not _equal(actual.reshape(-1), expected.reshape(-1)):
        different = np.count_nonzero(actual != expected)
        raise WrongResultError(f"{different} of {expected.size} numbers are wrong")


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """In parts whose comparison stays in the cache: 20 times faster than all at once."""
    part = 1 << 20
    return all(
        np.array_equal(one[start : start + part], other[start : start + part])
        for start in range(0, len(one), part)
    )


@functools.lru_cache(maxsize=2)
def _data(spec: KernelSpec, reference: str) -> _KernelData:
    return _KernelData(spec, reference)


@functools.cache
def _stream() -> tuple[Any, int]:
    cuda, _ = open_device(0)
    return cuda, cuda.new_stream()


@contextlib.contextmanager
def _process_ends_with_its_context() -> Iterator[None]:
    """End this process when a kernel has made CUDA unusable: the next call gets a new one."""
    try:
        yield
    except WrongResultError:
        raise
    except Exception as error:
        cuda, stream = _stream()
        try:
            cuda.synchronize(stream)
            cuda.synchronize(0)
        except CudaError:
            print(str(error).strip().splitlines()[-1], file=sys.stderr, flush=True)
            os._exit(1)
        raise
