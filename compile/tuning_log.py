"""Tuning logs as the compiler reads them: which schedule is the best known one of a kernel.

A folder holds MetaSchedule's two JSON files, so TVM's own JSONDatabase can read it too, and a
fingerprint of what they are valid for. This reader exists because TVM's fails as a whole on a
single broken line, and parses every workload where a compilation needs a few.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from intswin.compile import host_cpu
from intswin.compile.operators import linear
from intswin.compile.schedules import (
    cuda_attention_space,
    cuda_gemm_space,
    cuda_kernels,
    cuda_layer_norm_space,
    cuda_norm_attention_space,
    cuda_norm_gemm_space,
    cuda_norm_mlp_space,
    gemm,
    gemm_space,
    x86_intrinsics,
)
from intswin.compile.targets import cuda_name, is_cuda
from intswin.models.integer_graph import Node, TensorSpec

WORKLOADS = "database_workload.json"
RECORDS = "database_tuning_record.json"
FINGERPRINT = "fingerprint.json"
# Folders, separated like PATH, that replace the places where logs are looked for.
FOLDERS_VARIABLE = "INTSWIN_TUNING_LOGS"

_SHIFT = 12  # of a LayerNorm, in workloads

_log = logging.getLogger("intswin")


@dataclasses.dataclass(frozen=True)
class Record:
    """A schedule that was measured.

    Attributes:
        seconds: of a call; they relate to other records of the kernel.
        fields: MetaSchedule's own, as JSON: the trace comes first.
    """

    seconds: float
    fields: list[Any]

    @property
    def trace(self) -> Any:
        """The schedule, as JSON."""
        return self.fields[0]


@dataclasses.dataclass(frozen=True)
class Log:
    """What a folder holds.

    Attributes:
        workloads: hash and JSON of each line; None for one that cannot be read.
        records: by the hash of the workload, fastest first.
        broken: lines that cannot be read.
    """

    workloads: list[tuple[str, Any] | None]
    records: dict[str, list[Record]]
    broken: int


def log_name(target: Target) -> str:
    """The folder of a target, such as llvm-znver4, llvm-x86-64-v3 or cuda-h100."""
    if is_cuda(target):
        return cuda_name(target)
    machine = str(target.attrs.get("mtriple", "")).split("-", maxsplit=1)[0]
    cpu = str(target.attrs.get("mcpu", "")) or "generic"
    return f"llvm-{machine}" if cpu == "generic" else f"llvm-{cpu}"


def folders() -> list[Path]:
    """Where logs are looked for: the working directory's tuning_logs, then the packaged ones."""
    if FOLDERS_VARIABLE in os.environ:
        return [Path(p) for p in os.environ[FOLDERS_VARIABLE].split(os.pathsep) if p]
    packaged = Path(__file__).parents[1] / "tuning_logs"  # beside compile/, installed or not
    return [Path("tuning_logs"), packaged]


