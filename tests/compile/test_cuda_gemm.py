"""CUDA GEMM kernels of many tiles, on the emulator; their space; and what benchmarks compare."""

import itertools
import math
import random

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import s_tir

import graphs
from cuda_emulator import emulate
from intswin.compile.operators import cuda_linear
from intswin.compile.schedules import cuda_gemm_mma, cuda_gemm_wgmma, cuda_kernels
from intswin.compile.schedules.cuda_gemm_space import candidates, default_tile
from intswin.compile.schedules.cuda_gemm_tiles import (
    TILES,
    CudaGemmShape,
    Dp4aTile,
    MmaTile,
    WgmmaTile,
)
from intswin.compile.schedules.cuda_separate_gelu import separate_gelu_kernel
from intswin.compile.schedules.cuda_wgmma_functions import COLUMNS
from intswin.compile.targets import get_target
from intswin.compile.verify_integer_only import FloatOperationError, verify_integer_only
from intswin.models import integer_ops
from intswin.models.integer_math import requant8, requant16
from operator_runner import described_kernel

_EPILOGUES = itertools.cycle(
    [{"zero_point": 0}, {"out": "i16", "residual": True}, {"activation": "igelu"}, {"out": "i32"}]
)


def _check(case, batch, target_name, tile, extreme=False):
    target = get_target(target_name)
    func, constants = described_kernel(case, batch, target)
    sch = s_tir.Schedule(func)
    cuda_kernels.schedule(sch, target, tile)
    kernel = cuda_kernels.kernel(sch.mod["main"], target)
    x, *residual = case.inputs(np.random.default_rng(3), batch, extreme)
    expected = integer_ops.execute(case.node, [x, *residual])
    actual = np.empty_like(expected)
    arrays = [x, *constants, *residual, actual]
    written = [0, *([len(arrays) - 2] if residual else [])]
    emulate(kernel, target, arrays, races=True, activations=written)
    np.testing.assert_array_equal(actual, expected)


_MMA_TILES = [
    (49, 96, 96, MmaTile(64, 96, 32, 2, 3, 1, 2)),  # rows are masked, three slices
    (70, 192, 64, MmaTile(32, 32, 64, 2, 1, 1, 3)),  # a slot is filled again
    (20, 384, 40, MmaTile(16, 32, 128, 1, 1, 4, 3)),  # depth shared by four warps, columns cut
    (33, 48, 64, MmaTile(32, 64, 64, 1, 2, 2, 1)),  # depth padded with zeros
    (40, 160, 72, MmaTile(32, 96, 96, 2, 1, 3, 2)),  # a last slice that is not full
    (17, 272, 21, MmaTile(16, 32, 256, 1, 1, 2, 2)),  # columns one by one
    (17, 64, 21, MmaTile(16, 32, 64, 1, 1, 1, 1)),
]
_WGMMA_TILES = [
    (70, 192, 40, WgmmaTile(64, 64, 64, 1, 1, 3)),  # all slices ahead; rows and columns are masked
    (130, 320, 64, WgmmaTile(128, 64, 64, 1, 2, 3)),  # slots are filled again
    (100, 192, 192, WgmmaTile(128, 192, 128, 2, 1, 2)),  # a last slice that is not full
    (40, 640, 96, WgmmaTile(64, 96, 128, 1, 1, 4)),
    (20, 64, 21, WgmmaTile(64, 32, 64, 1, 1, 1)),  # columns one by one
]
_DP4A_TILES = [
    (49, 96, 64, Dp4aTile(64, 64, 32, 8, 4)),
    (70, 64, 40, Dp4aTile(32, 32, 64, 4, 4)),
    (33, 52, 72, Dp4aTile(32, 64, 16, 4, 8)),  # depth is no multiple of 16
    (5, 30, 21, Dp4aTile(16, 32, 32, 4, 4)),
]


