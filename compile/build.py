"""From the emitted module to an executable: schedules, TVM's lowering, the proof, machine code."""

from __future__ import annotations

from pathlib import Path

import tvm
from intswin.compile.schedules import apply_default_schedules
from tvm import relax
from tvm.target import Target


def build(mod: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Compile what `emit` made for `target`."""
    mod = apply_default_schedules(mod, target)
    return tvm.compile(mod, target=target)


def export(executable: relax.VMExecutable, path: Path) -> None:
    executable.export_library(str(path))
