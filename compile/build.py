"""From the emitted module to an executable: schedules, TVM's lowering, the proof, machine code."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import tvm
from tvm import relax
from tvm.support.cc import get_cc
from tvm.target import Target
from tvm.tirx import get_tir_pipeline, register_tir_pipeline

from intswin.compile.schedules import apply_default_schedules
from intswin.compile.stack_buffers import keep_small_buffers_on_stack
from intswin.compile.tuning_log import apply_tuned_schedules
from intswin.compile.verify_integer_only import IntegerOnlyReport, verify_integer_only
from intswin.models.errors import IntswinError

_PIPELINE = "intswin"


def build(mod: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Compile the module that `emit` made for `target`.

    Raises:
        FloatOperationError: `mod` or its lowered form does not compute in integers alone.
    """
    return build_with_report(mod, target)[0]


def build_with_report(
    mod: tvm.IRModule, target: Target
) -> tuple[relax.VMExecutable, IntegerOnlyReport]:
    """Like `build`, and what the integer-only check saw in the code that LLVM received."""
    mod = apply_default_schedules(apply_tuned_schedules(mod, target), target)
    verify_integer_only(mod)  # the Relax function, which lowering replaces by VM instructions
    reports: list[IntegerOnlyReport] = []
    # `tvm.compile` takes a TIR pipeline by name only.
    register_tir_pipeline(_PIPELINE, lambda: _checked_pipeline(reports))
    executable = tvm.compile(mod, target=target, tir_pipeline=_PIPELINE)
    (report,) = reports
    return executable, report


def build_kernel(mod: tvm.IRModule, target: Target) -> tvm.runtime.Module:
    """Compile one scheduled kernel, the function "main", as `build` compiles it.

    Without its check, which takes as long as LLVM does: what a network uses is checked with it.
    """
    register_tir_pipeline(_PIPELINE, _pipeline)
    return tvm.tirx.build(mod, target, pipeline=_PIPELINE)


def export(executable: relax.VMExecutable, path: Path, target: Target) -> None:
    """Link the executable to a shared library at `path`.

    Raises:
        IntswinError: there is no C compiler that links for `target`.
    """
    executable.export_library(str(path), cc=linker(target))


def _checked_pipeline(reports: list[IntegerOnlyReport]) -> tuple:
    """`_pipeline`, and the check behind the last pass."""

    @tvm.transform.module_pass(opt_level=0)
    def check(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        reports.append(verify_integer_only(mod))
        return mod

    return _pipeline(check)


def _pipeline(*last: tvm.transform.Pass) -> tuple:
    """TVM's default lowering with small buffers on the stack, and the passes `last`."""
    lower, finalize_host, finalize_device = get_tir_pipeline("s_tir")

    def finalize() -> tvm.transform.Pass:
        return tvm.transform.Sequential([keep_small_buffers_on_stack, finalize_host(), *last])

    return lower, finalize, finalize_device


def linker(target: Target) -> str:
    """The C compiler that links shared libraries for `target`.

    Raises:
        IntswinError: there is none.
    """
    triple = str(target.attrs["mtriple"])
    machine = triple.split("-", maxsplit=1)[0]
    if machine == platform.machine():
        compiler, package = get_cc(), "g++"
    else:
        name = f"{machine}-linux-gnu-gcc"
        compiler, package = shutil.which(name), f"gcc-{machine.replace('_', '-')}-linux-gnu"
    if not compiler:
        raise IntswinError(f"no C compiler to link code for {triple}: install {package}")
    return compiler