@pytest.mark.parametrize(
    ("target_name", "problem", "epilogue"),
    [
        *(("cuda-h100", *both) for both in zip(_MMA_TILES, _EPILOGUES, strict=False)),
        *(("cuda-h100", *both) for both in zip(_WGMMA_TILES, _EPILOGUES, strict=False)),
        *(("cuda-v100", *both) for both in zip(_DP4A_TILES, _EPILOGUES, strict=False)),
        ("cuda-t4", _MMA_TILES[0], {"out": "i16", "residual": True}),
        ("cuda-t4", _MMA_TILES[4], {"zero_point": 0}),
    ],
    ids=str,
)
def test_tiles(target_name, problem, epilogue, monkeypatch):
    rows, k, n, tile = problem
    if isinstance(tile, WgmmaTile):
        monkeypatch.setattr(cuda_linear, "weight_layout", lambda *_: "wgmma")
    rng = np.random.default_rng(rows)
    extreme = bool(rows % 2)
    case = graphs.random_linear(rng, rows, k, n, extreme=extreme, **epilogue)
    _check(case, 2 if rows < 40 else 1, target_name, tile, extreme=extreme)


@pytest.mark.parametrize("problem", [_MMA_TILES[1], _WGMMA_TILES[1]], ids=str)
def test_tiles_as_with_many_blocks(problem, monkeypatch):
    """Then the weight is not loaded ahead of x; so many would take minutes here."""
    *sizes, tile = problem
    if isinstance(tile, WgmmaTile):
        monkeypatch.setattr(cuda_linear, "weight_layout", lambda *_: "wgmma")
    monkeypatch.setattr(cuda_gemm_mma, "few_blocks", lambda *_: False)
    for module in (cuda_gemm_mma, cuda_gemm_wgmma):
        monkeypatch.setattr(module, "starts_early", lambda *_: False)
    case = graphs.random_linear(np.random.default_rng(5), *sizes, out="i16", residual=True)
    _check(case, 1, "cuda-h100", tile)


@pytest.mark.parametrize("target_name", ["cuda-h100", "cuda-v100"])
def test_description_computes_the_operator(target_name):
    """What a log knows a kernel by, compiled for the CPU, is `linear` with the packed weight."""
    rng = np.random.default_rng(2)
    target = get_target(target_name)
    case = graphs.random_linear(rng, 5, 80, 40, activation="igelu")
    func, constants = described_kernel(case, 2, target)
    (x,) = case.inputs(rng, 2)
    expected = integer_ops.execute(case.node, [x])
    actual = tvm.runtime.tensor(np.zeros_like(expected))
    tvm.compile(func, get_target("llvm"))(*map(tvm.runtime.tensor, [x, *constants]), actual)
    np.testing.assert_array_equal(actual.numpy(), expected)


@pytest.mark.parametrize(
    ("target_name", "problem"), [("cuda-h100", _MMA_TILES[0]), ("cuda-v100", _DP4A_TILES[0])]
)
def test_a_trace_gives_the_same_kernel(target_name, problem):
    *sizes, tile = problem
    target = get_target(target_name)
    case = graphs.random_linear(np.random.default_rng(4), *sizes, zero_point=0)
    func, _ = described_kernel(case, 1, target)
    assert tile != default_tile(cuda_kernels.shape_of(func, target))
    decided = s_tir.Schedule(func)
    cuda_kernels.schedule(decided, target, tile)
    replayed = s_tir.Schedule(func)
    s_tir.schedule.Trace.apply_json_to_schedule(decided.trace.as_json(), replayed)
    kernels = [cuda_kernels.kernel(s.mod["main"], target) for s in (decided, replayed)]
    assert tvm_ffi.structural_equal(*kernels)
    assert f'threadIdx.x", {tile.threads}' in str(kernels[0])


def test_tiles_of_another_shape_are_refused():
    target = get_target("cuda-h100")
    func, _ = described_kernel(
        graphs.random_linear(np.random.default_rng(4), 49, 96, 64), 1, target
    )
    with pytest.raises(ValueError, match="block_depth=128 is not one of"):
        cuda_kernels.schedule(s_tir.Schedule(func), target, MmaTile(64, 64, 128, 2, 2, 1, 2))


