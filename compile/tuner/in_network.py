"""Whether tuned kernels are faster inside a network too.

The tuner measures a kernel alone, again and again, so that its inputs lie in the caches of every
core. In a network other cores have just written them: a tile whose rows another core made has to
fetch them first. So a record is worth keeping only if it is faster there as well.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.target import Target

from intswin.compile import tuning_log
from intswin.compile.build import build, export
from intswin.compile.emit import emit
from intswin.compile.tvm_runtime import VirtualMachine, aligned_empty
from intswin.models.integer_graph import IntegerGraph

_TURNS, _CALLS = 8, 8


def compare(
    graph: IntegerGraph, batch: int, target: Target, logs: Path
) -> list[tuple[str, float, float]]:
    """Time the kernels of a network with default and with tuned schedules, in turns.

    Args:
        graph: the network.
        batch: images of a call.
        target: of this CPU.
        logs: the folder of logs that tuned schedules come from.

    Returns:
        for each call of a kernel with a design space: its workload's hash, and seconds for a batch
        with the default schedule and with that of its best record.
    """
    module = emit(graph, batch, target)
    keys = workloads(module)
    machines = [_machine(module, target, folders) for folders in ("", str(logs))]
    images = aligned_empty((batch, *graph.input.shape), "uint8")
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    runs: list[list[list[float]]] = [[] for _ in machines]
    for _ in range(_TURNS):
        for machine, times in zip(machines, runs, strict=True):
            machine.main(images)
            times.extend(_kernel_seconds(machine, images) for _ in range(_CALLS))
    medians = (np.median(np.array(times), axis=0).tolist() for times in runs)
    return [call for call in zip(keys, *medians, strict=True) if call[0]]


def workloads(module: tvm.IRModule) -> list[str]:
    """Of each kernel that `main` calls, in order: its workload's hash, empty without a space."""
    keys = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and isinstance(value.args[0], tvm.ir.GlobalVar):
                func = module[value.args[0]]
                assert isinstance(func, tirx.PrimFunc)
                workload = tuning_log.workload_module(func)
                tunable = tuning_log.is_tunable(func)
                keys.append(tuning_log.workload_hash(workload) if tunable else "")
    return keys


def _machine(module: tvm.IRModule, target: Target, folders: str) -> VirtualMachine:
    """The network compiled with the logs of `folders`, separated as the variable has them."""
    before = os.environ.get(tuning_log.FOLDERS_VARIABLE)
    os.environ[tuning_log.FOLDERS_VARIABLE] = folders
    try:
        executable = build(module, target)
    finally:
        if before is None:
            del os.environ[tuning_log.FOLDERS_VARIABLE]
        else:
            os.environ[tuning_log.FOLDERS_VARIABLE] = before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        export(executable, path, target)
        return VirtualMachine(path.read_bytes())


def _kernel_seconds(machine: VirtualMachine, images: np.ndarray) -> list[float]:
    times = machine.kernel_times(images)
    return [seconds for name, seconds in times if not name.startswith("vm.builtin.")]
