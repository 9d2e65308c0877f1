"""Where candidates are measured: on this machine, or on those behind an RPC tracker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvm.target import Target

from intswin.compile import cuda_driver, cuda_runtime, gpu_peak, host_cpu
from intswin.compile.cuda_toolchain import ptx_arch
from intswin.compile.targets import has_mma, is_cuda
from intswin.compile.tuner import cuda_worker, peak, remote, worker
from intswin.compile.tuner.kernel_data import KernelSpec
from intswin.compile.tuner.processes import Pool, WorkerError
from intswin.models.errors import IntswinError

RUN_SECONDS = 10.0  # the limit of a candidate, with its check
GPU_SECONDS = 60.0  # on a GPU, with the start of CUDA and the reference for a batch of 128
_COMPARE_SECONDS = 60.0
_PEAK_SECONDS = 120.0  # with the start of the workers


class Machines:
    """Measures in processes that may hang or crash; one candidate at a time on each machine."""

    def __init__(
        self,
        count: int,
        measure: Callable[..., float],
        compare: Callable[..., list[float]],
        seconds: float | None = None,
    ) -> None:
        self._pool = Pool(count)
        self._measure, self._compare, self._seconds = measure, compare, seconds

    @staticmethod
    def local(target: Target) -> Machines:
        """This machine, or its GPU 0.

        Raises:
            IntswinError: it cannot run code for `target`.
        """
        if is_cuda(target):
            code = {"arch": str(target.attrs["arch"]), "ptx": ptx_arch(target)}
            reason, _ = cuda_runtime.check_runs_here(code)
            if reason:
                raise IntswinError(f"code for this target cannot be measured here: {reason}")
            return Machines(1, cuda_worker.measure, cuda_worker.compare, GPU_SECONDS)
        needed = host_cpu.requirements(target)
        reason = host_cpu.missing(needed["machine"], needed["features"])
        if reason:
            raise IntswinError(
                f"code for this target cannot be measured here: {reason}; use --rpc-tracker"
            )
        return Machines(1, worker.measure, worker.compare)

    @staticmethod
    def behind_tracker(tracker: str, key: str) -> Machines:
        """All servers that are registered under `key` at the tracker "host:port".

        Raises:
            IntswinError: there is no such tracker, or no such server.
        """
        address = remote.parse_address(tracker)
        count = remote.count_servers(address, key)
        measure = functools.partial(remote.measure, address, key)
        return Machines(count, measure, functools.partial(remote.compare, address, key))

    def measure(
        self, spec: KernelSpec, reference: str, candidates: Sequence[str], give_up: float
    ) -> list[float | WorkerError]:
        """Seconds of a call of each candidate, or why there are none."""
        calls = [(spec, reference, path, give_up) for path in candidates]
        return self._pool.map(self._seconds or RUN_SECONDS, self._measure, calls)

    def compare(
        self, spec: KernelSpec, reference: str, candidates: Sequence[str], rounds: int
    ) -> list[float] | WorkerError:
        """Seconds of a call of each, measured in turns on one machine."""
        arguments = (spec, reference, list(candidates), rounds)
        return self._pool.map(_COMPARE_SECONDS, self._compare, [arguments])[0]

    def peak(self, target: Target, folder: Path) -> float | None:
        """Operations a second that this machine's int8 instruction reaches, or None.

        Measured on a CPU; of a GPU's data sheet, where the tensor cores are what code for the
        target uses.
        """
        if is_cuda(target):
            limits = gpu_peak.data_sheet(cuda_driver.gpu().name)
            return 1e12 * limits.tops if limits is not None and has_mma(target) else None
        arguments = (str(target), str(folder / "peak.so"))
        result: Any = self._pool.map(_PEAK_SECONDS, peak.measure_peak, [arguments])[0]
        return None if isinstance(result, WorkerError) else result

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