def apply_tuned_schedules(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Schedule the PrimFuncs of `mod` that the target's logs know; leave the others alone."""
    logs = _usable_logs(target)
    scheduled = {}
    for gvar, func in mod.functions.items() if logs else ():
        if not isinstance(func, tirx.PrimFunc) or not is_tunable(func):
            continue
        workload = workload_module(func)
        for log in logs:
            tuned = _best_kernel(log, workload, func, target)
            if tuned is not None:
                scheduled[gvar] = tuned.with_attr("tirx.is_scheduled", True)
                break
    mod = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gvar, func in scheduled.items():
        mod[gvar] = func
    return mod


def is_tunable(func: tirx.PrimFunc) -> bool:
    """Whether `func` is an unscheduled kernel of an operator that has a design space.

    On a CPU only `linear` has one: the other kernels of these operators come scheduled.
    """
    attrs = func.attrs
    return "tirx.is_scheduled" not in attrs and attrs.get("intswin.op") in cuda_kernels.OPERATORS


def workload_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """The kernel alone, as it is tuned, hashed and stored.

    The shift of a LayerNorm for CUDA depends on the layer's weights, its speed does not: it is the
    same one in all workloads, so that a record serves every layer and every training of a network.
    """
    attrs: dict[str, int | str] = {"global_symbol": "main"}
    if "intswin.shift" in func.attrs:
        attrs["intswin.shift"] = _SHIFT
    return tvm.IRModule({"main": func.with_attr(attrs)})


def workload_hash(workload: tvm.IRModule) -> str:
    """As MetaSchedule writes it: equal for kernels that are structurally equal."""
    return str(tvm_ffi.structural_hash(workload) % 2**64)


def read_log(folder: Path) -> Log:
    """Read a folder; lines that are not whole and valid are counted and skipped."""
    record_lines = read_lines(folder / RECORDS)
    while True:
        workload_lines = read_lines(folder / WORKLOADS)
        before, record_lines = record_lines, read_lines(folder / RECORDS)
        if record_lines == before:
            break  # else a tuning job wrote meanwhile: these may not be the records' workloads
    broken = 0
    workloads: list[tuple[str, Any] | None] = []
    for line in workload_lines:
        parsed = _parsed(line)
        valid = isinstance(parsed, list) and len(parsed) == 2 and isinstance(parsed[0], str)
        workloads.append((parsed[0], parsed) if valid else None)
        broken += not valid
    records: dict[str, list[Record]] = {}
    for line in record_lines:
        try:
            index, fields = json.loads(line)
            _, seconds, *_ = fields
            workload = workloads[index]
            record = Record(float(np.mean(seconds)), fields)
            if workload is None or index < 0 or not record.seconds > 0:
                raise ValueError("not a record")
        except (ValueError, TypeError, IndexError):
            broken += 1
            continue
        records.setdefault(workload[0], []).append(record)
    for found in records.values():
        found.sort(key=lambda record: record.seconds)
    return Log(workloads, records, broken)


def read_lines(path: Path) -> list[str]:
    """The lines of one of the two files, which records count; none where there is no file."""
    try:
        return [line for line in path.read_text(errors="replace").split("\n") if line.strip()]
    except FileNotFoundError:
        return []


def fingerprint(target: Target) -> dict[str, Any]:
    """What a log depends on: versions of TVM, the CPU's instructions, our operators and spaces."""
    return _fingerprint(json.dumps(json.loads(str(target)), sort_keys=True))


def stored_fingerprint(folder: Path) -> dict[str, Any] | None:
    """The fingerprint of a log; None where there is none, empty where it cannot be read."""
    try:
        stored = json.loads((folder / FINGERPRINT).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The keys in which two fingerprints differ; empty when they are equal."""
    keys = stored.keys() | wanted.keys()
    return ", ".join(sorted(key for key in keys if stored.get(key) != wanted.get(key)))


def _usable_logs(target: Target) -> list[Log]:
    logs = []
    for parent in dict.fromkeys(folder.resolve() for folder in folders()):
        folder = parent / log_name(target)
        try:
            files = [folder / name for name in (WORKLOADS, RECORDS, FINGERPRINT)]
            state = tuple(
                (str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files
            )
        except OSError:
            continue  # nothing was tuned for this target
        log = _usable_log(state, str(target))
        if log is not None:
            logs.append(log)
    return logs


@functools.lru_cache(maxsize=8)
def _usable_log(state: tuple[tuple[str, int, int], ...], target: str) -> Log | None:
    """Read a log once, so that it also warns once; `state` says which and in what state."""
    folder = Path(state[0][0]).parent
    wanted = fingerprint(Target(json.loads(target)))
    stored = stored_fingerprint(folder) or {}
    different = differences(stored, wanted)
    if different:
        _log.warning("%s is not used: it was tuned with other %s; tune again", folder, different)
        return None
    log = read_log(folder)
    if log.broken:
        _log.warning("%s: %d broken lines are skipped", folder, log.broken)
    return log


def _best_kernel(
    log: Log, workload: tvm.IRModule, func: tirx.PrimFunc, target: Target
) -> tirx.PrimFunc | None:
    """`func` by the fastest record of its workload, None when there is none that applies."""
    key = workload_hash(workload)
    records = log.records.get(key, [])
    stored = next((w[1] for w in log.workloads if w and w[0] == key), None)
    if not records or not _is_equal(stored, workload):
        return None
    if not is_cuda(target):
        x86_intrinsics.register()
    # A schedule changes nodes in place that nobody else refers to: `func` has to stay as it is.
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    for record in records:
        schedule = s_tir.Schedule(module)
        try:
            s_tir.schedule.Trace.apply_json_to_schedule(record.trace, schedule)
            tuned = schedule.mod["main"]
            if is_cuda(target):  # the trace decides on a tile, and the kernel is written for it
                tuned = cuda_kernels.kernel(tuned, target)
        except Exception as error:
            reason = str(error).strip().splitlines()[-1:]
            _log.warning("a record of workload %s does not apply: %s", key, *reason or [""])
            continue
        return tuned.without_attr("global_symbol")
    return None


def _is_equal(stored: Any, workload: tvm.IRModule) -> bool:
    """Whether the hash did not deceive us."""
    try:
        module = ms.database.Workload.from_json(stored).mod
    except Exception:
        return False
    return bool(tvm_ffi.structural_equal(module, workload))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


@functools.lru_cache(maxsize=8)
def _fingerprint(target_json: str) -> dict[str, Any]:
    target = Target(json.loads(target_json))
    cuda = is_cuda(target)
    return {
        "tvm": tvm.__version__,
        "target": log_name(target),
        "features": [] if cuda else host_cpu.requirements(target)["features"],
        "definitions": _cuda_definitions(target) if cuda else _definitions(target),
    }


def _definitions(target: Target) -> str:
    """A hash of every epilogue of `linear`, of the intrinsics, and of the version of the space."""
    parts = [f"space {gemm_space.SPACE_VERSION}"]
    x86_intrinsics.register()
    for name in (*gemm.INTRINSICS.values(), *gemm.REQUANTIZE.values()):
        intrinsic = s_tir.TensorIntrin.get(name)
        parts += [str(tvm_ffi.structural_hash(f)) for f in (intrinsic.desc, intrinsic.impl)]
    parts += _small_kernels(target, depth=6)
    return _hash(parts)


def _cuda_definitions(target: Target) -> str:
    """A hash of every form of `linear` that is tuned, and of the versions of the spaces."""
    spaces = (
        cuda_gemm_space,
        cuda_attention_space,
        cuda_layer_norm_space,
        cuda_norm_gemm_space,
        cuda_norm_attention_space,
        cuda_norm_mlp_space,
    )
    parts = [f"{space.__name__} {space.SPACE_VERSION}" for space in spaces]
    parts += _small_kernels(target, depth=6) + _small_kernels(target, depth=16)
    return _hash(parts)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _small_kernels(target: Target, depth: int) -> list[str]:
    """Hashes of `linear` with every epilogue."""
    hashes = []
    for out, activation, residual in (
        *(("u8", "none", False), ("s8", "none", False), ("i32", "none", False)),
        *(("i16", "none", True), ("u8", "igelu", False), ("u8", "shiftgelu", False)),
    ):
        module = _small_linear(target, depth, out, activation, residual)
        functions = [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]
        hashes += [str(tvm_ffi.structural_hash(function)) for function in functions]
    return hashes


def _small_linear(
    target: Target, depth: int, out: str, activation: str, residual: bool
) -> tvm.IRModule:
    rows, channels = 5, 3  # padded in every direction
    spec = TensorSpec((rows, channels), "int16", 1.0)
    vector = np.zeros(channels, np.int32)
    weight = np.zeros((channels, depth), np.int8)
    tensors: dict[str, np.ndarray] = {"weight": weight, "bias": vector}
    tensors |= {"pre": vector, "mult": vector, "act_params": np.zeros(6, np.int32)}
    attrs: dict[str, int | str] = {"out": out, "activation": activation, "frac": 7, "zero_point": 0}
    node = Node("linear", "linear", [], tensors, attrs, spec)
    types = [((1, rows, depth), "uint8"), ((1, rows, channels), "int16")][: 1 + residual]
    inputs = [relax.Var(f"x{i}", relax.TensorType(*type_)) for i, type_ in enumerate(types)]
    bb = relax.BlockBuilder()
    with bb.function("main", inputs):
        with bb.dataflow():
            result = bb.emit_output(linear.emit(bb, node, inputs, 1, target))
        bb.emit_func_output(result)
    return bb.get()
