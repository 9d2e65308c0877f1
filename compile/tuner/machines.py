"""Where candidates are measured: on this machine, or on those behind an RPC tracker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvm.target import Target

from intswin.compile import host_cpu
from intswin.compile.tuner import peak, remote, worker
from intswin.compile.tuner.kernel_data import KernelSpec
from intswin.compile.tuner.processes import Pool, WorkerError
from intswin.models.errors import IntswinError

RUN_SECONDS = 10.0  # the limit of a candidate, with its check
_COMPARE_SECONDS = 60.0
_PEAK_SECONDS = 120.0  # with the start of the workers


class Machines:
    """Measures in processes that may hang or crash; one candidate at a time on each machine."""

    def __init__(
        self, count: int, measure: Callable[..., float], compare: Callable[..., list[float]]
    ) -> None:
        self._pool = Pool(count)
        self._measure, self._compare = measure, compare

    @staticmethod
    def local(target: Target) -> Machines:
        """This machine.

        Raises:
            IntswinError: it cannot run code for `target`.
        """
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
        return self._pool.map(RUN_SECONDS, self._measure, calls)

    def compare(
        self, spec: KernelSpec, reference: str, candidates: Sequence[str], rounds: int
    ) -> list[float] | WorkerError:
        """Seconds of a call of each, measured in turns on one machine."""
        arguments = (spec, reference, list(candidates), rounds)
        return self._pool.map(_COMPARE_SECONDS, self._compare, [arguments])[0]

    def peak(self, target_json: str, folder: Path) -> float | None:
        """Operations a second that this machine's int8 instruction reaches."""
        arguments = (target_json, str(folder / "peak.so"))
        result: Any = self._pool.map(_PEAK_SECONDS, peak.measure_peak, [arguments])[0]
        return None if isinstance(result, WorkerError) else result

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