@pytest.mark.parametrize(
    ("arch", "layout"),
    [(70, "dp4a"), (75, "mma"), (80, "mma"), (89, "mma"), (90, "mma"), (90, "wgmma")],
)
def test_every_draw_is_a_tile(arch, layout):
    rng = random.Random(arch)
    limit = {70: 96, 75: 64, 80: 163, 89: 99, 90: 227}[arch] << 10
    for _ in range(150):
        rows, columns = rng.choice([1, 49, 784, 100352]), rng.choice([10, 32, 96, 1000, 4096])
        depth = rng.choice([64, 192, 4096] if layout == "wgmma" else [16, 48, 96, 768, 4096])
        shape = CudaGemmShape(arch, layout, rows, columns, depth, "u8", "none", 7, False)
        default = default_tile(shape)
        made, of_default = {}, {}
        for field in TILES[layout].__dataclass_fields__:
            made[field] = rng.choice(list(candidates(shape, field, made)))
            assert getattr(default, field) in candidates(shape, field, of_default)
            of_default[field] = getattr(default, field)
        tile = TILES[layout](**made)
        assert 32 <= tile.threads <= 512
        assert tile.shared_bytes <= limit
        if arch == 75:  # copies are not asynchronous
            assert tile.stages <= 2
        if layout == "wgmma":
            assert tile.block_rows % (64 * tile.row_warpgroups) == 0
            assert tile.block_columns // tile.column_warpgroups in COLUMNS


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "tile"),
    [
        (100352, 96, 288, MmaTile(128, 96, 96, 4, 1, 1, 1)),  # one slice: 82 registers, 5 blocks
        (25088, 768, 192, MmaTile(128, 96, 128, 4, 1, 1, 2)),  # 161 registers, 3 blocks
        (49, 3072, 768, MmaTile(16, 32, 256, 1, 1, 4, 5)),  # too few results for the processors
    ],
)
def test_default_tiles(rows, depth, columns, tile):
    """Of an H100; the comments say how many blocks a multiprocessor has."""
    shape = CudaGemmShape(90, "mma", rows, columns, depth, "s8", "none", 7, False)
    assert default_tile(shape) == tile


@pytest.mark.parametrize(
    ("target_name", "depth", "rows", "layout"),
    [
        ("cuda-h100", 384, 6272, "wgmma"),
        ("cuda-h100", 192, 25088, "mma"),  # too shallow
        ("cuda-h100", 384, 196, "mma"),  # too few rows
        ("cuda-h100", 400, 6272, "mma"),  # no whole slices
        ("cuda-a100", 384, 6272, "mma"),
        ("cuda-t4", 384, 6272, "mma"),
        ("cuda-h100", 52, 6272, "dp4a"),
        ("cuda-v100", 384, 6272, "dp4a"),
    ],
)
def test_layouts(target_name, depth, rows, layout):
    assert cuda_linear.weight_layout(get_target(target_name), depth, rows) == layout


def test_packed_weights_hold_every_element_once():
    weight = np.arange(-127, 128, dtype=np.int8)[:240].reshape(12, 20)
    for layout, size in (("wgmma", 32 * 20), ("mma", 32 * 32), ("dp4a", 32 * 20)):
        packed = cuda_linear.pack_weight(weight, layout)
        assert packed.size == size
        assert sorted(packed[packed != 0]) == sorted(weight[weight != 0])


@pytest.mark.parametrize("kind", ["igelu", "float"])
def test_separate_gelu(kind):
    rng = np.random.default_rng(6)
    target = get_target("cuda-h100")
    shape, k, zero_point, frac, step = (1, 33, 200), 9, 16, 6, 0.02
    t = np.clip(rng.normal(0, 1000, shape), -32768, 32767).astype(np.int16)
    act_params = graphs.act_params("igelu", k, step / 2**frac)
    actual = np.empty(shape, np.uint8)
    func = separate_gelu_kernel(shape, kind, frac)
    if kind == "igelu":
        offset = np.array([(zero_point << frac) + (1 << frac >> 1)], np.int32)
        emulate(func, target, [t, act_params, offset, actual])
        k, qb, q1, e, pre, mult = (int(value) for value in act_params)
        product = integer_ops.igelu(t.astype(np.int32), qb, q1, e) + graphs.half(pre)
        expected = requant8(requant16(product, pre, mult), zero_point, frac, np.uint8)
        np.testing.assert_array_equal(actual, expected)
    else:
        scales = np.array([2.0**-k, 1 / step, zero_point], np.float32).view(np.int32)
        emulate(func, target, [t, scales, actual])
        x = t / 2.0**k
        exact = x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5)) / step + zero_point
        np.testing.assert_allclose(actual, np.clip(exact, 0, 255), atol=0.51)


def test_a_float_gelu_is_refused():
    func = separate_gelu_kernel((1, 8, 32), "float", 6)
    mod = tvm.IRModule({"separate_gelu": func})
    with pytest.raises(FloatOperationError, match="float32"):
        verify_integer_only(mod)
    assert verify_integer_only(mod, (), "separate_gelu").functions == []
