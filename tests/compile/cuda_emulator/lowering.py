"""From a scheduled PrimFunc to CUDA source and the kernel launches of its host part."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.instrument import pass_instrument
from tvm.target import Target
from tvm.tirx.build import split_host_device_mods

from cuda_emulator.errors import EmulationError
from intswin.compile.dependent_launch import start_early
from intswin.compile.lowering import lower_with

_AXES = tuple(f"{kind}.{axis}" for kind in ("blockIdx", "threadIdx") for axis in "xyz")
_CLUSTER = "clusterCtaIdx.x"
_COMPILE = "tvm_callback_cuda_compile"
_DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"
_LAUNCH_PARAMS = "tirx.kernel_launch_params"
_DEPENDENT = "tirx.use_programtic_dependent_launch"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel call.

    Arguments are names of arrays, or NumPy scalars of the kernel's types. `extents` has those of
    blockIdx.x, y, z and threadIdx.x, y, z; `cluster` blocks, neighbours in x, are a cluster. A
    `dependent` kernel may start before the one before it has ended.
    """

    kernel: str
    arguments: tuple[str | np.generic, ...]
    extents: tuple[int, ...]
    dynamic_shared_bytes: int
    cluster: int = 1
    dependent: bool = False


@dataclasses.dataclass(frozen=True)
class Workspace:
    """An array that the host part allocates."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Program:
    """What a PrimFunc is on a GPU: `parameters` are the names of its arrays."""

    source: str
    parameters: tuple[str, ...]
    workspaces: dict[str, Workspace]
    launches: tuple[Launch, ...]


def lower(func: tirx.PrimFunc | tvm.IRModule, target: Target) -> Program:
    """Lower the function, or the function "main" of a module, and generate its CUDA source.

    Raises:
        EmulationError: the host part does more than to allocate arrays and to launch kernels.
    """
    if isinstance(func, tvm.IRModule):
        func = func["main"]
    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    before_packing = _Snapshot()
    with target, tvm.transform.PassContext(instruments=[before_packing]):
        mod = tirx.transform.BindTarget(target)(mod)
        pipeline, _, finalize_device = tirx.get_tir_pipeline("s_tir")
        lowered = start_early(lower_with(pipeline)(mod))
        _, devices = split_host_device_mods(lowered)
        if len(devices) != 1:
            raise EmulationError("the function has no schedule for a GPU: it launches no kernel")
        ((device, kernels),) = devices.items()
        with _no_compiler():
            built = tvm.get_global_func("target.build.cuda")(finalize_device()(kernels), device)
    assert before_packing.mod is not None
    return _program(before_packing.mod, _dependent(lowered), built.inspect_source("cuda"))


def _dependent(lowered: tvm.IRModule) -> set[str]:
    """The kernels that are launched as dependent ones."""
    params = {g.name_hint: f.attrs.get(_LAUNCH_PARAMS) for g, f in lowered.functions.items()}
    return {name for name, tags in params.items() if tags and _DEPENDENT in map(str, tags)}


@contextlib.contextmanager
def _no_compiler() -> Iterator[None]:
    """TVM asks for machine code where its CUDA runtime is loaded: only the source is wanted."""
    before = tvm_ffi.get_global_func(_COMPILE, allow_missing=True)
    tvm_ffi.register_global_func(_COMPILE, lambda _source: b"", override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(_COMPILE)
        else:
            tvm_ffi.register_global_func(_COMPILE, before, override=True)


@pass_instrument
class _Snapshot:
    """The module when host and device are separate functions with plain arguments."""

    def __init__(self) -> None:
        self.mod: tvm.IRModule | None = None

    def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        """Called by TVM after each pass."""
        if info.name == "tirx.SplitHostDevice":
            self.mod = mod


def _program(mod: tvm.IRModule, dependent: set[str], source: str) -> Program:
    host = mod["main"]
    kernels = {gvar.name_hint: f for gvar, f in mod.functions.items()}
    names = [(p, f"{p.name} (argument {i})") for i, p in enumerate(host.params)]
    parameters = tuple(name for _, name in names)
    workspaces: dict[str, Workspace] = {}
    launches = []

    def name_of(expr: tvm.ir.Expr) -> str:
        buffer = expr.args[0] if isinstance(expr, tvm.ir.Call) else expr
        return next(name for known, name in names if known.same_as(buffer))

    body = host.body.seq if isinstance(host.body, tirx.SeqStmt) else [host.body]
    for stmt in body:
        if isinstance(stmt, tirx.AllocBuffer):
            name = f"{stmt.buffer.name} (workspace {len(workspaces)})"
            names.append((stmt.buffer, name))
            shape = tuple(int(extent) for extent in stmt.buffer.shape)
            workspaces[name] = Workspace(shape, str(stmt.buffer.dtype))
        elif isinstance(stmt, tirx.DeclBuffer):
            names.append((stmt.buffer, name_of(stmt.data)))
        elif _is_launch(stmt):
            kernel, *arguments = stmt.value.args
            launch = _launch(kernel.value, arguments, stmt, kernels, name_of)
            launches.append(dataclasses.replace(launch, dependent=kernel.value in dependent))
        else:
            raise EmulationError(f"the host part is not only launches: {type(stmt).__name__}")
    return Program(source, parameters, workspaces, tuple(launches))


def _is_launch(stmt: tirx.Stmt) -> bool:
    return isinstance(stmt, tirx.Evaluate) and getattr(stmt.value, "op", None) == tvm.ir.Op.get(
        "tirx.call_ffi_kernel"
    )


def _launch(kernel, arguments, stmt, kernels, name_of) -> Launch:
    axes = [str(axis) for axis in stmt.value.attrs.launch_params]
    split = len(arguments) - len(axes)
    extents = {axis: int(value) for axis, value in zip(axes, arguments[split:], strict=True)}
    unknown = set(extents) - {*_AXES, _DYNAMIC_SHARED, _CLUSTER}
    if unknown:
        raise EmulationError(f"{kernel}: cannot launch with {', '.join(sorted(unknown))}")
    values: list[str | np.generic] = []
    for value, parameter in zip(arguments[:split], kernels[kernel].params, strict=True):
        if isinstance(value, tirx.IntImm):
            values.append(np.dtype(str(parameter.ty.dtype)).type(int(value)))
        else:
            values.append(name_of(value))
    shape = tuple(extents.get(axis, 1) for axis in _AXES)
    shared_bytes, cluster = extents.get(_DYNAMIC_SHARED, 0), extents.get(_CLUSTER, 1)
    return Launch(kernel, tuple(values), shape, shared_bytes, cluster)
