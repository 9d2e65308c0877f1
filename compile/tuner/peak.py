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

_ACCUMULATORS = 10  # enough to hide the instruction's latency, in the registers of AVX2 too
_VECTORS = 8  # read in turns from the first-level cache, so that nothing can be hoisted
_STEPS = 4000
_SAMPLES = 30


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
        tvm.runtime.tensor(np.ones(isa.depth, isa.left_dtype)),
        tvm.runtime.tensor(np.ones((_VECTORS, isa.lanes * isa.depth), isa.right_dtype)),
        tvm.runtime.empty((cores, isa.lanes), "int32"),
    ]
    seconds = []
    for _ in range(_SAMPLES):
        start = time.perf_counter()
        kernel(*arguments)
        seconds.append(time.perf_counter() - start)
    products = cores * _STEPS * _VECTORS * _ACCUMULATORS * isa.lanes * isa.depth
    return 2 * products / min(seconds)


def _kernel(isa: Simd, cores: int) -> tirx.PrimFunc:
    lanes = isa.lanes
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            left = T.arg("left", T.buffer((isa.depth,), isa.left_dtype))
            right = T.arg("right", T.buffer((_VECTORS, lanes * isa.depth), isa.right_dtype))
            out = T.arg("out", T.buffer((cores, lanes), "int32"))
            with T.parallel(0, cores) as core:
                word = let(load(left, [0], isa.depth))
                acc = simd.scratch((_ACCUMULATORS, lanes), "int32")
                for i in range(_ACCUMULATORS):
                    store(acc, tirx.Broadcast(tirx.const(i, "int32"), lanes), [i, 0])
                with T.serial(0, _STEPS):
                    with T.serial(0, _VECTORS) as step:
                        vector = let(load(right, [step, 0], lanes * isa.depth))
                        for i in range(_ACCUMULATORS):
                            total = isa.dot(load(acc, [i, 0], lanes), word, vector)
                            store(acc, total, [i, 0])
                total = load(acc, [0, 0], lanes)
                for i in range(1, _ACCUMULATORS):
                    total = total + load(acc, [i, 0], lanes)
                store(out, total, [core, 0])
    return simd.finished(builder.get(), "peak")
