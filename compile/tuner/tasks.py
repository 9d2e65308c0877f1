"""The kernels of networks that have a design space, each once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import tvm
from tvm import relax, tirx
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from intswin.compile import tuning_log
from intswin.compile.tuner import space
from intswin.compile.tuner.kernel_data import KernelSpec


@dataclasses.dataclass
class Task:
    """One workload.

    Attributes:
        key: its hash.
        module: the kernel, unscheduled, as "main".
        spec: arguments and size.
        shape: what its design space depends on.
        calls: in all networks together, for each image.
    """

    key: str
    module: tvm.IRModule
    spec: KernelSpec
    shape: space.Shape
    calls: float = 0.0

    @property
    def workload_json(self) -> str:
        """The line of the workloads' file."""
        return json.dumps(ms.database.Workload(self.module).as_json())


def extract_tasks(modules: Iterable[tuple[tvm.IRModule, int]], target: Target) -> list[Task]:
    """The tunable kernels of emitted modules, each given with its batch; equal ones once."""
    tasks: dict[str, Task] = {}
    for mod, batch in modules:
        calls = _calls(mod["main"])
        for gvar, func in mod.functions.items():
            if not isinstance(func, tirx.PrimFunc) or not tuning_log.is_tunable(func):
                continue
            workload = tuning_log.workload_module(func)
            key = tuning_log.workload_hash(workload)
            if key not in tasks:
                shape = space.shape_of(workload, target)
                tasks[key] = Task(key, workload, KernelSpec.of(workload["main"], target), shape)
            tasks[key].calls += calls[gvar.name_hint] / batch
    return list(tasks.values())


def _calls(main: relax.Function) -> dict[str, int]:
    """How often each kernel is called."""
    counts: dict[str, int] = {}
    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and isinstance(value.args[0], tvm.ir.GlobalVar):
                name = value.args[0].name_hint
                counts[name] = counts.get(name, 0) + 1
    return counts
