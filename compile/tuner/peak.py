"""What this CPU's int8 multiply-accumulate instruction reaches at most, measured."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.build import build_kernel
from intswin.compile.host_cpu import usable_cores
from intswin.compile.schedules import simd
from intswin.compile.schedules.simd import Simd, let, load, store
from intswin.compile.tuner.worker import link

_ROWS, _BLOCKS = 5, 2  # accumulators: they hide the instruction's latency and fit AVX2's registers
_DEPTH = 64  # operands are in the first-level cache, and too many to be kept in registers
_REPEATS = 3000
_SAMPLES = 100


def measure_peak(target_json: str, path: str) -> float:
    """Operations (two for each product) in a second on all cores, the best of some samples.

    Args:
        target_json: JSON of a target that this CPU can run.
        path: of a library to write.
    """
    target = Target(target_json)
    isa, cores = Simd.of(target), usable_cores()
    func = _kernel(isa, cores).with_attr("global_symbol", "main")
    link(build_kernel(tvm.IRModule({"main": func}), target), target, path)
    kernel = tvm.runtime.load_module(str(Path(path).resolve()))["main"]
    arguments = [
        tvm.runtime.tensor(np.ones((_DEPTH, _ROWS * isa.depth), isa.left_dtype)),
        tvm.runtime.tensor(np.ones((_DEPTH, _BLOCKS, isa.lanes * isa.depth), isa.right_dtype)),
        tvm.runtime.empty((cores, isa.lanes), "int32"),
    ]
    seconds = []
    for _ in range(_SAMPLES):
        start = time.perf_counter()
        kernel(*arguments)
        seconds.append(time.perf_counter() - start)
    products = cores * _REPEATS * _DEPTH * _ROWS * _BLOCKS * isa.lanes * isa.depth
    return 2 * products / min(seconds)


def _kernel(isa: Simd, cores: int) -> tirx.PrimFunc:
    """A GEMM's innermost loop without anything around it, on each core."""
    lanes, depth = isa.lanes, isa.depth
    accumulators = [[i, 0] for i in range(_ROWS * _BLOCKS)]
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            left = T.arg("left", T.buffer((_DEPTH, _ROWS * depth), isa.left_dtype))
            right = T.arg("right", T.buffer((_DEPTH, _BLOCKS, lanes * depth), isa.right_dtype))
            out = T.arg("out", T.buffer((cores, lanes), "int32"))
            with T.parallel(0, cores) as core:
                acc = simd.scratch((len(accumulators), lanes), "int32")
                for at in accumulators:
                    store(acc, tirx.Broadcast(tirx.const(0, "int32"), lanes), at)
                with T.serial(0, _REPEATS):
                    with T.serial(0, _DEPTH) as k:
                        rights = [
                            let(load(right, [k, block, 0], lanes * depth))
                            for block in range(_BLOCKS)
                        ]
                        for row in range(_ROWS):
                            word = let(load(left, [k, row * depth], depth))
                            for block in range(_BLOCKS):
                                at = accumulators[row * _BLOCKS + block]
                                store(acc, isa.dot(load(acc, at, lanes), word, rights[block]), at)
                total = load(acc, accumulators[0], lanes)
                for at in accumulators[1:]:
                    total = total + load(acc, at, lanes)
                store(out, total, [core, 0])
    return simd.finished(builder.get(), "peak")
