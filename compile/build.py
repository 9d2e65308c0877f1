"""From the emitted module to an executable: schedules, TVM's lowering, the proof, machine code."""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import tvm
from tvm import relax
from tvm.relax.backend.cuda import pipeline as relax_cuda
from tvm.support.cc import get_cc
from tvm.target import Target
from tvm.tirx import get_tir_pipeline, register_tir_pipeline

from intswin.compile.cuda_toolchain import KernelCompiler
from intswin.compile.dependent_launch import start_early
from intswin.compile.lowering import lower_with
from intswin.compile.schedules import apply_default_schedules
from intswin.compile.stack_buffers import keep_small_buffers_on_stack
from intswin.compile.targets import is_cuda
from intswin.compile.tuning_log import apply_tuned_schedules
from intswin.compile.verify_integer_only import IntegerOnlyReport, verify_integer_only
from intswin.models.errors import IntswinError

_PIPELINE = "intswin"


def build(mod: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Compile the module that `emit` made for `target`.

    Raises:
        FloatOperationError: `mod` or its lowered form does not compute in integers alone.
        IntswinError: NVRTC, which `target` needs, is not installed.
    """
    return build_with_report(mod, target)[0]


def build_with_report(
    mod: tvm.IRModule, target: Target, float_kernels: str | None = None
) -> tuple[relax.VMExecutable, IntegerOnlyReport]:
    """Like `build`, and what the integer-only check saw in the kernels' last form in TVM.

    Kernels whose names start with `float_kernels` are not checked: for comparisons alone.
    """
    mod = apply_default_schedules(apply_tuned_schedules(mod, target), target)
    verify_integer_only(
        mod, (), float_kernels
    )  # the Relax function, which lowering replaces by VM instructions
    reports: list[IntegerOnlyReport] = []
    if is_cuda(target):
        pipeline, relax_pipeline = (
            _checked_cuda_pipeline(reports, float_kernels),
            _relax_cuda_pipeline(target),
        )
    else:
        pipeline, relax_pipeline = _checked_pipeline(reports), "default"
    # `tvm.compile` takes a TIR pipeline by name only.
    register_tir_pipeline(_PIPELINE, lambda: pipeline)
    with _kernel_compiler(target):
        executable = tvm.compile(
            mod, target=target, relax_pipeline=relax_pipeline, tir_pipeline=_PIPELINE
        )
    return executable, reports[-1]


def build_kernel(mod: tvm.IRModule, target: Target) -> tvm.runtime.Module:
    """Compile one scheduled kernel, the function "main", as `build` compiles it.

    Without its check, which takes as long as LLVM does: what a network uses is checked with it.
    A library for an older GPU holds PTX too: its candidates can be measured on a newer one.
    """
    register_tir_pipeline(_PIPELINE, _pipeline)
    with _kernel_compiler(target):
        return tvm.tirx.build(mod, target, pipeline=_PIPELINE)


def export(executable: relax.VMExecutable, path: Path, target: Target) -> None:
    """Link the executable to a shared library at `path`.

    Raises:
        IntswinError: there is no C compiler that links for `target`.
    """
    executable.export_library(str(path), cc=linker(target))


@contextlib.contextmanager
def _kernel_compiler(target: Target) -> Iterator[None]:
    """Let TVM compile CUDA source as cuda_toolchain.py does; nothing for a CPU.

    Raises:
        IntswinError: NVRTC is missing or refuses the source.
        RuntimeError: TVM did not ask for machine code; a library of source would come out.
    """
    if not is_cuda(target):
        yield
        return
    compiler = KernelCompiler(target)
    compiler.install()
    try:
        yield
    except Exception as error:
        if compiler.error is not None:  # TVM keeps the text of an exception, not its type
            raise compiler.error from error
        raise
    if not compiler.used:
        raise RuntimeError(f"TVM made no machine code for {target.attrs['arch']}")


def _checked_pipeline(reports: list[IntegerOnlyReport]) -> tuple:
    """`_pipeline`, and the check behind the last pass."""

    @tvm.transform.module_pass(opt_level=0)
    def check(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        reports.append(verify_integer_only(mod))
        return mod

    return _pipeline(check)


def _checked_cuda_pipeline(reports: list[IntegerOnlyReport], float_kernels: str | None) -> tuple:
    """TVM's default lowering, and the check behind the last pass of the host and of the kernels.

    The host's code checks arguments and launches kernels; the kernels' report comes last.
    """
    lower, finalize_host, finalize_device = get_tir_pipeline("s_tir")
    known = {"__tvm_set_device"}  # what the host may call

    @tvm.transform.module_pass(opt_level=0)
    def note_kernels(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        names = {str(gvar.name_hint): func.attrs for gvar, func in mod.functions.items()}
        kernels = {name for name in names if "tirx.kernel_launch_params" in names[name]}
        for name in sorted(names.keys() - kernels):
            if f"{name}_kernel" not in kernels:  # TVM would compile it for the host
                raise RuntimeError(f"{name} has no schedule for a GPU")
        known.update(kernels)
        return mod

    @tvm.transform.module_pass(opt_level=0)
    def check(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        reports.append(verify_integer_only(mod, known, float_kernels))
        return mod

    return (
        tvm.transform.Sequential([lower_with(lower), start_early, note_kernels]),
        lambda: tvm.transform.Sequential([finalize_host(), check]),
        lambda: tvm.transform.Sequential([finalize_device(), check]),
    )


def _relax_cuda_pipeline(target: Target) -> tvm.transform.Pass:
    """TVM's lowering of Relax for CUDA less what fuses and schedules kernels: they are whole.

    Memory between kernels is planned: one storage for tensors that do not live together.
    """
    return tvm.transform.Sequential(
        [*relax_cuda.dataflow_lower_passes(target), *relax_cuda.finalize_passes(target)]
    )


def _pipeline(*last: tvm.transform.Pass) -> tuple:
    """TVM's default lowering with small buffers on the stack, and the passes `last`."""
    lower, finalize_host, finalize_device = get_tir_pipeline("s_tir")

    def finalize() -> tvm.transform.Pass:
        return tvm.transform.Sequential([keep_small_buffers_on_stack, finalize_host(), *last])

    lowered = tvm.transform.Sequential([lower_with(lower), start_early])
    return lowered, finalize, finalize_device


def linker(target: Target) -> str:
    """The C compiler that links shared libraries for `target`.

    Raises:
        IntswinError: there is none.
    """
    triple = str((target.host if is_cuda(target) else target).attrs["mtriple"])
    machine = triple.split("-", maxsplit=1)[0]
    if machine == platform.machine():
        compiler, package = get_cc(), "g++"
    else:
        name = f"{machine}-linux-gnu-gcc"
        compiler, package = shutil.which(name), f"gcc-{machine.replace('_', '-')}-linux-gnu"
    if not compiler:
        raise IntswinError(f"no C compiler to link code for {triple}: install {package}")
    return compiler
