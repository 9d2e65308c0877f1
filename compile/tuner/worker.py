"""What the tuner's workers do: build a candidate; measure and check it on this machine."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.support import cc
from tvm.target import Target

from intswin.compile.build import build_kernel, linker
from intswin.compile.targets import is_cuda
from intswin.compile.tuner import space
from intswin.compile.tuner.kernel_data import KernelSpec, random_inputs

_INPUT_SETS = 2  # different random inputs that a kernel is checked on
_COLD_BYTES = 16 << 20  # copies of the constants that a call finds outside the nearer caches
_MOST_COPIES = 32
_GROUP_SECONDS = 5e-4  # one sample: so many calls that it lasts about that long
_SAMPLES = 5  # of which the median counts; of some such medians, the smallest


class WrongResultError(Exception):
    """A kernel whose output differs from that of the default schedule."""


def build(workload: str, target: str, tile: space.Tile | None, path: str) -> str:
    """Schedule, compile and link one candidate to a shared library at `path`.

    Args:
        workload: JSON of a line of the workloads' file.
        target: JSON of the target.
        tile: None for the default schedule.
        path: of the library.

    Returns:
        `path`.
    """
    tvm_target = Target(json.loads(target))
    schedule = space.decide(_module(workload), tvm_target, tile)
    link(build_kernel(space.finished(schedule, tvm_target), tvm_target), tvm_target, path)
    return path


def link(kernel: tvm.runtime.Module, target: Target, path: str) -> None:
    """Make a shared library of a compiled kernel."""
    if is_cuda(target):  # with the GPU's code inside
        kernel.export_library(path, cc=linker(target))
        return
    compiled = f"{path}.o"
    kernel.write_to_file(compiled)
    if str(target.attrs["mtriple"]).startswith(platform.machine()):
        # The linker alone: 15 times faster than through the compiler, which adds nothing.
        subprocess.run(["ld", "-shared", "-o", path, compiled], check=True, capture_output=True)
    else:
        cc.create_shared(path, [compiled], cc=linker(target))
    Path(compiled).unlink()


def measure(spec: KernelSpec, reference: str, candidate: str, give_up: float) -> float:
    """Seconds of a call of a candidate, after checking what it computes.

    Args:
        spec: of both kernels.
        reference: path of the library with the default schedule.
        candidate: path of the library.
        give_up: seconds beyond which one sample is enough.

    Raises:
        WrongResultError: its output differs.
    """
    data = _data(spec, reference)
    kernel = load_kernel(candidate)
    data.check(kernel)
    rounds = 3
    first = data.sample(kernel, calls=2)
    if first > give_up:
        return first
    calls = max(1, round(_GROUP_SECONDS / first))
    return min(data.median(kernel, calls) for _ in range(rounds))


def compare(
    spec: KernelSpec, reference: str, candidates: Sequence[str], rounds: int
) -> list[float]:
    """Seconds of a call of each candidate, taken in turns: drifts of the machine meet all."""
    data = _data(spec, reference)
    kernels = [load_kernel(path) for path in candidates]
    for kernel in kernels:
        data.check(kernel)
    calls = [max(1, round(_GROUP_SECONDS / data.sample(kernel, 2))) for kernel in kernels]
    medians = [
        [data.median(kernel, count) for kernel, count in zip(kernels, calls, strict=True)]
        for _ in range(rounds)
    ]
    return [min(column) for column in zip(*medians, strict=True)]


class _KernelData:
    """Inputs of a kernel and what it should make of them."""

    def __init__(self, spec: KernelSpec, reference: str) -> None:
        kernel = load_kernel(reference)
        shape, dtype = spec.arguments[-1]
        self._out = tvm.runtime.empty(shape, dtype)
        self._sets = []
        for seed in range(_INPUT_SETS):
            arrays = random_inputs(spec, np.random.default_rng(seed))
            self._sets.append([tvm.runtime.tensor(array) for array in arrays])
        self._expected = [self._run(kernel, inputs) for inputs in self._sets]
        # In a network a layer's constants were last used an image ago.
        constants = self._sets[0][1:5]
        size = sum(tensor.numpy().nbytes for tensor in constants)
        copies = max(1, min(_COLD_BYTES // size, _MOST_COPIES))
        self._calls = [
            (
                self._sets[0][0],
                *(tvm.runtime.tensor(tensor.numpy()) for tensor in constants),
                *self._sets[0][5:],
                self._out,
            )
            for _ in range(copies)
        ]
        self._next = 0

    def check(self, kernel: Callable[..., None]) -> None:
        for inputs, expected in zip(self._sets, self._expected, strict=True):
            different = np.count_nonzero(self._run(kernel, inputs) != expected)
            if different:
                raise WrongResultError(f"{different} of {expected.size} numbers are wrong")

    def median(self, kernel: Callable[..., None], calls: int) -> float:
        return float(np.median([self.sample(kernel, calls) for _ in range(_SAMPLES)]))

    def sample(self, kernel: Callable[..., None], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            kernel(*self._calls[self._next])
            self._next = (self._next + 1) % len(self._calls)
        return (time.perf_counter() - start) / calls

    def _run(self, kernel: Callable[..., None], inputs: list) -> np.ndarray:
        garbage = np.full(self._out.shape, 0x55, str(self._out.dtype))
        self._out.copyfrom(garbage)
        kernel(*inputs, self._out)
        return self._out.numpy().copy()


@functools.lru_cache(maxsize=2)
def _data(spec: KernelSpec, reference: str) -> _KernelData:
    return _KernelData(spec, reference)


@functools.lru_cache(maxsize=8)
def _module(workload: str) -> tvm.IRModule:
    return ms.database.Workload.from_json(json.loads(workload)).mod


def load_kernel(path: str) -> Any:
    """The kernel of a library that `build` made."""
    return tvm.runtime.load_module(os.path.abspath(path))["main"]
