"""Measure and check candidates on machines that run TVM's RPC server, found by TVM's tracker.

Each call of this module takes one free server from the tracker's queue and gives it back, so
several tuning jobs can share a fleet. tornado and cloudpickle are needed (the extra "rpc").
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from intswin.compile.tuner.kernel_data import KernelSpec, random_inputs
from intswin.compile.tuner.worker import WrongResultError
from intswin.models.errors import IntswinError

Address = tuple[str, int]

_SESSION_SECONDS = 60
_SAMPLE_MILLISECONDS = 1
_SAMPLES = 5


def parse_address(text: str) -> Address:
    """Read "host:port"; raises IntswinError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise IntswinError(f"{text!r} is not host:port")
    return host, int(port)


def count_servers(address: Address, key: str) -> int:
    """How many servers the tracker knows under `key`.

    Raises:
        IntswinError: no tracker answers, or it knows no such server.
    """
    with contextlib.suppress(OSError):
        socket.create_connection(address, timeout=5).close()
        servers = _tracker(address).summary()["server_info"]
        # "server:KEY", with the address in another field
        count = sum(info["key"].removeprefix("server:") == key for info in servers)
        if count:
            return count
        raise IntswinError(f"the tracker {address[0]}:{address[1]} has no server with key {key}")
    raise IntswinError(f"no RPC tracker answers at {address[0]}:{address[1]}")


def measure(
    address: Address, key: str, spec: KernelSpec, reference: str, candidate: str, give_up: float
) -> float:
    """Like `worker.measure`, on a server; `give_up` saves nothing here."""
    return compare(address, key, spec, reference, [candidate], 3)[0]


def compare(
    address: Address,
    key: str,
    spec: KernelSpec,
    reference: str,
    candidates: Sequence[str],
    rounds: int,
) -> list[float]:
    """Like `worker.compare`, on a server."""
    session = _tracker(address).request(key, session_timeout=_SESSION_SECONDS)
    device = session.cpu(0)
    arrays = random_inputs(spec, np.random.default_rng(0))
    inputs = [tvm.runtime.tensor(array, device) for array in arrays]
    shape, dtype = spec.arguments[-1]
    out = tvm.runtime.tensor(np.zeros(shape, dtype), device)
    garbage = np.full(shape, 0x55, dtype)

    def result(module: Any) -> np.ndarray:
        out.copyfrom(garbage)
        module["main"](*inputs, out)
        return out.numpy()

    # Each once: a file that is loaded must not be overwritten.
    loaded = {path: _remote_module(session, path) for path in {reference, *candidates}}
    expected = result(loaded[reference])
    modules = [loaded[path] for path in candidates]
    for module in modules:
        different = np.count_nonzero(result(module) != expected)
        if different:
            raise WrongResultError(f"{different} of {expected.size} numbers are wrong")
    timers = [
        module.time_evaluator(
            "main", device, number=1, repeat=_SAMPLES, min_repeat_ms=_SAMPLE_MILLISECONDS
        )
        for module in modules
    ]
    medians = [[timer(*inputs, out).median for timer in timers] for _ in range(rounds)]
    return [min(column) for column in zip(*medians, strict=True)]


def _remote_module(session: Any, path: str) -> Any:
    session.upload(path)
    return session.load_module(Path(path).name)


def _tracker(address: Address) -> Any:
    from tvm import rpc  # noqa: PLC0415 - needs packages of the extra "rpc"

    return rpc.connect_tracker(*address)
