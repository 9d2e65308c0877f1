"""LayerNorm and a GEMM in one CUDA kernel, emulated, equal the two operators bit for bit."""

import dataclasses
import itertools

import numpy as np
import pytest
import tvm
from tvm import s_tir, tirx

import graphs
from cuda_emulator import emulate
from intswin.compile.operators import cuda_linear
from intswin.compile.schedules import cuda_kernels
from intswin.compile.schedules.cuda_norm_gemm_space import (
    NormGemmTile,
    NormWgmmaTile,
)
from intswin.compile.targets import get_target
from intswin.models import integer_ops
from operator_runner import emit_operator

_EPILOGUES = itertools.cycle([{"zero_point": 0}, {"out": "s8"}, {"activation": "igelu"}])


def _case(rng, rows, channels, columns, group=1, extreme=False, **epilogue):
    """The fused node of a LayerNorm and a GEMM, and what the two of them make of its input."""
    norm = graphs.random_layer_norm(rng, rows, channels, group=group, extreme=extreme)
    linear = graphs.random_linear(rng, rows, group * channels, columns, extreme=extreme, **epilogue)
    node = dataclasses.replace(
        linear.node,
        op="norm_linear",
        inputs=["x"],
        tensors={**norm.node.tensors, **linear.node.tensors},
        attrs={**linear.node.attrs, "shift": norm.node.attrs["shift"]},
    )
    return graphs.Case(node, norm.specs), norm.node, linear.node


def _described(case, batch, target):
    mod = emit_operator(case, batch, target)
    (func,) = (f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc))
    passed = mod["main"].body.blocks[0].bindings[0].value.args[1]
    constants = [c.value.numpy() for c in passed if isinstance(c, tvm.ir.GenericConst)]
    return func.with_attr("global_symbol", "main"), constants


@pytest.mark.parametrize(
    ("target_name", "problem", "epilogue"),
    [
        (target, *both)
        for target, problems in (
            (
                "cuda-h100",
                [
                    # rows, channels, columns, group: rows are masked, one slice, one tile
                    (49, 96, 96, 1, NormGemmTile(64, 96, 96, 2, 3, 1, 1, 4, 1)),
                    # slices of several tiles in one sequence, slots filled again
                    (70, 192, 128, 1, NormGemmTile(32, 32, 64, 2, 1, 1, 3, 8, 4)),
                    # depth shared by four warps, columns cut, patch merging
                    (20, 96, 40, 4, NormGemmTile(16, 32, 128, 1, 1, 4, 3, 16, 1)),
                    # a tile a slice; more rows at once than the block has are none
                    (33, 64, 96, 1, NormGemmTile(32, 32, 64, 2, 1, 1, 2, 8, 3)),
                    # rows in passes, the last one not full
                    (50, 32, 64, 1, NormGemmTile(64, 64, 32, 1, 1, 1, 1, 1, 1)),
                    (30, 256, 96, 1, NormGemmTile(16, 96, 32, 1, 3, 1, 4, 32, 1)),
                ],
            ),
            (
                "wgmma",
                [
                    (70, 192, 40, 1, NormWgmmaTile(64, 64, 64, 1, 1, 3, 4, 1)),
                    (130, 128, 128, 1, NormWgmmaTile(128, 32, 64, 1, 1, 3, 2, 4)),
                    (100, 64, 192, 4, NormWgmmaTile(128, 64, 128, 2, 1, 4, 8, 3)),
                    (40, 64, 96, 1, NormWgmmaTile(64, 32, 64, 1, 1, 3, 8, 3)),
                ],
            ),
            ("cuda-t4", [(49, 96, 96, 1, NormGemmTile(32, 96, 32, 2, 1, 1, 2, 2, 1))]),
        )
        for both in zip(problems, _EPILOGUES, strict=False)
    ],
    ids=str,
)
@pytest.mark.parametrize("extreme", [False, True])
def test_tiles(target_name, problem, epilogue, extreme, monkeypatch):
    if target_name == "wgmma":
        monkeypatch.setattr(cuda_linear, "weight_layout", lambda *_: "wgmma")
        target_name = "cuda-h100"
    rows, channels, columns, group, tile = problem
    rng = np.random.default_rng(rows)
    target, batch = get_target(target_name), 2 if rows < 40 else 1
    case, norm, linear = _case(rng, rows, channels, columns, group, extreme, **epilogue)
    func, constants = _described(case, batch, target)
    sch = s_tir.Schedule(func)
    cuda_kernels.schedule(sch, target, tile)
    kernel = cuda_kernels.kernel(sch.mod["main"], target)
    (x,) = case.inputs(rng, batch, extreme)
    expected = integer_ops.execute(linear, [integer_ops.execute(norm, [x])])
    np.testing.assert_array_equal(integer_ops.execute(case.node, [x]), expected)
    actual = np.empty_like(expected)
    emulate(kernel, target, [x, *constants, actual], races=True)
    np.testing.assert_array_equal(actual, expected)
